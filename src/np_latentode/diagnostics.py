"""Is it any good? Draws for ArviZ, and how Gaussian the code is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import xarray
from jax.scipy.special import logsumexp
from jaxtyping import Array
from scipy.spatial.distance import cdist, pdist

from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.plate import prediction_times
from np_latentode.prediction import decode, forecast, observed_times, posterior, prior
from np_latentode.trajectories import Numbers, Trajectories

__all__ = ["GaussianizationReport", "gaussianization", "to_datatree"]


def to_datatree(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    trajectories: Trajectories,
    *,
    times: Numbers | None = None,
    num_samples: int = 200,
    feature_names: Sequence[str] | None = None,
    trajectory_names: Sequence[Any] | None = None,
) -> xarray.DataTree:
    """What ArviZ needs to know of a fit, for trajectories encoded as a whole.

    Groups: `posterior` (z0 from the guide) and `prior`; `posterior_predictive` and
    `prior_predictive` (x and x_mean at the observed times), and with `times` `predictions` there;
    `log_likelihood` (one term a trajectory); `observed_data` (NaN where unobserved);
    `constant_data` (times, mask, and parameters with a name of their own, as `noise_scale`) and
    `predictions_constant_data`. All but z0 is in original units.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: the data to encode and to predict.
        times: where to predict, too: (time,) for all, or (trajectory, time).
        num_samples: draws from the guide.
        feature_names: coordinates of the dimension `feature`. Default: 0, 1, ...
        trajectory_names: coordinates of the dimension `trajectory`. Default: 0, 1, ...

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    features = _names("feature_names", feature_names, trajectories.num_features, "features")
    ids = _names("trajectory_names", trajectory_names, len(trajectories), "trajectories")
    post_key, prior_key, x_key, future_key = jax.random.split(rng_key, 4)
    seen = observed_times(model, trajectories)
    draws = forecast(post_key, model, guide, params, trajectories, seen, num_samples=num_samples)
    shape = (num_samples, len(trajectories))
    z0 = jnp.asarray(prior(model, params).sample(prior_key, shape))
    before = decode(x_key, model, params, z0, seen)
    # `log_likelihood` substitutes no params: without this it would score untrained networks.
    fitted = numpyro.handlers.substitute(model, data=params)
    log_likelihood = numpyro.infer.log_likelihood(fitted, {"z0": draws["z0"]}, trajectories)["x"]
    values, mask = np.asarray(trajectories.values), np.asarray(trajectories.mask)
    named = {k: np.asarray(v) for k, v in params.items() if not k.endswith("$params")}

    def one_chain(draws: dict[str, Array], *names: str) -> dict[str, np.ndarray]:
        return {name: np.asarray(draws[name])[None] for name in names}

    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": one_chain(draws, "z0"),
        "prior": one_chain(before, "z0"),
        "posterior_predictive": one_chain(draws, "x", "x_mean"),
        "prior_predictive": one_chain(before, "x", "x_mean"),
        "log_likelihood": {"x": np.asarray(log_likelihood)[None]},
        "observed_data": {"x": np.where(mask, values, np.nan)},
        "constant_data": {"times": np.asarray(trajectories.times), "mask": mask, **named},
    }
    per_time = ["trajectory", "time", "feature"]
    dims = {
        "z0": ["trajectory", "latent"],
        "times": ["trajectory", "time"],
        "mask": per_time,
        "x": per_time,
        "x_mean": per_time,
        **{k: ["feature"] for k, v in named.items() if v.shape == (len(features),)},
    }
    coords = {"feature": features, "trajectory": ids}
    if times is not None:
        at = prediction_times(times, len(trajectories), model.scaling, name="times")
        later = decode(future_key, model, params, draws["z0"], at)
        groups["predictions"] = one_chain(later, "x", "x_mean")
        groups["predictions_constant_data"] = {"times": np.asarray(at)}
    return arviz_base.from_dict(
        groups, coords=coords, dims=dims, pred_coords=coords, pred_dims=dims
    )


def _names(name: str, names: Sequence[Any] | None, count: int, of: str) -> list[Any]:
    names = list(range(count)) if names is None else list(names)
    if len(names) != count or len(set(names)) != count:
        raise ValueError(f"{name} must name {count} {of}, each its own; got {names}.")
    return names


@dataclass(frozen=True)
class GaussianizationReport:
    """How far the codes of a population are from the prior.

    With q(z) the mean of q(z0 | x_n) over `num_trajectories` trajectories, the KL of the ELBO
    splits (Hoffman & Johnson 2016, "ELBO surgery"):

    kl = mutual_information + kl_marginal,
    mutual_information = E[log q(z | x) - log q(z)],  kl_marginal = E[log q(z) - log p(z)].

    `mutual_information` cannot exceed `log_n`, the log of `num_trajectories`: the split means
    something only while it stays well below. `standard_error` is that of `kl_marginal`.

    `energy_distance`, 2 E|z - w| - E|z - z'| - E|w - w'| with z ~ q(z) and w ~ p(z), is 0 if and
    only if the two are the same (Szekely & Rizzo 2013), and needs no density; with its own
    standard error. `activity` is the variance over trajectories of E[z0 | x], one entry a
    dimension: a unit is active above 0.01 (Burda et al. 2016). The moments are those of draws
    z ~ q(z), one entry a dimension; for N(0, I) they are 0, 1, 0, 0.
    """

    num_trajectories: int
    log_n: float
    kl: float
    mutual_information: float
    kl_marginal: float
    standard_error: float
    energy_distance: float
    energy_distance_error: float
    activity: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    skew: np.ndarray
    excess_kurtosis: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"KL(q(z0|x) || p(z0)) {self.kl:.3f} nats",
            f"  = I(x; z0) {self.mutual_information:.3f} + KL(q(z0) || p(z0)) "
            f"{self.kl_marginal:.3f} +- {self.standard_error:.3f}"
            f"   from n = {self.num_trajectories}, log n = {self.log_n:.2f}",
            f"energy distance to the prior {self.energy_distance:.4f} +- "
            f"{self.energy_distance_error:.4f}, {np.sum(self.activity > 0.01)} of "
            f"{len(self.activity)} units active",
        ]
        for j, moments in enumerate(
            zip(self.mean, self.sd, self.skew, self.excess_kurtosis, strict=True)
        ):
            mean, sd, skew, kurtosis = moments
            lines.append(
                f"  z0[{j}]  mean {mean:+.3f}  sd {sd:.3f}  skew {skew:+.3f}  "
                f"excess kurtosis {kurtosis:+.3f}"
            )
        return "\n".join(lines)


def gaussianization(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    trajectories: Trajectories,
    *,
    num_points: int = 4_000,
) -> GaussianizationReport:
    """Moments of the aggregate posterior, and the split of its KL from the prior.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: a sample of the population; the more, the further log n is from biting.
        num_points: how many of the draws, one a trajectory, the KL terms are averaged over.

    Raises:
        ValueError: if num_points is not positive.
    """
    if num_points < 1:
        raise ValueError(f"num_points must be positive; got {num_points}.")
    draw_key, pick_key, mean_key, prior_key = jax.random.split(rng_key, 4)
    q = posterior(guide, params, trajectories)
    z = q.sample(draw_key)
    p = prior(model, params)
    n = len(trajectories)
    # Shuffled, a prefix is a sample without replacement.
    picked = jax.random.permutation(pick_key, n)[:num_points]
    log_conditional = q.log_prob(z)[picked]

    def log_marginal(point: Array) -> Array:
        return logsumexp(q.log_prob(point)) - jnp.log(n)

    log_q = jax.lax.map(jax.jit(log_marginal), z[picked], batch_size=64)
    log_p = p.log_prob(z[picked])
    gap = np.asarray(log_q - log_p)
    draws = np.asarray(z, dtype=np.float64)
    standard = (draws - draws.mean(0)) / draws.std(0)
    means = np.asarray(q.sample(mean_key, (30,)), np.float64).mean(0)
    others = np.asarray(p.sample(prior_key, (min(n, num_points),)), np.float64)
    distance, distance_error = _energy_distance(draws[np.asarray(picked)], others)
    return GaussianizationReport(
        num_trajectories=n,
        log_n=float(np.log(n)),
        kl=float(jnp.mean(log_conditional - log_p)),
        mutual_information=float(jnp.mean(log_conditional - log_q)),
        kl_marginal=float(gap.mean()),
        standard_error=float(gap.std() / np.sqrt(len(gap))),
        energy_distance=distance,
        energy_distance_error=distance_error,
        activity=means.var(0),
        mean=draws.mean(0),
        sd=draws.std(0),
        skew=(standard**3).mean(0),
        excess_kurtosis=(standard**4).mean(0) - 3,
    )


def _energy_distance(z: np.ndarray, w: np.ndarray, *, num_blocks: int = 10) -> tuple[float, float]:
    """The mean over blocks of the unbiased estimate of each, and the standard error of that."""
    distances = []
    for a, b in zip(np.array_split(z, num_blocks), np.array_split(w, num_blocks), strict=True):
        if min(len(a), len(b)) < 2:
            return float("nan"), float("nan")
        between = cdist(a, b).mean()
        distances.append(2 * between - pdist(a).mean() - pdist(b).mean())
    return float(np.mean(distances)), float(np.std(distances, ddof=1) / np.sqrt(num_blocks))

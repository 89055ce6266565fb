"""Is it any good? Draws for ArviZ, and how Gaussian the code is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import xarray
from jax.scipy.special import logsumexp
from jaxtyping import Array
from scipy.spatial.distance import cdist, pdist

from np_latentode.exact import check_exact
from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.plate import check_counts, check_data, prediction_times
from np_latentode.prediction import (
    check_params,
    decode,
    log_likelihood,
    observed_times,
    posterior,
    prior,
)
from np_latentode.trajectories import Numbers, Trajectories

__all__ = ["GaussianizationReport", "gaussianization", "to_datatree"]

PER_OBSERVATION = ("posterior_predictive", "prior_predictive", "log_likelihood", "observed_data")


def to_datatree(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    trajectories: Trajectories,
    *,
    times: Numbers | None = None,
    exact: xarray.DataTree | None = None,
    num_samples: int = 200,
    feature_names: Sequence[Any] | None = None,
    trajectory_names: Sequence[Any] | None = None,
) -> xarray.DataTree:
    """What ArviZ needs to know of a fit, for trajectories encoded as a whole.

    Groups: `posterior` (z0 from the guide) and `prior`; `posterior_predictive` and
    `prior_predictive` (x and x_mean), `log_likelihood` and `observed_data` (x), which have a
    dimension `observation`, one entry for each number that was observed, with the coordinates
    `trajectory`, `time` and `feature`; with `times`, `predictions` of x and x_mean at all of them,
    and `predictions_constant_data`; `constant_data`, parameters with a name of their own, such as
    `noise_scale`. All but z0 is in original units.

    `az.loo` of it leaves out one observation at a time, and `elpd` one trajectory. What `az.loo`
    and `az.plot_loo_pit` say holds for draws from the posterior itself: where the guide is narrow,
    and Pareto k of `importance` large, hand over `exact`.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: the data to encode and to predict.
        times: where to predict, too: (time,) for all, or (trajectory, time).
        exact: what `exact_posterior` drew for these trajectories, which then is the posterior, and
            `sample_stats`. Default: num_samples draws from the guide.
        num_samples: draws from the prior, and from the guide.
        feature_names: coordinates of the dimension `feature`. Default: `trajectories.names`.
        trajectory_names: coordinates of the dimension `trajectory`. Default: likewise.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples)
    check_data(model, trajectories)
    check_params(params, model, guide)
    names = trajectories.names
    features = _names("feature_names", feature_names, names.features, "features")
    ids = _names("trajectory_names", trajectory_names, names.ids, "trajectories")
    at = None
    if times is not None:
        at = prediction_times(times, len(trajectories), model.scaling, name="times")
    z0_key, prior_key, x_key, before_key, future_key = jax.random.split(rng_key, 5)
    if exact is None:
        z0 = posterior(guide, params, trajectories).sample(z0_key, (1, num_samples))
    else:
        z0 = jnp.asarray(check_exact(exact, trajectories)["posterior"]["z0"].values)
    shape = (1, num_samples, len(trajectories))
    before = jnp.asarray(prior(model, params).sample(prior_key, shape))
    mask = np.asarray(trajectories.mask)
    seen = observed_times(model, trajectories)

    def predict(rng_key: Array, z0: Array, times: Array) -> dict[str, np.ndarray]:
        draws = decode(rng_key, model, params, jnp.concatenate(z0), times)
        return {name: _chains(draws[name], len(z0)) for name in ("x", "x_mean")}

    def observed(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: values[:, :, mask] for name, values in draws.items()}

    log_prob = log_likelihood(model, params, jnp.concatenate(z0), trajectories)
    groups: dict[str, dict[str, np.ndarray]] = {
        "posterior": {"z0": np.asarray(z0)},
        "prior": {"z0": np.asarray(before)},
        "posterior_predictive": observed(predict(x_key, z0, seen)),
        "prior_predictive": observed(predict(before_key, before, seen)),
        "log_likelihood": observed({"x": _chains(log_prob, len(z0))}),
        "observed_data": {"x": np.asarray(trajectories.values)[mask]},
        "constant_data": {k: np.asarray(v) for k, v in params.items() if not k.endswith("$params")},
    }
    shared, per_time = {}, ["trajectory", "time", "feature"]
    if at is not None:
        groups["predictions"] = predict(future_key, z0, at)
        groups["predictions_constant_data"] = {"times": np.asarray(at)}
        if np.ndim(np.asarray(times)) == 1:
            shared["time"] = np.asarray(at[0])
    tree = arviz_base.from_dict(
        groups,
        coords={"feature": features, "trajectory": ids},
        dims={
            "z0": ["trajectory", "latent"],
            "x": ["observation"],
            "x_mean": ["observation"],
            **{
                k: ["feature"]
                for k, v in groups["constant_data"].items()
                if v.shape == (len(features),)
            },
        },
        pred_coords={"feature": features, "trajectory": ids, **shared},
        pred_dims={"x": per_time, "x_mean": per_time, "times": per_time[:2]},
    )
    of, _, j = np.nonzero(mask)
    where = {
        "trajectory": np.asarray(ids)[of],
        "time": np.broadcast_to(np.asarray(trajectories.times)[..., None], mask.shape)[mask],
        "feature": np.asarray(features)[j],
    }
    for group in PER_OBSERVATION:
        coords = {name: ("observation", values) for name, values in where.items()}
        tree[group] = xarray.DataTree(tree[group].to_dataset().assign_coords(coords))
    if exact is not None and "sample_stats" in exact.children:
        stats = exact["sample_stats"].to_dataset().assign_coords(trajectory=ids)
        tree["sample_stats"] = xarray.DataTree(stats)
    return tree


def _chains(draws: Array, num_chains: int) -> np.ndarray:
    return np.asarray(draws).reshape(num_chains, -1, *draws.shape[1:])


def _names(name: str, given: Sequence[Any] | None, default: Sequence[Any], of: str) -> list[Any]:
    names = list(default if given is None else given)
    if len(names) != len(default) or len(set(names)) != len(names):
        raise ValueError(f"{name} must name {len(default)} {of}, each its own; got {names}.")
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
        ValueError: if num_points is not positive, or there is one trajectory only.
    """
    check_counts(num_points=num_points)
    if len(trajectories) < 2:
        raise ValueError(f"trajectories must be at least 2; got {len(trajectories)}.")
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
    several = np.asarray(q.sample(mean_key, (30,)), np.float64)
    # Of the variance of means over trajectories, what is left of the draws within each.
    noise = several.var(0, ddof=1).mean(0) / len(several)
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
        activity=several.mean(0).var(0, ddof=1) - noise,
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

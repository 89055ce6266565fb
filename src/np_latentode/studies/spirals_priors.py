"""Fits of spirals under other priors, and how well prior and codes agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array
from numpyro.infer import Trace_ELBO

from np_latentode.forecasts.codes import posterior
from np_latentode.forecasts.prediction import prior_predictive
from np_latentode.parts.encoders import ODERNN
from np_latentode.parts.posteriors import FullRankNormal
from np_latentode.parts.priors import (
    CirclePrior,
    FlowPrior,
    MixturePrior,
    ProductPrior,
    RingPrior,
    StandardNormal,
)
from np_latentode.programs.assemble import latent_ode
from np_latentode.programs.fitted import Fitted
from np_latentode.studies.datasets import SpiralFamily, Spirals
from np_latentode.studies.spirals_scores import forecasts, score_draws
from np_latentode.training.aggregate import fit_prior
from np_latentode.training.fit import fit
from np_latentode.training.polish import polish
from np_latentode.training.steps import STEPS_AT_ONCE

__all__ = ["Trained", "make_prior", "on_codes", "score_prior", "train"]

POLISH_SHARE = 5
"""The steps of training, over those of each of the two parts of polishing."""

SHARE_WITHIN = 0.01
"""The largest mean squared error of a curve that counts as a spiral."""

FLAT: dict[str, Callable[[int, nnx.Rngs], nnx.Module]] = {
    "normal": lambda dim, rngs: StandardNormal(dim),
    "mixture": lambda dim, rngs: MixturePrior(dim, rngs=rngs),
    "flow": lambda dim, rngs: FlowPrior(dim, rngs=rngs),
}
# A spiral has two directions, so two components are enough beside its phase.
BESIDE = FLAT | {"mixture": lambda dim, rngs: MixturePrior(dim, num_components=2, rngs=rngs)}
ROUND: dict[str, Callable[[], nnx.Module]] = {"circle": CirclePrior, "ring": RingPrior}


def make_prior(name: str, latent_dim: int, *, rngs: nnx.Rngs) -> dict[str, Any]:
    """The prior of a name such as `mixture`, `circle+flow` or `flow/ring+mixture`.

    `circle` and `ring` are priors of the first two coordinates of z0. The name after `+` is the
    prior of the other coordinates, by default `normal`. `flow/` puts a flow over the prior that is
    named after it; that prior must not have a circle.

    Returns:
        Keyword arguments of `latent_ode`: `prior`, and `posterior` if the default does not fit.

    Raises:
        ValueError: if the name is not known, or latent_dim too small for it.
    """
    over, _, inner = name.rpartition("/")
    first, _, rest = inner.partition("+")
    known = (first in FLAT and not rest) or (first in ROUND and (rest or "normal") in BESIDE)
    if not known or over not in ("", "flow"):
        raise ValueError(
            f"prior must be one of {', '.join((*FLAT, *ROUND))}, or circle or ring with a prior of "
            f"the other coordinates, as in ring+mixture, or a flow over one of these, as in "
            f"flow/ring+mixture; got {name!r}."
        )
    if first in ROUND and latent_dim < 3:
        raise ValueError(f"latent_dim must be at least 3 with the prior {name}; got {latent_dim}.")
    if first in FLAT:
        prior = FLAT[first](latent_dim, rngs)
    else:
        prior = ProductPrior(ROUND[first](), BESIDE[rest or "normal"](latent_dim - 2, rngs))
    if over:
        prior = FlowPrior(latent_dim, base=prior, rngs=rngs)
    if first != "ring":
        return {"prior": prior}
    # It is narrow along the ring and wide across it, so the coordinates of z0 are correlated.
    feature_dim = ODERNN(2, rngs=nnx.Rngs(0)).hidden_dim
    return {"prior": prior, "posterior": FullRankNormal(feature_dim, latent_dim, rngs=rngs)}


class Trained(NamedTuple):
    """A polished fit, and how long training took."""

    fitted: Fitted
    ms_per_step: float
    first_done: float
    """When the first dispatch of steps was done, by `time.perf_counter`."""


def train(
    prior: str,
    spirals: Spirals,
    *,
    steps: int,
    seed: int,
    latent_dim: int,
    batch_size: int,
    progress: bool = True,
) -> Trained:
    """Trains under the prior of a name; the other arguments are those of `spirals.run`."""
    # The prior has a seed of its own, so that the networks start alike under every prior.
    parts = make_prior(prior, latent_dim, rngs=nnx.Rngs(seed + 1_000))
    model, guide = latent_ode(spirals, latent_dim=latent_dim, rngs=nnx.Rngs(seed), **parts)
    train_key, _ = jax.random.split(jax.random.key(seed))
    began = time.perf_counter()
    fitted = fit(
        train_key,
        model,
        guide,
        spirals,
        num_steps=steps,
        batch_size=batch_size,
        progress=progress,
    )
    first, last = fitted.history.seconds[[0, -1]]
    ms_per_step = 1e3 * (last - first) / max(1, steps - STEPS_AT_ONCE)
    fitted = polish(
        jax.random.fold_in(train_key, 1),
        fitted,
        spirals,
        num_steps=max(1, steps // POLISH_SHARE),
        batch_size=batch_size,
        progress=progress,
    )
    return Trained(fitted, ms_per_step, began + first)


def on_codes(
    rng_key: Array, name: str, trained: Trained, spirals: Spirals, *, seed: int, progress: bool
) -> Trained:
    """The same networks under another prior, which is fitted to their codes."""
    prior = make_prior(name, trained.fitted.model.latent_dim, rngs=nnx.Rngs(seed))["prior"]
    fitted = fit_prior(rng_key, prior, trained.fitted, spirals, progress=progress)
    return trained._replace(fitted=fitted)


def score_prior(
    rng_key: Array,
    fitted: Fitted,
    family: SpiralFamily,
    *,
    codes: Spirals,
    fresh: Spirals,
    num_draws: int = 4_000,
) -> dict[str, float]:
    """Scores of how well prior and codes agree, and of forecasts.

    Args:
        rng_key: a key.
        fitted: the fit.
        family: the family of the spirals.
        codes: many spirals, for the KL and its split (see `gaussianization`).
        fresh: other spirals than those trained on, for the ELBO and for forecasts.
        num_draws: from the prior.

    Returns:
        `elbo`, per trajectory.
        `kl`, `mutual_information`, `kl_marginal`, `kl_marginal_se`: see `gaussianization`.
        `prior_predictive_share`: the share of draws that are spirals, within a mean squared error
        of 0.01 of the nearest one.
        `prior_phase_ks`: the Kolmogorov-Smirnov distance between the phases of these nearest
        spirals and the uniform distribution.
        `code_phase_ks`: the same distance for the angles of the codes, if the prior has a circle or
        a ring and no flow over it.
        `reconstruction_mse`, `extrapolation_mse`.
    """
    # Imported here and below, as importing ArviZ and SciPy's statistics takes seconds.
    from np_latentode.report.gaussianization import gaussianization

    model, guide, params = fitted.model, fitted.guide, fitted.params
    prior_key, forecast_key = jax.random.split(rng_key)
    elbo_key, split_key, draw_key, code_key = jax.random.split(prior_key, 4)
    loss = jax.jit(Trace_ELBO(num_particles=10).loss, static_argnums=(2, 3))
    report = gaussianization(split_key, fitted, codes)
    draws = prior_predictive(draw_key, fitted, family.dense_times, num_samples=num_draws)
    phase, _, mse = family.nearest(draws["x_mean"], family.dense_times)
    errors = score_draws(*forecasts(forecast_key, fitted, fresh, num_samples=100), fresh)
    scores = {
        "elbo": -float(loss(elbo_key, params, model, guide, fresh)) / len(fresh),
        "kl": report.kl,
        "mutual_information": report.mutual_information,
        "kl_marginal": report.kl_marginal,
        "kl_marginal_se": report.standard_error,
        "prior_predictive_share": float(jnp.mean(mse <= SHARE_WITHIN)),
        "prior_phase_ks": _from_uniform(phase),
        "reconstruction_mse": errors["reconstruction_mse"],
        "extrapolation_mse": errors["extrapolation_mse"],
    }
    if isinstance(model.prior, ProductPrior):
        z0 = jnp.asarray(posterior(fitted, codes).sample(code_key))
        scores["code_phase_ks"] = _from_uniform(jnp.arctan2(z0[:, 1], z0[:, 0]))
    return scores


def _from_uniform(angle: Array) -> float:
    from scipy import stats

    turns = np.asarray(angle, float) / (2 * np.pi) % 1
    return float(stats.kstest(turns, "uniform").statistic)

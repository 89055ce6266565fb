"""Variance: how much of it the path of the ODE explains, and how much residual and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior
from np_latentode.forecasts.prediction import decode_observed
from np_latentode.parts.likelihoods import GaussianLikelihood, Likelihood
from np_latentode.parts.residuals import OrnsteinUhlenbeckLikelihood
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_context

__all__ = ["VarianceShares", "variance_shares"]

NUM_SAMPLES = 20
"""Draws of z0 per trajectory. Their error is far below that of the number of trajectories."""


@dataclass(frozen=True)
class VarianceShares:
    """The shares of path, residual and noise in the variance of each feature; they sum to 1.

    `half_life` is the time after which half of a residual is gone, timescale log 2, in original
    units of time. It is NaN for a feature without residual.
    """

    path: Float[np.ndarray, " feature"]
    residual: Float[np.ndarray, " feature"]
    noise: Float[np.ndarray, " feature"]
    half_life: Float[np.ndarray, " feature"]


def variance_shares(
    rng_key: Array,
    fitted: Fitted,
    trajectories: Trajectories,
    *,
    num_samples: int = NUM_SAMPLES,
) -> VarianceShares:
    """Splits the variance of each feature into path, residual and noise.

    Var[decoder(z(t))] + residual_scale^2 + noise_scale^2,   z0 ~ q(z0 | trajectory)

    The first variance is over draws of z0 and over the observed entries of all trajectories, each
    with the same weight. All three are of values as they are modelled: of logarithms, where the
    table was read so.

    Args:
        rng_key: a key.
        fitted: the fit.
        trajectories: those of which the variance is split, such as the training data.
        num_samples: the number of draws of z0 per trajectory.

    Raises:
        ValueError: if a feature is never observed, or if its likelihood is neither the
            `GaussianLikelihood` nor the `OrnsteinUhlenbeckLikelihood`: other ones have no
            noise_scale that is the standard deviation of the noise.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    noise, residual, timescale = _scales(fitted)
    trajectories = check_context(trajectories, fitted.model.scaling, name="trajectories")
    seen = np.asarray(trajectories.mask)[np.asarray(trajectories.observed)]
    if not seen.any(0).all():
        names, never = trajectories.names.features, np.flatnonzero(~seen.any(0))
        raise ValueError(
            "trajectories must hold at least one observation of every feature; got none of "
            f"{', '.join(names[j] for j in never)}."
        )
    z0_key, x_key = jax.random.split(rng_key)
    z0 = jax.numpy.asarray(posterior(fitted, trajectories).sample(z0_key, (num_samples,)))
    # Nothing is given as seen, so that the mean is the path alone.
    path = decode_observed(x_key, fitted, z0, trajectories)["x_mean"]
    parts = np.stack([path.var((0, 1), float, where=seen), residual**2, noise**2])
    half_life = np.where(residual > 0, timescale * np.log(2), np.nan)
    return VarianceShares(*parts / parts.sum(0), half_life=half_life)


def _scales(fitted: Fitted) -> Float[np.ndarray, "scale feature"]:
    """The noise's scale, the residual's scale and its timescale, of each feature."""
    likelihood, num_features = fitted.model.likelihood, len(fitted.model.scaling.loc)
    each = getattr(likelihood, "likelihoods", None)
    if each is None:
        rows = _scales_of(likelihood, fitted.params)
        return np.stack([np.broadcast_to(row, num_features) for row in rows])
    columns = [_scales_of(one, fitted.params, f"x_{j}.") for j, one in enumerate(each)]
    return np.array([np.hstack(column) for column in columns]).T


def _scales_of(likelihood: Likelihood, params: dict[str, Any], prefix: str = "") -> list[Any]:
    """The same of one likelihood, whose numbers are fixed or NumPyro parameters."""
    if isinstance(likelihood, GaussianLikelihood):
        fixed, rest = {"noise_scale": likelihood.noise_scale}, [0.0, np.nan]
    elif isinstance(likelihood, OrnsteinUhlenbeckLikelihood):
        fixed, rest = {"noise_scale": likelihood.noise_scale}, []
        fixed |= {"residual_scale": likelihood.residual_scale}
        fixed |= {"residual_timescale": likelihood.timescale}
    else:
        raise ValueError(
            "fitted must have a noise_scale that is the standard deviation of its noise, as "
            "GaussianLikelihood and OrnsteinUhlenbeckLikelihood have; got "
            f"{getattr(likelihood, '__name__', type(likelihood).__name__)}."
        )
    found = [params[prefix + name] if own is None else own for name, own in fixed.items()]
    return [np.asarray(number, float) for number in [*found, *rest]]

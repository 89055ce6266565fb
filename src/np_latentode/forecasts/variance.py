"""Variance: how much of it the path of the ODE explains, and how much residual and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior
from np_latentode.forecasts.prediction import decode_observed
from np_latentode.parts.likelihoods import GaussianLikelihood, OfFeature, of_features
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
    features: Sequence[str] | None = None,
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
        features: the names of those of which the variance is split. Default: all.
        num_samples: the number of draws of z0 per trajectory.

    Raises:
        ValueError: if a name is no feature, if a feature is never observed, or if its likelihood is
            neither the `GaussianLikelihood` nor the `OrnsteinUhlenbeckLikelihood`: other ones have
            no noise_scale that is the standard deviation of the noise.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    trajectories = check_context(trajectories, fitted.model.scaling, name="trajectories")
    names = trajectories.names.features
    some = _places(names, names if features is None else features)
    noise, residual, timescale = _scales(fitted, some)
    seen = np.asarray(trajectories.mask)[np.asarray(trajectories.observed)]
    if never := [names[j] for j in some if not seen[:, j].any()]:
        raise ValueError(
            "trajectories must hold at least one observation of every feature; got none of "
            f"{', '.join(never)}."
        )
    z0_key, x_key = jax.random.split(rng_key)
    z0 = jax.numpy.asarray(posterior(fitted, trajectories).sample(z0_key, (num_samples,)))
    # Nothing is given as seen, so that the mean is the path alone.
    path = decode_observed(x_key, fitted, z0, trajectories)["x_mean"]
    seen = seen | ~np.isin(np.arange(len(names)), some)
    varies = path.var((0, 1), float, where=seen)[some]
    parts = np.stack([varies, residual**2, noise**2])
    half_life = np.where(residual > 0, timescale * np.log(2), np.nan)
    return VarianceShares(*parts / parts.sum(0), half_life=half_life)


def _places(names: Sequence[str], features: Sequence[str]) -> list[int]:
    if strange := [name for name in features if name not in names]:
        raise ValueError(f"features must be among {[*names]}; got {strange}.")
    return [names.index(name) for name in features]


def _scales(fitted: Fitted, features: Sequence[int]) -> Float[np.ndarray, "scale feature"]:
    """The noise's scale, the residual's scale and its timescale, of some features."""
    parts = of_features(fitted.model.likelihood, len(fitted.model.scaling.loc))
    columns = [_scales_of(parts[j], fitted.params) for j in features]
    return np.array(columns, float).T.reshape(3, -1)


def _scales_of(part: OfFeature, params: dict[str, Any]) -> list[float]:
    """The same of one feature; the numbers of its likelihood are fixed or NumPyro parameters."""
    likelihood = part.likelihood
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
    found = [params[part.prefix + name] if own is None else own for name, own in fixed.items()]
    # One number may be for all features.
    each = [np.ravel(np.asarray(numbers, float)) for numbers in found]
    return [*(numbers[part.place if len(numbers) > 1 else 0] for numbers in each), *rest]

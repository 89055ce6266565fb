"""Scores of forecasts over all observations of a target, of the network and of baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scoringrules
from jaxtyping import Bool, Float
from scipy.special import ndtr

from np_latentode.data.kinds import BERNOULLI, NUMBERS
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts import baselines
from np_latentode.forecasts.calibration import Calibration

__all__ = [
    "BAND",
    "Forecasts",
    "of_calibration",
    "of_levels",
    "of_mixed_models",
    "score",
    "score_features",
    "with_bands",
    "within_band",
]

BAND = 0.9
"""The central band whose coverage is reported."""


class Forecasts(NamedTuple):
    """Forecasts of a target, shape (trajectory, time, feature), as its values are modelled."""

    mean: Float[np.ndarray, "trajectory time feature"]
    crps: Float[np.ndarray, "trajectory time feature"] | None = None
    """Of each forecast distribution. Default: that of a forecast without uncertainty, which is its
    absolute error."""
    inside: Bool[np.ndarray, "trajectory time feature"] | None = None
    """True where the observation lies within the central 90%. Default: the forecasts are no
    distributions, and coverage is not reported."""
    log_score: Float[np.ndarray, "trajectory time feature"] | None = None
    """-log of the density or probability of each observation. Default: the forecasts have none."""

    def select(self, rows: np.ndarray) -> Forecasts:
        """Those of the trajectories that an index array selects."""
        return self._make(None if array is None else array[rows] for array in self)


def score(
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
    forecasts: Forecasts,
    kinds: Sequence[str] | None = None,
) -> dict[str, float]:
    """RMSE, CRPS and coverage over all observations of a target, in the features' units.

    Limits, such as <0.5, have no error: RMSE and CRPS leave them out, and are NaN if nothing is
    left.

    Args:
        target: the observations.
        unit: the unit of each feature, such as its standard deviation in the training data.
        forecasts: of the target.
        kinds: of the features, of which zeros and ones have no coverage: a band of them means
            nothing. Default: all are numbers.
    """
    seen, inside = np.asarray(target.mask), forecasts.inside
    exact = seen & ~target.limited
    error = forecasts.mean - target.given.values
    crps = np.abs(error) if forecasts.crps is None else forecasts.crps
    scores = {
        "rmse": float(np.sqrt(_mean((error / unit)[exact] ** 2))),
        "crps": float(_mean((crps / unit)[exact])),
    }
    banded = seen if kinds is None else seen & with_bands(kinds)
    if inside is None or not banded.any():
        return scores
    return scores | {"coverage_90": float(inside[banded].mean())}


def _mean(numbers: np.ndarray) -> float:
    return float(numbers.mean()) if numbers.size else np.nan


def score_features(
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
    forecasts: Forecasts,
    kinds: Sequence[str] | None = None,
) -> dict[str, dict[str, float]]:
    """The scores of each feature that was observed, by its name, with those that fit its kind.

    Zeros and ones have a Brier score, the mean of (p - x)^2, with p the mean of the forecast, which
    is clipped to [0, 1]. They and counts have a log score, the mean of -log p(x), if the forecasts
    have one.
    """
    kinds = [NUMBERS] * len(unit) if kinds is None else kinds
    scores, mask = {}, np.asarray(target.mask)
    for j, name in enumerate(target.names.features):
        alone = mask & (np.arange(mask.shape[-1]) == j)
        if alone.any():
            scores[name] = score(target.keep(alone), unit, forecasts, kinds)
            if kinds[j] == BERNOULLI:
                error = np.clip(forecasts.mean, 0, 1) - target.given.values
                scores[name]["brier"] = float(np.mean(error[alone] ** 2))
            if kinds[j] != NUMBERS and forecasts.log_score is not None:
                scores[name]["log_score"] = float(np.mean(forecasts.log_score[alone]))
    return scores


def of_calibration(target: Trajectories, found: Calibration) -> Forecasts:
    """The forecasts that `calibration` has compared with the target."""
    mean, inside = target.given.values + found.error, within_band(found.pit)
    return Forecasts(mean, found.crps, inside, found.log_score)


def of_levels(
    train: Trajectories, context: Trajectories, target: Trajectories
) -> dict[str, Forecasts]:
    """Two baselines that are constant in time: training mean and last value."""
    after = target.given.times.max(keepdims=True).ravel()
    levels = {"constant": baselines.constant, "last value": baselines.last_value}
    return {
        name: Forecasts(np.broadcast_to(predict(train, context, after), target.values.shape))
        for name, predict in levels.items()
    }


def of_mixed_models(
    train: Trajectories, context: Trajectories, target: Trajectories
) -> dict[str, Forecasts]:
    """A linear and a quadratic mixed model; see `mixed_model`.

    Raises:
        ImportError: if statsmodels is not installed.
    """
    times, x, *_ = target.given
    found = {}
    for name, degree in (("mixed model", 1), ("mixed model, quadratic", 2)):
        mean, sd = baselines.mixed_model(train, context, times, degree=degree)
        crps = np.asarray(scoringrules.crps_normal(x, mean, sd))
        found[name] = Forecasts(mean, crps, within_band(_normal_pit(target, mean, sd)))
    return found


def _normal_pit(
    target: Trajectories,
    mean: Float[np.ndarray, "trajectory time feature"],
    sd: Float[np.ndarray, "trajectory time feature"],
) -> Float[np.ndarray, "trajectory time feature"]:
    """The PIT of normal forecasts; of limits, a random number between those of its ends."""
    pit, limits = ndtr((target.given.values - mean) / sd), target.limits
    if limits is None:
        return pit
    ends = [np.asarray(end) + target.offset.row for end in (limits.lower, limits.upper)]
    low, high = (ndtr((end - mean) / sd) for end in ends)
    between = low + np.random.default_rng(0).uniform(size=low.shape) * (high - low)
    return np.where(target.limited, between, pit)


def with_bands(kinds: Sequence[str]) -> Bool[np.ndarray, " feature"]:
    """Where a band of a feature means something: for all but zeros and ones."""
    return np.array([kind != BERNOULLI for kind in kinds])


def within_band(pit: Float[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Where the probability integral transform (PIT) lies within the central band."""
    return np.abs(pit - 0.5) <= BAND / 2

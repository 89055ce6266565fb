"""Scores of forecasts over all observations of a target."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts import baselines
from np_latentode.forecasts.calibration import Calibration

__all__ = ["BAND", "score", "score_forecast", "score_levels", "within_band"]

BAND = 0.9
"""The central band whose coverage is reported."""


def score(
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
    mean: Float[np.ndarray, "trajectory time feature"],
    crps: Float[np.ndarray, "trajectory time feature"] | None = None,
    inside: Bool[np.ndarray, "trajectory time feature"] | None = None,
) -> dict[str, float]:
    """RMSE, CRPS and coverage over all observations of a target, in the features' units.

    Args:
        target: the observations.
        unit: the unit of each feature, such as its standard deviation in the training data.
        mean: the forecast means.
        crps: the CRPS of each forecast distribution. Default: that of the mean as a forecast
            without uncertainty, which is its absolute error.
        inside: True where the observation lies within the central 90% of its forecast. Default:
            coverage is not reported.
    """
    seen = np.asarray(target.mask)
    error = mean - np.asarray(target.values)
    crps = np.abs(error) if crps is None else crps
    scores = {
        "rmse": float(np.sqrt(np.mean((error / unit)[seen] ** 2))),
        "crps": float(np.mean((crps / unit)[seen])),
    }
    return scores if inside is None else scores | {"coverage_90": float(inside[seen].mean())}


def score_forecast(
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
    draws: dict[str, np.ndarray],
    found: Calibration,
) -> dict[str, float]:
    """The scores of a forecast at the target's times.

    Args:
        target, unit: as in `score`.
        draws: as `forecast_observed` returns them; the RMSE is that of their mean curve.
        found: as `calibration` returns it; CRPS and coverage are taken from it.
    """
    mean = np.zeros(target.values.shape)
    mean[np.asarray(target.observed)] = draws["x_mean"].mean(0, dtype=float)
    return score(target, unit, mean, found.crps, within_band(found.pit))


def score_levels(
    train: Trajectories,
    context: Trajectories,
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
) -> dict[str, dict[str, float]]:
    """The scores of two baselines that are constant in time: training mean and last value."""
    after = np.asarray(target.times).max(keepdims=True).ravel()
    levels = {"constant": baselines.constant, "last value": baselines.last_value}
    return {
        name: score(
            target, unit, np.broadcast_to(predict(train, context, after), target.values.shape)
        )
        for name, predict in levels.items()
    }


def within_band(pit: Float[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Where the probability integral transform (PIT) lies within the central band."""
    return np.abs(pit - 0.5) <= BAND / 2

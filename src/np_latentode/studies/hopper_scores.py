"""Scores of forecasts of hoppers, of the model and of trivial baselines."""

from __future__ import annotations

import jax
import numpy as np
import scoringrules
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts import baselines
from np_latentode.forecasts.prediction import forecast
from np_latentode.forecasts.scores import within_band
from np_latentode.programs.fitted import Fitted

__all__ = ["score", "score_others"]

NUM_SAMPLES, NUM_DRAWS = 3, 59
"""Draws of z0 in the paper's score, and for means and bands, which hold 54 of 60 ranks."""

TRAJECTORIES_AT_ONCE = 250
"""Fewer than all, as draws of all trajectories would take gigabytes."""

BASELINES = {
    "constant": baselines.constant,
    "last value": baselines.last_value,
    "linear interpolation": baselines.linear,
    "pchip interpolation": baselines.pchip,
}


def score(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    test: Trajectories,
    scored_from: int,
) -> dict[str, float]:
    """The paper's error, the error of the mean, CRPS and coverage.

    The paper's error is the mean squared error of single draws, averaged over three of them.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the seen states of `test`.
        test: the truth.
        scored_from: the first state that is scored.
    """
    parts = []
    for first in range(0, len(test), TRAJECTORIES_AT_ONCE):
        some = slice(first, first + TRAJECTORIES_AT_ONCE)
        truth = test.given.values[some, scored_from:]
        key = jax.random.fold_in(rng_key, first)
        times = test.given.times[some, scored_from:]
        draws = forecast(key, fitted, context[some], times, num_samples=NUM_DRAWS)
        x_mean, x = np.asarray(draws["x_mean"]), np.asarray(draws["x"])
        # If the forecast is right, each of the n + 1 ranks among n draws has the same probability.
        rank = ((x < truth).sum(0) + 0.5) / (NUM_DRAWS + 1)
        found = {
            "mse": (x_mean[:NUM_SAMPLES] - truth) ** 2,
            "mse_of_mean": (x_mean.mean(0) - truth) ** 2,
            "coverage_90": within_band(rank),
            "crps": scoringrules.crps_ensemble(truth, x, m_axis=0),
        }
        parts.append({name: np.mean(values) * len(truth) for name, values in found.items()})
    return {name: float(sum(part[name] for part in parts)) / len(test) for name in parts[0]}


def score_others(
    train: Trajectories, context: Trajectories, test: Trajectories, scored_from: int
) -> dict[str, float]:
    """The errors of trivial baselines, which see the same states as the model."""
    times, truth = test.given.times[0, scored_from:], test.given.values[:, scored_from:]
    return {
        name: float(np.mean((predict(train, context, times) - truth) ** 2))
        for name, predict in BASELINES.items()
    }

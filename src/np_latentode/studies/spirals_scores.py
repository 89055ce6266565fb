"""Scores of forecasts of spirals, of the exact posterior and of trivial baselines."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts import baselines
from np_latentode.forecasts.codes import Inference, amortized
from np_latentode.forecasts.prediction import forecast
from np_latentode.programs.fitted import Fitted
from np_latentode.studies.datasets import SpiralFamily, Spirals

__all__ = ["CUT", "forecasts", "score", "score_draws", "score_others"]

CUT = 2.5
"""Where extrapolation starts: later observations are hidden and predicted."""

SEED_NOTEBOOK = {"reconstruction_mse": 0.126, "extrapolation_mse": 2.21}


def score(
    predicted: np.ndarray, draws: np.ndarray | None, spirals: Spirals, *, after: float | None
) -> dict[str, float]:
    """The error of a mean curve and, if draws are given, the coverage of their central 90% band.

    The error compares with the noiseless curve. The coverage counts noisy observations.

    Args:
        predicted: shape (trajectory, dense, 2), at the dense times.
        draws: shape (draw, trajectory, dense, 2), of noisy observations at the dense times.
        spirals: the truth.
        after: only later times are scored. None: all times are scored.
    """
    times = np.asarray(spirals.dense_times)
    late = times > (-np.inf if after is None else after)
    scores = {"mse": float(np.mean((predicted - np.asarray(spirals.curves))[:, late] ** 2))}
    if draws is not None:
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        # Observed times lie on the dense grid.
        slot = np.searchsorted(times, np.asarray(spirals.times) - 1e-4)
        rows = np.arange(len(spirals))[:, None]
        values = np.asarray(spirals.values)
        inside = (low[rows, slot] <= values) & (values <= high[rows, slot])
        scores["coverage_90"] = float(inside[late[slot]].mean())
    return scores


def forecasts(
    rng_key: Array,
    fitted: Fitted,
    spirals: Spirals,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draws at the dense times, given all observations and given the early ones."""
    contexts: list[Trajectories] = [spirals, spirals.before(CUT)]
    times = spirals.dense_times
    whole, half = (
        forecast(key, fitted, context, times, inference=inference, num_samples=num_samples)
        for key, context in zip(jax.random.split(rng_key), contexts, strict=True)
    )
    return whole, half


def score_draws(whole: dict[str, Any], half: dict[str, Any], spirals: Spirals) -> dict[str, float]:
    """The scores of what `forecasts` returns; the coverage is that of the extrapolation."""
    scores = {}
    for task, draws, after in (("reconstruction", whole, None), ("extrapolation", half, CUT)):
        mean, noisy = np.asarray(draws["x_mean"]).mean(0), np.asarray(draws["x"])
        scores |= {f"{task}_{k}": v for k, v in score(mean, noisy, spirals, after=after).items()}
    scores["coverage_90"] = scores.pop("extrapolation_coverage_90")
    return scores


def score_others(
    rng_key: Array, family: SpiralFamily, train: Spirals, test: Spirals
) -> dict[str, dict[str, float]]:
    """The scores of the exact posterior and of trivial baselines."""
    times = test.dense_times
    whole, half = (
        {"x_mean": oracle.mean(times)[None], "x": oracle.sample(rng_key, times, 200)}
        for oracle in (family.posterior(test), family.posterior(test.before(CUT)))
    )
    scores = {"exact Bayes oracle": score_draws(whole, half, test)}
    for name, predict in (
        ("constant", baselines.constant),
        ("last value", baselines.last_value),
        ("linear interpolation", baselines.linear),
    ):
        scores[name] = {}
        for task, context, after in (
            ("reconstruction", test, None),
            ("extrapolation", test.before(CUT), CUT),
        ):
            predicted = predict(train, context, np.asarray(times))
            scores[name][f"{task}_mse"] = score(predicted, None, test, after=after)["mse"]
    scores["seed notebook, as published"] = SEED_NOTEBOOK
    return scores

"""Predictions without learning, which any model has to beat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from np_latentode.trajectories import Trajectories

__all__ = ["constant", "last_value", "linear"]

Prediction = Float[np.ndarray, "trajectory query feature"]


def constant(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Each feature's mean over `train`, at every time."""
    mean = np.mean(np.asarray(train.values), axis=(0, 1), where=np.asarray(train.mask))
    return np.broadcast_to(mean, (len(context), len(times), len(mean)))


def last_value(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Each feature's latest value observed up to that time; before the first, the first."""

    def step(at: np.ndarray, when: np.ndarray, what: np.ndarray) -> np.ndarray:
        return what[np.maximum(np.searchsorted(when, at, side="right") - 1, 0)]

    return _by_series(step, train, context, times)


def linear(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Each feature's observed values joined by lines, level beyond the first and the last."""
    return _by_series(np.interp, train, context, times)


def _by_series(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    train: Trajectories,
    context: Trajectories,
    times: np.ndarray,
) -> Prediction:
    # Where a feature was never observed, there is nothing better than the mean of `train`.
    predicted = np.array(constant(train, context, times))
    when, values, mask = (np.asarray(a) for a in (context.times, context.values, context.mask))
    for i, d in np.argwhere(mask.any(1)):
        seen = mask[i, :, d]
        predicted[i, :, d] = predict(np.asarray(times), when[i, seen], values[i, seen, d])
    return predicted

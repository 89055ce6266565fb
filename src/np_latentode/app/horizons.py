"""Horizons: how good forecasts are near the last known value, and far from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.scores import Forecasts, score

__all__ = ["all_finite", "finite", "gaps", "scored_by_thirds", "thirds"]


def gaps(context: Trajectories, target: Trajectories) -> Float[np.ndarray, " value"]:
    """The time from a trajectory's last known observation to each value of the target."""
    mask = np.asarray(target.mask)
    last = np.max(context.given.times, axis=1, where=np.asarray(context.observed), initial=-np.inf)
    return np.broadcast_to((target.given.times - last[:, None])[..., None], mask.shape)[mask]


def thirds(context: Trajectories, target: Trajectories) -> list[np.ndarray]:
    """The values of a target by thirds of the gap: those with the shortest gaps come first."""
    return np.array_split(np.argsort(gaps(context, target), kind="stable"), 3)


def scored_by_thirds(
    made: dict[str, Forecasts],
    context: Trajectories,
    target: Trajectories,
    unit: Float[np.ndarray, " feature"],
) -> dict[str, Any]:
    """The longest gap of each third, and RMSE and CRPS of each method in each third.

    None stands for a third without values, as of a target of two values.
    """
    every, mask = gaps(context, target), np.asarray(target.mask)
    longest: list[float | None] = []
    scores: dict[str, dict[str, list[float | None]]] = {
        name: {"rmse": [], "crps": []} for name in made
    }
    for third in thirds(context, target):
        longest.append(float(every[third].max()) if third.size else None)
        kept = np.zeros(every.shape, bool)
        kept[third] = True
        some = np.zeros(mask.shape, bool)
        some[mask] = kept
        part = target.keep(some)
        for name, forecasts in made.items():
            found = score(part, unit, forecasts) if third.size else {}
            for key, numbers in scores[name].items():
                numbers.append(finite(found.get(key, np.nan)))
    return {"longest_gap": longest, "methods": scores}


def finite(number: float) -> float | None:
    """The number, or None where JSON has no word for it."""
    return float(number) if np.isfinite(number) else None


def all_finite(scores: dict[str, float]) -> dict[str, float | None]:
    """Scores, of which those that are no number are None."""
    return {key: finite(number) for key, number in scores.items()}

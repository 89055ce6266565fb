"""Gains that may be chance: how much of a change is kept."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import stdtrit

__all__ = ["share_kept"]

SURE = 0.95
"""About the probability, if a change brings nothing, that not all of it is kept."""

MOST = 10.0
"""The most that an id gains or loses, in nats: none may decide alone, however bad its forecast."""


def share_kept(
    gain: Float[np.ndarray, " trajectory"], ids: Shaped[np.ndarray, " trajectory"]
) -> float:
    """How much of a change is kept, by what it gained.

    t = mean / (sd / sqrt(n));  1 if t > the 95% quantile of Student's t;  else max(0, 1 - 1 / t^2)

    All of it, if the gain is sure by a t-test over the ids at 5%, and nothing, if t < 1. Between
    them, the factor has the form of that of James & Stein (1961). All is kept, too, with one id,
    where there is no test, and if what could not be scored now can be.

    Args:
        gain: log p after the change less log p before it, of each trajectory; NaN says nothing.
        ids: of the trajectories. Windows of one id are one case.
    """
    known = ~np.isnan(gain)
    who = np.unique(ids[known], return_inverse=True)[1]
    each = np.clip(np.bincount(who, np.clip(gain[known], -1e6, 1e6)), -MOST, MOST)
    if len(each) < 2 or np.isposinf(gain).any():
        return 1.0
    if each.mean() <= 0:
        return 0.0
    error = each.std(ddof=1) / np.sqrt(len(each))
    if each.mean() > stdtrit(len(each) - 1, SURE) * error:
        return 1.0
    return float(max(0.0, 1 - (error / each.mean()) ** 2))

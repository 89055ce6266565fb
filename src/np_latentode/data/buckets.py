"""Buckets: trajectories grouped by length, so that a long one does not pad the short ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from np_latentode.data.trajectories import Trajectories

__all__ = ["Bucket", "buckets", "trimmed"]


class Bucket(NamedTuple):
    """Trajectories of similar length."""

    rows: Int[np.ndarray, " trajectory"]
    """Where they are among all trajectories."""
    trajectories: Trajectories
    """They, up to the last slot in which one of them was observed."""


def buckets(trajectories: Trajectories) -> list[Bucket]:
    """Groups trajectories by length, so that at most half of the slots of a bucket are padding.

    The length of a trajectory is the number of slots up to its last observation. If at most half of
    all slots are padding, there is one bucket, with the trajectories as they are. Otherwise, each
    bucket takes the shortest trajectories that are left, as many as the rule allows. There are at
    most as many buckets as there are doublings from the shortest to the longest, plus one.

    Args:
        trajectories: with known observations, so not inside of JAX's transformations.
    """
    observed = np.asarray(trajectories.observed)
    slots = np.arange(1, observed.shape[1] + 1)
    # An empty trajectory still takes a slot.
    lengths = np.max(np.where(observed, slots, 1), axis=1)
    if lengths.size * slots[-1] <= 2 * lengths.sum():
        return [Bucket(np.arange(lengths.size), trajectories)]
    order, found = np.argsort(lengths, kind="stable"), []
    while order.size:
        longest = lengths[order]
        allowed = np.arange(1, order.size + 1) * longest <= 2 * np.cumsum(longest)
        count = 1 + int(np.flatnonzero(allowed)[-1])
        rows = np.sort(order[:count])
        found.append(Bucket(rows, _first_slots(trajectories[rows], int(longest[count - 1]))))
        order = order[count:]
    return found


def trimmed(trajectories: Trajectories) -> Trajectories:
    """The trajectories without most of the slots after the last observation of any.

    The number of slots is a multiple of 8, or that of all, as JAX compiles another program for each
    number.

    Args:
        trajectories: with known observations, so not inside of JAX's transformations.
    """
    observed = np.asarray(trajectories.observed)
    seen = np.flatnonzero(observed.any(0))
    count = 1 + int(seen[-1]) if seen.size else 1
    return _first_slots(trajectories, min(-(-count // 8) * 8, observed.shape[1]))


def _first_slots(trajectories: Trajectories, count: int) -> Trajectories:
    return trajectories.at_slots(np.tile(np.arange(count), (len(trajectories), 1)))

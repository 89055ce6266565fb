"""Buckets: trajectories grouped by length, so that a long one does not pad the short ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from np_latentode.data.trajectories import Trajectories

__all__ = ["Bucket", "batches", "bucket_rows", "buckets", "trimmed"]

SIZES = (16, 32, 64, 128)
"""The numbers of trajectories in a batch; larger ones would be no faster."""


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
    some = bucket_rows(lengths, int(slots[-1]))
    if some[0][1] == slots[-1]:
        return [Bucket(some[0][0], trajectories)]
    return [Bucket(rows, _first_slots(trajectories[rows], count)) for rows, count in some]


def bucket_rows(
    lengths: Int[np.ndarray, " trajectory"], slots: int | None = None
) -> list[tuple[Int[np.ndarray, " _"], int]]:
    """Which trajectories are of similar lengths, and how many slots they need.

    Args:
        lengths: the number of slots of each, at least 1.
        slots: the number that all have together. Default: the longest.
    """
    slots = int(lengths.max()) if slots is None else slots
    if lengths.size * slots <= 2 * lengths.sum():
        return [(np.arange(lengths.size), slots)]
    order, found = np.argsort(lengths, kind="stable"), []
    while order.size:
        longest = lengths[order]
        allowed = np.arange(1, order.size + 1) * longest <= 2 * np.cumsum(longest)
        count = 1 + int(np.flatnonzero(allowed)[-1])
        rows = np.sort(order[:count])
        found.append((rows, int(longest[count - 1])))
        order = order[count:]
    return found


def batches(trajectories: Trajectories) -> list[Bucket]:
    """Cuts buckets into batches of few different shapes, as JAX compiles a program for each.

    A batch has 16, 32, 64 or 128 trajectories; some come twice among the last. Its number of slots
    is 8, 16, 32 and so on, or that of all. A single bucket of at most 128 stays as it is.

    Args:
        trajectories: with known observations, so not inside of JAX's transformations.
    """
    some = buckets(trajectories)
    if len(some) == 1 and len(trajectories) <= SIZES[-1]:
        return some
    found = []
    for rows, _ in some:
        size = next((n for n in SIZES if len(rows) <= n), SIZES[-1])
        for first in range(0, len(rows), size):
            batch = np.resize(rows[first : first + size], size)
            found.append(Bucket(batch, trimmed(trajectories[batch])))
    return found


def trimmed(trajectories: Trajectories) -> Trajectories:
    """The trajectories without most of the slots after the last observation of any.

    The number of slots is 8, 16, 32 and so on, or that of all, as JAX compiles another program for
    each number.

    Args:
        trajectories: with known observations, so not inside of JAX's transformations.
    """
    observed = np.asarray(trajectories.observed)
    seen = np.flatnonzero(observed.any(0))
    count = 1 + int(seen[-1]) if seen.size else 1
    eights = 1 << ((count - 1) // 8).bit_length()
    return _first_slots(trajectories, min(8 * eights, observed.shape[1]))


def _first_slots(trajectories: Trajectories, count: int) -> Trajectories:
    return trajectories.at_slots(np.tile(np.arange(count), (len(trajectories), 1)))

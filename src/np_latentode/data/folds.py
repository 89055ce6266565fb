"""Folds: random parts of the same size, each of which is left out in turn."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

__all__ = ["folds", "random_rows"]

SHARE = 7
"""One in so many is left out, if it is done only once."""


def random_rows(count: int, most: int) -> Int[np.ndarray, " row"]:
    """At most so many of `count` rows, in rising order; always the same ones."""
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def folds(count: int, num_folds: int, *, most: int | None = None) -> list[Int[np.ndarray, " row"]]:
    """The rows that each fold leaves out, of `count` rows, in rising order; always the same ones.

    All folds have the same size, so that programs compile once. The rows of the remainder, fewer
    than there are folds, are in no fold. With one fold, a seventh is left out once, and at
    least one row.

    Args:
        count: the number of rows.
        num_folds: the number of folds.
        most: the most rows of a fold; rows beyond, which are random ones, are in no fold. Default:
            any number.
    """
    order = np.random.default_rng(0).permutation(count)
    size = count // num_folds if num_folds > 1 else min(max(1, count // SHARE), count - 1)
    size = size if most is None else min(size, most)
    return [np.sort(order[k * size : (k + 1) * size]) for k in range(num_folds)]

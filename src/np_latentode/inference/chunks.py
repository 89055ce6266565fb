"""Calls on a few trajectories at a time, so that one compiled program fits any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

__all__ = ["at_rows", "in_chunks"]


def in_chunks(
    call: Callable[..., Any], size: int, rng_key: Array, rows: np.ndarray, trees: tuple[Any, ...]
) -> Any:
    """`call(key, *trees)` on some rows of the trees, `size` at a time, and joined.

    All arrays have trajectories along their first axis. The last rows are repeated, so that one
    compiled program fits all.
    """
    done = []
    for k, first in enumerate(range(0, len(rows), size)):
        some = rows[first : first + size]
        padded = np.resize(some, size)
        made = call(jax.random.fold_in(rng_key, k), *at_rows(padded, trees))
        done.append(at_rows(np.arange(len(some)), made))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *done)


def at_rows(rows: np.ndarray, tree: Any) -> Any:
    # In NumPy: JAX would compile a program for each number of rows.
    return jax.tree.map(lambda array: np.asarray(array)[rows], tree)

"""Checks of arguments that many functions share."""

from __future__ import annotations

from typing import Any

__all__ = ["check_counts", "check_seed"]


def check_counts(**counts: Any) -> None:
    """Refuses counts that are not positive integers.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    for name, count in counts.items():
        if not (isinstance(count, int) and count > 0):
            raise ValueError(f"{name} must be a positive integer; got {count!r}.")


def check_seed(seed: Any, *, name: str = "seed") -> None:
    """Refuses a seed that NumPy or JAX cannot use.

    Raises:
        ValueError: naming the rule and what came.
    """
    if not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ValueError(f"{name} must be an integer from 0 to 2**32 - 1; got {seed!r}.")

"""Checks of arguments that many functions share."""

from __future__ import annotations

from typing import Any

__all__ = ["check_counts"]


def check_counts(**counts: Any) -> None:
    """Refuses counts that are not positive integers.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    for name, count in counts.items():
        if not (isinstance(count, int) and count > 0):
            raise ValueError(f"{name} must be a positive integer; got {count!r}.")

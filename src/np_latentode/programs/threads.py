"""NumPyro programs in several threads: one at a time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

__all__ = ["one_at_a_time"]

LOCK = threading.RLock()


def one_at_a_time[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """The same function, which no two threads run at once: for what uses handlers of NumPyro.

    NumPyro has one stack of handlers for all threads. Below `jax.jit`, the function runs while it
    is traced only, so compiled programs still run side by side.
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with LOCK:
            return function(*args, **kwargs)

    return alone

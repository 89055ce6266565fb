"""Threads: how many there may be, and NumPyro programs in one at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

__all__ = ["cores", "one_at_a_time", "side_by_side"]

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


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def side_by_side(max_workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """A function like `map`, whose calls run in threads, as XLA computes without Python's lock.

    With one worker, they run one after the other, in this thread.
    """
    if max_workers == 1:
        yield map
        return
    x64 = bool(jax.config.jax_enable_x64)

    def each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        def call(item: Any) -> Any:
            # Settings of JAX's context managers are those of one thread.
            with jax.enable_x64(x64):
                return function(item)

        return pool.map(call, items)

    with ThreadPoolExecutor(max_workers) as pool:
        yield each

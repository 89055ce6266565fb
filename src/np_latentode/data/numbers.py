"""Arrays that users pass: conversion to JAX, and checks of times and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

__all__ = [
    "Numbers",
    "as_doubles",
    "as_floats",
    "check_error_shape",
    "check_errors",
    "check_shapes",
    "check_times",
    "check_values",
    "is_concrete",
]

Numbers = ArrayLike | Sequence[Any]
"""An array, or nested sequences of numbers."""


def is_concrete(*arrays: Any) -> bool:
    """True if all arrays have values that this process knows.

    It does not know tracers of a JAX transformation, and what lies on devices of other processes.
    """
    return not any(
        isinstance(array, jax.core.Tracer) or not getattr(array, "is_fully_addressable", True)
        for array in arrays
    )


def as_doubles(name: str, array: Numbers) -> np.ndarray:
    """Converts known numbers to double precision.

    Raises:
        ValueError: naming the argument, if they are not a rectangular array of numbers.
    """
    try:
        array = np.asarray(array)
        if array.dtype.kind in "mM" or any(hasattr(x, "isoformat") for x in array.flat[:1]):
            raise TypeError("got dates, which `names.counted` turns into numbers")
        return array.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a rectangular array of numbers: {error}.") from error


def as_floats(name: str, array: Numbers) -> Array:
    """Converts numbers to JAX's default float type.

    Raises:
        ValueError: naming the argument, if they are not a rectangular array of numbers.
    """
    if not isinstance(array, jax.Array):
        array = as_doubles(name, array)
        with np.errstate(over="ignore"):  # too large a number is infinite then, and refused as such
            array = array.astype(jnp.result_type(float))
    return jnp.asarray(array, dtype=jnp.result_type(float))


def check_shapes(times: Array | np.ndarray, values: Array | np.ndarray) -> None:
    """Refuses shapes that disagree, or have an axis of length 0."""
    if times.ndim != 2 or values.ndim != 3 or times.shape != values.shape[:2]:
        raise ValueError(
            "times must have shape (trajectory, time) and values (trajectory, time, feature), "
            f"the same in their first two axes; got {times.shape} and {values.shape}."
        )
    if 0 in values.shape:
        raise ValueError(
            "values must hold at least one trajectory, one time and one feature; "
            f"got shape {values.shape}."
        )


def check_times(times: np.ndarray) -> None:
    """Refuses times that are not finite, or that decrease along a trajectory."""
    if not np.isfinite(times).all():
        i, k = np.argwhere(~np.isfinite(times))[0]
        raise ValueError(f"times must be finite; got {times[i, k]} at times[{i}, {k}].")
    if (np.diff(times) < 0).any():
        i, k = np.argwhere(np.diff(times) < 0)[0]
        raise ValueError(
            "times must not decrease along a trajectory; "
            f"got {times[i, k]} before {times[i, k + 1]} at times[{i}, {k}:{k + 2}]."
        )


def check_values(values: np.ndarray, observed: np.ndarray) -> None:
    """Refuses observed values that are infinite."""
    infinite = np.isinf(values) & observed
    if infinite.any():
        i, k, d = np.argwhere(infinite)[0]
        raise ValueError(
            "values must be finite, or NaN where unobserved; "
            f"got {values[i, k, d]} at values[{i}, {k}, {d}]."
        )


def check_error_shape(error: Array | np.ndarray, observed: Array | np.ndarray) -> None:
    """Refuses standard errors of another shape than the values."""
    if error.shape != observed.shape:
        raise ValueError(
            f"error must have the shape of values, {observed.shape}; got {error.shape}."
        )


def check_errors(error: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Standard errors, 0 where nothing was observed; those that are negative or NaN are refused."""
    check_error_shape(error, observed)
    bad = observed & ~((error >= 0) & np.isfinite(error))
    if bad.any():
        i, k, d = np.argwhere(bad)[0]
        raise ValueError(
            "error must be 0 or more and finite where a value was observed, as a standard error "
            f"is; got {error[i, k, d]} at error[{i}, {k}, {d}], one of {bad.sum()}."
        )
    return np.where(observed, error, 0.0)

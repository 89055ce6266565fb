"""Positive numbers of a likelihood, such as noise scales: fixed, or NumPyro parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

__all__ = ["positive", "positive_param"]


def positive(name: str, value: ArrayLike | None, *, or_zero: bool = False) -> Array | None:
    """The numbers as an array, or None if there are none.

    Raises:
        ValueError: if they are not positive and finite, or not one or one per feature.
    """
    if value is None:
        return None
    value = jnp.asarray(value, dtype=jnp.result_type(float))
    least = (value >= 0) if or_zero else (value > 0)
    if value.ndim > 1 or not (jnp.isfinite(value) & least).all():
        raise ValueError(
            f"{name} must be positive{' or 0' if or_zero else ''} and finite, one number or one "
            f"per feature; got {value}."
        )
    return value


def positive_param(
    name: str, fixed: Array | None, start: Any, *, param: str | None = None
) -> Array:
    """The fixed numbers; or else a positive NumPyro parameter that starts there.

    Args:
        name: of the argument, for errors.
        fixed: the fixed numbers, if any.
        start: where the parameter starts, one number per feature.
        param: the name of the parameter. Default: that of the argument.

    Raises:
        ValueError: if fixed is neither one number nor one per feature.
    """
    if fixed is None:
        first = jnp.asarray(start, dtype=jnp.result_type(float))
        return jnp.asarray(numpyro.param(param or name, first, constraint=constraints.positive))
    if fixed.shape not in ((), start.shape):
        raise ValueError(
            f"{name} must be positive and finite, one number or one per feature, shape "
            f"{start.shape}; got shape {fixed.shape}."
        )
    return fixed

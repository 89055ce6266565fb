"""How the weights of networks start."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from np_latentode.data.numbers import is_concrete

__all__ = ["lecun_normal"]

LEAST_ROOM = 256

TRUNCATED_SD = 0.87962566103423978
"""The standard deviation of a standard normal variable between -2 and 2."""


def lecun_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """The kernels of linear layers, as flax draws them by default.

    w ~ Normal(0, 1 / inputs), cut at two standard deviations before scaling   (LeCun et al. 1998)

    JAX compiles a program for each shape that it draws, a tenth of a second each. So the numbers
    are drawn in a few sizes, and cut to the shape.

    Args:
        key: a key.
        shape: (inputs, outputs).
        dtype: of the numbers.
    """
    size, scale = math.prod(shape), 1 / (TRUNCATED_SD * math.sqrt(shape[0]))
    room = max(LEAST_ROOM, 1 << (size - 1).bit_length())
    drawn = jax.random.truncated_normal(key, -2.0, 2.0, (room,), dtype)
    if is_concrete(drawn):
        cut = np.asarray(drawn)[:size].reshape(shape)
        return jnp.asarray(cut * np.asarray(scale, cut.dtype))
    return drawn[:size].reshape(shape) * jnp.asarray(scale, drawn.dtype)

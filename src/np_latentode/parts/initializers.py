"""How the weights of networks start: as flax draws them by default, but by NumPy.

JAX compiles a program for each shape that it draws, a tenth of a second each, and a second for the
orthogonal one. Inside of a transformation, where keys are not known, it calls back for the same
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.special import ndtr, ndtri

from np_latentode.data.numbers import is_concrete

__all__ = ["lecun_normal", "orthogonal", "zeros"]

TRUNCATED_SD = 0.87962566103423978
"""The standard deviation of a standard normal variable between -2 and 2."""

Shape = tuple[int, ...]


def lecun_normal(key: Array, shape: Shape, dtype: Any = jnp.float32) -> Array:
    """The kernels of linear layers.

    w ~ Normal(0, 1 / inputs), cut at two standard deviations before scaling   (LeCun et al. 1998)

    Args:
        key: a key.
        shape: (inputs, outputs).
        dtype: of the numbers.
    """
    return _drawn(_cut_normal, key, shape, dtype)


def orthogonal(key: Array, shape: Shape, dtype: Any = jnp.float32) -> Array:
    """The kernels of recurrent layers: uniform among matrices with orthonormal columns, or rows.

    w = Q sign(diag R),  where Q R is a standard normal matrix   (Saxe et al. 2014)

    Args:
        key: a key.
        shape: (inputs, outputs).
        dtype: of the numbers.
    """
    return _drawn(_orthogonal, key, shape, dtype)


def zeros(key: Array, shape: Shape, dtype: Any = jnp.float32) -> Array:
    """Biases, and layers that add nothing at first. The key is not used."""
    return jax.device_put(np.zeros(shape, jax.dtypes.canonicalize_dtype(dtype)))


def _cut_normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    low, high = ndtr([-2.0, 2.0])
    return ndtri(rng.uniform(low, high, shape)) / (TRUNCATED_SD * math.sqrt(shape[0]))


def _orthogonal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    inputs, outputs = shape
    q, r = np.linalg.qr(rng.normal(size=(max(shape), min(shape))))
    q = q * np.sign(np.diag(r))
    return q if inputs >= outputs else q.T


def _drawn(
    draw: Callable[[np.random.Generator, Shape], np.ndarray], key: Array, shape: Shape, dtype: Any
) -> Array:
    dtype = jax.dtypes.canonicalize_dtype(dtype)

    def numbers(seed: Any) -> np.ndarray:
        return draw(np.random.default_rng(np.asarray(seed)), shape).astype(dtype)

    seed = jax.random.key_data(key)
    if is_concrete(seed):
        return jax.device_put(numbers(seed))
    made = jax.ShapeDtypeStruct(shape, dtype)
    return jax.pure_callback(numbers, made, seed, vmap_method="sequential")

"""Supports of latent vectors, including circles, and the maps to them from unconstrained space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ParameterFreeTransform, Transform, biject_to

__all__ = ["Product", "circle", "describe_support", "periods", "split"]


class _Circle(type(constraints.sphere)):  # pyright: ignore[reportGeneralTypeIssues]
    """Unit vectors of the plane. Unlike other spheres, a circle has a map from one real number."""


circle = _Circle()


def describe_support(distribution: dist.Distribution) -> str:
    """The name of a distribution's support; equal supports have equal names.

    Examples are `R^4` and `S^1 x R^2`. A circle, `S^1`, takes two numbers. Adjacent Euclidean parts
    are joined.
    """
    support, size = distribution.support, distribution.event_shape[-1]
    product = support if isinstance(support, Product) else Product([support], [size])
    parts: list[tuple[str, int]] = []
    for part, size in zip(product.parts, product.sizes, strict=True):
        is_real = getattr(part, "base_constraint", part) == constraints.real
        is_circle = isinstance(part, type(constraints.sphere)) and size == 2
        # Other supports are named without their bounds, which may be tracers.
        kind = "S" if is_circle else "R" if is_real else type(part).__name__.strip("_")
        if parts and kind == parts[-1][0] == "R":
            size += parts.pop()[1]
        parts.append((kind, size))
    return " x ".join(f"{kind}^{size - (kind == 'S')}" for kind, size in parts)


class _Angle(ParameterFreeTransform):
    """The map from an angle to the unit circle, a -> (cos a, sin a).

    It is not one-to-one, but locally the density over arc length is the density over the angle. So
    a sampler may move along the whole line, and its points on the circle have the right
    distribution.
    """

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:
        return circle

    def __call__(self, x: Array) -> Array:
        return jnp.concatenate([jnp.cos(x), jnp.sin(x)], axis=-1)

    def _inverse(self, y: Array) -> Array:
        return jnp.arctan2(y[..., 1:], y[..., :1])

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        return jnp.zeros_like(x[..., 0])

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 2)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 1)


class Product(constraints.Constraint):
    """Vectors that consist of parts with given sizes and constraints.

    NumPyro's `constraints.cat` does not support constraints that check a vector as a whole, and
    transforms that change the size.
    """

    event_dim = 1

    def __init__(self, parts: Sequence[Any], sizes: Sequence[int]):
        self.parts, self.sizes = tuple(parts), tuple(sizes)

    def __call__(self, x: ArrayLike) -> Any:
        pieces = split(jnp.asarray(x), self.sizes)
        return jnp.stack([p(x) for p, x in zip(self.parts, pieces, strict=True)]).all(0)

    def feasible_like(self, prototype: Array) -> Array:
        pieces = split(prototype, self.sizes)
        feasible = (p.feasible_like(x) for p, x in zip(self.parts, pieces, strict=True))
        return jnp.concatenate(list(feasible), axis=-1)

    def eq(self, other: Any, static: bool = False) -> bool:
        same = isinstance(other, Product) and self.sizes == other.sizes
        return same and self.parts == other.parts

    def tree_flatten(self):
        return (), ((), {"parts": self.parts, "sizes": self.sizes})


class _ProductTransform(Transform):
    """One transform per part of a vector; `sizes` are those of the outputs."""

    def __init__(self, parts: Sequence[Transform], sizes: Sequence[int]):
        self.parts, self.sizes = tuple(parts), tuple(sizes)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:
        return Product([part.codomain for part in self.parts], self.sizes)

    @property
    def input_sizes(self) -> tuple[int, ...]:
        pairs = zip(self.parts, self.sizes, strict=True)
        return tuple(part.inverse_shape((size,))[0] for part, size in pairs)

    def __call__(self, x: Array) -> Array:
        pieces = split(x, self.input_sizes)
        return jnp.concatenate([f(p) for f, p in zip(self.parts, pieces, strict=True)], axis=-1)

    def _inverse(self, y: Array) -> Array:
        pieces = split(y, self.sizes)
        return jnp.concatenate([f.inv(p) for f, p in zip(self.parts, pieces, strict=True)], axis=-1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Any:
        pieces = zip(self.parts, split(x, self.input_sizes), split(y, self.sizes), strict=True)
        return sum((f.log_abs_det_jacobian(*p) for f, *p in pieces), jnp.zeros_like(x[..., 0]))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], sum(self.sizes))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], sum(self.input_sizes))

    def tree_flatten(self):
        return (self.parts,), (("parts",), {"sizes": self.sizes})

    def eq(self, other: Any, static: bool = False) -> bool:
        same = isinstance(other, _ProductTransform) and self.sizes == other.sizes
        return same and self.parts == other.parts


def periods(to_support: Transform, size: int) -> tuple[float, ...]:
    """The period of each unconstrained coordinate: 2 pi for an angle, infinite for others.

    Args:
        to_support: a map to vectors of this size.
        size: the number of numbers of z0.
    """
    if isinstance(to_support, _ProductTransform):
        parts = zip(to_support.parts, to_support.sizes, strict=True)
        return tuple(period for part, size in parts for period in periods(part, size))
    (count,) = to_support.inverse_shape((size,))
    return (2 * math.pi if isinstance(to_support, _Angle) else float("inf"),) * count


def split(x: Array, sizes: Sequence[int]) -> list[Array]:
    """The parts of a vector, of the given sizes."""
    return jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=-1)


@biject_to.register(_Circle)
def _biject_to_circle(constraint: _Circle) -> Transform:
    return _Angle()


@biject_to.register(Product)
def _biject_to_product(constraint: Product) -> Transform:
    return _ProductTransform([biject_to(part) for part in constraint.parts], constraint.sizes)

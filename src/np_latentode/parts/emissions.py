"""Emissions: from decoded states to the distribution over x, as likelihoods return them.

An emission is a function `decoded -> distribution`, with `decoded` of shape (trajectory, time,
feature). Given z0, its entries are independent. An emission that remembers also has a method
`along(decoded, times, mask, seen)`. Its distribution depends on the times, and on what was seen of
each trajectory; its `log_prob` has one term per entry, and all of them together are the log density
of a trajectory; and its `sample_signal(key)` draws what is remembered, without white noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

__all__ = ["Seen", "along", "joined", "of_each", "remembers", "sample_signal"]


class Seen(NamedTuple):
    """What was seen of each trajectory, beside the decoded states at the same times."""

    decoded: Array
    times: Array
    values: Array
    mask: Array


def remembers(emission: Any) -> bool:
    """Whether the distribution of x at one time depends on what was seen at others, given z0."""
    return hasattr(emission, "along")


def along(
    emission: Any, decoded: Array, times: Array, mask: Array, seen: Seen | None
) -> dist.Distribution:
    """The distribution over x along trajectories, given z0 and what was seen.

    Args:
        emission: what a likelihood returned.
        decoded: shape (trajectory, time, feature), at the times.
        times: shape (trajectory, time).
        mask: True where x is observed, or asked for.
        seen: other observations of the same trajectories, if any.
    """
    if remembers(emission):
        return emission.along(decoded, times, mask, seen)
    return emission(decoded)


def of_each(x: Any) -> dist.Distribution:
    """The distribution of each entry alone, of the distribution over x along trajectories."""
    if isinstance(x, dist.MaskedDistribution):
        mask: Any = x._mask
        return of_each(x.base_dist).mask(mask)
    return getattr(x, "of_each", x)


def sample_signal(x: dist.Distribution, key: Array) -> Array:
    """A draw of the signal, of the distribution over x along trajectories.

    The signal is x without white noise, which is new at each time: what the emission remembers is
    drawn, and where it remembers nothing, the signal is the mean of x.
    """
    draw = getattr(x, "sample_signal", None)
    return jnp.asarray(x.mean) if draw is None else draw(key)


def joined(parts: Sequence[Any]) -> Any:
    """One emission of all features, of the emissions of each."""
    if any(map(remembers, parts)):
        return _MixedEmission(parts)

    def join(decoded: Array) -> dist.Distribution:
        columns = _columns(decoded)
        return _Features(*(part(x) for part, x in zip(parts, columns, strict=True)))

    return join


class _MixedEmission:
    """Emissions of one feature each, of which some remember."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = parts

    def along(
        self, decoded: Array, times: Array, mask: Array, seen: Seen | None
    ) -> dist.Distribution:
        every = [*zip(_columns(decoded), _columns(mask), strict=True)]
        known: list[Seen | None] = [None] * len(every)
        if seen is not None:
            each = zip(*map(_columns, (seen.decoded, seen.values, seen.mask)), strict=True)
            known = [Seen(decoded, seen.times, values, mask) for decoded, values, mask in each]
        return _Features(
            *(
                along(part, decoded, times, mask, known)
                for part, (decoded, mask), known in zip(self.parts, every, known, strict=True)
            )
        )


def _columns(array: Array) -> list[Array]:
    return jnp.split(array, array.shape[-1], axis=-1)


class _Features(dist.Distribution):
    """Distributions, concatenated along their last axis."""

    pytree_data_fields = ("parts",)

    def __init__(self, *parts: dist.Distribution, validate_args: bool | None = None):
        self.parts = parts
        shape = (*parts[0].batch_shape[:-1], len(parts))
        super().__init__(shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        # NumPyro replaces masked entries by numbers in the support.
        supports: list[Any] = [part.support for part in self.parts]
        return constraints.cat(supports, dim=-1)

    @property
    def mean(self) -> Array:
        return jnp.concatenate([part.mean for part in self.parts], axis=-1)

    @property
    def variance(self) -> Array:
        return jnp.concatenate([part.variance for part in self.parts], axis=-1)

    @property
    def of_each(self) -> dist.Distribution:
        """The distribution of each entry alone."""
        return _Features(*map(of_each, self.parts))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        keys = jax.random.split(jnp.asarray(key), len(self.parts))
        draws = [part.sample(k, sample_shape) for part, k in zip(self.parts, keys, strict=True)]
        dtype = jnp.result_type(float)
        return jnp.concatenate([jnp.asarray(draw, dtype) for draw in draws], axis=-1)

    def sample_signal(self, key: Array) -> Array:
        """A draw without white noise; see the function of this name."""
        keys = jax.random.split(key, len(self.parts))
        draws = [sample_signal(part, k) for part, k in zip(self.parts, keys, strict=True)]
        return jnp.concatenate(draws, axis=-1)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        pieces = jnp.split(jnp.asarray(value), len(self.parts), axis=-1)
        terms = [part.log_prob(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return jnp.concatenate([jnp.asarray(term) for term in terms], axis=-1)

"""Emissions: from decoded states to the distribution over x, as likelihoods return them.

An emission is a function `decoded -> distribution`, with `decoded` of shape (trajectory, time,
feature). Given z0, its entries are independent. An emission that remembers also has a method
`along(decoded, times, mask, seen)`. Its distribution depends on the times, and on what was seen of
each trajectory; its `log_prob` has one term per entry, and all of them together are the log density
of a trajectory; and its `sample_signal(key)` draws what is remembered, without white noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

from np_latentode.data.limits import Limits
from np_latentode.parts.censored import Censored, censorable

__all__ = [
    "Groups",
    "Seen",
    "along",
    "by_feature",
    "joined",
    "measured",
    "of_each",
    "remembers",
    "sample_signal",
    "takes_error",
    "takes_limits",
]

Groups = tuple[tuple[int, ...], ...]
"""The features of each part, by number: each feature is in one group."""


class Seen(NamedTuple):
    """What was seen of each trajectory, beside the decoded states at the same times."""

    decoded: Array
    times: Array
    values: Array
    mask: Array
    error: Array | None = None
    """The known standard errors of the values."""
    limits: Limits | None = None


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


def measured(x: Any, error: Array | None, limits: Limits | None) -> Any:
    """The distribution over x, with known standard errors and limits of its entries.

    An error e adds e^2 to the variance of white noise, as that of an independent normal error. An
    entry with limits has the probability of its interval. What cannot have them stays as it is:
    `check_observed` refuses errors and limits there.

    Args:
        x: the distribution over x along trajectories.
        error: of the shape of x. None: no error is known.
        limits: of the shape of x. None: all values are known.
    """
    if (own := getattr(x, "measured", None)) is not None:
        return own(error, limits)
    if error is not None and takes_error(x):
        x = dist.Normal(x.loc, _hypot(jnp.asarray(x.scale), error))
    return Censored(x, limits) if limits is not None and takes_limits(x) else x


def takes_error(x: Any) -> bool:
    """Whether the sum with a normal error has a known distribution too."""
    return isinstance(x, dist.Normal) or hasattr(x, "measured")


def takes_limits(x: Any) -> bool:
    """Whether the probability of an interval is known."""
    return censorable(x) or hasattr(x, "measured")


def by_feature(x: Any, num_features: int) -> list[Any]:
    """The distribution of each feature, of those over all of them."""
    if not isinstance(x, _Features):
        return [x] * num_features
    found = {j: part for group, part in zip(x.groups, x.parts, strict=True) for j in group}
    return [found[j] for j in range(num_features)]


def _hypot(scale: Array, error: Array) -> Array:
    """sqrt(scale^2 + error^2), of which no square is too large or too small for a float."""
    # With `jnp.hypot`, second derivatives are wrong where both are equal. The unit drops out.
    unit = jax.lax.stop_gradient(jnp.maximum(scale, error))
    return unit * jnp.sqrt(jnp.square(scale / unit) + jnp.square(error / unit))


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


def joined(parts: Sequence[Any], groups: Groups) -> Any:
    """One emission of all features, of the emissions of groups of features.

    Args:
        parts: the emission of each group.
        groups: the features of each, in rising order.
    """
    if any(map(remembers, parts)):
        return _MixedEmission(parts, groups)

    def join(decoded: Array) -> dist.Distribution:
        columns = _columns(decoded, groups)
        return _Features(groups, *(part(x) for part, x in zip(parts, columns, strict=True)))

    return join


class _MixedEmission:
    """Emissions of groups of features, of which some remember."""

    def __init__(self, parts: Sequence[Any], groups: Groups):
        self.parts, self.groups = parts, groups

    def along(
        self, decoded: Array, times: Array, mask: Array, seen: Seen | None
    ) -> dist.Distribution:
        columns = partial(_columns, groups=self.groups)
        every = [*zip(columns(decoded), columns(mask), strict=True)]
        known: list[Seen | None] = [None] * len(every)
        if seen is not None:
            # All arrays but the times have an axis for features.
            leaves, tree = jax.tree.flatten(seen._replace(times=None))
            parts = zip(*map(columns, leaves), strict=True)
            known = [jax.tree.unflatten(tree, part)._replace(times=seen.times) for part in parts]
        return _Features(
            self.groups,
            *(
                along(part, decoded, times, mask, known)
                for part, (decoded, mask), known in zip(self.parts, every, known, strict=True)
            ),
        )


def _columns(array: Array, groups: Groups) -> list[Array]:
    """The features of each group. Neighbours are a slice, which costs less than a gather."""
    return [
        array[..., slice(group[0], group[-1] + 1)]
        if group[-1] + 1 - group[0] == len(group)
        else array[..., np.array(group)]
        for group in groups
    ]


def _in_order(columns: Sequence[Any], groups: Groups) -> Array:
    """The features of all groups, in their own order."""
    order = np.argsort(np.concatenate(groups))
    every = jnp.concatenate(columns, axis=-1)
    return every if (np.diff(order) == 1).all() else every[..., order]


class _OfGroups(constraints.Constraint):
    """That the features of each group are in its support."""

    def __init__(self, groups: Groups, supports: tuple[Any, ...]):
        self.groups, self.supports = groups, supports

    def __call__(self, x: Any) -> Array:
        pieces = zip(self.supports, _columns(jnp.asarray(x), self.groups), strict=True)
        return _in_order([support(piece) for support, piece in pieces], self.groups)

    @property
    def is_discrete(self) -> bool:
        return any(support.is_discrete for support in self.supports)

    def feasible_like(self, prototype: Any) -> Array:
        pieces = zip(self.supports, _columns(prototype, self.groups), strict=True)
        return _in_order([support.feasible_like(piece) for support, piece in pieces], self.groups)

    def tree_flatten(self) -> Any:
        return (self.supports,), (("supports",), {"groups": self.groups})


class _Features(dist.Distribution):
    """Distributions of groups of features, as one over all of them."""

    pytree_data_fields = ("parts",)
    pytree_aux_fields = ("groups",)

    def __init__(
        self, groups: Groups, *parts: dist.Distribution, validate_args: bool | None = None
    ):
        self.groups, self.parts = groups, parts
        shape = (*parts[0].batch_shape[:-1], sum(map(len, groups)))
        super().__init__(shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        # NumPyro replaces masked entries by numbers in the support.
        return _OfGroups(self.groups, tuple(part.support for part in self.parts))

    @property
    def mean(self) -> Array:
        return _in_order([part.mean for part in self.parts], self.groups)

    @property
    def variance(self) -> Array:
        return _in_order([part.variance for part in self.parts], self.groups)

    @property
    def of_each(self) -> dist.Distribution:
        """The distribution of each entry alone."""
        return _Features(self.groups, *map(of_each, self.parts))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        keys = jax.random.split(jnp.asarray(key), len(self.parts))
        draws = [part.sample(k, sample_shape) for part, k in zip(self.parts, keys, strict=True)]
        dtype = jnp.result_type(float)
        return _in_order([jnp.asarray(draw, dtype) for draw in draws], self.groups)

    def measured(self, error: Array | None, limits: Limits | None) -> _Features:
        """The same with standard errors and limits of those features that can have some."""
        none = [None] * len(self.parts)
        errors = none if error is None else _columns(error, self.groups)
        bounds = none
        if limits is not None:
            ends = (_columns(end, self.groups) for end in (limits.lower, limits.upper))
            bounds = [Limits.tree_unflatten(None, pair) for pair in zip(*ends, strict=True)]
        return _Features(self.groups, *map(measured, self.parts, errors, bounds))

    def sample_signal(self, key: Array) -> Array:
        """A draw without white noise; see the function of this name."""
        keys = jax.random.split(key, len(self.parts))
        draws = [sample_signal(part, k) for part, k in zip(self.parts, keys, strict=True)]
        return _in_order(draws, self.groups)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        pieces = _columns(jnp.asarray(value), self.groups)
        terms = [part.log_prob(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        return _in_order([jnp.asarray(term) for term in terms], self.groups)

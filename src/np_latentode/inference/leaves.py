"""The leaves of a distribution, in an order that is the same in every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

__all__ = ["ordered_leaves"]


def ordered_leaves(distribution: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves of a pytree of distributions by their names, and the inverse of taking them.

    NumPyro orders the fields of a distribution by a set of names, whose order Python changes from
    process to process. A program that is written leaf by leaf would be another one each time, and
    JAX would compile it again.
    """
    leaves, shape = jax.tree.flatten(distribution)
    order = np.argsort(_names(distribution), kind="stable").tolist()

    def rebuilt(ordered: list[Any]) -> Any:
        own = dict(zip(order, ordered, strict=True))
        return jax.tree.unflatten(shape, [own[k] for k in range(len(own))])

    return [leaves[k] for k in order], rebuilt


def _names(tree: Any) -> list[str]:
    """The names of the leaves, in the order of `jax.tree.flatten`."""
    if not _is_distribution(tree):
        parts = jax.tree.flatten(tree, is_leaf=_is_distribution)[0]
        # With zeros in front, as 10 comes after 9.
        fields = [f"{k:04d}" for k in range(len(parts))]
        if not any(map(_is_distribution, parts)):
            return fields
    else:
        parts, _ = tree.tree_flatten()
        fields = type(tree).gather_pytree_data_fields()
    named = zip(fields, parts, strict=True)
    return [f"{field}.{name}" for field, part in named for name in _names(part)]


def _is_distribution(tree: Any) -> bool:
    return isinstance(tree, dist.Distribution)

"""How one input of one trajectory goes on between its rows, and what events have left at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

__all__ = ["read_events", "read_path"]


def read_path(
    times: Array, values: Array, constant: Array, left: Array, right: Array
) -> tuple[Array, Array]:
    """One input of one trajectory, just after `left` and just before `right`."""
    known, rows = ~jnp.isnan(values), len(values)
    place = jnp.arange(rows)
    before = jax.lax.cummax(jnp.where(known, place, -1))
    after = jax.lax.cummin(jnp.where(known, place, rows), reverse=True)
    # The number of rows up to the middle: rounding cannot put it on the other side of a row.
    count = jnp.searchsorted(times, (left + right) / 2, side="right")
    a = jnp.pad(before, (1, 0), constant_values=-1)[count]
    b = jnp.pad(after, (0, 1), constant_values=rows)[count]
    one, other = jnp.maximum(a, 0), jnp.minimum(b, rows - 1)
    x = jnp.nan_to_num(values)
    held = jnp.where(a >= 0, x[one], jnp.where(b < rows, x[other], 0.0))
    gap = times[other] - times[one]
    held_here = constant | (a < 0) | (b == rows) | (gap <= 0)
    slope = jnp.where(held_here, 0.0, (x[other] - x[one]) / jnp.where(gap > 0, gap, 1.0))
    return held + slope * (left - times[one]), held + slope * (right - times[one])


def read_events(times: Array, amounts: Array, at: Array, decay: float) -> tuple[Array, Array]:
    """Of one trajectory, the amounts left at `at`, and the times since the last of each."""
    count = jnp.searchsorted(times, at, side="left")
    counted = jnp.where(times[:, None] >= 0, amounts, 0.0)

    def later(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        """What is left of two stretches of rows: (share that stays, amount at the end)."""
        return a[0] * b[0], a[1] * b[0] + b[1]

    stays = jnp.exp(-decay * jnp.diff(times, prepend=times[:1]))[:, None]
    _, left = jax.lax.associative_scan(later, (jnp.broadcast_to(stays, counted.shape), counted))
    before = jnp.exp(-decay * jnp.maximum(at - times[jnp.maximum(count - 1, 0)], 0.0))
    total = before[:, None] * jnp.pad(left, ((1, 0), (0, 0)))[count]
    place = jnp.where(amounts != 0, jnp.arange(len(times))[:, None], -1)
    last = jnp.pad(jax.lax.cummax(place, axis=0), ((1, 0), (0, 0)), constant_values=-1)[count]
    since = at[:, None] - times[jnp.maximum(last, 0)]
    return total, jnp.where(last >= 0, since, 0.0)

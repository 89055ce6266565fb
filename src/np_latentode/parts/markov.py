"""Gauss-Markov chains: Gaussian processes with the Markov property, at the times of a series.

r_1 = shift_1 + e_1,   r_k = gain_k r_{k-1} + shift_k + e_k,   e_k ~ Normal(0, variance_k)

Each method makes one pass over the K slots (Särkkä & Svensson 2023, "Bayesian
Filtering and Smoothing", chapters 6, 8 and 12). No K x K covariance is built. Slots of equal time
have gain 1 and variance 0, and nothing is divided by a variance, so that ties are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from np_latentode.parts.censored import standardized, truncated_normal

__all__ = ["Between", "GaussMarkov", "brownian", "ornstein_uhlenbeck"]


LEAST = 1e-6
"""The least share of a variance that an interval takes away: one that says less says nothing."""


class Between(NamedTuple):
    """What intervals of y_k say, slot by slot."""

    mean: Array
    variance: Array
    """Of y_k given the slots before."""
    y: Array
    precision: Array
    """The measurement y = r_k + Normal(0, 1 / precision) that stands for the interval."""


class GaussMarkov(NamedTuple):
    """A chain for each series and feature; all arrays have the shape (series, slot, feature)."""

    gain: Array
    """0 in the first slot."""
    shift: Array
    variance: Array

    def given(self, y: Array, precision: Array) -> GaussMarkov:
        """The chain given y_k = r_k + Normal(0, 1 / precision_k); precision 0 means unobserved.

        The pass goes backwards. It carries log p(y_k, ..., y_K | r_k) = h r_k - J r_k^2 / 2 + c.
        """

        def step(later: tuple[Array, Array], slot: tuple[Array, ...]) -> Any:
            gain, shift, variance, y, precision = slot
            j, h = later[0] + precision, later[1] + precision * y
            left = 1 / (1 + variance * j)
            message = gain**2 * j * left, gain * (h - j * shift) * left
            return message, GaussMarkov(gain * left, (shift + variance * h) * left, variance * left)

        nothing = jnp.zeros_like(self.shift[..., 0, :])
        return _along(step, (nothing, nothing), (*self, y, precision), reverse=True)

    def moments(self) -> tuple[Array, Array]:
        """E[r_k] and Var[r_k] of each slot."""

        def step(earlier: tuple[Array, Array], slot: GaussMarkov) -> Any:
            mean, variance = _moved(earlier, slot)
            return (mean, variance), (mean, variance)

        nothing = jnp.zeros_like(self.shift[..., 0, :])
        return _along(step, (nothing, nothing), self)

    def one_step_ahead(
        self, y: Array, mask: Array, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """Mean and variance of y_k = r_k + Normal(0, noise_k) given the observed y before slot k.

        The Kalman filter. Slots with mask False are not observed. `noise` is a variance; it is 1
        where it is not given.
        """

        def step(earlier: tuple[Array, Array], slot: tuple[Any, ...]) -> Any:
            chain, y, mask, *given = slot
            mean, variance = _moved(earlier, chain)
            noise = given[0] if given else 1
            left = jnp.where(mask, noise / (noise + variance), 1.0)
            # The gain of the filter is 1 - left.
            updated = mean + (1 - left) * (y - mean), variance * left
            return updated, (mean, noise + variance)

        nothing = jnp.zeros_like(y[..., 0, :])
        given = () if noise is None else (noise,)
        return _along(step, (nothing, nothing), (self, y, mask, *given))

    def between(self, lower: Array, upper: Array, mask: Array, noise: Array) -> Between:
        """The same where of y_k only lower_k < y_k < upper_k is known: assumed-density filtering.

        Given the earlier slots, r_k and y_k are normal. After the interval of y_k, r_k counts as
        normal with the mean and variance that it has then (Maybeck 1982, section 12.7; Minka 2001,
        "Expectation Propagation", section 3.1). The first slot with mask True is exact.
        """

        def step(earlier: tuple[Array, Array], slot: tuple[Any, ...]) -> Any:
            chain, lower, upper, mask, noise = slot
            mean, variance = _moved(earlier, chain)
            total = noise + variance
            root = jnp.sqrt(total)
            within = truncated_normal(*(standardized(x, mean, root) for x in (lower, upper)))
            # A measurement y with this noise would have the same effect on r.
            left = jnp.maximum(1 - within.variance, LEAST)
            y, own = mean + root * within.mean / left, total / left - variance
            kept = jnp.where(mask, own / (own + variance), 1.0)
            updated = mean + (1 - kept) * (y - mean), variance * kept
            return updated, Between(mean, total, y, jnp.where(mask, 1 / own, 0.0))

        nothing = jnp.zeros_like(self.shift[..., 0, :])
        return _along(step, (nothing, nothing), (self, lower, upper, mask, noise))

    def sample(self, rng_key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of whole paths."""
        noise = jax.random.normal(rng_key, (*sample_shape, *self.shift.shape), self.shift.dtype)
        # The slope of the root at 0, where slots are tied, is infinite, and its gradient NaN.
        moved = self.variance > 0
        sd = jnp.where(moved, jnp.sqrt(jnp.where(moved, self.variance, 1.0)), 0.0)
        moves = self.shift + sd * noise
        gains = jnp.broadcast_to(self.gain, moves.shape)

        def step(earlier: Array, slot: tuple[Array, Array]) -> Any:
            r = slot[0] * earlier + slot[1]
            return r, r

        return _along(step, jnp.zeros_like(moves[..., 0, :]), (gains, moves))


def ornstein_uhlenbeck(
    times: Float[Array, "series slot"], scale: ArrayLike, timescale: ArrayLike
) -> GaussMarkov:
    """The stationary process with Cov[r(s), r(t)] = scale^2 exp(-|t - s| / timescale).

    (Uhlenbeck & Ornstein 1930; Rasmussen & Williams 2006, equation B.29.)

    Args:
        times: never decreasing.
        scale, timescale: one for each feature, shape (feature,).
    """
    passed = _gaps(times) / timescale
    first = jnp.arange(times.shape[1])[:, None] == 0
    gain = jnp.where(first, 0.0, jnp.exp(-passed))
    variance = jnp.where(first, 1.0, -jnp.expm1(-2 * passed)) * jnp.square(scale)
    return GaussMarkov(gain, jnp.zeros_like(gain), variance)


def brownian(times: Float[Array, "series slot"], start: ArrayLike, scale: ArrayLike) -> GaussMarkov:
    """Brownian motion from 0 at `start`: Var[r(t) - r(s)] = scale^2 (t - s).

    It is the limit of `ornstein_uhlenbeck` where scale and timescale grow at scale^2 / timescale
    = 1 / 2, for the residual since `start`.

    Args:
        times: never decreasing; those before `start` count as `start`.
        start: where r is 0.
        scale: one for each feature, shape (feature,).
    """
    times = jnp.maximum(times, start)
    since = jnp.concatenate([times[:, :1] - start, jnp.diff(times, axis=1)], axis=1)[..., None]
    variance = since * jnp.square(scale)
    gain = jnp.where(jnp.arange(times.shape[1])[:, None] == 0, 0.0, jnp.ones_like(variance))
    return GaussMarkov(gain, jnp.zeros_like(variance), variance)


def _gaps(times: Array) -> Array:
    """The time since the slot before, 0 for the first one; with an axis for features."""
    return jnp.diff(times, axis=1, prepend=times[:, :1])[..., None]


def _moved(earlier: tuple[Array, Array], slot: GaussMarkov) -> tuple[Array, Array]:
    """Mean and variance one slot later."""
    mean, variance = earlier
    return slot.gain * mean + slot.shift, slot.gain**2 * variance + slot.variance


def _along(step: Callable[..., Any], start: Any, arrays: Any, *, reverse: bool = False) -> Any:
    """Scans over the slots, the last axis but one, and returns what each slot gave."""
    slots_first = jax.tree.map(lambda a: jnp.moveaxis(a, -2, 0), arrays)
    _, found = jax.lax.scan(step, start, slots_first, reverse=reverse)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2), found)

"""Censored values: the probability of an interval, and the moments of what lies in it.

log P(lower < x < upper) = log(F((upper - loc) / scale) - F((lower - loc) / scale))

F is the distribution function of a standard normal or Student-t distribution. Both are symmetric,
so an interval above the mean is computed as its mirror image below, where F loses no digits.

NumPyro's own `LeftCensoredDistribution`, `RightCensoredDistribution` and
`IntervalCensoredDistribution` (of version 0.22) clip F before they take the logarithm. In single
precision, the gradient of a lower limit is then 0 beyond five standard deviations, as training may
begin there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import betainc, gammaln, log_ndtr
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

from np_latentode.data.limits import Limits

__all__ = ["Censored", "Truncated", "censorable", "standardized", "truncated_normal"]

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)

TAIL = 5.0
"""Beyond so many standard deviations, the normal distribution function is a continued fraction."""

NARROW = 0.5
"""A width, in units of the length on which the density changes, below which the density is
integrated in place of a difference of F, which loses digits."""

UNDERFLOW = 1e-30
"""Below such a probability, that of a Student-t distribution is a continued fraction."""

NODES, WEIGHTS = np.polynomial.legendre.leggauss(7)
"""Of Gauss and Legendre, on the interval from -1 to 1."""


def _log_normal(x: Array) -> Array:
    return -0.5 * jnp.square(x) - LOG_ROOT_TWO_PI


def _tail(x: Array) -> Array:
    """phi(x) / F(x) of the standard normal distribution, for x below -5.

    F(-t) = phi(t) / (t + 1 / (t + 2 / (t + 3 / ...)))           (Abramowitz & Stegun 26.2.14)
    """
    # Inputs of a branch are kept in its range: one that is not selected must be finite.
    t = jnp.maximum(-x, TAIL)
    fraction = t
    for k in range(20, 0, -1):
        fraction = t + k / fraction
    return fraction


def _log_normal_cdf(x: Array) -> Array:
    """log F of the standard normal distribution, with exact slopes far below 0."""
    far = _log_normal(jnp.minimum(x, -TAIL)) - jnp.log(_tail(x))
    return jnp.where(x < -TAIL, far, log_ndtr(jnp.maximum(x, -TAIL)))


def _hazard(x: Array) -> Array:
    """phi(x) / F(x) of the standard normal distribution."""
    near = jnp.maximum(x, -TAIL)
    return jnp.where(x < -TAIL, _tail(x), jnp.exp(_log_normal(near) - log_ndtr(near)))


def _log_student(df: Array, x: Array) -> Array:
    norm = 0.5 * jnp.log(df * math.pi) + gammaln(df / 2) - gammaln((df + 1) / 2)
    return -norm - 0.5 * (df + 1) * jnp.log1p(jnp.square(x) / df)


@jax.custom_jvp
def _log_student_cdf(df: Array, x: Array) -> Array:
    """log F of the standard Student-t distribution, by the incomplete beta function."""
    half = 0.5 * betainc(df / 2, 0.5 * jnp.ones_like(x), df / (df + jnp.square(x)))
    near = jnp.where(x < 0, jnp.log(jnp.maximum(half, UNDERFLOW)), jnp.log1p(-half))
    return jnp.where((half < UNDERFLOW) & (x < 0), _log_student_tail(df, x), near)


def _log_student_tail(df: Array, x: Array) -> Array:
    """The same far below 0, where the incomplete beta function itself underflows.

    F(-t) = f(t) t / df / (1 + d_1 / (1 + d_2 / (1 + ...))),  y = df / (df + t^2),  a = df / 2

    d_2m = m (1/2 - m) y / ((a + 2m - 1) (a + 2m)),  and d_2m+1 in the same way; f is the density.
                                                                 (Abramowitz & Stegun 26.5.8)
    """
    t, a = jnp.maximum(-x, 1.0), df / 2
    y, fraction = df / (df + jnp.square(t)), jnp.ones_like(t)
    for m in range(20, -1, -1):
        even = m * (0.5 - m) / ((a + 2 * m - 1) * (a + 2 * m)) if m else 0.0
        odd = -(a + m) * (a + 0.5 + m) / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + odd * y / fraction
        fraction = 1 + even * y / fraction if m else fraction
    fraction = jnp.maximum(fraction, jnp.finfo(t.dtype).eps)
    return _log_student(df, t) + jnp.log(t / df) - jnp.log(fraction)


@_log_student_cdf.defjvp
def _log_student_cdf_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # JAX's slope of the incomplete beta function is not finite at x = 0. It has none in df, which
    # counts as fixed.
    (df, x), (_, dx) = primals, tangents
    value = _log_student_cdf(df, x)
    return value, jnp.exp(_log_student(df, x) - value) * dx


def _normal_length(x: Array) -> Array:
    """The length on which the normal density changes about x."""
    return 1 / (1 + jnp.abs(x))


def _student_length(df: Array, x: Array) -> Array:
    """That of the Student-t density: far out it grows with |x|, as the density is a power of x."""
    square = df + jnp.square(x)
    return jnp.minimum(jnp.sqrt(square), square / (df * (1 + jnp.abs(x))))


class Truncated(NamedTuple):
    """A standard distribution on an interval: log of its probability, and the moments there."""

    log_p: Array
    mean: Array
    variance: Array


def standardized(bound: Array, loc: Any, scale: Any) -> Array:
    """(bound - loc) / scale; infinite bounds stay, without a slope in loc and scale."""
    infinite = jnp.isinf(bound)
    return jnp.where(infinite, bound, (jnp.where(infinite, 0.0, bound) - loc) / scale)


def _mirrored(lower: Array, upper: Array) -> tuple[Array, Array, Array]:
    """The interval or its mirror image, whose upper end is finite; and whether it is mirrored."""
    mirrored = lower + upper > 0
    return jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper), mirrored


class _Interval(NamedTuple):
    """An interval with a finite upper end, and what is needed to integrate over it."""

    low: Array
    """Finite, also where the interval is not."""
    high: Array
    open: Array
    """True where the interval has no lower end."""
    narrow: Array
    nodes: Array
    """Shape (node, ...); within an interval that is narrow."""
    log_weights: Array

    @classmethod
    def of(
        cls,
        low: Array,
        high: Array,
        log_density: Callable[[Array], Array],
        length: Callable[[Array], Array],
    ) -> _Interval:
        """
        Args:
            low, high: the ends.
            log_density: of the standard distribution.
            length: that on which the density changes about a place.
        """
        open = jnp.isinf(low)
        low = jnp.where(open, high - 1.0, low)
        middle, half = (low + high) / 2, (high - low) / 2
        narrow = ~open & (2 * half < NARROW * length(middle))
        # A width that is not narrow is replaced: its nodes may lie where the density underflows.
        least = jnp.finfo(middle.dtype).eps * (1 + jnp.abs(middle))
        short = jnp.where(narrow, jnp.maximum(half, least), NARROW)
        shape = (-1, *[1] * jnp.ndim(middle))
        at, weights = (jnp.asarray(x, middle.dtype).reshape(shape) for x in (NODES, WEIGHTS))
        nodes = middle + short * at
        return cls(low, high, open, narrow, nodes, log_density(nodes) + jnp.log(weights * short))


def _log_probability(of: _Interval, log_cdf: Callable[[Array], Array]) -> tuple[Array, Array]:
    """log(F(high) - F(low)), without loss of digits, and F(low) / F(high)."""
    below = log_cdf(of.high)
    # Negative where the width is not narrow, but for rounding.
    gap = jnp.minimum(log_cdf(of.low) - below, -jnp.finfo(below.dtype).eps)
    ratio = jnp.exp(jnp.where(of.narrow | of.open, -1.0, gap))
    log_p = jnp.where(of.narrow, jax.nn.logsumexp(of.log_weights, axis=0), below)
    return jnp.where(of.narrow | of.open, log_p, below + jnp.log1p(-ratio)), ratio


def truncated_normal(lower: Array, upper: Array) -> Truncated:
    """The standard normal distribution on an interval, of which one end may be infinite."""
    low, high, mirrored = _mirrored(lower, upper)
    of = _Interval.of(low, high, _log_normal, _normal_length)
    log_p, ratio = _log_probability(of, _log_normal_cdf)
    # phi(end) / P of both ends.
    ratio = jnp.where(of.open, 0.0, ratio)
    left, right = _hazard(of.low) * ratio / (1 - ratio), _hazard(of.high) / (1 - ratio)
    wide = left - right
    spread = 1 + of.low * left - of.high * right - jnp.square(wide)
    share = jnp.exp(of.log_weights - jnp.where(of.narrow, log_p, of.log_weights.max(0)))
    narrow = jnp.sum(share * of.nodes, axis=0)
    within = jnp.sum(share * jnp.square(of.nodes - narrow), axis=0)
    # Far from the mean, rounding could leave the interval.
    mean = jnp.minimum(jnp.where(of.narrow, narrow, wide), of.high)
    variance = jnp.clip(jnp.where(of.narrow, within, spread), 0.0, 1.0)
    return Truncated(log_p, jnp.where(mirrored, -mean, mean), variance)


def _log_p(x: Any, lower: Array, upper: Array) -> Array:
    """The log probability of finite or infinite bounds, in the units of x."""
    a, b = (standardized(bound, x.loc, x.scale) for bound in (lower, upper))
    low, high, _ = _mirrored(a, b)
    if isinstance(x, dist.Normal):
        of = _Interval.of(low, high, _log_normal, _normal_length)
        return _log_probability(of, _log_normal_cdf)[0]
    df = jnp.broadcast_to(x.df, low.shape)
    of = _Interval.of(low, high, partial(_log_student, df), partial(_student_length, df))
    return _log_probability(of, partial(_log_student_cdf, df))[0]


def censorable(x: Any) -> bool:
    """Whether the probability of an interval is known under this distribution."""
    return isinstance(x, (dist.Normal, dist.StudentT))


class Censored(dist.Distribution):
    """A distribution over values, of which some are only known to lie in an interval.

    log p = log P(lower < x < upper) where there are limits, and log p(x) of the value elsewhere

    Draws and moments are those of the values themselves. The df of a `StudentT` counts as fixed.

    Args:
        base_dist: a `Normal` or `StudentT`.
        limits: of the shape of the values, NaN where a value is known.
    """

    pytree_data_fields = ("base_dist", "lower", "upper")

    def __init__(self, base_dist: Any, limits: Limits, *, validate_args: bool | None = None):
        self.base_dist, self.lower, self.upper = base_dist, limits.lower, limits.upper
        super().__init__(base_dist.batch_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    @property
    def mean(self) -> Array:
        return self.base_dist.mean

    @property
    def variance(self) -> Array:
        return self.base_dist.variance

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.base_dist.sample(key, sample_shape)

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        limits = Limits.tree_unflatten(None, (self.lower, self.upper))
        censored = limits.censored
        # Where there are no limits, any finite ones.
        lower = jnp.where(censored, self.lower, -1.0)
        upper = jnp.where(censored, self.upper, 1.0)
        log_p = self.base_dist.log_prob(value)
        return jnp.where(censored, _log_p(self.base_dist, lower, upper), log_p)

"""Likelihoods with a residual process: what the ODE leaves behind is correlated in time.

x(t) = decoder(z(t)) + r(t) + e(t),   r a Gauss-Markov process of each feature,   e white noise

It is the serial correlation of mixed models (Diggle 1988; Taylor, Cumberland & Sy 1994). Given z0,
x is Gaussian. The process r is marginalised exactly at each trajectory's own times. A forecast
conditions it on what was seen: its mean leads from the last residual to the path of the ODE, and
its bands open with the gap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

from np_latentode.data.limits import Limits
from np_latentode.data.scaling import Scaling
from np_latentode.parts.censored import Censored, standardized
from np_latentode.parts.emissions import Seen
from np_latentode.parts.markov import GaussMarkov, brownian, ornstein_uhlenbeck
from np_latentode.parts.scales import positive, positive_param

__all__ = ["BrownianLikelihood", "OrnsteinUhlenbeckLikelihood", "SerialNormal"]


class OrnsteinUhlenbeckLikelihood:
    """x(t) | z ~ decoder(z(t)) + r(t) + Normal(0, noise_scale), r an Ornstein-Uhlenbeck process.

    Cov[r(s), r(t)] = residual_scale^2 exp(-|t - s| / timescale)

    With residual_scale 0 it is the `GaussianLikelihood`. As timescale falls to 0, r becomes white
    noise; as it grows, a random intercept.

    Args:
        noise_scale, residual_scale: standard deviations of the white noise and of the residual, in
            original units, one number or one per feature. Default: the NumPyro parameters
            `noise_scale` and `residual_scale`, one per feature. They are learned. The residual
            starts at a fiftieth of the feature's unit.
        timescale: the time after which the correlation has fallen to 1 / e, in original units of
            time. Default: the parameter `residual_timescale`, one per feature. It starts at a fifth
            of the span of the training data.
        start: where a learned noise scale starts, in the feature's unit; one number or one per
            feature.

    Raises:
        ValueError: if a number is not positive and finite; residual_scale may be 0.
    """

    def __init__(
        self,
        noise_scale: ArrayLike | None = None,
        residual_scale: ArrayLike | None = None,
        timescale: ArrayLike | None = None,
        *,
        start: ArrayLike = 0.5,
    ):
        self.start = np.asarray(positive("start", start))
        self.noise_scale = positive("noise_scale", noise_scale)
        self.residual_scale = positive("residual_scale", residual_scale, or_zero=True)
        self.timescale = positive("timescale", timescale)

    def __call__(self, scaling: Scaling) -> _SerialEmission:
        unit, shape = scaling.scale, scaling.loc.shape
        noise = positive_param("noise_scale", self.noise_scale, self.start * unit)
        scale = positive_param("residual_scale", self.residual_scale, START * unit)
        span = jnp.full(shape, scaling.time_unit)
        timescale = positive_param("timescale", self.timescale, span, param="residual_timescale")

        def chain(times: Array) -> GaussMarkov:
            ratio = jnp.broadcast_to(scale / noise, shape)
            return ornstein_uhlenbeck(times, ratio, jnp.broadcast_to(timescale, shape))

        return _SerialEmission(scaling, noise, chain)


class BrownianLikelihood:
    """x(t) | z ~ decoder(z(t)) + r(t) + Normal(0, noise_scale), r Brownian motion from 0 at t0.

    Var[r(t) - r(s)] = residual_scale^2 (t - s) / time_unit

    It is the limit of the `OrnsteinUhlenbeckLikelihood` for a long timescale: r never returns to
    the path of the ODE, which then says where r starts and how it drifts.

    Args:
        noise_scale: as in `OrnsteinUhlenbeckLikelihood`.
        residual_scale: the standard deviation after one `time_unit` of the scaling, in original
            units. Default: the parameter `residual_scale`, one per feature.

    Raises:
        ValueError: if a number is not positive and finite; residual_scale may be 0.
    """

    def __init__(
        self, noise_scale: ArrayLike | None = None, residual_scale: ArrayLike | None = None
    ):
        self.noise_scale = positive("noise_scale", noise_scale)
        self.residual_scale = positive("residual_scale", residual_scale, or_zero=True)

    def __call__(self, scaling: Scaling) -> _SerialEmission:
        unit, shape = scaling.scale, scaling.loc.shape
        noise = positive_param("noise_scale", self.noise_scale, 0.5 * unit)
        scale = positive_param("residual_scale", self.residual_scale, START * unit)

        def chain(times: Array) -> GaussMarkov:
            ratio = jnp.broadcast_to(scale / noise, shape)
            return brownian(scaling.scale_times(times), 0.0, ratio)

        return _SerialEmission(scaling, noise, chain)


START = 0.02
"""The residual's scale before training, in the feature's unit. At first it must not explain what
z0 can: a guide that is not needed is not trained."""


class _SerialEmission:
    """`decoded -> distribution over x`, along trajectories."""

    def __init__(self, scaling: Scaling, noise_scale: Array, chain: Callable[[Array], GaussMarkov]):
        self.scaling, self.noise_scale, self.chain = scaling, noise_scale, chain

    def along(self, decoded: Array, times: Array, mask: Array, seen: Seen | None) -> SerialNormal:
        """The joint distribution of each trajectory's entries, given what was seen of it."""
        loc = self.scaling.unscale_values(decoded)
        every = times if seen is None else jnp.concatenate([seen.times, times], axis=1)
        order = jnp.argsort(every, axis=1)
        chain = self.chain(jnp.take_along_axis(every, order, axis=1))
        if seen is not None:
            chain = self._given(chain, seen, order, jnp.zeros_like(loc))
        return SerialNormal(loc, self.noise_scale, chain, order, mask)

    def _given(self, chain: GaussMarkov, seen: Seen, order: Array, own: Array) -> GaussMarkov:
        """The chain given what was seen; `own` are zeros of the shape of the entries of x."""
        # In units of the noise, so that no number is too small for single precision.
        loc = self.scaling.unscale_values(seen.decoded)
        y = (seen.values - loc) / self.noise_scale
        mask = seen.mask if seen.limits is None else seen.mask & ~seen.limits.censored
        white = _white(seen.error, self.noise_scale)
        precision = mask.astype(own.dtype)
        precision = precision if white is None else precision / white

        def slots(array: Array, fill: float = 0.0) -> Array:
            return _picked(jnp.concatenate([array, jnp.full_like(own, fill)], axis=1), order)

        chain = chain.given(slots(jnp.where(mask, y, 0.0)), slots(precision))
        if seen.limits is None:
            return chain
        censored = seen.mask & seen.limits.censored
        bounds = _bounds(seen.limits, censored, loc, self.noise_scale)
        lower, upper = (slots(x, fill) for x, fill in zip(bounds, FILL, strict=True))
        censored = slots(censored.astype(own.dtype)) > 0
        white = jnp.ones_like(y) if white is None else white
        found = chain.between(lower, upper, censored, slots(white, 1.0))
        return chain.given(found.y, found.precision)


class SerialNormal(dist.Distribution):
    """loc + noise_scale (r + Normal(0, 1)), with r a chain at the times of the entries and others.

    A distribution over whole trajectories, of shape (trajectory, time, feature). `log_prob` has one
    term per entry: its log density given the entries before it that `mask` does not hide. They sum
    to the log density of all. Mean and variance, and `of_each`, are those of each entry alone.

    An entry with limits is given all entries without, and those with limits before it. With one of
    them, the sum is exact; with more, it is that of `GaussMarkov.between`.

    Args:
        loc: shape (trajectory, time, feature).
        noise_scale: one number or one per feature.
        chain: of slots in the order of their times.
        order: the slots by their time, shape (trajectory, slot), of which those of `loc` come last.
        mask: True where an entry is observed.
        white: the variance of the white noise of each entry, in units of noise_scale^2. Default: 1.
        limits: of the entries, NaN where a value is known. Default: all are known.
    """

    pytree_data_fields = ("loc", "noise_scale", "chain", "order", "known", "white", "limits")

    def __init__(
        self,
        loc: Array,
        noise_scale: Array,
        chain: GaussMarkov,
        order: Array,
        mask: Array,
        *,
        white: Array | None = None,
        limits: Limits | None = None,
        validate_args: bool | None = None,
    ):
        self.loc, self.noise_scale, self.chain = loc, noise_scale, chain
        self.order, self.known, self.white, self.limits = order, mask, white, limits
        super().__init__(jnp.shape(loc), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    @property
    def mean(self) -> Array:
        return self.loc + self.noise_scale * self._own(self.chain.moments()[0])

    @property
    def variance(self) -> Array:
        white = 1 if self.white is None else self.white
        return jnp.square(self.noise_scale) * (white + self._own(self.chain.moments()[1]))

    @property
    def of_each(self) -> dist.Distribution:
        """The distribution of each entry alone."""
        mean, variance = map(self._own, self.chain.moments())
        white = 1 if self.white is None else self.white
        return self._normal(mean, white + variance)

    def measured(self, error: Array | None, limits: Limits | None) -> SerialNormal:
        """The same with standard errors and limits of the entries."""
        parts = (self.loc, self.noise_scale, self.chain, self.order, self.known)
        return SerialNormal(*parts, white=_white(error, self.noise_scale), limits=limits)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        r_key, e_key = jax.random.split(jnp.asarray(key))
        r = self._own(self.chain.sample(r_key, sample_shape))
        e = jax.random.normal(e_key, r.shape, r.dtype)
        e = e if self.white is None else e * jnp.sqrt(self.white)
        return self.loc + self.noise_scale * (r + e)

    def sample_signal(self, key: Array) -> Array:
        """A draw without white noise, loc + noise_scale r: r at all times together."""
        return self.loc + self.noise_scale * self._own(self.chain.sample(key))

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        plain = self.known if self.limits is None else self.known & ~self.limits.censored
        y = jnp.where(plain, (jnp.asarray(value) - self.loc) / self.noise_scale, 0.0)
        y, plain = self._slots(y), self._slots(jnp.broadcast_to(plain, y.shape))
        white = None if self.white is None else self._slots(self.white, 1.0)
        moments = map(self._own, self.chain.one_step_ahead(y, plain, white))
        if self.limits is None:
            return jnp.asarray(self._normal(*moments).log_prob(value))
        mean, variance = moments
        # First all entries without limits, then those with: of one of these, nothing is left out.
        precision = plain if white is None else plain / white
        chain = GaussMarkov(*(jnp.broadcast_to(a, y.shape) for a in self.chain))
        chain = chain.given(y, precision.astype(y.dtype))
        censored = self.known & self.limits.censored
        bounds = _bounds(self.limits, censored, self.loc, self.noise_scale)
        lower, upper = (self._slots(x, fill) for x, fill in zip(bounds, FILL, strict=True))
        white = jnp.ones_like(lower) if white is None else white
        arrays = (
            jnp.broadcast_to(x, y.shape) for x in (lower, upper, self._slots(censored), white)
        )
        found = chain.between(*arrays)
        mean = jnp.where(censored, self._own(found.mean), mean)
        variance = jnp.where(censored, self._own(found.variance), variance)
        return jnp.asarray(self._normal(mean, variance).log_prob(value))

    def _normal(self, mean: Array, variance: Array) -> dist.Distribution:
        """Entries whose residuals and noise have these moments, in units of the noise."""
        loc = self.loc + self.noise_scale * mean
        normal = dist.Normal(loc, self.noise_scale * jnp.sqrt(variance))
        return normal if self.limits is None else Censored(normal, self.limits)

    def _slots(self, entries: Array, fill: float = 0) -> Array:
        """Entries of x at their slots, and `fill` at all others."""
        others = [(0, 0)] * (entries.ndim - 2)
        others += [(self.order.shape[1] - entries.shape[-2], 0), (0, 0)]
        padded = jnp.pad(entries, others, constant_values=fill)
        return _picked(padded, self.order)

    def _own(self, slots: Array) -> Array:
        """The entries of x, of an array over all slots."""
        place = jnp.argsort(self.order, axis=1)[:, -self.loc.shape[1] :]
        return _picked(slots, place)


def _picked(array: Array, slots: Array) -> Array:
    """The given slots of each trajectory."""
    slots = jnp.broadcast_to(slots[..., None], (*array.shape[:-3], *slots.shape, 1))
    return jnp.take_along_axis(array, slots, axis=-2)


FILL = (-1.0, 1.0)
"""Bounds of entries without limits: any finite ones."""


def _white(error: Array | None, noise_scale: Array) -> Array | None:
    """The variance of noise and error together, in units of the noise; None without errors."""
    return None if error is None else 1 + jnp.square(error / noise_scale)


def _bounds(limits: Limits, censored: Array, loc: Array, noise_scale: Array) -> tuple[Array, Array]:
    """The limits of what is left of x without its mean, in units of the noise."""

    lower, upper = (
        # NaN, where there is no limit, has no slope in loc and scale either.
        standardized(jnp.where(censored, end, jnp.inf), loc, noise_scale)
        for end in (limits.lower, limits.upper)
    )
    return jnp.where(censored, lower, FILL[0]), jnp.where(censored, upper, FILL[1])

"""Distributions that NumPyro lacks: on a circle, around a circle, products, and exact counts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln, i0e, log_ndtr, ndtr
from jaxtyping import Array, ArrayLike
from numpyro.distributions import constraints

from np_latentode.parts.supports import Product, circle, split

__all__ = [
    "NegativeBinomial",
    "ProductDistribution",
    "ProjectedCircle",
    "Ring",
    "TriangularNormal",
]

LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


class ProjectedCircle(dist.ProjectedNormal):
    """A normal distribution in the plane, projected onto the unit circle.

    u = v / |v|,  v ~ N(concentration, I),  so that with t = concentration . u
    p(u) = (phi(t) + t Phi(t)) exp(-|concentration x u|^2 / 2) / sqrt(2 pi)

    The density is over arc length (Hernandez-Stumpfhauser et al. 2017, equation 4). If the
    concentration is 0, it is uniform. If that is large, the standard deviation is
    1 / |concentration|.

    NumPyro's own `ProjectedNormal.log_prob` is -inf on the far side of the circle, and its
    gradients are NaN there. This one is finite everywhere.

    Args:
        concentration: shape (*batch, 2).
    """

    support = circle

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        u, concentration = jnp.asarray(value), jnp.asarray(self.concentration)
        t = jnp.sum(concentration * u, axis=-1)
        across = concentration[..., 0] * u[..., 1] - concentration[..., 1] * u[..., 0]
        return _log_ray(t) - 0.5 * across**2 - LOG_ROOT_TWO_PI


def _log_ray(t: Array) -> Array:
    """log(phi(t) + t Phi(t)), the integral of r phi(r - t) over r > 0."""
    # It is phi(t) (1 + t M) with Mills' ratio M = Phi(t) / phi(t). For negative t, the sum cancels,
    # so it is written as a continued fraction, which loses no digits. For large t, M overflows, so
    # the sum is taken without it. Inputs of a branch are kept in its range: a branch that is not
    # selected must be finite, or its gradient would make all gradients NaN.
    low, middle, high = -jnp.minimum(t, -3.0), jnp.clip(t, -3.0, 3.0), jnp.maximum(t, 3.0)
    fraction = low
    for k in range(20, 1, -1):
        fraction = low + k / fraction
    log_low = -0.5 * low**2 - LOG_ROOT_TWO_PI - jnp.log1p(low * fraction)
    log_phi = -0.5 * middle**2 - LOG_ROOT_TWO_PI
    log_middle = log_phi + jnp.log1p(middle * jnp.exp(log_ndtr(middle) - log_phi))
    log_high = jnp.log(high * ndtr(high) + jnp.exp(-0.5 * high**2 - LOG_ROOT_TWO_PI))
    return jnp.where(t < -3.0, log_low, jnp.where(t > 3.0, log_high, log_middle))


class Ring(dist.Distribution):
    """A uniform point on a circle around the origin of the plane, plus Gaussian noise.

    z = radius (cos a, sin a) + scale e,  a uniform,  e ~ N(0, I)
    log p(z) = -log(2 pi scale^2) - (|z|^2 + radius^2) / (2 scale^2) + log I0(|z| radius / scale^2)

    The length |z| has Rice's distribution. With radius 1 and scale 0.7, z is almost N(0, I): the
    mean is the same, and the variance 0.99. With a small scale, z lies close to a circle.

    Args:
        radius, scale: positive numbers.
    """

    pytree_data_fields = ("radius", "scale")

    def __init__(self, radius: Any, scale: Any, *, validate_args: bool | None = None):
        self.radius, self.scale = jnp.asarray(radius), jnp.asarray(scale)
        super().__init__((), (2,), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def has_rsample(self) -> bool:
        return True

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        angle_key, noise_key = jax.random.split(jnp.asarray(key))
        angle = jax.random.uniform(angle_key, sample_shape, maxval=2 * jnp.pi)
        noise = jax.random.normal(noise_key, (*sample_shape, 2))
        return self.radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) + self.scale * noise

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        # The small number keeps the gradient of the root finite at z = 0.
        length = jnp.sqrt(jnp.sum(jnp.asarray(value) ** 2, axis=-1) + 1e-12)
        variance = self.scale**2
        # I0 grows exponentially. i0e leaves that factor out, and the square below includes it, so
        # that neither overflows.
        log_growth = jnp.log(i0e(length * self.radius / variance))
        return (
            log_growth
            - (length - self.radius) ** 2 / (2 * variance)
            - jnp.log(2 * jnp.pi * variance)
        )


class TriangularNormal(dist.MultivariateNormal):
    """z = loc + scale_tril e, e ~ N(0, I), with e kept as a sampling intermediate.

    log q(z) = log N(e; 0, I) - sum_i log scale_tril_ii

    NumPyro's `MultivariateNormal` solves for e again. If scale_tril is almost singular, rounding
    errors in single precision make log q(z) of a draw far too low, and the ELBO far too high.

    Args:
        loc: shape (*batch, d).
        scale_tril: shape (*batch, d, d), lower triangular.
    """

    def __init__(self, loc: Array, scale_tril: Array, *, validate_args: bool | None = None):
        super().__init__(loc, scale_tril=scale_tril, validate_args=validate_args)

    def sample_with_intermediates(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        e = jax.random.normal(jnp.asarray(key), self.shape(sample_shape))
        return jnp.asarray(self.loc) + jnp.einsum("...ij,...j->...i", self.scale_tril, e), [e]

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def log_prob(self, value: ArrayLike, intermediates: list[Array] | None = None) -> Any:
        if not intermediates:
            return super().log_prob(value)
        (e,) = intermediates
        log_scales = jnp.log(jnp.diagonal(jnp.asarray(self.scale_tril), axis1=-2, axis2=-1))
        return jnp.sum(-0.5 * e**2 - log_scales - LOG_ROOT_TWO_PI, axis=-1)


class ProductDistribution(dist.Distribution):
    """Independent vectors, concatenated into one vector.

    p(z) = prod_k p_k(z_k),  z = [z_1, ..., z_K]

    Args:
        *factors: distributions over vectors, with the same batch shape.

    Raises:
        ValueError: if there is no factor, or a factor is not over vectors.
    """

    pytree_data_fields = ("factors",)

    def __init__(self, *factors: dist.Distribution, validate_args: bool | None = None):
        if not factors:
            raise ValueError("factors must hold at least one distribution; got none.")
        for k, factor in enumerate(factors):
            if len(factor.event_shape) != 1:
                raise ValueError(
                    f"factors[{k}] must be a distribution over vectors, with one event axis (as "
                    f"to_event(1) makes it); got event shape {factor.event_shape}."
                )
        self.factors = factors
        batch_shape = jax.lax.broadcast_shapes(*(f.batch_shape for f in factors))
        event_shape = (sum(self.sizes),)
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(f.event_shape[0] for f in self.factors)

    @property
    def support(self) -> constraints.Constraint:
        return Product([f.support for f in self.factors], self.sizes)

    @property
    def has_rsample(self) -> bool:
        return all(f.has_rsample for f in self.factors)

    def sample_with_intermediates(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Any]]:
        keys = jax.random.split(jnp.asarray(key), len(self.factors))
        draws, intermediates = [], []
        for key, factor in zip(keys, self.factors, strict=True):
            draw, between = factor.expand(self.batch_shape).sample_with_intermediates(
                key, sample_shape
            )
            draws.append(draw)
            intermediates.append(between)
        return jnp.concatenate(draws, axis=-1), intermediates

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.sample_with_intermediates(key, sample_shape)[0]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Any:
        between = intermediates or [[]] * len(self.factors)
        pieces = split(jnp.asarray(value), self.sizes)
        terms = (
            # With intermediates of sampling, a flow needs no inversion.
            factor.log_prob(piece, known) if known else factor.log_prob(piece)
            for factor, piece, known in zip(self.factors, pieces, between, strict=True)
        )
        return sum(terms, jnp.zeros(self.batch_shape))


class NegativeBinomial(dist.NegativeBinomial2):
    """Counts with mean m and variance m + m^2 / r, r the concentration; m must be positive.

    log p(x) = log Gamma(x + r) / (Gamma(r) x!) + x log(m / (m + r)) - r log(1 + m / r)

    For large r, NumPyro's own `NegativeBinomial2.log_prob` is a small difference of large numbers,
    which single precision loses. This one goes on to the Poisson distribution.
    """

    def log_prob(self, value: ArrayLike, intermediates: Any = None) -> Array:
        x = jnp.asarray(value, jnp.result_type(float))
        r, rate = jnp.asarray(self.concentration), jnp.asarray(self.rate)
        log_1p = jnp.log1p(1 / rate)  # m / r = 1 / rate
        terms = x * (jnp.log(r / rate) - log_1p) - r * log_1p
        return _log_gamma_ratio(x, r) - gammaln(x + 1) + terms


def _log_gamma_ratio(x: Array, r: Array) -> Array:
    """log Gamma(r + x) / (Gamma(r) r^x), for x >= 0: 0 for large r."""
    # Stirling's series, where the logarithms of Gamma are large. Inputs of a branch are kept in its
    # range, as in `_log_ray`.
    few, many = jnp.minimum(r, 10.0), jnp.maximum(r, 10.0)
    direct = gammaln(few + x) - gammaln(few) - x * jnp.log(few)
    series = (many + x - 0.5) * jnp.log1p(x / many) - x + _stirling(many + x) - _stirling(many)
    return jnp.where(r < 10.0, direct, series)


def _stirling(r: Array) -> Array:
    return (1 - (1 - 2 / (7 * r**2)) / (30 * r**2)) / (12 * r)

"""Bayesian regression on polynomials of time: an encoder, and the posterior that reads it.

x_j(t_k) = mean_j(t_k) + basis_j(t_k) . z0 + e,   e ~ Normal(0, noise_j),   z0 ~ N(0, I)
q(z0 | x) ~ N(0, I) prod_jk N(x_jk | z0)                    (Bishop 2006, equations 3.50 to 3.54)

For a mixed model of polynomials this is the posterior, up to a floor of the noise. For a latent ODE
it is a guide with learned mean, basis and noise, which any number of observations at any times
leads to a posterior: nothing has to be learned of how observations add up. It is the recognition
model with conjugate potentials of Johnson et al. 2016, with linear ones.

With static covariates s, the mean curve is mean_j(t) + effects_j(t) . s. With inputs, what
`Inputs.read` says of them at t_k is added to it: slopes_j . u, and a network of u. If what events
give decays, exp(-decay t) stands beside the powers of time.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Bool, Float

from np_latentode.data.scaling import SPAN
from np_latentode.parts.distributions import TriangularNormal
from np_latentode.parts.modules import free, mlp

__all__ = ["RegressionEncoder", "RegressionNormal"]

FLOOR = 0.01
"""The least noise of the regression, in scaled units."""


class RegressionEncoder(nnx.Module):
    """The posterior of a regression on polynomials, as features of a `RegressionNormal`.

    precision = I + sum_jk basis_j(t_k) basis_j(t_k)^T / noise_j^2
    mean      = precision^-1 sum_jk basis_j(t_k) (x_jk - mean_j(t_k)) / noise_j^2

    The polynomials are of time in units of the span of the training data: `basis_j(t)` is the sum
    of `basis[p, j] t^p`. With a decay, the last p stands for exp(-decay t). The features are the
    mean, and U, row by row, where U U^T = precision is upper triangular. Those of an empty context
    are the prior's: 0 and the identity.

    Args:
        basis: its coefficients at the start of training, shape (power, feature, latent).
        mean: the same of the mean curve, shape (power, feature).
        log_noise: the logarithm of the noise's standard deviation at the start, in scaled units,
            shape (feature,).
        effects: the coefficients of static covariates in the mean curve at the start, shape
            (power, feature, entry). Default: none are read.
        slopes: of the mean curve in the entries of inputs at each time, shape (feature, reading),
            beside a network of them that starts at 0. Default: none are read.
        event_decay: the rate at which what events give decays, per unit of scaled time. Default: 0.
        width: the units of the hidden layer of this network.
        rngs: the random keys that initialise it; needed with inputs only.

    Raises:
        ValueError: if the shapes do not fit, or a number is not finite.
    """

    def __init__(
        self,
        basis: Float[ArrayLike, "power feature latent"],
        mean: Float[ArrayLike, "power feature"],
        log_noise: Float[ArrayLike, " feature"],
        effects: Float[ArrayLike, "power feature entry"] | None = None,
        *,
        slopes: Float[ArrayLike, "feature reading"] | None = None,
        event_decay: float = 0.0,
        width: int = 32,
        rngs: nnx.Rngs | None = None,
    ):
        self.basis, self.mean = free("basis", basis, 3), free("mean", mean, 2)
        self.log_noise = free("log_noise", log_noise, 1)
        powers, features, _ = self.basis.shape
        if self.mean.shape != (powers, features) or self.log_noise.shape != (features,):
            raise ValueError(
                "basis, mean and log_noise must have shapes (power, feature, latent), (power, "
                f"feature) and (feature,); got {self.basis.shape}, {self.mean.shape} and "
                f"{self.log_noise.shape}."
            )
        self.slopes = None if slopes is None else free("slopes", slopes, 2)
        self.num_inputs = 0 if self.slopes is None else self.slopes.shape[1]
        self.event_decay, self.width = event_decay, width
        sizes = (self.num_inputs, width, features)
        network = None
        if self.slopes is not None:
            network = mlp(sizes, from_zero=True, rngs=rngs or nnx.Rngs(0))
            if self.slopes.shape[0] != features:
                raise ValueError(
                    f"slopes must have a row for each of {features} features; got "
                    f"{self.slopes.shape}."
                )
        self.given = network
        self.effects = None if effects is None else free("effects", effects, 3)
        self.num_covariates = 0 if self.effects is None else self.effects.shape[-1]
        if self.effects is not None and self.effects.shape[:2] != (powers, features):
            raise ValueError(
                f"effects must have shape (power, feature, entry), with {powers} powers and "
                f"{features} features; got {self.effects.shape}."
            )

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
        *inputs_and_s: Array,
    ) -> Float[Array, "trajectory hidden"]:
        basis, noise = self.basis[...], jnp.exp(self.log_noise[...])
        # A floor, so that single precision can invert the sum of a thousand terms.
        weight = 1 / (noise**2 + FLOOR**2)
        powers, _, latent = basis.shape
        known = mask.astype(values.dtype)
        # Times without an observation may be far before 0, where exp(-decay t) is infinite.
        times = jnp.where(mask.any(-1), times, 0.0)
        powers = powers - 1 if self.event_decay else powers
        t = (times[..., None] / SPAN) ** jnp.arange(powers)
        if self.event_decay:
            t = jnp.concatenate([t, jnp.exp(-self.event_decay * times)[..., None]], axis=-1)
        curve = t @ self.mean[...]
        if self.effects is not None:
            curve += jnp.einsum("nkp,pfs,ns->nkf", t, self.effects[...], inputs_and_s[-1])
        if self.slopes is not None and self.given is not None:
            curve += inputs_and_s[0] @ self.slopes[...].T + self.given(inputs_and_s[0])
        deviation = known * (values - curve)
        # Summed over times first: a matrix of powers for each feature is small.
        moments = jnp.einsum("nkf,nkp,nkq->nfpq", known, t, t)
        products = jnp.einsum("nkf,nkp->nfp", deviation, t)
        precision = jnp.einsum("nfpq,f,pfa,qfb->nab", moments, weight, basis, basis)
        upper = _upper(precision + jnp.eye(latent, dtype=precision.dtype))
        right = jnp.einsum("nfp,f,pfa->na", products, weight, basis)[..., None]
        mean = solve_triangular(upper, solve_triangular(upper, right), trans=1)[..., 0]
        return jnp.concatenate([mean, upper.reshape(len(mean), -1)], axis=-1)


def _upper(precision: Float[Array, "*batch d d"]) -> Float[Array, "*batch d d"]:
    """The upper triangle U with precision = U U^T, so that the covariance is that of U^-T e."""
    flipped = jnp.flip(precision, (-2, -1))
    return jnp.flip(jnp.linalg.cholesky(flipped), (-2, -1))


class RegressionNormal(nnx.Module):
    """z0 | x ~ MultivariateNormal: that of a `RegressionEncoder`, with a learned correction.

    z0 = mean + U^-T (shift(h) + exp(tanh(s(h)) / 2) e),   precision = U U^T,   e ~ N(0, I)

    The correction takes account of what the regression does not know: residual networks, and noise
    that is not white. It starts at 0.

    Args:
        latent_dim: the dimension of z0.
        width: the units of the hidden layer of the correction.
    """

    def __init__(self, latent_dim: int, *, width: int = 32, rngs: nnx.Rngs):
        self.latent_dim, self.width = latent_dim, width
        self.correction = mlp((2 * latent_dim, width, 2 * latent_dim), from_zero=True, rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        d = self.latent_dim
        mean, upper = features[..., :d], features[..., d:].reshape(*features.shape[:-1], d, d)
        unit = jnp.broadcast_to(jnp.eye(d, dtype=features.dtype), upper.shape)
        lower = solve_triangular(upper, unit, trans=1)
        log_sd = 0.5 * jnp.log(jnp.sum(lower**2, axis=-1))
        found = self.correction(jnp.concatenate([mean, log_sd], axis=-1))
        shift, log_scale = jnp.split(found, 2, axis=-1)
        mean = mean + (lower @ shift[..., None])[..., 0]
        return TriangularNormal(mean, lower * jnp.exp(0.5 * jnp.tanh(log_scale))[..., None, :])

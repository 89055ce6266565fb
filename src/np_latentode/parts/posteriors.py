"""Posteriors q(z0 | x): distributions over z0, given an encoder's features.

A posterior is an nnx module. It takes an encoder's features h, one row per trajectory, and returns
a NumPyro distribution over vectors of `latent_dim` numbers, one per trajectory:

    class MyPosterior(nnx.Module):
        def __init__(self, feature_dim, latent_dim, *, rngs):
            self.loc = nnx.Linear(feature_dim, latent_dim, rngs=rngs)

        def __call__(self, features) -> dist.Distribution:      # q(z0 | h)
            return dist.Laplace(self.loc(features), 0.1).to_event(1)

The ELBO draws from the posterior and scores the draw. So sampling should be the fast direction, and
gradients must flow through the draw. The posterior must have the support of the prior.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float

from np_latentode.parts.distributions import ProductDistribution, ProjectedCircle, TriangularNormal
from np_latentode.parts.flows import FlowjaxParameters, inverse_autoregressive
from np_latentode.parts.modules import check_factors, linear, mlp

__all__ = [
    "CirclePosterior",
    "DiagonalNormal",
    "FlowPosterior",
    "FlowjaxPosterior",
    "FullRankNormal",
    "ProductPosterior",
    "on_support",
]


class DiagonalNormal(nnx.Module):
    """z0 | x ~ Normal(loc(h), scale(h)), independent in each dimension.

    Args:
        feature_dim: the dimension of the encoder's features h.
        latent_dim: the dimension of z0.
        width: the units of the hidden layer between h and loc, scale.
    """

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        *,
        width: int = 40,
        rngs: nnx.Rngs,
    ):
        self.feature_dim, self.latent_dim, self.width = feature_dim, latent_dim, width
        self.head = mlp((feature_dim, width, 2 * latent_dim), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        loc, raw_scale = jnp.split(self.head(features), 2, axis=-1)
        # The scale starts at about 0.7. Such wide posteriors of similar trajectories overlap, so
        # that a circle of trajectories is learned as a circle. With narrow ones, it is learned with
        # a gap, which stays. The floor keeps the density finite if softplus underflows.
        return dist.Normal(loc, jax.nn.softplus(raw_scale) + 1e-4).to_event(1)


class FullRankNormal(nnx.Module):
    """z0 | x ~ MultivariateNormal(loc(h), L(h) L(h)^T) with L lower triangular.

    L_ij = scale_i c_ij, where row i of c is the unit vector (a_i1, ..., a_i,i-1, 1) / norm. So
    scale_i is the standard deviation of z0_i.

    Args:
        feature_dim, latent_dim, width: as in `DiagonalNormal`.
    """

    def __init__(self, feature_dim: int, latent_dim: int, *, width: int = 40, rngs: nnx.Rngs):
        self.feature_dim, self.latent_dim, self.width = feature_dim, latent_dim, width
        below = latent_dim * (latent_dim - 1) // 2
        self.head = mlp((feature_dim, width, 2 * latent_dim + below), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        d = self.latent_dim
        loc, raw_scale, below = jnp.split(self.head(features), [d, 2 * d], axis=-1)
        # The scale starts at about 0.7 and has a floor, as in DiagonalNormal. Correlations are
        # bounded so that L can be inverted in single precision; its condition number grows with
        # each row.
        bound = 1e4 ** (1 / max(d - 1, 2))
        rows = jnp.zeros((*below.shape[:-1], d, d), below.dtype)
        rows = rows.at[..., *jnp.tril_indices(d, -1)].set(bound * jnp.tanh(below / bound))
        rows = rows + jnp.eye(d, dtype=below.dtype)
        unit = rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)
        scale = jax.nn.softplus(raw_scale) + 1e-4
        return TriangularNormal(loc, scale[..., None] * unit)


class FlowPosterior(nnx.Module):
    """z0 | x = f_h(e), e ~ Normal(loc(h), scale(h)), f_h NumPyro's inverse autoregressive flow.

    log q(z0 | x) = log N(e; loc, scale^2) - log |det df_h/de|     (Kingma et al. 2016, equation 10)

    Every layer of f_h takes a projection of h as an additional input. Sampling takes one pass of
    the networks, and the density of a draw comes with it. The density of other points takes
    `latent_dim` passes. f_h starts close to the identity.

    Args:
        feature_dim, latent_dim: as in `DiagonalNormal`.
        num_layers: the number of autoregressive networks; each reverses the order of dimensions.
        width: the units of the hidden layer of each network, and of that before loc and scale.

    Raises:
        ValueError: if a number is not a positive integer.
    """

    def __init__(
        self,
        feature_dim: int,
        latent_dim: int,
        *,
        num_layers: int = 2,
        width: int = 40,
        rngs: nnx.Rngs,
    ):
        self.feature_dim, self.latent_dim = feature_dim, latent_dim
        self.num_layers, self.width = num_layers, width
        self.base = DiagonalNormal(feature_dim, latent_dim, width=width, rngs=rngs)
        self.context = linear(feature_dim, latent_dim, rngs=rngs)
        self.layers = inverse_autoregressive(
            latent_dim, num_layers, width, context_dim=latent_dim, rngs=rngs
        )

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        context = jnp.tanh(self.context(features))
        transforms = [layer(context) for layer in self.layers]
        return dist.TransformedDistribution(self.base(features), transforms)


class CirclePosterior(nnx.Module):
    """u | x ~ ProjectedNormal(exp(s(h)) v(h)) on the unit circle, two numbers of z0.

    The exponential lets the concentration range from 0.5, which is almost uniform, to several
    hundred, for a phase that is known to a hundredth of a turn.

    Args:
        feature_dim, width: as in `DiagonalNormal`.
    """

    def __init__(self, feature_dim: int, *, width: int = 40, rngs: nnx.Rngs):
        self.feature_dim, self.width = feature_dim, width
        self.head = mlp((feature_dim, width, 3), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        direction, log_size = jnp.split(self.head(features), [2], axis=-1)
        # At higher concentrations, rounding errors in single precision make the density of a draw
        # wrong, and the ELBO would grow without bound.
        log_size = jnp.minimum(
            log_size, jnp.log(1e4 / (1 + jnp.abs(direction).max(-1, keepdims=True)))
        )
        return ProjectedCircle(jnp.exp(log_size) * direction)


class ProductPosterior(nnx.Module):
    """z0 = [z_1, ..., z_K], independent given x, each with its own posterior.

    Args:
        *factors: posteriors (nnx modules), which all get the same features.

    Raises:
        ValueError: if there is no factor, or a factor is not a callable nnx module.
    """

    def __init__(self, *factors: nnx.Module):
        check_factors(factors)
        self.factors = nnx.List(factors)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        return ProductDistribution(*(factor(features) for factor in self.factors))


class FlowjaxPosterior(nnx.Module):
    """z0 | x ~ a flowjax distribution conditional on the encoder's features.

    Gradients flow through the condition, so that the encoder is trained. flowjax's own conversion
    to NumPyro stops them.

    Args:
        feature_dim: the dimension of the encoder's features.
        distribution: any flowjax distribution over vectors with `cond_shape` (feature_dim,). Make
            sampling its fast direction: `masked_autoregressive_flow(..., invert=False)`.

    Raises:
        ValueError: if the distribution is of another kind.
        ImportError: if flowjax is missing.
    """

    def __init__(self, feature_dim: int, distribution: Any):
        self.flow = FlowjaxParameters(distribution, cond_dim=feature_dim)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        return self.flow.distribution(features)


def on_support(support: str, feature_dim: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The default posterior on a support, such as `S^1 x R^2`, as `describe_support` names it.

    Raises:
        ValueError: if the support has other parts than circles and Euclidean spaces.
    """
    factors = []
    for part in support.split(" x "):
        if part == "S^1":
            factors.append(CirclePosterior(feature_dim, rngs=rngs))
        elif part.startswith("R^"):
            factors.append(DiagonalNormal(feature_dim, int(part[2:]), rngs=rngs))
        else:
            raise ValueError(
                "posterior must be given, as its default is for circles and Euclidean spaces only; "
                f"got a prior on {support}."
            )
    return factors[0] if len(factors) == 1 else ProductPosterior(*factors)

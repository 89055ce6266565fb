"""q(z0 | x): distributions over z0, given an encoder's features.

A posterior is an nnx module that takes an encoder's features h, one row a trajectory, and returns a
NumPyro distribution over vectors of `latent_dim` numbers, one per trajectory:

    class MyPosterior(nnx.Module):
        def __init__(self, feature_dim, latent_dim, *, rngs):
            self.loc = nnx.Linear(feature_dim, latent_dim, rngs=rngs)

        def __call__(self, features) -> dist.Distribution:      # q(z0 | h)
            return dist.Laplace(self.loc(features), 0.1).to_event(1)

The ELBO draws from it and scores the draw: sampling should be the fast direction, with
gradients through the draw. It must live where the prior lives.
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
from np_latentode.parts.modules import check_factors, mlp

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
        width: units of the hidden layer between h and the parameters.
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
        # Wide at first, about 0.7: codes blur into their neighbours, so that a circle of
        # trajectories is learned as a circle. Narrow at first, it comes out torn, and stays so.
        # The floor keeps the density finite where the scale underflows.
        return dist.Normal(loc, jax.nn.softplus(raw_scale) + 1e-4).to_event(1)


class FullRankNormal(nnx.Module):
    """z0 | x ~ MultivariateNormal(loc(h), L(h) L(h)^T) with L lower triangular.

    L_ij = scale_i c_ij, the rows of c being unit vectors (a_i1, ..., a_i,i-1, 1) / norm, so that
    scale_i is the standard deviation of z0_i.

    Args:
        feature_dim, latent_dim, width: as of `DiagonalNormal`.
    """

    def __init__(self, feature_dim: int, latent_dim: int, *, width: int = 40, rngs: nnx.Rngs):
        self.feature_dim, self.latent_dim, self.width = feature_dim, latent_dim, width
        below = latent_dim * (latent_dim - 1) // 2
        self.head = mlp((feature_dim, width, 2 * latent_dim + below), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        d = self.latent_dim
        loc, raw_scale, below = jnp.split(self.head(features), [d, 2 * d], axis=-1)
        # As wide at first as DiagonalNormal, and kept off zero like it. Correlations are bounded
        # so that single precision can invert L, whose condition grows with each row.
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

    Every layer of f_h reads a projection of h besides what the layer before made. Sampling is one
    pass of the networks and remembers what scoring its draw needs; other points take `latent_dim`
    passes. At first f_h is close to the identity.

    Args:
        feature_dim, latent_dim: as of `DiagonalNormal`.
        num_layers: how many autoregressive networks, each in the reverse order of the last.
        width: units of the one hidden layer of each, and of the one before loc and scale.
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
        self.context = nnx.Linear(feature_dim, latent_dim, rngs=rngs)
        self.layers = inverse_autoregressive(
            latent_dim, num_layers, width, context_dim=latent_dim, rngs=rngs
        )

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        context = jnp.tanh(self.context(features))
        transforms = [layer(context) for layer in self.layers]
        return dist.TransformedDistribution(self.base(features), transforms)


class CirclePosterior(nnx.Module):
    """u | x ~ ProjectedNormal(exp(s(h)) v(h)) on the unit circle, two numbers of z0.

    The exponential takes the concentration from 0.5, almost uniform, to the hundreds that a
    phase known to a hundredth of a turn needs.

    Args:
        feature_dim, width: as of `DiagonalNormal`.
    """

    def __init__(self, feature_dim: int, *, width: int = 40, rngs: nnx.Rngs):
        self.feature_dim, self.width = feature_dim, width
        self.head = mlp((feature_dim, width, 3), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        direction, log_size = jnp.split(self.head(features), [2], axis=-1)
        # Sharper than this, the density of a draw is lost in single precision, which an ELBO
        # would take for certainty without end.
        log_size = jnp.minimum(
            log_size, jnp.log(1e4 / (1 + jnp.abs(direction).max(-1, keepdims=True)))
        )
        return ProjectedCircle(jnp.exp(log_size) * direction)


class ProductPosterior(nnx.Module):
    """z0 = [z_1, ..., z_K], independent given x, each with a posterior of its own.

    Args:
        *factors: posteriors, nnx modules, each reading the same features.

    Raises:
        ValueError: if there is none, or a factor is no posterior.
    """

    def __init__(self, *factors: nnx.Module):
        check_factors(factors)
        self.factors = nnx.List(factors)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        return ProductDistribution(*(factor(features) for factor in self.factors))


class FlowjaxPosterior(nnx.Module):
    """z0 | x ~ a flowjax distribution conditional on the encoder's features.

    flowjax's own bridge to NumPyro stops the gradient of the condition, so that an encoder behind
    it never learns; this one does not.

    Args:
        distribution: any flowjax distribution over vectors with `cond_shape` (feature_dim,). Make
            sampling its fast direction: `masked_autoregressive_flow(..., invert=False)`.

    Raises:
        ValueError: if it is something else.
    """

    def __init__(self, feature_dim: int, distribution: Any):
        self.flow = FlowjaxParameters(distribution, cond_dim=feature_dim)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        return self.flow.distribution(features)


def on_support(support: str, feature_dim: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """The default posterior on a support as `describe_support` names it, `S^1 x R^2`.

    Raises:
        ValueError: if it has other parts than circles and Euclidean spaces.
    """
    factors = []
    for part in support.split(" x "):
        if part == "S^1":
            factors.append(CirclePosterior(feature_dim, rngs=rngs))
        elif part.startswith("R^"):
            factors.append(DiagonalNormal(feature_dim, int(part[2:]), rngs=rngs))
        else:
            raise ValueError(
                f"posterior must be given where the prior lives on {support}, as its default knows "
                "circles and Euclidean spaces only."
            )
    return factors[0] if len(factors) == 1 else ProductPosterior(*factors)

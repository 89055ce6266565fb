"""q(z0 | x): families of distributions over z0, amortized over an encoder's features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array, Float

from np_latentode.modules import mlp

__all__ = ["DiagonalNormal"]


class DiagonalNormal(nnx.Module):
    """z0 | x ~ Normal(loc(h), scale(h)), independent in each dimension.

    A posterior is an nnx module that takes an encoder's features and returns a NumPyro
    distribution over vectors of `latent_dim` numbers, one a trajectory.

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
        self.latent_dim = latent_dim
        self.head = mlp((feature_dim, width, 2 * latent_dim), rngs=rngs)

    def __call__(self, features: Float[Array, "trajectory hidden"]) -> dist.Distribution:
        loc, raw_scale = jnp.split(self.head(features), 2, axis=-1)
        # Wide at first, about 0.7: codes blur into their neighbours, so that a circle of
        # trajectories is learned as a circle. Narrow at first, it comes out torn, and stays so.
        # The floor keeps the density finite where the scale underflows.
        return dist.Normal(loc, jax.nn.softplus(raw_scale) + 1e-4).to_event(1)

"""The decoder: from the latent state to the mean of the observations."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from np_latentode.parts.modules import mlp

__all__ = ["MLPDecoder"]


class MLPDecoder(nnx.Module):
    """E[x | z] = MLP(z), in scaled units.

    Args:
        latent_dim: the dimension of z.
        num_features: the dimension of x.
        width, depth: the units per hidden layer, and the number of hidden layers.
    """

    def __init__(
        self, latent_dim: int, num_features: int, *, width: int = 80, depth: int = 1, rngs: nnx.Rngs
    ):
        self.latent_dim, self.num_features = latent_dim, num_features
        self.width, self.depth = width, depth
        self.mean = mlp((latent_dim, *(width,) * depth, num_features), rngs=rngs)

    def __call__(
        self, z: Float[Array, "trajectory time latent"]
    ) -> Float[Array, "trajectory time feature"]:
        return self.mean(z)

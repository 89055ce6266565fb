"""dz/dt: vector fields as flax nnx modules `(t, z) -> dz/dt`."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float

from np_latentode.modules import mlp

__all__ = ["MLPDynamics"]


class MLPDynamics(nnx.Module):
    """An autonomous field, dz/dt = MLP(z).

    Args:
        latent_dim: the dimension of z.
        width, depth: units a hidden layer, and how many of them.
    """

    def __init__(self, latent_dim: int, *, width: int = 64, depth: int = 1, rngs: nnx.Rngs):
        self.field = mlp((latent_dim, *(width,) * depth, latent_dim), rngs=rngs)

    def __call__(
        self, t: Float[Array, ""], z: Float[Array, "trajectory latent"]
    ) -> Float[Array, "trajectory latent"]:
        return self.field(z)

"""The decoder: from the latent state to the mean of the observations."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from np_latentode.parts.modules import check_residual, free, mlp

__all__ = ["LinearDecoder", "MLPDecoder"]


class MLPDecoder(nnx.Module):
    """E[x | z] = MLP(z), in scaled units.

    Args:
        latent_dim: the dimension of z.
        num_features: the dimension of x.
        width, depth: the units per hidden layer, and the number of hidden layers.
        from_zero: whether it starts at 0 everywhere, as the residual of a `LinearDecoder`.
    """

    def __init__(
        self,
        latent_dim: int,
        num_features: int,
        *,
        width: int = 80,
        depth: int = 1,
        from_zero: bool = False,
        rngs: nnx.Rngs,
    ):
        self.latent_dim, self.num_features = latent_dim, num_features
        self.width, self.depth, self.from_zero = width, depth, from_zero
        sizes = (latent_dim, *(width,) * depth, num_features)
        self.mean = mlp(sizes, from_zero=from_zero, rngs=rngs)

    def __call__(
        self, z: Float[Array, "trajectory time latent"]
    ) -> Float[Array, "trajectory time feature"]:
        return self.mean(z)


class LinearDecoder(nnx.Module):
    """E[x | z] = W z + b + residual(z), in scaled units.

    Args:
        weight: W at the start of training, shape (feature, latent).
        bias: b at the start, shape (feature,).
        residual: a decoder of its own, an nnx module, such as
            `MLPDecoder(latent_dim, num_features, from_zero=True)`. Default: none.

    Raises:
        ValueError: if the shapes do not fit, or the residual is no module.
    """

    def __init__(
        self,
        weight: Float[ArrayLike, "feature latent"],
        bias: Float[ArrayLike, " feature"],
        residual: nnx.Module | None = None,
    ):
        self.weight, self.bias = free("weight", weight, 2), free("bias", bias, 1)
        if self.weight.shape[:1] != self.bias.shape:
            raise ValueError(
                "weight must have a row for each entry of the bias; got shapes "
                f"{self.weight.shape} and {self.bias.shape}."
            )
        self.residual = check_residual("decoder", residual)

    def __call__(
        self, z: Float[Array, "trajectory time latent"]
    ) -> Float[Array, "trajectory time feature"]:
        mean = z @ self.weight[...].T + self.bias[...]
        return mean if self.residual is None else mean + self.residual(z)

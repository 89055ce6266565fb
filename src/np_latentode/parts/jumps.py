"""Jumps: how events, such as doses, move the latent state.

z(t+) = z(t) + jump(amounts given at t)

A jump is an nnx module. It takes the amounts of all events, shape (trajectory, event), in scaled
units, and returns the shape of z. It is not asked where nothing is given.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from np_latentode.parts.modules import free

__all__ = ["LinearJump"]


class LinearJump(nnx.Module):
    """z(t+) = z(t) + G amounts.

    Twice the amount moves the state twice as far, and two events at one time add up. Under a
    linear field, this is the bolus dose of compartment models.

    Args:
        weight: G at the start of training, shape (latent, event).

    Raises:
        ValueError: if it is not a finite matrix.
    """

    def __init__(self, weight: Float[ArrayLike, "latent event"]):
        self.weight = free("weight", weight, 2)

    @classmethod
    def zeros(cls, num_events: int, latent_dim: int) -> LinearJump:
        """The jump that starts at 0."""
        return cls(jnp.zeros((latent_dim, num_events)))

    def __call__(
        self, amounts: Float[Array, "trajectory event"]
    ) -> Float[Array, "trajectory latent"]:
        return amounts @ self.weight[...].T

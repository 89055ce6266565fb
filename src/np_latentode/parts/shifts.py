"""Shifts: how static covariates move the initial latent state.

z(t0) = z0 + shift(s),   z0 ~ prior

So p(z(t0) | s) is the prior, moved by what s says. z0 is what s does not say: its prior stays the
same for all trajectories, whatever the prior is. A shift is an nnx module. It takes s, shape
(trajectory, entry), and returns the shape of z0:

    class MLPShift(nnx.Module):
        def __init__(self, num_covariates, latent_dim, *, rngs):
            self.num_covariates = num_covariates
            self.layer = nnx.Linear(num_covariates, latent_dim, rngs=rngs)

        def __call__(self, s):
            return jnp.tanh(self.layer(s))

A part that reads s has the attribute `num_covariates`, the number of entries of s: a shift always,
dynamics and encoders that take s as their last argument.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from np_latentode.parts.modules import free

__all__ = ["LinearShift"]


class LinearShift(nnx.Module):
    """z(t0) = z0 + W s.

    Under a linear field and a linear decoder, W has the fixed effects of a mixed model: those of
    covariates on level, slope and so on.

    Args:
        weight: W at the start of training, shape (latent, entry).

    Raises:
        ValueError: if it is not a finite matrix.
    """

    def __init__(self, weight: Float[ArrayLike, "latent entry"]):
        self.weight = free("weight", weight, 2)

    @classmethod
    def zeros(cls, num_covariates: int, latent_dim: int) -> LinearShift:
        """The shift that starts at 0."""
        return cls(jnp.zeros((latent_dim, num_covariates)))

    @property
    def num_covariates(self) -> int:
        """The number of entries of s."""
        return self.weight.shape[1]

    def __call__(self, s: Float[Array, "trajectory entry"]) -> Float[Array, "trajectory latent"]:
        return s @ self.weight[...].T

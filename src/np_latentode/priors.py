"""p(z0): what is believed of the latent state before anything is observed."""

from __future__ import annotations

import numpyro.distributions as dist
from flax import nnx

__all__ = ["StandardNormal"]


class StandardNormal(nnx.Module):
    """z0 ~ N(0, I).

    A prior is an nnx module that takes nothing and returns a NumPyro distribution over vectors of
    `latent_dim` numbers.

    Args:
        latent_dim: the dimension of z0.
    """

    def __init__(self, latent_dim: int):
        self.latent_dim = latent_dim

    def __call__(self) -> dist.Distribution:
        return dist.Normal(0.0, 1.0).expand([self.latent_dim]).to_event(1)

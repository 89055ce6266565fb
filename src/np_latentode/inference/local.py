"""Local posteriors: a normal of its own for each trajectory, as a NumPyro guide."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.plate import trajectory_plate

__all__ = ["LocalNormals"]


class LocalNormals:
    """z0_i ~ T(loc_i + scale_tril_i Normal(m_i, S_i S_i^T)): a guide without an encoder.

    T maps NumPyro's unconstrained space to the prior's support. SVI moves `local_m` from 0 and
    `local_s` from the identity, so that its steps are in units of the first normals.

    Args:
        loc, scale_tril: the first normals, shape (trajectory, latent) and (trajectory, latent,
            latent).
        to_support: T.
    """

    def __init__(self, loc: Array, scale_tril: Array, to_support: Transform):
        self.loc, self.scale_tril, self.to_support = loc, scale_tril, to_support

    def __call__(
        self, context: Trajectories, target: Any = None, *, batch_size: int | None = None
    ) -> None:
        m = jnp.asarray(numpyro.param("local_m", jnp.zeros_like(self.loc)))
        identity = jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), self.scale_tril.shape)
        lower = constraints.softplus_lower_cholesky
        s = jnp.asarray(numpyro.param("local_s", identity, constraint=lower))
        mean, tril = self.moments(m, s)
        with trajectory_plate(context, batch_size):
            mean = jnp.asarray(numpyro.subsample(mean, event_dim=1))
            tril = jnp.asarray(numpyro.subsample(tril, event_dim=2))
            numpyro.sample("z0", self.pushed(mean, tril))

    def moments(self, m: Array, s: Array) -> tuple[Array, Array]:
        """Means and Cholesky factors over unconstrained z0."""
        return self.loc + jnp.einsum("nij,nj->ni", self.scale_tril, m), self.scale_tril @ s

    def of(self, params: dict[str, Any]) -> tuple[Array, Array]:
        """The moments at the parameters that SVI returns."""
        return self.moments(params["local_m"], params["local_s"])

    def pushed(self, mean: Array, tril: Array) -> dist.Distribution:
        """The distribution over z0."""
        normal = dist.MultivariateNormal(mean, scale_tril=tril)
        return dist.TransformedDistribution(normal, self.to_support)

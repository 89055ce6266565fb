"""x -> features: what a guide reads a context with, as flax nnx modules."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from np_latentode.modules import mlp

__all__ = ["ODERNN"]


class ODERNN(nnx.Module):
    """A recurrent network whose state follows an ODE between observations, run back to z0's time.

    h_k' = h_{k+1} + the integral of f along h over the gap t_{k+1} - t_k
    h_k  = GRU(h_k', [x_k, m_k])                 (Rubanova et al. 2019, algorithm 1)

    from the last observation to the first, and from there on to time 0. Each gap is one step of a
    diffrax method. A time at which nothing was observed is passed over as if it were not there,
    so padding changes nothing and an empty context has the features 0.

    Args:
        num_features: the dimension of x.
        hidden_dim: the dimension of h, which is also that of the features.
        width: units of the one hidden layer of f.
        method: the diffrax ODE solver that takes the one step a gap.
    """

    def __init__(
        self,
        num_features: int,
        *,
        hidden_dim: int = 16,
        width: int = 16,
        method: diffrax.AbstractSolver | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_features, self.hidden_dim = num_features, hidden_dim
        self.method = diffrax.Euler() if method is None else method
        if not isinstance(self.method, diffrax.AbstractSolver):
            raise ValueError(f"method must be a diffrax.AbstractSolver; got {method!r}.")
        self.field = mlp((hidden_dim, width, hidden_dim), rngs=rngs)
        self.cell = nnx.GRUCell(2 * num_features, hidden_dim, rngs=rngs)

    def __call__(
        self,
        times: Float[Array, "trajectory time"],
        values: Float[Array, "trajectory time feature"],
        mask: Bool[Array, "trajectory time feature"],
    ) -> Float[Array, "trajectory hidden"]:
        observed = mask.any(-1)
        inputs = jnp.concatenate([values, mask.astype(values.dtype)], axis=-1)

        def step_back(carry: tuple[Array, Array], at_time: tuple[Array, Array, Array]):
            h, later = carry
            time, x, seen = at_time
            updated, _ = self.cell(self._evolve(h, later - time), x)
            h = jnp.where(seen[:, None], updated, h)
            return (h, jnp.where(seen, time, later)), None

        # From the last observation on, so that the first gap is zero.
        last = jnp.max(times, axis=1, where=observed, initial=0.0)
        h = jnp.zeros((len(times), self.hidden_dim), values.dtype)
        by_time = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (times, inputs, observed))
        (h, first), _ = jax.lax.scan(step_back, (h, last), by_time, reverse=True)
        return self._evolve(h, first)

    def _evolve(self, h: Array, gap: Array) -> Array:
        # Over a gap, dh/ds = gap * f(h) with s from 0 to 1: one step for all, whatever their gaps.
        term = diffrax.ODETerm(lambda s, h, gap: gap[:, None] * self.field(h))
        start, end = jnp.zeros((), h.dtype), jnp.ones((), h.dtype)
        state = self.method.init(term, start, end, h, gap)
        return self.method.step(term, start, end, h, gap, state, made_jump=False)[0]

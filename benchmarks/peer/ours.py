"""Ours: what `fit` does with the networks of `latent_ode`, as in the demo, without polishing."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from np_latentode import (
    Fitted,
    Trajectories,
    decode,
    latent_ode,
    optimizer,
    posterior,
    random_context,
)
from np_latentode.training.plan import make_plan
from np_latentode.training.steps import dispatches


class Peer:
    def __init__(
        self,
        times: np.ndarray,
        values: np.ndarray,
        *,
        batch_size: int,
        latent_dim: int,
        num_steps: int,
        seed: int,
    ):
        train, key = Trajectories(times, values), jax.random.key(seed)
        self.programs = latent_ode(train, latent_dim=latent_dim, rngs=nnx.Rngs(seed))
        settings = dict(num_steps=num_steps, batch_size=batch_size, conditioning=random_context)
        rest = dict(optim=optimizer(num_steps), kl_weight=None, loss=None, patience=None)
        self.plan = make_plan(key, *self.programs, train, None, **settings, **rest)
        _, self.state = self.plan.programs.init(key, train, None)
        self.taken = 0

    def train(self, count: int) -> None:
        before, self.taken = self.taken, self.taken + count
        take, data = self.plan.programs.take, self.plan.data_at(0)
        for state, _ in dispatches(take, self.state, self.taken, data, start=before):
            self.state = state

    def curves(
        self, times: np.ndarray, values: np.ndarray, seen: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        fitted = Fitted(*self.programs, self.plan.programs.svi.get_params(self.state))
        context = Trajectories(times, values, np.broadcast_to(seen[..., None], values.shape))
        z0 = posterior(fitted, context).mean[None]
        return decode(jax.random.key(0), fitted, z0, at)["x_mean"][0]

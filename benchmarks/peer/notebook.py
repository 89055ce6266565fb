"""The design of the seed notebook, written afresh in equinox and diffrax.

- Encoder: an ODE of 25 units along the linearly interpolated observations, from the first to the
  last one, and a linear layer to the mean and the logarithm of the variance of z0.
- Field and decoder: tanh networks, of 2 x 40 and 2 x 20 units. z0 is the state at the first
  observation.
- Each trajectory is solved by itself, with the adaptive Tsit5 of the notebook, under vmap: this is
  part of the design, so it takes no constant steps.
- The noise is fixed at 0.2. The encoder sees whole trajectories in training.
- Adam on clipped gradients, from 3e-3 along a cosine; one step for each call of a compiled program.

The notebook computes in float64, and this in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from equinox_peer import EquinoxPeer
from jaxtyping import Array

HIDDEN, NOISE = 25, 0.2


class Model(eqx.Module):
    drive: eqx.nn.MLP
    head: eqx.nn.Linear
    field: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, latent_dim: int, key: Array):
        keys = jax.random.split(key, 4)
        # Both fields read the time as well, and the encoder's reads the path.
        self.drive = eqx.nn.MLP(HIDDEN + 3, HIDDEN, 40, 2, jnp.tanh, key=keys[0])
        self.head = eqx.nn.Linear(HIDDEN, 2 * latent_dim, key=keys[1])
        self.field = eqx.nn.MLP(latent_dim + 1, latent_dim, 40, 2, jnp.tanh, key=keys[2])
        self.decoder = eqx.nn.MLP(latent_dim, 2, 20, 2, jnp.tanh, key=keys[3])

    def encode(self, times: Array, values: Array, seen: Array) -> tuple[Array, Array]:
        """Mean and log variance of z0, of one trajectory."""
        end = jnp.max(times, where=seen, initial=-jnp.inf)
        # Knots that may not be read lie beyond the end of the solve.
        knots = jnp.where(seen, times, end + 1 + times)

        held = jnp.where(seen[:, None], values, values[jnp.sum(seen) - 1])

        def slope(t: Array, h: Array, _: None) -> Array:
            x = jax.vmap(jnp.interp, (None, None, 1))(t, knots, held)
            return self.drive(jnp.concatenate([h, t[None], x]))

        h = solve(slope, jnp.zeros(HIDDEN), times[0], end, diffrax.SaveAt(t1=True))[-1]
        mean, log_variance = jnp.split(self.head(h), 2)
        return mean, jnp.clip(log_variance, -8.0, 4.0)

    def decode(self, z0: Array, times: Array) -> Array:
        def slope(t: Array, z: Array, _: None) -> Array:
            return self.field(jnp.concatenate([z, t[None]]))

        z = solve(slope, z0, times[0], times[-1], diffrax.SaveAt(ts=times))
        return jax.vmap(self.decoder)(z)

    def loss(self, key: Array, times: Array, values: Array) -> Array:
        mean, log_variance = self.encode(times, values, jnp.ones(times.shape, bool))
        z0 = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        error = (values - self.decode(z0, times)) / NOISE
        kl = 0.5 * jnp.sum(jnp.exp(log_variance) + mean**2 - 1 - log_variance)
        return 0.5 * jnp.sum(error**2 + jnp.log(2 * jnp.pi * NOISE**2)) + kl


def solve(slope: Callable, start: Array, t0: Array, t1: Array, saveat: diffrax.SaveAt) -> Any:
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        diffrax.Tsit5(),
        t0,
        t1,
        0.05,
        start,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-4),
    )
    return solution.ys


class Peer(EquinoxPeer):
    def __init__(
        self,
        times: np.ndarray,
        values: np.ndarray,
        *,
        latent_dim: int,
        num_steps: int,
        seed: int,
        **rest: int,
    ):
        model = Model(latent_dim, jax.random.key(seed))
        rate = optax.cosine_decay_schedule(3e-3, num_steps, alpha=0.02)
        optim = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rate))
        super().__init__(times, values, seed=seed, model=model, optim=optim, **rest)

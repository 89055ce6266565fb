"""The design of the latent ODE among diffrax's examples, written afresh.

- Encoder: a GRU of 16 units that reads [t, x] backwards, and a linear layer to the mean and the
  logarithm of the standard deviation of z0. Here it is a scan; the example unrolls it, which takes
  longer to compile.
- z0 (4 numbers here, 16 there) is mapped to 16 units by a network, which follow the field
  scale * tanh(MLP) from the first observation on, by Tsit5 with constant steps of 0.4. Each
  trajectory is solved by itself, under vmap. A linear layer decodes.
- The noise is fixed at 1. The encoder sees whole trajectories in training.
- Adam with a rate of 1e-2; one step for each call of a compiled program.
"""

from __future__ import annotations

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from equinox_peer import EquinoxPeer
from jaxtyping import Array

HIDDEN = WIDTH = 16


class Model(eqx.Module):
    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear
    lift: eqx.nn.MLP
    scale: Array
    field: eqx.nn.MLP
    decoder: eqx.nn.Linear

    def __init__(self, latent_dim: int, key: Array):
        keys = jax.random.split(key, 5)
        self.cell = eqx.nn.GRUCell(3, HIDDEN, key=keys[0])
        self.head = eqx.nn.Linear(HIDDEN, 2 * latent_dim, key=keys[1])
        self.lift = eqx.nn.MLP(latent_dim, HIDDEN, WIDTH, 2, key=keys[2])
        ends = dict(activation=jax.nn.softplus, final_activation=jnp.tanh)
        self.scale, self.field = (
            jnp.ones(()),
            eqx.nn.MLP(HIDDEN, HIDDEN, WIDTH, 2, **ends, key=keys[3]),
        )
        self.decoder = eqx.nn.Linear(HIDDEN, 2, key=keys[4])

    def encode(self, times: Array, values: Array, seen: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of z0, of one trajectory."""

        def read(h: Array, at_time: tuple[Array, Array]) -> tuple[Array, None]:
            inputs, read_it = at_time
            return jnp.where(read_it, self.cell(inputs, h), h), None

        inputs = jnp.concatenate([times[:, None], values], axis=1)
        h, _ = jax.lax.scan(read, jnp.zeros(HIDDEN), (inputs, seen), reverse=True)
        mean, log_scale = jnp.split(self.head(h), 2)
        return mean, jnp.exp(log_scale)

    def decode(self, z0: Array, times: Array) -> Array:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, h, _: self.scale * self.field(h)),
            diffrax.Tsit5(),
            times[0],
            times[-1],
            0.4,
            self.lift(z0),
            saveat=diffrax.SaveAt(ts=times),
        )
        return jax.vmap(self.decoder)(solution.ys)

    def loss(self, key: Array, times: Array, values: Array) -> Array:
        mean, scale = self.encode(times, values, jnp.ones(times.shape, bool))
        z0 = mean + scale * jax.random.normal(key, mean.shape)
        kl = 0.5 * jnp.sum(mean**2 + scale**2 - 2 * jnp.log(scale) - 1)
        return 0.5 * jnp.sum((values - self.decode(z0, times)) ** 2) + kl


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
        del num_steps  # the rate is constant
        model, optim = Model(latent_dim, jax.random.key(seed)), optax.adam(1e-2)
        super().__init__(times, values, seed=seed, model=model, optim=optim, **rest)

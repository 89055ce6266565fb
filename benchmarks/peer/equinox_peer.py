"""A peer in equinox: one call of a compiled program for each step, as its users write it."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array


class EquinoxPeer:
    """A peer, as of process.py.

    Args:
        times, values, batch_size, seed: as of process.py.
        model: has `encode(times, values, seen) -> (mean of z0, ...)`, `decode(z0, times)` and
            `loss(key, times, values)`, all of one trajectory.
        optim: its optimizer.
    """

    def __init__(
        self,
        times: np.ndarray,
        values: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        model: Any,
        optim: optax.GradientTransformation,
    ):
        self.data, self.batch_size = (jnp.asarray(times), jnp.asarray(values)), batch_size
        self.rng, self.key = np.random.default_rng(seed), jax.random.key(seed)
        self.model, self.state = model, optim.init(eqx.filter(model, eqx.is_inexact_array))

        def loss(model: Any, key: Array, times: Array, values: Array) -> Array:
            return jnp.mean(jax.vmap(model.loss)(jax.random.split(key, len(times)), times, values))

        @eqx.filter_jit
        def step(model: Any, state: Any, key: Array, rows: Array, data: Any) -> Any:
            key, now = jax.random.split(key)
            batch = (array[rows] for array in data)
            value, slopes = eqx.filter_value_and_grad(loss)(model, now, *batch)
            updates, state = optim.update(slopes, state)
            return eqx.apply_updates(model, updates), state, key, value

        @eqx.filter_jit
        def curves(model: Any, times: Array, values: Array, seen: Array, at: Array) -> Array:
            mean, *_ = jax.vmap(model.encode)(times, values, seen)
            return jax.vmap(model.decode)(mean, at)

        self.step, self.compute = step, curves

    def train(self, count: int) -> None:
        for _ in range(count):
            rows = self.rng.choice(len(self.data[0]), self.batch_size, replace=False)
            done = self.step(self.model, self.state, self.key, rows, self.data)
            self.model, self.state, self.key, loss = done
        loss.block_until_ready()

    def curves(
        self, times: np.ndarray, values: np.ndarray, seen: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        return np.asarray(self.compute(self.model, times, values, seen, at))

"""Is a recurrence that is parallel in time faster for long series? Times encoders with gradients.

    python benchmarks/encoders.py
    python benchmarks/encoders.py --lengths 100 1000 --batch 50

The defaults read one observation after the other, by `jax.lax.scan`. Beside them:

- min_gru, scan and min_gru, parallel: two layers of h_k = (1 - g_k) h_{k+1} + g_k c_k, where gate g
  and candidate c do not depend on h (Feng et al. 2024), by a scan and by `associative_scan`.
- gru, newton: the GRU by Newton iterations on the whole sequence (DEER, Lim et al. 2024). Each is
  a linear recurrence with the Jacobians of the cell, by `associative_scan`. `error` is its largest
  difference from the GRU.

Times are CPU seconds of a value and its gradient, the least of three in turn.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from np_latentode import GRU, ODERNN

HIDDEN, FEATURES = 16, 2
ITERATIONS = 8
"""Of Newton's method."""

LONGEST = 200
"""For Newton's method: its Jacobians take 256 numbers per observation and iteration, in each of a
logarithmic number of rounds."""


def gaps(times: Array) -> Array:
    """The time to the later observation, 0 for the last."""
    return jnp.diff(times, axis=1, append=times[:, -1:])


class MinGRU(nnx.Module):
    """Two layers of a recurrence that is linear in h, run backwards in time."""

    def __init__(self, recur: Callable[[Array, Array], Array], rngs: nnx.Rngs):
        self.recur, inputs = recur, 2 * FEATURES + 2
        self.layers = nnx.List(
            [nnx.Linear(n, 2 * HIDDEN, rngs=rngs) for n in (inputs, inputs + HIDDEN)]
        )

    def __call__(self, times: Array, values: Array, mask: Array) -> Array:
        x = jnp.stack([gaps(times), times], axis=-1)
        x = jnp.concatenate([values, mask.astype(values.dtype), x], axis=-1)
        h, read = None, x
        for layer in self.layers:
            gate, candidate = jnp.split(layer(read), 2, axis=-1)
            gate = jax.nn.sigmoid(gate)
            h = self.recur(1 - gate, gate * jnp.tanh(candidate))
            read = jnp.concatenate([x, h], axis=-1)
        return h[:, 0]


def by_scan(a: Array, b: Array) -> Array:
    """h_k = a_k h_{k+1} + b_k, one after the other; the second axis is that of time."""

    def step(h: Array, ab: tuple[Array, Array]) -> tuple[Array, Array]:
        h = ab[0] * h + ab[1]
        return h, h

    by_time = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0))
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(b[:, 0]), by_time, reverse=True)[1], 0, 1)


def in_parallel(a: Array, b: Array) -> Array:
    """The same, in a logarithmic number of rounds."""

    def then(later: tuple[Array, Array], k: tuple[Array, Array]) -> tuple[Array, Array]:
        return later[0] * k[0], k[0] * later[1] + k[1]

    return jax.lax.associative_scan(then, (a, b), axis=1, reverse=True)[1]


def matrices_in_parallel(a: Array, b: Array) -> Array:
    """The same, where a_k are matrices."""

    def then(later: tuple[Array, Array], k: tuple[Array, Array]) -> tuple[Array, Array]:
        return k[0] @ later[0], (k[0] @ later[1][..., None])[..., 0] + k[1]

    return jax.lax.associative_scan(then, (a, b), axis=1, reverse=True)[1]


class NewtonGRU(nnx.Module):
    """A GRU, all of whose states are found at once."""

    def __init__(self, gru: GRU):
        self.gru = gru

    def __call__(self, times: Array, values: Array, mask: Array) -> Array:
        x = [values, mask.astype(values.dtype), gaps(times)[..., None]]
        x = jnp.concatenate(x, axis=-1)

        def cell(h: Array, x: Array) -> Array:
            return self.gru.cell(h[None], x[None])[0][0]

        slope = jax.vmap(jax.vmap(jax.jacfwd(cell)))
        states = jnp.zeros((*times.shape, HIDDEN), values.dtype)
        for _ in range(ITERATIONS):
            later = jnp.concatenate([states[:, 1:], jnp.zeros_like(states[:, :1])], axis=1)
            jacobian = slope(later, x)
            value = jax.vmap(jax.vmap(cell))(later, x)
            rest = value - (jacobian @ later[..., None])[..., 0]
            states = matrices_in_parallel(jacobian, rest)
        first = [jnp.zeros_like(x[:, 0, :-1]), times[:, :1]]
        return jax.vmap(cell)(states[:, 0], jnp.concatenate(first, axis=-1))


def encoders() -> dict[str, nnx.Module]:
    def gru() -> GRU:
        return GRU(FEATURES, hidden_dim=HIDDEN, rngs=nnx.Rngs(0))

    return {
        "ode_rnn": ODERNN(FEATURES, hidden_dim=HIDDEN, rngs=nnx.Rngs(0)),
        "gru": gru(),
        "min_gru, scan": MinGRU(by_scan, nnx.Rngs(0)),
        "min_gru, parallel": MinGRU(in_parallel, nnx.Rngs(0)),
        "gru, newton": NewtonGRU(gru()),
    }


def compiled(encoder: nnx.Module) -> Callable:
    structure, params = nnx.split(encoder)

    def loss(params: nnx.State, *data: Array) -> Array:
        return jnp.square(nnx.merge(structure, params)(*data)).sum()

    program = jax.jit(jax.value_and_grad(loss))
    return lambda *data: jax.block_until_ready(program(params, *data))


def seconds(program: Callable, data: tuple[Array, ...], repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        program(*data)
    return (time.process_time() - started) / repeats


def measure(length: int, batch: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of a value and its gradient, and seconds of the first call, by encoder."""
    time_key, value_key = jax.random.split(jax.random.key(0))
    times = jnp.sort(jax.random.uniform(time_key, (batch, length), maxval=5.0), axis=1)
    values = jax.random.normal(value_key, (batch, length, FEATURES))
    data = (times, values, jnp.ones(values.shape, bool))
    some = {n: e for n, e in encoders().items() if length <= LONGEST or n != "gru, newton"}
    programs = {name: compiled(encoder) for name, encoder in some.items()}
    first = {name: seconds(program, data, 1) for name, program in programs.items()}
    taken = defaultdict(list)
    for _ in range(3):
        for name, program in programs.items():
            taken[name].append(seconds(program, data, max(1, 1000 // length)))
    return {name: (1e3 * min(each), first[name]) for name, each in taken.items()}


def error_of_newton(length: int) -> float:
    times = jnp.sort(jax.random.uniform(jax.random.key(0), (4, length), maxval=5.0), axis=1)
    values = jax.random.normal(jax.random.key(1), (4, length, FEATURES))
    data = (times, values, jnp.ones(values.shape, bool))
    exact, newton = (encoders()[name](*data) for name in ("gru", "gru, newton"))
    return float(jnp.abs(exact - newton).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[100, 1_000, 10_000])
    parser.add_argument("--batch", type=int, default=50)
    found = parser.parse_args()
    print(f"error of newton: {error_of_newton(100):.1e}")
    print("| encoder | times a trajectory | milliseconds | beside ode_rnn | first call, seconds |")
    print("|---|---:|---:|---:|---:|")
    for length in found.lengths:
        rows = measure(length, found.batch)
        for name, (step, first) in rows.items():
            ratio = step / rows["ode_rnn"][0]
            print(f"| {name} | {length} | {step:.1f} | {ratio:.2f} | {first:.1f} |", flush=True)


if __name__ == "__main__":
    main()

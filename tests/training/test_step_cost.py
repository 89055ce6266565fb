"""A training step costs what its arithmetic costs: its time beside that of a plain loop of JAX.

The loop is written here, without NumPyro, flax and diffrax. It has the same matrix products, each
as often, by the count of `benchmarks/step.py`. Both run in turns, so that a slow or busy machine
slows both. Of each, the least CPU time counts.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpyro.infer import SVI

from np_latentode import datasets, latent_ode, optimizer, random_context
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.training.steps import steps_of

BATCH, STEPS, ROUNDS = 16, 40, 15
MEASURED = 1.4
"""The time of a step, over that of the loop, when this test was written: 1.27 to 1.48."""
HIGHEST = 1.5 * MEASURED
"""Between the ratio that was measured and that of a step that updates twice, 2.38."""


def network(params, x):
    """A multilayer perceptron with SiLU between its layers."""
    *hidden, (weight, bias) = params
    for inner_weight, inner_bias in hidden:
        x = jax.nn.silu(x @ inner_weight + inner_bias)
    return x @ weight + bias


def start(rng_key, *sizes):
    """The weights and biases of a network."""
    pairs = [*itertools.pairwise(sizes)]
    keys = jax.random.split(rng_key, len(pairs))
    draw = jax.random.normal
    return [
        (draw(key, pair) / np.sqrt(pair[0]), jnp.zeros(pair[1]))
        for key, pair in zip(keys, pairs, strict=True)
    ]


def first_params(rng_key, hidden=16, latent=4):
    """Networks of the sizes of `latent_ode(train, latent_dim=4)`."""
    keys = iter(jax.random.split(rng_key, 6))
    return {
        "drift": start(next(keys), hidden, 16, hidden),
        "read": start(next(keys), 4, 3 * hidden),
        "keep": start(next(keys), hidden, 3 * hidden),
        "head": start(next(keys), hidden, 40, 2 * latent),
        "field": start(next(keys), latent, 64, latent),
        "decoder": start(next(keys), latent, 80, 2),
        "log_noise": jnp.zeros(2),
    }


def encode(params, times, values, seen):
    """An ODE-RNN that runs backwards, with an Euler step for each gap and a GRU."""

    def step(carry, at_time):
        (h, later), (time, x, one) = carry, at_time
        moved = h + (later - time)[:, None] * network(params["drift"], h)
        read, kept = network(params["read"], x), network(params["keep"], moved)
        reset, update, new = zip(jnp.split(read, 3, 1), jnp.split(kept, 3, 1), strict=True)
        gate = jax.nn.sigmoid(sum(update))
        fresh = jnp.tanh(new[0] + jax.nn.sigmoid(sum(reset)) * new[1])
        h = jnp.where(one[:, None], gate * moved + (1 - gate) * fresh, h)
        return (h, jnp.where(one, time, later)), None

    inputs = jnp.concatenate([values, jnp.ones_like(values)], axis=-1)
    inputs = jnp.where(seen[..., None], inputs, 0.0)
    first = jnp.zeros((len(times), 16)), jnp.max(times, axis=1, where=seen, initial=0.0)
    by_time = times.T, inputs.swapaxes(0, 1), seen.T
    (h, later), _ = jax.lax.scan(step, first, by_time, reverse=True)
    h = h + later[:, None] * network(params["drift"], h)
    loc, raw = jnp.split(network(params["head"], h), 2, axis=-1)
    return loc, jax.nn.softplus(raw)


def decode(params, z0, times, step=0.625, count=8):
    """Steps of Bogacki and Shampine's method, read off by cubic Hermite polynomials."""
    field = lambda z: network(params["field"], z)  # noqa: E731

    def advance(z, _):
        first = field(z)
        second = field(z + step / 2 * first)
        third = field(z + 3 * step / 4 * second)
        return z + step * (2 * first + 3 * second + 4 * third) / 9, (z, first)

    _, (z, slope) = jax.lax.scan(jax.checkpoint(advance), z0, None, length=count + 1)
    k, rows = jnp.clip((times / step).astype(int), 0, count - 1), jnp.arange(len(z0))[:, None]
    s = (times / step - k)[..., None]
    ends = z[k, rows], z[k + 1, rows], step * slope[k, rows], step * slope[k + 1, rows]
    left, right, leaves, arrives = ends
    read = (1 + 2 * s) * (1 - s) ** 2 * left + s**2 * (3 - 2 * s) * right
    read += s * (1 - s) ** 2 * leaves + s**2 * (s - 1) * arrives
    return network(params["decoder"], read)


def loss(params, rng_key, times, values):
    """The negative ELBO of a batch, with half of the points hidden from the encoder."""
    batch_key, seen_key, noise_key = jax.random.split(rng_key, 3)
    rows = jax.random.permutation(batch_key, len(times))[:BATCH]
    times, values = times[rows], values[rows]
    seen = jax.random.bernoulli(seen_key, 0.5, times.shape)
    loc, scale = encode(params, times, values, seen)
    z0 = loc + scale * jax.random.normal(noise_key, loc.shape)
    error = (values - decode(params, z0, times)) / jnp.exp(params["log_noise"])
    kl = 0.5 * jnp.sum(loc**2 + scale**2 - 1) - jnp.log(scale).sum()
    return 0.5 * jnp.sum(error**2) + values[..., 0].size * params["log_noise"].sum() + kl


def plain_loop(times, values):
    """A function that takes `STEPS` plain steps of training."""
    optim = optax.chain(optax.clip_by_global_norm(10.0), optax.adamw(5e-3))
    params = first_params(jax.random.key(0))

    @jax.jit
    def take(params, state, times, values):
        def step(k, carry):
            params, state, losses = carry
            now = jax.random.fold_in(jax.random.key(1), k)
            value, slopes = jax.value_and_grad(loss)(params, now, times, values)
            updates, state = optim.update(slopes, state, params)
            return optax.apply_updates(params, updates), state, losses.at[k].set(value)

        return jax.lax.fori_loop(0, STEPS, step, (params, state, jnp.zeros(STEPS)))[2]

    state = optim.init(params)
    return lambda: take(params, state, times, values).block_until_ready()


def our_steps(train):
    """A function that takes `STEPS` steps as `fit` takes them."""
    model, guide = latent_ode(train, latent_dim=4, rngs=nnx.Rngs(0))
    model = model.with_solver(max_steps=model.steps_to(train.times, train.offset))
    options = dict(batch_size=BATCH, conditioning=random_context)
    svi = SVI(model.with_solver(throw=False), guide, optimizer(1_000), OrderedELBO(), **options)
    take, state = steps_of(svi), jax.jit(svi.init)(jax.random.key(0), train)
    return lambda: take(state, 0, STEPS, train)[1].block_until_ready()


def cost(run):
    """CPU seconds, of all threads."""
    started = time.process_time()
    run()
    return time.process_time() - started


def ratio(ours, loop):
    """The least time of ours, over that of the loop, of runs in turn."""
    times = np.array([(cost(ours), cost(loop)) for _ in range(ROUNDS)])
    return np.divide(*times.min(axis=0))


@pytest.fixture(scope="module")
def runs():
    family = datasets.SpiralFamily(num_observed=12)
    train = family.sample(jax.random.key(0), 64)
    both = our_steps(train), plain_loop(train.times, train.values)
    for run in both:
        assert np.isfinite(run()[:STEPS]).all()
    return both


def test_a_training_step_costs_no_more_than_its_arithmetic(runs):
    assert ratio(*runs) < HIGHEST


def test_a_step_of_twice_the_cost_is_seen(runs):
    ours, loop = runs
    assert ratio(lambda: (ours(), ours()), loop) > HIGHEST

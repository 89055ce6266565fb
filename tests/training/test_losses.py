"""The loss of data in buckets is an unbiased estimate of the loss of all data."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import (
    MLPDecoder,
    MLPDynamics,
    Solver,
    Trajectories,
    fit,
    latent_ode,
    optimizer,
)
from np_latentode.data.buckets import buckets
from np_latentode.training.losses import BucketLoss, batch_sizes

pytestmark = [pytest.mark.usefixtures("compile_quickly"), pytest.mark.slow]

LENGTHS = [3, 40, 4, 5, 4, 38, 3, 200, 5]


@pytest.fixture
def data():
    rng, pairs = np.random.default_rng(0), []
    for n in LENGTHS:
        t = np.sort(rng.uniform(0, 5, n))
        pairs.append((t, (rng.normal() + np.cos(t) + 0.1 * rng.normal(size=n))[:, None]))
    return Trajectories.from_ragged(pairs)


def make_pair(data, **parts):
    """A pair that compiles in a second or two."""
    rngs = nnx.Rngs(0)
    return latent_ode(
        data,
        latent_dim=2,
        dynamics=MLPDynamics(2, width=4, rngs=rngs),
        decoder=MLPDecoder(2, 1, width=4, rngs=rngs),
        encoder=MeanEncoder(1, 2, rngs=rngs),
        solver=Solver(diffrax.Euler(), adjoint=diffrax.DirectAdjoint()),
        rngs=rngs,
        **parts,
    )


class MeanEncoder(nnx.Linear):
    def __call__(self, times, values, mask):
        return super().__call__(values.sum(1) / (1 + mask.sum(1)))


def certain():
    """A posterior without variance: then only the choice of a batch is random."""
    return lambda features: dist.Delta(features, event_dim=1)


def slopes(loss, data, of, num_draws=1, **options):
    """The loss and its gradient, as the rows (loss, gradient...) of an array, one per draw."""
    pair = make_pair(data, posterior=certain)
    svi = SVI(*pair, optimizer(1), Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(0), data))

    @jax.jit
    def run(params, of, keys):
        def one(key):
            def take(params):
                return loss.loss(key, params, *pair, of, **options)

            value, slope = jax.value_and_grad(take)(params)
            return jnp.append(value, ravel_pytree(slope)[0])

        return jax.lax.map(one, keys, batch_size=20)

    return np.asarray(run(params, of, jax.random.split(jax.random.key(1), num_draws)))


def test_a_loss_in_buckets_and_its_gradient_are_unbiased(data, x64):
    """All batches are as likely, so the mean over the different ones is the expectation."""
    parts = [some for _, some in buckets(data)]
    sizes = batch_sizes([*map(len, parts)], 4)
    assert ([*map(len, parts)], sizes) == ([6, 2, 1], (3, 1, 1))
    ours = slopes(BucketLoss(Trace_ELBO(), sizes), data, parts, 600)
    _, first = np.unique(ours[:, 0].round(6), return_index=True)
    assert len(first) == 40  # 6 choose 3, times 2
    (exact,) = slopes(Trace_ELBO(), data, data)
    np.testing.assert_allclose(ours[first].mean(0), exact, rtol=1e-5, atol=1e-5)
    # Chance does not decide whether the longest trajectory is in a batch.
    plain = slopes(Trace_ELBO(), data, data, 600, batch_size=4)
    assert ours[:, 0].std() < plain[:, 0].std()


def test_buckets_without_batches_hold_the_loss_of_all_data(data, x64):
    parts = [some for _, some in buckets(data)]
    loss = BucketLoss(Trace_ELBO(), batch_sizes([*map(len, parts)], None))
    whole = slopes(Trace_ELBO(), data, data)
    np.testing.assert_allclose(slopes(loss, data, parts), whole, rtol=1e-5, atol=1e-5)


def test_a_batch_has_at_least_one_trajectory_of_each_bucket():
    assert batch_sizes([100, 1], 10) == (10, 1)
    assert batch_sizes([60, 30, 10], 20) == (12, 6, 2)
    assert batch_sizes([3, 2], 5) == (3, 2) == batch_sizes([3, 2], None)


@pytest.mark.parametrize("batch_size", [4])
def test_long_and_short_trajectories_are_trained_together(data, batch_size):
    fitted = fit(
        jax.random.key(0),
        *make_pair(data),
        data,
        data,
        num_steps=300,
        batch_size=batch_size,
        kl_weight=lambda step: jnp.where(step < 100, 0.5, 1.0),
        progress=False,
    )
    losses = fitted.history.losses
    assert np.isfinite(losses).all()
    assert losses[-20:].mean() < losses[:20].mean() / 2
    assert fitted.history.validation[-1] < fitted.history.validation[0]

"""Polishing, on data whose noise and posteriors are known."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    AmortizedGuide,
    DiagonalNormal,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    Scaling,
    StandardNormal,
    SummaryEncoder,
    Trajectories,
    polish,
    posterior,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

NOISE, NUM_TIMES = 0.3, 20


class Still(nnx.Module):
    def __call__(self, t, z):
        return jnp.zeros_like(z)


class Same(nnx.Module):
    def __call__(self, z):
        return z


class Problem:
    """x = z0 + noise at 20 times, and an untrained guide."""

    options: ClassVar = dict(num_steps=1_000, batch_size=40, progress=False)

    def __init__(self):
        rng = np.random.default_rng(0)
        z0 = rng.normal(size=(200, 1, 1))
        x = z0 + NOISE * rng.normal(size=(200, NUM_TIMES, 1))
        self.train = Trajectories(np.tile(np.linspace(0, 1, NUM_TIMES), (200, 1)), x)
        scaling, rngs = Scaling.identity(1), nnx.Rngs(0)
        likelihood = GaussianLikelihood()
        prior = StandardNormal(1)
        model = LatentODE(Still(), Same(), prior=prior, scaling=scaling, likelihood=likelihood)
        encoder = SummaryEncoder(1, rngs=rngs)
        guide = AmortizedGuide(encoder, DiagonalNormal(32, 1, rngs=rngs), scaling=scaling)
        start = initial_params(model, guide) | {"noise_scale": jnp.array([0.4])}
        self.start = jax.tree.map(np.array, start)
        self.fitted = Fitted(model, guide, start)
        self.polished = polish(jax.random.key(0), self.fitted, self.train, **self.options)


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.mark.slow
def test_the_noise_is_found_whatever_the_guide(problem):
    before, after = (one.params["noise_scale"] for one in (problem.fitted, problem.polished))
    np.testing.assert_allclose(before, 0.4)
    np.testing.assert_allclose(after, NOISE, rtol=0.05)


def test_the_guide_learns_the_posterior_of_wholes_and_of_parts(problem):
    for count in (NUM_TIMES, 10):
        seen = problem.train.keep(np.tile(np.arange(NUM_TIMES) < count, (200, 1)))
        q = posterior(problem.polished, seen)
        precision = 1 + count / NOISE**2
        mean = np.asarray(seen.values).sum(1) / NOISE**2 / precision
        sd = precision**-0.5
        assert np.sqrt(np.mean((np.asarray(q.mean) - mean) ** 2)) < sd
        np.testing.assert_allclose(np.median(np.sqrt(q.variance)), sd, rtol=0.4)


def test_the_same_key_gives_the_same_fit(problem):
    again = polish(jax.random.key(0), problem.fitted, problem.train, **problem.options)
    jax.tree.map(np.testing.assert_array_equal, again.params, problem.polished.params)


def test_a_fit_that_is_given_stays_as_it_is(problem):
    jax.tree.map(np.testing.assert_array_equal, problem.fitted.params, problem.start)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(num_steps=0), "num_steps must be"),
        (dict(batch_size=201), "batch_size must be an integer from 1"),
    ],
)
def test_wrong_arguments_are_named(problem, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        polish(jax.random.key(0), problem.fitted, problem.train, **options)

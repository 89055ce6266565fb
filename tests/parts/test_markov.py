"""Gauss-Markov chains against dense covariance matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from np_latentode.parts.markov import brownian, ornstein_uhlenbeck

pytestmark = pytest.mark.usefixtures("compile_quickly", "x64")

TIMES = np.array([[0.0, 0.4, 0.4, 1.5, 1.5, 6.0], [-3.0, -2.9, 0.0, 0.1, 0.2, 50.0]])
"""With ties, with short gaps and long ones."""
SCALE, TIMESCALE = np.array([0.7, 2.0]), np.array([0.5, 30.0])
START = -4.0


def chain_of(kind):
    if kind == "brownian":
        return brownian(jnp.asarray(TIMES), START, jnp.asarray(SCALE))
    return ornstein_uhlenbeck(jnp.asarray(TIMES), jnp.asarray(SCALE), jnp.asarray(TIMESCALE))


def covariance(kind, i, j):
    """The dense covariance of series i and feature j."""
    t = TIMES[i]
    if kind == "brownian":
        return SCALE[j] ** 2 * (np.minimum(t[:, None], t) - START)
    return SCALE[j] ** 2 * np.exp(-np.abs(t[:, None] - t) / TIMESCALE[j])


def dense_given(kind, i, j, y, precision):
    """Mean and covariance of r given y_k = r_k + Normal(0, 1 / precision_k)."""
    cov = covariance(kind, i, j)
    seen = precision > 0
    gain = cov[:, seen] @ np.linalg.inv(cov[np.ix_(seen, seen)] + np.diag(1 / precision[seen]))
    return gain @ y[seen], cov - gain @ cov[seen]


CASES = [(kind, i, j) for kind in ("ou", "brownian") for i in range(2) for j in range(2)]
ALL = pytest.mark.parametrize(("kind", "i", "j"), CASES)


@pytest.fixture(scope="module")
def observed():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 6, 2))
    precision = rng.uniform(0.3, 3, y.shape) * (rng.random(y.shape) < 0.6)
    return y, precision


@ALL
def test_the_moments_are_those_of_the_process(kind, i, j):
    mean, variance = chain_of(kind).moments()
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_allclose(variance[i, :, j], np.diag(covariance(kind, i, j)), rtol=1e-12)


@ALL
def test_given_observations_the_chain_is_the_dense_conditional(kind, i, j, observed):
    y, precision = observed
    mean, variance = chain_of(kind).given(jnp.asarray(y), jnp.asarray(precision)).moments()
    expected, cov = dense_given(kind, i, j, y[i, :, j], precision[i, :, j])
    np.testing.assert_allclose(mean[i, :, j], expected, atol=1e-10)
    np.testing.assert_allclose(variance[i, :, j], np.diag(cov), atol=1e-10)


def test_draws_given_observations_have_the_dense_covariance(observed):
    y, precision = observed
    for kind in ("ou", "brownian"):
        chain = chain_of(kind).given(jnp.asarray(y), jnp.asarray(precision))
        draws = np.asarray(chain.sample(jax.random.key(0), (20_000,)))
        for i, j in np.ndindex(2, 2):
            mean, cov = dense_given(kind, i, j, y[i, :, j], precision[i, :, j])
            size = np.sqrt(np.diag(cov))
            found = np.cov(draws[:, i, :, j].T)
            assert (np.abs(found - cov) <= 0.04 * np.outer(size, size) + 1e-12).all()
            assert (np.abs(draws[:, i, :, j].mean(0) - mean) <= 0.04 * size + 1e-12).all()


@ALL
def test_one_step_ahead_terms_sum_to_the_dense_log_density(kind, i, j, observed):
    y, precision = observed
    mask = precision > 0
    mean, variance = chain_of(kind).one_step_ahead(jnp.asarray(y), jnp.asarray(mask))
    m, v, x, seen = (np.asarray(a)[i, :, j] for a in (mean, variance, y, mask))
    terms = -0.5 * ((x - m) ** 2 / v + np.log(2 * np.pi * v))
    cov = covariance(kind, i, j) + np.eye(6)
    expected = multivariate_normal(np.zeros(seen.sum()), cov[np.ix_(seen, seen)]).logpdf(x[seen])
    np.testing.assert_allclose(terms[seen].sum(), expected, rtol=1e-10)


def test_a_chain_of_one_slot_and_one_without_observations():
    chain = ornstein_uhlenbeck(jnp.zeros((1, 1)), jnp.array([2.0]), jnp.array([1.0]))
    mean, variance = chain.given(jnp.ones((1, 1, 1)), jnp.full((1, 1, 1), 0.25)).moments()
    np.testing.assert_allclose((mean[0, 0, 0], variance[0, 0, 0]), (0.5, 2.0))
    same = chain.given(jnp.ones((1, 1, 1)), jnp.zeros((1, 1, 1)))
    for a, b in zip(same, chain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("timescale", [1e-12, 1e12])
def test_extreme_timescales_stay_finite_in_single_precision(timescale, observed):
    with jax.enable_x64(False):
        times = jnp.asarray(TIMES, jnp.float32)
        chain = ornstein_uhlenbeck(times, jnp.ones(2), jnp.full(2, timescale))
        y, precision = (jnp.asarray(a, jnp.float32) for a in observed)

        def total(y):
            mean, variance = chain.given(y, precision).moments()
            return mean.sum() + variance.sum()

        assert jnp.isfinite(jax.grad(total)(y)).all()


def test_draws_have_finite_gradients_where_slots_are_tied():
    def total(scale):
        chain = ornstein_uhlenbeck(jnp.asarray(TIMES), scale, jnp.asarray(TIMESCALE))
        return chain.sample(jax.random.key(0)).sum()

    assert jnp.isfinite(jax.grad(total)(jnp.asarray(SCALE))).all()


def test_brownian_motion_starts_at_zero():
    chain = brownian(jnp.array([[1.0, 2.0]]), 1.0, jnp.array([3.0]))
    np.testing.assert_allclose(chain.moments()[1][0, :, 0], [0.0, 9.0])

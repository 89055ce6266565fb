"""The study of priors: their names, and scores with known values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import Fitted, FullRankNormal, datasets, latent_ode, prior_predictive
from np_latentode.programs.params import initial_params
from np_latentode.studies.spirals_priors import make_prior

FAMILY = datasets.SpiralFamily()


@pytest.mark.parametrize(
    ("name", "support"),
    [
        ("normal", "R^4"),
        ("mixture", "R^4"),
        ("flow", "R^4"),
        ("circle", "S^1 x R^2"),
        ("circle+mixture", "S^1 x R^2"),
        ("circle+flow", "S^1 x R^2"),
        ("ring", "R^4"),
        ("ring+mixture", "R^4"),
        ("flow/ring+mixture", "R^4"),
        ("flow/mixture", "R^4"),
    ],
)
@pytest.mark.slow
def test_a_prior_s_name_says_where_it_lives(name, support):
    train = FAMILY.sample(jax.random.key(0), 3)
    rngs = nnx.Rngs(0)
    model, guide = latent_ode(train, latent_dim=4, rngs=rngs, **make_prior(name, 4, rngs=rngs))
    assert model.support == guide.support == support
    assert isinstance(guide.posterior, FullRankNormal) == ("ring" in name)


def test_networks_start_alike_under_every_prior():
    train = FAMILY.sample(jax.random.key(0), 3)
    weights = []
    for name in ("normal", "flow", "ring+mixture"):
        parts = make_prior(name, 4, rngs=nnx.Rngs(1_000))
        model, guide = latent_ode(train, latent_dim=4, rngs=nnx.Rngs(0), **parts)
        weights.append([nnx.state(m) for m in (model.dynamics, model.decoder, guide.encoder)])
    for other in weights[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, weights[0])


@pytest.mark.parametrize(
    ("name", "latent_dim", "message"),
    [
        ("gaussian", 4, r"prior must be one of normal, mixture, flow, .* got 'gaussian'"),
        ("mixture+ring", 4, "prior must be one of"),
        ("circle+circle", 4, "prior must be one of"),
        ("flow/", 4, "prior must be one of"),
        ("ring/flow", 4, "prior must be one of"),
        ("", 4, "prior must be one of"),
        ("circle", 2, "latent_dim must be at least 3 with the prior circle; got 2"),
        ("flow/circle", 4, r"base must be over R\^4.*got one over S\^1 x R\^2"),
    ],
)
def test_a_name_that_makes_no_prior_is_refused(name, latent_dim, message):
    with pytest.raises(ValueError, match=message):
        make_prior(name, latent_dim, rngs=nnx.Rngs(0))


# The nearest spiral, from which the share of draws that are spirals is computed


@pytest.mark.slow
def test_a_spiral_is_its_own_nearest_spiral(tolerance):
    spirals = FAMILY.sample(jax.random.key(1), 50)
    phase, direction, mse = FAMILY.nearest(spirals.curves, FAMILY.dense_times)
    np.testing.assert_array_equal(direction, spirals.direction)
    turn = np.asarray(phase - spirals.phase)
    np.testing.assert_allclose(np.cos(turn), 1, atol=tolerance(1e-5, 1e-10))
    np.testing.assert_allclose(mse, 0, atol=tolerance(1e-5, 1e-10))


def test_the_nearest_spiral_is_what_a_search_finds():
    rng = np.random.default_rng(0)
    times = np.asarray(FAMILY.dense_times)
    curves = np.cumsum(rng.normal(0, 0.3, (4, len(times), 2)), axis=1)
    _, direction, mse = FAMILY.nearest(jnp.asarray(curves), FAMILY.dense_times)
    grid = np.linspace(0, 2 * np.pi, 2001)
    for i in range(4):
        for d in (-1.0, 1.0):
            rows = jnp.broadcast_to(FAMILY.dense_times, (len(grid), len(times)))
            candidates = FAMILY.curve(jnp.asarray(grid), jnp.full(len(grid), d), rows)
            errors = np.mean((np.asarray(candidates) - curves[i]) ** 2, axis=(1, 2))
            assert errors.min() > mse[i] - 1e-4
            if d == direction[i]:
                np.testing.assert_allclose(errors.min(), mse[i], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_draws_from_the_prior_start_in_its_own_distribution():
    train = FAMILY.sample(jax.random.key(0), 3)
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    params = initial_params(model, guide) | {"noise_scale": jnp.full(2, 0.1)}
    fitted = Fitted(model, guide, params)
    draws = prior_predictive(
        jax.random.key(0),
        fitted,
        FAMILY.dense_times[10:13],
        num_samples=2_000,
    )
    assert draws["z0"].shape == (2_000, 2)
    assert draws["x"].shape == draws["x_mean"].shape == (2_000, 3, 2)
    np.testing.assert_allclose(np.cov(np.asarray(draws["z0"]).T), np.eye(2), atol=0.1)
    np.testing.assert_allclose(np.std(draws["x"] - draws["x_mean"]), 0.1, rtol=0.03)
    with pytest.raises(ValueError, match="num_samples must be a positive integer; got 0"):
        prior_predictive(jax.random.key(0), fitted, FAMILY.dense_times[10:], num_samples=0)

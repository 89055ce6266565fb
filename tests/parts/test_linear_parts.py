"""Linear parts: what they are in closed form, and residual networks that start at nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.linalg import expm

from np_latentode import (
    GaussianLikelihood,
    LatentODE,
    LinearDecoder,
    LinearDynamics,
    MLPDecoder,
    MLPDynamics,
    OrnsteinUhlenbeckLikelihood,
    RegressionEncoder,
    RegressionNormal,
    Scaling,
    Solver,
    StandardNormal,
)
from np_latentode.data.scaling import SPAN
from np_latentode.parts.solve import solve

RNG = np.random.default_rng(0)
LATENT, FEATURES, POWERS = 3, 2, 2
MATRIX, DRIFT = 0.5 * RNG.normal(size=(LATENT, LATENT)), RNG.normal(size=LATENT)
WEIGHT, BIAS = RNG.normal(size=(FEATURES, LATENT)), RNG.normal(size=FEATURES)
BASIS, MEAN = RNG.normal(size=(POWERS, FEATURES, LATENT)), RNG.normal(size=(POWERS, FEATURES))
LOG_NOISE = np.log([0.3, 0.7])


def field(**options):
    return MLPDynamics(LATENT, width=4, rngs=nnx.Rngs(0), **options)


def network(**options):
    return MLPDecoder(LATENT, FEATURES, width=4, rngs=nnx.Rngs(0), **options)


def test_linear_dynamics_solve_the_exponential_of_the_matrix():
    z0, times = RNG.normal(size=(4, LATENT)), np.linspace(0.5, 3.0, 3)
    dynamics = LinearDynamics(MATRIX, DRIFT)
    at = jnp.asarray(np.tile(times, (4, 1)), float)
    found = solve(dynamics, jnp.asarray(z0, float), at, solver=Solver(dt0=0.1))
    # d(z, 1)/dt = [[A, c], [0, 0]] (z, 1)
    joint = np.zeros((LATENT + 1, LATENT + 1))
    joint[:LATENT, :LATENT], joint[:LATENT, LATENT] = MATRIX, DRIFT
    for k, t in enumerate(times):
        expected = np.c_[z0, np.ones(4)] @ expm(joint * t).T
        np.testing.assert_allclose(found[:, k], expected[:, :LATENT], rtol=1e-4, atol=1e-4)


def test_a_linear_decoder_is_a_product_and_a_bias(tolerance):
    z = RNG.normal(size=(4, 5, LATENT))
    found = LinearDecoder(WEIGHT, BIAS)(jnp.asarray(z, float))
    np.testing.assert_allclose(found, z @ WEIGHT.T + BIAS, atol=tolerance(1e-5, 1e-12))


PAIRS = {
    "dynamics": (
        lambda residual: LinearDynamics(MATRIX, DRIFT, residual),
        field,
        (jnp.asarray(0.3), jnp.asarray(RNG.normal(size=(4, LATENT)), float)),
    ),
    "decoder": (
        lambda residual: LinearDecoder(WEIGHT, BIAS, residual),
        network,
        (jnp.asarray(RNG.normal(size=(4, 5, LATENT)), float),),
    ),
}


@pytest.mark.parametrize(("linear", "residual", "at"), PAIRS.values(), ids=PAIRS)
def test_a_residual_from_zero_changes_nothing(linear, residual, at):
    plain = linear(None)(*at)
    np.testing.assert_array_equal(linear(residual(from_zero=True))(*at), plain)
    other = residual()
    np.testing.assert_allclose(linear(other)(*at) - plain, other(*at), rtol=1e-3, atol=1e-5)
    assert np.abs(other(*at)).max() > 1e-3


@pytest.mark.parametrize(("linear", "residual", "at"), PAIRS.values(), ids=PAIRS)
def test_a_residual_from_zero_can_be_learned(linear, residual, at):
    graph, state = nnx.split(linear(residual(from_zero=True)))
    gradients = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(*at) ** 2))(state)
    moved = jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, state, gradients)
    network = nnx.merge(graph, moved).residual
    assert np.abs(network(*at)).max() > 1e-3
    for name in ("matrix", "drift") if "matrix" in gradients else ("weight", "bias"):
        assert np.abs(gradients[name][...]).max() > 1e-4


def test_all_that_is_learned_is_a_parameter():
    model = LatentODE(
        LinearDynamics(MATRIX, DRIFT, field(from_zero=True)),
        LinearDecoder(WEIGHT, BIAS, network(from_zero=True)),
        prior=StandardNormal(LATENT),
        scaling=Scaling.identity(FEATURES),
    )
    assert model.trained == {"dynamics$params", "decoder$params", "noise_scale"}
    for part in (model.dynamics, model.decoder, regression()[0], regression()[1]):
        assert not jax.tree.leaves(nnx.state(part, nnx.Not(nnx.Param)))


def regression():
    encoder = RegressionEncoder(BASIS, MEAN, LOG_NOISE)
    return encoder, RegressionNormal(LATENT, width=4, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def observed():
    """Scaled times, values and mask; the last trajectory is empty, and padding holds NaN."""
    times = np.sort(RNG.uniform(0, SPAN, (4, 6)), axis=1)
    values, mask = RNG.normal(size=(4, 6, FEATURES)), RNG.uniform(size=(4, 6, FEATURES)) < 0.6
    mask[3] = False
    return times, values, mask


def test_the_regression_is_that_of_bishop_and_an_empty_context_has_the_prior(observed):
    times, values, mask = observed
    encoder, posterior = regression()
    found = posterior(encoder(*(jnp.asarray(a, float) for a in (times, values)), jnp.asarray(mask)))
    t = (times / SPAN)[..., None] ** np.arange(POWERS)
    for i in range(4):
        precision, right = np.eye(LATENT), np.zeros(LATENT)
        for k, j in np.argwhere(mask[i]):
            row, weight = t[i, k] @ BASIS[:, j], 1 / (np.exp(2 * LOG_NOISE[j]) + 0.01**2)
            precision += weight * np.outer(row, row)
            right += weight * row * (values[i, k, j] - t[i, k] @ MEAN[:, j])
        np.testing.assert_allclose(found.mean[i], np.linalg.solve(precision, right), atol=1e-3)
        np.testing.assert_allclose(
            found.covariance_matrix[i], np.linalg.inv(precision), rtol=1e-3, atol=1e-5
        )
    np.testing.assert_allclose(found.mean[3], 0, atol=1e-6)
    np.testing.assert_allclose(found.covariance_matrix[3], np.eye(LATENT), atol=1e-6)


def test_a_correction_moves_the_mean_by_its_shift_in_units_of_the_posterior(observed):
    times, values, mask = observed
    encoder, normal = regression()
    features = encoder(*(jnp.asarray(a, float) for a in (times, values)), jnp.asarray(mask))
    before = normal(features)
    shift, log_scale = np.array([0.5, -1.0, 2.0]), np.array([9.0, -9.0, 0.0])
    bias = jnp.asarray(np.r_[shift, log_scale], float)
    normal.correction.layers[-1].bias[...] = bias
    after = normal(features)
    np.testing.assert_allclose(
        after.mean, before.mean + before.scale_tril @ shift, rtol=1e-4, atol=1e-4
    )
    # A scale changes by exp(1/2) at most, up or down.
    np.testing.assert_allclose(
        after.scale_tril,
        before.scale_tril * np.exp(0.5 * np.tanh(log_scale)),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: LinearDynamics(MATRIX, DRIFT[:2]),
            r"matrix must be square, .* got shapes \(3, 3\) and \(2,\)",
        ),
        (lambda: LinearDynamics(MATRIX[:2], DRIFT), r"matrix must be square, .* got shapes \(2, 3"),
        (
            lambda: LinearDynamics(DRIFT, DRIFT),
            r"matrix must be a finite array with 2 axes; got shape \(3,\)",
        ),
        (
            lambda: LinearDynamics(MATRIX, DRIFT * np.nan),
            r"drift must be a finite array with 1 axes; got shape \(3,\)",
        ),
        (
            lambda: LinearDynamics(MATRIX, DRIFT, "none"),
            r"residual must be a callable flax nnx\.Module, .*; got 'none'",
        ),
        (
            lambda: LinearDecoder(WEIGHT, BIAS, lambda z: z),
            r"residual must be a callable flax nnx\.Module",
        ),
        (
            lambda: LinearDecoder(WEIGHT, DRIFT),
            r"weight must have a row for each .* got shapes \(2, 3\) and \(3,\)",
        ),
        (
            lambda: LinearDecoder(BIAS, BIAS),
            r"weight must be a finite array with 2 axes; got shape \(2,\)",
        ),
        (
            lambda: RegressionEncoder(BASIS, MEAN.T[:1], LOG_NOISE),
            r"must have shapes .* got \(2, 2, 3\), \(1, 2\) and \(2,\)",
        ),
        (lambda: RegressionEncoder(BASIS, MEAN, LOG_NOISE[:1]), r"must have shapes .* and \(1,\)"),
        (lambda: RegressionEncoder(MEAN, MEAN, LOG_NOISE), "basis must be a finite array with 3"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("kind", [GaussianLikelihood, OrnsteinUhlenbeckLikelihood])
def test_a_start_that_is_not_positive_is_refused(kind):
    with pytest.raises(ValueError, match="start must be positive"):
        kind(start=[0.3, 0.0])


def test_times_that_were_not_observed_change_nothing_however_early():
    encoder = RegressionEncoder(BASIS, MEAN, LOG_NOISE, event_decay=2.0)
    times = jnp.array([[-500.0, 0.5, 1.0]])
    values, mask = jnp.ones((1, 3, 2)), jnp.array([[[False] * 2, [True] * 2, [True] * 2]])
    late = encoder(times[:, 1:], values[:, 1:], mask[:, 1:])
    np.testing.assert_allclose(encoder(times, jnp.where(mask, values, 0), mask), late, rtol=1e-5)

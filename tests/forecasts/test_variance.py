"""The shares of path, residual and noise are those of their variances."""

import jax
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    BernoulliLikelihood,
    BrownianLikelihood,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    MLPDecoder,
    MLPDynamics,
    OrnsteinUhlenbeckLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    SummaryEncoder,
    Trajectories,
    decode,
    latent_ode,
    posterior,
    variance_shares,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(3)
NOISE, RESIDUAL, TIMESCALE = np.array([[0.3, 0.5], [0.4, 0.1], [10.0, 2.0]])


@pytest.fixture(scope="module")
def data():
    """Some trajectories, one of them far longer than the others, with missing values."""
    rng = np.random.default_rng(0)
    pairs = []
    for n in (3, 30, 4, 2):
        values = rng.normal(100.0, 1.0, size=(n, 2))
        values[1:][rng.uniform(size=(n - 1, 2)) < 0.3] = np.nan
        pairs.append((np.sort(rng.uniform(0, 5, n)), values))
    return Trajectories.from_ragged(pairs)


def fit_with(likelihood, data, **params):
    """A fit that is not trained, with this likelihood and these numbers of it."""
    rngs = nnx.Rngs(0)
    model, guide = latent_ode(
        data,
        latent_dim=2,
        dynamics=MLPDynamics(2, width=8, depth=1, rngs=rngs),
        decoder=MLPDecoder(2, 2, width=8, rngs=rngs),
        encoder=SummaryEncoder(2, rngs=rngs),
        likelihood=likelihood,
        rngs=rngs,
    )
    return Fitted(model, guide, initial_params(model, guide) | params)


@pytest.fixture(scope="module")
def fitted(data):
    numbers = dict(noise_scale=NOISE, residual_scale=RESIDUAL, residual_timescale=TIMESCALE)
    return fit_with(OrnsteinUhlenbeckLikelihood(), data, **numbers)


@pytest.fixture(scope="module")
def shares(fitted, data):
    return variance_shares(KEY, fitted, data)


@pytest.mark.slow
def test_the_shares_are_those_of_the_variances(fitted, data, shares):
    z0 = posterior(fitted, data).sample(jax.random.split(KEY)[0], (20,))
    # Decoded without a context, the mean curve is the path.
    curves = decode(KEY, fitted, z0, np.maximum(data.given.times, 0.0))["x_mean"]
    mask = np.asarray(data.mask)
    path = np.array([curves[:, mask[..., j], j].var() for j in range(2)])
    total = path + RESIDUAL**2 + NOISE**2
    np.testing.assert_allclose(shares.path, path / total, rtol=1e-3)
    np.testing.assert_allclose(shares.residual, RESIDUAL**2 / total, rtol=1e-3)
    np.testing.assert_allclose(shares.noise, NOISE**2 / total, rtol=1e-3)


def test_after_a_half_life_half_of_the_correlation_is_left(shares):
    np.testing.assert_allclose(np.exp(-shares.half_life / TIMESCALE), 0.5)


def test_without_a_residual_its_share_is_zero(data, shares):
    plain = variance_shares(KEY, fit_with(None, data, noise_scale=NOISE), data)
    np.testing.assert_array_equal(plain.residual, 0)
    assert np.isnan(plain.half_life).all()
    np.testing.assert_allclose(plain.path + plain.noise, 1)
    # The networks are the same.
    np.testing.assert_allclose(plain.path / plain.noise, shares.path / shares.noise, rtol=1e-4)


def test_fixed_numbers_count_as_learned_ones(data, shares):
    fixed = OrnsteinUhlenbeckLikelihood(NOISE, RESIDUAL, timescale=TIMESCALE)
    found = variance_shares(KEY, fit_with(fixed, data), data)
    for name in ("path", "residual", "noise", "half_life"):
        np.testing.assert_allclose(getattr(found, name), getattr(shares, name), rtol=1e-4)


def test_each_feature_may_have_a_likelihood_of_its_own(data, shares):
    each = FeatureLikelihoods(GaussianLikelihood(), OrnsteinUhlenbeckLikelihood(timescale=2.0))
    own = {"x_0.noise_scale": NOISE[:1], "x_1.noise_scale": NOISE[1:]}
    own |= {"x_1.residual_scale": RESIDUAL[1:]}
    found = variance_shares(KEY, fit_with(each, data, **own), data)
    assert found.residual[0] == 0
    assert np.isnan(found.half_life[0])
    for name in ("path", "residual", "noise", "half_life"):
        np.testing.assert_allclose(getattr(found, name)[1], getattr(shares, name)[1], rtol=1e-4)


def test_features_without_such_a_noise_may_be_left_out(data):
    values = np.where(data.mask, data.given.values, np.nan)
    values[..., 1] = np.where(np.isnan(values[..., 1]), np.nan, values[..., 1] > 100)
    bits = Trajectories(data.given.times, values)
    fitted = fit_with({"x_1": BernoulliLikelihood()}, bits)
    found = variance_shares(KEY, fitted, bits, features=["x_0"])
    assert found.path.shape == found.noise.shape == (1,)
    assert found.path[0] + found.noise[0] == pytest.approx(1)
    with pytest.raises(ValueError, match=r"features must be among .*; got \['edema'\]"):
        variance_shares(KEY, fitted, bits, features=["edema"])


def test_features_that_share_a_likelihood_have_their_own_numbers(data, shares):
    shared = FeatureLikelihoods(OrnsteinUhlenbeckLikelihood(), groups=[[0, 1]])
    numbers = dict(noise_scale=NOISE, residual_scale=RESIDUAL, residual_timescale=TIMESCALE)
    fitted = fit_with(shared, data, **{f"x_0.{name}": own for name, own in numbers.items()})
    found = variance_shares(KEY, fitted, data)
    for name in ("path", "residual", "noise", "half_life"):
        np.testing.assert_allclose(getattr(found, name), getattr(shares, name), rtol=1e-4)


@pytest.mark.parametrize(
    "likelihood",
    [
        StudentTLikelihood(),
        BrownianLikelihood(),
        FeatureLikelihoods(GaussianLikelihood(), PoissonLikelihood()),
    ],
    ids=["Student-t", "Brownian", "Poisson among others"],
)
def test_noise_without_a_standard_deviation_of_its_own_is_refused(likelihood, data):
    counts = Trajectories(data.given.times, np.ones(data.values.shape))
    with pytest.raises(ValueError, match=r"^fitted must have a noise_scale that is .*; got \w+\.$"):
        variance_shares(KEY, fit_with(likelihood, counts), counts)


def test_a_feature_that_is_never_observed_is_refused(fitted, data):
    values = np.where(data.mask, data.given.values, np.nan)
    values[..., 1] = np.nan
    with pytest.raises(ValueError, match="observation of every feature; got none of x_1"):
        variance_shares(KEY, fitted, Trajectories(data.given.times, values))

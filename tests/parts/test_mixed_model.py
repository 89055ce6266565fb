"""The mixed model of polynomials is estimated well, and a latent ODE starts as it."""

import numpy as np
import pytest
from flax import nnx
from jax import random
from scipy.stats import norm

from np_latentode import (
    Fitted,
    MixedModel,
    Scaling,
    Trajectories,
    choose_degree,
    forecast,
    latent_ode,
    posterior,
)
from np_latentode.data.scaling import SPAN
from np_latentode.forecasts import baselines
from np_latentode.parts import mixed_model
from np_latentode.parts.mixed_model import _Moments
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

SCALING = Scaling(np.array([10.0, -3.0]), np.array([2.0, 0.5]), t0=-1.0, time_unit=2.0)
LENGTH = 2.0 * SPAN
"""The span of the data, of which all powers of time are."""

ROOT = np.array([[1.0, 0, 0, 0], [-0.3, 0.8, 0, 0], [0.5, 0.2, 0.7, 0], [0.1, -0.4, 0.3, 0.6]])
TRUTH = MixedModel(np.array([0.5, -1.0, 0.2, 0.7]), ROOT @ ROOT.T, np.array([0.2, 0.4]))
"""Lines of two features, which are all correlated."""


def powers(times, scaling=SCALING, degree=1):
    """Powers of time in units of the span."""
    t = (np.asarray(times, float) - scaling.t0) / (scaling.time_unit * SPAN)
    return t[..., None] ** np.arange(degree + 1)


def simulate(truth, count, num_times=6, seed=0, missing=0.2):
    """Trajectories of the truth, at times of their own; some values are missing."""
    rng, features = np.random.default_rng(seed), len(truth.noise)
    degree = len(truth.mean) // features - 1
    scaling = Scaling(SCALING.loc[:features], SCALING.scale[:features], t0=-1.0, time_unit=2.0)
    times = np.sort(rng.uniform(-1.0, -1.0 + LENGTH, (count, num_times)), axis=1)
    u = rng.multivariate_normal(truth.mean, truth.covariance, count)
    x = np.einsum("nkp,nfp->nkf", powers(times, degree=degree), u.reshape(count, features, -1))
    x += truth.noise * rng.normal(size=x.shape)
    x[rng.uniform(size=x.shape) < missing] = np.nan
    return Trajectories(times, scaling.loc + scaling.scale * x), scaling


def jointly(model, trajectory, scaling):
    """Where one trajectory was observed: rows of coefficients, noise and scaled values."""
    mask, features = np.asarray(trajectory.mask)[0], len(model.noise)
    x = (trajectory.given.values[0] - scaling.loc) / scaling.scale
    rows, noise, values = [], [], []
    for k, j in np.argwhere(mask):
        row = np.zeros((features, model.degree + 1))
        row[j] = powers(trajectory.given.times[0, k], scaling, model.degree)
        rows.append(row.ravel())
        noise.append(model.noise[j])
        values.append(x[k, j])
    return np.reshape(rows, (-1, len(model.mean))), np.array(noise), np.array(values)


def coefficients_given(model, trajectory, scaling):
    """Mean and covariance of a trajectory's coefficients, by conditioning the joint Gaussian."""
    rows, noise, x = jointly(model, trajectory, scaling)
    marginal = rows @ model.covariance @ rows.T + np.diag(noise**2)
    gain = np.linalg.solve(marginal, rows @ model.covariance).T
    mean = model.mean + gain @ (x - rows @ model.mean)
    return mean, model.covariance - gain @ rows @ model.covariance


def log_marginal(model, data, scaling):
    """log p(x) of all, but for a number that is the same for all models."""
    mask = np.asarray(data.mask)
    count, times, features = mask.shape
    x = np.where(mask, (data.given.values - scaling.loc) / scaling.scale, 0.0)
    rows = np.einsum("nkp,fg->nkfgp", powers(data.given.times, scaling, model.degree), np.eye(2))
    # What was not observed counts as zeros with noise of its own.
    rows = np.where(mask[..., None, None], rows, 0.0).reshape(count, times * features, -1)
    noise = np.where(mask, model.noise**2, 1.0).reshape(count, -1, 1) * np.eye(times * features)
    marginal = rows @ model.covariance @ rows.swapaxes(1, 2) + noise
    off = (x.reshape(count, -1) - rows @ model.mean)[..., None]
    squares = (off * np.linalg.solve(marginal, off)).sum()
    return -0.5 * (squares + np.linalg.slogdet(marginal)[1].sum())


def test_estimates_of_a_large_table_are_near_the_truth():
    data, scaling = simulate(TRUTH, 3_000)
    found = MixedModel.fit(data, scaling, degree=1)
    assert found.degree == 1
    np.testing.assert_allclose(found.mean, TRUTH.mean, atol=0.06)
    np.testing.assert_allclose(found.covariance, TRUTH.covariance, atol=0.1)
    np.testing.assert_allclose(found.noise, TRUTH.noise, rtol=0.03)


def test_no_estimate_near_is_more_likely():
    data, scaling = simulate(TRUTH, 400)
    found = MixedModel.fit(data, scaling, degree=1)
    best = log_marginal(found, data, scaling)
    unit = np.eye(4)
    others = [found._replace(mean=found.mean + step * row) for row in unit for step in (-0.1, 0.1)]
    others += [found._replace(noise=found.noise * factor) for factor in (0.95, 1.05)]
    others += [found._replace(covariance=found.covariance * factor) for factor in (0.8, 1.25)]
    others += [TRUTH]
    for other in others:
        assert log_marginal(other, data, scaling) < best


def test_no_iteration_is_less_likely_but_for_the_weak_prior():
    data, scaling = simulate(TRUTH, 300)
    estimate, moments = (
        MixedModel(np.zeros(4), np.eye(4), np.ones(2)),
        _Moments.of(data, scaling, 1),
    )
    scores = [log_marginal(estimate, data, scaling)]
    for _ in range(30):
        estimate = estimate._improved(moments)
        scores.append(log_marginal(estimate, data, scaling))
    # The prior, of four trajectories, is left out of these scores.
    assert (np.diff(scores) > -0.5).all()
    assert scores[-1] > scores[0] + 100


def test_a_few_trajectories_have_an_estimate_of_full_rank():
    data, scaling = simulate(TRUTH, 3, num_times=2)
    found = MixedModel.fit(data, scaling, degree=3)
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert (found.noise > 0).all()


def test_the_noise_of_a_feature_that_was_never_observed_is_not_estimated():
    data, scaling = simulate(TRUTH, 50)
    never = data.keep(np.asarray(data.mask) & np.array([True, False]))
    found = MixedModel.fit(never, scaling, degree=1)
    assert found.noise[1] > 0.1
    assert np.isfinite(found.covariance).all()


def test_one_trajectory_has_the_lowest_degree():
    data, scaling = simulate(TRUTH, 3)
    assert choose_degree(data[:1], scaling, most_coefficients=24).degree == 1


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("degree", [0, -1, 1.5])
def test_a_degree_that_is_no_positive_integer_is_refused(degree):
    data, scaling = simulate(TRUTH, 3)
    with pytest.raises(ValueError, match=f"degree must be a positive integer; got {degree}"):
        MixedModel.fit(data, scaling, degree=degree)


def test_forecasts_are_those_of_the_joint_gaussian_with_missing_values_and_without_any():
    data, scaling = simulate(TRUTH, 12, missing=0.4)
    context, target = data.split()
    context = context.keep(np.tile(np.arange(12)[:, None] != 3, 6))
    found = TRUTH.log_predictive(context, target, scaling)
    for i in range(12):
        mean, covariance = coefficients_given(TRUTH, context[[i]], scaling)
        rows, noise, x = jointly(TRUTH, target[[i]], scaling)
        sd = np.sqrt(np.einsum("ka,ab,kb->k", rows, covariance, rows) + noise**2)
        assert found[i] == pytest.approx(norm.logpdf(x, rows @ mean, sd).sum(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("degree", [1, 2])
def test_forecasts_of_one_feature_are_those_of_statsmodels(degree):
    pytest.importorskip("statsmodels")
    root = np.array([[1.0, 0, 0], [-0.5, 1.5, 0], [0.3, -0.8, 1.0]])[: degree + 1, : degree + 1]
    truth = MixedModel(np.array([0.5, -1.0, 2.0])[: degree + 1], root @ root.T, np.array([0.3]))
    data, _ = simulate(truth, 230, num_times=8)
    train, (context, target) = data[:200], data[200:].split()
    scaling = Scaling.fit(train)
    model = MixedModel.fit(train, scaling, degree=degree)
    mean, sd = baselines.mixed_model(train, context, target.given.times, degree=degree)
    known = np.asarray(target.mask)
    theirs = norm.logpdf(target.given.values, mean, sd) + np.log(scaling.scale)
    ours = model.log_predictive(context, target, scaling)
    np.testing.assert_allclose(ours, np.where(known, theirs, 0.0).sum((1, 2)), rtol=0.05, atol=0.1)


PARABOLAS = MixedModel(
    np.array([0.0, 2.0, -3.0, 1.0, -1.0, 2.0]), np.diag([1.0, 1, 2, 1, 1, 2]), np.array([0.1, 0.2])
)


@pytest.mark.parametrize(("truth", "degree"), [(TRUTH, 1), (PARABOLAS, 2)])
def test_the_degree_is_that_of_the_data(truth, degree):
    data, scaling = simulate(truth, 150, num_times=10)
    found = choose_degree(data, scaling, most_coefficients=24)
    assert found.degree == degree
    # The estimates are those of all trajectories.
    for one, other in zip(found, MixedModel.fit(data, scaling, degree=degree), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("most", [1, 4, 5])
def test_there_are_no_more_coefficients_than_allowed_but_a_line_is(most):
    data, scaling = simulate(PARABOLAS, 40, num_times=10)
    assert choose_degree(data, scaling, most_coefficients=most).degree == 1


MODELS = {"lines": TRUTH, "parabolas": PARABOLAS}


@pytest.fixture(scope="module", params=MODELS)
def started(request):
    """A mixed model, the latent ODE that starts as it, and data with missing values."""
    mixed = MODELS[request.param]
    data, scaling = simulate(mixed, 5, missing=0.3, seed=1)
    rngs = nnx.Rngs(0)
    parts = mixed.parts(width=4, rngs=rngs)
    model, guide = latent_ode(data, latent_dim=len(mixed.mean), scaling=scaling, rngs=rngs, **parts)
    # The last has an empty context.
    data = data.keep(np.tile(np.arange(5)[:, None] < 4, 6))
    return mixed, Fitted(model, guide, initial_params(model, guide)), data


def test_the_path_is_the_polynomial_of_mean_and_root_times_z0(started):
    mixed, fitted, data = started
    times = np.linspace(-1.0, -1.0 + 1.2 * LENGTH, 7)
    draws = forecast(random.key(0), fitted, data, times, num_samples=3)
    u = mixed.mean + np.asarray(draws["z0"]) @ np.linalg.cholesky(mixed.covariance).T
    u = u.reshape(*u.shape[:-1], 2, -1)
    scaled = np.einsum("kp,snfp->snkf", powers(times, degree=mixed.degree), u)
    expected = SCALING.loc + SCALING.scale * scaled
    np.testing.assert_allclose(draws["x_mean"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_guide_is_the_exact_posterior(started):
    mixed, fitted, data = started
    found = posterior(fitted, data)
    # z0 = L^-1 (u - mean)
    inverse = np.linalg.inv(np.linalg.cholesky(mixed.covariance))
    for i in range(len(data)):
        mean, covariance = coefficients_given(mixed, data[[i]], fitted.model.scaling)
        # In units of the posterior: the encoder keeps a floor below the noise, of 0.01.
        root = np.linalg.cholesky(inverse @ covariance @ inverse.T)
        off = np.linalg.solve(root, np.asarray(found.mean[i]) - inverse @ (mean - mixed.mean))
        np.testing.assert_allclose(off, 0, atol=0.05)
        white = np.linalg.solve(root, np.asarray(found.scale_tril[i]))
        np.testing.assert_allclose(white @ white.T, np.eye(len(mean)), atol=0.03)


def test_of_an_empty_context_the_guide_is_the_prior(started):
    mixed, fitted, data = started
    found, dim = posterior(fitted, data[4:]), len(mixed.mean)
    np.testing.assert_allclose(found.mean[0], np.zeros(dim), atol=1e-6)
    np.testing.assert_allclose(found.covariance_matrix[0], np.eye(dim), atol=1e-5)


def test_a_start_is_estimated_from_some_of_many_trajectories(monkeypatch):
    monkeypatch.setattr(mixed_model, "MOST_ESTIMATED", 60)
    data, scaling = simulate(TRUTH, 200)
    some = data.sample(60)
    assert len(some) == 60
    assert some.sample(60) is some
    found = choose_degree(data, scaling, most_coefficients=8)
    expected = choose_degree(some, scaling, most_coefficients=8)
    np.testing.assert_array_equal(found.mean, expected.mean)

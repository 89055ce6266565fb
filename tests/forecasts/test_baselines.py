"""The trivial baselines predict what their names say."""

import sys

import numpy as np
import pytest
from scipy.stats import norm

from np_latentode import Trajectories, baselines

NAN = np.nan
TRAIN = Trajectories.from_ragged([([0.0, 1.0], [[1.0, 10.0], [3.0, NAN]]), ([0.5], [[5.0, 20.0]])])
CONTEXT = Trajectories.from_ragged(
    [([0.0, 1.0, 2.0], [[0.0, 7.0], [2.0, NAN], [4.0, 9.0]]), ([], []), ([1.0], [[NAN, 3.0]])]
)
TIMES = np.array([-1.0, 0.5, 1.0, 3.0])


def test_constant_is_the_mean_of_the_training_data():
    predicted = baselines.constant(TRAIN, CONTEXT, TIMES)
    assert predicted.shape == (3, 4, 2)
    np.testing.assert_allclose(predicted, np.broadcast_to([3.0, 15.0], (3, 4, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("predict", "first", "second"),
    [
        (baselines.last_value, [0.0, 0.0, 2.0, 4.0], [7.0, 7.0, 7.0, 9.0]),
        (baselines.linear, [0.0, 1.0, 2.0, 4.0], [7.0, 7.5, 8.0, 9.0]),
        (baselines.pchip, [0.0, 1.0, 2.0, 4.0], [7.0, 7.5, 8.0, 9.0]),
    ],
)
def test_each_feature_is_predicted_from_its_own_observations(predict, first, second):
    predicted = predict(TRAIN, CONTEXT, TIMES)
    np.testing.assert_allclose(predicted[0], np.stack([first, second], 1), rtol=1e-6)
    np.testing.assert_allclose(predicted[2, :, 1], 3.0)


@pytest.mark.parametrize("predict", [baselines.last_value, baselines.linear, baselines.pchip])
def test_unobserved_features_are_predicted_by_the_training_mean(predict):
    predicted = predict(TRAIN, CONTEXT, TIMES)
    np.testing.assert_allclose(predicted[1], np.broadcast_to([3.0, 15.0], (4, 2)), rtol=1e-6)
    np.testing.assert_allclose(predicted[2, :, 0], 3.0, rtol=1e-6)


def _random_lines(rng, num_trajectories, *, cov, noise_scale):
    """Lines 2 - t + u_0 + u_1 t over a year, with times in days and an eighth of values missing."""
    times = np.sort(rng.uniform(0, 365, size=(num_trajectories, 8)), axis=1)
    u = rng.multivariate_normal(np.zeros(2), cov, size=num_trajectories)
    line = 2 + u[:, :1] + (u[:, 1:] - 1) * times / 365
    values = line + noise_scale * rng.normal(size=times.shape)
    values[rng.uniform(size=times.shape) < 1 / 8] = NAN
    return Trajectories(times, values[..., None])


@pytest.fixture(scope="module")
def lines():
    pytest.importorskip("statsmodels", reason="the extra `data` is not installed")
    cov = np.array([[1.0, -0.3], [-0.3, 0.5]])
    rng = np.random.default_rng(0)
    return _random_lines(rng, 400, cov=cov, noise_scale=0.3), cov


def _dense_reference(mean, cov, variance, unit, context, query, start=0.0):
    """Mean and sd of x(query) given x(times), from the joint covariance of both."""
    means, sds = [], []
    for i in range(len(context)):
        seen = np.asarray(context.mask[i, :, 0])
        t = (np.concatenate([context.given.times[i, seen], query]) - start) / unit
        powers = t[:, None] ** np.arange(len(mean))
        joint = powers @ cov @ powers.T + variance * np.eye(len(t))
        n = seen.sum()
        weights = np.linalg.inv(joint[:n, :n])
        x = np.asarray(context.values[i, :, 0], float)[seen] - powers[:n] @ mean
        means.append(powers[n:] @ mean + joint[n:, :n] @ weights @ x)
        sds.append(np.sqrt(np.diag(joint[n:, n:] - joint[n:, :n] @ weights @ joint[:n, n:])))
    return np.array(means)[..., None], np.array(sds)[..., None]


@pytest.mark.parametrize("degree", [1, 2])
@pytest.mark.slow
def test_mixed_model_conditions_as_the_joint_gaussian_does(lines, degree):
    train, _ = lines
    context, query = train[:5].before(150.0), np.array([0.0, 200.0, 400.0])
    start, unit = baselines._span(train)
    fitted = baselines._fit_polynomial(train, 0, start, unit, degree)
    expected = _dense_reference(*fitted[:3], unit, context, query, start)
    got = baselines.mixed_model(train, context, query, degree=degree)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_mixed_model_has_fixed_effects_of_covariates_on_level_and_slope():
    rng, count = np.random.default_rng(0), 150
    s, times = rng.normal(size=(count, 1)), np.sort(rng.uniform(0, 4, (count, 6)), axis=1)
    u = rng.normal(size=(count, 2)) * 0.2
    x = u[:, :1] + 2.0 * s + (u[:, 1:] - 0.5 * s) * times + 0.1 * rng.normal(size=times.shape)
    train = Trajectories(times, x[..., None], static=s)
    # Nothing is seen of two trajectories, whose covariates are 0 and 1.
    nothing = np.full((2, 1, 1), np.nan)
    empty = Trajectories(np.zeros((2, 1)), nothing, static=np.array([[0.0], [1.0]]))
    mean, _ = baselines.mixed_model(train, empty, np.array([0.0, 4.0]))
    # The random levels and slopes of this sample depend on the covariate a little, by chance.
    level, slope = np.polyfit(s[:, 0], u, 1)[0] + [2.0, -0.5]
    effect = mean[1, :, 0] - mean[0, :, 0]
    np.testing.assert_allclose(effect, [level, level + 4.0 * slope], atol=0.05)


def test_mixed_model_finds_the_exact_answer_where_it_is_right(lines):
    train, cov = lines
    context, query = train[:20].before(150.0), np.array([200.0, 400.0])
    exact = _dense_reference(np.array([2.0, -1.0]), cov, 0.3**2, 365.0, context, query)
    mean, sd = baselines.mixed_model(train, context, query)
    assert np.sqrt(np.mean((mean - exact[0]) ** 2)) < 0.2 * exact[1].mean()
    np.testing.assert_allclose(sd, exact[1], rtol=0.1)


def test_mixed_model_covers_what_it_has_not_seen(lines):
    train, cov = lines
    new = _random_lines(np.random.default_rng(1), 500, cov=cov, noise_scale=0.3)
    mean, sd = baselines.mixed_model(train, new.before(150.0), np.asarray(new.times))
    late = np.asarray(new.after(150.0).mask)
    inside = np.abs(np.asarray(new.values) - mean) < norm.ppf(0.95) * sd
    assert 0.87 < inside[late].mean() < 0.93


def test_mixed_model_of_an_empty_context_is_the_training_data(lines):
    train, _ = lines
    nothing = train[:1].keep(np.zeros((1, 8), bool))
    mean, sd = baselines.mixed_model(train, nothing, np.array([0.0]))
    assert mean.item() == pytest.approx(2.0, abs=0.3)
    assert sd.item() == pytest.approx(np.sqrt(1.0 + 0.3**2), rel=0.15)


def test_mixed_model_refuses_other_degrees_than_positive_integers():
    with pytest.raises(ValueError, match="degree must be a positive integer; got 0"):
        baselines.mixed_model(TRAIN, CONTEXT, TIMES, degree=0)


def test_mixed_model_names_the_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.regression.mixed_linear_model", None)
    with pytest.raises(ImportError, match=r"pip install 'np-latentode\[data\]'"):
        baselines.mixed_model(TRAIN, CONTEXT, TIMES)


def test_pchip_never_overshoots_and_is_smooth():
    seen = Trajectories([[0.0, 1.0, 2.0, 3.0]], [[[0.0], [0.0], [1.0], [1.0]]])
    times = np.linspace(0, 3, 301)
    curve = baselines.pchip(seen, seen, times)[0, :, 0]
    assert curve.min() == 0
    assert curve.max() == 1
    u = times[100:201] - 1
    np.testing.assert_allclose(curve[100:201], u**2 * (3 - 2 * u), atol=1e-6)


def test_pchip_takes_the_latest_of_values_observed_at_one_time():
    seen = Trajectories([[0.0, 1.0, 1.0]], [[[0.0], [5.0], [2.0]]])
    np.testing.assert_allclose(baselines.pchip(seen, seen, np.array([0.5, 1.0]))[0, :, 0], [1, 2])

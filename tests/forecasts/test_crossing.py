"""Crossings of thresholds, against simulation of a model that is known.

z(t) = exp(-t / 2) z0, feature j is weight_j z with an Ornstein-Uhlenbeck residual and white noise.
All is Gaussian, so that references are dense normal distributions, in NumPy and double precision.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from diffrax import Tsit5
from flax import nnx
from scipy.stats import norm
from still import CONTEXT, make_fitted

from np_latentode import (
    Bands,
    BernoulliLikelihood,
    Crossing,
    Ensemble,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    Labels,
    OrnsteinUhlenbeckLikelihood,
    Scaling,
    Solver,
    Threshold,
    Trajectories,
    crossing,
    forecast,
    latent_ode,
    signals,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
WEIGHT = np.array([1.0, -0.5])
NOISE, SCALE, TIMESCALE = np.array([0.3, 0.5]), np.array([0.8, 0.2]), np.array([2.0, 0.7])
SEEN = Trajectories(
    np.array([[0.0, 0.7, 1.5], [0.2, 0.4, 2.0]]),
    np.array([[[0.9, np.nan], [0.5, -0.4], [0.8, 0.1]], [[-0.2, 0.3], [np.nan, 0.2], [0.1, 0.0]]]),
)
TIMES = np.linspace(1.6, 6.0, 45)
NUM_SAMPLES, NUM_SIMULATED = 10_000, 200_000


def fitted_with(likelihood, like=SEEN):
    model, guide = latent_ode(
        like,
        latent_dim=1,
        dynamics=lambda: lambda t, z: -0.5 * z,
        decoder=lambda: lambda z: z * jnp.asarray(WEIGHT, z.dtype),
        likelihood=likelihood,
        scaling=Scaling.identity(2),
        solver=Solver(Tsit5(), dt0=1 / 8),
        rngs=nnx.Rngs(0),
    )
    return Fitted(model, guide, initial_params(model, guide))


def phi(times, features):
    return WEIGHT[features] * np.exp(-times / 2)


def cov(s, a, t, b):
    """Of the signals of features a at times s and of features b at times t; z0 is not known."""
    gap = np.abs(np.subtract.outer(s, t))
    residual = SCALE[a][:, None] ** 2 * np.exp(-gap / TIMESCALE[a][:, None])
    return np.outer(phi(s, a), phi(t, b)) + np.equal.outer(a, b) * residual


def seen_of(i, context=SEEN):
    """Times, features and values of what was seen, and the covariance of the values."""
    slots, features = np.nonzero(np.asarray(context.mask)[i])
    times = context.given.times[i][slots]
    noise = np.diag(NOISE[features] ** 2)
    own = cov(times, features, times, features) + noise
    return times, features, context.given.values[i][slots, features], own


def exact(rng_key, fitted, context, num_samples):
    """Draws from p(z0 | context), which is normal."""
    moments = []
    for i in range(len(context)):
        times, features, values, own = seen_of(i, context)
        gain = np.linalg.solve(own, phi(times, features))
        moments.append((gain @ values, np.sqrt(1 - gain @ phi(times, features))))
    mean, sd = jnp.asarray(moments, jnp.result_type(float)).T
    shape = (num_samples, len(context))
    return (mean + sd * jax.random.normal(rng_key, shape, mean.dtype))[..., None]


def signal_given_context(i, j):
    """Mean and covariance of the signal of feature j at the times."""
    times, features, values, own = seen_of(i)
    asked = np.full(len(TIMES), j)
    gain = np.linalg.solve(own, cov(times, features, TIMES, asked)).T
    left = cov(TIMES, asked, TIMES, asked) - gain @ cov(times, features, TIMES, asked)
    return gain @ values, left


@pytest.fixture(scope="module")
def draws():
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE))
    options = dict(inference=exact, num_samples=NUM_SAMPLES, draws_at_once=1_000)
    return signals(KEY, fitted, SEEN, TIMES, **options)


FIVE = 5 * 0.5 / np.sqrt(NUM_SAMPLES)
"""Five standard errors of a share of the draws, at most."""


@pytest.mark.parametrize("text", ["x_0 > 1", "x_1 <= -0.3"])
def test_the_probability_at_one_time_is_that_of_a_normal(draws, text):
    found = Crossing.of(draws, TIMES, text, SEEN.names)
    j, side = found.threshold.place(SEEN.names), 1 if found.threshold.relation == ">" else -1
    for i in range(2):
        mean, covariance = signal_given_context(i, j)
        sd = np.sqrt(np.diag(covariance))
        expected = norm.cdf(side * (mean - found.threshold.level) / sd)
        np.testing.assert_allclose(found.probability[i], expected, atol=FIVE)


@pytest.mark.parametrize("text", ["x_0 > 1", "x_1 < -0.3"])
def test_crossings_by_then_and_their_first_times_are_those_of_a_simulation(draws, text):
    found = Crossing.of(draws, TIMES, text, SEEN.names)
    j, rng = found.threshold.place(SEEN.names), np.random.default_rng(0)
    for i in range(2):
        mean, covariance = signal_given_context(i, j)
        root = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(TIMES)))
        paths = mean + rng.normal(size=(NUM_SIMULATED, len(TIMES))) @ root.T
        beyond = found.threshold.beyond(paths)
        reached = np.logical_or.accumulate(beyond, axis=1).mean(0)
        np.testing.assert_allclose(found.by_then[i], reached, atol=FIVE)
        assert found.by_then[i, -1] == found.ever[i]
        # The quantiles, by the shares that the simulation has at them.
        levels = [0.05, 0.1, 0.2, 0.4]
        for level, when in zip(levels, found.quantiles(levels)[:, i], strict=True):
            if np.isinf(when):
                assert reached[-1] < level + FIVE
            else:
                k = int(np.argmin(np.abs(TIMES - when)))
                assert reached[k] > level - FIVE
                assert k == 0 or reached[k - 1] < level + FIVE


def test_curves_of_means_would_cross_too_rarely(draws):
    means = {"signal": draws["x_mean"]}
    ours, theirs = (Crossing.of(d, TIMES, "x_0 > 1", SEEN.names) for d in (draws, means))
    assert (theirs.ever < ours.ever - 0.2).all()


def test_the_noise_is_what_x_has_beyond_the_signal(draws):
    for name in ("x_mean", "signal"):
        assert draws[name].shape == draws["x"].shape
    difference = np.var(draws["x"], 0) - np.var(draws["signal"], 0)
    np.testing.assert_allclose(difference, np.broadcast_to(NOISE**2, (2, 45, 2)), atol=0.08)
    np.testing.assert_allclose(draws["x"].mean(0), draws["signal"].mean(0), atol=0.08)


def test_forecasts_of_signals_are_forecasts(draws):
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE))
    made = signals(KEY, fitted, SEEN, TIMES, inference=exact, num_samples=10)
    same = forecast(KEY, fitted, SEEN, TIMES, inference=exact, num_samples=10)
    for name, expected in same.items():
        np.testing.assert_allclose(made[name], expected, rtol=1e-5, atol=1e-5)


def test_without_a_residual_the_signal_is_the_mean():
    made = signals(KEY, make_fitted(), CONTEXT, [3.0, 5.0], num_samples=20)
    np.testing.assert_array_equal(made["signal"], made["x_mean"])


def test_each_feature_has_the_signal_of_its_likelihood():
    ou = OrnsteinUhlenbeckLikelihood(0.3, 0.8, 2.0)
    bits = SEEN.keep(np.broadcast_to(np.arange(2) == 0, SEEN.mask.shape))
    mixed = fitted_with(FeatureLikelihoods(ou, BernoulliLikelihood()), bits)
    made = signals(KEY, mixed, bits, TIMES, num_samples=50)
    np.testing.assert_array_equal(made["signal"][..., 1], made["x_mean"][..., 1])
    assert (made["signal"][..., 0] != made["x_mean"][..., 0]).all()
    plain = fitted_with(FeatureLikelihoods(GaussianLikelihood(0.3), GaussianLikelihood(0.5)))
    made = signals(KEY, plain, SEEN, TIMES, num_samples=50)
    np.testing.assert_array_equal(made["signal"], made["x_mean"])


def test_bands_stretch_signals_as_they_stretch_x():
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE))
    plain, widths = Ensemble((fitted,)), np.array([2.0, 0.5])
    one, other = (
        signals(KEY, ensemble, SEEN, TIMES, num_samples=40)
        for ensemble in (plain, replace(plain, bands=Bands(widths)))
    )
    for name in ("x", "signal"):
        median = np.median(one[name], axis=0)
        expected = median + widths * (one[name] - median)
        np.testing.assert_allclose(other[name], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(other["x_mean"], one["x_mean"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_ensemble_crosses_as_often_as_its_members_by_their_weights():
    high, low = (
        fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, scale, TIMESCALE)) for scale in (2.0, 0.01)
    )
    alone = [crossing(KEY, f, SEEN, TIMES, "x_0 > 1.5", num_samples=4_000) for f in (high, low)]
    mixed = crossing(KEY, Ensemble((high, low), [0.25, 0.75]), SEEN, TIMES, "x_0 > 1.5")
    expected = 0.25 * alone[0].ever + 0.75 * alone[1].ever
    np.testing.assert_allclose(mixed.ever, expected, atol=5 * 0.5 / np.sqrt(1_000))
    assert len(mixed.first) == 1_000


def crossed(signal, times, text="a > 2", **labels):
    signal = np.asarray(signal, float)[..., None]
    names = Labels(tuple("uvw"[: signal.shape[1]]), ("a",), **labels)
    return Crossing.of({"signal": signal}, times, text, names)


def test_times_in_any_order_have_the_same_probabilities():
    rng = np.random.default_rng(0)
    signal, times = rng.normal(2, 1, (30, 3, 7)), rng.normal(size=(3, 7))
    order = np.argsort(times, axis=1)
    rising = np.take_along_axis(signal, order[None], axis=2)
    ours = crossed(signal, times)
    theirs = crossed(rising, np.take_along_axis(times, order, axis=1))
    for name in ("probability", "by_then"):
        found = np.take_along_axis(getattr(ours, name), order, axis=1)
        np.testing.assert_array_equal(found, getattr(theirs, name))
    np.testing.assert_array_equal(ours.first, theirs.first)


def test_times_that_are_repeated_at_the_end_change_nothing():
    rng = np.random.default_rng(0)
    signal, times = rng.normal(2, 1, (30, 3, 7)), np.sort(rng.normal(size=(3, 7)), axis=1)
    longer = np.concatenate([signal, signal[..., -1:]], axis=2)
    ours, theirs = crossed(signal, times), crossed(longer, np.hstack([times, times[:, -1:]]))
    np.testing.assert_array_equal(ours.by_then, theirs.by_then[:, :-1])
    np.testing.assert_array_equal(ours.first, theirs.first)


def test_quantiles_that_are_not_reached_are_infinite_and_empty_in_the_table():
    # One of four draws crosses at 1, another one at 3, and two never.
    signal = [[[0, 0, 0]], [[3, 0, 0]], [[0, 0, 3]], [[2, 2, 2]]]
    found = crossed(signal, [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(found.probability, [[0.25, 0.0, 0.25]])
    np.testing.assert_array_equal(found.by_then, [[0.25, 0.25, 0.5]])
    np.testing.assert_array_equal(found.quantiles([0.25, 0.26, 0.51])[:, 0], [1.0, 3.0, np.inf])
    table = found.first_to_dataframe()
    assert [*table.columns] == [
        "id",
        "feature",
        "threshold",
        "q0.05",
        "q0.5",
        "q0.95",
        "probability",
    ]
    assert table.iloc[0, :5].tolist() == ["u", "a", "> 2", 1.0, 3.0]
    assert np.isnan(table["q0.95"][0])
    assert table["probability"][0] == 0.5
    table = found.to_dataframe()
    assert table["time"].tolist() == [1.0, 2.0, 3.0]
    assert table["probability_by_then"].tolist() == [0.25, 0.25, 0.5]


@pytest.mark.parametrize("zone", [False, True])
@pytest.mark.parametrize("backend", ["pandas", "polars"])
def test_times_in_tables_are_those_of_the_table(zone, backend):
    dates = dict(origin=np.datetime64("2024-01-01", "us"), unit="D", time="day", zone=zone)
    found = crossed(
        np.array([[[0, 3], [0, 0]]]),
        np.array([[1.0, 2.0], [1.5, 4.0]]),
        starts=(0.0, 10.0),
        **dates,
    )
    table, first = (f(backend=backend) for f in (found.to_dataframe, found.first_to_dataframe))
    reached, never = first["q0.5"].to_list()
    assert reached == pd.Timestamp("2024-01-03", tz="UTC" if zone else None)
    assert pd.isna(never)
    assert str(table["day"].to_list()[-1])[:10] == "2024-01-15"


def test_a_threshold_is_in_the_units_of_the_table():
    df = pd.DataFrame({"id": [0, 0, 1], "time": [0.0, 1.0, 1.0], "bili": [1.0, 3.0, 2.0]})
    df["b"] = 0.0
    own = Trajectories.from_dataframe(df, id="id", time="time", values=["bili", "b"], log=["bili"])
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE))
    draws = signals(KEY, fitted, own, TIMES, num_samples=30)
    bare = Trajectories(own.given.times, own.given.values, own.mask)
    logs = signals(KEY, fitted, bare, TIMES, num_samples=30)
    np.testing.assert_allclose(draws["signal"][..., 0], np.exp(logs["signal"][..., 0]), rtol=1e-5)
    found = Crossing.of(draws, TIMES, "bili > 2", own.names)
    assert 0 < found.ever[0] < 1
    expected = Crossing.of(logs, TIMES, Threshold("x_0", ">", float(np.log(2))), bare.names)
    np.testing.assert_array_equal(found.first, expected.first)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bili>2", Threshold("bili", ">", 2.0)),
        (" total protein  <= -1e3 ", Threshold("total protein", "<=", -1e3)),
        ("a>b >= .5", Threshold("a>b", ">=", 0.5)),
        ("p<0.05<1", Threshold("p<0.05", "<", 1.0)),
        ("Protein, total < 6", Threshold("Protein, total", "<", 6.0)),
    ],
)
def test_a_threshold_is_read_as_it_is_written(text, expected):
    assert Threshold.read(text) == expected
    assert Threshold.read(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["bili", "bili >", "> 2", "bili > two", "bili = 2", "bili > nan", "bili > inf", ""]
)
def test_what_is_no_threshold_is_refused(text):
    with pytest.raises(ValueError, match="threshold must be a column, one of >, >=, < and <=, and"):
        Threshold.read(text)


def fails(rng_key, fitted, context, num_samples):
    raise AssertionError("nothing may be drawn")


def test_a_threshold_of_no_column_is_refused_before_anything_is_drawn():
    rule = r"threshold must name one of the columns \['x_0', 'x_1'\]; got 'bili' in 'bili > 2'"
    with pytest.raises(ValueError, match=rule):
        crossing(KEY, make_fitted(), CONTEXT, [5.0], "bili > 2", inference=fails)
    with pytest.raises(ValueError, match="relation must be one of >, >=, <, <=; got '='"):
        Threshold("x_0", "=", 2.0)


def test_times_that_are_not_those_of_the_draws_are_refused():
    with pytest.raises(ValueError, match=r"times must be those of the draws, shape \(3,\)"):
        crossed(np.zeros((2, 1, 3)), [1.0, 2.0])


def test_ids_and_times_that_the_tables_cannot_name_are_refused():
    for name in ("feature", "probability", "q0.05"):
        with pytest.raises(ValueError, match="id and time must not be called feature, threshold"):
            crossed(np.zeros((2, 1, 1)), [1.0], id=name).to_dataframe()

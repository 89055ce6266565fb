"""The effect of a covariate: closed forms for its size and for its band."""

from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from jax import random
from scipy.stats import t as student_t

from np_latentode import (
    Ensemble,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    LinearDecoder,
    LinearDynamics,
    LinearShift,
    Scaling,
    StandardNormal,
    Trajectories,
    effect,
    latent_ode,
    load,
    plot_effect,
    save,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

TIMES = np.array([1.0, 2.0, 4.0])
NAMES = dict(id="id", time="time", values=["x", "y"])


def table(log=()):
    rng = np.random.default_rng(0)
    rows = [
        (
            i,
            float(t),
            np.exp(rng.normal()),
            np.exp(rng.normal()),
            "ab"[i % 2],
            20.0 + i,
            "uvw"[i % 3],
        )
        for i in range(6)
        for t in range(5)
    ]
    df = pd.DataFrame(rows, columns=["id", "time", "x", "y", "arm", "age", "site"])
    return Trajectories.from_dataframe(df, **NAMES, static=["arm", "age", "site"], log=log)


def dated():
    """The same table, with dates in a time zone."""
    df = table().to_dataframe()
    df["time"] = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(df["time"], "D")
    return Trajectories.from_dataframe(df, **NAMES, static=["arm", "age", "site"])


def members(data, slopes):
    """Fits with z(t0) = z0 + W s whose slope depends on the arm and on the age, by `slopes`."""
    scaling = Scaling.fit(data)
    matrix = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    guide = latent_ode(data, latent_dim=3, rngs=nnx.Rngs(0))[1]
    for slope in slopes:
        weight = np.zeros((3, 4))  # arm, age, and two levels of the site
        weight[2, :2] = slope
        weight[1, 0] = 2.0 * slope
        model = LatentODE(
            LinearDynamics(matrix, np.zeros(3)),
            LinearDecoder(np.eye(2, 3), np.zeros(2)),
            prior=StandardNormal(3),
            scaling=scaling,
            likelihood=GaussianLikelihood(),
            shift=LinearShift(weight),
        )
        yield Fitted(model, guide, initial_params(model, guide))


def expected(data, slope):
    """The effect of arm b, of shape (time, feature): a slope of x, a level of y."""
    scaling = Scaling.fit(data)
    t = (TIMES - scaling.t0) / scaling.time_unit
    return np.stack([slope * t, 2.0 * slope * np.ones(3)], axis=1) * scaling.scale


SLOPES = [0.1, 0.3, 0.2, 0.6]
WEIGHTS = np.array([0.3, 0.3, 0.2, 0.2])


def test_of_cross_fitted_members_the_band_is_that_of_the_jackknife():
    data = table()
    ensemble = Ensemble(tuple(members(data, SLOPES)), WEIGHTS, folds=(0, 1, 0, 1))
    found = effect(random.key(0), ensemble, "arm", data, TIMES)
    # Each fold has one member of each of two candidates, with the weights of these.
    of_folds = [(0.3 * 0.1 + 0.2 * 0.2) / 0.5, (0.3 * 0.3 + 0.2 * 0.6) / 0.5]
    mean, sd = np.mean(of_folds), np.sqrt(0.5 * np.var(of_folds) * 2)
    np.testing.assert_allclose(found.estimate, expected(data, mean), rtol=1e-3)
    np.testing.assert_allclose(found.sd, expected(data, sd), rtol=1e-3)
    half = student_t.ppf(0.95, 1) * sd
    np.testing.assert_allclose(found.high, expected(data, mean + half), rtol=1e-3)
    np.testing.assert_allclose(found.low, expected(data, mean - half), rtol=1e-3)
    assert found.between == ("a", "b")


def test_of_other_members_it_is_their_standard_deviation():
    data = table()
    found = effect(random.key(0), Ensemble(tuple(members(data, SLOPES))), "arm", data, TIMES)
    np.testing.assert_allclose(found.estimate, expected(data, np.mean(SLOPES)), rtol=1e-3)
    np.testing.assert_allclose(found.sd, expected(data, np.std(SLOPES, ddof=1)), rtol=1e-3)


def test_the_order_of_the_entries_decides_the_sign_and_equal_ones_have_no_effect():
    data = table()
    ensemble = Ensemble(tuple(members(data, SLOPES)))
    there, back, none = (
        effect(random.key(0), ensemble, "arm", data, TIMES, between=pair).estimate
        for pair in (("a", "b"), ("b", "a"), ("b", "b"))
    )
    np.testing.assert_allclose(there, -back, rtol=1e-5)
    np.testing.assert_array_equal(none, 0)


@pytest.mark.slow
def test_of_a_number_it_is_that_of_one_more_unit():
    data = table()
    ensemble = Ensemble(tuple(members(data, SLOPES)))
    per_sd = expected(data, np.mean(SLOPES))[:, 0]
    found = effect(random.key(0), ensemble, "age", data, TIMES)
    sd = data.given_static[:, 1].std()
    np.testing.assert_allclose(found.estimate[:, 0], per_sd / sd, rtol=1e-3)
    np.testing.assert_allclose(found.estimate[:, 1], 0, atol=1e-5)
    found = effect(random.key(0), ensemble, "age", data, TIMES, between=(40, 60))
    np.testing.assert_allclose(found.estimate[:, 0], 20 * per_sd / sd, rtol=1e-3)


def test_of_logarithms_it_is_a_ratio_in_table_and_figure():
    data = table(log=["x"])
    ensemble = Ensemble(tuple(members(data, SLOPES)))
    found = effect(random.key(0), ensemble, "arm", data, TIMES)
    difference = expected(data, np.mean(SLOPES))
    np.testing.assert_allclose(found.estimate[:, 0], np.exp(difference[:, 0]), rtol=1e-3)
    np.testing.assert_allclose(found.estimate[:, 1], difference[:, 1], rtol=1e-3)
    rows = found.to_dataframe()
    assert [*rows] == ["time", "feature", "scale", "effect", "se", "low0.9", "high0.9"]
    assert rows["scale"].tolist() == ["ratio", "difference"] * 3
    np.testing.assert_array_equal(rows["time"], np.repeat(TIMES, 2))
    labels = [axis.get_ylabel() for axis in plot_effect(found).axes]
    assert labels == ["ratio", "difference"]


def test_the_folds_of_members_come_back_from_disk(tmp_path):
    data = table()
    save(tmp_path / "fit", Ensemble(tuple(members(data, SLOPES)), folds=(0, 1, 0, 1)))
    again = load(tmp_path / "fit")
    assert isinstance(again, Ensemble)
    assert again.folds == (0, 1, 0, 1)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"column": "weight"}, "column must name a static covariate of the fit; got 'weight', and"),
        ({"column": "site"}, "between must name two of the categories of 'site', u, v, w; got"),
        ({"between": ("a", "c")}, r"between must be two categories of 'arm', a, b; got \('a', 'c'"),
        ({"between": "ab"}, "between must be two categories of 'arm', a, b; got 'ab'"),
        ({"column": "age", "between": ("x", 2)}, "between must be two finite numbers; got"),
        ({"level": 90}, "level must lie between 0 and 1; got 90"),
        ({"times": [[1.0]]}, r"times must have shape \(time,\); got \(1, 1\)"),
        ({"times": [1e6]}, "times must be within reach of the solver"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_computed(change, rule):
    data = table()
    given = dict(column="arm", times=TIMES) | change
    ensemble = Ensemble(tuple(members(data, SLOPES)))
    with pytest.raises(ValueError, match=rule):
        effect(random.key(0), ensemble, given.pop("column"), data, given.pop("times"), **given)


def test_dynamics_that_diverge_are_refused_in_a_sentence():
    data = table()
    fits = [*members(data, SLOPES)]
    params = jax.tree.map(lambda x: x, fits[1].params)
    params["dynamics$params"] = jax.tree.map(lambda x: x + 1e9, params["dynamics$params"])
    ensemble = Ensemble((fits[0], Fitted(fits[1].model, fits[1].guide, params)))
    with pytest.raises(ValueError, match="times must be where the dynamics are finite"):
        effect(random.key(0), ensemble, "arm", data, TIMES)


def test_times_in_a_zone_are_dates_of_utc_in_table_and_figure():
    data = dated()
    ensemble = Ensemble(tuple(members(data, SLOPES)))
    found = effect(random.key(0), ensemble, "arm", data, TIMES)
    assert str(found.to_dataframe()["time"].dtype) == "datetime64[us, UTC]"
    first, *_ = found.to_dataframe(backend="polars")["time"].to_list()
    assert first.isoformat() == "2024-01-02T00:00:00+00:00"
    assert plot_effect(found).axes[0].get_xlabel() == "time (UTC)"


def test_a_column_of_times_that_the_table_needs_is_refused():
    data = table()
    found = effect(random.key(0), Ensemble(tuple(members(data, SLOPES))), "arm", data, TIMES)
    taken = replace(found, labels=replace(found.labels, time="scale"))
    with pytest.raises(ValueError, match=r"time must not be called feature, scale, .*got 'scale'"):
        taken.to_dataframe()


@pytest.mark.usefixtures("untyped")
def test_a_band_needs_members_that_differ():
    data = table()
    one, *_ = members(data, SLOPES)
    for single in (one, Ensemble((one,))):
        with pytest.raises(ValueError, match="fitted must be an Ensemble of two members or more"):
            effect(random.key(0), single, "arm", data, TIMES)
    same = Ensemble((one, one), folds=(0, 0))
    with pytest.raises(ValueError, match="trained without different folds, for a band; got one"):
        effect(random.key(0), same, "arm", data, TIMES)

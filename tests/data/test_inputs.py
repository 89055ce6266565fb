"""Inputs: rows of what is given over time, with trajectories and in tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax import random

from np_latentode import (
    Inputs,
    InputUnits,
    MalformedRows,
    Scaling,
    Trajectories,
    random_context,
)
from np_latentode.programs.plate import subsample

NAN = np.nan
KINDS = {"dose": "event", "temp": "linear", "on": "constant"}
COLUMNS = dict(id="id", time="time", values="x")
TABLE = pd.DataFrame(
    dict(
        id=["a", "a", "b", "a", "a", "b", "b", "a", "c"],
        time=[0.5, 1.0, 0.25, 1.0, 3.0, 2.0, 4.0, -1.0, 1.5],
        x=[1.0, NAN, 3.0, 2.0, NAN, 4.0, NAN, NAN, 6.0],
        dose=[NAN, 10.0, NAN, 20.0, 5.0, 7.0, NAN, 30.0, NAN],
        temp=[36.0, NAN, NAN, 37.0, NAN, 38.0, 39.0, NAN, NAN],
        on=[1, 1, 0, 0, 1, 0, 1, 0, np.nan],
    )
)


def read(df=TABLE, inputs=None, **changes):
    return Trajectories.from_dataframe(df, **COLUMNS, inputs=inputs or KINDS, **changes)


def test_all_rows_of_an_id_count_and_those_without_measurements_are_no_observations():
    data = read()
    assert data.names.inputs == ("dose", "temp", "on")
    assert data.names.kinds == ("event", "linear", "constant")
    np.testing.assert_array_equal(np.asarray(data.observed).sum(1), [2, 2, 1])
    np.testing.assert_array_equal(data.inputs.times[0], [-1, 0.5, 1, 1, 3])
    np.testing.assert_array_equal(data.inputs.times[1], [0.25, 2, 4, 4, 4])
    # Two events of one id and time are both there; padding gives nothing new.
    np.testing.assert_array_equal(data.inputs.values[0, :, 0], [30, NAN, 10, 20, 5])
    np.testing.assert_array_equal(data.inputs.values[1, :, 1], [NAN, 38, 39, NAN, NAN])
    assert np.isnan(data.inputs.values[2]).all()
    assert "dose (event)" in str(data.names)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet", "xlsx", "nc"])
def test_a_table_comes_back_from_a_file_with_its_inputs(tmp_path, ending):
    data = read()
    data.to_file(tmp_path / f"table.{ending}")
    again = Trajectories.from_file(tmp_path / f"table.{ending}", **COLUMNS, inputs=KINDS)
    np.testing.assert_array_equal(again.inputs.given_times, data.inputs.given_times)
    np.testing.assert_array_equal(again.inputs.given_values, data.inputs.given_values)
    np.testing.assert_array_equal(again.given.values, data.given.values)
    assert again.names == data.names


def test_what_is_given_at_an_observed_time_is_in_its_row():
    rows = read().to_dataframe()
    assert [*rows] == ["id", "time", "x", "dose", "temp", "on"]
    assert rows["time"].tolist() == [-1, 0.5, 1, 1, 3, 0.25, 2, 4, 1.5]
    np.testing.assert_array_equal(rows["x"], [NAN, 1, 2, NAN, NAN, 3, 4, NAN, 6])
    np.testing.assert_array_equal(rows["dose"][:5], [30, NAN, 10, 20, 5])


def test_dates_of_inputs_come_back_also_since_each_first_row():
    df = TABLE.assign(time=pd.Timestamp("2020-01-31") + pd.to_timedelta(TABLE["time"], "D"))
    data = read(df, since="first")
    assert data.inputs.times[0, 0] == -1.5
    rows = data.to_dataframe()
    assert set(rows["time"]) == set(df["time"])
    again = read(rows, since="first")
    np.testing.assert_array_equal(again.inputs.given_values, data.inputs.given_values)


def test_in_a_long_table_a_row_may_only_give_an_input(tmp_path):
    long = TABLE.rename(columns={"x": "result"}).assign(test=np.where(TABLE["x"].isna(), None, "x"))
    columns = dict(id="id", time="time", feature="test", value="result", inputs=KINDS)
    for names in ((), ["x"]):
        long.to_csv(tmp_path / "long.csv", index=False)
        for data in (
            Trajectories.from_dataframe(long, **columns, values=names),
            Trajectories.from_file(tmp_path / "long.csv", **columns, values=names),
        ):
            np.testing.assert_array_equal(data.inputs.given_values, read().inputs.given_values)
            np.testing.assert_array_equal(data.given.values, read().given.values)
    unnamed = long.assign(test=None, dose=np.nan, temp=np.nan, on=np.nan)
    with pytest.raises(MalformedRows, match="column 'test' must say in each row what was measured"):
        Trajectories.from_dataframe(unnamed, **columns)


def test_they_follow_selection_and_jax_and_hidden_observations_hide_none():
    data = read()
    np.testing.assert_array_equal(data[1].inputs.times, data.inputs.times[1:2])
    chosen = data[np.array([2, 0])]
    np.testing.assert_array_equal(chosen.inputs.given_values[1], data.inputs.given_values[0])
    doubled = jax.jit(lambda some: jax.tree.map(lambda a: 2 * a, some.inputs.times))(data)
    np.testing.assert_array_equal(doubled, 2 * data.inputs.times)
    hidden = [*data.split(), data.before(0.7), random_context(random.key(0), data)]
    hidden.append(data.without(np.asarray(data.times) > 1))
    for some in hidden:
        np.testing.assert_array_equal(some.inputs.values, data.inputs.values)
    rebuilt = jax.tree.map(lambda a: a, data)
    assert rebuilt.inputs.kinds == data.inputs.kinds


def test_a_minibatch_holds_the_inputs_of_its_trajectories():
    import numpyro
    from numpyro import handlers

    data = read()
    with handlers.seed(rng_seed=1), numpyro.plate("p", 3, subsample_size=2) as rows:
        some = subsample(data)
    np.testing.assert_array_equal(some.inputs.values, data.inputs.values[np.asarray(rows)])


def test_times_of_inputs_have_the_offset_of_the_observations():
    far = TABLE.assign(time=TABLE["time"] + 2_450_000.1)
    data = read(far)
    assert data.offset.time
    gaps = np.diff(data.inputs.times[0])
    np.testing.assert_allclose(gaps, [1.5, 0.5, 0, 2], atol=1e-6)
    moved = jax.tree.map(lambda a: a, data)
    np.testing.assert_allclose(moved.inputs.given_times, data.inputs.given_times, atol=0.5)


def test_windows_count_all_inputs_from_their_starts():
    windows = read().windows(1.0)
    starts = np.array(windows.names.starts)
    expected = np.sort(read().inputs.given_times, axis=1) - starts[:, None]
    np.testing.assert_allclose(windows.inputs.given_times, expected)
    rows = windows.to_dataframe()
    assert set(rows["time"]) == set(TABLE["time"])
    assert Scaling.fit(windows).t0 == 0


def test_units_centre_controls_and_only_scale_events():
    data = read()
    scaling = Scaling.fit(data)
    assert scaling.t0 == -1  # the first event
    assert isinstance(scaling.inputs, InputUnits)
    doses = TABLE["dose"].dropna()
    np.testing.assert_allclose(scaling.inputs.mean, [0, 37.5, 0.5])
    np.testing.assert_allclose(scaling.inputs.scale[0], np.sqrt(np.mean(doses**2)))
    np.testing.assert_allclose(scaling.inputs.scale[1], np.std([36, 37, 38, 39]))
    # A constant column has a unit of 1, and a row without an amount is no event.
    flat = read(TABLE.assign(on=5.0, dose=TABLE["dose"].fillna(0.0)))
    scaling = Scaling.fit(flat)
    assert scaling.inputs.scale[2] == 1
    np.testing.assert_allclose(scaling.inputs.scale[0], np.sqrt(np.mean(doses**2)))
    early = Scaling.fit(read(TABLE.assign(dose=np.where(TABLE["time"] < 0, 0, TABLE["dose"]))))
    assert early.t0 == 0.25


def test_an_encoder_reads_controls_amounts_so_far_and_the_time_since():
    inputs = Inputs(
        [[0.0, 1.0, 2.0]],
        np.array([[[1.0, 5.0], [NAN, 7.0], [3.0, NAN]]]),
        ("linear", "event"),
    )
    found = inputs.read(jnp.array([[0.0, 0.5, 1.0, 1.5, 3.0]]))[0]
    np.testing.assert_allclose(found[:, 0], [1, 1.5, 2, 2.5, 3])
    np.testing.assert_allclose(found[:, 1], [0, 5, 5, 12, 12])
    np.testing.assert_allclose(found[:, 2], [0, 0.5, 1, 0.5, 2])


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (([[0.0, 1.0]], [[[1.0]]], "event"), "inputs: times must have shape .* got"),
        (([[1.0, 0.0]], [[[1.0], [1.0]]], "event"), "inputs: times must not decrease"),
        (([[NAN]], [[[1.0]]], "event"), "inputs: times must be finite"),
        (([[0.0]], [[[np.inf]]], "event"), "inputs: values must be finite, or NaN where nothing"),
        (([[0.0]], [[[1.0]]], "pulse"), "inputs must be of the kinds .*event; got 'pulse'"),
        (([[0.0]], [[[1.0]]], ("event", "event")), "inputs: kinds must be of 1 inputs"),
    ],
)
def test_bad_inputs_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        Inputs(*arguments)


def test_a_table_needs_a_column_of_values():
    rule = "id, time and inputs must name different columns, and values at least one"
    with pytest.raises(ValueError, match=rule):
        Trajectories.from_dataframe(TABLE, id="id", time="time", inputs=KINDS)


@pytest.mark.usefixtures("untyped")
def test_bad_tables_and_trajectories_are_refused():
    for inputs, rule in [
        ({"dose": "bolus"}, "inputs must be of the kinds constant, linear, event; got 'bolus'"),
        (["doze"], r"inputs and values must name columns of the table; got \['doze'\]"),
        (["x"], "id, time, inputs and values must name different columns"),
        (["id"], "must name different columns"),
    ]:
        with pytest.raises(ValueError, match=rule):
            read(inputs=inputs)
    with pytest.raises(MalformedRows, match=r"column 'dose' must be finite.*got inf in row 4"):
        read(TABLE.assign(dose=[0, 0, 0, 0, np.inf, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="column 'on' must hold numbers, or true and false"):
        read(TABLE.assign(on=["yes"] * 9))
    with pytest.raises(ValueError, match="train must hold an entry of every input; got none of"):
        Scaling.fit(read(TABLE.assign(dose=0.0)))
    data = read()
    with pytest.raises(
        ValueError, match=r"inputs must be a np_latentode\.Inputs of 2 traj.*; got 3"
    ):
        Trajectories([[0.0]] * 2, [[[1.0]]] * 2, inputs=data.inputs)
    with pytest.raises(ValueError, match=r"inputs must be a np_latentode\.Inputs .*; got str"):
        Trajectories([[0.0]] * 2, [[[1.0]]] * 2, inputs="dose")
    scaling = Scaling.fit(data)
    bare = Trajectories(data.given.times, data.given.values)
    with pytest.raises(ValueError, match="some must have the inputs of the training data, dose"):
        scaling.check(bare, name="some")
    other = Inputs(data.inputs.given_times, data.inputs.given_values, "event")
    wrong = Trajectories(data.given.times, data.given.values, inputs=other)
    with pytest.raises(ValueError, match=r"got the kinds event, event, event"):
        scaling.check(wrong, name="some")
    with pytest.raises(ValueError, match="the events of train must not be earlier than t0 = 0"):
        Scaling.fit(data, t0=0.0)


def test_ids_of_plans_and_of_other_inputs_are_compared_as_text(tmp_path):
    numbered = TABLE.assign(id=TABLE["id"].map({"a": 1, "b": 2, "c": 3}))
    data = read(numbered)
    plan = pd.DataFrame(dict(id=[2], time=[5.0], dose=[9.0], temp=[NAN], on=[NAN]))
    plan.to_csv(tmp_path / "plan.csv", index=False)
    expected = data.with_plan(plan).inputs.given_values
    np.testing.assert_array_equal(
        data.with_plan(tmp_path / "plan.csv").inputs.given_values, expected
    )
    others = read(numbered.assign(id=numbered["id"].astype(str), dose=2 * numbered["dose"]))
    np.testing.assert_array_equal(
        data.with_inputs(others).inputs.given_values, others.inputs.given_values
    )

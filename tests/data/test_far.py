"""Numbers far outside: they are named, and change no unit."""

import warnings

import numpy as np
import pandas as pd
import pytest

from np_latentode import Scaling, Trajectories
from np_latentode.app.division import divide
from np_latentode.data.far import usual, without_far_times

COLUMNS = dict(id="who", time="when", values=["x", "y"])


def table(count=60):
    rng = np.random.default_rng(0)
    when = pd.Timestamp("2021-01-04") + pd.to_timedelta(rng.integers(0, 100, count), unit="D")
    x = rng.normal(size=(2, count))
    return pd.DataFrame({"who": np.arange(count) // 4, "when": when, "x": x[0], "y": x[1]})


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_one_number_far_outside_is_found_at_any_scale(sign, size):
    x = size * np.random.default_rng(0).normal(size=100)
    assert usual(x).all()
    x[17] = sign * 1e3 * size
    assert np.flatnonzero(~usual(x)).tolist() == [17]


@pytest.mark.parametrize(
    "numbers",
    [
        np.arange(50.0),
        np.random.default_rng(0).exponential(size=10_000),
        np.ones(40),
        np.repeat([0.0, 1.0], [95, 5]),
        np.array([0.0] * 19),
    ],
    ids=["even", "skewed", "constant", "rare", "few"],
)
def test_ordinary_numbers_are_never_far_outside(numbers):
    assert usual(numbers).all()


def test_a_date_far_outside_is_named_with_its_line_and_changes_no_unit(tmp_path):
    frame, path = table(), tmp_path / "labs.csv"
    frame.to_csv(path, index=False)
    plain = Scaling.fit(Trajectories.from_file(path, **COLUMNS))
    frame["when"] = frame["when"].astype("datetime64[s]")
    frame.loc[0, "when"] = pd.Timestamp("1900-01-01")
    frame.to_csv(path, index=False)
    with pytest.warns(
        UserWarning, match=r"labs.csv: column 'when' holds 1900-01-01 in line 2, far"
    ):
        data = Trajectories.from_file(path, **COLUMNS)
    near = data.keep(data.given.times > 0)
    assert Scaling.fit(near).time_unit == pytest.approx(plain.time_unit, rel=0.05)
    with pytest.raises(ValueError, match="train must not be earlier than t0"):
        Scaling.fit(data)


@pytest.mark.parametrize("bad", [1e6, -1e9])
def test_a_value_far_outside_is_named_and_changes_no_unit(bad):
    frame = table()
    plain = Scaling.fit(Trajectories.from_dataframe(frame, **COLUMNS))
    frame.loc[7, "y"] = bad
    with pytest.warns(UserWarning, match=r"column 'y' holds .* in row 7, far from all others"):
        spoiled = Scaling.fit(Trajectories.from_dataframe(frame, **COLUMNS))
    np.testing.assert_allclose(spoiled.scale, plain.scale, rtol=0.1)
    np.testing.assert_allclose(spoiled.loc, plain.loc, atol=0.1)


def test_an_ordinary_table_is_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trajectories.from_dataframe(table(400), **COLUMNS)


def test_in_a_long_table_a_value_far_outside_is_named_as_the_table_has_it(tmp_path):
    long = table().melt(["who", "when"], ["x", "y"], "test", "result")
    long = long.sort_values(["who", "when"], kind="stable", ignore_index=True)
    row = int(np.flatnonzero(long.test == "y")[7])
    long.loc[row, "result"] = 1e6
    long.to_csv(tmp_path / "long.csv", index=False)
    names = dict(id="who", time="when", feature="test", value="result")
    said = rf"column 'result' of 'y' holds 1000000.0 in line {row + 2}, far"
    with pytest.warns(UserWarning, match=said):
        Trajectories.from_file(tmp_path / "long.csv", **names)


@pytest.mark.parametrize("every", [False, True], ids=["one dose", "a dose of each id"])
def test_a_dose_far_outside_is_named_moves_no_unit_and_is_left_out(tmp_path, every):
    who, when = np.divmod(np.arange(200), 5)
    frame = pd.DataFrame({"who": who, "when": when, "x": 1.0 * (who % 7), "y": 1.0 * when})
    frame["dose"] = np.where((when == 1) & every, 2.0, np.nan)
    far = pd.DataFrame({"who": [3], "when": [-36500], "dose": [2.0]})
    path = tmp_path / "doses.csv"
    pd.concat([frame, far]).to_csv(path, index=False)
    with pytest.warns(UserWarning, match=r"column 'when' holds -36500 in line 202, far"):
        data = Trajectories.from_file(path, **COLUMNS, inputs={"dose": "event"})
    assert divide(data, 0.2, 0).t0 == 0
    near = without_far_times(data)
    assert near.inputs.giving.sum() == 40 * every
    np.testing.assert_array_equal(near.given.times, data.given.times)


def test_a_dose_somewhat_before_the_first_visit_is_the_first_time():
    who, when = np.divmod(np.arange(200), 5)
    frame = pd.DataFrame({"who": who, "when": when, "x": 1.0 * (who % 7), "y": 1.0 * when})
    frame["dose"] = np.nan
    frame.loc[200] = [3, -7, np.nan, np.nan, 2.0]
    data = Trajectories.from_dataframe(frame, **COLUMNS, inputs={"dose": "event"})
    assert divide(data, 0.2, 0).t0 == Scaling.fit(data).t0 == -7
    assert without_far_times(data) is data

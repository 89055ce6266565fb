"""Clocks: what times are counted from; tables get their own times back."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from np_latentode import Scaling, Trajectories, tidy_forecast

COLUMNS = dict(id="who", time="when", values=["x"])
DATES = pd.to_datetime(
    ["2020-01-05", "2020-01-01T12:00", "2021-03-01", "2021-03-03T06:00", "2020-01-08"],
    format="ISO8601",
)
TABLE = pd.DataFrame(
    {
        "who": ["a", "a", "b", "b", "a"],
        "when": DATES,
        "born": pd.to_datetime(["1990-01-01"] * 2 + ["1991-01-01"] * 2 + ["1990-01-01"]),
        "x": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)


def observed(data):
    return [t[s].tolist() for t, s in zip(data.given.times, np.asarray(data.observed), strict=True)]


@pytest.mark.parametrize("make", [lambda df: df, pl.from_pandas], ids=["pandas", "polars"])
def test_since_first_counts_from_each_first_row(make):
    data = Trajectories.from_dataframe(make(TABLE), **COLUMNS, since="first")
    assert observed(data) == [[0, 3.5, 6.5], [0, 2.25]]
    assert "since each first row" in str(data.names)


@pytest.mark.parametrize("unit", ["D", "h", "W"])
def test_since_a_column_counts_from_each_entry(unit):
    data = Trajectories.from_dataframe(TABLE, **COLUMNS, since="born", unit=unit)
    days = {"D": 1, "h": 24, "W": 1 / 7}[unit]
    ages = (DATES - TABLE.born) / pd.Timedelta("1D")
    np.testing.assert_allclose(observed(data)[1], ages[[2, 3]] * days)


@pytest.mark.parametrize("since", [None, "first", "born"])
def test_a_table_gets_its_own_times_back_whatever_the_clock(since):
    data = Trajectories.from_dataframe(TABLE, **COLUMNS, since=since)
    back = data[1:].to_dataframe()
    assert back.when.tolist() == DATES[[2, 3]].tolist()
    times = np.array([[1.0, 2.0]]) + data.given.times[1:, :1]
    table = tidy_forecast({"x": np.zeros((5, 1, 2, 1))}, times, data[1:].names)
    assert table.when.tolist() == [DATES[2] + pd.Timedelta("1D"), DATES[2] + pd.Timedelta("2D")]


EIGHTHS = st.integers(-1_000_000, 1_000_000).map(lambda number: number / 8)


@given(st.lists(EIGHTHS, min_size=2, max_size=6, unique=True), EIGHTHS)
@settings(deadline=None, max_examples=50)
def test_numbers_have_clocks_too(times, start):
    frame = pd.DataFrame({"who": 1, "when": times, "start": start, "x": 1.0})
    for since, origin in (("first", min(times)), ("start", start)):
        data = Trajectories.from_dataframe(frame, **COLUMNS, since=since)
        np.testing.assert_array_equal(observed(data)[0], np.sort(np.array(times) - origin))
        np.testing.assert_array_equal(data.to_dataframe().when, sorted(times))


def test_dates_are_counted_on_each_clock():
    data = Trajectories.from_dataframe(TABLE, **COLUMNS, since="first")
    np.testing.assert_array_equal(data.names.counted("2021-03-05"), [428.5, 4.0])
    assert data.names.select([1]).counted("2021-03-05").tolist() == [4.0]


def test_clocks_of_their_own_starts_may_be_joined_whatever_their_dates():
    early = Trajectories.from_dataframe(TABLE, **COLUMNS, since="first")
    late = TABLE.assign(when=TABLE.when + pd.Timedelta("3650D"))
    late = Trajectories.from_dataframe(late, **COLUMNS, since="first")
    assert early.names.like(late.names)
    assert not early.names.like(Trajectories.from_dataframe(TABLE, **COLUMNS).names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(born="2020-01-01 00:00"), "since must name a column of the same kind"),
        (dict(born=3.0), "since must name a column of the same kind"),
        (
            dict(born=DATES),
            r"column 'born' must hold one time for each id; got 2020-01-01T12:00 in row",
        ),
    ],
)
def test_starts_of_another_kind_or_of_many_kinds_are_refused(change, message):
    frame = TABLE.assign(**change)
    if isinstance(change["born"], str):
        frame["born"] = pd.to_datetime(frame.born).dt.tz_localize("UTC")
    with pytest.raises(ValueError, match=message):
        Trajectories.from_dataframe(frame, **COLUMNS, since="born")


ZONES = ["UTC", "Asia/Tokyo", "America/New_York"]


@pytest.mark.parametrize("zone", ZONES)
def test_a_zone_is_remembered_and_written_as_utc(zone, tmp_path):
    frame = TABLE.assign(when=TABLE.when.dt.tz_localize(zone))
    data = Trajectories.from_dataframe(frame, **COLUMNS)
    back = data.to_dataframe()
    assert str(back.when.dt.tz) == "UTC"
    assert sorted(back.when) == sorted(frame.when)
    data.to_file(tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text().splitlines()
    assert all(line.split(",")[1].endswith("Z") for line in text[1:])
    again = Trajectories.from_file(tmp_path / "table.csv", **COLUMNS)
    assert again.names.zone
    np.testing.assert_array_equal(again.given.times, data.given.times)
    instant = "2020-01-06T00:00+02:00"
    assert data.names.counted(instant) == data.names.counted("2020-01-05T22:00Z")
    with pytest.raises(ValueError, match="dates must be dates with a time zone; got '2020-01-06'"):
        data.names.counted("2020-01-06")


def test_dates_with_a_zone_are_no_dates_without_one():
    zoned = Trajectories.from_dataframe(
        TABLE.assign(when=TABLE.when.dt.tz_localize("UTC")), **COLUMNS
    )
    plain = Trajectories.from_dataframe(TABLE, **COLUMNS)
    with pytest.raises(ValueError, match="context must have the features, units and origin"):
        Scaling.fit(plain).check(zoned, name="context")
    mixed = [dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2, tzinfo=dt.UTC)]
    frame = pd.DataFrame({"who": 1, "when": pd.Series(mixed, dtype=object), "x": 1.0})
    with pytest.raises(ValueError, match="must hold dates with a time zone, or dates without one"):
        Trajectories.from_dataframe(frame, **COLUMNS)


def staggered(spread):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, spread, (12, 1))
    times = start + np.sort(rng.uniform(0, 10, (12, 4)), axis=1)
    return Trajectories(times, rng.normal(size=(12, 4, 1)))


def test_trajectories_that_hardly_overlap_are_warned_of():
    with pytest.warns(UserWarning, match="train hardly overlaps in time.*since='first'"):
        Scaling.fit(staggered(1_000.0))
    Scaling.fit(staggered(5.0))  # a warning would be an error


LONG = dict(id="who", time="when", feature="test", value="result")


def exported():
    """A table with one row per measurement, and the birth of each id."""
    rows = [("A", 5, "b"), ("A", 10, "a"), ("B", 50, "b"), ("B", 100, "a"), ("B", 110, "a")]
    frame = pd.DataFrame(rows, columns=["who", "when", "test"])
    return frame.assign(result=1.0, birth=np.where(frame.who == "A", 2, 30))


@pytest.mark.parametrize("file", [False, True], ids=["frame", "file"])
def test_a_long_table_has_clocks_of_its_own_rows(file, tmp_path):
    exported().to_csv(tmp_path / "long.csv", index=False)
    for since, expected in (("first", [[0], [0, 10]]), ("birth", [[8], [70, 80]])):
        options = dict(**LONG, values=["a"], since=since)
        if file:
            data = Trajectories.from_file(tmp_path / "long.csv", **options)
        else:
            data = Trajectories.from_dataframe(exported(), **options)
        assert observed(data) == expected


def test_a_first_date_far_outside_starts_no_clock():
    days = np.tile([0, 10, 20, 30], 12) + np.repeat(np.arange(12) * 100, 4)
    frame = pd.DataFrame({"who": np.repeat(np.arange(12), 4), "x": 1.0})
    frame["when"] = pd.Timestamp("2021-01-01") + pd.to_timedelta(days, unit="D")
    frame.loc[4, "when"] = pd.Timestamp("1900-01-01")
    with pytest.warns(UserWarning, match="column 'when' holds 1900-01-01 in row 4, far"):
        data = Trajectories.from_dataframe(frame, **COLUMNS, since="first")
    near = observed(data.without(data.given.times < 0))
    assert near == [[0, 10, 20, 30], [0, 10, 20], *[[0, 10, 20, 30]] * 10]


def test_several_dates_are_counted_in_a_row_for_each_clock():
    names = Trajectories.from_dataframe(TABLE, **COLUMNS, since="first").names
    dates = ["2021-03-05", dt.datetime(2021, 3, 6), np.datetime64("2021-03-07")]
    np.testing.assert_array_equal(names.counted(dates), [[428.5, 429.5, 430.5], [4.0, 5.0, 6.0]])
    back = names.calendar(names.counted(dates))
    assert (back == np.array(dates, "datetime64[us]")).all()
    with pytest.raises(ValueError, match=r"dates must have a row for each of 2 trajectories"):
        names.counted(np.array([dates] * 3, "datetime64[us]"))


AWARE = dt.datetime(2020, 1, 6, tzinfo=dt.timezone(dt.timedelta(hours=2)))


@pytest.mark.parametrize("date", [AWARE, pd.Timestamp(AWARE), [AWARE], AWARE.isoformat()], ids=repr)
def test_dates_of_every_kind_are_held_to_the_zone(date):
    zoned = Trajectories.from_dataframe(
        TABLE.assign(when=TABLE.when.dt.tz_localize("UTC")), **COLUMNS
    ).names
    plain = Trajectories.from_dataframe(TABLE, **COLUMNS).names
    at = zoned.counted(date)
    np.testing.assert_array_equal(np.ravel(at), zoned.counted("2020-01-05T22:00Z"))
    with pytest.raises(ValueError, match=r"^dates must be dates; got"):
        plain.counted(date)
    naive = AWARE.replace(tzinfo=None)
    with pytest.raises(ValueError, match=r"^dates must be dates with a time zone; got"):
        zoned.counted(naive)


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx", ".nc", ".parquet", ".csv.gz"])
def test_a_zone_survives_every_kind_of_file(ending, tmp_path):
    zoned = Trajectories.from_dataframe(
        TABLE.assign(when=TABLE.when.dt.tz_localize("UTC")), **COLUMNS
    )
    zoned.to_file(tmp_path / f"table{ending}")
    again = Trajectories.from_file(tmp_path / f"table{ending}", **COLUMNS)
    assert again.names.zone
    np.testing.assert_array_equal(again.given.times, zoned.given.times)


def test_errors_about_starts_name_since():
    with pytest.raises(ValueError, match="id, time, since and values must name columns of"):
        Trajectories.from_dataframe(TABLE, **COLUMNS, since="birth")
    with pytest.raises(ValueError, match="id, time, since and values must name different"):
        Trajectories.from_dataframe(TABLE, **COLUMNS, since="when")

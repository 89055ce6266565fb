"""Times asked of each trajectory: padding, and tables that ask for them."""

import gzip

import numpy as np
import pandas as pd
import pytest

from np_latentode import Labels, MalformedRows
from np_latentode.data.asked import AskedTimes

NAMES = Labels(("a", "7", "c"), ("bili",), id="who", time="day")
SPAN = dict(start=0.0, end=100.0)


def asked_of(found):
    return [t[m].tolist() for t, m in zip(*found, strict=True)]


def test_padding_repeats_the_last_time_of_each():
    found = AskedTimes.of([np.array([1.0, 3.0, 4.0]), np.array([2.0]), np.array([])])
    assert asked_of(found) == [[1.0, 3.0, 4.0], [2.0], []]
    np.testing.assert_array_equal(found.times[1], [2.0, 2.0, 2.0])
    np.testing.assert_array_equal(found.times[2], [1.0, 3.0, 4.0])
    assert asked_of(found.select(found.mask.any(1))) == [[1.0, 3.0, 4.0], [2.0]]


def test_rows_in_any_order_ask_for_rising_times_once(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("note;day;who\nx;3,5;7\n;1;7\n;3,5;7\n\n;0;c\n")
    assert asked_of(AskedTimes.read(path, NAMES, **SPAN)) == [[], [1.0, 3.5], [0.0]]


def test_ids_are_compared_as_text(tmp_path):
    pd.DataFrame({"who": [7, 7], "day": [2, 1]}).to_parquet(tmp_path / "t.parquet")
    assert asked_of(AskedTimes.read(tmp_path / "t.parquet", NAMES, **SPAN))[1] == [1.0, 2.0]


@pytest.mark.parametrize("ending", ["csv.gz", "xlsx", "nc"])
def test_times_alone_are_asked_of_all_in_every_format(tmp_path, ending):
    path, table = tmp_path / f"t.{ending}", pd.DataFrame({"day": [2.0, 1.0]})
    if ending == "xlsx":
        table.to_excel(path, index=False)
    elif ending == "nc":
        table.to_xarray().to_netcdf(path, engine="h5netcdf")
    else:
        path.write_bytes(gzip.compress(b"day\n2\n1\n"))
    assert asked_of(AskedTimes.read(path, NAMES, **SPAN)) == [[1.0, 2.0]] * 3


def test_dates_are_counted_from_the_start_of_each_trajectory(tmp_path):
    dates = dict(origin=np.datetime64("2024-01-01", "us"), unit="D", starts=(0.0, 10.0, 20.0))
    names = Labels(NAMES.ids, NAMES.features, "who", "day", since="first", **dates)
    (tmp_path / "t.csv").write_text("day\n2024-01-31\n")
    found = AskedTimes.read(tmp_path / "t.csv", names, **SPAN)
    assert asked_of(found) == [[30.0], [20.0], [10.0]]
    assert (names.calendar(found.times) == np.datetime64("2024-01-31")).all()


def test_every_row_that_cannot_be_met_is_named_with_its_line(tmp_path):
    (tmp_path / "t.csv").write_text("who,day\na,-1\nc,5\n7,101\n")
    with pytest.raises(MalformedRows) as caught:
        AskedTimes.read(tmp_path / "t.csv", NAMES, **SPAN)
    assert [line for line, _ in caught.value.problems] == [2, 4]
    (tmp_path / "t.csv").write_text("who,day\na,1\n,5\nz,\n")
    with pytest.raises(MalformedRows, match=r"must hold an id in each row; got nothing in line 3"):
        AskedTimes.read(tmp_path / "t.csv", NAMES, **SPAN)


def test_rows_of_many_ids_in_any_order_are_those_of_each(tmp_path):
    rng = np.random.default_rng(0)
    who, day = rng.integers(0, 40, 300), rng.integers(0, 50, 300)
    rows = "".join(f"{d},p{i}\n" for i, d in zip(who, day, strict=True))
    (tmp_path / "at.csv").write_text("day,patient\n" + rows)
    names = Labels(tuple(f"p{i}" for i in range(41)), ("x",), id="patient", time="day")
    found = AskedTimes.read(tmp_path / "at.csv", names, start=0.0, end=50.0)
    for i in range(41):
        assert found.times[i][found.mask[i]].tolist() == sorted({*day[who == i].tolist()})

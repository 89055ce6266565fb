"""Data frames of other programs: what is used is read exactly, and the rest may be anything."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from np_latentode import MalformedRows, Trajectories

COLUMNS = dict(id="who", time="day", values=["x", "y"])
ROWS = {
    "who": ["a", "a", "b"],
    "day": [1.0, 2.0, 0.5],
    "x": [2.5, None, 7.0],
    "y": [None, -1e3, 1.0],
}
PLAIN = pd.DataFrame(ROWS)


def same(ours, theirs):
    assert ours.labels == theirs.labels
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.fixture
def plain():
    return Trajectories.from_dataframe(PLAIN, **COLUMNS)


EMPTY = pd.DataFrame({name: [None] for name in ROWS})
ARRAYS = [pa.array(column) for column in (*ROWS.values(), [1, 2, 3], [4, 5, 6])]
FRAMES = {
    "index": PLAIN.set_index("who"),
    "levels": PLAIN.set_index(["who", "day"]),
    "levels of values": PLAIN.set_index(["y", "who"]),
    "a level beside a column of its name": PLAIN.set_index(pd.Index([9, 9, 9], name="who")),
    "an index with gaps": PLAIN.set_index(pd.Index([5, 5, 2])),
    "columns twice": pd.concat([PLAIN, PLAIN[["y"]].set_axis(["z"], axis=1)] * 2, axis=1).iloc[
        :, [0, 1, 2, 3, 4, 9]
    ],
    "columns twice, of pyarrow": pa.Table.from_arrays(ARRAYS, names=[*ROWS, "z", "z"]),
    "empty rows": pd.concat([EMPTY, PLAIN[:1], EMPTY, PLAIN[1:]]).assign(z=None),
    "empty rows, of polars": pl.concat(
        [pl.DataFrame(ROWS)[:1], pl.DataFrame(ROWS)[:1].clear(1), pl.DataFrame(ROWS)[1:]]
    ),
    "columns of another kind": PLAIN.assign(**{"3": [{}, [], ()]}).rename(columns={"3": 3}),
}


@pytest.mark.parametrize("df", FRAMES.values(), ids=FRAMES)
def test_a_frame_means_the_same_however_it_was_made(plain, df):
    same(Trajectories.from_dataframe(df, **COLUMNS), plain)


def test_columns_that_are_integers_are_named_by_integers_or_by_text(plain):
    numbered = PLAIN.set_axis([0, 1, 2, 3], axis=1)
    for names in (
        dict(id=0, time=1, values=[2, 3], log=3),
        dict(id="0", time="1", values=["2", "3"], log=["3"]),
    ):
        with pytest.raises(MalformedRows, match=r"column '3' must be positive.* -1000\.0 in row 1"):
            Trajectories.from_dataframe(numbered, **names)
        ours = Trajectories.from_dataframe(numbered, **(names | dict(log=())))
        assert ours.names.features == ("2", "3")
        assert (ours.names.id, ours.names.time) == ("0", "1")
        np.testing.assert_array_equal(ours.values, plain.values)
    assert Trajectories.from_dataframe(numbered, id=0, time=1, values=2).num_features == 1
    both = numbered.assign(**{"3": [1.0, 2.0, 3.0]})
    ours = Trajectories.from_dataframe(both, id=0, time=1, values="3")
    assert ours.values[0, :, 0].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["x", "who"])
def test_a_name_of_two_columns_is_refused_where_it_is_asked_for(name):
    frames = [
        pd.concat([PLAIN, PLAIN[[name]]], axis=1),
        pa.Table.from_arrays(ARRAYS[:5], names=[*ROWS, name]),
    ]
    for df in frames:
        with pytest.raises(ValueError, match=f"^df must name different columns; got '{name}' more"):
            Trajectories.from_dataframe(df, **COLUMNS)


def test_levels_are_listed_where_a_column_is_missing():
    with pytest.raises(ValueError, match=r"got \['when'\], and it has \['x', 'y', 'who', 'day'\]"):
        Trajectories.from_dataframe(
            PLAIN.set_index(["who", "day"]), id="who", time="when", values="x"
        )


def test_rows_are_counted_beside_empty_ones_and_a_row_with_any_entry_is_not_empty():
    df = pd.concat([EMPTY, PLAIN, EMPTY.assign(note="so"), EMPTY], ignore_index=True)
    with pytest.raises(MalformedRows) as caught:
        Trajectories.from_dataframe(df, **COLUMNS)
    assert [row for row, _ in caught.value.problems] == [4, 4]


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
@pytest.mark.parametrize(
    ("texts", "times", "origin"),
    [
        (["2020-01-01", " 2020-01-03T12:00"], [0, 2.5], "2020-01-01"),
        (["2020-01-01T00:00Z", "2020-01-02T01:00+01:00"], [0, 1], "2020-01-01"),
        (["1", "2e0"], [1, 2], None),
    ],
    ids=["dates", "zones", "numbers"],
)
def test_times_that_are_text_are_read_as_in_a_file(make, texts, times, origin):
    df = make({"who": ["a", "a"], "day": texts, "x": [1.0, 2.0]})
    ours = Trajectories.from_dataframe(df, id="who", time="day", values="x")
    assert ours.times[0].tolist() == times
    assert ours.names.origin == (None if origin is None else np.datetime64(origin))
    if origin:
        later = Trajectories.from_dataframe(
            df, id="who", time="day", values="x", origin=dt.date(2019, 12, 31), unit="h"
        )
        np.testing.assert_allclose(later.times[0], 24 * (np.array(times) + 1))


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_all_texts_that_are_no_times_are_reported(kind):
    texts = ["2020-01-01", "soon", None, "2020-13-01", "5", "2020-02-01"]
    df = pd.DataFrame({"who": "a", "day": pd.Series(texts, dtype=kind), "x": 1.0})
    with pytest.raises(MalformedRows) as caught:
        Trajectories.from_dataframe(df, id="who", time="day", values="x")
    assert [row for row, _ in caught.value.problems] == [1, 2, 3, 4]
    said = str(caught.value)
    assert "of one kind; got 'soon' in row 1, '2020-13-01' in row 3" in said

"""Trajectories on disk are those of the same table in memory."""

import gc
import os

import numpy as np
import pandas as pd
import pytest

from np_latentode import MalformedRows, Scaling, StoredTrajectories, Trajectories
from np_latentode.data import stored as stored_module, storing

pytest.importorskip("pyarrow")

COLUMNS = dict(id="who", time="day", values=["x", "y"])


@pytest.fixture(autouse=True)
def few_rows_at_once(monkeypatch):
    monkeypatch.setattr(storing, "ROWS_AT_ONCE", 37)
    monkeypatch.setattr(stored_module, "ROWS_AT_ONCE", 50)


def table(count=40, seed=0):
    """Rows of each id in any order, some without a measurement; one id has none at all."""
    rng, parts = np.random.default_rng(seed), []
    for i in range(count):
        rows = int(rng.integers(1, 12))
        x = np.where(rng.uniform(size=(rows, 2)) < 0.3, np.nan, rng.normal(size=(rows, 2)))
        x = x if i != 5 else np.full((rows, 2), np.nan)
        day = rng.uniform(0, 100, rows)
        parts.append(pd.DataFrame({"who": f"p{i}", "day": day, "x": x[:, 0], "y": 50 + x[:, 1]}))
    return pd.concat(parts, ignore_index=True)


def written(df, folder, **options):
    df.to_parquet(folder / "table.parquet", row_group_size=100)
    given = COLUMNS | options
    stored = StoredTrajectories.from_parquet(folder / "table.parquet", **given)
    return stored, Trajectories.from_file(folder / "table.parquet", **given)


def assert_same(found, expected):
    slots = found.times.shape[1]
    assert found.offset == expected.offset
    np.testing.assert_array_equal(found.mask, expected.mask[:, :slots])
    assert not np.asarray(expected.mask)[:, slots:].any()
    np.testing.assert_array_equal(found.given.values, expected.given.values[:, :slots])
    seen = np.asarray(found.observed)
    np.testing.assert_array_equal(found.given.times[seen], expected.given.times[:, :slots][seen])


def test_all_are_those_of_the_table(tmp_path):
    stored, whole = written(table(), tmp_path)
    assert len(stored) == len(whole) == 40
    found = stored[:]
    assert_same(found, whole)
    assert found.names.ids == whole.names.ids
    assert found.names.like(whole.names)
    assert stored.ends == (whole.given.times[whole.observed].min(), whole.given.times.max())


def test_an_index_reads_those_that_it_selects(tmp_path):
    stored, whole = written(table(), tmp_path)
    rows = np.array([30, 2, 3, 4, 17, 5])
    found = stored[rows]
    assert found.names.ids == tuple(f"p{i}" for i in rows)
    assert_same(found, whole[rows])
    left = stored.without(rows)
    assert len(left) == 34
    assert_same(left[[0, 1, 2, 33]], whole[[0, 1, 6, 39]])
    assert left.lengths.sum() + stored.lengths[rows].sum() == stored.lengths.sum()


LONG = dict(values=["x", "y"], feature="test", value="value")


@pytest.mark.parametrize("kind", ["dates", "log", "first", "static", "long"])
def test_what_a_table_may_hold_is_read_alike(tmp_path, kind):
    df, options = table(), {}
    if kind == "dates":
        df["day"] = np.datetime64("2020-01-01", "us") + (df["day"] * 86_400).astype("m8[s]")
        options = dict(origin="2020-01-01", unit="h")
    elif kind == "log":
        options = dict(log=["y"])
    elif kind == "first":
        options = dict(since="first")
    elif kind == "static":
        number = df["who"].str[1:].astype(int)
        df["age"], df["arm"] = 1.0 * number, np.where(number % 3, "drug", "placebo")
        options = dict(static={"age": None, "arm": ["placebo", "drug"]})
    else:
        df = df.melt(["who", "day"], var_name="test", value_name="value").sort_values("who")
        options = LONG
    stored, whole = written(df, tmp_path, **options)
    found = stored[:]
    assert_same(found, whole)
    assert found.names == whole.names
    if kind == "static":
        np.testing.assert_array_equal(found.given_static, whole.given_static)
        np.testing.assert_array_equal(stored.given_static, whole.given_static)


@pytest.mark.parametrize("dates", [False, True])
def test_parts_of_a_long_table_may_hold_none_of_the_features_that_are_read(tmp_path, dates):
    df = table(100)
    if dates:
        df["day"] = np.datetime64("2020-01-01", "us") + (df["day"] * 86_400).astype("m8[s]")
    df = df.melt(["who", "day"], var_name="test", value_name="value")
    df = df.sort_values("who", kind="stable", ignore_index=True)
    number = df["who"].str[1:].astype(int)
    df["age"] = 1.0 * number
    few = (number > 30) & (number < 80)
    df.loc[few, "test"] = "z"
    df.loc[few & (number % 2 == 0), "day"] = None
    options = LONG | dict(static={"age": None}, origin="2020-01-01" if dates else None)
    stored, whole = written(df, tmp_path, **options)
    found = stored[:]
    assert_same(found, whole)
    assert found.names == whole.names
    np.testing.assert_array_equal(found.given_static, whole.given_static)


def test_features_that_never_occur_in_a_long_table_are_refused(tmp_path):
    df = table().melt(["who", "day"], var_name="test", value_name="value")
    df = df.sort_values("who", kind="stable")
    with pytest.raises(ValueError, match=r"'test'; got \['z'\], and it has \['x', 'y'\]"):
        written(df, tmp_path, **LONG | dict(values=["z"]))


def test_units_are_those_of_the_table_in_memory_also_with_numbers_far_outside(tmp_path):
    df = table(400)
    df.loc[[3, 500], "x"] = 1e6, -1e6
    with pytest.warns(UserWarning, match="far from all others"):
        stored, whole = written(df, tmp_path)
    found, expected = Scaling.fit(stored), Scaling.fit(whole)
    np.testing.assert_allclose(found.loc, expected.loc, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-12)
    assert (found.t0, found.time_unit) == (expected.t0, expected.time_unit)
    assert (found.offset, found.labels.features) == (expected.offset, expected.labels.features)


def test_rows_of_an_id_that_are_apart_are_refused_with_the_way_to_sort(tmp_path):
    df = table()
    apart = pd.concat([df[5:], df[:5]])
    with pytest.raises(ValueError, match=r"rows of each who must follow .* ORDER BY who"):
        written(apart, tmp_path)


def test_a_row_that_cannot_be_read_is_named_by_its_number(tmp_path):
    df = table()
    df.loc[150, "x"] = np.inf
    with pytest.raises(MalformedRows, match=r"must be finite.*got inf in row 150"):
        written(df, tmp_path)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda df: df.assign(arm=df["who"]), dict(static=["arm"]), "static must list the levels"),
        (lambda df: df.assign(x="<0.5"), {}, "limits"),
        (lambda df: df[:0], {}, "at least one row"),
        (lambda df: df, dict(values=["x", "z"]), "got .'z'."),
    ],
)
def test_what_cannot_be_read_in_parts_is_refused(tmp_path, change, options, message):
    with pytest.raises(ValueError, match=message):
        written(change(table()), tmp_path, **options)


def test_the_temporary_directory_goes_with_the_last_object_that_reads_it(tmp_path):
    stored, _ = written(table(), tmp_path)
    directory, left = stored._directory, stored.without([0])
    del stored
    gc.collect()
    assert len(left[:3]) == 3
    del left
    gc.collect()
    assert not directory.exists()


def test_after_an_error_no_directory_is_left(tmp_path):
    df = table()
    df.loc[150, "x"] = np.inf
    df.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(MalformedRows):
        StoredTrajectories.from_parquet(
            tmp_path / "table.parquet", **COLUMNS, directory=tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_trajectories_without_observations_are_read_but_have_no_ends(tmp_path):
    stored, whole = written(table().assign(x=np.nan, y=np.nan), tmp_path)
    assert_same(stored[:], whole)
    (tmp_path / "other").mkdir()
    left = written(table(), tmp_path / "other")[0].without([*range(5), *range(6, 40)])
    assert (len(left), left[0].names.ids) == (1, ("p5",))
    assert not left[:].mask.any()
    for none in (stored, left):
        with pytest.raises(ValueError, match="train must hold at least one observation; got none"):
            Scaling.identity(2).check(none, name="train")


def test_an_index_out_of_range_is_named(tmp_path):
    stored, _ = written(table(), tmp_path)
    for index in (100, [100], [0, -41]):
        with pytest.raises(IndexError, match=r"index must select trajectories: .* out of bounds"):
            stored[index]
        with pytest.raises(IndexError, match=r"index must select trajectories: .* out of bounds"):
            stored.without(index)


def test_a_read_goes_on_until_all_was_read(tmp_path, monkeypatch):
    stored, whole = written(table(), tmp_path)
    read = os.pread
    # As systems do with more than 2 GiB.
    monkeypatch.setattr(os, "pread", lambda file, size, at: read(file, min(size, 1001), at))
    assert_same(stored[:], whole)


def test_a_file_that_became_shorter_is_refused(tmp_path):
    stored, _ = written(table(), tmp_path)
    os.truncate(stored._directory / "rows", 1001)
    with pytest.raises(OSError, match=r"rows must hold .* bytes; it ends at 1001"):
        stored[:]


def test_a_directory_must_be_new(tmp_path):
    table().to_parquet(tmp_path / "table.parquet")
    (tmp_path / "already there").mkdir()
    with pytest.raises(ValueError, match=r"directory must be new; got .*already there"):
        StoredTrajectories.from_parquet(
            tmp_path / "table.parquet", **COLUMNS, directory=tmp_path / "already there"
        )
    assert (tmp_path / "already there").exists()

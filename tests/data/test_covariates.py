"""Static covariates are read from tables, go with their trajectories, and come out again."""

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest

from np_latentode import Covariates, MalformedRows, Scaling, Trajectories

COLUMNS = dict(id="id", time="time", values=["x"])
STATIC = ["age", "sex", "arm"]


def table():
    rows = []
    people = [(61.3, "m", "drug"), (None, "f", "placebo"), (0.1, "f", None), (48.0, "m", "drug")]
    for i, (age, sex, arm) in enumerate(people):
        rows += [(f"p{i}", float(t), 0.1 * t + i, age, sex, arm) for t in range(3 + i)]
    return pd.DataFrame(rows, columns=["id", "time", "x", *STATIC])


def read(df=None, static=STATIC, **options):
    return Trajectories.from_dataframe(
        table() if df is None else df, **COLUMNS, static=static, **options
    )


def test_numbers_are_numbers_and_categories_are_places_among_sorted_levels():
    data = read()
    assert data.names.static == tuple(STATIC)
    assert data.names.levels == ((), ("f", "m"), ("drug", "placebo"))
    expected = [[61.3, 1, 0], [np.nan, 0, 1], [0.1, 0, np.nan], [48.0, 1, 0]]
    np.testing.assert_array_equal(data.given_static, expected)
    np.testing.assert_allclose(data.static, expected, rtol=1e-6)


def test_named_levels_keep_their_order_and_make_numbers_categories():
    data = read(static={"arm": ["placebo", "drug"], "age": None})
    assert data.names.levels == (("placebo", "drug"), ())
    np.testing.assert_array_equal(data.given_static[:, 0], [1, 0, np.nan, 1])
    coded = table().assign(arm=[1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    assert read(coded, static={"arm": ["1", "2", "3"]}).names.levels == (("1", "2", "3"),)
    assert read(coded, static="arm").names.levels == ((),)
    assert read(coded, static={"arm": "category"}).names.levels == (("1", "2", "3"),)
    ten = coded.assign(arm=coded["arm"].replace(1, 10))
    assert read(ten, static={"arm": "category"}).names.levels == (("2", "3", "10"),)


def test_true_and_false_are_numbers():
    df = table().assign(treated=lambda df: df["arm"] == "drug")
    np.testing.assert_array_equal(read(df, "treated").given_static[:, 0], [1, 0, 0, 1])


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "nc"])
def test_files_give_them_back_to_the_last_bit(tmp_path, ending):
    data, path = read(), tmp_path / f"table.{ending}"
    data.to_file(path)
    again = Trajectories.from_file(path, **COLUMNS, static=STATIC)
    np.testing.assert_array_equal(again.given_static, data.given_static)
    assert again.names == data.names


@pytest.mark.parametrize("backend", ["pandas", "polars", "pyarrow"])
def test_frames_of_all_libraries_give_them_back_to_the_last_bit(backend):
    data = read()
    again = read(data.to_dataframe(backend=backend))
    np.testing.assert_array_equal(again.given_static, data.given_static)
    assert again.names.levels == data.names.levels


def test_decimal_commas_are_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id;time;x;age\na;0;1,5;61,3\na;1;2;61,3\nb;0;1;48\n")
    data = Trajectories.from_file(path, **COLUMNS, static=["age"])
    np.testing.assert_array_equal(data.given_static, [[61.3], [48.0]])


def test_they_may_stand_in_one_row_of_an_id_only():
    df = table()
    df.loc[df["id"].duplicated(), STATIC] = None
    np.testing.assert_array_equal(read(df).given_static, read().given_static)


def test_long_tables_have_them_too():
    df = table().melt(["id", "time", *STATIC], ["x"], var_name="what", value_name="result")
    names = dict(id="id", time="time", feature="what", value="result")
    data = Trajectories.from_dataframe(df, **names, static=STATIC)
    np.testing.assert_array_equal(data.given_static, read().given_static)


def test_they_go_with_their_trajectories():
    data = read()
    for some in (data[[2, 0]], data.before(1.0)[[2, 0]], data.split()[1][[2, 0]]):
        np.testing.assert_array_equal(some.given_static, data.given_static[[2, 0]])
        np.testing.assert_array_equal(some.static, data.static[np.array([2, 0])])
    windows = data.windows(2.0, 1.0)
    for who, row in zip(windows.names.ids, windows.given_static, strict=True):
        np.testing.assert_array_equal(row, data.given_static[data.names.ids.index(who)])
    inside = jax.jit(lambda some: some[np.array([3])].static)(data)
    np.testing.assert_allclose(inside, data.static[3:])


def test_encoded_they_have_mean_zero_over_the_training_data_and_say_what_is_missing():
    data = read()
    units = Covariates.fit(data.given_static, data.names)
    s = np.asarray(units.encode(data.static))
    age = np.array([61.3, np.nan, 0.1, 48.0])
    np.testing.assert_allclose(s[:, 0], np.nan_to_num((age - np.nanmean(age)) / np.nanstd(age)))
    np.testing.assert_allclose(s[:, 1], [-0.25, 0.75, -0.25, -0.25])  # age is missing
    np.testing.assert_allclose(s[:, 2], [0.5, -0.5, -0.5, 0.5])
    np.testing.assert_allclose(s[:, 3], [-1 / 3, 2 / 3, 0, -1 / 3], rtol=1e-6)
    np.testing.assert_allclose(s[:, 4], [-0.25, -0.25, 0.75, -0.25])  # the arm is missing
    assert units.size == 5
    np.testing.assert_allclose(s.mean(0), 0, atol=1e-6)


def test_a_constant_covariate_is_zero():
    data = read(table().assign(age=0.1, sex="f", arm="drug"))
    np.testing.assert_array_equal(Scaling.fit(data).scale_static(data.static), np.zeros((4, 1)))


def test_an_entry_that_changes_within_an_id_is_refused_with_its_row():
    df = table()
    df.loc[4, "sex"] = "m"
    rule = "column 'sex' must hold the same entry in all rows of an id, as it is static; got 'm'"
    with pytest.raises(MalformedRows, match=f"{rule} in row 4"):
        read(df)


def test_a_new_category_is_refused_with_its_line(tmp_path):
    df, path = table(), tmp_path / "new.csv"
    df.assign(arm=df["arm"].where(df["id"] != "p3", "other")).to_csv(path, index=False)
    asked = dict(zip(STATIC, read().names.levels, strict=True))
    rule = r"column 'arm' must hold one of \['drug', 'placebo'\], the categories of the table"
    with pytest.raises(MalformedRows, match=f"{rule} fitted; got 'other' in line 14"):
        Trajectories.from_file(path, **COLUMNS, static=asked)
    path.write_text("id,time,x,age\na,0,1,old\n")
    with pytest.raises(MalformedRows, match="column 'age' must hold finite numbers"):
        Trajectories.from_file(path, **COLUMNS, static={"age": ()})


@pytest.mark.parametrize(
    ("static", "rule"),
    [
        (["weight"], r"static and values must name columns of the table; got \['weight'\]"),
        (["x"], "static and values must name different columns"),
        (["age", "id"], "static and values must name different columns"),
        ({"age": "colour"}, "static must say of each column number, category, or its categories"),
        ({"sex": "number"}, "column 'sex' must hold finite numbers; got 'm' in row 0"),
    ],
)
def test_other_columns_are_refused(static, rule):
    with pytest.raises(ValueError, match=rule):
        read(static=static)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("static", "rule"),
    [
        ([1.0, 2.0], r"static must have shape \(trajectory, covariate\)"),
        ([[1.0]], r"with 2 trajectories as the values have; got \(1, 1\)"),
        ([[np.inf], [1.0]], "static must be finite, or NaN where missing"),
    ],
)
def test_arrays_of_other_shapes_and_infinite_ones_are_refused(static, rule):
    with pytest.raises(ValueError, match=rule):
        Trajectories(np.zeros((2, 1)), np.zeros((2, 1, 1)), static=static)


def test_a_covariate_that_all_lack_is_refused():
    data = read(table().assign(age=np.nan))
    with pytest.raises(ValueError, match=r"entry of every static covariate; got none of \['age'\]"):
        Scaling.fit(data)


def test_polars_nulls_are_missing():
    df = pl.DataFrame({"id": [1, 2], "time": [0.0, 0.0], "x": [1.0, 2.0], "sex": ["f", None]})
    np.testing.assert_array_equal(read(df, "sex").given_static, [[0.0], [np.nan]])

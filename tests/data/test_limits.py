"""Limits and known standard errors: from any table to arrays, and back to the last bit."""

from datetime import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest

from np_latentode import Limits, MalformedRows, Trajectories
from np_latentode.data.limits import limit_text, read_limit
from np_latentode.storage.arrays import fill, read as read_arrays, write

TABLE = """who,day,bili,bili_sd,alb
1,0,<0.3,,3
1,1,0.5,0.1,
1,2,1..2,0.2,>=4.5
2,0,0.7,0.05,2
2,3,,,1
"""
NAMES = dict(id="who", time="day", values=["bili", "alb"], error={"bili": "bili_sd"})


@pytest.fixture
def path(tmp_path):
    (tmp_path / "visits.csv").write_text(TABLE)
    return tmp_path / "visits.csv"


def same(a, b):
    """Whether all arrays, in JAX's precision and in double precision, are the same."""
    pairs = [(a, b), (a.given, b.given)]
    equal = [jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), *p) for p in pairs]
    return all(jax.tree.leaves(equal))


def read(path, cells, **names):
    path.write_text("who,day,y,sd\n" + "".join(f'1,{k},"{x}",1\n' for k, x in enumerate(cells)))
    return Trajectories.from_file(path, id="who", time="day", values=["y"], **names)


def test_cells_that_are_limits_are_intervals_and_their_bound_stands_in(path):
    found = Trajectories.from_file(path, **NAMES)
    bili, alb = np.moveaxis(found.given.limits.lower, -1, 0)
    np.testing.assert_array_equal(bili, [[-np.inf, np.nan, 1], [np.nan] * 3])
    np.testing.assert_array_equal(alb, [[np.nan, np.nan, 4.5], [np.nan] * 3])
    np.testing.assert_array_equal(found.given.values[0, :, 0], [0.3, 0.5, 1.5])
    np.testing.assert_array_equal(found.limited, ~np.isnan(found.given.limits.lower))
    np.testing.assert_array_equal(found.given.error[..., 0], [[0, 0.1, 0.2], [0.05, 0, 0]])
    assert found.labels.errors == {"bili": "bili_sd"}


@pytest.mark.parametrize("log", [(), ("bili",)])
@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "nc", "xlsx", "parquet"])
def test_a_file_that_was_written_is_read_as_the_same(path, tmp_path, ending, log):
    before = Trajectories.from_file(path, **NAMES, log=log)
    before.to_file(tmp_path / f"again.{ending}")
    assert same(before, Trajectories.from_file(tmp_path / f"again.{ending}", **NAMES, log=log))


@pytest.mark.parametrize("backend", ["pandas", "polars", "pyarrow"])
def test_a_data_frame_of_any_library_is_read_as_the_same(path, backend):
    before = Trajectories.from_file(path, **NAMES)
    table = before.to_dataframe(backend=backend)
    assert same(before, Trajectories.from_dataframe(table, **NAMES))


def test_parts_of_trajectories_keep_their_errors_and_limits(path):
    whole = Trajectories.from_file(path, **NAMES)
    cells = [[*row] for row in whole.to_dataframe()[["bili", "alb", "bili_sd"]].to_numpy()]
    assert cells[0][:2] == ["<0.3", "3"]
    assert cells[2] == ["1..2", ">4.5", 0.2]
    early, late = whole.split()
    for part, count in ((whole[:1], 3), (early, 1), (late, 2), (whole.windows(2.0), 2)):
        assert part.limited.sum() == count
        values, error = part.to_dataframe(), part.given.error
        np.testing.assert_array_equal(error > 0, np.asarray(part.error) > 0)
        assert values["bili_sd"].max() == np.max(error)
    gone = whole.keep(np.zeros(whole.mask.shape, bool))
    assert not gone.limited.any()
    assert not np.asarray(gone.error).any()


def test_a_table_far_from_zero_has_limits_less_the_same_offset():
    rng = np.random.default_rng(0)
    values = 1e6 + rng.normal(size=(5, 6, 1))
    below = values < 1e6
    bounds = np.where(below, -np.inf, np.nan), np.where(below, 1e6, np.nan)
    far = Trajectories(np.tile(np.arange(6.0), (5, 1)), values, limits=Limits(*bounds))
    assert far.offset.values
    upper = np.asarray(far.limits.upper)[below] + far.offset.values[0]
    np.testing.assert_allclose(upper, 1e6, rtol=1e-9)
    moved = far.at_offset(Trajectories([[0.0]], [[[0.0]]]).offset)
    np.testing.assert_allclose(np.asarray(moved.limits.upper)[below], 1e6)
    np.testing.assert_array_equal(far.given.limits.upper[below], 1e6)


def test_arrays_on_disk_are_read_as_the_same(path, tmp_path):
    whole = Trajectories.from_file(path, **NAMES)
    write(tmp_path / "arrays", whole, {})
    again = fill(whole, read_arrays(tmp_path / "arrays")[0], name="path")
    np.testing.assert_array_equal(again.limits.lower, whole.limits.lower)
    np.testing.assert_array_equal(again.error, whole.error)


def test_transformations_of_jax_keep_them(path):
    whole = Trajectories.from_file(path, **NAMES)
    through = jax.jit(lambda x: x)(whole)
    np.testing.assert_array_equal(through.limits.upper, whole.limits.upper)
    np.testing.assert_array_equal(through.error, whole.error)
    kept = jax.jit(lambda x: x.keep(x.times > 0))(whole)
    assert not np.asarray(kept.limits.censored)[0, 0].any()
    made = jax.jit(
        lambda lower, upper: Trajectories([[0.0]], [[[1.0]]], limits=Limits(lower, upper))
    )
    assert made(np.array([[[1.0]]]), np.array([[[2.0]]])).values == 1.5


def test_series_of_unequal_lengths_have_errors_and_limits():
    pairs = [([0, 1], [1.0, np.nan]), ([0], [2.0])]
    none = Limits([np.nan], [np.nan])
    limits = [Limits([np.nan, -np.inf], [np.nan, 0.5]), none]
    found = Trajectories.from_ragged(pairs, error=[[0.1, 0.2], [0.3]], limits=limits)
    np.testing.assert_array_equal(found.given.values[..., 0], [[1, 0.5], [2, 0]])
    np.testing.assert_array_equal(found.given.error[..., 0], [[0.1, 0.2], [0.3, 0]])
    table = found.to_dataframe()
    assert [*table["x_0"]] == ["1", "<0.5", "2"]
    assert [*table["x_0_error"]] == [0.1, 0.2, 0.3]


def test_an_empty_series_has_empty_errors_and_limits():
    pairs = [([0, 1], [1.0, 3.0]), ([], [])]
    none = Limits(np.full(2, np.nan), np.full(2, np.nan)), Limits([], [])
    found = Trajectories.from_ragged(pairs, error=[[0.1, 0.2], []], limits=none)
    np.testing.assert_allclose(found.error[..., 0], [[0.1, 0.2], [0, 0]])
    assert not found.mask[1].any()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"error": [[0.1, 0.2]]}, "error must have an array .* for each of 2 trajectories; got 1"),
        ({"error": [0.1, 0.2]}, r"error\[0\] must have the shape .* \(2, 1\); got \(\)"),
        ({"error": [[0.1, 0.2], [0.1, 0.2]]}, r"error\[1\] must .* \(1, 1\); got \(2, 1\)"),
        ({"error": [[0.1], [0.1]]}, r"error\[0\] must have the shape .* got \(1, 1\)"),
        ({"error": [[[0.1, 1], [0.2, 1]], [0.1]]}, r"error\[0\] must .* got \(2, 2\)"),
        ({"error": [["a", "b"], [0.1]]}, r"error\[0\] must be a rectangular array of numbers"),
        (
            {"limits": [Limits([0, np.nan], [1, np.nan]), Limits([np.nan, 0], [np.nan, 1])]},
            r"limits\[1\] must have the shape of the values of its trajectory, \(1, 1\)",
        ),
        ({"limits": [None, None]}, r"limits\[0\] must be a np_latentode.Limits; got NoneType"),
    ],
)
def test_errors_and_limits_of_another_shape_than_their_series_are_refused(untyped, given, words):
    """A longer one would become an observation that was never made."""
    with pytest.raises(ValueError, match=words):
        Trajectories.from_ragged([([0, 1], [1.0, 3.0]), ([0], [2.0])], **given)


def test_what_is_built_under_jit_is_what_is_built_outside():
    """NaN with a limit is observed, and what the mask hides leaves nothing, errors neither."""
    values = np.array([[[1.0], [np.nan], [3.0], [np.nan], [5.0]]])
    mask = np.array([[[True], [True], [False], [True], [False]]])
    error = np.array([[[0.1], [0.2], [np.nan], [np.nan], [0.5]]])
    lower = np.array([[[np.nan], [-np.inf], [2.0], [np.nan], [np.nan]]])
    limits = Limits(lower, np.array([[[np.nan], [2.0], [4.0], [np.nan], [np.nan]]]))
    times = np.arange(5.0)[None]
    outside = Trajectories(times, values, mask, error=error, limits=limits)

    def build(values, error, limits):
        return Trajectories(times, values, mask, error=error, limits=limits)

    inside = jax.jit(build)(values, error, limits)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_array_equal(a, b)
    slope = jax.grad(lambda e: jnp.sqrt(1 + build(values, e, limits).error ** 2).sum())
    assert np.isfinite(slope(jnp.asarray(error))).all()
    with pytest.raises(ValueError, match="error must have the shape of values"):
        jax.jit(build)(values, error[0], limits)
    with pytest.raises(ValueError, match=r"limits must be a np_latentode\.Limits of the shape"):
        jax.jit(build)(values, error, limits[0])


@pytest.mark.parametrize("error", [1e39, 1e300])
def test_an_error_that_is_infinite_for_jax_is_refused(tmp_path, error):
    with pytest.raises(ValueError, match=r"error must be 0 or more and finite .* got inf at"):
        Trajectories([[0.0]], [[[1.0]]], error=[[[error]]])
    path = tmp_path / "a.csv"
    path.write_text(f"who,day,y,sd\n1,0,1,{error}\n")
    with pytest.raises(MalformedRows, match=r"'sd' must be at most 3\.4e\+38 in size, .* line 2"):
        Trajectories.from_file(path, id="who", time="day", values=["y"], error={"y": "sd"})


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_a_long_table_has_one_column_of_errors(library):
    columns = {"who": [1, 1, 1, 2], "day": [0, 0, 1, 0], "test": ["bili", "alb", "bili", "x"]}
    columns |= {"result": ["<0.3", "3", "1.5", "negative"], "sd": [0.1, 0.2, 0.3, None]}
    names = dict(feature="test", value="result", values=["bili", "alb"])
    error = {"bili": "sd", "alb": "sd"}
    found = Trajectories.from_dataframe(
        library(columns), id="who", time="day", **names, error=error
    )
    table = found.to_dataframe()
    assert [*table["bili"]] == ["<0.3", "1.5"]
    np.testing.assert_array_equal(table["bili_sd"], [0.1, 0.3])
    np.testing.assert_array_equal(table["alb_sd"], [0.2, np.nan])


def test_a_made_up_name_of_a_column_of_errors_never_replaces_another_column():
    table = pd.DataFrame({"who": [1, 1], "day": [0, 0], "test": ["a", "b"], "y": [1.0, 2.0]})
    table = table.assign(sd=[0.1, 0.2], a_sd=[7.0, 7.0])
    names = dict(feature="test", value="y", error={"a": "sd", "b": "sd"}, static=["a_sd"])
    found = Trajectories.from_dataframe(table, id="who", time="day", **names).to_dataframe()
    assert found[["a", "a_sd", "a_sd_2", "b_sd"]].to_numpy().tolist() == [[1.0, 7.0, 0.1, 0.2]]
    # A feature has the name.
    table["test"] = ["a", "a_sd"]
    names = dict(feature="test", value="y", error={"a": "sd", "a_sd": "sd"})
    found = Trajectories.from_dataframe(table, id="who", time="day", **names).to_dataframe()
    expected = [[1.0, 2.0, 0.1, 0.2]]
    assert found[["a", "a_sd", "a_sd_2", "a_sd_sd"]].to_numpy().tolist() == expected


def test_decimal_commas_are_read_in_limits_too(tmp_path):
    path = tmp_path / "visits.csv"
    path.write_text("who;day;y\n1;0;<0,3\n1;1;2,5\n1;2;1,5..2,5\n")
    found = Trajectories.from_file(path, id="who", time="day", values=["y"])
    assert [*found.to_dataframe()["y"]] == ["<0.3", "2.5", "1.5..2.5"]


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["0,5", "<1.000"], r"with a decimal comma as in other rows; got '<1\.000' in line 3"),
        (["0,5", "1.0..2,5"], r"with a decimal comma .* got '1\.0\.\.2,5' in line 3"),
        (["<0,3", "2.5"], r"'y' must hold numbers, with a decimal comma .* got '2\.5' in line 3"),
        (["<0,3", "<2.5"], r"with a decimal comma .* got '<2\.5' in line 3"),
    ],
)
def test_a_column_has_decimal_commas_or_points_in_numbers_and_limits(tmp_path, cells, words):
    path = tmp_path / "visits.csv"
    path.write_text("who;day;y\n" + "".join(f"1;{k};{x}\n" for k, x in enumerate(cells)))
    with pytest.raises(MalformedRows, match=words):
        Trajectories.from_file(path, id="who", time="day", values=["y"])


def test_where_commas_separate_a_limit_has_a_point(tmp_path):
    with pytest.raises(MalformedRows, match=r"or limits such as <0\.5.* got '<0,3' in line 3"):
        read(tmp_path / "a.csv", ["2.5", "<0,3"])


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
def test_texts_that_are_numbers_are_read_without_a_limit_too(library):
    """As those of a later table, whose values are all within the limits."""
    columns = {"who": [1, 1, 2, 2], "day": [0, 1, 0, 1]}
    names = dict(id="who", time="day", values=["y"])
    for cells in (["0.5", "2", " 1e-3 ", None], ["0.5", "2", "0.001", "NA"]):
        found = Trajectories.from_dataframe(library(columns | {"y": cells}), **names)
        np.testing.assert_array_equal(found.given.values[..., 0], [[0.5, 2], [0.001, 0]])
        assert found.limits is None
    with pytest.raises(ValueError, match="column 'y' must hold numbers, or true and false"):
        Trajectories.from_dataframe(library(columns | {"y": ["1", "2", "low", None]}), **names)
    long = {"who": [1, 1, 2], "day": [0, 0, 1], "test": ["a", "b", "a"], "y": ["1", "neg", "2"]}
    found = Trajectories.from_dataframe(
        library(long), id="who", time="day", feature="test", value="y", values=["a"]
    )
    np.testing.assert_array_equal(found.given.values[..., 0], [[1], [2]])


@pytest.mark.parametrize("entry", [datetime(2020, 1, 1), [1, 2], {"a": 1}])
def test_an_entry_that_is_no_number_beside_a_limit_is_refused_with_its_row(entry):
    table = pd.DataFrame({"who": 1, "day": [0, 1, 2], "y": ["<1", entry, 2]})
    with pytest.raises(MalformedRows, match=r"or limits such as <0\.5, .* in row 1"):
        Trajectories.from_dataframe(table, id="who", time="day", values=["y"])


def test_the_error_of_a_logarithm_is_relative(path):
    found = Trajectories.from_file(path, **NAMES, log=["bili"])
    np.testing.assert_allclose(found.error[0, 1, 0], 0.1 / 0.5)
    np.testing.assert_allclose(found.limits.upper[0, 0, 0], np.log(0.3), rtol=1e-6)
    zero = Trajectories.from_dataframe(
        pd.DataFrame({"who": 1, "day": [0, 1], "y": ["0..2", "3"]}),
        **dict(id="who", time="day", values=["y"], log=["y"]),
    )
    assert zero.limits.lower[0, 0, 0] == -np.inf


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("<0.5", (-np.inf, 0.5)),
        ("≤0.5", (-np.inf, 0.5)),
        ("≥ 120", (120.0, np.inf)),
        ("<= 0.5", (-np.inf, 0.5)),
        (">120", (120.0, np.inf)),
        (">=-1e-3", (-1e-3, np.inf)),
        ("1..2", (1.0, 2.0)),
        ("-2.5 .. -1", (-2.5, -1.0)),
        *((text, None) for text in ("<", "<x", "2..1", "1..1", "1...5", "[1, 2]", "<<1", "1..")),
        *((text, None) for text in ("<1e999", "<nan", "=1", "1-2")),
    ],
)
def test_a_limit_is_written_in_one_way(text, bounds):
    assert read_limit(text) == bounds
    if bounds is not None:
        assert read_limit(limit_text(*bounds)) == bounds


@pytest.mark.parametrize("cell", ["2..1", "<", "<x", "[2, 1]", "0.3-0.6", "1 – 2"])  # noqa: RUF001
def test_a_cell_that_is_no_limit_is_refused_with_its_line(tmp_path, cell):
    words = (
        r"'y' must hold numbers, or limits such as <0\.5, >120 or 1\.\.2, the lower number first"
    )
    with pytest.raises(MalformedRows, match=words) as caught:
        read(tmp_path / "a.csv", ["1", cell])
    assert caught.value.problems[0][0] == 3
    table = pd.DataFrame({"who": 1, "day": [0, 1], "y": ["1", cell]})
    with pytest.raises(MalformedRows, match=words):
        Trajectories.from_dataframe(table, id="who", time="day", values=["y"])


def test_a_limit_without_positive_numbers_has_no_logarithm(tmp_path):
    with pytest.raises(
        MalformedRows, match=r"must be positive.*got <0 in line 2, -1\.\.3 in line 3"
    ):
        read(tmp_path / "a.csv", ["<0", "-1..3", "2"], log=["y"])


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("-1", "'sd' must be 0 or more and finite, as a standard error is; got -1.0 in line 2"),
        ("inf", "'sd' must be 0 or more and finite, as a standard error is; got inf in line 2"),
        ("", "'sd' must hold a standard error where 'y' holds a value.* got nothing in line 2"),
        ("nope", "'sd' must hold numbers; got 'nope' in line 2"),
    ],
)
def test_a_standard_error_that_is_none_is_refused_with_its_line(tmp_path, cell, words):
    path = tmp_path / "a.csv"
    path.write_text(f"who,day,y,sd\n1,0,1,{cell}\n1,1,<2,\n")
    with pytest.raises(MalformedRows, match=words):
        Trajectories.from_file(path, id="who", time="day", values=["y"], error={"y": "sd"})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"x": "sd"}, r"error must name columns among values, \['y'\]; got \['x'\]"),
        ({"y": "se"}, "error .* must name columns of the table; got .'se'"),
        ({"y": "day"}, "error and values must name different columns"),
        ("sd", "error must map columns of values to those of their standard errors"),
    ],
)
def test_a_column_of_errors_that_is_none_is_refused(error, words):
    table = pd.DataFrame({"who": 1, "day": [0, 1], "y": [1, 2], "sd": 0.1})
    with pytest.raises(ValueError, match=words):
        Trajectories.from_dataframe(table, id="who", time="day", values=["y"], error=error)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"error": [[[0.1], [-1.0]]]}, r"error must be 0 or more .* got -1.0 at error\[0, 1, 0\]"),
        ({"error": [[[0.1], [np.nan]]]}, r"got nan at error\[0, 1, 0\], one of 1"),
        ({"error": [[0.1, 0.2]]}, r"error must have the shape of values, \(1, 2, 1\)"),
        ({"limits": Limits([[[0.0]]], [[[1.0]]])}, r"limits must be a np_latentode.Limits of"),
        (
            {"limits": Limits([[[1.0], [np.nan]]], [[[1.0 + 1e-12], [np.nan]]])},
            "lower and upper must differ in JAX's float type",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Trajectories([[0.0, 1.0]], [[[1.0], [2.0]]], **given)


@pytest.mark.parametrize(
    "bounds", [([1.0], [0.0]), ([1.0], [np.nan]), ([-np.inf], [np.inf]), ([1.0], [1.0])]
)
def test_limits_the_wrong_way_round_are_refused(bounds):
    with pytest.raises(ValueError, match="limits: lower must be below upper"):
        Limits(*bounds)

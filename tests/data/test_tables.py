"""A table is read without loss, or refused with the columns and rows that cannot be read."""

import datetime as dt
import pickle
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from np_latentode import Labels, MalformedRows, Scaling, Trajectories, tidy_forecast

ROWS = {
    "patient": ["b", "a", "b", "a", "c", "b"],
    "day": [3.0, 1.0, 0.5, 0.0, 2.0, 3.0],
    "bili": [1.0, None, 2.0, 3.0, None, 4.0],
    "chol": [None, 5.0, 6.0, None, None, 7.0],
}
COLUMNS = dict(id="patient", time="day", values=["bili", "chol"])


@pytest.fixture(params=["pandas", "polars"])
def make(request):
    return {"pandas": pd.DataFrame, "polars": pl.DataFrame}[request.param]


def same(ours, theirs):
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_rows_become_trajectories_sorted_by_time_in_the_order_of_first_rows(make):
    ours = Trajectories.from_dataframe(make(ROWS), **COLUMNS)
    nan = np.nan
    same(
        ours,
        Trajectories.from_ragged(
            [
                ([0.5, 3.0, 3.0], [[2.0, 6.0], [1.0, nan], [4.0, 7.0]]),
                ([0.0, 1.0], [[3.0, nan], [nan, 5.0]]),
                ([], np.empty((0, 2))),
            ]
        ),
    )
    assert ours.labels is not None
    assert ours.labels.ids == ("b", "a", "c")
    assert ours.labels.features == ("bili", "chol")


def test_the_order_of_rows_does_not_matter_but_within_one_id_and_time(make):
    df = pd.DataFrame(ROWS)
    shuffled = df.iloc[[5, 3, 0, 4, 2, 1]]
    ours = Trajectories.from_dataframe(make(shuffled.to_dict("list")), **COLUMNS)
    theirs = Trajectories.from_dataframe(make(ROWS), **COLUMNS)
    assert sorted(ours.names.ids) == sorted(theirs.names.ids)
    np.testing.assert_array_equal(ours.values.sum((1, 2)), theirs.values.sum((1, 2)))
    np.testing.assert_array_equal(ours.times, theirs.times)


@pytest.mark.parametrize("backend", ["pandas", "polars"])
def test_a_table_that_went_out_comes_back_the_same(make, backend):
    ours = Trajectories.from_dataframe(make(ROWS), **COLUMNS)[:2]
    table = ours.to_dataframe(backend=backend)
    assert list(table.columns) == ["patient", "day", "bili", "chol"]
    assert len(table) == 5
    again = Trajectories.from_dataframe(table, **COLUMNS)
    same(again, ours)
    assert again.labels == ours.labels


def test_without_a_table_names_are_numbers():
    table = Trajectories([[0.0, 1.0]], [[[1.0], [np.nan]]]).to_dataframe()
    assert table.to_dict("list") == {"id": [0], "time": [0.0], "x_0": [1.0]}


def test_labels_follow_what_is_selected_and_stay_outside_of_jax(make):
    ours = Trajectories.from_dataframe(make(ROWS), **COLUMNS)
    assert ours[1].names.ids == ("a",)
    assert ours[-1].names.ids == ("c",)
    assert ours[np.array([2, 0])].names.ids == ("c", "b")
    assert ours[np.array([True, False, True])].names.ids == ("b", "c")
    assert ours.before(1.0).names == ours.names
    traced = []
    jitted = jax.jit(lambda x: traced.append(0) or x.values.sum())
    jitted(ours[:1])
    jitted(ours[1:2])
    assert len(traced) == 1
    assert jax.tree.map(lambda x: x, ours).labels is None


DATES = [dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2, 12), dt.datetime(2020, 1, 8)]


@pytest.mark.parametrize(
    ("unit", "expected"), [("D", [0, 1.5, 7]), ("h", [0, 36, 168]), ("W", [0, 1.5 / 7, 1])]
)
def test_dates_are_counted_in_the_unit_from_the_first_one(make, unit, expected):
    df = make({"id": [1, 1, 1], "t": DATES, "x": [1.0, 2.0, 3.0]})
    ours = Trajectories.from_dataframe(df, id="id", time="t", values="x", unit=unit)
    np.testing.assert_allclose(ours.times[0], expected, rtol=1e-6)
    later = Trajectories.from_dataframe(
        df, id="id", time="t", values="x", unit=unit, origin=dt.datetime(2019, 12, 31)
    )
    step = {"D": 1, "h": 24, "W": 1 / 7}[unit]
    np.testing.assert_allclose(later.times[0], np.array(expected) + step, rtol=1e-6)
    back = pd.to_datetime(np.asarray(ours.to_dataframe()["t"]))
    assert abs(back - pd.to_datetime(DATES)).max() < pd.Timedelta("1s")


def dated(days=DATES, **options):
    df = pd.DataFrame({"id": [1, 1, 1], "t": days, "x": [1.0, 2.0, 3.0]})
    return Trajectories.from_dataframe(df, id="id", time="t", values="x", **options)


@pytest.mark.usefixtures("untyped")
def test_dates_are_turned_into_times_and_refused_as_such():
    ours = dated()
    assert ours.names.counted(DATES).tolist() == [0, 1.5, 7]
    assert ours.names.calendar(np.array([0, 1.5, 7])).tolist() == DATES
    for dates in (DATES[1], np.datetime64("2020-01-02"), pd.date_range("2020-01-01", periods=3)):
        with pytest.raises(ValueError, match=r"^time must be .* got dates, which `names.counted`"):
            ours.before(dates)
    with pytest.raises(ValueError, match="dates must be dates; got 'soon'"):
        ours.names.counted("soon")
    with pytest.raises(ValueError, match="dates must be numbers, as the times in 'time' are; got"):
        Trajectories([[0.0]], [[[1.0]]]).names.counted(DATES)


def test_a_table_with_other_features_or_units_than_the_training_table_is_refused():
    scaling = Scaling.fit(dated())
    scaling.check(dated(), name="context")
    scaling.check(dated(DATES[::-1], origin=DATES[0]), name="context")
    # Trajectories without labels are not refused.
    scaling.check(Trajectories([[0.0]], [[[1.0]]]), name="context")
    later = [date + dt.timedelta(days=90) for date in DATES]
    for other in (dated(later), dated(unit="W")):
        with pytest.raises(
            ValueError, match=r"^context must have the features, units and origin of the"
        ):
            scaling.check(other, name="context")
    columns = dict(ROWS, patient=[0] * 6, bili=ROWS["chol"], chol=ROWS["bili"])
    one, two = (
        Trajectories.from_dataframe(pd.DataFrame(columns), id="patient", time="day", values=values)
        for values in (["bili", "chol"], ["chol", "bili"])
    )
    with pytest.raises(ValueError, match=r"values bili, chol; got values chol, bili\.$"):
        Scaling.fit(one).check(two, name="context")


def test_what_was_not_observed_is_null_in_polars(make):
    table = Trajectories.from_dataframe(make(ROWS), **COLUMNS).to_dataframe(backend="polars")
    assert table["bili"].null_count() == 1
    assert table["chol"].null_count() == 2


def test_days_and_datetimes_with_a_zone_are_dates_too():
    days = [date.date() for date in DATES]
    for df in (pd.DataFrame({"t": days}), pl.DataFrame({"t": days})):
        table = (
            df.assign(id=1, x=1.0) if isinstance(df, pd.DataFrame) else df.with_columns(id=1, x=1.0)
        )
        ours = Trajectories.from_dataframe(table, id="id", time="t", values=["x"])
        np.testing.assert_array_equal(ours.times[0], [0, 1, 7])
    zoned = pd.to_datetime(["2020-01-01 01:00+01:00", "2020-01-02 00:00+00:00"], utc=True)
    df = pd.DataFrame({"t": zoned.tz_convert("Asia/Tokyo"), "id": 1, "x": 1.0})
    ours = Trajectories.from_dataframe(df, id="id", time="t", values=["x"])
    np.testing.assert_array_equal(ours.times[0], [0, 1])
    assert ours.labels is not None
    assert ours.labels.origin == np.datetime64("2020-01-01")


@pytest.mark.parametrize(
    "column",
    [
        np.array([1, 2], np.int16),
        np.array([1.0, 2.0], np.float32),
        pd.array([1, 2], dtype="Int64"),
        [Decimal(1), Decimal(2)],
        np.array([1.0, 2.0], object),
    ],
    ids=["int16", "float32", "nullable", "decimal", "object"],
)
def test_numbers_of_any_kind_are_numbers(column):
    df = pd.DataFrame({"id": [0, 0], "t": [0, 1], "x": column})
    ours = Trajectories.from_dataframe(df, id="id", time="t", values=["x"])
    np.testing.assert_array_equal(ours.values[0, :, 0], [1, 2])


def test_true_and_false_are_1_and_0_and_what_is_null_is_not_observed(make):
    df = make({"id": [0, 0, 0], "t": [0, 1, 2], "x": [True, None, False], "y": [1.0, 1.0, 1.0]})
    ours = Trajectories.from_dataframe(df, id="id", time="t", values=["x", "y"])
    assert ours.values[0, :, 0].tolist() == [1, 0, 0]
    assert ours.mask[0, :, 0].tolist() == [True, False, True]


GOOD = {"id": [0, 0], "t": [0.0, 1.0], "x": [1.0, 2.0], "word": ["a", "b"]}
BAD = {
    "no table": (lambda make: [1, 2], {}, "df must be a data frame, .* got list"),
    "no rows": (lambda make: make({k: [] for k in GOOD}), {}, "df must hold at least one row"),
    "no column": (lambda make: make(GOOD), dict(time="when"), r"got \['when'\], and it has"),
    "no values": (lambda make: make(GOOD), dict(values=[]), "and values at least one"),
    "one twice": (lambda make: make(GOOD), dict(values=["x", "t"]), "different columns"),
    "text": (lambda make: make(GOOD), dict(values=["word"]), "column 'word' must hold .*'a'"),
    "text for time": (lambda make: make(GOOD), dict(time="word"), "'word' must hold .*dates"),
    "no id": (lambda make: make(GOOD | {"id": [0, None]}), {}, "'id' .* nothing in row 1"),
    "no time": (
        lambda make: make(GOOD | {"t": [None, 1.0]}),
        {},
        "'t' must hold a time .* in row 0",
    ),
    "infinite": (lambda make: make(GOOD | {"x": [1.0, np.inf]}), {}, "'x' .* got inf in row 1"),
    "not positive": (
        lambda make: make(GOOD | {"x": [1.0, 0.0]}),
        dict(log="x"),
        r"^column 'x' must be positive, as its logarithm is taken; got 0\.0 in row 1\.$",
    ),
    "too large": (
        lambda make: make(GOOD | {"x": [1.0, -1e39]}),
        {},
        r"'x' must be at most 3.4e\+38 in size, .* got -1e\+39 in row 1",
    ),
    "a time too large": (
        lambda make: make(GOOD | {"t": [1.0, 1e39]}),
        {},
        r"'t' must be at most 3.4e\+38 in size, .* got 1e\+39 in row 1",
    ),
    "no value to log": (
        lambda make: make(GOOD),
        dict(log=["x", "word"]),
        r"log must name columns among values, \['x'\]; got \['word'\]",
    ),
    "no unit": (
        lambda make: make(GOOD),
        dict(unit="Y"),
        "unit must be one of W, D, h, m, s; got 'Y'",
    ),
    "an origin": (lambda make: make(GOOD), dict(origin="2020-01-01"), "origin must be left out"),
    "no origin": (
        lambda make: make(GOOD | {"t": DATES[:2]}),
        dict(origin="soon"),
        "origin must be a date; got 'soon'",
    ),
}


@pytest.mark.parametrize(("table", "changed", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_table_is_refused_by_column_and_row(make, table, changed, message):
    if "3.4" in message and jnp.result_type(float) == jnp.float64:
        pytest.skip("nothing finite is too large in double precision")
    with pytest.raises(ValueError, match=message):
        Trajectories.from_dataframe(
            table(make), **(dict(id="id", time="t", values=["x"]) | changed)
        )


def test_categories_are_refused():
    df = pd.DataFrame({"id": [0, 0], "t": [0, 1], "x": pd.Categorical(["hi", "lo"])})
    with pytest.raises(ValueError, match=r"column 'x' must hold numbers.*Categorical.*'hi'"):
        Trajectories.from_dataframe(df, id="id", time="t", values=["x"])


def test_all_rows_that_cannot_be_read_are_reported_at_once(make):
    table = dict(
        id=["a", None, "a", "a", "a", "a"],
        t=[0.0, 1.0, None, 3.0, 4.0, 5.0],
        x=[-1.0, 1.0, np.inf, 1.0, 0.0, None],
        y=[1.0, 1.0, 1.0, 1.0, 1.0, -np.inf],
    )
    with pytest.raises(MalformedRows) as caught:
        Trajectories.from_dataframe(make(table), id="id", time="t", values=["x", "y"], log=["x"])
    assert [row for row, _ in caught.value.problems] == [0, 1, 2, 2, 4, 5]
    said = str(caught.value)
    assert said.startswith(
        "5 rows cannot be read: column 'x' must be positive, as its logarithm is taken; got -1.0 "
        "in row 0, 0.0 in row 4; column 'id' must hold an id in each row; got nothing in row 1; "
        "column 't' must"
    )
    assert said.endswith("; got -inf in row 5.")
    assert str(pickle.loads(pickle.dumps(caught.value))) == said


def test_missing_ids_and_times_of_pandas_are_refused():
    df = pd.DataFrame(
        {
            "id": pd.array([1, None, 1], dtype="Int64"),
            "t": pd.to_datetime([None, "2020-01-01", "2020-01-01"]),
            "x": 1.0,
        }
    )
    for table, rows in ((df, [0, 1]), (df.iloc[:1], [0])):
        with pytest.raises(MalformedRows) as caught:
            Trajectories.from_dataframe(table, id="id", time="t", values=["x"])
        assert [row for row, _ in caught.value.problems] == rows


def test_a_number_beside_dates_is_no_date():
    df = pd.DataFrame({"id": 0, "t": pd.Series([dt.date(2020, 1, 1), 3], dtype=object), "x": 1.0})
    with pytest.raises(ValueError, match="column 't' must hold numbers, dates or datetimes"):
        Trajectories.from_dataframe(df, id="id", time="t", values=["x"])


POSITIVE = st.one_of(
    st.none(), st.floats(min_value=0, exclude_min=True, max_value=1e300, allow_subnormal=False)
)


@given(st.lists(st.tuples(POSITIVE, st.floats(-1e9, 1e9)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_logarithm_comes_back_in_the_units_of_its_column(rows):
    x, y = zip(*rows, strict=True)
    df = pd.DataFrame({"id": 0, "t": np.arange(len(x)), "x": np.array(x, float), "y": y})
    ours = Trajectories.from_dataframe(df, id="id", time="t", values=["y", "x"], log="x")
    back = ours.to_dataframe()
    logs = np.log(df.x.to_numpy())
    np.testing.assert_array_equal(np.where(ours.mask, ours.given.values, np.nan)[0, :, 1], logs)
    np.testing.assert_array_equal(back.x, df.x)
    np.testing.assert_array_equal(back.y, df.y)


def test_a_table_with_another_logarithm_is_refused(make):
    ours, plain = (
        Trajectories.from_dataframe(make(ROWS), **COLUMNS, log=log) for log in (["bili"], ())
    )
    assert ours.names.log == ("bili",)
    assert ours[:1].before(1.0).names.log == ("bili",)
    with pytest.raises(
        ValueError, match=r"table, values log\(bili\), chol; got values bili, chol\.$"
    ):
        Scaling.fit(ours).check(plain, name="context")
    both = Trajectories.from_dataframe(make(ROWS), **COLUMNS, log=["chol", "bili", "chol"])
    assert both.names.log == ("bili", "chol")


def test_a_forecast_of_a_logarithm_is_summed_up_in_the_units_of_its_column(make):
    context = Trajectories.from_dataframe(make(ROWS), **COLUMNS, log=["chol"])
    x = np.random.default_rng(0).normal(size=(100, 3, 4, 2))
    table = tidy_forecast({"x": x}, np.arange(4.0), context.names)
    np.testing.assert_allclose(table["mean"], x.mean(0).ravel())
    np.testing.assert_allclose(table["sd"], x.std(0).ravel())
    np.testing.assert_allclose(table["q0.95"], np.quantile(x, 0.95, axis=0).ravel())
    own = np.stack([x[..., 0], np.exp(x[..., 1])], axis=-1)
    np.testing.assert_allclose(context.names.own_units(x), own)
    with pytest.raises(ValueError, match=r"values must have 2 features .* got shape \(4, 3\)"):
        context.names.own_units(x[0, 0, :, :1].repeat(3, 1))


@pytest.mark.parametrize("backend", ["pandas", "polars"])
def test_a_forecast_is_a_row_for_each_id_time_and_feature(make, backend):
    context = Trajectories.from_dataframe(make(ROWS), **COLUMNS)
    x = np.random.default_rng(0).normal(size=(100, 3, 4, 2))
    table = tidy_forecast({"x": x}, np.arange(4.0), context.names, backend=backend)
    assert list(table.columns) == [
        "patient",
        "day",
        "feature",
        "mean",
        "sd",
        "q0.05",
        "q0.5",
        "q0.95",
    ]
    table = pd.DataFrame({name: table[name].to_list() for name in table.columns})
    assert len(table) == 3 * 4 * 2
    one = table[(table.patient == "a") & (table.day == 2) & (table.feature == "chol")]
    draws = x[:, 1, 2, 1]
    expected = [draws.mean(), draws.std(), *np.quantile(draws, [0.05, 0.5, 0.95])]
    np.testing.assert_allclose(one.iloc[0, 3:].to_numpy(float), expected)


def test_a_forecast_of_others_is_refused():
    names = Trajectories.from_dataframe(pd.DataFrame(ROWS), **COLUMNS).names
    with pytest.raises(ValueError, match="draws must be of 3 trajectories and 2 features"):
        tidy_forecast({"x": np.zeros((5, 2, 4, 2))}, np.arange(4.0), names)
    with pytest.raises(ValueError, match="quantiles must lie between 0 and 1"):
        tidy_forecast({"x": np.zeros((5, 3, 4, 2))}, np.arange(4.0), names, quantiles=[5.0, 95.0])
    with pytest.raises(ValueError, match=r"times must be those of the draws.*\(4,\)"):
        tidy_forecast({"x": np.zeros((5, 3, 4, 2))}, np.arange(3.0), names)


NUMBERS = st.one_of(
    st.none(),
    st.floats(-1e9, 1e9, allow_subnormal=False, width=32),
    st.sampled_from([0.0, 1e-9, -1e-9, 1e9]),
)
TABLE = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d"]), st.floats(0, 1e9, width=32), NUMBERS, NUMBERS),
    min_size=1,
    max_size=30,
)


@given(TABLE, st.sampled_from(["pandas", "polars"]))
@settings(max_examples=60, deadline=None)
def test_no_row_is_lost_on_the_way_in_and_out(rows, backend):
    columns = dict(zip(("who", "t", "x", "y"), zip(*rows, strict=True), strict=True))
    if backend == "polars":
        floats = {"t": pl.Float64, "x": pl.Float64, "y": pl.Float64}
        df = pl.DataFrame(columns, schema_overrides=floats)
    else:
        df = pd.DataFrame(columns)
    ours = Trajectories.from_dataframe(df, id="who", time="t", values=["x", "y"])
    assert list(ours.names.ids) == list(dict.fromkeys(columns["who"]))
    assert np.isfinite(ours.times).all()
    assert np.isfinite(ours.values).all()
    back = ours.to_dataframe(backend=backend)
    found = zip(*(back[name].to_list() for name in ("who", "t", "x", "y")), strict=True)

    def key(row):
        who, t, *values = row
        single = (float(np.float32(v)) if v is not None and v == v else None for v in values)
        return repr((who, float(np.float32(t)), *single))

    seen = [row for row in rows if row[2] is not None or row[3] is not None]
    assert sorted(map(key, found)) == sorted(map(key, seen))


@given(st.lists(st.sampled_from([0.0, 1.5, -2, "", "x", None, True, [1], np.inf]), min_size=1))
@settings(max_examples=60, deadline=None)
def test_whatever_a_column_holds_it_is_read_or_refused_with_a_sentence(column):
    df = pd.DataFrame({"who": 0, "t": np.arange(len(column)), "x": pd.Series(column, dtype=object)})
    if all(
        entry is None or (np.isscalar(entry) and entry not in ("", "x", np.inf)) for entry in column
    ):
        ours = Trajectories.from_dataframe(df, id="who", time="t", values=["x"])
        assert int(ours.mask.sum()) == sum(entry is not None for entry in column)
    else:
        with pytest.raises(ValueError, match=r"column 'x' must"):
            Trajectories.from_dataframe(df, id="who", time="t", values=["x"])


def test_times_that_floats_cannot_tell_apart_are_refused(make, x64):
    table = dict(id=[1, 1, 2], t=[1.7e9, 1.7e9 + 10, 0.0], x=[1.0, 2.0, 3.0])
    data = Trajectories.from_dataframe(make(table), id="id", time="t", values=["x"])
    np.testing.assert_array_equal(np.diff(data.times[0]), [10])
    with (
        jax.enable_x64(False),
        pytest.raises(
            ValueError, match=r"times of one id .* split the table.*1700000010.0 in row 1"
        ),
    ):
        Trajectories.from_dataframe(make(table), id="id", time="t", values=["x"])


@pytest.mark.parametrize("text", ["today", "2020", "2021-01-01T00:00Z", "soon"])
def test_texts_that_are_no_dates_are_no_dates(text):
    labels = Labels((1,), ("x",), origin=np.datetime64("2020-01-01", "us"), unit="D")
    assert labels.counted("2020-01-03T12:00") == 2.5
    with pytest.raises(ValueError, match=f"dates must be dates; got {text!r}"):
        labels.counted(text)


@pytest.mark.parametrize(
    ("labels", "quantiles"),
    [
        (Labels((1,), ("x",), id="mean"), [0.5]),
        (Labels((1,), ("x",), time="q0.5"), [0.5]),
        (Labels((1,), ("x",), id="sd"), [0.5]),
    ],
)
def test_columns_of_a_forecast_do_not_write_over_each_other(labels, quantiles):
    draws = {"x": np.zeros((2, 1, 1, 1))}
    with pytest.raises(ValueError, match="must have different names"):
        tidy_forecast(draws, [0.0], labels, quantiles=quantiles)


def test_the_mean_of_zeros_and_ones_is_their_probability():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(50, 2, 3, 2))
    x = np.stack([rng.normal(size=p.shape[:-1]), rng.uniform(size=p.shape[:-1]) < p[..., 1]], -1)
    labels = Labels(("a", "b"), ("number", "bit"))
    table = tidy_forecast({"x": x, "x_mean": p}, np.arange(3.0), labels)
    for name, expected in (("number", x[..., 0].mean(0)), ("bit", p[..., 1].mean(0))):
        found = table[table.feature == name]["mean"]
        np.testing.assert_allclose(found, expected.ravel())
    without = tidy_forecast({"x": x}, np.arange(3.0), labels)
    np.testing.assert_allclose(without[without.feature == "bit"]["mean"], x[..., 1].mean(0).ravel())
    np.testing.assert_array_equal(without["q0.5"], table["q0.5"])


def test_quantiles_of_counts_are_counts():
    x = np.array([[1.0, 1.0], [2.0, 2.5], [3.0, 3.0], [4.0, 4.0]])[:, None, None]
    table = tidy_forecast(
        {"x": x}, [0.0], Labels(("a",), ("count", "number")), quantiles=[0.5, 0.6]
    )
    np.testing.assert_allclose(table["q0.5"], [2.0, 2.75])
    np.testing.assert_allclose(table["q0.6"], [3.0, np.quantile(x[:, 0, 0, 1], 0.6)])

"""A file is read exactly, or refused with the lines that cannot be read."""

import datetime as dt
import errno
import gc
import gzip
import os
import pickle
import random
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from np_latentode import MalformedRows, Trajectories
from np_latentode.data.entries import MISSING
from np_latentode.data.files import read_table, write_table, writing_tables

COLUMNS = dict(id="who", time="day", values=["x", "y"])
HEADER = "who,day,x,y\n"
ENDINGS = [".csv", ".csv.gz", ".tsv", ".xlsx", ".parquet", ".nc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def read(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Trajectories.from_file(path, **(COLUMNS | options))


def test_a_file_is_read_as_its_table_would_be(tmp_path):
    ours = read(
        tmp_path / "data.csv",
        "\ufeffextra, day ,who,x,y\n,3, 007 ,1.5,NA\n\n,0,7,NaN, -2e3 \r\n,.5,007,nan,N/A\n"
        '"a\nb",1,"7,""8""",null,None\n,-1,é,,+4\n',
    )
    table = dict(
        who=["007", "7", "007", '7,"8"', "é"],
        day=[3, 0, 0.5, 1, -1],
        x=[1.5, *[None] * 4],
        y=[None, -2e3, None, None, 4],
    )
    theirs = Trajectories.from_dataframe(pd.DataFrame(table), **COLUMNS)
    assert ours.labels == theirs.labels
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_any_ending_of_lines_is_read_and_counted(tmp_path, ending):
    text = HEADER + 'a,1,2,3\n\n"b\nb",1,2,3\na,1,much,\n'
    with pytest.raises(MalformedRows, match=r"got 'much' in line 6\.$"):
        read(tmp_path / "data.csv", text.replace("\n", ending))


BAD_FILES = {
    "empty": ("", "{} must begin with a row that names its columns; got no row"),
    "blank": ("\n\n", "{} must begin with a row that names"),
    "no header": ("a,1,2,3\n", r"got none of \['who', 'day', 'x', 'y'\] in \['a', '1', '2', '3'\]"),
    "a column missing": ("who,day,x\n", r"{} must name the columns .* none of \['y'\] in \['who',"),
    "a column twice": ("who,day,x,x,y\n", r"{} must name different .* got \['x'\] more than once"),
    "bars": ("who|day|x|y\na|1|2|3\n", r"{} must name the columns .* in \['who|day|x|y'\]"),
    "semicolons": ("who;day;x\na;1;2\n", r"{} .* got none of \['y'\] in \['who', 'day', 'x'\]"),
    "a header of quotes": ('"who"day,x\n', "{} must begin with a row .* got ',' expected after"),
    "no rows": (HEADER, "{} must hold at least one row below its header; got none"),
    "a NUL byte": (HEADER + "a,1,2,\0\n", "{} must be text; got a NUL byte in line 2"),
    "no UTF-8": (
        HEADER.encode() + b"\xe9,1,2,3\n",
        "{} must be text in UTF-8; got byte 0xe9 in.*2",
    ),
    "UTF-16": (HEADER.encode("utf-16"), "{} must be text"),
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_without_such_a_table_is_refused_by_name(tmp_path, text, message):
    path = tmp_path / "data.csv"
    with pytest.raises(ValueError, match=message.format("^[^ ]*data.csv")):
        read(path, text)


GOOD_ROWS = ["a,1,2.5,3", "b,-1e3,.5,", '"a,""\nc",0,NA,-4', " a ,1, 7 ,nan"]
BAD_ROWS = {
    "a,1,2": "a row must have 4 fields, as the header has; got 3",
    "a,1,2,3,": "a row must have 4 fields, as the header has; got 5",
    "a": "a row must have 4 fields, as the header has; got 1",
    '"a"b,1,2,3': "a row must be proper CSV; got ',' expected after '\"'",
    ",1,2,3": "column 'who' must hold an id in each row; got nothing",
    "NA,1,2,3": "column 'who' must hold an id in each row; got nothing",
    "a,,2,3": "column 'day' must hold a time in each row; got ''",
    "a,null,2,3": "column 'day' must hold a time in each row; got 'null'",
    "a,inf,2,3": "column 'day' must hold a time in each row; got inf",
    **{
        f"a,{entry},2,3": "column 'day' must hold numbers, ISO 8601 dates, or such dates "
        f"with a zone, of one kind; got {entry!r}"
        for entry in ("soon", "1_0", "2020-13-01", "2020-01-01x12:00", "2020-W01-1", "-nan")
    },
    **{
        f"a,1,{entry},3": f"column 'x' must hold numbers; got {entry.strip()!r}"
        for entry in ("abc", "1_000", "0x10", "1e", "True", "1;2", "NAN", " - ", "2020-01-01")
    },
    "a,1,inf,3": "column 'x' must be finite, or empty where nothing was measured; got inf",
    "a,1,2,-1e999": "column 'y' must be finite, or empty where nothing was measured; got -inf",
    "a,1,0,3": "column 'x' must be positive, as its logarithm is taken; got 0.0",
    "a,1,-.5,3": "column 'x' must be positive, as its logarithm is taken; got -0.5",
}
if jnp.result_type(float) == jnp.float32:
    BAD_ROWS |= {
        row: f"column {name!r} must be at most 3.4e+38 in size, as floats of JAX are; got {got}"
        for row, name, got in (
            ("a,1e39,2,3", "day", "1e+39"),
            ("a,1,2,1e300", "y", "1e+300"),
        )
    }
ANY_ROWS = [*GOOD_ROWS, *BAD_ROWS, ""]


def expected_problems(rows):
    """The errors of rows below a header: the line where each bad row starts, and the message."""
    line, expected = 2, []
    for row in rows:
        if row in BAD_ROWS:
            expected.append((line, f"{BAD_ROWS[row]} in line {line}"))
        line += row.count("\n") + 1
    return tuple(expected)


@given(st.lists(st.sampled_from(ANY_ROWS), max_size=12).map(lambda rows: ["a,1,2,3", *rows]))
@settings(max_examples=300, deadline=None)
def test_malformed_rows_are_exactly_those_reported(folder, rows):
    expected = expected_problems(rows)
    text = HEADER + "\n".join(rows) + "\n"
    if not expected:
        ours = read(folder / "fuzzed.csv", text, log="x")
        assert int(ours.observed.sum()) == sum(row != "" for row in rows)
        return
    with pytest.raises(MalformedRows) as caught:
        read(folder / "fuzzed.csv", text, log="x")
    assert caught.value.problems == expected
    said = str(caught.value)
    assert said.startswith(str(folder / "fuzzed.csv"))
    # Refusals that differ in their line only are one.
    kinds = dict.fromkeys(sentence.partition("; got ")[0] for _, sentence in expected)
    assert all(kind in said for kind in [*kinds][:5])


@pytest.mark.slow
def test_a_hundred_thousand_malformed_rows_are_counted_one_by_one(tmp_path):
    draw = random.Random(0)
    rows = [draw.choice(ANY_ROWS) for _ in range(50_000)] + draw.choices([*BAD_ROWS], k=60_000)
    draw.shuffle(rows)
    expected = expected_problems(rows)
    assert len(expected) > 100_000
    with pytest.raises(MalformedRows) as caught:
        read(tmp_path / "data.csv", HEADER + "\n".join(rows), log=["x"])
    assert caught.value.problems == expected
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'data.csv'}: {len(expected)} rows cannot be read: ")
    more = int(said.removesuffix(" more.").rpartition(" ")[2])
    # At most five rows of each of five kinds are named.
    assert len(expected) - 25 <= more <= len(expected) - 5
    assert len(said) < 1_000
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.problems) == (said, expected)


def test_all_errors_of_a_row_are_reported(tmp_path):
    with pytest.raises(MalformedRows) as caught:
        read(tmp_path / "data.csv", HEADER + ",soon,0,much\n", log="x")
    assert [line for line, _ in caught.value.problems] == [2] * 4
    assert "1 row cannot be read: " in str(caught.value)


def test_a_quote_that_is_never_closed_is_reported_where_it_opens(tmp_path):
    with pytest.raises(MalformedRows, match=r"got unexpected end of data in line 3\.$"):
        read(tmp_path / "data.csv", HEADER + 'a,1,2,3\n"a,1,2,3\na,1,2,3\n')


@pytest.mark.parametrize(
    ("times", "bad"),
    [
        (["2020-01-01", "2020-01-02T12:30", "5"], 4),
        (["1", "2020-01-01", "2"], 3),
        (["2020-01-01T00:00Z", "2020-01-01", "2020-01-01 12:00+01:00"], 3),
    ],
)
def test_times_are_of_one_kind_throughout(tmp_path, times, bad):
    text = HEADER + "".join(f"a,{time},1,2\n" for time in times)
    with pytest.raises(MalformedRows, match="of one kind") as caught:
        read(tmp_path / "data.csv", text)
    assert [line for line, _ in caught.value.problems] == [bad]


def test_dates_are_counted_and_those_with_a_zone_in_utc(tmp_path):
    path = tmp_path / "data.csv"
    ours = read(path, HEADER + "a,2020-01-02,1,\na,2020-01-01 12:00:00.5,1,\n")
    assert ours.names.origin == np.datetime64("2020-01-01T12:00:00.5")
    ours = read(path, HEADER + "a,2020-01-01T00:00Z,1,\na,2020-01-01T02:00+01:00,1,\n", unit="h")
    assert ours.times.tolist() == [[0.0, 1.0]]
    ours = read(path, HEADER + "a,2020-01-01,1,\n", origin=dt.date(2019, 12, 31))
    assert ours.times.tolist() == [[1.0]]


def test_errors_of_arguments_name_the_file(tmp_path):
    path, text = tmp_path / "data.csv", HEADER + "a,1,2,3\n"
    for options, message in (
        (dict(values=["x", "day"]), "id, time and values must name different columns"),
        (dict(log=["z"]), r"log must name columns among values, \['x', 'y'\]; got \['z'\]"),
        (dict(unit="Y"), "unit must be one of"),
        (dict(origin="2020-01-01"), "origin must be left out where column 'day' holds numbers"),
    ):
        with pytest.raises(ValueError, match=f"data.csv: {message}"):
            read(path, text, **options)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data.xls", r"path must end in one of \.csv, .*, \.parquet, \.nc; got '.*data\.xls'\."),
        ("data.csv.zip", "path must end in one of"),
        ("data.parquet.gz", "path must end in one of"),
        ("data.gz", "path must end in one of"),
        ("data", "path must end in one of"),
        (3, "path must name a file; got 3"),
        ("a\0.csv", "path must name a file; got "),
    ],
)
def test_a_path_of_another_format_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        Trajectories.from_file(path, **COLUMNS)
    with pytest.raises(ValueError, match=message):
        Trajectories([[0.0]], [[[1.0]]]).to_file(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_errors_of_the_system_are_reported_in_a_sentence(tmp_path, ending):
    path, ours = tmp_path / f"data{ending}", Trajectories([[0.0]], [[[1.0]]])
    with pytest.raises(FileNotFoundError, match=r"data.* cannot be read: No such file") as caught:
        Trajectories.from_file(path, **COLUMNS)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(FileNotFoundError, match=r"data.* cannot be written: No such file"):
        ours.to_file(tmp_path / "nowhere" / path.name)
    path.mkdir()
    with pytest.raises(IsADirectoryError, match=r"data.* cannot be read: Is a directory"):
        Trajectories.from_file(path, **COLUMNS)
    with pytest.raises(IsADirectoryError, match=r"data.* cannot be written: Is a directory"):
        ours.to_file(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("ending", "library", "extra"),
    [(".parquet", "pyarrow", "parquet"), (".xlsx", "openpyxl", "excel")],
)
def test_a_format_without_its_library_says_how_to_install_it(
    tmp_path, monkeypatch, ending, library, extra
):
    monkeypatch.setitem(sys.modules, library, None)
    message = rf"{library} must be installed .* by pip install 'np-latentode\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        Trajectories.from_file(tmp_path / f"data{ending}", **COLUMNS)
    with pytest.raises(ImportError, match=message):
        Trajectories([[0.0]], [[[1.0]]]).to_file(tmp_path / f"data{ending}")


@pytest.mark.parametrize("ending", [".parquet", ".nc"])
def test_errors_of_columns_name_the_file_and_the_row(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    write_table(pd.DataFrame({"who": ["a", "b"], "day": [0.0, 1.0], "x": [1.0, np.inf]}), path)
    for values, message in (
        (["x"], r"data.*: column 'x' must be finite, .* got inf in row 1\.$"),
        (["y"], r"data.*: id, time and values must name columns of the table; got \['y'\]"),
        (["who"], "data.*: id, time and values must name different"),
    ):
        with pytest.raises(ValueError, match=message):
            Trajectories.from_file(path, id="who", time="day", values=values)


def test_an_index_and_coordinates_are_columns(tmp_path):
    df = pd.DataFrame({"who": ["a", "a", "b", "b"], "day": [0.0, 1.0] * 2, "x": [1.0, 2, 3, 4]})
    indexed = df.set_index(["who", "day"])
    indexed.to_parquet(tmp_path / "data.parquet")
    indexed.to_xarray().to_netcdf(tmp_path / "data.nc", engine="h5netcdf")
    for ending in (".parquet", ".nc"):
        ours = Trajectories.from_file(
            tmp_path / f"data{ending}", id="who", time="day", values=["x"]
        )
        assert ours.names.ids == ("a", "b")
        assert ours.values.ravel().tolist() == [1, 2, 3, 4]


RUBBISH = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=60).map(lambda data: HEADER.encode() + data),
    st.text(alphabet='a1,."\n\r\t;-e \0é', max_size=60).map(lambda text: (HEADER + text).encode()),
)


@given(RUBBISH, st.sampled_from(ENDINGS))
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_it_is_read_or_refused_with_a_sentence(folder, data, ending):
    path = folder / f"rubbish{ending}"
    try:
        answer = read(path, data)
    except ValueError as error:
        answer = str(error)
    if isinstance(answer, str):
        assert answer.startswith(str(path))
        assert answer.endswith(".")
    else:
        assert isinstance(answer, Trajectories)


@pytest.mark.parametrize("ending", [".csv.gz", ".xlsx", ".parquet", ".nc"])
def test_a_file_that_ends_too_early_is_refused(tmp_path, ending):
    path = tmp_path / f"data{ending}"
    Trajectories(np.arange(20.0)[None], np.ones((1, 20, 2))).to_file(path)
    data = path.read_bytes()
    for length in np.linspace(0, len(data) - 1, 15).astype(int).tolist():
        with pytest.raises(ValueError, match=r"data.* must be what its ending says; got a file"):
            read(path, data[:length])


TEXT = st.text(alphabet="a7, \"é\n;_#'", min_size=1, max_size=5).map(str.strip)
DATES = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31))
TIMES = st.one_of(
    *(
        st.lists(times, min_size=8, max_size=8)
        for times in (
            st.floats(-1e9, 1e9),
            DATES,
            st.dates(dt.date(1900, 1, 1)).map(
                lambda day: dt.datetime(day.year, day.month, day.day)
            ),
        )
    )
)
TABLE = st.tuples(
    st.lists(
        st.tuples(
            TEXT.filter(lambda text: text not in MISSING),
            st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            st.one_of(st.none(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
        ),
        min_size=1,
        max_size=8,
    ),
    TIMES,
)


def frame(rows, times):
    who, x, y = zip(*rows, strict=True)
    day = np.array(times[: len(rows)], float if isinstance(times[0], float) else "datetime64[us]")
    return pd.DataFrame(
        {"who": who, "day": day, "x": np.array(x, float), "y": np.array(y, np.float32)}
    )


@given(TABLE, st.sampled_from(ENDINGS))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.slow
def test_a_table_that_was_written_is_read_the_same(folder, table, ending):
    df, path = frame(*table), folder / f"table{ending}"
    # Excel has no larger numbers.
    assume(ending != ".xlsx" or not (df.x.abs() > 9.99e307).any())
    write_table(df, path)
    again, _ = read_table(path, **COLUMNS)
    assert again.who.tolist() == df.who.tolist()
    assert again.day.dtype == df.day.dtype
    for name in ("day", "x"):
        # openpyxl writes 16 digits of a number.
        if ending == ".xlsx" and df[name].dtype == float:
            np.testing.assert_allclose(again[name], df[name], rtol=1e-15, atol=0)
        else:
            np.testing.assert_array_equal(again[name], df[name])
    np.testing.assert_array_equal(again.y.astype(np.float32), df.y)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dates", [False, True], ids=["numbers", "dates"])
def test_trajectories_that_were_written_are_read_the_same(tmp_path, ending, dates):
    rng = np.random.default_rng(0)
    days = rng.uniform(0, 900, 40)
    df = pd.DataFrame(
        {
            "who": rng.choice(["007", "7", "NA7"], 40),
            "day": pd.Timestamp("2020-02-29") + pd.to_timedelta(days, unit="D") if dates else days,
            "x": np.where(rng.uniform(size=40) < 0.3, np.nan, np.exp(rng.normal(size=40))),
            "y": rng.normal(size=40),
        }
    )
    ours = Trajectories.from_dataframe(df, **COLUMNS, log="x")
    path = tmp_path / f"data{ending}"
    ours.to_file(path)
    again = Trajectories.from_file(path, **COLUMNS, log="x")
    assert again.labels == ours.labels
    np.testing.assert_array_equal(again.mask, ours.mask)
    np.testing.assert_array_equal(again.times, ours.times)
    np.testing.assert_allclose(again.values, ours.values, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(again.values[..., 1], ours.values[..., 1])


@pytest.mark.parametrize("name", ["", " a", "NA", "None", "a\rb"])
def test_an_id_that_would_be_read_as_something_else_is_not_written_as_csv(tmp_path, name):
    df = pd.DataFrame({"who": [name], "day": [0.0], "x": [1.0], "y": [1.0]})
    with pytest.raises(ValueError, match=r"data\.csv must be given .* column 'who' holds"):
        write_table(df, tmp_path / "data.csv")
    write_table(df, tmp_path / "data.parquet")
    assert read_table(tmp_path / "data.parquet", **COLUMNS)[0].who.tolist() == [name]


@pytest.mark.parametrize("ending", [".parquet", ".nc"])
def test_ids_that_a_format_cannot_hold_are_refused_in_a_sentence(tmp_path, ending):
    df = pd.DataFrame({"who": [("a", 1), 3], "day": [0.0, 1.0], "x": 1.0})
    with pytest.raises(ValueError, match=r"data.* must be given a table that its format can hold"):
        write_table(df, tmp_path / f"data{ending}")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path, monkeypatch, ending, fails
):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path, ours = tmp_path / f"data{ending}", Trajectories([[0.0]], [[[1.0]]])
    path.write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match=r"data.* cannot be written: No space left") as caught:
            ours.to_file(path)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]
    ours.to_file(path)
    assert os.listdir(tmp_path) == [path.name]
    assert len(Trajectories.from_file(path, id="id", time="time", values="x_0")) == 1


def test_a_link_stays_a_link_and_a_mode_stays_a_mode(tmp_path):
    path, link = tmp_path / "data.csv", tmp_path / "link.csv"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    Trajectories([[0.0]], [[[1.0]]]).to_file(link)
    assert link.is_symlink()
    assert path.read_text() == "id,time,x_0\n0,0.0,1.0\n"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("ending", ENDINGS)
def test_tables_that_are_added_one_by_one_are_read_as_one(tmp_path, ending):
    df = pd.DataFrame({"who": list("aabbc"), "day": [0.0, 1, 2, 3, 4], "x": [1.0, 2, 3, 4, 5]})
    with writing_tables(tmp_path / f"some{ending}") as add:
        for rows in (slice(2), slice(2, 3), slice(3, None)):
            add(df[rows])
    write_table(df, tmp_path / f"whole{ending}")
    some, whole = (
        read_table(tmp_path / f"{name}{ending}", id="who", time="day", values=["x"])[0]
        for name in ("some", "whole")
    )
    pd.testing.assert_frame_equal(some[["who", "day", "x"]], whole[["who", "day", "x"]])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError("of the caller")], ids=["stop", "os"]
)
def test_an_error_between_two_tables_is_raised_as_it_is_and_nothing_is_written(
    tmp_path, ending, error
):
    path, other = tmp_path / f"some{ending}", tmp_path / f"other{ending}"
    path.write_text("earlier")

    def interrupted():
        with writing_tables(other) as add_other, writing_tables(path) as add:
            for more in (add, add_other):
                more(pd.DataFrame({"x": [1.0]}))
            raise error

    with pytest.raises(type(error)) as caught:
        interrupted()
    gc.collect()  # a writer that was left open would warn here
    assert caught.value is error
    assert path.read_text() == "earlier"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("ending", [".csv", ".csv.gz"])
def test_dates_of_several_tables_are_written_alike(tmp_path, ending):
    dates = np.array(["2020-01-02", "2020-01-03T12:30"], "datetime64[us]")
    df = pd.DataFrame({"day": dates, "x": [1.0, 2.0]})
    with writing_tables(tmp_path / f"some{ending}", dates) as add:
        add(df[:1])
        add(df[1:])
    write_table(df, tmp_path / f"whole{ending}")
    some, whole = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("some", "whole"))
    if ending == ".csv.gz":
        some, whole = map(gzip.decompress, (some, whole))
    assert some == whole
    assert b"2020-01-02T00:00" in some

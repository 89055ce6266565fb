"""Files of other programs: what is used is read exactly, and the rest may be anything."""

import csv
import datetime as dt
import gzip

import numpy as np
import openpyxl
import pandas as pd
import pytest

from np_latentode import MalformedRows, Trajectories
from np_latentode.data.files import write_table

COLUMNS = dict(id="who", time="day", values=["x", "y"])
PLAIN = "who,day,x,y\na,1,2.5,\na,2,,-1e3\nb,0.5,7,1\n"


def read(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Trajectories.from_file(path, **(COLUMNS | options))


def same(ours, theirs):
    assert ours.labels == theirs.labels
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


@pytest.fixture
def plain(tmp_path):
    return read(tmp_path / "plain.csv", PLAIN)


SAME = {
    "columns without a name": ",who,day,,x,y,\n0,a,1,,2.5,,\n1,a,2,oops,,-1e3,\n2,b,.5,,7,1,\n",
    "a column twice": "n,who,day,x,y,n\n0,a,1,2.5,,0\n1,a,2,,-1e3,\n2,b,.5,7,1,z\n",
    "rows without entries": PLAIN.replace("\na,2", '\n,,,\n , ,\t,\n"",,,\n,\n,,,,,\na,2')
    + ",,,\n",
    "rows without entries before the header": ",,,\n\n" + PLAIN,
    "semicolons": PLAIN.replace(",", ";"),
    "semicolons and decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "tabs": PLAIN.replace(",", "\t"),
    "names with semicolons": "who,day,x,y,a;b;c;d;e\na,1,2.5,,\na,2,,-1e3,\nb,.5,7,1,\n",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_a_table_means_the_same_however_it_was_written(tmp_path, plain, text):
    same(read(tmp_path / "data.csv", text), plain)


def test_a_long_note_is_read_over(tmp_path, plain):
    before = csv.field_size_limit()
    lines = PLAIN.splitlines()
    noted = [
        lines[0] + ",note",
        lines[1] + ',"' + "so, " * 50_000 + '"',
        lines[2] + ",",
        lines[3] + ",",
    ]
    same(read(tmp_path / "data.csv", "\n".join(noted)), plain)
    assert csv.field_size_limit() == before


def test_lines_are_counted_beside_rows_without_entries(tmp_path):
    with pytest.raises(MalformedRows, match=r"'day' must .* got 'much' in line 6\.$"):
        read(tmp_path / "data.csv", ",,,\n" + PLAIN.replace("b,0.5", ",,\nb,much"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("who,day,x,x,y", r"data.csv must name different columns .* got \['x'\] more than once\.$"),
        ("who,who,day,x,y", r"got \['who'\] more than once\.$"),
    ],
)
def test_a_name_of_two_columns_is_refused_where_it_is_asked_for(tmp_path, header, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "data.csv", header + "\n")


def test_a_column_without_a_name_cannot_be_asked_for(tmp_path):
    message = (
        r"data.csv must be read by the names of its columns; got '' among \['who', 'day', ''\]"
    )
    for text in (",who,day\n1,a,1\n", ",who,day,\n1,a,1,1\n"):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "data.csv", text, values=[""])


DECIMALS = "column {} must hold numbers, with a decimal comma as in other rows; got {} in line {}"
TIMES = (
    "column 'day' must hold numbers, ISO 8601 dates, or such dates with a zone, of one kind; got "
    "{} in line {}"
)
POINTS = "column 'x' must hold numbers; got '1,5' in line 2"
BAD = {
    "thousands": (
        "who;day;x;y\na;1;1.234,5;1\na;2;2,5;1.5\na;3;1.234;2.5\n",
        [DECIMALS.format("'x'", "'1.234,5'", 2), DECIMALS.format("'x'", "'1.234'", 4)],
    ),
    "times": (
        "who;day;x;y\na;0,5;1;1\na;0.7;2;\na;soon;2;\n",
        [TIMES.format("'0.7'", 3), TIMES.format("'soon'", 4)],
    ),
    "tabs": ("who\tday\tx\ty\na\t1\t1,5\t\n", [POINTS]),
    "commas": ('who,day,x,y\na,1,"1,5",\n', [POINTS]),
}


@pytest.mark.parametrize(("text", "problems"), BAD.values(), ids=BAD)
def test_a_decimal_comma_is_read_where_it_can_mean_nothing_else(tmp_path, text, problems):
    with pytest.raises(MalformedRows) as caught:
        read(tmp_path / "data.csv", text)
    assert [sentence for _, sentence in caught.value.problems] == problems


def sheet(path, rows):
    """An Excel file with these cells, as Excel itself would write them."""
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.create_sheet("notes").append(["nothing", "to", "read"])
    book.save(path)
    return path


def test_the_first_sheet_of_an_excel_file_is_read(tmp_path, plain):
    rows = [
        [None, None, None, None, None, None],
        ["x", "day", None, "who", "y", "x "],
        [2.5, 1, "note", "a", None, None],
        [None, None, None, None, None, None],
        ["NA", 2, None, " a ", -1e3, None],
        [7, 0.5, None, "b", True, None],
    ]
    path = sheet(tmp_path / "data.xlsx", rows)
    with pytest.raises(ValueError, match=r"got \['x'\] more than once"):
        Trajectories.from_file(path, **COLUMNS)
    rows[1][5] = "z"
    same(Trajectories.from_file(sheet(path, rows), **COLUMNS), plain)


def test_dates_and_ids_of_excel_are_read_as_excel_shows_them(tmp_path):
    rows = [
        ["who", "day", 3],
        [7, dt.datetime(2020, 1, 1), 1.0],
        ["007", dt.datetime(2020, 1, 2, 12), 2.0],
        [7, "2020-01-04", 2.0],
    ]
    path = sheet(tmp_path / "data.xlsx", rows)
    ours = Trajectories.from_file(path, id="who", time="day", values=["3"])
    assert ours.names.ids == ("7", "007")
    assert ours.names.origin == np.datetime64("2020-01-01")
    assert ours.times[0].tolist() == [0, 3]
    assert ours.times[1, 0] == 1.5


def test_a_cell_that_cannot_be_read_is_named_by_its_row_of_the_sheet(tmp_path):
    rows = [["who", "day", "x"], ["a", 1, 1.0], [None], ["a", 2, "high"], ["a", dt.time(3), 1]]
    path = sheet(tmp_path / "data.xlsx", rows)
    with pytest.raises(MalformedRows) as caught:
        Trajectories.from_file(path, id="who", time="day", values="x")
    assert [row for row, _ in caught.value.problems] == [4, 5]
    assert "data.xlsx: 2 rows cannot" in str(caught.value)
    assert "column 'x' must hold numbers; got 'high' in sheet row 4" in str(caught.value)


@pytest.mark.parametrize("name", ["=1+1", "NA", " a", "a\rb", "\x01"])
def test_a_text_that_excel_would_change_is_not_written(tmp_path, name):
    df = pd.DataFrame({"who": [name], "day": [0.0], "x": [1.0]})
    with pytest.raises(ValueError, match=r"data\.xlsx must be given a table that its format can"):
        write_table(df, tmp_path / "data.xlsx")
    assert not [*tmp_path.iterdir()]


def test_dates_are_written_as_dates_of_excel_where_it_can_hold_them(tmp_path):
    for start, kind in (("2020-01-31T12:30:00.125", dt.datetime), ("1850-01-01", str)):
        df = pd.DataFrame({"day": [pd.Timestamp(start), pd.NaT], "x": [1.0, 2.0]})
        write_table(df, tmp_path / "data.xlsx")
        cells = [*openpyxl.load_workbook(tmp_path / "data.xlsx").active.values]
        assert isinstance(cells[1][0], kind)
        assert cells[2] == (None, 2)


def test_the_same_table_is_compressed_to_the_same_bytes(tmp_path, plain):
    for name in ("one.csv.gz", "other.csv.gz"):
        plain.to_file(tmp_path / name)
    one, other = ((tmp_path / name).read_bytes() for name in ("one.csv.gz", "other.csv.gz"))
    assert one == other
    assert gzip.decompress(one).startswith(b"who,day,x,y\n")


def test_a_file_of_tabs_is_written_with_tabs(tmp_path, plain):
    plain.to_file(tmp_path / "data.TSV")
    assert (tmp_path / "data.TSV").read_text().startswith("who\tday\tx\ty\na\t1.0\t2.5\t\n")

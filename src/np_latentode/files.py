"""Files: tables from CSV, Parquet and netCDF, and to them."""

from __future__ import annotations

import csv
import io
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from reprlib import Repr
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from np_latentode.tables import Labels, MalformedRows, Problems, from_rows

__all__ = [
    "MISSING",
    "check_path",
    "read_csv",
    "read_rows",
    "read_table",
    "reads_otherwise",
    "write_bytes",
    "write_table",
]

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "None"})
"""Entries of a CSV file that say that there is none."""

BLANKS = " \t"
"""What may surround an entry of a CSV file and is no part of it."""

DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.,]\d+)?)?)?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)

_shown = Repr(maxstring=60, maxlist=20).repr


def read_rows(
    path: str | os.PathLike[str], *, id: str, time: str, values: Sequence[str], **options: Any
) -> tuple[list[tuple[np.ndarray, np.ndarray]], Labels]:
    """A pair (times, values) for each id, and the labels, as `tables.from_rows` gives them.

    Arguments and errors are those of `Trajectories.from_file`.
    """
    df, problems = read_table(path, id=id, time=time, values=values)
    try:
        return from_rows(df, id=id, time=time, values=values, **options, problems=problems)
    except MalformedRows:
        raise
    except ValueError as error:
        raise ValueError(f"{problems.name}: {error}") from error


def read_table(
    path: str | os.PathLike[str], *, id: str, time: str, values: Sequence[str]
) -> tuple[pd.DataFrame, Problems]:
    """The table that a file holds, and what is wrong with its rows so far.

    Args:
        path: its ending says what it is: .csv, .parquet or .nc.
        id, time, values: the columns that are needed; of a CSV file, others are not read.

    Raises:
        ValueError: naming the file, if it is not what its ending says or has no such columns.
        ImportError: if pyarrow, which reads Parquet, is missing.
        OSError: if the system cannot read it.
    """
    path, form = check_path(path)
    with _told(path, "read"):
        data = path.read_bytes()
    columns = [id, time, *([values] if isinstance(values, str) else values)]
    return form.read(data, str(path), columns)


def write_table(df: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a table to a file, whole or not at all.

    Args:
        df: of pandas; its index is left out.
        path: its ending says what to write: .csv, .parquet or .nc. What is there is replaced once
            all is written.

    Raises:
        ValueError: naming the file, if its ending is not known or it cannot hold the table.
        ImportError: if pyarrow, which writes Parquet, is missing.
        OSError: if the system cannot write it; what was there is left as it was.
    """
    path, form = check_path(path)
    try:
        data = form.write(df.reset_index(drop=True))
    # pyarrow, h5py and xarray raise what they please at entries that they cannot write.
    except Exception as error:
        raise ValueError(
            f"{path} must be given a table that its format can hold; got one that cannot be "
            f"written: {_said(error)}."
        ) from error
    with _told(path, "written"):
        write_bytes(path, data)


def read_csv(data: bytes, name: str, columns: Sequence[str]) -> tuple[pd.DataFrame, Problems]:
    """Columns of a CSV file: the first of them text, the second times, all others numbers.

    Text is UTF-8 and fields are divided by commas; the first row names the columns, and blank lines
    are skipped. Blanks around an entry are no part of it, and `MISSING` lists those that stand for
    none. Ids are text, exactly as written. Times are all numbers, or all dates in ISO 8601's
    extended format such as 2020-01-31 or 2020-01-31T12:30, or all with a zone, taken to UTC; what
    most rows have is what all must have, and 2020 and 20200131 are numbers. Numbers are as Python's
    `float` reads them: decimal, "." before the fraction, but without underscores; neither true nor
    false.

    Args:
        data: what the file holds.
        name: of the file.
        columns: of id, time and values.

    Returns:
        The table, with NaN where an entry cannot be read, without rows that have too many or too
        few fields; and the problems with both, by the line where the row starts.

    Raises:
        ValueError: if the file is no text, or has no such columns.
    """
    records = _records(_text(data, name))
    places, width = _header(records, name, columns)
    problems = Problems(name, "line")
    lines: list[int] = []
    # By columns, as Python's garbage collector goes through a million short lists again and again.
    entries: list[list[str]] = [[] for _ in columns]
    for line, record in records:
        if isinstance(record, str):
            problems.add(line, "", f"a row must be proper CSV; got {record}")
        elif len(record) != width:
            problems.add(
                line, "", f"a row must have {width} fields, as the header; got {len(record)}"
            )
        else:
            lines.append(line)
            for column, place in zip(entries, places, strict=True):
                column.append(record[place].strip(BLANKS))
    if not lines and not problems.found:
        raise ValueError(f"{name} must hold a row below that of its columns; got none.")
    problems.numbers = lines
    who, when, *what = entries
    table = {
        columns[0]: np.array([None if entry in MISSING else entry for entry in who], object),
        columns[1]: _times(when, columns[1], problems),
        **{n: _numbers(x, n, problems) for n, x in zip(columns[2:], what, strict=True)},
    }
    return pd.DataFrame(table), problems


def _text(data: bytes, name: str) -> str:
    if b"\0" in data:
        raise ValueError(f"{name} must be text; got a NUL byte in line {_line(data, b'\0')}.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object[error.start : error.start + 1]
        raise ValueError(
            f"{name} must be text in UTF-8; got byte 0x{bad.hex()} in line "
            f"{error.object.count(b'\n', 0, error.start) + 1}."
        ) from error


def _line(data: bytes, found: bytes) -> int:
    return data.count(b"\n", 0, data.index(found)) + 1


def _records(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """The line where each record starts, and its fields, or what is wrong with them."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The reader goes on with the next line.
            yield line, str(error)
            continue
        if record:
            yield line, record


def _header(
    records: Iterator[tuple[int, list[str] | str]], name: str, columns: Sequence[str]
) -> tuple[list[int], int]:
    """Where the columns are, and how many there are in all."""
    _, header = next(records, (1, []))
    if not header or isinstance(header, str):
        raise ValueError(
            f"{name} must begin with a row that names its columns; got {header or 'no row'}."
        )
    found = [entry.strip(BLANKS) for entry in header]
    if twice := [entry for entry, count in Counter(found).items() if count > 1]:
        raise ValueError(
            f"{name} must name different columns in its first row; got {_shown(twice)} more than "
            "once."
        )
    if missing := [column for column in columns if column not in found]:
        divided = "".join(
            f" Fields must be divided by commas, and there are {what} in it."
            for sign, what in ((";", "semicolons"), ("\t", "tabs"))
            if len(found) == 1 and sign in header[0]
        )
        raise ValueError(
            f"{name} must name the columns {_shown(list(columns))} in its first row; got none of "
            f"{_shown(missing)} in {_shown(found)}.{divided}"
        )
    return [found.index(column) for column in columns], len(found)


def _numbers(entries: Sequence[str], name: str, problems: Problems) -> np.ndarray:
    numbers = np.full(len(entries), np.nan)
    bad = []
    for row, entry in enumerate(entries):
        if entry not in MISSING:
            number = _number(entry)
            if number is None:
                bad.append(row)
            else:
                numbers[row] = number
    rule = "must hold numbers"
    problems.check(name, rule, _picked(bad, len(entries)), lambda row: _shown(entries[row]))
    return numbers


def _number(entry: str) -> float | None:
    try:
        number = float(entry)
    except ValueError:
        return None
    # What else Python takes for NaN, such as -nan, is no sign that nothing was measured.
    return None if number != number or "_" in entry else number


def _times(entries: Sequence[str], name: str, problems: Problems) -> np.ndarray:
    """Floats or dates, whichever there are more of; NaN or NaT where there is none."""
    times = [_time(entry) for entry in entries]
    kinds = Counter(kind for kind, _ in times if kind)
    kind = kinds.most_common(1)[0][0] if kinds else "number"
    absent = [entry in MISSING for entry in entries]
    rule = "must say when each row was observed"
    problems.check(name, rule, absent, lambda row: _shown(entries[row]))
    rule = "must hold numbers or ISO 8601 dates, of one kind throughout"
    others = [k != kind for k, _ in times]
    problems.check(name, rule, others, lambda row: _shown(entries[row]))
    dtype, none = (float, np.nan) if kind == "number" else ("datetime64[us]", None)
    return np.array([time if k == kind else none for k, time in times], dtype)


def _time(entry: str) -> tuple[str, Any]:
    """What kind of time it is, and the time; "" for the kind where it is none."""
    if entry in MISSING:
        return "", None
    number = _number(entry)
    if number is not None:
        return "number", number
    match = DATE.fullmatch(entry)
    if match is None:
        return "", None
    try:
        date = datetime.fromisoformat(entry)
        if match["zone"] is None:
            return "date", date
        return "date with a zone", date.astimezone(UTC).replace(tzinfo=None)
    # No such day, or none that Python knows in UTC.
    except (ValueError, OverflowError):
        return "", None


def _picked(rows: list[int], count: int) -> np.ndarray:
    picked = np.zeros(count, bool)
    picked[rows] = True
    return picked


def _write_csv(df: pd.DataFrame) -> bytes:
    for column in df.columns:
        for text in (column, *df[column]):
            if isinstance(text, str) and reads_otherwise(text):
                raise ValueError(f"column {column!r} holds {text!r}, which reads as something else")
    return df.to_csv(index=False, lineterminator="\n").encode()


def reads_otherwise(text: str) -> bool:
    """Whether a text in a CSV file would be read as another one, or as none."""
    # Python's writer leaves a carriage return unquoted, which ends a line for every reader.
    return text in MISSING or text != text.strip(BLANKS) or "\r" in text or "\0" in text


def _read_parquet(data: bytes) -> pd.DataFrame:
    df = pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    return df if df.index.names == [None] else df.reset_index()


def _write_parquet(df: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    df.to_parquet(file, engine="pyarrow")
    return file.getvalue()


def _read_netcdf(data: bytes) -> pd.DataFrame:
    # Microseconds, as nanoseconds hold the years from 1678 to 2262 only.
    dates = xr.coders.CFDatetimeCoder(time_unit="us")
    dataset = xr.load_dataset(
        io.BytesIO(data), engine="h5netcdf", decode_times=dates, decode_timedelta=False
    )
    return dataset.to_dataframe().reset_index()


def _write_netcdf(df: pd.DataFrame) -> bytes:
    # The dimension must have a name that no variable has.
    row = "row"
    while row in df.columns:
        row += "_"
    dataset = df.rename_axis(row).to_xarray().drop_vars(row)
    return bytes(dataset.to_netcdf(engine="h5netcdf"))


def _by_library(
    read: Callable[[bytes], pd.DataFrame],
) -> Callable[[bytes, str, Sequence[str]], tuple[pd.DataFrame, Problems]]:
    """A reader that has no problems with rows, as the file holds columns."""

    def read_whole(data: bytes, name: str, columns: Sequence[str]):
        try:
            return read(data), Problems(name)
        # pyarrow, h5py and xarray raise what they please at bytes that are none of theirs.
        except Exception as error:
            raise ValueError(
                f"{name} must be what its ending says; got a file that cannot be read as such: "
                f"{_said(error)}."
            ) from error

    return read_whole


class Format(NamedTuple):
    """How a kind of file is read, as `read_csv` does, and written."""

    read: Callable[[bytes, str, Sequence[str]], tuple[pd.DataFrame, Problems]]
    write: Callable[[pd.DataFrame], bytes]


FORMATS = {
    ".csv": Format(read_csv, _write_csv),
    ".parquet": Format(_by_library(_read_parquet), _write_parquet),
    ".nc": Format(_by_library(_read_netcdf), _write_netcdf),
}


def check_path(path: str | os.PathLike[str]) -> tuple[Path, Format]:
    """The path of a table, and its format, which its ending names.

    Raises:
        ValueError: if the ending is not known.
        ImportError: if pyarrow, for Parquet, is missing.
    """
    try:
        path = Path(path)
    except TypeError as error:
        raise ValueError(f"path must name a file; got {path!r}.") from error
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}; got {str(path)!r}.")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(
            f"pyarrow must be installed for Parquet, by pip install 'np-latentode[parquet]'; got "
            f"{str(path)!r} and no pyarrow."
        )
    return path, FORMATS[ending]


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Errors of the system in a sentence that names the file."""
    try:
        yield
    except OSError as error:
        told = type(error)(f"{path} cannot be {what}: {_said(error.strerror or error)}.")
        told.errno = error.errno
        raise told from error
    # A NUL byte in the name, for one.
    except ValueError as error:
        raise ValueError(f"path must name a file; got {str(path)!r}: {_said(error)}.") from error


def _said(error: object) -> str:
    """What a library says, on one line."""
    return shorten(str(error), 200).rstrip(".") or type(error).__name__


def write_bytes(path: Path, data: bytes) -> None:
    """Puts a file in the place of what is there, if anything, in one step."""
    # A link stays one.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            # A full disk may be told of no earlier.
            os.fsync(file.fileno())
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

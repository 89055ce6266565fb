"""CSV files: reading ids, times and numbers, with errors by line, and writing them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from reprlib import Repr
from typing import Any

import numpy as np
import pandas as pd

from np_latentode.data.labels import DATE
from np_latentode.data.problems import Problems

__all__ = ["MISSING", "read_csv", "reads_otherwise", "write_csv"]

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "None"})
"""Entries of a CSV file that mean a missing value."""

BLANKS = " \t"
"""Characters that are removed from both ends of an entry of a CSV file."""

_shown = Repr(maxstring=60, maxlist=20).repr


def read_csv(data: bytes, name: str, columns: Sequence[str]) -> tuple[pd.DataFrame, Problems]:
    """Reads columns of a CSV file: the first holds text, the second times, all others numbers.

    - The text is UTF-8, and fields are separated by commas. The first row names the columns. Blank
      lines are skipped, and blanks around an entry are ignored.
    - `MISSING` lists the entries that mean a missing value.
    - Ids are text, exactly as written.
    - Times are of one kind: numbers, dates, or dates with a time zone. The kind of most rows is
      taken, and rows of another kind are errors. Dates are in the extended format of ISO 8601, such
      as 2020-01-31 or 2020-01-31T12:30; 2020 and 20200131 are numbers. Dates with a time zone are
      converted to UTC.
    - Numbers are those that Python's `float` reads, with "." before the fraction, but without
      underscores. true and false are not numbers.

    Args:
        data: the bytes of the file.
        name: the name of the file.
        columns: the names of the columns of id, time and values.

    Returns:
        The table and the errors of its rows, by the line where the row starts. The table holds NaN
        where an entry cannot be read, and leaves out rows with too many or too few fields.

    Raises:
        ValueError: if the file is not text, or lacks a column.
    """
    records = _records(_text(data, name))
    places, width = _header(records, name, columns)
    problems = Problems(name, "line")
    lines: list[int] = []
    # Kept by columns: Python's garbage collector is slow with a million short lists of rows.
    entries: list[list[str]] = [[] for _ in columns]
    for line, record in records:
        if isinstance(record, str):
            problems.add(line, "", f"a row must be proper CSV; got {record}")
        elif len(record) != width:
            problems.add(
                line, "", f"a row must have {width} fields, as the header has; got {len(record)}"
            )
        else:
            lines.append(line)
            for column, place in zip(entries, places, strict=True):
                column.append(record[place].strip(BLANKS))
    if not lines and not problems.found:
        raise ValueError(f"{name} must hold at least one row below its header; got none.")
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
    """The line where each record starts, with its fields or an error message."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The reader can continue with the next line.
            yield line, str(error)
            continue
        if record:
            yield line, record


def _header(
    records: Iterator[tuple[int, list[str] | str]], name: str, columns: Sequence[str]
) -> tuple[list[int], int]:
    """The positions of the columns in the header, and its number of fields."""
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
            f" Fields must be separated by commas, and there are {what} in it."
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
    # Python reads other texts as NaN too, such as -nan. They are not in `MISSING`, so are errors.
    return None if number != number or "_" in entry else number


def _times(entries: Sequence[str], name: str, problems: Problems) -> np.ndarray:
    """Floats or dates, whichever is more frequent; NaN or NaT for entries of another kind."""
    times = [_time(entry) for entry in entries]
    kinds = Counter(kind for kind, _ in times if kind)
    kind = kinds.most_common(1)[0][0] if kinds else "number"
    absent = [entry in MISSING for entry in entries]
    rule = "must hold a time in each row"
    problems.check(name, rule, absent, lambda row: _shown(entries[row]))
    rule = "must hold numbers or ISO 8601 dates, of one kind throughout"
    others = [k != kind for k, _ in times]
    problems.check(name, rule, others, lambda row: _shown(entries[row]))
    dtype, none = (float, np.nan) if kind == "number" else ("datetime64[us]", None)
    return np.array([time if k == kind else none for k, time in times], dtype)


def _time(entry: str) -> tuple[str, Any]:
    """The kind of a time and its value; the kind is "" if the text is not a time."""
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
    # The day does not exist, or its year in UTC is beyond what Python can hold.
    except (ValueError, OverflowError):
        return "", None


def _picked(rows: list[int], count: int) -> np.ndarray:
    picked = np.zeros(count, bool)
    picked[rows] = True
    return picked


def write_csv(df: pd.DataFrame) -> bytes:
    """A table as CSV.

    Raises:
        ValueError: if a text in it would be read as a different text.
    """
    for column in df.columns:
        for text in (column, *df[column]):
            if isinstance(text, str) and reads_otherwise(text):
                raise ValueError(
                    f"column {column!r} holds {text!r}, which would be read as something else"
                )
    return df.to_csv(index=False, lineterminator="\n").encode()


def reads_otherwise(text: str) -> bool:
    """Whether a text would be read from a CSV file as a different text, or as a missing value."""
    # Python's writer does not quote a carriage return, and readers take it for the end of a line.
    return text in MISSING or text != text.strip(BLANKS) or "\r" in text or "\0" in text

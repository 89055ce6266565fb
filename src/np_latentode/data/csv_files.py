"""CSV files: reading ids, times and numbers, with errors by line, and writing them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from np_latentode.data.columns import Columns
from np_latentode.data.entries import reads_otherwise
from np_latentode.data.problems import Problems
from np_latentode.data.records import Records, column_names, read_records

__all__ = ["check_texts", "csv_column_names", "read_csv", "write_csv", "zones_as_texts"]

SEPARATORS = (",", ";", "\t")
"""The characters that may separate the fields of a file."""


def read_csv(data: bytes, name: str, columns: Columns) -> tuple[pd.DataFrame, Problems]:
    """Reads columns of a CSV file: ids, times and numbers. All other columns may hold anything.

    - The text is UTF-8. The first row names the columns. Rows without any entry are skipped, and
      blanks around an entry are ignored.
    - Fields are separated by commas, semicolons or tabs: by the one which finds the columns in the
      first row.
    - `MISSING` lists the entries that mean a missing value.
    - Ids are text, exactly as written.
    - Times are of one kind: numbers, dates, or dates with a time zone. The kind of most rows is
      taken, and rows of another kind are errors. Dates are in the extended format of ISO 8601, such
      as 2020-01-31 or 2020-01-31T12:30; 2020 and 20200131 are numbers. Dates with a time zone are
      converted to UTC.
    - Numbers are those that Python's `float` reads, with "." before the fraction, but without
      underscores. true and false are not numbers.
    - In a table with one row per measurement, nothing but the id is read of a row whose feature is
      not asked for.
    - Where semicolons separate fields, a column may have decimal commas, such as 1,5. Points are
      then errors in it, as they may stand for thousands.

    Args:
        data: the bytes of the file.
        name: the name of the file.
        columns: the columns to read.

    Returns:
        The table and the errors of its rows, by the line where the row starts. The table holds NaN
        where an entry cannot be read, and leaves out rows with too many or too few fields.

    Raises:
        ValueError: if the file is not text, or lacks a column.
    """
    text = _text(data, name)
    with _long_fields(text):
        separator = _separator(text, columns.read)
        records = _records(text, separator)
        return read_records(records, name, columns, comma=separator == ";")


def csv_column_names(data: bytes, name: str, likely: Sequence[str]) -> list[str]:
    """The names of all columns of a CSV file.

    Args:
        data, name: as for `read_csv`.
        likely: names that may be among them, by which the separator is found.
    """
    text = _text(data, name)
    with _long_fields(text):
        return column_names(_records(text, _separator(text, likely)), name)


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


@contextmanager
def _long_fields(text: str) -> Iterator[None]:
    """Lets Python's reader accept fields as long as the text; its default is 131,072 characters."""
    before = csv.field_size_limit()
    csv.field_size_limit(max(before, len(text)))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _separator(text: str, columns: Sequence[str]) -> str:
    """The separator by which the first row names most of the columns, and has most fields."""

    def found(separator: str) -> tuple[int, int]:
        try:
            names = column_names(_records(text, separator), "")
        except ValueError:
            return 0, 0
        return len({*columns} & {*names}), len(names)

    return max(SEPARATORS, key=found)


def _records(text: str, separator: str) -> Records:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
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
        yield line, record


def write_csv(
    df: pd.DataFrame,
    separator: str = ",",
    *,
    header: bool = True,
    dates: np.ndarray | None = None,
) -> bytes:
    """A table as CSV.

    Args:
        df: the table.
        separator: of its columns.
        header: whether its first row names the columns.
        dates: others, as which those of the table are written. Default: none.

    Raises:
        ValueError: if a text in it would be read as a different text.
    """
    check_texts(df)
    kinds = (pd.DatetimeTZDtype, np.dtype)
    df = pd.DataFrame({name: _as_texts(x, kinds, dates) for name, x in df.items()}, index=df.index)
    return df.to_csv(index=False, header=header, lineterminator="\n", sep=separator).encode()


def zones_as_texts(df: pd.DataFrame) -> pd.DataFrame:
    """The table with texts that end with Z, the sign of UTC, for dates with a time zone."""
    kinds = (pd.DatetimeTZDtype,)
    return pd.DataFrame({name: _as_texts(x, kinds) for name, x in df.items()}, index=df.index)


def _as_texts(
    dates: pd.Series, kinds: tuple[type, ...], others: np.ndarray | None = None
) -> pd.Series:
    """Dates of these kinds as texts of ISO 8601, as short as all of them and the others allow."""
    if not isinstance(dates.dtype, kinds) or not pd.api.types.is_datetime64_any_dtype(dates):
        return dates
    zone = isinstance(dates.dtype, pd.DatetimeTZDtype)
    naive = dates.dt.tz_convert("UTC").dt.tz_localize(None) if zone else dates
    times = naive.to_numpy("datetime64[us]")
    known = times if others is None else np.append(times, others.astype("datetime64[us]"))
    known = known[~np.isnat(known)]
    units: tuple[Any, ...] = ("m", "s", "us") if zone else ("D", "m", "s", "us")
    unit = next(u for u in units if (known == known.astype(f"datetime64[{u}]")).all())
    texts = np.datetime_as_string(times, unit=unit, timezone="UTC" if zone else "naive")
    return pd.Series(texts, dates.index, dtype=object).where(dates.notna(), None)


def check_texts(df: pd.DataFrame) -> None:
    """Refuses texts in a table that would be read from a file as different texts.

    Raises:
        ValueError: naming the column.
    """
    for column in df.columns:
        for text in (column, *df[column]):
            if isinstance(text, str) and reads_otherwise(text):
                raise ValueError(
                    f"column {column!r} holds {text!r}, which would be read as something else"
                )

"""Excel files: the first sheet as records of text, and a table as a sheet."""

from __future__ import annotations

import datetime as dt
import io
import warnings
from typing import Any

import pandas as pd

from np_latentode.data.csv_files import check_texts, zones_as_texts
from np_latentode.data.records import Records

__all__ = ["read_sheet", "write_excel"]

LARGEST = 9.99e307
"""The largest number of Excel."""

FIRST_DAY = pd.Timestamp(1900, 3, 1)
"""The first day that all programs count alike: for some of them, 1900 was a leap year."""


def read_sheet(data: bytes, num_rows: int | None = None) -> Records:
    """The rows of the first sheet, numbered from 1, as texts that mean the same in a CSV file.

    A date becomes a date of ISO 8601; true and false become 1 and 0. An empty cell is an empty
    text, and so is an error such as #N/A. Of a formula, the result counts that was saved.

    Args:
        data: the bytes of the file.
        num_rows: of the first rows only. Default: all.
    """
    with warnings.catch_warnings():
        # openpyxl warns of styles and extensions that it leaves out.
        warnings.simplefilter("ignore")
        sheet = pd.read_excel(
            io.BytesIO(data),
            header=None,
            nrows=num_rows,
            dtype=object,
            na_filter=False,
            engine="openpyxl",
        )
    rows = sheet.itertuples(index=False, name=None)
    return ((row, [_text(cell) for cell in cells]) for row, cells in enumerate(rows, 1))


def _text(cell: Any) -> str:
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    return cell.isoformat() if isinstance(cell, dt.datetime) else str(cell)


def write_excel(df: pd.DataFrame) -> bytes:
    """A table as an Excel file.

    Dates become dates of Excel where it can hold all dates of the column: from 1900-03-01 on, and
    in whole milliseconds. Else they become texts. Dates with a time zone become texts in UTC, as
    Excel knows no zones. Numbers keep 16 digits.

    Raises:
        ValueError: if a text in the table would be read as a different text.
    """
    check_texts(df)
    df = zones_as_texts(df)
    columns = {name: _cells(column) for name, column in df.items()}
    file = io.BytesIO()
    pd.DataFrame(columns).to_excel(file, index=False, engine="openpyxl")
    return file.getvalue()


def _cells(column: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_dtype(column):
        known = column.dropna()
        if (known < FIRST_DAY).any() or (known != known.dt.floor("ms")).any():
            return column.map(lambda date: date.isoformat(), na_action="ignore")
    if pd.api.types.is_float_dtype(column) and (column.astype(float).abs() > LARGEST).any():
        raise ValueError(
            f"column {column.name!r} holds numbers beyond {LARGEST:g}, Excel's largest"
        )
    formulas = [x for x in (column.name, *column) if isinstance(x, str) and x.startswith("=")]
    if formulas:
        raise ValueError(
            f"column {column.name!r} holds {formulas[0]!r}, which Excel would take for a formula"
        )
    return column

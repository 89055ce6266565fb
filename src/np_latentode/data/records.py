"""Records: rows of text, each with the line where it starts, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from operator import itemgetter

import numpy as np
import pandas as pd

from np_latentode.data.columns import Columns
from np_latentode.data.entries import (
    BLANKS,
    MISSING,
    point_for_comma,
    read_numbers,
    read_times,
    shown,
)
from np_latentode.data.limits import read_entries
from np_latentode.data.long_tables import asked_rows
from np_latentode.data.problems import Problems

__all__ = ["Records", "column_names", "read_records"]

Records = Iterator[tuple[int, list[str] | str]]
"""The line where each record starts, with its entries or an error message."""


def read_records(
    records: Records, name: str, columns: Columns, *, noun: str = "line", comma: bool = False
) -> tuple[pd.DataFrame, Problems]:
    """The columns of a table, and the errors of its rows; the first record names all columns.

    Args:
        records: of the table; those without any entry are skipped.
        name: the name of the file.
        columns: those to read.
        noun: the word for a line in messages.
        comma: whether columns may have decimal commas.

    Raises:
        ValueError: if a column is not there, or not alone in having its name.
    """
    records = (record for record in records if _holds_entries(record[1]))
    places, width = _header(records, name, columns.read)
    problems = Problems(name, noun)
    lines: list[int] = []
    # In tuples, as Python's garbage collector is slow with a million short lists.
    rows: list[tuple[str, ...]] = []
    # Of one place, an itemgetter returns the entry alone.
    picked = itemgetter(*places) if len(places) > 1 else lambda record: (record[places[0]],)
    for line, record in records:
        if isinstance(record, str):
            problems.add(line, "", f"a row must be proper CSV; got {record}")
        elif len(record) != width:
            problems.add(
                line, "", f"a row must have {width} fields, as the header has; got {len(record)}"
            )
        else:
            lines.append(line)
            rows.append(picked(record))
    if not lines and not problems.found:
        raise ValueError(f"{name} must hold at least one row below its header; got none.")
    problems.numbers = lines
    found = zip(*rows, strict=True) if rows else [()] * len(places)
    entries: dict[str, list[str]] = {
        name: [entry.strip(BLANKS) for entry in column]
        for name, column in zip(columns.read, found, strict=True)
    }
    return _table(entries, columns, problems, comma), problems


def _holds_entries(record: list[str] | str) -> bool:
    return isinstance(record, str) or "".join(record).strip(BLANKS) != ""


def _table(
    entries: dict[str, list[str]], columns: Columns, problems: Problems, comma: bool
) -> pd.DataFrame:
    table: dict[str, np.ndarray] = {}
    for name in columns.texts:
        known = [None if entry in MISSING else entry for entry in entries[name]]
        table[name] = np.array(known, object)
    needed = None
    if columns.feature is not None:
        needed = asked_rows(table[columns.feature].tolist(), columns)
    for names, read in ((columns.numbers, read_entries), (columns.error, read_numbers)):
        for name in names:
            asked = entries[name]
            if needed is not None and not needed.all():
                asked = [x if need else "" for x, need in zip(asked, needed.tolist(), strict=True)]
            table[name] = read(asked, name, problems, comma=comma)
    giving = np.zeros(len(entries[columns.time]), bool)
    for name in columns.inputs:
        table[name] = read_numbers(entries[name], name, problems, comma=comma)
        giving |= ~np.isnan(table[name])
    frame = pd.DataFrame(table)
    for name in columns.times:
        when = entries[name]
        only = needed if name == columns.time else None
        only = None if only is None else only | giving
        times, zone = read_times(when, name, problems, comma=comma, needed=only)
        frame[name] = pd.Series(times).dt.tz_localize("UTC") if zone else times
    for name in columns.static:
        # Whether they are numbers or categories is decided later, in tables of all kinds.
        texts = point_for_comma(entries[name]) if comma else entries[name]
        frame[name] = pd.Series(texts, dtype=object)
    return frame.reindex(columns=[*columns.read])


def column_names(records: Records, name: str) -> list[str]:
    """The names in the first record.

    Raises:
        ValueError: if there is none.
    """
    header = next((record for _, record in records if _holds_entries(record)), [])
    if not header or isinstance(header, str):
        raise ValueError(
            f"{name} must begin with a row that names its columns; got {header or 'no row'}."
        )
    return [entry.strip(BLANKS) for entry in header]


def _header(records: Records, name: str, columns: Sequence[str]) -> tuple[list[int], int]:
    """The positions of the columns in the header, and its number of fields."""
    found = column_names(records, name)
    if "" in columns:
        raise ValueError(
            f"{name} must be read by the names of its columns; got '' among {shown([*columns])}."
        )
    count = Counter(found)
    if twice := [column for column in columns if count[column] > 1]:
        raise ValueError(
            f"{name} must name different columns in its first row; got {shown(twice)} more than "
            "once."
        )
    if missing := [column for column in columns if column not in count]:
        raise ValueError(
            f"{name} must name the columns {shown([*columns])} in its first row; got none of "
            f"{shown(missing)} in {shown(found)}."
        )
    return [found.index(column) for column in columns], len(found)

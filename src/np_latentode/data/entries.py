"""Entries: what the texts of a table mean, as numbers or times, with errors by row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from reprlib import Repr
from typing import Any

import numpy as np

from np_latentode.data.labels import DATE
from np_latentode.data.problems import Problems

__all__ = [
    "BLANKS",
    "MISSING",
    "number_reader",
    "point_for_comma",
    "read_number",
    "read_numbers",
    "read_times",
    "reads_otherwise",
    "shown",
]

MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "None"})
"""Entries that mean a missing value."""

BLANKS = " \t"
"""Characters that are removed from both ends of an entry."""

DECIMAL_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
"""A number with a decimal comma."""

shown = Repr(maxstring=60, maxlist=20).repr
"""Entries and names in a message: as Python writes them, but not longer than a line."""


def read_numbers(
    entries: Sequence[str],
    name: str,
    problems: Problems,
    *,
    comma: bool = False,
    beside: Sequence[str] = (),
) -> np.ndarray:
    """Floats, NaN where an entry is in `MISSING` or is an error.

    Args:
        entries: the texts of a column.
        name: its name.
        problems: collects the errors.
        comma: whether the column may have decimal commas. If it has one, points are errors, as they
            may stand for thousands.
        beside: further numbers of the column, which have decimal commas if these entries have.
    """
    parse, with_comma = number_reader([*entries, *beside], comma=comma)
    rule = f"must hold numbers{with_comma}"
    numbers = np.full(len(entries), np.nan)
    bad = np.zeros(len(entries), bool)
    for row, entry in enumerate(entries):
        if entry not in MISSING:
            number = parse(entry)
            if number is None:
                bad[row] = True
            else:
                numbers[row] = number
    problems.check(name, rule, bad, lambda row: shown(entries[row]))
    return numbers


def number_reader(
    texts: Sequence[str], *, comma: bool
) -> tuple[Callable[[str], float | None], str]:
    """What reads the numbers of a column, and what a rule says of their decimal comma.

    Args:
        texts: all numbers of the column.
        comma: whether the column may have decimal commas.
    """
    if comma and _has_decimal_comma(texts):
        return _comma_number, ", with a decimal comma as in other rows"
    return read_number, ""


def point_for_comma(entries: Sequence[str]) -> list[str]:
    """The same texts, with decimal points where there were decimal commas."""
    return [x.replace(",", ".") if DECIMAL_COMMA.fullmatch(x) else x for x in entries]


def _has_decimal_comma(entries: Sequence[str]) -> bool:
    return any("," in entry and DECIMAL_COMMA.fullmatch(entry) for entry in entries)


def read_number(entry: str) -> float | None:
    """The number that a text is; None if it is none."""
    try:
        number = float(entry)
    except ValueError:
        return None
    # Python reads other texts as NaN too, such as -nan. They are not in `MISSING`, so are errors.
    return None if number != number or "_" in entry else number


def _comma_number(entry: str) -> float | None:
    return None if "." in entry else read_number(entry.replace(",", "."))


def read_times(
    entries: Sequence[str],
    name: str,
    problems: Problems,
    *,
    comma: bool = False,
    needed: np.ndarray | None = None,
) -> tuple[np.ndarray, bool]:
    """Floats or dates, whichever is more frequent, and whether the dates have a time zone.

    Entries of another kind become NaN or NaT. Dates with a time zone are converted to UTC.

    Args:
        entries, name, problems, comma: as for `read_numbers`.
        needed: False for the rows whose time nobody needs; there, nothing is an error.
    """
    needed = np.ones(len(entries), bool) if needed is None else needed
    number = _comma_number if comma and _has_decimal_comma(entries) else read_number
    pairs = zip(entries, needed.tolist(), strict=True)
    times = [_time(entry, number) if need else ("", None) for entry, need in pairs]
    kinds = Counter(kind for kind, _ in times if kind)
    kind = kinds.most_common(1)[0][0] if kinds else "number"
    absent = needed & np.array([entry in MISSING for entry in entries], bool)
    rule = "must hold a time in each row"
    problems.check(name, rule, absent, lambda row: shown(entries[row]))
    rule = "must hold numbers, ISO 8601 dates, or such dates with a zone, of one kind"
    others = needed & np.array([k != kind for k, _ in times], bool)
    problems.check(name, rule, others, lambda row: shown(entries[row]))
    dtype, none = (float, np.nan) if kind == "number" else ("datetime64[us]", None)
    zone = kind == "date with a zone"
    return np.array([time if k == kind else none for k, time in times], dtype), zone


def _time(entry: str, number: Callable[[str], float | None]) -> tuple[str, Any]:
    """The kind of a time and its value; the kind is "" if the text is not a time."""
    if entry in MISSING:
        return "", None
    counted = number(entry)
    if counted is not None:
        return "number", counted
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


def reads_otherwise(text: str) -> bool:
    """Whether a text would be read from a file as a different text, or as a missing value."""
    # Python's writer does not quote a carriage return, and readers take it for the end of a line.
    return text in MISSING or text != text.strip(BLANKS) or "\r" in text or "\0" in text

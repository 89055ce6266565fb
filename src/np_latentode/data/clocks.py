"""Clocks: what the times of a table are counted from, and in which unit."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np

from np_latentode.data.far import usual
from np_latentode.data.labels import UNITS, shown_time
from np_latentode.data.problems import Problems

__all__ = [
    "FIRST",
    "Clock",
    "first_times",
    "named_starts",
    "read_clock",
    "since_start",
    "start_column",
]

FIRST = "first"
"""The value of `since` that counts each id's times from its first row on."""


def start_column(since: str | None) -> str | None:
    """The column that holds each id's start, if `since` names one."""
    return None if since == FIRST else since


class Clock(NamedTuple):
    """The times of a table's rows, counted."""

    times: np.ndarray
    """Shape (row,)."""
    table_times: np.ndarray | None = None
    """The times in the table, if they are not the same numbers."""
    origin: np.datetime64 | None = None
    unit: str | None = None
    zone: bool = False
    """Whether the table's dates have a time zone; they are then in UTC."""
    starts: tuple[float, ...] = ()
    """Where each id's clock starts, in the count of the others; empty for one clock for all."""


def read_clock(
    column: nw.Series,
    name: str,
    numbers: Callable[[nw.Series, str], np.ndarray],
    problems: Problems,
    *,
    origin: Any = None,
    unit: str = "D",
) -> Clock:
    """The times of a column: numbers as they are, dates counted from the origin on.

    Args:
        column, name: of times.
        numbers: reads a column of numbers.
        problems: collects the rows without a time.
        origin: the date from which dates are counted. Default: the first one that is not far
            outside of the others.
        unit: the unit in which dates are counted.

    Raises:
        ValueError: if unit or origin cannot be used, or the column holds something else.
    """
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}.")
    dates, zone = _dates(column)
    entries = column.to_list()
    if dates is None:
        if origin is not None:
            raise ValueError(
                f"origin must be left out where column {name!r} holds numbers; got {origin!r}."
            )
        clock = Clock(_counted(column, name, numbers))
    else:
        try:
            start = _first(dates) if origin is None else np.datetime64(origin, "us")
        except ValueError as error:
            raise ValueError(f"origin must be a date; got {origin!r}.") from error
        clock = Clock((dates - start) / UNITS[unit], dates, start, unit, zone)
    absent = ~np.isfinite(clock.times)
    rule = "must hold a time in each row"
    problems.check(name, rule, absent, lambda row: repr(entries[row]))
    return clock


def _first(dates: np.ndarray) -> np.datetime64:
    known = dates[~np.isnat(dates)]
    if not known.size:
        return np.datetime64("NaT", "us")
    return known[usual(known.astype(float))].min()


def _counted(
    column: nw.Series, name: str, numbers: Callable[[nw.Series, str], np.ndarray]
) -> np.ndarray:
    try:
        return numbers(column, name)
    except ValueError as error:
        entry = next((x for x in column.to_list() if x is not None), None)
        raise ValueError(
            f"column {name!r} must hold numbers, dates or datetimes; got {column.dtype}, such as "
            f"{entry!r}. Convert text with pandas.to_datetime or polars' str.to_datetime."
        ) from error


def first_times(times: np.ndarray, ids: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The first time of each id at which something was measured and that is not far outside.

    Args:
        times: of all rows.
        ids: the number of each row's id.
        measured: True for the rows with a measurement.
    """
    first, fallback = np.full((2, ids.max() + 1), np.inf)
    counts = measured.copy()
    counts[measured] = usual(times[measured])
    np.minimum.at(first, ids[counts], times[counts])
    np.minimum.at(fallback, ids, times)
    return np.where(np.isfinite(first), first, fallback)


def named_starts(
    clock: Clock, starts: Clock, ids: np.ndarray, since: str, problems: Problems
) -> np.ndarray:
    """The start that the rows of each id name.

    Args:
        clock: the times of all rows.
        starts: the start that each row names.
        ids: the number of each row's id.
        since: the column of the starts.
        problems: collects the rows that name another start than the first row of their id.

    Raises:
        ValueError: if one column holds dates and the other numbers, or only one has time zones.
    """
    if (starts.origin is None, starts.zone) != (clock.origin is None, clock.zone):
        raise ValueError(
            f"since must name a column of the same kind of times, dates with or without a time "
            f"zone or numbers; got {since!r}, which is of another kind."
        )
    _, first = np.unique(ids, return_index=True)
    of_each = starts.times[first]
    entries = starts.times if starts.table_times is None else starts.table_times
    rule, other = "must hold one time for each id", starts.times != of_each[ids]
    problems.check(since, rule, other, lambda row: shown_time(entries[row]))
    problems.raise_if_any()
    return of_each


def since_start(clock: Clock, ids: np.ndarray, starts: np.ndarray) -> Clock:
    """The same times, counted from each id's own start.

    Args:
        clock: the times of all rows.
        ids: the number of each row's id.
        starts: one per id.
    """
    own = clock.times if clock.table_times is None else clock.table_times
    times = clock.times - starts[ids]
    return clock._replace(times=times, table_times=own, starts=tuple(starts.tolist()))


def _dates(column: nw.Series) -> tuple[np.ndarray | None, bool]:
    """Dates in UTC to the microsecond, None if there are none; and whether they have a zone."""
    if column.dtype == nw.Object:
        return _date_objects(column)
    if column.dtype not in (nw.Date, nw.Datetime):
        return None, False
    zone = bool(getattr(column.dtype, "time_zone", None))
    if zone:
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return column.cast(nw.Datetime("us")).to_numpy().astype("datetime64[us]"), zone


def _date_objects(column: nw.Series) -> tuple[np.ndarray | None, bool]:
    # In pandas, dates are objects. NumPy would read a number among them as microseconds.
    known = column.drop_nulls().to_list()
    if not known or not all(hasattr(entry, "isoformat") for entry in known):
        return None, False
    zones = {getattr(entry, "tzinfo", None) is not None for entry in known}
    if len(zones) > 1:
        raise ValueError(
            f"column {column.name!r} must hold dates with a time zone, or dates without one; got "
            "both."
        )
    nulls = zip(column.is_null().to_list(), column.to_list(), strict=True)
    entries = [None if null else _in_utc(entry) for null, entry in nulls]
    try:
        return np.array(entries, dtype="datetime64[us]"), zones == {True}
    except (TypeError, ValueError):
        return None, False


def _in_utc(entry: Any) -> Any:
    if getattr(entry, "tzinfo", None) is None:
        return entry
    return entry.astimezone(UTC).replace(tzinfo=None)

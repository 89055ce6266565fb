"""Tables: from data frames, one row per visit, to trajectories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import narwhals as nw
import numpy as np
from jaxtyping import Float

from np_latentode.data.clocks import (
    FIRST,
    Clock,
    first_times,
    named_starts,
    read_clock,
    since_start,
)
from np_latentode.data.columns import Columns
from np_latentode.data.covariates import Asked, read_static
from np_latentode.data.far import warn_of_far_rows
from np_latentode.data.frames import as_frame
from np_latentode.data.given import Given, Rows
from np_latentode.data.inputs import EVENT, Inputs, pad_inputs
from np_latentode.data.labels import UNITS, Labels, shown_time
from np_latentode.data.limits import Column, Limits, limit_text, read_column
from np_latentode.data.long_tables import gather, numbered, spread, warn_of_mixture
from np_latentode.data.offset import Offset
from np_latentode.data.problems import Problems

__all__ = [
    "as_ids",
    "as_numbers",
    "asked_errors",
    "from_rows",
    "read_inputs",
]


def from_rows(
    df: Any,
    columns: Columns,
    *,
    log: Sequence[str | int] | int = (),
    since: str | None = None,
    origin: Any = None,
    unit: str = "D",
    static: Mapping[str, Asked] | None = None,
    kinds: Mapping[str, str] | None = None,
    error: Mapping[str, str] | None = None,
    problems: Problems | None = None,
) -> Rows:
    """The rows of a long table by trajectory, in the order of their first rows, and the labels.

    Arguments and errors are those of `Trajectories.from_dataframe`. `problems` holds the errors
    that were found while the rows were read from a file; `static` the names and levels of static
    covariates, as `asked_levels` gives them; `kinds` those of inputs; `error` the column of the
    standard errors of each feature that has one.
    """
    problems, log = problems or Problems(), _listed(log)
    id, time, error = columns.id, columns.time, error or {}
    frame, values = _wide(df, columns, log, problems)
    who = as_ids(frame[id], id, problems)
    clock = _clock(frame, time, problems, origin, unit)
    cells = _read_cells(frame, values, log, error, problems)
    own, kinds = cells.own, kinds or {}
    given_inputs = read_inputs(frame, [*kinds], problems)
    problems.raise_if_any()
    giving = _giving(given_inputs, kinds)
    _warn_of_far_rows(clock, own, giving, (time, *values), log, problems)
    ids, codes = numbered(who)
    found = read_static(frame, static, codes, problems) if static else None
    problems.raise_if_any()
    clock = _with_own_starts(clock, codes, own, since, frame, unit, problems)
    when = clock.times
    cells = cells if columns.feature is None else gather(codes, when, own, cells)
    own = cells.own
    warn_of_mixture(codes, when, own, columns)
    labels = _labels(ids, values, columns, clock, log, since)
    labels = _with_more(labels, columns, found, kinds, error)
    inputs = _inputs(codes, given_inputs, labels, clock)
    what = labels.modelled(own)
    of_each = _rows_by_id(codes, when, what)
    _check_precision(frame[time], id, time, when, of_each, problems)
    given = Given(when, what, clock.table_times, own if labels.log else None, *cells[1:])
    return Rows(given, of_each, labels, found and found.numbers, inputs)


def _inputs(codes: np.ndarray, amounts: np.ndarray, labels: Labels, clock: Clock) -> Inputs | None:
    """The inputs of each trajectory; None if the table has none."""
    if not labels.kinds:
        return None
    return pad_inputs(codes, clock.times, amounts, labels.kinds, clock.table_times)


def _clock(frame: nw.DataFrame, time: str, problems: Problems, origin: Any, unit: str) -> Clock:
    """The times of all rows."""
    clock = read_clock(frame[time], time, as_numbers, problems, origin=origin, unit=unit)
    _check_size(clock.times, time, problems)
    return clock


def _giving(amounts: np.ndarray, kinds: Mapping[str, str]) -> np.ndarray:
    """True for the rows with an event."""
    events = np.array([kind == EVENT for kind in kinds.values()], bool)
    return (np.nan_to_num(amounts[:, events]) != 0).any(1)


def _labels(
    ids: Sequence[Any],
    values: tuple[str, ...],
    columns: Columns,
    clock: Clock,
    log: Sequence[str],
    since: str | None,
) -> Labels:
    """The labels of times and values."""
    return Labels(
        ids=tuple(ids),
        features=values,
        id=columns.id,
        time=columns.time,
        origin=clock.origin,
        unit=clock.unit,
        log=tuple(name for name in values if name in log),
        feature=columns.feature,
        value=columns.value,
        since=since,
        zone=clock.zone,
        starts=clock.starts,
    )


def _with_more(
    labels: Labels,
    columns: Columns,
    found: Any,
    kinds: Mapping[str, str],
    error: Mapping[str, str],
) -> Labels:
    """The labels with those of static covariates, inputs and standard errors."""
    errors = tuple(error.get(name, "") for name in labels.features) if error else ()
    labels = replace(labels, error=errors, inputs=tuple(kinds), kinds=tuple(kinds.values()))
    if found is None:
        return labels
    return replace(labels, static=columns.static, levels=found.levels)


class _Cells(NamedTuple):
    """What a table says of each value, in its units; arrays (row, feature)."""

    own: np.ndarray
    """NaN where not measured; stand-ins for limits."""
    error: np.ndarray | None
    limits: Limits | None


def _read_cells(
    frame: nw.DataFrame,
    values: Sequence[str],
    log: Sequence[str],
    error: Mapping[str, str],
    problems: Problems,
) -> _Cells:
    """Values, their standard errors and their limits."""
    if strange := [name for name in error if name not in values]:
        raise ValueError(f"error must name columns among values, {[*values]}; got {strange}.")
    found = [_values(frame[name], name, name in log, problems) for name in values]
    own, limits = np.stack([column.numbers for column in found], axis=1), None
    if any(column.limits is not None for column in found):
        none = np.full(len(frame), np.nan)
        every = [Limits(none, none) if one.limits is None else one.limits for one in found]
        bounds = ([x.lower for x in every], [x.upper for x in every])
        limits = Limits(*(np.stack(one, axis=1) for one in bounds))
    if not error:
        return _Cells(own, None, limits)
    errors = np.zeros(own.shape)
    for j, name in enumerate(values):
        if name in error:
            measured, bounds = ~np.isnan(own[:, j]), found[j].limits
            exact = measured if bounds is None else measured & ~bounds.censored
            errors[:, j] = _errors(frame[error[name]], name, measured, exact, problems)
    return _Cells(own, errors, limits)


def _errors(
    column: nw.Series, value: str, measured: np.ndarray, exact: np.ndarray, problems: Problems
) -> np.ndarray:
    """Standard errors, 0 where nothing was measured, and where a limit has none.

    Args:
        column: of standard errors.
        value: the name of the column of values.
        measured: True where there is a value or a limit.
        exact: True where there is a value.
    """
    name = column.name
    numbers = as_numbers(column, name)
    empty = np.isnan(numbers)
    rule = f"must hold a standard error where {value!r} holds a value; 0 would claim it is exact"
    problems.check(name, rule, empty & exact, lambda row: "nothing")
    rule = "must be 0 or more and finite, as a standard error is"
    bad = measured & ((numbers < 0) | np.isinf(numbers))
    problems.check(name, rule, bad, lambda row: numbers[row])
    _check_size(np.where(measured, numbers, np.nan), name, problems)
    return np.where(measured & ~empty, numbers, 0.0)


def asked_errors(error: Any) -> dict[str, str]:
    """The column of standard errors of each feature, as text.

    Raises:
        ValueError: if it is no mapping.
    """
    if not isinstance(error or {}, Mapping):
        raise ValueError(
            "error must map columns of values to those of their standard errors, as in "
            f"{{'bili': 'bili_sd'}}; got {error!r}."
        )
    return {str(name): str(column) for name, column in (error or {}).items()}


def read_inputs(
    frame: nw.DataFrame, names: Sequence[str], problems: Problems
) -> Float[np.ndarray, "row input"]:
    """The numbers of the columns of inputs, NaN where nothing new is given."""
    found = np.full((len(frame), len(names)), np.nan)
    for j, name in enumerate(names):
        found[:, j] = as_numbers(frame[name], name)
        rule = "must be finite, or empty where nothing new is given"
        problems.check(name, rule, np.isinf(found[:, j]), found[:, j].__getitem__)
        _check_size(found[:, j], name, problems)
    return found


def _wide(
    df: Any, columns: Columns, log: Sequence[str], problems: Problems
) -> tuple[nw.DataFrame, tuple[str, ...]]:
    """The table with a column for each feature, and the features."""
    frame, values = as_frame(df, columns, problems), columns.values
    if not len(frame):
        problems.raise_if_any()
        raise ValueError("df must hold at least one row; got none.")
    if columns.feature is not None:
        frame, values = spread(frame, columns, problems)
    if strange := [name for name in log if name not in values]:
        raise ValueError(f"log must name columns among values, {[*values]}; got {strange}.")
    return frame, values


def _warn_of_far_rows(
    clock: Clock,
    own: np.ndarray,
    giving: np.ndarray,
    names: Sequence[str],
    log: Sequence[str],
    problems: Problems,
) -> None:
    """Warns of times and values far outside; `names` are those of their columns.

    Rows with a measurement or an event are told apart from others, whose times change nothing.
    """
    when = np.where(np.isnan(own).all(1) & ~giving, np.nan, clock.times)
    entries = clock.times if clock.table_times is None else clock.table_times
    consequence = (
        "the unit of time is that of the others, and the commands fit and forecast leave them out"
    )
    warn_of_far_rows(names[0], when, lambda row: shown_time(entries[row]), problems, consequence)
    consequence = "its unit is that of the others, but a fit still explains them"
    for name, column in zip(names[1:], own.T, strict=True):
        numbers = np.log(column) if name in log else column
        warn_of_far_rows(name, numbers, column.__getitem__, problems, consequence)


def _with_own_starts(
    clock: Clock,
    codes: np.ndarray,
    own: np.ndarray,
    since: str | None,
    frame: nw.DataFrame,
    unit: str,
    problems: Problems,
) -> Clock:
    """The times of the rows since the start of their id, if they are counted so."""
    if since is None:
        return clock
    if since == FIRST:
        starts = first_times(clock.times, codes, ~np.isnan(own).all(1))
    else:
        starts = read_clock(frame[since], since, as_numbers, problems, unit=unit)
        problems.raise_if_any()
        if starts.origin is not None and clock.origin is not None:
            times = starts.times + (starts.origin - clock.origin) / UNITS[unit]
            starts = starts._replace(times=times)
        starts = named_starts(clock, starts, codes, since, problems)
    return since_start(clock, codes, starts)


def _rows_by_id(codes: np.ndarray, when: np.ndarray, what: np.ndarray) -> list[np.ndarray]:
    """The rows of each id that hold a measurement, in the order of their times."""
    measured = np.flatnonzero(~np.isnan(what).all(1))
    order = measured[np.lexsort((when[measured], codes[measured]))]
    return np.split(order, np.searchsorted(codes[order], np.arange(1, codes.max() + 1)))


def _check_precision(
    column: nw.Series,
    id: str,
    time: str,
    when: np.ndarray,
    rows: list[np.ndarray],
    problems: Problems,
) -> None:
    """Refuses different times of one id that become equal in JAX's float type."""
    offset = Offset.of(when[None], np.zeros((1, len(when), 1)), np.ones((1, len(when), 1), bool))
    rounded = (when - offset.time).astype(jnp.result_type(float))
    lost, order = np.zeros(len(when), bool), np.concatenate(rows)
    who = np.repeat(np.arange(len(rows)), [len(mine) for mine in rows])
    equal = (np.diff(when[order]) > 0) & (np.diff(rounded[order]) == 0) & (np.diff(who) == 0)
    lost[order[1:][equal]] = True
    if lost.any():
        entries = column.to_list()
        rule = (
            f"must not hold different times of one {id} that are equal in JAX's float type; split "
            "the table in time, or use double precision (jax_enable_x64)"
        )
        problems.check(time, rule, lost, lambda row: repr(entries[row]))
        problems.raise_if_any()


def as_numbers(column: nw.Series, name: str) -> np.ndarray:
    """Floats, NaN where the table is empty."""
    dtype = column.dtype
    if column.is_null().all():
        # An empty column may have any type.
        return np.full(len(column), np.nan)
    if dtype.is_numeric() or dtype == nw.Boolean:
        return np.asarray(column.cast(nw.Float64).to_numpy(), dtype=float)
    if dtype == nw.Object and not any(isinstance(entry, str) for entry in column.to_list()):
        try:
            # In pandas, decimals are objects, and so are numbers in a column with None.
            numbers = np.array([np.nan if x is None else x for x in column.to_list()], dtype=float)
        except (TypeError, ValueError):
            numbers = np.empty((0, 0))
        if numbers.ndim == 1:
            return numbers
    raise ValueError(
        f"column {name!r} must hold numbers, or true and false; got {dtype}, such as "
        f"{next((x for x in column.to_list() if x is not None), None)!r}. Give each category a "
        "column of 0 and 1, or leave it out."
    )


def _listed(names: Sequence[str | int] | int) -> list[str]:
    return [str(name) for name in ([names] if isinstance(names, (str, int)) else names)]


def as_ids(column: nw.Series, name: str, problems: Problems) -> list[Any]:
    who = column.to_list()
    # In polars, NaN is not null. Nulls go first, as `pandas.NA != pandas.NA` is not a boolean.
    nothing = [empty or x != x for empty, x in zip(column.is_null().to_list(), who, strict=True)]
    problems.check(name, "must hold an id in each row", nothing, lambda row: "nothing")
    return who


TEXTS = (nw.String, nw.Object, nw.Categorical, nw.Enum)


def _values(column: nw.Series, name: str, log: bool, problems: Problems) -> Column:
    """Floats, NaN where the table is empty, and limits."""
    found = None
    if column.dtype in TEXTS:
        nulls = zip(column.to_list(), column.is_null().to_list(), strict=True)
        found = read_column([None if null or x != x else x for x, null in nulls], name, problems)
    numbers, limits = found or Column(as_numbers(column, name), None)
    rule = "must be finite, or empty where nothing was measured"
    problems.check(name, rule, np.isinf(numbers), lambda row: numbers[row])
    if log:
        rule, bad = "must be positive, as its logarithm is taken", numbers <= 0
        if limits is not None:
            bad = bad | (np.isfinite(limits.lower) & (limits.lower < 0))
        problems.check(name, rule, bad, lambda row: _shown_cell(numbers, limits, row))
    else:
        _check_size(numbers, name, problems)
    return Column(numbers, limits)


def _shown_cell(numbers: np.ndarray, limits: Limits | None, row: int) -> Any:
    """A cell as a message shows it."""
    if limits is None or not limits.censored[row]:
        return numbers[row]
    return limit_text(limits.lower[row], limits.upper[row])


def _check_size(numbers: np.ndarray, name: str, problems: Problems) -> None:
    """Adds an error for each number that is infinite in JAX's default float type."""
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    rule = f"must be at most {largest:.1e} in size, as floats of JAX are"
    problems.check(name, rule, np.abs(numbers) > largest, lambda row: numbers[row])

"""Tables: conversion of data frames, one row per visit, to trajectories and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import narwhals as nw
import numpy as np
from jaxtyping import Float

from np_latentode.data.columns import Columns
from np_latentode.data.frames import as_frame
from np_latentode.data.labels import UNITS, Labels
from np_latentode.data.long_tables import gather, numbered, spread, warn_of_mixture
from np_latentode.data.offset import Offset
from np_latentode.data.problems import Problems

__all__ = [
    "Given",
    "Rows",
    "forecast_columns",
    "from_rows",
    "pad_rows",
    "table_times",
    "table_values",
    "tidy_forecast",
    "to_rows",
]


class Given(NamedTuple):
    """Times and values as they were given, in double precision; padded as in `Trajectories`."""

    times: Float[np.ndarray, "trajectory time"]
    """Dates are counted from the origin of the labels on."""
    values: Float[np.ndarray, "trajectory time feature"]
    """As they are modelled: logarithms, where the labels say so."""
    table_times: np.ndarray | None = None
    """The dates of the table, if it had dates."""
    table_values: np.ndarray | None = None
    """The values in the table, if logarithms of some are taken."""

    def select(self, index: Any) -> Given:
        """Those of the trajectories that an index selects."""
        return self._make(None if array is None else array[index] for array in self)


class Rows(NamedTuple):
    """A table's rows, and which of them belong to each trajectory."""

    columns: Given
    """Times and values, one entry per row of the table."""
    of_each: list[np.ndarray]
    """The rows of each trajectory that hold a measurement, in the order of their times."""
    labels: Labels


def pad_rows(rows: Rows) -> tuple[Given, np.ndarray]:
    """Times and values of each trajectory, padded, and the mask of what was observed."""
    lengths = np.array([len(mine) for mine in rows.of_each])
    slots = np.arange(max(1, lengths.max()))
    mine = np.zeros((len(lengths), len(slots)), int)
    present = slots < lengths[:, None]
    mine[present] = np.concatenate(rows.of_each)
    # A padded slot repeats the last row. A trajectory without rows has the earliest row's time.
    last = np.take_along_axis(mine, np.maximum(lengths - 1, 0)[:, None], axis=1)
    measured = mine[present]
    first = measured[np.argmin(rows.columns.times[measured])] if measured.size else 0
    mine = np.where(present, mine, np.where(lengths[:, None] > 0, last, first))
    padded = rows.columns.select(mine)
    mask = present[..., None] & ~np.isnan(padded.values)
    return padded._replace(values=np.where(mask, padded.values, 0.0)), mask


def from_rows(
    df: Any,
    columns: Columns,
    *,
    log: Sequence[str | int] | int = (),
    origin: Any = None,
    unit: str = "D",
    problems: Problems | None = None,
) -> Rows:
    """The rows of a long table by trajectory, in the order of their first rows, and the labels.

    Arguments and errors are those of `Trajectories.from_dataframe`. `problems` holds the errors
    that were found while the rows were read from a file.
    """
    problems = problems or Problems()
    id, time, values = columns.id, columns.time, columns.values
    frame = as_frame(df, columns, problems)
    if not len(frame):
        problems.raise_if_any()
        raise ValueError("df must hold at least one row; got none.")
    if columns.feature is not None:
        frame, values = spread(frame, columns, problems)
    log = _listed(log)
    if strange := [name for name in log if name not in values]:
        raise ValueError(f"log must name columns among values, {[*values]}; got {strange}.")
    who = _ids(frame[id], id, problems)
    when, dates, origin, counted = _times(frame[time], time, origin, unit, problems)
    own = np.stack([_values(frame[name], name, name in log, problems) for name in values], axis=1)
    problems.raise_if_any()
    ids, codes = numbered(who)
    if columns.feature is not None:
        own = gather(codes, when, own)
    warn_of_mixture(codes, when, own, columns)
    logged = tuple(name for name in values if name in log)
    pair = (columns.feature, columns.value)
    labels = Labels(tuple(ids), values, id, time, origin, counted, logged, *pair)
    what = labels.modelled(own)
    of_each = _rows_by_id(codes, when, what)
    _check_precision(frame[time], id, time, when, of_each, problems)
    return Rows(Given(when, what, dates, own if logged else None), of_each, labels)


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
    lost = np.zeros(len(when), bool)
    for mine in rows:
        lost[mine[1:]] = (np.diff(when[mine]) > 0) & (np.diff(rounded[mine]) == 0)
    if lost.any():
        entries = column.to_list()
        rule = (
            f"must not hold different times of one {id} that are equal in JAX's float type; split "
            "the table in time, or use double precision (jax_enable_x64)"
        )
        problems.check(time, rule, lost, lambda row: repr(entries[row]))
        problems.raise_if_any()


def to_rows(given: Given, mask: np.ndarray, labels: Labels, *, backend: Any) -> Any:
    """A table with a row for each observed time, empty where a feature was not observed."""
    i, k = np.nonzero(mask.any(-1))
    seen = np.where(mask, table_values(given, labels), np.nan)[i, k]
    columns = {
        labels.id: [labels.ids[n] for n in i],
        labels.time: table_times(given, labels)[i, k],
        **{name: seen[:, j] for j, name in enumerate(labels.features)},
    }
    return _to_native(columns, labels.features, backend)


def table_times(given: Given, labels: Labels) -> np.ndarray:
    """The times in the table, to the last bit where they are known."""
    return labels.calendar(given.times) if given.table_times is None else given.table_times


def table_values(given: Given, labels: Labels) -> np.ndarray:
    """The values in the table, to the last bit where they are known."""
    return labels.own_units(given.values) if given.table_values is None else given.table_values


def tidy_forecast(
    draws: dict[str, Any],
    times: Any,
    labels: Labels,
    *,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    backend: Any = "pandas",
) -> Any:
    """Forecasts as a tidy table: a row for each id, time and feature.

    The columns are id and time as in the table, `feature`, `mean`, `sd`, and one column per
    quantile, such as `q0.05`. They describe new observations, noise included, in the units of the
    table.

    Args:
        draws: as `forecast` returns them.
        times: the times of the forecast, (time,) or (trajectory, time).
        labels: `Trajectories.names` of the context.
        quantiles: numbers between 0 and 1.
        backend: the library of the data frame: "pandas", "polars" or "pyarrow".

    Raises:
        ValueError: if draws, times and labels do not agree, or a quantile is not between 0 and 1.
    """
    quantiles = [float(q) for q in quantiles]
    _check_quantiles(quantiles)
    if not isinstance(labels, Labels):
        raise ValueError(
            f"labels must be the `names` of the context, of type Labels; "
            f"got {type(labels).__name__}."
        )
    names = [labels.id, labels.time, *forecast_columns(quantiles)]
    if len(set(names)) != len(names):
        raise ValueError(
            "id, time and quantiles must have different names, and none of feature, mean and sd; "
            f"got {names}."
        )
    x = np.asarray(draws["x"], dtype=float)
    when = _draw_times(x, times, labels)
    i, k, j = (index.ravel() for index in np.indices(x.shape[1:]))
    columns = {
        labels.id: [labels.ids[n] for n in i],
        labels.time: labels.calendar(when[i, k]),
        "feature": [labels.features[d] for d in j],
        "mean": x.mean(0)[i, k, j],
        "sd": x.std(0)[i, k, j],
    }
    levels = np.quantile(x, quantiles, axis=0)
    for name, level in zip(names[len(columns) :], levels, strict=True):
        columns[name] = level[i, k, j]
    return _to_native(columns, (), backend)


def _check_quantiles(quantiles: list[float]) -> None:
    if not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles must lie between 0 and 1; got {quantiles}.")
    if len(set(quantiles)) != len(quantiles):
        raise ValueError(f"quantiles must differ; got {quantiles}.")


def _draw_times(x: np.ndarray, times: Any, labels: Labels) -> np.ndarray:
    """The times of draws of x, shape (trajectory, time), if draws, times and labels agree."""
    shape = (len(labels.ids), len(labels.features))
    if (x.shape[1], x.shape[3]) != shape:
        raise ValueError(
            f"draws must be of {shape[0]} trajectories and {shape[1]} features, as the labels are; "
            f"got {x.shape[1]} and {x.shape[3]}."
        )
    when = np.asarray(times)
    if when.shape not in (x.shape[2:3], x.shape[1:3]):
        raise ValueError(
            f"times must be those of the draws, shape {x.shape[2:3]} or {x.shape[1:3]}; "
            f"got shape {when.shape}."
        )
    return np.broadcast_to(when, x.shape[1:3])


def forecast_columns(quantiles: Sequence[float]) -> list[str]:
    """The columns of a tidy forecast besides id and time."""
    return ["feature", "mean", "sd", *(f"q{q:g}" for q in quantiles)]


def _to_native(columns: dict[str, Any], with_nulls: Sequence[str], backend: Any) -> Any:
    """A data frame of the backend, with null for NaN in the columns `with_nulls`."""
    frame = nw.from_dict(columns, backend=backend)
    return frame.with_columns(nw.col(*with_nulls).fill_nan(None) if with_nulls else []).to_native()


def _numbers(column: nw.Series, name: str) -> np.ndarray:
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


def _ids(column: nw.Series, name: str, problems: Problems) -> list[Any]:
    who = column.to_list()
    # In polars, NaN is not null. Nulls go first, as `pandas.NA != pandas.NA` is not a boolean.
    nothing = [empty or x != x for empty, x in zip(column.is_null().to_list(), who, strict=True)]
    problems.check(name, "must hold an id in each row", nothing, lambda row: "nothing")
    return who


def _values(column: nw.Series, name: str, log: bool, problems: Problems) -> np.ndarray:
    """Floats, NaN where the table is empty."""
    numbers = _numbers(column, name)
    rule = "must be finite, or empty where nothing was measured"
    problems.check(name, rule, np.isinf(numbers), lambda row: numbers[row])
    if log:
        rule = "must be positive, as its logarithm is taken"
        problems.check(name, rule, numbers <= 0, lambda row: numbers[row])
    else:
        _check_size(numbers, name, problems)
    return numbers


def _check_size(numbers: np.ndarray, name: str, problems: Problems) -> None:
    """Adds an error for each number that is infinite in JAX's default float type."""
    largest = float(jnp.finfo(jnp.result_type(float)).max)
    rule = f"must be at most {largest:.1e} in size, as floats of JAX are"
    problems.check(name, rule, np.abs(numbers) > largest, lambda row: numbers[row])


def _times(
    column: nw.Series, name: str, origin: Any, unit: str, problems: Problems
) -> tuple[np.ndarray, np.ndarray | None, np.datetime64 | None, str | None]:
    """Times as floats; dates also as dates, with the origin and the unit of their count."""
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}; got {unit!r}.")
    dates = _dates(column)
    entries = column.to_list()
    if dates is None:
        if origin is not None:
            raise ValueError(
                f"origin must be left out where column {name!r} holds numbers; got {origin!r}."
            )
        try:
            when = _numbers(column, name)
        except ValueError as error:
            entry = next((x for x in entries if x is not None), None)
            raise ValueError(
                f"column {name!r} must hold numbers, dates or datetimes; got {column.dtype}, such "
                f"as {entry!r}. Convert text with pandas.to_datetime or polars' str.to_datetime."
            ) from error
        absent = ~np.isfinite(when)
    else:
        absent = np.isnat(dates)
        try:
            # NaT if the column holds no date at all.
            start = np.sort(dates)[0] if origin is None else np.datetime64(origin, "us")
        except ValueError as error:
            raise ValueError(f"origin must be a date; got {origin!r}.") from error
        origin = start
        when = (dates - start) / UNITS[unit]
    rule = "must hold a time in each row"
    problems.check(name, rule, absent, lambda row: repr(entries[row]))
    _check_size(when, name, problems)
    return when, dates, origin, None if dates is None else unit


def _dates(column: nw.Series) -> np.ndarray | None:
    """Dates in UTC, to the microsecond; None if the column does not hold dates."""
    if column.dtype == nw.Object:
        # In pandas, dates are objects. NumPy would read a number among them as microseconds.
        known = column.drop_nulls().to_list()
        if not known or not all(hasattr(entry, "isoformat") for entry in known):
            return None
        nulls = zip(column.is_null().to_list(), column.to_list(), strict=True)
        try:
            return np.array([None if null else x for null, x in nulls], dtype="datetime64[us]")
        except (TypeError, ValueError):
            return None
    if column.dtype not in (nw.Date, nw.Datetime):
        return None
    if getattr(column.dtype, "time_zone", None):
        column = column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return column.cast(nw.Datetime("us")).to_numpy().astype("datetime64[us]")

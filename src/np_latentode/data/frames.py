"""Data frames of whatever library: the columns that are read, under their names, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np

from np_latentode.data.columns import Columns
from np_latentode.data.entries import BLANKS, read_times, shown
from np_latentode.data.labels import Labels
from np_latentode.data.problems import Problems

__all__ = ["as_frame", "to_native"]


def as_frame(df: Any, columns: Columns, problems: Problems) -> nw.DataFrame:
    """The columns of a data frame that are read, without rows that hold no entry at all.

    Names are compared as text, so "3" names a column 3. In pandas, a level of the index is a column
    too. Times that are text are read as in a CSV file.

    Raises:
        ValueError: if it is no data frame, lacks a column, or has two of its name.
    """
    try:
        frame = nw.from_native(_picked(df, columns.read), eager_only=True)
    except TypeError as error:
        raise ValueError(
            "df must be a data frame, for example of pandas or polars, and not a lazy one; "
            f"got {type(df).__name__}."
        ) from error
    if missing := [name for name in columns.read if name not in frame.columns]:
        raise ValueError(
            f"{columns.arguments} must name columns of the table; got {missing}, and it has "
            f"{shown(_all_names(df, frame))}."
        )
    frame = _without_empty_rows(df, frame.select(columns.read), problems)
    for name in columns.times:
        frame = _with_times(frame, name, problems)
    return frame


def _all_names(df: Any, frame: nw.DataFrame) -> list[str]:
    if nw.dependencies.is_pandas_dataframe(df):
        return [str(name) for name in (*df.columns, *df.index.names) if name is not None]
    return df.column_names if nw.dependencies.is_pyarrow_table(df) else frame.columns


def _picked(df: Any, names: Sequence[str]) -> Any:
    """A native data frame of the columns, where their library lets two of them have one name."""
    if nw.dependencies.is_pandas_dataframe(df):
        found = _places([*df.columns], names)
        picked = df.iloc[:, [*found.values()]].reset_index(drop=True).set_axis([*found], axis=1)
        levels = _places([*df.index.names], [name for name in names if name not in found])
        for name, level in levels.items():
            picked[name] = df.index.get_level_values(level)
        for name, column in picked.items():
            # narwhals does not know zones whose names have other characters than letters.
            if getattr(column.dtype, "tz", None) is not None:
                picked[name] = column.dt.tz_convert("UTC")
        return picked
    if nw.dependencies.is_pyarrow_table(df):
        found = _places(df.column_names, names)
        return df.select([*found.values()]).rename_columns([*found])
    return df


def _places(labels: Sequence[Any], names: Sequence[str]) -> dict[str, int]:
    """The positions of names among labels, which may be of any type."""
    found: dict[str, int] = {}
    for name in names:
        exactly = [k for k, label in enumerate(labels) if isinstance(label, str) and label == name]
        places = exactly or [k for k, label in enumerate(labels) if str(label) == name]
        if len(places) > 1:
            raise ValueError(f"df must name different columns; got {name!r} more than once.")
        if places and labels[places[0]] is not None:
            found[name] = places[0]
    return found


def _without_empty_rows(df: Any, frame: nw.DataFrame, problems: Problems) -> nw.DataFrame:
    empty = np.ones(len(frame), bool)
    for name in frame.columns:
        empty &= frame[name].is_null().to_numpy()
    if not empty.any():
        return frame
    if nw.dependencies.is_pandas_dataframe(df):
        empty &= df.isna().to_numpy().all(1)
    elif not nw.dependencies.is_pyarrow_table(df):
        every = nw.from_native(df, eager_only=True)
        for name in every.columns:
            empty &= every[name].is_null().to_numpy()
    problems.keep(~empty)
    return frame.filter((~empty).tolist())


def _with_times(frame: nw.DataFrame, name: str, problems: Problems) -> nw.DataFrame:
    """The frame, with numbers or dates where it holds texts as times."""
    column = frame[name]
    if column.dtype not in (nw.String, nw.Object, nw.Categorical, nw.Enum):
        return frame
    nulls = column.is_null().to_list()
    known = [entry for entry, null in zip(column.to_list(), nulls, strict=True) if not null]
    if not known or not all(isinstance(entry, str) for entry in known):
        return frame
    texts = iter(known)
    entries = ["" if null else next(texts).strip(BLANKS) for null in nulls]
    times, zone = read_times(entries, name, problems)
    series = nw.new_series(name, times, backend=frame.implementation)
    return frame.with_columns(series.dt.replace_time_zone("UTC") if zone else series)


def to_native(
    columns: dict[str, Any], labels: Labels, with_nulls: Sequence[str], backend: Any
) -> Any:
    """A data frame of the backend, with null for NaN in the columns `with_nulls`."""
    frame = nw.from_dict(columns, backend=backend)
    if labels.zone:
        frame = frame.with_columns(nw.col(labels.time).dt.replace_time_zone("UTC"))
    return frame.with_columns(nw.col(*with_nulls).fill_nan(None) if with_nulls else []).to_native()

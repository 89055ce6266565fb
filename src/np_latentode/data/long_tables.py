"""Long tables: one row per measurement, as a column for each feature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import narwhals as nw
import numpy as np

from np_latentode.data.columns import Columns
from np_latentode.data.covariates import static_entries
from np_latentode.data.entries import shown
from np_latentode.data.far import warn_user
from np_latentode.data.limits import has_limits, of_one_type
from np_latentode.data.problems import Problems

__all__ = [
    "asked_rows",
    "check_features",
    "feature_names",
    "gather",
    "merged",
    "numbered",
    "spread",
    "warn_of_mixture",
]


def numbered(entries: Iterable[Any]) -> tuple[list[Any], np.ndarray]:
    """The distinct entries in the order of their first rows, and the place of each among them."""
    places: dict[Any, int] = {}
    codes = np.array([places.setdefault(entry, len(places)) for entry in entries], int)
    return [*places], codes


def asked_rows(what: Sequence[str | None], columns: Columns) -> np.ndarray:
    """True for the rows of the features that are read; `what` was measured in each row."""
    return np.array([not columns.values or name in columns.values for name in what], bool)


def spread(
    frame: nw.DataFrame, columns: Columns, problems: Problems
) -> tuple[nw.DataFrame, tuple[str, ...]]:
    """A long table with a column for each feature instead of one for all, and the features.

    A row stays a row, with a single measurement. Of a row whose feature is not read, only the id
    counts: it stays if it is the first of its id, as such an id is still a trajectory, or if it
    says of a static covariate what no row says that stays. Rows that give inputs stay as well, and
    need no feature.

    Args:
        frame: a table with rows; ids, times, features and values.
        columns: their names.
        problems: gets the rows without a feature, and goes on with the rows that stay.

    Raises:
        ValueError: if none of the features occurs, or one is called as the column of ids or times.
    """
    what, giving = _measured(frame, columns), _giving(frame, columns)
    if not columns.values:
        absent = np.array([name is None for name in what]) & ~giving
        rule = "must say in each row what was measured"
        problems.check(str(columns.feature), rule, absent, lambda row: "nothing")
        problems.raise_if_any()
    features = _features(what, columns)
    asked = asked_rows(what, columns) | giving
    stays = asked | _first_rows(frame[columns.id])
    stays |= _telling(frame, columns, stays)
    rows = np.flatnonzero(stays)
    problems.keep(stays)
    problems.called |= {name: f"{columns.value!r} of {name!r}" for name in features}
    where = {name: np.array([x == name for x in what], bool)[rows] for name in features}
    table = {
        columns.id: _taken(frame[columns.id], rows),
        columns.time: _taken(frame[columns.time], _with_times(frame[columns.time], rows, asked)),
        **{name: _taken(frame[name], rows) for name in (*columns.times[1:], *columns.beside)},
        **_columns(_taken(frame[str(columns.value)], rows), where),
    }
    return nw.from_dict(table, backend=frame.implementation), features


def feature_names(frame: nw.DataFrame, columns: Columns) -> list[str]:
    """The features of a long table, in the order of their first rows."""
    return _known(_measured(frame, columns))


def _known(what: Sequence[str | None]) -> list[str]:
    return [*dict.fromkeys(name for name in what if name is not None)]


def _measured(frame: nw.DataFrame, columns: Columns) -> list[str | None]:
    """What was measured in each row, None where nothing is said."""
    return [_as_text(entry) for entry in _entries(frame[str(columns.feature)])]


def check_features(features: Sequence[str], known: Sequence[str], columns: Columns) -> None:
    """Refuses features of which none is among the known ones of a long table."""
    if not {*features} & {*known}:
        raise ValueError(
            f"values must be entries of column {columns.feature!r}; got {shown([*features])}, and "
            f"it has {shown([*known])}."
        )


def _features(what: Sequence[str | None], columns: Columns) -> tuple[str, ...]:
    known = _known(what)
    features = columns.values or tuple(known)
    check_features(features, known, columns)
    if taken := {columns.id, *columns.times, *columns.beside} & {*features}:
        raise ValueError(
            "features must not have the names of the columns of ids, times and covariates; got "
            f"{shown(sorted(taken))} in column {columns.feature!r}."
        )
    return features


def _giving(frame: nw.DataFrame, columns: Columns) -> np.ndarray:
    """True for the rows that hold an input."""
    giving = np.zeros(len(frame), bool)
    for name in columns.inputs:
        giving |= np.array([entry is not None for entry in _entries(frame[name])], bool)
    return giving


def _telling(frame: nw.DataFrame, columns: Columns, stays: np.ndarray) -> np.ndarray:
    """True for the rows with a static entry of an id that is not in its rows that stay."""
    telling = np.zeros(len(frame), bool)
    if not columns.static:
        return telling
    who = _entries(frame[columns.id])
    for name in columns.static:
        pairs = [*zip(who, map(str, static_entries(frame[name])), strict=True)]
        told = {pair for pair, stay in zip(pairs, stays.tolist(), strict=True) if stay}
        for row, (one, entry) in enumerate(pairs):
            if one is not None and entry != "None" and (one, entry) not in told:
                told.add((one, entry))
                telling[row] = True
    return telling


def _entries(column: nw.Series) -> list[Any]:
    """The entries, None where there is none."""
    pairs = zip(column.to_list(), column.is_null().to_list(), strict=True)
    return [None if null or entry != entry else entry for entry, null in pairs]


def _as_text(entry: Any) -> str | None:
    # In pandas, integers beside a missing entry are floats.
    if isinstance(entry, float) and entry.is_integer():
        entry = int(entry)
    return None if entry is None else str(entry)


def _first_rows(column: nw.Series) -> np.ndarray:
    """True for the first row of each id."""
    first, seen = [], {None}
    for entry in _entries(column):
        first.append(entry not in seen)
        seen.add(entry)
    return np.array(first, bool)


def _taken(column: nw.Series, rows: np.ndarray) -> nw.Series:
    return column if np.array_equal(rows, np.arange(len(column))) else column[rows.tolist()]


def _with_times(column: nw.Series, rows: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The rows whose times to take: rows that only give their id need none of their own."""
    able = np.flatnonzero(asked & ~column.is_null().to_numpy())
    instead = able[0] if len(able) else np.flatnonzero(asked)[0]
    return np.where(asked[rows], rows, instead)


def _columns(column: nw.Series, where: dict[str, np.ndarray]) -> dict[str, nw.Series]:
    """The column of values, once for each feature, empty where another one was measured."""
    backend = column.implementation
    if column.dtype.is_numeric() or column.dtype == nw.Boolean:
        values = column.cast(nw.Float64).to_numpy().astype(float)
        made = {name: np.where(here, values, np.nan) for name, here in where.items()}
        return {name: nw.new_series(name, x, backend=backend) for name, x in made.items()}
    entries = _entries(column)
    made = {
        name: [x if mine else None for x, mine in zip(entries, here.tolist(), strict=True)]
        for name, here in where.items()
    }
    if has_limits(entries):
        # polars has columns of one type.
        made = {name: of_one_type(x) for name, x in made.items()}
    return {name: nw.new_series(name, x, backend=backend) for name, x in made.items()}


def gather[Cells](who: np.ndarray, when: np.ndarray, what: np.ndarray, cells: Cells) -> Cells:
    """Cells (row, feature), with those of one id and time in the first of their rows.

    Several measurements of one feature at one time stay observations of their own, in the order of
    the table: the k-th of each feature come together.

    Args:
        who: the number of each row's id.
        when, what: times (row,), and values (row, feature), NaN where not measured.
        cells: a pytree of arrays of the shape of `what`, which belong to the measurements.
    """
    rows, features = np.nonzero(~np.isnan(what))
    ids, times = who[rows], when[rows]
    # np.lexsort is stable, and sorts by its last key first.
    order = np.lexsort((features, times, ids))
    rank = np.empty(len(rows), int)
    rank[order] = _counted(ids[order], times[order], features[order])
    order = np.lexsort((rank, times, ids))
    starts = _counted(ids[order], times[order], rank[order]) == 0
    first = np.empty(len(rows), int)
    first[order] = rows[order][starts][np.cumsum(starts) - 1]

    def gathered(array: np.ndarray) -> np.ndarray:
        found = np.full(what.shape, np.nan)
        found[first, features] = array[rows, features]
        return found

    return jax.tree.map(gathered, cells)


def merged(*tables: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Tables with ids, times and numbers side by side: the k-th rows of one id and time as one.

    Args:
        tables: each with the ids (row,), the times (row,) in order within an id, and numbers
            (row, column).

    Returns:
        Ids and times, in this order, and the numbers of each table, NaN where it has no such row.
    """
    whole = [np.concatenate([table[c] for table in tables]) for c in (0, 1)]
    of = np.repeat(np.arange(len(tables)), [len(table[0]) for table in tables])
    order = np.lexsort((of, whole[1], whole[0]))
    who, when, of = whole[0][order], whole[1][order], of[order]
    rank = _counted(who, when, of)
    again = np.lexsort((rank, when, who))
    order, keys = order[again], [key[again] for key in (who, when, rank)]
    new = _counted(*keys) == 0
    row = np.empty(len(order), int)
    row[order] = np.cumsum(new) - 1
    found, first = [keys[0][new], keys[1][new]], 0
    for ids, _, numbers in tables:
        made = np.full((int(new.sum()), numbers.shape[1]), np.nan)
        made[row[first : first + len(ids)]] = numbers
        found.append(made)
        first += len(ids)
    return tuple(found)


def _counted(*keys: np.ndarray) -> np.ndarray:
    """The number of earlier rows with the same keys; equal ones are neighbours."""
    count = len(keys[0])
    new = np.ones(count, bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    starts = np.flatnonzero(new)
    return np.arange(count) - starts[np.cumsum(new) - 1]


def warn_of_mixture(who: np.ndarray, when: np.ndarray, what: np.ndarray, columns: Columns) -> None:
    """Warns of a column that may hold different measurements, as its rows share id and time."""
    if columns.feature is not None or len(columns.values) != 1:
        return
    measured = ~np.isnan(what[:, 0])
    _, at, count = np.unique(
        np.stack([who[measured], when[measured]]), axis=1, return_inverse=True, return_counts=True
    )
    shared = int((count[at] > 1).sum())
    if 2 * shared > len(at):
        warn_user(
            f"feature and value (--feature, --value) must name the columns of what was measured "
            f"and of the result, if {columns.values[0]!r} holds different measurements; got "
            f"{shared} of {len(at)} rows that share {columns.id!r} and {columns.time!r} with "
            "another row, and they are read as repeated measurements of one kind."
        )

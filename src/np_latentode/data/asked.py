"""Asked times: those at which each trajectory is forecast, as many as are asked of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from np_latentode.data.clocks import Clock, read_clock
from np_latentode.data.columns import Columns
from np_latentode.data.files import read_columns, read_names
from np_latentode.data.frames import as_frame
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.matching import match_ids, match_times
from np_latentode.data.problems import Problems
from np_latentode.data.tables import as_numbers

__all__ = ["AskedTimes"]


class AskedTimes(NamedTuple):
    """The times asked of each trajectory, padded: its last time is repeated."""

    times: Float[np.ndarray, "trajectory time"]
    mask: Bool[np.ndarray, "trajectory time"]
    """True where a time is asked for."""

    @classmethod
    def of(cls, each: Sequence[np.ndarray]) -> AskedTimes:
        """The times of each trajectory, in their order; of at least one trajectory, one time."""
        lengths = np.array([len(times) for times in each])
        mask = np.arange(lengths.max()) < lengths[:, None]
        # A trajectory of which nothing is asked has the times of the longest, all of them padding.
        longest = each[int(lengths.argmax())]
        padded = [
            np.pad(t, (0, len(longest) - len(t)), "edge") if len(t) else longest for t in each
        ]
        return cls(np.stack(padded), mask)

    def select(self, index: Any) -> AskedTimes:
        """Those of the trajectories that an index selects."""
        return self._make(array[index] for array in self)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], names: Labels, *, start: float, end: float
    ) -> AskedTimes:
        """The times that a table asks for, with a row for each id and time, or for each time.

        Without a column of ids, its times are those of all trajectories. Rows may come in any
        order; the times of each trajectory rise, and come once.

        Args:
            path: of a file that `Trajectories.from_file` could read.
            names: those of the trajectories.
            start, end: the earliest and the latest time that can be asked for, as counted.

        Raises:
            MalformedRows: a ValueError with all rows that cannot be read or met, and their lines.
            ValueError: if the file has no such columns, or times of another kind.
            ImportError, OSError: as `Trajectories.from_file`.
        """
        clock, who, problems = _read(path, names)
        rows = np.arange(len(clock.times))
        if who is None:
            who, rows = (a.ravel() for a in np.meshgrid(np.arange(len(names.ids)), rows))
        times = match_times(clock, names, rows, who)
        _check_span(times, rows, clock, names, problems, start, end)
        order = np.argsort(who, kind="stable")
        starts = np.searchsorted(who[order], np.arange(1, len(names.ids)))
        of_each = np.split(np.maximum(times, start)[order], starts)
        return cls.of([np.unique(mine) for mine in of_each])


@dataclass(frozen=True)
class _AskedColumns(Columns):
    """The columns of times, and of ids if the id has a name; nothing was measured."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.id,) if self.id else ()

    @property
    def read(self) -> tuple[str, ...]:
        return (*self.texts, self.time)

    @property
    def arguments(self) -> str:
        return "id and time" if self.id else "time"


def _read(path: str | os.PathLike[str], names: Labels) -> tuple[Clock, np.ndarray | None, Problems]:
    """The times of the rows, and the number of each row's trajectory if there are ids."""
    found = read_names(path, id=names.id, time=names.time, values=names.features)
    if names.time not in found:
        raise ValueError(
            f"{path} must have the columns {names.id!r} and {names.time!r}, or {names.time!r} "
            f"alone, as the table fitted; got {found}."
        )
    columns = _AskedColumns(names.id if names.id in found else "", names.time, ())
    df, problems = read_columns(path, columns)
    try:
        frame = as_frame(df, columns, problems)
        unit = names.unit or "D"
        clock = read_clock(frame[names.time], names.time, as_numbers, problems, unit=unit)
        who = None
        if columns.id:
            who = match_ids(frame[names.id], names, problems, table="the table to forecast")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    problems.raise_if_any()
    _check_kind(path, clock, names)
    return clock, who, problems


def _check_kind(path: str | os.PathLike[str], clock: Clock, names: Labels) -> None:
    def kind(origin: np.datetime64 | None, zone: bool) -> str:
        with_zone = f"dates with{'' if zone else 'out'} a time zone"
        return "numbers" if origin is None else with_zone

    asked, ours = (kind(x.origin, x.zone) for x in (clock, names))
    if asked != ours:
        raise ValueError(
            f"{path} must hold {ours} in column {names.time!r}, as the table fitted; got {asked}."
        )


def _check_span(
    times: np.ndarray,
    rows: np.ndarray,
    clock: Clock,
    names: Labels,
    problems: Problems,
    start: float,
    end: float,
) -> None:
    """Refuses rows with times before the start, or after the end."""
    entries = clock.times if clock.table_times is None else clock.table_times
    # A difference of dates may be rounded in its last bits.
    slack = 1e-9 * max(1.0, abs(start))
    begins = "those of the table fitted" if names.span is None else "the last window of each id"
    for rule, wrong in (
        (f"must not hold times before {begins}", times < start - slack),
        ("must not hold times further than the solver reaches", times > end),
    ):
        bad = np.zeros(len(entries), bool)
        bad[rows[wrong]] = True
        problems.check(names.time, rule, bad, lambda row: shown_time(entries[row]))
    problems.raise_if_any()

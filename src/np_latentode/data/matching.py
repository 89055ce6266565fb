"""Matching: the rows of a later table, by the ids and on the clocks of an earlier one."""

from __future__ import annotations

import narwhals as nw
import numpy as np
from jaxtyping import Float, Int

from np_latentode.data.clocks import Clock
from np_latentode.data.labels import UNITS, Labels
from np_latentode.data.problems import Problems
from np_latentode.data.tables import as_ids

__all__ = ["match_ids", "match_times"]


def match_ids(
    column: nw.Series, names: Labels, problems: Problems, *, table: str
) -> Int[np.ndarray, " row"]:
    """The number of the trajectory of each row, by its id as text: a file of CSV has no others.

    Args:
        column: of ids.
        names: those of the trajectories.
        problems: collects the rows with another id.
        table: what the earlier table is called in messages.
    """
    who = as_ids(column, names.id, problems)
    places = {str(one): n for n, one in enumerate(names.ids)}
    found = np.array([places.get(str(one), -1) for one in who], int)
    rule = f"must hold ids of {table}"
    problems.check(names.id, rule, found < 0, lambda row: repr(who[row]))
    return found


def match_times(
    clock: Clock, names: Labels, rows: np.ndarray, ids: np.ndarray
) -> Float[np.ndarray, " entry"]:
    """The times of some rows, each on the clock of a trajectory.

    Args:
        clock: the times of all rows, numbers or dates as those of the trajectories.
        names: those of the trajectories.
        rows, ids: the row of each entry, and the number of its trajectory.
    """
    times = clock.times
    if clock.table_times is not None and names.origin is not None:
        times = (clock.table_times - names.origin) / UNITS[names.unit or "D"]
    return times[rows] - np.array(names.starts)[ids] if names.starts else times[rows]

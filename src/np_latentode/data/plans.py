"""Plans: tables that only give inputs, such as future doses."""

from __future__ import annotations

from typing import Any

import numpy as np

from np_latentode.data.clocks import read_clock
from np_latentode.data.columns import Columns
from np_latentode.data.frames import as_frame
from np_latentode.data.labels import Labels
from np_latentode.data.matching import match_ids, match_times
from np_latentode.data.problems import Problems
from np_latentode.data.tables import as_numbers, read_inputs

__all__ = ["plan_rows"]


def plan_rows(
    df: Any, labels: Labels, problems: Problems | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of a table that only gives inputs: numbers of ids, times and amounts.

    Args:
        df: a table with the columns of ids, times and inputs.
        labels: of the trajectories that it is for.
        problems: those found while it was read from a file.

    Raises:
        MalformedRows: a ValueError that lists the rows with an unknown id, and all others that
            `from_rows` refuses.
        ValueError: if the table lacks a column, or holds times of another kind.
    """
    problems = problems or Problems()
    if len({*labels.ids}) < len(labels.ids):
        raise ValueError(
            "plan must be for trajectories with different ids; got windows, whose ids repeat."
        )
    columns = Columns.of_plan(labels.id, labels.time, labels.inputs)
    frame = as_frame(df, columns, problems)
    ids = match_ids(frame[labels.id], labels, problems, table="the table that the plan is for")
    unit = labels.unit or "D"
    clock = read_clock(frame[labels.time], labels.time, as_numbers, problems, unit=unit)
    if (clock.origin is None, clock.zone) != (labels.origin is None, labels.zone):
        kind = "numbers" if labels.origin is None else "dates"
        kind += " with a time zone" if labels.zone else ""
        raise ValueError(f"plan must hold {kind} in column {labels.time!r}, as the table does.")
    amounts = read_inputs(frame, labels.inputs, problems)
    problems.raise_if_any()
    return ids, match_times(clock, labels, np.arange(len(ids)), ids), amounts

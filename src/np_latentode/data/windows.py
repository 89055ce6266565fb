"""Windows: parts of equal span of long trajectories, each on a clock of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from np_latentode.data.far import warn_user
from np_latentode.data.given import Given, Rows, table_times
from np_latentode.data.inputs import Inputs
from np_latentode.data.labels import Labels
from np_latentode.data.offset import Offset

__all__ = ["window_rows"]

ROUNDING = 8 * float(np.finfo(float).eps)
"""Observations this near to the start of a window, relative to their times, lie at its start. On
an even grid, rounding would otherwise decide whether a window holds one more."""


class _Seen(NamedTuple):
    """The observed times of trajectories, in order; without trajectories that have none."""

    at: tuple[np.ndarray, np.ndarray]
    """Trajectory and slot of each observed time."""
    ages: Float[np.ndarray, " observed"]
    """How long before its trajectory's last one each was observed."""
    eldest: Float[np.ndarray, " observed"]
    """The age of the first one of its trajectory."""
    last: Float[np.ndarray, " observed"]
    """The time of the last one of its trajectory."""


class _Windows(NamedTuple):
    """Windows, and the observed times that they hold; one entry for each of these."""

    rows: Int[np.ndarray, " held"]
    """Which of the observed times it is."""
    number: Int[np.ndarray, " held"]
    """Which window of the trajectory holds it: 0 is the last one, 1 the one before."""
    bounds: Int[np.ndarray, " window_and_end"]
    """Where the entries of each window begin, and where those of the last end."""


def window_rows(
    given: Given,
    mask: Bool[np.ndarray, "trajectory time feature"],
    labels: Labels,
    static: np.ndarray | None,
    inputs: Inputs | None,
    span: float,
    step: float | None,
) -> Rows:
    """The observations of each window, and the labels of the windows.

    Arguments, rules and errors are those of `Trajectories.windows`.
    """
    _check_lengths(span, step)
    seen = _seen(given.times, mask)
    if not len(seen.ages):
        raise ValueError("windows must be of trajectories with an observation; got none.")
    windows = _windows(seen, _slack(seen, labels, span, step), span, step)
    if step is not None:
        windows = _with_two_times(windows, seen)
    if not len(windows.rows):
        raise ValueError(
            f"span must be so long that a window holds two observed times; got {span}."
        )
    _warn_of_lost(windows, seen, labels, step)
    # From the end of the window, as the times themselves may be large beside their differences.
    before_last = span + windows.number * (step or 0.0)
    times = before_last - seen.ages[windows.rows]
    _check_precision(times, windows, seen, labels, span)
    i, k = (index[windows.rows] for index in seen.at)
    columns = given.select((i, k))._replace(
        times=times,
        values=np.where(mask[i, k], given.values[i, k], np.nan),
        # The sum of a start and a time may differ from the table's time in the last bit.
        table_times=table_times(given, labels)[i, k],
    )
    first = windows.bounds[:-1]
    starts = (seen.last[windows.rows] - before_last)[first]
    if inputs is not None:
        own = inputs.table_times
        own = labels.calendar(inputs.given_times) if own is None else own
        inputs = inputs.shifted(i[first], starts, own)
    labels = _labels(labels, i[first], starts, span)
    static = None if static is None else static[i[first]]
    return Rows(columns, np.split(np.arange(len(times)), first[1:]), labels, static, inputs)


def _labels(labels: Labels, of: np.ndarray, starts: np.ndarray, span: float) -> Labels:
    """The labels of windows of these trajectories that start then on their clocks."""
    if labels.starts:
        starts = starts + np.array(labels.starts)[of]
    ids = tuple(labels.ids[i] for i in of)
    return replace(labels, ids=ids, starts=tuple(starts.tolist()), span=float(span))


def _check_lengths(span: Any, step: Any) -> None:
    for name, length in (("span", span), ("step", span if step is None else step)):
        # A NumPy duration is an integer to Python.
        if np.ndim(length) or np.asarray(length).dtype.kind not in "iuf" or not 0 < length < np.inf:
            raise ValueError(
                f"{name} must be positive and finite, in the unit of the times; got {length!r}."
            )
    if step is not None and step > span:
        raise ValueError(f"step must be at most span, {span}; got {step}.")


def _seen(
    times: Float[np.ndarray, "trajectory time"], mask: Bool[np.ndarray, "trajectory time feature"]
) -> _Seen:
    i, k = np.nonzero(mask.any(-1))
    when = times[i, k]
    _, first, of_each, counts = np.unique(
        i, return_index=True, return_inverse=True, return_counts=True
    )
    last = when[first + counts - 1][of_each]
    ages = last - when
    return _Seen((i, k), ages, ages[first][of_each], last)


def _slack(
    seen: _Seen, labels: Labels, span: float, step: float | None
) -> Float[np.ndarray, " observed"]:
    """How far rounding may have moved each observed time."""
    size = np.abs(seen.last) + seen.eldest + span
    if labels.starts:
        size += np.abs(labels.starts)[seen.at[0]]
    return np.minimum(ROUNDING * size, (step or span) / 4)


def _windows(
    seen: _Seen, slack: Float[np.ndarray, " observed"], span: float, step: float | None
) -> _Windows:
    """All windows that hold an observation, by trajectory and time.

    Window n holds the ages a with  n step <= a < n step + span.
    """

    def last_holding(ages: np.ndarray) -> np.ndarray:
        """The number of the latest of the windows that hold these ages."""
        return np.maximum(np.floor((ages - span + slack) / (step or span)) + 1, 0)

    # The first window of a trajectory is the latest one that holds its first observation.
    low, high = last_holding(seen.ages), last_holding(seen.eldest)
    if step is None:
        high = np.zeros(len(slack))
    else:
        high = np.minimum(high, np.floor((seen.ages + slack) / step))
    counts = np.maximum(high - low + 1, 0).astype(int)
    rows = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    number = low[rows].astype(int) + nth
    order = np.lexsort((rows, -number, seen.at[0][rows]))
    return _bounded(rows[order], number[order], seen)


def _bounded(rows: np.ndarray, number: np.ndarray, seen: _Seen) -> _Windows:
    if not rows.size:
        return _Windows(rows, number, np.zeros(1, int))
    of = seen.at[0][rows]
    new = np.flatnonzero((np.diff(of) != 0) | (np.diff(number) != 0)) + 1
    return _Windows(rows, number, np.concatenate([[0], new, [len(rows)]]))


def _with_two_times(windows: _Windows, seen: _Seen) -> _Windows:
    """Those of the windows that hold two different times."""
    ages, bounds = seen.ages[windows.rows], windows.bounds
    several = ages[bounds[:-1]] > ages[bounds[1:] - 1]
    kept = np.repeat(several, np.diff(bounds))
    return _bounded(windows.rows[kept], windows.number[kept], seen)


def _warn_of_lost(windows: _Windows, seen: _Seen, labels: Labels, step: float | None) -> None:
    count = len(labels.ids)
    lost = np.setdiff1d(np.arange(count), seen.at[0][windows.rows])
    if lost.size:
        what = "observation" if step is None else "window with two observed times"
        warn_user(
            f"{lost.size} of {count} trajectories have no {what} and are left out, "
            f"{labels.id} {labels.ids[lost[0]]} for one."
        )


def _check_precision(
    times: Float[np.ndarray, " held"],
    windows: _Windows,
    seen: _Seen,
    labels: Labels,
    span: float,
) -> None:
    """Refuses different times of a window that become equal in JAX's float type."""
    ones = np.ones((1, len(times), 1))
    offset = Offset.of(times[None], 0 * ones, ones > 0)
    rounded = (times - offset.time).astype(jnp.result_type(float))
    lost = (np.diff(seen.ages[windows.rows]) < 0) & (np.diff(rounded) == 0)
    # The ages of two windows are not compared.
    lost[windows.bounds[1:-1] - 1] = False
    if lost.any():
        who = labels.ids[seen.at[0][windows.rows[np.argmax(lost)]]]
        raise ValueError(
            f"span must be so short that the times in a window differ in JAX's float type; got "
            f"{span}, with which different times of {labels.id} {who} become equal. Use a shorter "
            "one, or double precision (jax_enable_x64)."
        )

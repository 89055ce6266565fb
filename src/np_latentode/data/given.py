"""What was given: times and values in double precision, before JAX rounds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from np_latentode.data.inputs import Inputs
from np_latentode.data.labels import Labels
from np_latentode.data.limits import Limits

__all__ = [
    "Given",
    "Rows",
    "modelled_error",
    "modelled_limits",
    "pad_rows",
    "table_times",
    "table_values",
]


class Given(NamedTuple):
    """Times and values as they were given, in double precision; padded as in `Trajectories`."""

    times: np.ndarray
    """Shape (trajectory, time). Dates are counted; the labels say from when and in which unit."""
    values: np.ndarray
    """Shape (trajectory, time, feature), as modelled: logarithms, where the labels say so."""
    table_times: np.ndarray | None = None
    """The times in the table, if `times` are counted from another origin."""
    table_values: np.ndarray | None = None
    """The values in the table, if `values` holds logarithms of some."""
    error: np.ndarray | None = None
    """The standard errors in the table, of the shape of values; None if there are none."""
    limits: Limits | None = None
    """The limits in the table; None if there are none."""

    def hide(self, hidden: np.ndarray) -> Given:
        """The same with 0 where values are hidden, so that nothing can depend on them."""
        own = self.table_values
        return self._replace(
            values=np.where(hidden, 0.0, self.values),
            table_values=None if own is None else np.where(hidden, 0.0, own),
            error=None if self.error is None else np.where(hidden, 0.0, self.error),
            limits=self.limits and self.limits.each(lambda x: np.where(hidden, np.nan, x)),
        )

    def each(self, change: Callable[[np.ndarray], np.ndarray]) -> Given:
        """The same with every array changed."""
        return jax.tree.map(change, self)

    def select(self, index: Any) -> Given:
        """Those of the trajectories that an index selects."""
        return self.each(lambda array: array[index])


class Rows(NamedTuple):
    """A table's rows, and which of them belong to each trajectory."""

    columns: Given
    """Times and values, one entry per row of the table."""
    of_each: list[np.ndarray]
    """The rows of each trajectory that hold a measurement, in the order of their times."""
    labels: Labels
    static: np.ndarray | None = None
    """Static covariates, shape (trajectory, covariate)."""
    inputs: Inputs | None = None


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
    return padded.hide(~mask)._replace(table_values=padded.table_values), mask


def table_times(given: Given, labels: Labels) -> np.ndarray:
    """The times in the table, to the last bit where they are known."""
    return labels.calendar(given.times) if given.table_times is None else given.table_times


def table_values(given: Given, labels: Labels) -> np.ndarray:
    """The values in the table, to the last bit where they are known."""
    return labels.own_units(given.values) if given.table_values is None else given.table_values


def modelled_error(given: Given, labels: Labels | None) -> np.ndarray | None:
    """Standard errors of the values as they are modelled: sd[log x] = sd[x] / x, to first order."""
    if given.error is None or labels is None or not labels.log or given.table_values is None:
        return given.error
    size = np.where(labels.logged & (given.table_values > 0), given.table_values, 1.0)
    return given.error / size


def modelled_limits(given: Given, labels: Labels | None) -> Limits | None:
    """Limits of the values as they are modelled; the logarithm of 0 is -inf."""
    if given.limits is None or labels is None or not labels.log:
        return given.limits
    logged = labels.logged

    def log(bounds: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.where(logged, np.log(np.where(logged, np.maximum(bounds, 0), 1)), bounds)

    return given.limits.each(log)

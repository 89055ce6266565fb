"""Labels: the names of trajectories, features and times in a table, and their units."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["DATE", "UNITS", "Labels"]

UNITS = {
    "W": np.timedelta64(1, "W"),
    "D": np.timedelta64(1, "D"),
    "h": np.timedelta64(1, "h"),
    "m": np.timedelta64(1, "m"),
    "s": np.timedelta64(1, "s"),
}
"""The units in which dates can be counted, by NumPy's codes."""

DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d([.,]\d+)?)?)?(?P<zone>Z|[+-]\d\d(:?\d\d)?)?)?", re.ASCII
)
"""A date as text, in the extended format of ISO 8601."""


@dataclass(frozen=True)
class Labels:
    """The names of trajectories, features and times in a table, and their units.

    Args:
        ids: the entries of the column `id`, one per trajectory.
        features: the names of the columns of values.
        id, time: the names of the columns of ids and times.
        origin, unit: dates are counted in this unit from this origin on. None if the table held
            numbers for times.
        log: the features whose values are logarithms of the table's entries.
        feature, value: the names of the columns of what was measured and of the result, if the
            table had a row for each measurement.
    """

    ids: tuple[Any, ...]
    features: tuple[str, ...]
    id: str = "id"
    time: str = "time"
    origin: np.datetime64 | None = None
    unit: str | None = None
    log: tuple[str, ...] = ()
    feature: str | None = None
    value: str | None = None

    def select(self, index: Any) -> Labels:
        """The labels of the trajectories that an index array or a slice selects."""
        picked = np.arange(len(self.ids))[index]
        return replace(self, ids=tuple(self.ids[i] for i in picked))

    def like(self, other: Labels) -> bool:
        """Whether values and times have the same meaning in both tables."""
        ours, theirs = ((x.features, x.origin, x.unit, x.log) for x in (self, other))
        return ours == theirs

    def own_units(self, values: Any) -> np.ndarray:
        """Values, or draws of them, in the units of the table: exp of the features in `log`.

        Args:
            values: shape (..., feature).

        Raises:
            ValueError: if the number of features is not that of the labels.
        """
        values = np.asarray(values)
        if values.shape[-1:] != (len(self.features),):
            raise ValueError(
                f"values must have {len(self.features)} features on their last axis, as the "
                f"labels have; got shape {values.shape}."
            )
        logged = self.logged
        if not logged.any():
            return values
        # In single precision, the exponential could overflow.
        own = values.astype(float)
        own[..., logged] = np.exp(own[..., logged])
        return own

    def modelled(self, values: np.ndarray) -> np.ndarray:
        """Values of the table as they are modelled: log of the features in `log`, NaN if empty."""
        logged = self.logged
        values = values.astype(float)
        positive = values[..., logged] > 0
        values[..., logged] = np.log(
            values[..., logged], where=positive, out=np.full(positive.shape, np.nan)
        )
        return values

    @property
    def logged(self) -> np.ndarray:
        """True for the features of which the logarithm is modelled."""
        return np.array([name in self.log for name in self.features])

    def counted(self, dates: Any) -> np.ndarray:
        """Dates as times, counted in the unit from the origin on; the inverse of `calendar`.

        Raises:
            ValueError: if the table held numbers for times, or `dates` are not dates.
        """
        if self.origin is None or self.unit is None:
            raise ValueError(
                f"dates must be numbers, as the times in {self.time!r} are; got {dates!r}."
            )
        try:
            if isinstance(dates, str):
                match = DATE.fullmatch(dates)
                if match is None or match["zone"]:
                    raise ValueError("NumPy would also read other texts, such as today")
            since = np.asarray(dates, "datetime64[us]") - self.origin
            return np.asarray(since / UNITS[self.unit])
        except (TypeError, ValueError) as error:
            raise ValueError(f"dates must be dates; got {dates!r}.") from error

    def __str__(self) -> str:
        times = "" if self.origin is None else f", times in {self.unit} from {self.origin}"
        names = (f"log({name})" if name in self.log else name for name in self.features)
        return f"values {', '.join(names)}{times}"

    def calendar(self, times: np.ndarray) -> np.ndarray:
        """Times as in the table: numbers, or dates to the microsecond."""
        if self.origin is None or self.unit is None:
            return times
        step = UNITS[self.unit] / np.timedelta64(1, "us")
        return self.origin + np.round(times * step).astype("timedelta64[us]")

"""Labels: the names of trajectories, features and times in a table, and their units."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

__all__ = ["DATE", "UNITS", "Labels", "shown_time"]

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


def shown_time(time: Any) -> str:
    """A time as a message shows it: a number, or a date without zeros at its end."""
    if isinstance(time, np.datetime64):
        return str(time).removesuffix(".000000").removesuffix(":00").removesuffix("T00:00")
    return f"{time:.10g}"


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
        since: times are counted from each id's own start: its first row, if this is "first", or the
            entry in the column of this name. None if one clock is for all.
        zone: whether the table's dates had a time zone. They are then in UTC.
        starts: with `since` or `span`, the start of each trajectory, counted as the other times
            were.
        span: the length of the windows, if the trajectories are windows of longer ones. Times are
            then counted from each window's start, and `since` only says how the table is read.
        static: the names of the columns of static covariates.
        levels: the categories of each of these; none for numbers.
        inputs: the names of the columns of inputs.
        kinds: the kind of each of these; see `Inputs`.
        error: of each feature the name of the column of its standard errors, "" if it has none;
            empty if no feature has one.
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
    since: str | None = None
    zone: bool = False
    starts: tuple[float, ...] = ()
    span: float | None = None
    static: tuple[str, ...] = ()
    levels: tuple[tuple[str, ...], ...] = ()
    inputs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    error: tuple[str, ...] = ()

    @property
    def own_clocks(self) -> bool:
        """Whether the times of each trajectory are counted from its own start."""
        return self.since is not None or self.span is not None

    def select(self, index: Any) -> Labels:
        """The labels of the trajectories that an index array or a slice selects."""
        picked = np.arange(len(self.ids))[index]
        starts = tuple(self.starts[i] for i in picked) if self.starts else ()
        return replace(self, ids=tuple(self.ids[i] for i in picked), starts=starts)

    def like(self, other: Labels) -> bool:
        """Whether values and times have the same meaning in both tables."""
        names = ("features", "unit", "log", "zone", "span", "static", "levels")
        names += ("inputs", "kinds", "error", "_counted_from")
        ours, theirs = ([getattr(x, name) for name in names] for x in (self, other))
        return ours == theirs

    @property
    def errors(self) -> dict[str, str]:
        """The column of standard errors of each feature that has one."""
        pairs = zip(self.features, self.error, strict=True) if self.error else ()
        return {feature: column for feature, column in pairs if column}

    @property
    def _counted_from(self) -> tuple[Any, Any]:
        """What the meaning of a time depends on besides its unit."""
        # With a start for each trajectory, it does not matter from when the starts are counted.
        origin = None if self.own_clocks else self.origin
        return (self.since if self.span is None else None, origin)

    def own_units(self, values: Any) -> Any:
        """Values, or draws of them, in the units of the table: exp of the features in `log`.

        Args:
            values: shape (..., feature).

        Raises:
            ValueError: if the number of features is not that of the labels.
        """
        known = not isinstance(values, jax.core.Tracer)
        values = np.asarray(values) if known else values
        if values.shape[-1:] != (len(self.features),):
            raise ValueError(
                f"values must have {len(self.features)} features on their last axis, as the "
                f"labels have; got shape {values.shape}."
            )
        logged = self.logged
        if not logged.any():
            return values
        if not known:
            return jnp.where(logged, jnp.exp(jnp.where(logged, values, 0.0)), values)
        # In single precision, the exponential could overflow.
        own = values.astype(float)
        # A forecast that diverges is infinite; its command says so in a sentence.
        with np.errstate(over="ignore"):
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

        With `since` or `span`, each trajectory has its own start. Then the times of one date have
        shape (trajectory,), and those of several dates (trajectory, time).

        Args:
            dates: a date or several: datetimes, NumPy's dates, or ISO 8601 texts. If the table's
                dates had a time zone, these have one too; NumPy's dates are then in UTC.

        Raises:
            ValueError: if the table held numbers for times, or `dates` are not such dates.
        """
        if self.origin is None or self.unit is None:
            raise ValueError(
                f"dates must be numbers, as the times in {self.time!r} are; got {dates!r}."
            )
        try:
            array = np.asarray(dates)
            if array.dtype.kind != "M":
                array = np.array([self._parsed(x) for x in array.astype(object).flat], "M8[us]")
                array = array.reshape(np.shape(dates))
            since = array.astype("M8[us]") - self.origin
        except (AttributeError, TypeError, ValueError) as error:
            kind = "dates with a time zone" if self.zone else "dates"
            raise ValueError(f"dates must be {kind}; got {dates!r}.") from error
        return self.from_starts(np.asarray(since / UNITS[self.unit]))

    def _parsed(self, date: Any) -> Any:
        """A date without its time zone, in UTC, if it has a zone just as the table has."""
        if isinstance(date, str):
            if DATE.fullmatch(date) is None:
                raise ValueError("NumPy would also read other texts, such as today")
            date = datetime.fromisoformat(date)
        if isinstance(date, np.datetime64):
            return date
        date.isoformat()  # An AttributeError if it is no date.
        if (getattr(date, "tzinfo", None) is not None) != self.zone:
            raise ValueError("a date without a time zone is no moment, and the other way round")
        return date.astimezone(UTC).replace(tzinfo=None) if self.zone else date

    def from_starts(self, times: np.ndarray) -> np.ndarray:
        """Times on the clock of all as times on the clock of each trajectory, in rows.

        Raises:
            ValueError: if they are in rows, but not in one per trajectory.
        """
        if not self.starts:
            return times
        if times.ndim > 1 and len(times) != len(self.starts):
            raise ValueError(
                f"dates must have a row for each of {len(self.starts)} trajectories; got shape "
                f"{times.shape}."
            )
        starts = np.array(self.starts)
        return times - (starts[:, None] if times.ndim else starts)

    def __str__(self) -> str:
        clock = ""
        if self.span is not None:
            clock = f", times in {self.unit or 'numbers'} in windows of {self.span:g}"
        elif self.since is not None:
            start = "each first row" if self.since == "first" else repr(self.since)
            clock = f", times in {self.unit or 'numbers'} since {start}"
        elif self.origin is not None:
            clock = f", times in {self.unit} from {self.origin}{'Z' if self.zone else ''}"
        names = (f"log({name})" if name in self.log else name for name in self.features)
        static = f", static {', '.join(map(self._described, self.static))}" if self.static else ""
        given = [f"{x} ({kind})" for x, kind in zip(self.inputs, self.kinds, strict=True)]
        inputs = f", inputs {', '.join(given)}" if given else ""
        errors = [f"{column} of {name}" for name, column in self.errors.items()]
        error = f", standard errors {', '.join(errors)}" if errors else ""
        return f"values {', '.join(names)}{error}{static}{inputs}{clock}"

    def _described(self, static: str) -> str:
        """A static covariate, with its levels."""
        levels = self.levels[self.static.index(static)]
        return f"{static} ({', '.join(levels)})" if levels else static

    def calendar(self, times: np.ndarray) -> np.ndarray:
        """Times as in the table: numbers, or dates to the microsecond.

        Args:
            times: of any shape; with `since` or `span`, one row per trajectory.
        """
        if self.starts:
            times = np.asarray(times, float)
            times = times + np.reshape(self.starts, (-1, *[1] * max(0, times.ndim - 1)))
        if self.origin is None or self.unit is None:
            return times
        step = UNITS[self.unit] / np.timedelta64(1, "us")
        return self.origin + np.round(times * step).astype("timedelta64[us]")

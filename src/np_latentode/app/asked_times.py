"""When each id of a table is forecast: what the options of `np-latentode forecast` ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from np_latentode.data.asked import AskedTimes
from np_latentode.data.checks import check_counts
from np_latentode.data.far import warn_user
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.scaling import SPAN
from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.model import LatentODE

__all__ = ["When", "time_of", "warn_of_long_reach"]

POINTS = 50
"""The number of evenly spaced times, if neither a number nor a step is given."""

MOST_TIMES = 10_000
"""The most times of an id that a step may make."""


@dataclass(frozen=True)
class When:
    """The times that are asked for, in one of four ways: until, ahead, on or at.

    Args:
        until, ahead, points, every, on, at: as in `forecast_table`.

    Raises:
        ValueError: if they say nothing, or contradict each other.
    """

    until: str | None = None
    ahead: float | None = None
    points: int | None = None
    every: float | None = None
    on: Sequence[str] = ()
    at: Path | None = None

    def __post_init__(self) -> None:
        ways = dict(until=self.until, ahead=self.ahead, on=", ".join(self.on) or None, at=self.at)
        given = [f"{name} {came}" for name, came in ways.items() if came is not None]
        if len(given) != 1:
            raise ValueError(
                "until or ahead must be given, or on or at in their place, and not both; got "
                f"{' and '.join(given) or 'none of them'}."
            )
        steps = dict(points=self.points, every=self.every)
        how = [f"{name} {came}" for name, came in steps.items() if came is not None]
        if how and (self.on or self.at):
            raise ValueError(
                "points and every must be left out where on or at name the times; got "
                f"{' and '.join(how)}."
            )
        if len(how) == 2:
            raise ValueError(
                f"points or every must be given, and not both; got {how[0]} and {how[1]}."
            )
        if self.points is not None:
            check_counts(points=self.points)
        for name, length in (("ahead", self.ahead), ("every", self.every)):
            if length is not None and not 0 < length < float("inf"):
                raise ValueError(f"{name} must be positive and finite; got {length}.")

    @property
    def name(self) -> str:
        """The option that says how far forecasts go."""
        if self.on:
            return "on"
        return "at" if self.at else "until" if self.ahead is None else "ahead"

    def times(self, model: LatentODE, context: Trajectories) -> AskedTimes:
        """The times of each trajectory, as they are counted.

        Raises:
            ValueError: naming the option, the rule and what came.
        """
        asked = self._times(model, context)
        ends = np.where(asked.mask, asked.times, -np.inf).max(1)
        warn_of_long_reach(model, context.names, ends, self.name)
        return asked

    def _times(self, model: LatentODE, context: Trajectories) -> AskedTimes:
        names, latest = context.names, model.latest_time
        if self.at is not None:
            return AskedTimes.read(self.at, names, start=model.scaling.t0, end=latest)
        if self.on:
            times = self._dates(model, names)
        else:
            last, end = self._ends(model, context)
            if self.every is not None:
                return _stepped(names, last, end, self.every)
            points = POINTS if self.points is None else self.points
            times = np.linspace(last, end, points + 1, axis=1)[:, 1:]
        return AskedTimes(times, np.ones(times.shape, bool))

    def _ends(self, model: LatentODE, context: Trajectories) -> tuple[np.ndarray, np.ndarray]:
        """The last observed time of each trajectory, and the last to forecast."""
        names = context.names
        observed = np.asarray(context.observed)
        times = np.where(observed, context.given.times, -np.inf)
        # A trajectory without observations is forecast from t0 on.
        last = np.maximum(times.max(1), model.scaling.t0)
        if self.ahead is not None:
            end = last + self.ahead
        else:
            end = np.broadcast_to(time_of("until", str(self.until), names), last.shape)
        if late := np.flatnonzero(last >= end).tolist():
            self._refuse_late(names, last, late)
        _check_within_reach(model, names, end, self.name, self.until or self.ahead)
        return last, end

    def _refuse_late(self, names: Labels, last: np.ndarray, late: list[int]) -> None:
        one = names.select(late[:1])
        when = shown_time(one.calendar(last[late[:1]])[0])
        if self.ahead is not None:
            raise ValueError(
                f"ahead must be long enough to change a time; got {self.ahead}, and {names.id} "
                f"{one.ids[0]} was last observed at {when}."
            )
        raise ValueError(
            f"until must be later than what is known; got {self.until}, and {len(late)} of "
            f"{len(last)} were observed then or later, {names.id} {one.ids[0]} at "
            f"{when}. Give ahead instead."
        )

    def _dates(self, model: LatentODE, names: Labels) -> Float[np.ndarray, "trajectory time"]:
        """The times of `on`, in their order, the same of the calendar for all trajectories."""
        texts = [text.strip() for several in self.on for text in several.split(",")]
        each = [np.broadcast_to(time_of("on", text, names), len(names.ids)) for text in texts]
        start = model.scaling.t0
        for text, times in zip(texts, each, strict=True):
            # A difference of dates may be rounded in its last bits.
            if early := np.flatnonzero(times < start - 1e-9 * max(1.0, abs(start))).tolist():
                one = names.select(early[:1])
                begins = shown_time(one.calendar(np.array([start]))[0])
                what = (
                    "times of the table fitted" if names.span is None else "last window of each id"
                )
                raise ValueError(
                    f"on must not be before the {what}; got {text}, and {begins} is the earliest "
                    f"time of {names.id} {one.ids[0]}."
                )
            _check_within_reach(model, names, times, "on", text)
        return np.unique(np.stack(each, axis=1), axis=1)


def _stepped(names: Labels, last: np.ndarray, end: np.ndarray, every: float) -> AskedTimes:
    """The times at a distance of `every`, from each last one up to each end."""
    # Rounded, so that the end itself counts where the step fits.
    steps = np.floor((end - last) / every + 1e-9)
    if steps.max() > MOST_TIMES:
        raise ValueError(
            f"every must make at most {MOST_TIMES} times of each {names.id}; got {every}, which "
            f"makes {steps.max():.0f} of {names.ids[int(steps.argmax())]}."
        )
    counts = steps.astype(int)
    none = np.flatnonzero(counts == 0).tolist()
    if len(none) == len(counts):
        raise ValueError(
            f"every must be no longer than the forecast; got {every}, and {names.id} "
            f"{names.ids[none[0]]} is forecast for {end[none[0]] - last[none[0]]:g}."
        )
    if none:
        warn_user(
            f"{len(none)} of {len(counts)} are not forecast, {names.id} {names.ids[none[0]]} for "
            f"one: their last measurements are less than {every:g} before the end."
        )
    return AskedTimes.of(
        [t + every * np.arange(1, n + 1) for t, n in zip(last, counts, strict=True)]
    )


def _check_within_reach(
    model: LatentODE, names: Labels, end: np.ndarray, argument: str, came: Any
) -> None:
    latest = model.latest_time
    if late := np.flatnonzero(end > latest).tolist():
        one = names.select(late[:1])
        when = shown_time(one.calendar(np.array([latest]))[0])
        raise ValueError(
            f"{argument} must not lead further than the solver reaches; got {came}, which is too "
            f"far for {len(late)} of {len(end)}, {names.id} {one.ids[0]} after {when} for one."
        )


def warn_of_long_reach(
    model: LatentODE, names: Labels, ends: Float[np.ndarray, " trajectory"], argument: str
) -> None:
    """Warns of times that lie more than half the length of the training data beyond its end."""
    scaling = model.scaling
    length = SPAN * scaling.time_unit
    last = scaling.t0 + length
    if far := np.flatnonzero(ends > last + length / 2).tolist():
        one = names.select(far[:1])
        at, end = map(shown_time, one.calendar(np.array([[ends[far[0]], last]]))[0])
        warn_user(
            f"{argument} leads far beyond the table fitted for {len(far)} of {len(ends)}, for "
            f"{names.id} {one.ids[0]} to {at}, where training ended at {end}: nothing has checked "
            "forecasts so far ahead."
        )


def time_of(argument: str, text: str, labels: Labels) -> np.ndarray:
    """The time in the table's clock as one for all trajectories, or one for each."""
    try:
        time = labels.counted(text) if labels.unit else labels.from_starts(np.asarray(float(text)))
    except ValueError as error:
        date = "2020-01-31T12:00Z" if labels.zone else "2020-01-31"
        kind = f"a date such as {date}" if labels.unit else "a number"
        raise ValueError(
            f"{argument} must be {kind}, as {labels.time!r} is; got {text!r}."
        ) from error
    if not np.isfinite(time).all():
        raise ValueError(f"{argument} must be finite; got {text!r}.")
    return time

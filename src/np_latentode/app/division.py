"""The division of a table's ids: those to train on, and those that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from np_latentode.app.held_out import QUANTILES
from np_latentode.data.entries import reads_otherwise
from np_latentode.data.labels import Labels
from np_latentode.data.scaling import first_time
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.tidy import forecast_columns
from np_latentode.data.trajectories import Trajectories

__all__ = ["Parts", "check_columns", "divide", "in_memory"]

FEWEST_TRAINED = 6
FEWEST_HELD_OUT = 2
"""The fewest trajectories to train on and, if any, to hold out: less say nothing of others."""

MOST_HELD_OUT = 2_000
"""The most trajectories of a table on disk that are held out: memory holds them."""

SAMPLE = 2_000
"""The trajectories of a table on disk that are described, and that baselines get."""


class Parts(NamedTuple):
    """The trajectories of a table, by what they are for."""

    train: Trajectories | StoredTrajectories
    test: Trajectories | None
    """Those that are held out."""
    t0: float
    """The earliest time of all observations and events that is not far outside."""

    def __str__(self) -> str:
        held_out = 0 if self.test is None else len(self.test)
        what = " windows" if self.train.names.span is not None else ""
        return f"{len(self.train)}{what} for training, {held_out}{what} held out"

    def cut(self, span: float) -> Parts:
        """The same, cut into windows: every half span to train on, and every span held out."""
        assert isinstance(self.train, Trajectories), "Tables on disk are not cut."
        test = None if self.test is None else self.test.windows(span, span)
        return Parts(self.train.windows(span, span / 2), test, 0.0)


def in_memory(trajectories: Trajectories | StoredTrajectories) -> Trajectories:
    """All of them, or random ones of those on disk."""
    return trajectories if isinstance(trajectories, Trajectories) else trajectories.sample(SAMPLE)


def divide(trajectories: Trajectories | StoredTrajectories, holdout: float, seed: int) -> Parts:
    """A random partition; to be forecast, a trajectory must be observed at two times or more.

    Raises:
        ValueError: if there are too few such trajectories.
    """
    stored = isinstance(trajectories, StoredTrajectories)
    order = np.random.default_rng(seed).permutation(len(trajectories))
    able = order[trajectories.lengths[order] > 1]
    num_test = max(FEWEST_HELD_OUT, round(holdout * len(trajectories))) if holdout else 0
    num_test = min(num_test, MOST_HELD_OUT) if stored else num_test
    needed = num_test + FEWEST_TRAINED
    if len(able) < needed:
        raise ValueError(
            f"data must hold {needed} ids or more that were observed at two times or more: "
            f"{FEWEST_TRAINED} to train on, and {num_test} to hold out; got {len(able)} of "
            f"{len(trajectories)}."
        )
    test = np.sort(able[:num_test])
    held_out = trajectories[test] if num_test else None
    # No trajectory may be earlier than t0, whichever are trained on.
    if stored:
        _check_ids(trajectories.names.id, () if held_out is None else held_out.names.ids)
        return Parts(trajectories.without(test), held_out, trajectories.moments().begin)
    train = np.setdiff1d(np.arange(len(trajectories)), test)
    return Parts(trajectories[train], held_out, first_time(trajectories))


def check_columns(trajectories: Trajectories | StoredTrajectories) -> None:
    """Refuses columns without a value, and names that heldout.csv could not hold."""
    names = trajectories.names
    if isinstance(trajectories, StoredTrajectories):
        never = np.isnan(trajectories.moments().loc)
    else:
        never = ~np.asarray(trajectories.mask).any((0, 1))
        _check_ids(names.id, names.ids)
    _check_names(names, never)


def _check_names(names: Labels, never: np.ndarray) -> None:
    if missing := [name for name, no in zip(names.features, never, strict=True) if no]:
        raise ValueError(
            f"data must hold a value of every column of values; got none of {missing}."
        )
    own = {"observed", *forecast_columns(QUANTILES)}
    if taken := own & {names.id, names.time}:
        raise ValueError(f"id and time must not be called {', '.join(sorted(own))}; got {taken}.")
    if strange := [name for name in names.features if reads_otherwise(name)]:
        raise ValueError(
            "values must have names that can be written to a CSV file, without blanks around them, "
            f"and not the word for a missing entry; got {strange[0]!r}."
        )


def _check_ids(column: str, ids: Sequence[Any]) -> None:
    if strange := [i for i in ids if isinstance(i, str) and reads_otherwise(i)]:
        raise ValueError(
            f"column {column!r} must hold ids that can be written to a CSV file, without blanks "
            f"around them, and not the word for a missing one; got {strange[0]!r}."
        )

"""Numbers far outside: where most of them lie, and warnings of those that do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from np_latentode.data.problems import Problems

__all__ = [
    "usual",
    "usual_range",
    "usual_times",
    "warn_of_far_rows",
    "warn_user",
    "without_far_times",
]

FAR = 10.0
"""A number is far outside if it is this many times the range of 90% of the numbers beyond it."""
FEWEST = 20
"""With fewer numbers, one alone decides where 90% of them lie."""
SHOWN = 5
"""The number of rows that a warning names."""


def usual(numbers: np.ndarray) -> np.ndarray:
    """True for the numbers that are not far outside of the others."""
    low, high = usual_range(numbers)
    return (low <= numbers) & (numbers <= high)


def usual_range(numbers: np.ndarray) -> tuple[float, float]:
    """Where numbers lie that are not far outside of these.

    With q the quantiles: q05 - FAR (q95 - q05) <= number <= q95 + FAR (q95 - q05).
    """
    if len(numbers) < FEWEST:
        return -np.inf, np.inf
    # Of the numbers themselves: between two of them, a rare one would seem far outside.
    low = np.quantile(numbers, 0.05, method="lower")
    high = np.quantile(numbers, 0.95, method="higher")
    reach = FAR * (high - low) if high > low else np.inf
    return low - reach, high + reach


def usual_times(observed: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True for the times of observations, and of events, that are not far outside of all."""
    near = usual(np.concatenate([observed, given]))
    return near[: len(observed)], near[len(observed) :]


def warn_of_far_rows(
    column: str,
    numbers: np.ndarray,
    shown: Callable[[int], Any],
    problems: Problems,
    consequence: str,
) -> None:
    """Warns of the rows of a table that hold a number far outside, by their lines.

    Args:
        column: the name of the column.
        numbers: its numbers; NaN where there is none.
        shown: the entry of a row, as the table has it.
        problems: knows the name of the table and the numbers of its rows.
        consequence: what becomes of these rows; the end of the sentence.
    """
    known = np.flatnonzero(np.isfinite(numbers))
    near = usual(numbers[known])
    far = known[~near].tolist()
    if not far:
        return
    kept = known[near]
    low, high = (shown(int(kept[k(numbers[kept])])) for k in (np.argmin, np.argmax))
    called = problems.called.get(column, repr(column))
    entries = [f"{shown(row)} in {problems.noun} {problems.number(row)}" for row in far[:SHOWN]]
    more = f" and {len(far) - SHOWN} more" if len(far) > SHOWN else ""
    name = f"{problems.name}: " if problems.name else ""
    warn_user(
        f"{name}column {called} holds {', '.join(entries)}{more}, far from all others, which lie "
        f"between {low} and {high}; {consequence}."
    )


def without_far_times(trajectories: Any) -> Any:
    """Trajectories without observations and events far outside; reading has warned of them."""
    times, observed = trajectories.given.times, np.asarray(trajectories.observed)
    inputs, far = trajectories.inputs, np.zeros(observed.shape, bool)
    if inputs is None:
        far[observed] = ~usual(times[observed])
    else:
        gone = np.zeros(inputs.giving.shape, bool)
        at = inputs.given_times[inputs.giving]
        near, also = usual_times(times[observed], at)
        far[observed], gone[inputs.giving] = ~near, ~also
        if gone.any():
            trajectories = trajectories.with_inputs(inputs.without_events(gone))
    return trajectories.without(far) if far.any() else trajectories


def warn_user(text: str) -> None:
    """Warns at the line that called this library."""
    warnings.warn(text, skip_file_prefixes=(str(Path(__file__).parents[1]),))

"""What the command `fit` says of the table that it read, before it trains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from np_latentode.app.summaries import aligned
from np_latentode.data.given import table_times, table_values
from np_latentode.data.inputs import EVENT
from np_latentode.data.kinds import BERNOULLI, COUNTS, NUMBERS
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.limits import limit_text
from np_latentode.data.trajectories import Trajectories

__all__ = ["clock", "kinds_said", "samples_said", "trajectories_table", "windows_advised"]

LONG, WINDOW = 150, 60
"""Times per id from which windows are proposed, and those in a window."""

LIMITS = 3
"""The most limits of a column that are named."""


def trajectories_table(trajectories: Trajectories) -> str:
    """What was read: ids, rows, times, and the numbers of each column."""
    names, given = trajectories.names, trajectories.given
    mask = np.asarray(trajectories.mask)
    seen = mask.any(-1)
    first, last = _ends(table_times(given, names)[seen])
    gaps = np.concatenate([np.diff(t[s]) for t, s in zip(given.times, seen, strict=True)])
    gap = f", median gap {np.median(gaps):.3g}{_in_unit(names)}" if gaps.size else ""
    lines = [
        f"read {len(trajectories)} ids and {seen.sum()} rows, from {first} to {last}{gap}; times "
        f"are {clock(names)}"
    ]
    values = table_values(given, names)
    rows: list[Sequence[str]] = [("column", "values", "missing", "lowest", "median", "highest")]
    for j, name in enumerate(names.features):
        x = values[..., j][mask[..., j]]
        about = _shown(np.array([x.min(), np.median(x), x.max()])) if x.size else ["-"] * 3
        rows.append((name, f"{x.size}", f"{1 - x.size / seen.sum():.0%}", *about))
    lines += [*aligned(rows), *_errors_and_limits(trajectories)]
    lines += [*_covariates(trajectories), *_inputs(trajectories)]
    return "\n".join(lines)


def _errors_and_limits(trajectories: Trajectories) -> list[str]:
    """A line for each column with limits, and for each with known standard errors."""
    names, given = trajectories.names, trajectories.given
    mask, limited, lines = np.asarray(trajectories.mask), trajectories.limited, []
    for j, name in enumerate(names.features):
        if given.limits is not None and limited[..., j].any():
            pairs = (x[..., j][limited[..., j]] for x in (given.limits.lower, given.limits.upper))
            texts = Counter(limit_text(*pair) for pair in zip(*pairs, strict=True))
            shown = [text for text, _ in texts.most_common(LIMITS)]
            shown += ["..."] if len(texts) > LIMITS else []
            lines.append(
                f"{name}: {limited[..., j].sum()} of {mask[..., j].sum()} values are limits "
                f"({', '.join(shown)})"
            )
            positive = (table_values(given, names)[..., j][mask[..., j]] > 0).all()
            if positive and name not in names.log:
                lines.append(
                    f"{name}: all values are positive, but forecasts may be negative; with "
                    f"--log {name} they are positive"
                )
    for name, column in names.errors.items():
        j = names.features.index(name)
        sds = np.zeros(0) if given.error is None else given.error[..., j][mask[..., j]]
        if sds.size:
            low, high = _shown(np.array([sds.min(), sds.max()]))
            lines.append(f"{name}: standard errors in {column}, {low} to {high}")
    return lines


def _covariates(trajectories: Trajectories) -> list[str]:
    """A line for each static covariate: its range, or how many ids have each category."""
    static, names, lines = trajectories.given_static, trajectories.names, []
    if static is None:
        return lines
    for c, (name, levels) in enumerate(zip(names.static, names.levels, strict=True)):
        x = static[:, c][known := np.isfinite(static[:, c])]
        about = " to ".join(_shown(np.array([x.min(), x.max()]))) if x.size else "none"
        if levels:
            counts = np.bincount(x.astype(int), minlength=len(levels))
            about = ", ".join(f"{level} {n}" for level, n in zip(levels, counts, strict=True))
        missing = f", missing {np.sum(~known)}" if not known.all() else ""
        lines.append(f"static {name}, by id: {about}{missing}")
    return lines


def _inputs(trajectories: Trajectories) -> list[str]:
    """A line for each input: its kind, its range, and to how many ids it is given."""
    inputs, names = trajectories.inputs, trajectories.names
    if inputs is None:
        return []
    lines = []
    for j, (name, kind) in enumerate(zip(names.inputs, names.kinds, strict=True)):
        x = inputs.given_values[..., j]
        given = ~np.isnan(x) & ((x != 0) | (kind != EVENT))
        about = (
            " to ".join(_shown(np.array([x[given].min(), x[given].max()])))
            if given.any()
            else "none"
        )
        lines.append(
            f"input {name} ({kind}): {about}, in {given.sum()} rows of {given.any(1).sum()} ids"
        )
    return lines


def _shown(numbers: np.ndarray) -> list[str]:
    """Numbers with four digits, or as many as tell them apart."""
    size, spread = np.abs(numbers).max(), np.ptp(numbers)
    digits = 4 if not spread else int(np.clip(np.ceil(np.log10(size / spread)) + 3, 4, 15))
    return [f"{number:.{digits}g}" for number in numbers]


def kinds_said(kinds: Mapping[str, str]) -> str:
    """Which columns are no numbers, and how to say otherwise; nothing, if all are numbers."""
    shown = (BERNOULLI, COUNTS)
    of_kind = {kind: [name for name, one in kinds.items() if one == kind] for kind in shown}
    said = [f"{', '.join(names)} {kind}" for kind, names in of_kind.items() if names]
    if not said:
        return ""
    others = ["all others numbers"] if NUMBERS in kinds.values() else []
    first = next(name for name, kind in kinds.items() if kind != NUMBERS)
    return f"kinds: {'; '.join(said + others)}. To change one: --kind {first}={NUMBERS}"


def _ends(times: np.ndarray) -> tuple[str, str]:
    return shown_time(times.min()), shown_time(times.max())


def clock(names: Labels) -> str:
    """What times are counted from, in words."""
    unit = {"W": "weeks", "D": "days", "h": "hours", "m": "minutes", "s": "seconds"}
    counted = "numbers" if names.unit is None else unit[names.unit]
    if names.span is not None:
        return f"{counted} since the start of each window of {names.span:g}"
    if names.since == "first":
        return f"{counted} since the first row of each id"
    if names.since is not None:
        return f"{counted} since {names.since!r} of each id"
    if names.origin is None:
        return f"the numbers in {names.time!r}, one clock for all ids"
    day = f"{shown_time(names.origin)}{' UTC' if names.zone else ''}"
    return f"{counted} since {day}, one clock for all ids"


def _in_unit(names: Labels) -> str:
    return "" if names.unit is None else f" {names.unit}"


def windows_advised(trajectories: Trajectories) -> str:
    """A sentence that proposes windows, if half of the trajectories are long; else nothing."""
    counts = trajectories.lengths
    gaps = np.diff(trajectories.given.times, axis=1)[np.asarray(trajectories.observed)[:, 1:]]
    gaps = gaps[gaps > 0]
    if np.median(counts) < LONG or not gaps.size:
        return ""
    span = WINDOW * float(np.median(gaps))
    return (
        f"half of the ids have {np.median(counts):.0f} rows or more. One latent state does not "
        f"carry so many: to forecast far less than their length, --window {span:.3g} trains on "
        f"windows of about {WINDOW} rows, faster and often better"
    )


def samples_said(count: int, num_folds: int, *, start: int, fold: int) -> str:
    """A sentence on what only some of the trajectories decide, if there are many; else nothing.

    Args:
        count: of the trajectories for training.
        num_folds: of these.
        start: the most from which a start is estimated.
        fold: the most that a fold leaves out.
    """
    if num_folds > 1 and count > num_folds * fold:
        judges = f"{num_folds} times {fold} random ones judge what was trained without them"
        start_too = f", and a backbone starts from {start} random ones" if count > start else ""
        return f"of {count} for training, {judges}{start_too}"
    return f"a backbone starts from {start} random ones of {count}" if count > start else ""

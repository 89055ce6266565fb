"""What the command `fit` says: what it read, how good the forecasts are, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from np_latentode.data.given import table_times, table_values
from np_latentode.data.inputs import EVENT
from np_latentode.data.kinds import BERNOULLI, COUNTS, NUMBERS
from np_latentode.data.labels import UNITS, Labels, shown_time
from np_latentode.data.limits import limit_text
from np_latentode.data.trajectories import Trajectories

__all__ = [
    "candidates_table",
    "coverage_table",
    "horizons_table",
    "inference_chosen",
    "kinds_said",
    "samples_said",
    "scores_table",
    "trajectories_table",
    "variance_table",
    "verdicts",
]

OURS = "latent ODE"
"""The name of the fit among the methods."""

COVERED = (0.85, 0.95)
"""The shares within the 90% band that are not remarked upon."""

LONG, WINDOW = 150, 60
"""Times per id from which windows are proposed, and those in a window."""

LIMITS = 3
"""The most limits of a column that are named."""

LEAST_RESIDUAL = 0.01
"""A residual with a smaller share of the variance is not reported."""

DAYS = {
    "years": 365.25,
    "months": 365.25 / 12,
    "days": 1.0,
    "hours": 1 / 24,
    "minutes": 1 / 1_440,
    "seconds": 1 / 86_400,
}
"""The units in which a length of time is said, in days."""


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
    lines += [*_aligned(rows), *_errors_and_limits(trajectories)]
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
    counts = np.asarray(trajectories.observed).sum(1)
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


def candidates_table(metrics: dict[str, Any]) -> str:
    """What was trained, how it forecast what it had not seen, and what counts how much."""
    title = f"trained in {metrics['seconds']:.0f} s"
    rows: list[Sequence[str]] = [(title, "log score", "weight", "latent", "best steps")]
    for name, found in metrics["candidates"].items():
        steps = ", ".join(map(str, found["best_steps"]))
        dim = found["latent_dim"]
        rows.append(
            (name, _cell(found["log_score"]), f"{found['weight']:.2f}", f"{dim or '-'}", steps)
        )
    note = (
        "(Log scores per value, higher is better, of ids that a member was not trained on. By them "
        "the weights in the forecasts were chosen. backbone: starts as a mixed model; network: all "
        "networks. Step 0: training did not improve the start.)"
    )
    return "\n".join([*_aligned(rows), note])


def coverage_table(metrics: dict[str, Any]) -> str:
    """The share of values within the 90% bands, by column and by thirds of the horizon."""
    found = metrics["coverage"]
    columns = [*found["forecast"]["columns"]] if len(metrics["observed_sd"]) > 1 else []
    if found["forecast"]["all"] is None:
        return ""
    rows: list[Sequence[str]] = [("within the 90% bands", "all", *columns, "near", "middle", "far")]
    for name in ("before recalibration", "forecast"):
        if shares := found.get(name):
            each = [shares["all"], *(shares["columns"][c] for c in columns), *shares["thirds"]]
            rows.append((name, *map(_percent, each)))
    notes = [
        "(near, middle, far: thirds of the values by the time since the last one that was known.)"
    ]
    if widths := metrics.get("bands"):
        factors = ", ".join(f"{name} by {width:.2f}" for name, width in widths.items())
        notes.append(f"(recalibration has multiplied the widths of bands: {factors}.)")
    return "\n".join(["", *_aligned(rows), *notes])


def horizons_table(metrics: dict[str, Any]) -> str:
    """CRPS and RMSE by thirds of the horizon, of the fit and of the best baseline."""
    found, methods = metrics["horizons"], metrics["methods"]
    others = {n: s["crps"] for n, s in methods.items() if n != OURS and s["crps"] is not None}
    names = [OURS, *([min(others, key=lambda name: others[name])] if others else [])]
    gaps = ["-" if gap is None else f"{gap:.3g}" for gap in found["longest_gap"]]
    unit = "" if metrics["time_unit"] is None else f" ({metrics['time_unit']})"
    rows: list[Sequence[str]] = [("by the time since the last value", "near", "middle", "far")]
    rows.append((f"up to{unit}", *gaps))
    rows += [
        (f"{name}, {key}", *map(_cell, found["methods"][name][key]))
        for key in ("crps", "rmse")
        for name in names
    ]
    return "\n".join(["", *_aligned(rows)])


def inference_chosen(found: dict[str, Any]) -> str:
    """Which inference forecasts use, and why."""
    means = {
        "guide": "the guide alone",
        "sharpened": "sharpened posteriors",
        "exact": "exact posteriors, by NUTS",
    }
    line = f"forecasts use {means[found['name']]}"
    if not (scores := found["log_scores"]):
        return line
    listed = ", ".join(f"{name} {_cell(score)}" for name, score in scores.items())
    return f"{line}; log scores of what was left out, higher is better: {listed}"


def scores_table(metrics: dict[str, Any]) -> str:
    """The scores of each method, over all columns and for each."""
    kinds = _scores_of_kinds(metrics)
    shown = ("rmse", "crps", "coverage_90", *kinds)
    title = f"forecasts of {metrics['held_out']} held out"
    rows: list[Sequence[str]] = [(title, "sd", *shown)]
    methods, columns = metrics["methods"], metrics["observed_sd"]
    for name, scores in methods.items():
        # The scores of a kind are those of a column.
        found = (
            {**scores["columns"][next(iter(columns))], **scores} if len(columns) == 1 else scores
        )
        rows.append((name, "", *(_cell(found.get(key)) for key in shown)))
    for column, sd in columns.items() if len(columns) > 1 else ():
        rows.append((column, _short_or_none(sd), *[""] * len(shown)))
        for name, scores in methods.items():
            of_column = scores["columns"][column]
            rows.append((f"  {name}", "", *(_cell(of_column.get(key)) for key in shown)))
    if len(columns) == 1:
        rows[1] = (rows[1][0], _short_or_none(next(iter(columns.values()))), *rows[1][2:])
    of = "Of the later half of the observed times"
    if origins := metrics.get("origins"):
        of = f"Of forecasts from {len(origins)} origins, all together"
    note = (
        f"({of}. rmse and crps are in standard deviations of the "
        "training data; sd is that of the held-out values, in the units that are modelled.)"
    )
    notes = [note, *(SCORES_OF_KINDS[key] for key in kinds)]
    if limits := metrics.get("limits"):
        listed = ", ".join(f"{count} of {name}" for name, count in limits.items())
        notes.append(f"(rmse, crps and sd leave out values that are limits: {listed}.)")
    return "\n".join([*_aligned(rows), *notes])


SCORES_OF_KINDS = {
    "brier": "(brier: of zeros and ones, the mean of (p - x)^2, with p the forecast, clipped to "
    "[0, 1]. A band of them means nothing.)",
    "log_score": "(log_score: of zeros and ones, and of counts, the mean of -log p. Lower is "
    "better.)",
}
"""What the scores of some columns are."""


def _scores_of_kinds(metrics: dict[str, Any]) -> list[str]:
    """Further scores that some columns have."""
    found = {key for column in metrics["methods"][OURS]["columns"].values() for key in column}
    return [key for key in SCORES_OF_KINDS if key in found]


def verdicts(metrics: dict[str, Any]) -> list[str]:
    """Sentences on what is beaten by a baseline, and on bands that do not hold."""
    methods, said = metrics["methods"], []
    ours = methods[OURS]
    columns: dict[str, dict[str, dict[str, Any]]] = {
        column: {name: scores["columns"][column] for name, scores in methods.items()}
        for column in metrics["observed_sd"]
    }
    beaten = [text for column, scores in columns.items() if (text := _beaten(column, scores))]
    if beaten:
        said.append(
            f"Better than the latent ODE: {'; '.join(beaten)}. Prefer that forecast there, "
            "or try more steps, or the logarithm of a skewed column (--log)."
        )
    for rule, advice in (
        (lambda share: share < COVERED[0], "too narrow; trust them less. More ids may help"),
        (lambda share: share > COVERED[1], "wider than needed. More steps or ids may narrow them"),
    ):
        shares = {column: scores[OURS] for column, scores in columns.items()}
        shares = {"all columns": ours, **shares} if len(shares) > 1 else shares
        found = {name: scores.get("coverage_90") for name, scores in shares.items()}
        off = [
            f"{share:.0%} of {name}"
            for name, share in found.items()
            if share is not None and rule(share)
        ]
        if off:
            counted = metrics["observed_count"].items()
            count = sum(number for name, number in counted if found[name] is not None)
            said.append(
                f"The 90% bands hold {', '.join(off)} ({count} values in all): they are {advice}."
            )
    return said


def variance_table(metrics: dict[str, Any]) -> str:
    """The shares of each column's variance, and for how long a residual is remembered.

    Only of columns that are numbers; nothing, if there is none.
    """
    if not metrics["variance"]:
        return ""
    shown = ("path", "residual", "noise")
    rows: list[Sequence[str]] = [("variance in the model", *shown)]
    said = [""]
    for column, found in metrics["variance"].items():
        rows.append((column, *(_percent(found[name]) for name in shown)))
        said.append(_memory(found, metrics["time_unit"], metrics["settings"]["time"]))
    lines = [f"{line}  {words}".rstrip() for line, words in zip(_aligned(rows), said, strict=True)]
    note = (
        "(At the times of the training data. path: what the ODE explains. residual: deviations "
        "from the path that last for a while. noise: deviations that are new at each time.)"
    )
    kinds = metrics["settings"].get("kind", {})
    if others := [column for column in kinds if column not in metrics["variance"]]:
        note += f"\n({', '.join(others)}: no numbers, so their variance is not split.)"
    return "\n".join([*lines, note])


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _memory(found: dict[str, float | None], unit: str | None, time: str) -> str:
    """For how long a residual is remembered, in words."""
    share, half_life = found["residual"], found["half_life"]
    if share is None:
        return ""
    if share < LEAST_RESIDUAL or half_life is None:
        return "no residual: white noise only"
    return f"half of the residual is gone after {_length(half_life, unit, time)}"


def _length(length: float, unit: str | None, time: str) -> str:
    """A length of time, in the largest unit in which it is 2 or more."""
    if unit is None:
        return f"{_short(length)} (in units of {time!r})"
    days = length * float(UNITS[unit] / np.timedelta64(1, "D"))
    name = next((name for name, size in DAYS.items() if days >= 2 * size), "seconds")
    return f"{_short(days / DAYS[name], digits=2)} {name}"


def _short(number: float, *, digits: int = 3) -> str:
    """A positive number in a few digits, those before the point in full."""
    return f"{number:.{digits}g}" if number < 100 else f"{number:.0f}"


def _beaten(column: str, scores: dict[str, dict[str, Any]]) -> str:
    """What forecasts a column better than the fit, by CRPS or else by RMSE; bits by Brier score."""
    for key in ("brier",) if "brier" in scores[OURS] else ("crps", "rmse"):
        ours = scores[OURS][key]
        others = {n: s[key] for n, s in scores.items() if n != OURS and s[key] is not None}
        if not others:
            continue
        best = min(others, key=lambda name: others[name])
        if ours is None or others[best] < ours:
            return f"{best} for {column} ({key} {others[best]:.3f} against {_cell(ours)})"
    return ""


def _short_or_none(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"


def _cell(number: float | None) -> str:
    return "-" if number is None else f"{number:.3f}"


def _aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """The rows as lines: the first column to the left, the others to the right."""
    rows = [*rows]
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]

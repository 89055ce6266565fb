"""What the command `fit` says of its forecasts: how good they are, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from np_latentode.data.labels import UNITS

__all__ = [
    "aligned",
    "candidates_table",
    "coverage_table",
    "horizons_table",
    "inference_chosen",
    "scores_table",
    "short",
    "variance_table",
    "verdicts",
]

OURS = "latent ODE"
"""The name of the fit among the methods."""

COVERED = (0.85, 0.95)
"""The shares within the 90% band that are not remarked upon."""

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


def candidates_table(metrics: dict[str, Any]) -> str:
    """What was trained, how it forecast what it had not seen, and what counts how much."""
    title = f"trained in {metrics['seconds']:.0f} s"
    rows: list[Sequence[str]] = [(title, "log score", "weight", "latent", "kept", "best steps")]
    for name, found in metrics["candidates"].items():
        steps = ", ".join(map(str, found["best_steps"]))
        dim, kept = found["latent_dim"], f"{found.get('share_kept', 1):.0%}"
        weight = f"{found['weight']:.2f}"
        rows.append((name, _cell(found["log_score"]), weight, f"{dim or '-'}", kept, steps))
    note = (
        "(Log scores per value, higher is better, of ids that a member was not trained on. By them "
        "the weights in the forecasts were chosen. backbone: starts as a mixed model; network: all "
        "networks. Kept: how much of its training, less where the gain may be chance. Step 0: "
        "training did not improve the start.)"
    )
    return "\n".join([*aligned(rows), note])


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
    return "\n".join(["", *aligned(rows), *notes])


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
    return "\n".join(["", *aligned(rows)])


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
    return "\n".join([*aligned(rows), *notes])


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
    lines = [f"{line}  {words}".rstrip() for line, words in zip(aligned(rows), said, strict=True)]
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
        return f"{short(length)} (in units of {time!r})"
    days = length * float(UNITS[unit] / np.timedelta64(1, "D"))
    name = next((name for name, size in DAYS.items() if days >= 2 * size), "seconds")
    return f"{short(days / DAYS[name], digits=2)} {name}"


def short(number: float, *, digits: int = 3) -> str:
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


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
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

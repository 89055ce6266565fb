"""From a fit and a table to forecasts: what `np-latentode forecast` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.app.asked_times import When
from np_latentode.app.outputs import beside, check_new, write_figure
from np_latentode.data.asked import AskedTimes
from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.far import without_far_times
from np_latentode.data.files import check_path, writing_tables
from np_latentode.data.guesses import check_kinds
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.tidy import check_quantiles, tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference
from np_latentode.forecasts.crossing import Crossing, check_crossing_columns
from np_latentode.forecasts.densities import DRAWS_AT_ONCE
from np_latentode.forecasts.prediction import draw_forecast, mean_and_x, warn_of_inputs
from np_latentode.forecasts.signals import with_signal
from np_latentode.forecasts.thresholds import Threshold
from np_latentode.inference.choice import INFERENCES
from np_latentode.programs.ensemble import Ensemble, kinds, shortest_reach, with_solver
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.model import LatentODE
from np_latentode.storage.results import earlier
from np_latentode.storage.saving import load

__all__ = ["crossing_outputs", "forecast_table", "read_known"]

AT_ONCE = 2**23
"""About the most numbers that are drawn at once: ids are forecast so many at a time."""

SHOWN = 4
"""The number of ids in figures."""

DRAWN = ("x_mean", "x", "signal")
"""The draws that figures and tables may need."""


def forecast_table(
    run_dir: Path,
    data: Path,
    output: Path,
    *,
    until: str | None = None,
    ahead: float | None = None,
    plan: Path | None = None,
    points: int | None = None,
    every: float | None = None,
    on: Sequence[str] = (),
    at: Path | None = None,
    thresholds: Sequence[str] = (),
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    draws: int = 500,
    inference: str | None = None,
    seed: int = 0,
    plot: bool = False,
    overwrite: bool = False,
) -> int:
    """Forecasts every trajectory of a table from its known observations, with a fit of `fit_table`.

    Trajectories are forecast some at a time, and their rows written at once: besides the table
    itself, memory holds the draws of so many only. No file is there before all are written.

    Args:
        run_dir: the output_dir of `fit_table`.
        data: a table with the columns of the one fitted; of other trajectories, or the same.
        output: a file in a format of `Trajectories.to_file`: id, time, feature, mean, sd, and the
            quantiles.
        until: the last time to forecast, a number or a date as in the table.
        ahead: instead, how far to forecast beyond each trajectory's last observation; for dates,
            in the unit of the fit.
        plan: a table with rows of inputs that are added, such as future doses; see
            `Trajectories.with_plan`.
        points: the number of times per trajectory, evenly spaced after its last observation.
            Default: 50.
        every: instead, the distance of the times, from the last observation on and up to the end.
        on: instead of an end, the times themselves, as in the table; the same for every trajectory.
        at: instead, a table with the columns of id and time of the one fitted: the times of each
            trajectory; or with that of time alone: those of all.
        thresholds: such as "bili > 2". Their `Crossing`s are written into two more files, whose
            names `crossing_outputs` gives.
        quantiles: between 0 and 1.
        draws: the number of draws from the posterior predictive.
        inference: guide, sharpened or exact, as in `fit_table`. Default: what that has chosen.
        seed: of the draws.
        plot: whether to draw the first four as well, into a .png file of the output's name; and
            the crossings, into one beside it.
        overwrite: whether existing files are replaced.

    Returns:
        The number of forecasts that were written.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(draws=draws)
    check_seed(seed)
    check_quantiles(quantiles)
    when = When(until, ahead, points, every, on, at)
    asked_about = [*dict.fromkeys(map(Threshold.read, thresholds))]
    check_path(output)
    _check_new(output, plot, bool(asked_about), overwrite=overwrite)
    asked = _inference(run_dir, inference)
    fitted = load(run_dir)
    labels = fitted.scaling.labels
    if labels is None:
        raise ValueError(f"run must be a fit of a table; got {run_dir}, whose columns are unknown.")
    for threshold in asked_about:
        threshold.place(check_crossing_columns(labels))
    model = shortest_reach(fitted)
    known = read_known(model, labels, data)
    check_kinds(known, dict(zip(labels.features, kinds(fitted), strict=True)), data=data)
    if plan is not None:
        if not labels.inputs:
            raise ValueError(
                f"plan must be left out, as the fit has no inputs (fit --inputs); got {plan}."
            )
        known = known.with_plan(plan)
        _check_begin(model, known, plan)
    context, times = _asked(when, model, known)
    warn_of_inputs(fitted, context, times.times)
    options: Any = dict(inference=asked, num_samples=draws, draws_at_once=DRAWS_AT_ONCE)
    options |= dict(reading=with_signal if asked_about else mean_and_x)
    made = _drawn(when.name, jax.random.key(seed), fitted, context, times.times, options)
    shown, count = _write(output, made, context, times, asked_about, quantiles)
    if plot:
        _draw(output, shown, context, times.times, asked_about)
    return count


def crossing_outputs(output: Path) -> tuple[Path, Path]:
    """The files of the probabilities of crossings, and of first crossing times."""
    ending = "".join(output.suffixes[-2:] if output.suffix == ".gz" else output.suffixes[-1:])
    return beside(output, f".crossing{ending}"), beside(output, f".first_crossing{ending}")


def _check_new(output: Path, plot: bool, crossings: bool, *, overwrite: bool) -> None:
    """Refuses outputs that exist."""
    tables = crossing_outputs(output) if crossings else ()
    pictures = [beside(output, ".png"), *([beside(output, ".crossing.png")] if crossings else [])]
    check_new((output, *tables, *(pictures if plot else [])), overwrite=overwrite)


def _asked(when: When, model: LatentODE, context: Trajectories) -> tuple[Trajectories, AskedTimes]:
    """The trajectories of which a time is asked, and their times."""
    times = when.times(model, context)
    some = times.mask.any(1)
    return (context, times) if some.all() else (context[np.flatnonzero(some)], times.select(some))


def _without(table: Any, asked: np.ndarray) -> Any:
    """The table without the rows of times that were not asked for."""
    return table if asked.all() else table[asked.ravel()].reset_index(drop=True)


def _write(
    output: Path,
    made: Iterator[tuple[slice, dict[str, Any]]],
    context: Trajectories,
    times: AskedTimes,
    thresholds: Sequence[Threshold],
    quantiles: Sequence[float],
) -> tuple[dict[str, Any], int]:
    """Writes forecasts and crossings of some trajectories at a time.

    Returns:
        The draws of the first trajectories, for figures; and the number of forecasts.
    """
    shown: list[dict[str, Any]] = []
    left, count, features = SHOWN, 0, context.num_features
    with ExitStack() as files:
        # The last one is closed first: the forecasts are there before their crossings are.
        paths = (*(crossing_outputs(output) if thresholds else ()), output)
        dated = context.names.origin is not None
        dates = context.names.calendar(times.times)[times.mask] if dated else None
        *others, add = [files.enter_context(writing_tables(path, dates)) for path in paths]
        for rows, draws in made:
            names, asked = context.names.select(rows), times.select(rows)
            table = tidy_forecast(draws, asked.times, names, quantiles=quantiles)
            table = _without(table, np.repeat(asked.mask, features))
            add(table)
            count += len(table)
            for threshold in thresholds:
                found = Crossing.of(draws, asked.times, threshold, names)
                others[0](_without(found.to_dataframe(), asked.mask))
                others[1](found.first_to_dataframe())
            if left > 0:
                # Copies, as a view would keep all draws.
                shown.append({x: draws[x][:, :left].copy() for x in DRAWN if x in draws})
                left -= len(names.ids)
    return {x: np.concatenate([one[x] for one in shown], axis=1) for x in shown[0]}, count


def _draw(
    output: Path,
    shown: dict[str, Any],
    context: Trajectories,
    times: np.ndarray,
    thresholds: Sequence[Threshold],
) -> None:
    """Draws the first trajectories, and their crossings if thresholds were asked for."""
    from np_latentode.report.fans import plot_forecasts

    first = slice(shown["x"].shape[1])
    context, times = context[first], times[first]
    write_figure(beside(output, ".png"), plot_forecasts(context, shown, times))
    if thresholds:
        from np_latentode.report.crossings import plot_crossings

        found = [Crossing.of(shown, times, one, context.names) for one in thresholds]
        write_figure(beside(output, ".crossing.png"), plot_crossings(found))


def _inference(run_dir: Path, name: str | None) -> Inference:
    """The inference of a name; by default the one that `fit_table` has chosen."""
    if name is None:
        # The fit itself lies in the directory of the run.
        found = (earlier(run_dir) or earlier(run_dir.parent)).get("inference")
        name = found.get("name") if isinstance(found, dict) else "guide"
    if name not in INFERENCES:
        raise ValueError(f"inference must be one of {', '.join(INFERENCES)}; got {name!r}.")
    return INFERENCES[name]


def read_known(model: LatentODE, labels: Labels, data: Path) -> Trajectories:
    """The table's trajectories, read as those of the table fitted."""
    columns: dict[str, Any] = dict(
        id=labels.id, time=labels.time, values=labels.features, log=labels.log
    )
    columns |= dict(feature=labels.feature, value=labels.value, since=labels.since)
    columns |= dict(static=dict(zip(labels.static, labels.levels, strict=True)))
    columns |= dict(inputs=dict(zip(labels.inputs, labels.kinds, strict=True)))
    columns |= dict(error=labels.errors)
    try:
        context = Trajectories.from_file(
            data, **columns, origin=labels.origin, unit=labels.unit or "D"
        )
    except ValueError as error:
        if "origin must be left out" not in str(error):
            raise
        raise ValueError(
            f"{data} must hold dates in column {labels.time!r}, as the table fitted; got numbers."
        ) from error
    context = without_far_times(context)
    if labels.span is not None:
        context = context.windows(labels.span)
    _check_known(model, context, labels, data)
    return context


def _drawn(
    name: str,
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: np.ndarray,
    options: dict[str, Any],
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The draws of some trajectories at a time, and which these are.

    Raises:
        ValueError: naming a trajectory whose dynamics diverge.
    """
    count = len(context)
    each = options["num_samples"] * times.shape[1] * context.num_features
    size = min(count, max(1, AT_ONCE // each))
    silent, id = with_solver(fitted, throw=False), context.names.id
    for k, first in enumerate(range(0, count, size)):
        end = min(first + size, count)
        # Some come twice among the last, so that one compiled program fits all.
        rows = np.resize(np.arange(first, end), size)
        key = rng_key if size == count else jax.random.fold_in(rng_key, k)
        part = context[rows]
        draws = draw_forecast(key, silent, part, times[rows], **options)
        finite = np.isfinite(np.asarray(draws["x"])).all((0, 2, 3))[: end - first]
        if not finite.all():
            who = part.names.ids[int(np.argmin(finite))]
            of = f"{count}" if size == count else f"{first + 1} to {end}"
            raise ValueError(
                f"{name} must be where the dynamics are finite; those of {np.sum(~finite)} of "
                f"{of}, {id} {who} for one, diverge before. Forecast less far, or train longer."
            )
        kept = {x: np.asarray(draws[x])[:, : end - first] for x in DRAWN if x in draws}
        yield slice(first, end), kept


def _check_known(model: LatentODE, context: Trajectories, labels: Labels, data: Path) -> None:
    if labels.origin is None and context.names.origin is not None:
        raise ValueError(
            f"{data} must hold numbers in column {labels.time!r}, as the table fitted; got dates."
        )
    if labels.zone != context.names.zone:
        kinds = {True: "dates with a time zone", False: "dates without a time zone"}
        raise ValueError(
            f"{data} must hold {kinds[labels.zone]} in column {labels.time!r}, as the table "
            f"fitted; got {kinds[context.names.zone]}."
        )
    _check_begin(model, context, data)


def _check_begin(model: LatentODE, context: Trajectories, file: Path) -> None:
    """Refuses observations and events of a file before the time of z0."""
    labels, given = context.names, context.inputs
    times = np.where(np.asarray(context.observed), context.given.times, np.inf)
    early, t0 = times.min(1), model.scaling.t0
    # Of a window, what was given before is part of the state at its start.
    if given is not None and labels.span is None:
        at = np.where(given.giving, given.given_times, np.inf)
        early = np.minimum(early, at.min(1))
    if (first := early.min()) < t0:
        one = context.names.select([int(early.argmin())])
        who = one.ids[0]
        start, when = map(shown_time, one.calendar(np.array([[t0, first]]))[0])
        raise ValueError(
            f"{file} must not go back before {start}, where the table fitted begins; got "
            f"{labels.id} {who} at {when}. Remove that row, or fit a table that goes back as far."
        )

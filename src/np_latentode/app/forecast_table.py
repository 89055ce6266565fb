"""From a fit and a table to forecasts: what `np-latentode forecast` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Array

from np_latentode.app.asked_times import When
from np_latentode.app.outputs import beside, check_new, write_figure
from np_latentode.data.asked import AskedTimes
from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.far import without_far_times
from np_latentode.data.files import check_path, write_table
from np_latentode.data.guesses import check_kinds
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.tidy import check_quantiles, tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference
from np_latentode.forecasts.crossing import Crossing, check_crossing_columns
from np_latentode.forecasts.prediction import forecast
from np_latentode.forecasts.signals import signals
from np_latentode.forecasts.thresholds import Threshold
from np_latentode.inference.choice import INFERENCES
from np_latentode.programs.ensemble import Ensemble, kinds, shortest_reach, with_solver
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.model import LatentODE
from np_latentode.storage.results import earlier
from np_latentode.storage.saving import load

__all__ = ["crossing_outputs", "forecast_table", "read_known"]


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
) -> Any:
    """Forecasts every trajectory of a table from its known observations, with a fit of `fit_table`.

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
        The table that was written.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(draws=draws)
    check_seed(seed)
    check_quantiles(quantiles)
    when = When(until, ahead, points, every, on, at)
    asked_about = [*dict.fromkeys(map(Threshold.read, thresholds))]
    picture = beside(output, ".png")
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
    make = signals if asked_about else forecast
    options: Any = dict(inference=asked, num_samples=draws)
    made = _finite(make, when.name, jax.random.key(seed), fitted, context, times.times, options)
    table = tidy_forecast(made, times.times, context.names, quantiles=quantiles)
    table = _without(table, np.repeat(times.mask, len(labels.features)))
    write_table(table, output)
    if plot:
        from np_latentode.report.fans import plot_forecasts

        write_figure(picture, plot_forecasts(context, made, times.times))
    if asked_about:
        found = [Crossing.of(made, times.times, one, context.names) for one in asked_about]
        _write_crossings(output, found, times, plot=plot)
    return table


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


def _write_crossings(
    output: Path, found: Sequence[Crossing], times: AskedTimes, *, plot: bool
) -> None:
    crossings, first = crossing_outputs(output)
    rows = [_without(one.to_dataframe(), times.mask) for one in found]
    write_table(pd.concat(rows, ignore_index=True), crossings)
    rows = [one.first_to_dataframe() for one in found]
    write_table(pd.concat(rows, ignore_index=True), first)
    if plot:
        from np_latentode.report.crossings import plot_crossings

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


def _finite(
    make: Callable[..., dict[str, Any]],
    name: str,
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: np.ndarray,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Draws that `make` makes, or an error that names a trajectory whose dynamics diverge."""
    made = make(rng_key, with_solver(fitted, throw=False), context, times, **options)
    finite = np.isfinite(np.asarray(made["x"])).all((0, 2, 3))
    if not finite.all():
        who = context.names.ids[int(np.argmin(finite))]
        raise ValueError(
            f"{name} must be where the dynamics are finite; those of {np.sum(~finite)} of "
            f"{len(context)}, {context.names.id} {who} for one, diverge before. Forecast less far, "
            "or train longer."
        )
    return made


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

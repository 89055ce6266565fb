"""From a fit and a table to forecasts: what `np-latentode forecast` does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.atomic import write_bytes
from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.far import without_far_times
from np_latentode.data.files import check_path, write_table
from np_latentode.data.labels import Labels, shown_time
from np_latentode.data.tables import check_quantiles, tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference
from np_latentode.forecasts.prediction import forecast
from np_latentode.inference.choice import INFERENCES
from np_latentode.programs.ensemble import Ensemble, shortest_reach, with_solver
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.model import LatentODE
from np_latentode.storage.results import earlier
from np_latentode.storage.saving import load

__all__ = ["forecast_table", "picture_of", "read_known", "time_of"]


def forecast_table(
    run_dir: Path,
    data: Path,
    output: Path,
    *,
    until: str | None = None,
    ahead: float | None = None,
    plan: Path | None = None,
    points: int = 50,
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
        quantiles: between 0 and 1.
        draws: the number of draws from the posterior predictive.
        inference: guide, sharpened or exact, as in `fit_table`. Default: what that has chosen.
        seed: of the draws.
        plot: whether to draw the first four as well, into a .png file of the output's name.
        overwrite: whether existing files are replaced.

    Returns:
        The table that was written.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(points=points, draws=draws)
    check_seed(seed)
    check_quantiles(quantiles)
    _check_end(until, ahead)
    picture = picture_of(output)
    check_path(output)
    for path in (output, *([picture] if plot else [])):
        if path.exists() and not overwrite:
            raise ValueError(f"output must be new; got {path}, which exists (--overwrite).")
    asked = _inference(run_dir, inference)
    fitted = load(run_dir)
    labels = fitted.scaling.labels
    if labels is None:
        raise ValueError(f"run must be a fit of a table; got {run_dir}, whose columns are unknown.")
    model = shortest_reach(fitted)
    context = read_known(model, labels, data)
    if plan is not None:
        context = context.with_plan(plan)
    times = _times_ahead(model, context, labels, until, ahead, points)
    name = "until" if ahead is None else "ahead"
    made = _forecast(jax.random.key(seed), fitted, context, times, draws, name, asked)
    table = tidy_forecast(made, times, context.names, quantiles=quantiles)
    write_table(table, output)
    if plot:
        _draw(picture, context, made, times)
    return table


def picture_of(output: Path) -> Path:
    """The file of the figure that belongs to a table."""
    table = output.with_suffix("" if output.suffix == ".gz" else output.suffix)
    return table.with_suffix(".png")


def _check_end(until: str | None, ahead: float | None) -> None:
    if (until is None) == (ahead is None):
        came = "neither" if until is None else f"{until} and {ahead}"
        raise ValueError(f"until or ahead must be given, and not both; got {came}.")
    if ahead is not None and not 0 < ahead < float("inf"):
        raise ValueError(f"ahead must be positive and finite; got {ahead}.")


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


def _forecast(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: np.ndarray,
    num_samples: int,
    name: str,
    inference: Inference,
) -> dict[str, Any]:
    """Draws, or an error that names a trajectory whose dynamics diverge."""
    options: Any = dict(inference=inference, num_samples=num_samples)
    made = forecast(rng_key, with_solver(fitted, throw=False), context, times, **options)
    finite = np.isfinite(np.asarray(made["x"])).all((0, 2, 3))
    if not finite.all():
        who = context.names.ids[int(np.argmin(finite))]
        raise ValueError(
            f"{name} must be where the dynamics are finite; those of {np.sum(~finite)} of "
            f"{len(context)}, {context.names.id} {who} for one, diverge before. Forecast less far, "
            "or train longer."
        )
    return made


def _draw(path: Path, context: Trajectories, made: dict[str, Any], times: np.ndarray) -> None:
    from np_latentode.report.fans import plot_forecasts

    image = io.BytesIO()
    plot_forecasts(context, made, times).savefig(image, format="png")
    write_bytes(path, image.getvalue())


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
    times = np.where(np.asarray(context.observed), context.given.times, np.inf)
    early, t0 = times.min(1), model.scaling.t0
    if (first := early.min()) < t0:
        one = context.names.select([int(early.argmin())])
        who = one.ids[0]
        start, when = map(shown_time, one.calendar(np.array([[t0, first]]))[0])
        raise ValueError(
            f"{data} must not go back before {start}, where the table fitted begins; got "
            f"{labels.id} {who} at {when}. Remove that row, or fit a table that goes back as far."
        )


def _times_ahead(
    model: LatentODE,
    context: Trajectories,
    labels: Labels,
    until: str | None,
    ahead: float | None,
    points: int,
) -> Float[np.ndarray, "trajectory time"]:
    observed = np.asarray(context.observed)
    times = np.where(observed, context.given.times, -np.inf)
    # A trajectory without observations is forecast from t0 on.
    last = np.maximum(times.max(1), model.scaling.t0)
    names = context.names
    end = last + ahead if ahead is not None else np.broadcast_to(time_of(until, names), last.shape)
    if late := np.flatnonzero(last >= end).tolist():
        one = names.select(late[:1])
        when = shown_time(one.calendar(last[late[:1]])[0])
        if ahead is not None:
            raise ValueError(
                f"ahead must be long enough to change a time; got {ahead}, and {labels.id} "
                f"{one.ids[0]} was last observed at {when}."
            )
        raise ValueError(
            f"until must be later than what is known; got {until}, and {len(late)} of {len(last)} "
            f"were observed then or later, {labels.id} {one.ids[0]} at "
            f"{when}. Give ahead instead."
        )
    _check_within_reach(model, names, end, "until" if ahead is None else "ahead", until or ahead)
    return np.linspace(last, end, points + 1, axis=1)[:, 1:]


def _check_within_reach(
    model: LatentODE, names: Labels, end: np.ndarray, argument: str, came: Any
) -> None:
    latest = model.scaling.t0 + model.solver.reach * model.scaling.time_unit
    if late := np.flatnonzero(end > latest).tolist():
        one = names.select(late[:1])
        when = shown_time(one.calendar(np.array([latest]))[0])
        raise ValueError(
            f"{argument} must not lead further than the solver reaches; got {came}, which is too "
            f"far for {len(late)} of {len(end)}, {names.id} {one.ids[0]} after {when} for one."
        )


def time_of(until: str | None, labels: Labels) -> np.ndarray:
    """The time in the table's clock as one for all trajectories, or one for each."""
    try:
        if labels.unit:
            time = labels.counted(until)
        else:
            time = labels.from_starts(np.asarray(float(str(until))))
    except ValueError as error:
        date = "2020-01-31T12:00Z" if labels.zone else "2020-01-31"
        kind = f"a date such as {date}" if labels.unit else "a number"
        raise ValueError(f"until must be {kind}, as {labels.time!r} is; got {until!r}.") from error
    if not np.isfinite(time).all():
        raise ValueError(f"until must be finite; got {until!r}.")
    return time

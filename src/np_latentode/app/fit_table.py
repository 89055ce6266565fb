"""From a table to a forecast: what `np-latentode fit` and `np-latentode forecast` do."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from np_latentode.data.atomic import write_bytes
from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.csv_files import reads_otherwise
from np_latentode.data.files import check_path, write_table
from np_latentode.data.labels import Labels
from np_latentode.data.scaling import Scaling
from np_latentode.data.tables import forecast_columns, tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.calibration import calibration
from np_latentode.forecasts.prediction import forecast, observed_times
from np_latentode.forecasts.scores import score_forecast, score_levels
from np_latentode.programs.assemble import latent_ode
from np_latentode.programs.model import LatentODE
from np_latentode.storage.results import MARKER, check_output_dir, result_dir
from np_latentode.storage.saving import load, save
from np_latentode.training.fit import fit

__all__ = ["fit_table", "forecast_table"]

VALIDATION = 0.15
"""The share of the trajectories that are not held out by which to choose the number of steps."""

FIT = "fit"
"""Where in a run's directory the fit is."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def fit_table(
    data: Path,
    output_dir: Path,
    *,
    id: str,
    time: str,
    values: Sequence[str],
    log: Sequence[str] = (),
    unit: str = "D",
    holdout: float = 0.2,
    latent_dim: int = 4,
    steps: int = 5_000,
    patience: int = 1_000,
    batch_size: int = 50,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fits a table, scores forecasts of trajectories held out, and keeps the fit.

    Some trajectories are held out for the scores, and some of the others for validation: of both,
    the later half of the observed times is forecast from the first. An interrupted fit goes on
    where the same arguments are given again, and one that is finished is not done again.

    Args:
        data: a .csv, .parquet or .nc file.
        output_dir: where the fit, metrics.json, heldout.csv and figures go; while it is not
            finished, its checkpoints are in a directory beside it.
        id, time, values, log, unit: as in `Trajectories.from_dataframe`.
        holdout: the share of the trajectories to score forecasts of; 0 for none.
        latent_dim: of the model.
        steps, patience, batch_size: of `fit`.
        seed: of the networks, of training, and of who is held out.
        overwrite: whether other results in output_dir are replaced.
        progress: whether to show progress and print the scores.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(latent_dim=latent_dim, steps=steps, patience=patience, batch_size=batch_size)
    _check_seed(seed)
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share of the trajectories, below 1; got {holdout}.")
    trajectories = Trajectories.from_file(data, id=id, time=time, values=values, log=log, unit=unit)
    settings = {
        "data": hashlib.sha256(data.read_bytes()).hexdigest(),
        "id": id,
        "time": time,
        "values": list(values),
        "log": list(log),
        "unit": unit,
        "holdout": holdout,
        "latent_dim": latent_dim,
        "steps": steps,
        "patience": patience,
        "batch_size": batch_size,
        "seed": seed,
    }
    # One for each training, so that they cannot be taken for one another.
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    checkpoints = output_dir.parent / f".{output_dir.name}-training-{name}"
    if (done := _finished(output_dir)) and done["settings"] == settings:
        shutil.rmtree(checkpoints, ignore_errors=True)
        if progress:
            print(f"{output_dir} holds this very fit, finished. {_summary(done)}")
        return done
    check_output_dir(output_dir, overwrite=overwrite)
    _check_names(trajectories)
    train, validation, test = _divide(trajectories, holdout, seed)
    if progress:
        count = f"{len(train)} to train on, {len(validation)} to validate by"
        print(f"{data}: {trajectories}: {count}, {0 if test is None else len(test)} held out")
    # Nobody may be earlier than t0, whoever is trained on.
    t0 = float(np.asarray(trajectories.times)[np.asarray(trajectories.observed)].min())
    model, guide = latent_ode(
        train, latent_dim=latent_dim, scaling=Scaling.fit(train, t0=t0), rngs=nnx.Rngs(seed)
    )
    fit_key, score_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    if progress and checkpoints.exists():
        print(f"going on from {checkpoints}")
    fitted = fit(
        fit_key,
        model,
        guide,
        train,
        validation,
        num_steps=steps,
        patience=patience,
        batch_size=min(batch_size, len(train)),
        conditioning=MOSTLY_PARTS,
        checkpoint_dir=checkpoints,
        progress=progress,
    )
    trained = (model, guide, fitted.params)
    # Where the dynamics diverge for one, the others' scores are to be had all the same.
    model = model.with_solver(throw=False)
    metrics: dict[str, Any] = {
        "settings": settings,
        "trained_on": len(train),
        "validated_by": len(validation),
        "steps_taken": len(fitted.history.losses),
        "best_step": fitted.history.best_step,
        "validation": _finite(fitted.history.validation.min()),
        "seconds": float(fitted.history.seconds[-1]),
    }
    # Imported after training, which should not wait for matplotlib.
    from np_latentode.report import plots

    figures = {
        "training": plots.plot_training(
            fitted.history.losses, num_trajectories=len(train), history=fitted.history
        )
    }
    table = None
    if test is not None:
        context, target = test.split()
        found = calibration(score_key, model, guide, fitted.params, context, target)
        at = observed_times(model, target)
        draws = forecast(draw_key, model, guide, fitted.params, context, at, num_samples=500)
        metrics["held_out"] = len(test)
        # In standard deviations of each feature in the training data, as it is modelled.
        scale = model.scaling.scale
        methods = {"latent ODE": score_forecast(target, scale, draws, found)}
        methods |= score_levels(train, context, target, scale)
        metrics["methods"] = {
            name: {key: _finite(number) for key, number in scores.items()}
            for name, scores in methods.items()
        }
        table = _compared(draws, at, target)
        times = jnp.linspace(t0, float(target.times.max()), 100)
        most = np.argsort(-np.asarray(target.observed).sum(1), kind="stable")[:4]
        some = forecast(draw_key, model, guide, fitted.params, context[most], times)
        figures["forecasts"] = plots.plot_forecasts(context[most], some, times, target=target[most])
        figures["calibration"] = plots.plot_calibration(found)
    with result_dir(output_dir, overwrite=overwrite) as directory:
        save(directory / FIT, *trained)
        if table is not None:
            write_table(table, directory / "heldout.csv")
        for figure_name, figure in figures.items():
            figure.savefig(directory / f"{figure_name}.png")
        (directory / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")
    shutil.rmtree(checkpoints, ignore_errors=True)
    if progress:
        print(f"{_summary(metrics)}\nresults in {output_dir}")
    return metrics


def forecast_table(
    run_dir: Path,
    data: Path,
    output: Path,
    *,
    until: str | None = None,
    ahead: float | None = None,
    points: int = 50,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    draws: int = 500,
    seed: int = 0,
    plot: bool = False,
    overwrite: bool = False,
) -> Any:
    """Forecasts every trajectory of a table from what is known of it, with a fit of `fit_table`.

    Args:
        run_dir: the output_dir of `fit_table`.
        data: a table with the columns that were fitted; other trajectories, or the same.
        output: a .csv, .parquet or .nc file: id, time, feature, mean, sd, and the quantiles.
        until: the last time to forecast, a number or a date as the table has them.
        ahead: how far to forecast beyond each trajectory's last observation, instead; dates are
            counted in the unit of the fit.
        points: how many times for each trajectory, evenly spaced after its last observation.
        quantiles: between 0 and 1.
        draws: from the posterior predictive.
        seed: of the draws.
        plot: whether to draw the first four as well, into a .png file of the output's name.
        overwrite: whether a file that is there is replaced.

    Returns:
        The table that was written.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(points=points, draws=draws)
    _check_seed(seed)
    if (until is None) == (ahead is None):
        came = "neither" if until is None else f"{until} and {ahead}"
        raise ValueError(f"until or ahead must be given, and not both; got {came}.")
    if ahead is not None and not 0 < ahead < float("inf"):
        raise ValueError(f"ahead must be positive and finite; got {ahead}.")
    picture = output.with_suffix(".png")
    check_path(output)
    for path in (output, *([picture] if plot else [])):
        if path.exists() and not overwrite:
            raise ValueError(f"output must be new; got {path}, which exists (--overwrite).")
    model, guide, params = load(run_dir / FIT)
    labels = model.scaling.labels
    if labels is None:
        raise ValueError(f"run must be a fit of a table; got {run_dir}, whose columns are unknown.")
    columns: dict[str, Any] = dict(
        id=labels.id, time=labels.time, values=labels.features, log=labels.log
    )
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
    _check_known(model, context, labels, data)
    times = _times_ahead(model, context, labels, until, ahead, points)
    # So that who diverges can be named.
    model = model.with_solver(throw=False)
    made = forecast(jax.random.key(seed), model, guide, params, context, times, num_samples=draws)
    finite = np.isfinite(np.asarray(made["x"])).all((0, 2, 3))
    if not finite.all():
        who = context.names.ids[int(np.argmin(finite))]
        raise ValueError(
            f"until must be where the dynamics are finite; those of {np.sum(~finite)} of "
            f"{len(context)}, {labels.id} {who} for one, diverge before. Forecast less far, or "
            "train longer."
        )
    table = tidy_forecast(made, times, context.names, quantiles=quantiles)
    write_table(table, output)
    if plot:
        from np_latentode.report import plots

        image = io.BytesIO()
        plots.plot_forecasts(context, made, times).savefig(image, format="png")
        write_bytes(picture, image.getvalue())
    return table


def _divide(
    trajectories: Trajectories, holdout: float, seed: int
) -> tuple[Trajectories, Trajectories, Trajectories | None]:
    """At random, but that only what was observed twice can be forecast."""
    times_observed = np.asarray(trajectories.observed).sum(1)
    order = np.random.default_rng(seed).permutation(len(trajectories))
    able = order[times_observed[order] > 1]
    num_test = max(1, round(holdout * len(trajectories))) if holdout else 0
    num_validation = max(1, round(VALIDATION * (len(trajectories) - num_test)))
    if len(able) <= num_test + num_validation:
        raise ValueError(
            f"data must hold more than {num_test + num_validation} trajectories that were observed "
            f"at two times or more, {num_test} to hold out and {num_validation} to validate by; "
            f"got {len(able)} of {len(trajectories)}."
        )
    test, validation = np.split(able[: num_test + num_validation], [num_test])
    train = np.setdiff1d(np.arange(len(trajectories)), np.concatenate([test, validation]))
    return (
        trajectories[train],
        trajectories[np.sort(validation)],
        trajectories[np.sort(test)] if num_test else None,
    )


def _compared(draws: dict[str, Array], times: Array, target: Trajectories) -> Any:
    """Forecasts of what was observed, beside it."""
    names = target.names
    table = tidy_forecast(draws, times, names, quantiles=QUANTILES)
    table.insert(3, "observed", names.own_units(np.asarray(target.values)).ravel())
    return table[np.asarray(target.mask).ravel()]


def _check_known(model: LatentODE, context: Trajectories, labels: Labels, data: Path) -> None:
    if labels.origin is None and context.names.origin is not None:
        raise ValueError(
            f"{data} must hold numbers in column {labels.time!r}, as the table fitted; got dates."
        )
    times = np.where(np.asarray(context.observed), np.asarray(context.times), np.inf)
    early = times.min(1)
    t0, time_unit = model.scaling.t0, model.scaling.time_unit
    # The table's times were rounded.
    if (first := early.min()) < t0 - 1e-6 * max(abs(t0), time_unit):
        who = context.names.ids[int(early.argmin())]
        start, when = (labels.calendar(np.array([t]))[0] for t in (t0, first))
        raise ValueError(
            f"{data} must not go back before {start}, where the table fitted begins; got "
            f"{labels.id} {who} at {when}. Fit a table that goes back as far."
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
    times = np.where(observed, np.asarray(context.times, float), -np.inf)
    # Of whom nothing is known, from t0 on.
    last = np.maximum(times.max(1), model.scaling.t0)
    end = last + ahead if ahead is not None else np.full(len(last), _time(until, labels))
    if labels.origin is None:
        # In the precision of the table, in which a number is written as short as it was.
        last, end = (a.astype(context.times.dtype).astype(float) for a in (last, end))
    if late := np.flatnonzero(last >= end).tolist():
        who = context.names.ids[late[0]]
        when = labels.calendar(np.asarray(context.times)[late[0], -1:])[0]
        raise ValueError(
            f"until must be later than what is known; got {until}, and {len(late)} of {len(last)} "
            f"were observed then or later, {labels.id} {who} at {when}. Forecast a time ahead of "
            "each instead."
        )
    times = np.linspace(last, end, points + 1, axis=1)[:, 1:]
    # A date would be off.
    return times if labels.origin is not None else times.astype(context.times.dtype)


def _time(until: str | None, labels: Labels) -> float:
    try:
        time = float(labels.counted(until)) if labels.unit else float(str(until))
    except ValueError as error:
        kind = "a date such as 2020-01-31" if labels.unit else "a number"
        raise ValueError(f"until must be {kind}, as {labels.time!r} is; got {until!r}.") from error
    if not np.isfinite(time):
        raise ValueError(f"until must be finite; got {until!r}.")
    return time


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _check_seed(seed: int) -> None:
    if not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; got {seed!r}.")


def _check_names(trajectories: Trajectories) -> None:
    """Refuses names that heldout.csv could not hold, before there is anything to write there."""
    names = trajectories.names
    own = {"observed", *forecast_columns(QUANTILES)}
    if taken := own & {names.id, names.time}:
        raise ValueError(f"id and time must not be called {', '.join(sorted(own))}; got {taken}.")
    if strange := [i for i in names.ids if isinstance(i, str) and reads_otherwise(i)]:
        raise ValueError(
            f"column {names.id!r} must hold ids that can be written to a CSV file, without blanks "
            f"around them, and not the word for a missing one; got {strange[0]!r}."
        )


def _finished(output_dir: Path) -> dict[str, Any] | None:
    try:
        metrics = json.loads((output_dir / MARKER).read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(metrics, dict) and (output_dir / FIT).is_dir()
    return metrics if whole and "settings" in metrics else None


def _summary(metrics: dict[str, Any]) -> str:
    lines = [
        f"best at step {metrics['best_step']} of {metrics['steps_taken']}, in "
        f"{metrics['seconds']:.0f} s"
    ]
    if "methods" in metrics:
        columns = ("rmse", "crps", "coverage_90")
        title = f"forecasts of {metrics['held_out']} held out"
        lines += ["", f"{title:30s}" + "".join(f"{name:>14s}" for name in columns)]
        for name, scores in metrics["methods"].items():
            known = (scores.get(c) for c in columns)
            cells = (f"{'-':>14s}" if x is None else f"{x:14.3f}" for x in known)
            lines.append(f"{name:30s}" + "".join(cells))
        lines.append("(of the later half of the observed times, in standard deviations)")
    return "\n".join(lines)

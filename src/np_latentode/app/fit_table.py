"""From a table to a fit: what `np-latentode fit` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.csv_files import reads_otherwise
from np_latentode.data.files import write_table
from np_latentode.data.scaling import Scaling
from np_latentode.data.tables import forecast_columns, tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.calibration import calibration
from np_latentode.forecasts.prediction import forecast, forecast_observed
from np_latentode.forecasts.scores import score_forecast, score_levels
from np_latentode.programs.assemble import latent_ode
from np_latentode.programs.fitted import Fitted
from np_latentode.storage.results import MARKER, check_output_dir, result_dir
from np_latentode.storage.saving import save
from np_latentode.training.fit import fit

__all__ = ["FIT", "fit_table"]

VALIDATION = 0.15
"""The share of the trajectories for validation, of those that are not held out."""

FIT = "fit"
"""The name of the fit's directory in the output directory."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def fit_table(
    data: Path,
    output_dir: Path,
    *,
    id: str,
    time: str,
    values: Sequence[str],
    log: Sequence[str] = (),
    unit: str | None = None,
    holdout: float = 0.2,
    latent_dim: int = 4,
    steps: int = 5_000,
    patience: int = 1_000,
    batch_size: int = 50,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fits a table, scores forecasts of held-out trajectories, and saves the fit.

    Some trajectories are held out for the scores, and some of the others for validation. Of each,
    the later half of the observed times is forecast from the first half. The same call goes on with
    a fit that was interrupted, and does not repeat one that is finished.

    Args:
        data: a .csv, .parquet or .nc file.
        output_dir: where the fit, metrics.json, heldout.csv and figures go. Until the fit is
            finished, its checkpoints are in a directory beside it.
        id, time, values, log: as in `Trajectories.from_dataframe`.
        unit: of dates, as there. Default: D.
        holdout: the share of the trajectories to hold out; 0 for none.
        latent_dim: of the model.
        steps, patience, batch_size: of `fit`.
        seed: of the networks, of training, and of the choice of held-out trajectories.
        overwrite: whether other results in output_dir are replaced.
        progress: whether to show progress and print the scores.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    columns: dict[str, Any] = dict(id=id, time=time, values=list(values), log=list(log))
    columns |= dict(unit=unit or "D")
    settings: dict[str, Any] = dict(**columns, holdout=holdout, latent_dim=latent_dim, steps=steps)
    settings |= dict(patience=patience, batch_size=batch_size, seed=seed)
    _check(settings)
    trajectories = Trajectories.from_file(data, **columns)
    settings = {"data": hashlib.sha256(data.read_bytes()).hexdigest(), **settings}
    say = print if progress else _say_nothing
    checkpoints = _checkpoint_dir(output_dir, settings)
    if done := _finished(output_dir, settings):
        _end(checkpoints, say, f"{output_dir} holds this fit already: {_summary(done)}")
        return done
    check_output_dir(output_dir, overwrite=overwrite)
    _check_names(trajectories)
    parts = _divide(trajectories, holdout, seed)
    say(_described(data, trajectories, parts, unit, checkpoints))
    fitted = _fit(parts, settings, checkpoints, progress=progress)
    scores = _score(parts, fitted, seed)
    metrics = {"settings": settings, **_fit_metrics(parts, fitted), **scores.metrics}
    _write(output_dir, fitted, metrics, scores, overwrite=overwrite)
    _end(checkpoints, say, f"{_summary(metrics)}\nresults in {output_dir}")
    return metrics


def _say_nothing(text: str) -> None:
    pass


def _end(checkpoints: Path, say: Callable[[str], None], text: str) -> None:
    shutil.rmtree(checkpoints, ignore_errors=True)
    say(text)


def _described(
    data: Path, trajectories: Trajectories, parts: _Parts, unit: str | None, checkpoints: Path
) -> str:
    lines = [f"{data}: {trajectories}: {parts}"]
    names = trajectories.names
    if unit is not None and names.origin is None:
        lines.append(f"unit {unit} is ignored, as the times in column {names.time!r} are numbers")
    if checkpoints.exists():
        lines.append(f"going on from {checkpoints}")
    return "\n".join(lines)


class _Parts(NamedTuple):
    """The trajectories of a table, by what they are for."""

    train: Trajectories
    validation: Trajectories
    test: Trajectories | None
    """Those that are held out."""
    t0: float
    """The earliest observed time of all."""

    def __str__(self) -> str:
        held_out = 0 if self.test is None else len(self.test)
        return (
            f"{len(self.train)} for training, {len(self.validation)} for validation, "
            f"{held_out} held out"
        )


class _Scores(NamedTuple):
    """Scores, figures and tables of a fit."""

    metrics: dict[str, Any]
    figures: dict[str, Any]
    held_out: Any
    """The table heldout.csv, None if nothing was held out."""


def _check(settings: dict[str, Any]) -> None:
    counts = ("latent_dim", "steps", "patience", "batch_size")
    check_counts(**{name: settings[name] for name in counts})
    check_seed(settings["seed"])
    holdout = settings["holdout"]
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share of the trajectories, below 1; got {holdout}.")


def _checkpoint_dir(output_dir: Path, settings: dict[str, Any]) -> Path:
    """A directory for each training, so that no other one's checkpoints are taken for its own."""
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return output_dir.parent / f".{output_dir.name}-training-{name}"


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


def _divide(trajectories: Trajectories, holdout: float, seed: int) -> _Parts:
    """A random partition; to be forecast, a trajectory must be observed at two times or more."""
    times_observed = np.asarray(trajectories.observed).sum(1)
    order = np.random.default_rng(seed).permutation(len(trajectories))
    able = order[times_observed[order] > 1]
    num_test = max(1, round(holdout * len(trajectories))) if holdout else 0
    num_validation = max(1, round(VALIDATION * (len(trajectories) - num_test)))
    if len(able) <= num_test + num_validation:
        raise ValueError(
            f"data must hold more than {num_test + num_validation} trajectories that were observed "
            f"at two times or more, {num_test} to hold out and {num_validation} for validation; "
            f"got {len(able)} of {len(trajectories)}."
        )
    test, validation = np.split(able[: num_test + num_validation], [num_test])
    train = np.setdiff1d(np.arange(len(trajectories)), np.concatenate([test, validation]))
    # No trajectory may be earlier than t0, whichever are trained on.
    t0 = float(np.asarray(trajectories.times)[np.asarray(trajectories.observed)].min())
    held_out = trajectories[np.sort(test)] if num_test else None
    return _Parts(trajectories[train], trajectories[np.sort(validation)], held_out, t0)


def _fit(parts: _Parts, settings: dict[str, Any], checkpoints: Path, *, progress: bool) -> Fitted:
    train, seed = parts.train, settings["seed"]
    fit_key, _, _ = _keys(seed)
    model, guide = latent_ode(
        train,
        latent_dim=settings["latent_dim"],
        scaling=Scaling.fit(train, t0=parts.t0),
        rngs=nnx.Rngs(seed),
    )
    return fit(
        fit_key,
        model,
        guide,
        train,
        parts.validation,
        num_steps=settings["steps"],
        patience=settings["patience"],
        batch_size=min(settings["batch_size"], len(train)),
        conditioning=MOSTLY_PARTS,
        checkpoint_dir=checkpoints,
        progress=progress,
    )


def _keys(seed: int) -> tuple[Array, Array, Array]:
    """The random keys of the fit, of the scores, and of the draws."""
    fit_key, score_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return fit_key, score_key, draw_key


def _fit_metrics(parts: _Parts, fitted: Fitted) -> dict[str, Any]:
    history = fitted.history
    return {
        "trained_on": len(parts.train),
        "validated_by": len(parts.validation),
        "steps_taken": len(history.losses),
        "best_step": history.best_step,
        "validation": _finite(history.validation.min()),
        "seconds": float(history.seconds[-1]),
    }


def _score(parts: _Parts, fitted: Fitted, seed: int) -> _Scores:
    """Scores, figures and the table of forecasts of those held out."""
    # Imported after training, as training should not wait for matplotlib.
    from np_latentode.report import plots

    history, train = fitted.history, parts.train
    _, score_key, draw_key = _keys(seed)
    training = plots.plot_training(history.losses, num_trajectories=len(train), history=history)
    if parts.test is None:
        return _Scores({}, {"training": training}, None)
    context, target = parts.test.split()
    # If the dynamics diverge for one trajectory, the others' scores are still of use.
    fitted = replace(fitted, model=fitted.model.with_solver(throw=False))
    found = calibration(score_key, fitted, context, target)
    draws = forecast_observed(draw_key, fitted, context, target, num_samples=500)
    # In standard deviations of each feature in the training data, as it is modelled.
    scale = fitted.model.scaling.scale
    methods = {"latent ODE": score_forecast(target, scale, draws, found)}
    methods |= score_levels(train, context, target, scale)
    metrics = {
        "held_out": len(parts.test),
        "methods": {
            name: {key: _finite(number) for key, number in scores.items()}
            for name, scores in methods.items()
        },
    }
    figures = {
        "training": training,
        "forecasts": _forecast_figure(draw_key, fitted, context, target, parts.t0),
        "calibration": plots.plot_calibration(found),
    }
    return _Scores(metrics, figures, _compared(draws["x"], target))


def _forecast_figure(
    rng_key: Array, fitted: Fitted, context: Trajectories, target: Trajectories, t0: float
) -> Any:
    """The four trajectories with the longest forecasts."""
    from np_latentode.report.fans import plot_forecasts

    times = jnp.linspace(t0, float(target.times.max()), 100)
    most = np.argsort(-np.asarray(target.observed).sum(1), kind="stable")[:4]
    draws = forecast(rng_key, fitted, context[most], times)
    return plot_forecasts(context[most], draws, times, target=target[most])


def _compared(draws: np.ndarray, target: Trajectories) -> Any:
    """The observations, each beside its forecast; the draws are at the observed times."""
    observed = np.asarray(target.observed)
    times, values, mask = (
        np.asarray(a)[observed] for a in (target.times, target.values, target.mask)
    )
    # A trajectory of one time for each observed time.
    names = target.names.select(np.nonzero(observed)[0])
    table = tidy_forecast({"x": draws[:, :, None]}, times[:, None], names, quantiles=QUANTILES)
    table.insert(3, "observed", names.own_units(values).ravel())
    return table[mask.ravel()]


def _write(
    output_dir: Path, fitted: Fitted, metrics: dict[str, Any], scores: _Scores, *, overwrite: bool
) -> None:
    with result_dir(output_dir, overwrite=overwrite) as directory:
        save(directory / FIT, fitted)
        if scores.held_out is not None:
            write_table(scores.held_out, directory / "heldout.csv")
        for name, figure in scores.figures.items():
            figure.savefig(directory / f"{name}.png")
        (directory / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _finished(output_dir: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished fit with these settings, if there is one."""
    try:
        metrics = json.loads((output_dir / MARKER).read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(metrics, dict) and (output_dir / FIT).is_dir()
    return metrics if whole and metrics.get("settings") == settings else None


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

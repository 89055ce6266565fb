"""From a table to a fit: what `np-latentode fit` does."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from np_latentode.app.held_out import QUANTILES, finite, score_held_out
from np_latentode.app.summaries import (
    inference_chosen,
    scores_table,
    trajectories_table,
    variance_table,
    verdicts,
)
from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.entries import reads_otherwise
from np_latentode.data.far import warn_user, without_far_times
from np_latentode.data.files import write_table
from np_latentode.data.scaling import Scaling
from np_latentode.data.tables import forecast_columns
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.variance import variance_shares
from np_latentode.inference.choice import INFERENCES, Choice, choose_inference
from np_latentode.parts.likelihoods import GaussianLikelihood
from np_latentode.parts.residuals import OrnsteinUhlenbeckLikelihood
from np_latentode.programs.assemble import latent_ode
from np_latentode.programs.fitted import Fitted
from np_latentode.storage.results import MARKER, check_output_dir, earlier, result_dir
from np_latentode.storage.saving import FIT, save
from np_latentode.training.fit import fit

__all__ = ["fit_table"]

VALIDATION = 0.15
"""The share of the trajectories for validation, of those that are not held out."""

LIKELIHOODS = {"none": GaussianLikelihood, "ou": OrnsteinUhlenbeckLikelihood}
"""The likelihoods by what they assume of the residual."""

AUTO = "auto"
"""The word for the inference that forecasts the validation data best."""

NUM_DRAWS = 500
"""Draws of each inference, by which one is chosen."""

FEWEST_TRAINED = 5
FEWEST_HELD_OUT = 2
"""The fewest trajectories for training and, if any, to hold out: less say nothing of others."""


def fit_table(
    data: Path,
    output_dir: Path,
    *,
    id: str,
    time: str,
    values: Sequence[str] = (),
    feature: str | None = None,
    value: str | None = None,
    log: Sequence[str] = (),
    since: str | None = None,
    unit: str | None = None,
    holdout: float = 0.2,
    residual: str = "ou",
    inference: str = AUTO,
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
        data: a file that `Trajectories.from_file` reads.
        output_dir: where the fit, metrics.json, heldout.csv and figures go. Until the fit is
            finished, its checkpoints are in a directory beside it.
        id, time, values, feature, value, log, since: as in `Trajectories.from_dataframe`.
        unit: of dates, as there. Default: D.
        holdout: the share of the trajectories to hold out; 0 for none.
        residual: what the path of the ODE leaves of a value. ou: an Ornstein-Uhlenbeck process,
            which is remembered for a while, and white noise. none: white noise only.
        inference: how forecasts infer z0 of an id. guide: by the guide alone. sharpened: by
            `sharpen`. exact: by NUTS. auto: guide or sharpened, whichever forecasts the validation
            ids better.
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
    names = dict(id=id, time=time, feature=feature, value=value, since=since)
    columns = _columns(names, values=values, log=log, unit=unit)
    settings = columns | dict(holdout=holdout, residual=residual, inference=inference)
    settings |= dict(
        latent_dim=latent_dim, steps=steps, patience=patience, batch_size=batch_size, seed=seed
    )
    _check(settings)
    trajectories = _read(data, columns)
    settings = {"data": hashlib.sha256(data.read_bytes()).hexdigest(), **settings}
    say, checkpoints = print if progress else _say_nothing, _checkpoint_dir(output_dir, settings)
    if done := _finished(output_dir, settings):
        _end(checkpoints, say, f"{output_dir} holds this fit already: {_summary(done)}")
        return done
    _check_new(output_dir, settings, overwrite=overwrite)
    parts = _divide(trajectories, holdout, seed)
    say(_described(data, trajectories, parts, unit, checkpoints))
    fitted = _fit(parts, settings, checkpoints, progress=progress)
    metrics = _score_and_write(output_dir, parts, fitted, settings, overwrite=overwrite)
    _end(checkpoints, say, f"{_summary(metrics)}\nresults in {output_dir}")
    return metrics


def _columns(
    names: dict[str, str | None], *, values: Sequence[str], log: Sequence[str], unit: str | None
) -> dict[str, Any]:
    """The arguments of `Trajectories.from_file`; those that were not given are left out."""
    given = {name: column for name, column in names.items() if column is not None}
    return {**given, "values": list(values), "log": list(log), "unit": unit or "D"}


def _read(data: Path, columns: dict[str, Any]) -> Trajectories:
    trajectories = without_far_times(Trajectories.from_file(data, **columns))
    _check_columns(trajectories)
    return trajectories


def _score_and_write(
    output_dir: Path, parts: _Parts, fitted: Fitted, settings: dict[str, Any], *, overwrite: bool
) -> dict[str, Any]:
    _, *keys, variance_key = _keys(settings["seed"])
    # If the dynamics diverge for one trajectory, the others' scores are still of use.
    silent = replace(fitted, model=fitted.model.with_solver(throw=False))
    choice = _choose(keys[0], silent, parts.validation, settings["inference"])
    scores = score_held_out(
        (keys[0], keys[1]), silent, parts.train, parts.test, parts.t0, inference=choice.inference
    )
    metrics = {"settings": settings, **_fit_metrics(parts, fitted), **scores.metrics}
    log_scores = {name: finite(score) for name, score in choice.scores.items()}
    metrics["inference"] = {"name": choice.name, "log_scores": log_scores}
    metrics["variance"] = _variance(variance_key, silent, parts.train)
    _write(output_dir, fitted, metrics, scores.held_out, overwrite=overwrite)
    # After the fit is safe, as no figure may cost it.
    _draw(output_dir, scores.figures)
    return metrics


def _choose(rng_key: Array, fitted: Fitted, validation: Trajectories, name: str) -> Choice:
    """The inference of a name; of auto, that which forecasts the validation data best."""
    if name != AUTO:
        return Choice(name, INFERENCES[name], {})
    return choose_inference(rng_key, fitted, *validation.split(), num_samples=NUM_DRAWS)


def _say_nothing(text: str) -> None:
    pass


def _end(checkpoints: Path, say: Callable[[str], None], text: str) -> None:
    shutil.rmtree(checkpoints, ignore_errors=True)
    say(text)


def _described(
    data: Path, trajectories: Trajectories, parts: _Parts, unit: str | None, checkpoints: Path
) -> str:
    lines = [f"{data}: {trajectories_table(trajectories)}", str(parts)]
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


def _check(settings: dict[str, Any]) -> None:
    counts = ("latent_dim", "steps", "patience", "batch_size")
    check_counts(**{name: settings[name] for name in counts})
    check_seed(settings["seed"])
    residual, holdout = settings["residual"], settings["holdout"]
    if (inference := settings["inference"]) not in (AUTO, *INFERENCES):
        known = ", ".join((AUTO, *INFERENCES))
        raise ValueError(f"inference must be one of {known}; got {inference!r}.")
    if residual not in LIKELIHOODS:
        raise ValueError(f"residual must be one of {', '.join(LIKELIHOODS)}; got {residual!r}.")
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share of the trajectories, below 1; got {holdout}.")


def _checkpoint_dir(output_dir: Path, settings: dict[str, Any]) -> Path:
    """A directory for each training, so that no other one's checkpoints are taken for its own."""
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return output_dir.parent / f".{output_dir.name}-training-{name}"


def _check_columns(trajectories: Trajectories) -> None:
    """Refuses columns without a value, and names that heldout.csv could not hold."""
    names = trajectories.names
    never = ~np.asarray(trajectories.mask).any((0, 1))
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
    num_test = max(FEWEST_HELD_OUT, round(holdout * len(trajectories))) if holdout else 0
    num_validation = max(1, round(VALIDATION * (len(trajectories) - num_test)))
    needed = num_test + num_validation + FEWEST_TRAINED
    if len(able) < needed:
        raise ValueError(
            f"data must hold {needed} ids or more that were observed at two times or more: "
            f"{FEWEST_TRAINED} to train on, {num_validation} for validation, and {num_test} to "
            f"hold out; got {len(able)} of {len(trajectories)}."
        )
    test, validation = np.split(able[: num_test + num_validation], [num_test])
    train = np.setdiff1d(np.arange(len(trajectories)), np.concatenate([test, validation]))
    # No trajectory may be earlier than t0, whichever are trained on.
    t0 = float(trajectories.given.times[np.asarray(trajectories.observed)].min())
    held_out = trajectories[np.sort(test)] if num_test else None
    return _Parts(trajectories[train], trajectories[np.sort(validation)], held_out, t0)


def _fit(parts: _Parts, settings: dict[str, Any], checkpoints: Path, *, progress: bool) -> Fitted:
    train, seed = parts.train, settings["seed"]
    fit_key, *_ = _keys(seed)
    model, guide = latent_ode(
        train,
        latent_dim=settings["latent_dim"],
        scaling=Scaling.fit(train, t0=parts.t0),
        likelihood=LIKELIHOODS[settings["residual"]](),
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


def _keys(seed: int) -> tuple[Array, Array, Array, Array]:
    """The random keys of the fit, of the scores, of the draws, and of the variance."""
    fit_key, score_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return fit_key, score_key, draw_key, jax.random.fold_in(draw_key, 1)


def _fit_metrics(parts: _Parts, fitted: Fitted) -> dict[str, Any]:
    history = fitted.history
    return {
        "trained_on": len(parts.train),
        "validated_by": len(parts.validation),
        "steps_taken": len(history.losses),
        "best_step": history.best_step,
        "validation": finite(history.validation.min()),
        "seconds": float(history.seconds[-1]),
        "time_unit": parts.train.names.unit,
    }


def _variance(
    rng_key: Array, fitted: Fitted, train: Trajectories
) -> dict[str, dict[str, float | None]]:
    """The shares of path, residual and noise, and the half-life of the residual, by column."""
    shares = asdict(variance_shares(rng_key, fitted, train))
    return {
        column: {name: finite(numbers[j]) for name, numbers in shares.items()}
        for j, column in enumerate(train.names.features)
    }


def _write(
    output_dir: Path, fitted: Fitted, metrics: dict[str, Any], held_out: Any, *, overwrite: bool
) -> None:
    with result_dir(output_dir, overwrite=overwrite) as directory:
        save(directory / FIT, fitted)
        if held_out is not None:
            write_table(held_out, directory / "heldout.csv")
        (directory / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")


def _draw(output_dir: Path, figures: dict[str, Callable[[], Any]]) -> None:
    """Draws each figure by itself; one that fails is warned of."""
    for name, draw in figures.items():
        try:
            draw().savefig(output_dir / f"{name}.png")
        # matplotlib and ArviZ raise exceptions of many types.
        except Exception as error:
            warn_user(f"The figure {name}.png could not be drawn: {error}.")


def _finished(output_dir: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished fit with these settings, if there is one."""
    metrics = earlier(output_dir)
    same = metrics.get("settings") == settings
    return metrics if same and (output_dir / FIT).is_dir() else None


def _check_new(output_dir: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Checks the output directory; if it holds another fit, the error says what differs."""
    try:
        check_output_dir(output_dir, overwrite=overwrite)
    except ValueError as error:
        past = earlier(output_dir).get("settings")
        if not isinstance(past, dict):
            raise
        every = sorted({*settings, *past})
        differ = [name for name in every if settings.get(name) != past.get(name)]
        if not differ:
            raise
        raise ValueError(f"{error} Its settings differ in {', '.join(differ)}.") from error


def _summary(metrics: dict[str, Any]) -> str:
    steps, taken = metrics["settings"]["steps"], metrics["steps_taken"]
    lines = [f"best at step {metrics['best_step']} of {taken}, in {metrics['seconds']:.0f} s"]
    if taken < steps:
        patience = metrics["settings"]["patience"]
        lines.append(
            f"stopped before {steps} steps, as {patience} steps brought no better validation score"
        )
    lines.append(inference_chosen(metrics["inference"]))
    if "methods" in metrics:
        lines += ["", scores_table(metrics), *verdicts(metrics)]
    lines += ["", variance_table(metrics)]
    return "\n".join(lines)

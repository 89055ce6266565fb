"""From a table to a fit: what `np-latentode fit` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from np_latentode.app.data_summary import (
    kinds_said,
    samples_said,
    trajectories_table,
    windows_advised,
)
from np_latentode.app.division import Parts, divide, in_memory
from np_latentode.app.fit_metrics import training_metrics, variance_metrics
from np_latentode.app.fit_settings import AUTO, LIKELIHOODS, check_settings
from np_latentode.app.held_out import score_held_out
from np_latentode.app.horizons import finite
from np_latentode.app.read_table import columns_of, digest, read_table
from np_latentode.app.runs import check_new, checkpoint_dir, finished, write
from np_latentode.app.summaries import (
    candidates_table,
    coverage_table,
    horizons_table,
    inference_chosen,
    scores_table,
    variance_table,
    verdicts,
)
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.covariates import Names
from np_latentode.data.far import warn_user
from np_latentode.data.guesses import choose_kinds
from np_latentode.data.kinds import BERNOULLI, COUNTS, NUMBERS
from np_latentode.data.scaling import Scaling
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.inference.choice import INFERENCES, Choice, choose_by_folds
from np_latentode.parts.likelihoods import (
    BernoulliLikelihood,
    FeatureLikelihoods,
    Likelihood,
    NegativeBinomialLikelihood,
)
from np_latentode.parts.mixed_model import MOST_ESTIMATED
from np_latentode.programs.assemble import candidates, is_rich, latent_ode
from np_latentode.programs.ensemble import kinds, with_solver
from np_latentode.training.cross_fit import (
    BATCH_SIZE,
    NUM_STEPS,
    PATIENCE,
    CrossFit,
    cross_fit,
)
from np_latentode.training.recalibration import recalibrated
from np_latentode.training.split import most_left_out

__all__ = ["fit_table"]

OF_KINDS = {BERNOULLI: BernoulliLikelihood, COUNTS: NegativeBinomialLikelihood}
"""Those of other columns, by their kind."""

MEMBERS, MEMBERS_OF_MANY = 5, 3
"""Trainings of each candidate, and those where a wide network is one, which takes long to train."""


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
    static: Names = (),
    kind: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
    error: Mapping[str, str] | None = None,
    since: str | None = None,
    unit: str | None = None,
    window: float | None = None,
    on_disk: bool = False,
    holdout: float = 0.2,
    split: int | None = None,
    origins: int = 1,
    residual: str = "ou",
    inference: str = AUTO,
    latent_dim: int | None = None,
    members: int | None = None,
    recalibrate: bool = True,
    steps: int = NUM_STEPS,
    patience: int = PATIENCE,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Fits a table, scores forecasts of held-out trajectories, and saves the fit.

    Some trajectories are held out for the scores. On the others, each candidate is trained several
    times, by `cross_fit`. What a member was not trained on judges it: of each trajectory, the later
    half of the observed times is forecast from the first half. The same call goes on with a fit
    that was interrupted, and does not repeat one that is finished.

    Args:
        data: a file that `Trajectories.from_file` reads.
        output_dir: where the fit, metrics.json, heldout.csv and figures go. Until the fit is
            finished, its checkpoints are in a directory beside it.
        id, time, values, feature, value, log, static, inputs, error, since: as in
            `Trajectories.from_dataframe`.
        kind: bernoulli (0 or 1), counts (negative binomial) or numbers, by the name of the column;
            see `guess_kinds` for those that are not named.
        unit: of dates, as there. Default: D.
        window: for long trajectories, the span of the windows that are trained on and forecast
            from, in the unit of the times; see `Trajectories.windows`. Each half of a window is in
            the next one, too. Default: trajectories are taken whole.
        on_disk: whether the table, in Parquet with the rows of an id one after the other, is left
            on disk; see `StoredTrajectories`. Then inputs, error and window must be left out, 2,000
            trajectories are held out at most, and kinds are guessed from a random 2,000.
        holdout: the share of the trajectories to hold out; 0 for none.
        split: the seed that chooses them, to compare fits on the same ones. Default: `seed`.
        origins: the number K of times from which each of them is forecast: from the share k / (K +
            1) of its observed times, k = 1, ..., K. Scores are those of all these forecasts, and
            metrics.json has those of each origin as well.
        residual: what the path of the ODE leaves of a value. ou: an Ornstein-Uhlenbeck process,
            which is remembered for a while, and white noise. none: white noise only.
        inference: how forecasts infer z0 of an id. guide: by the guide alone. sharpened: by
            `sharpen`, without NUTS at the end. exact: by NUTS. auto: by the guide, where backbones
            weigh most and there are no inputs, errors or limits, as theirs starts at the exact
            posterior; else guide or sharpened, whichever forecasts better what was left out.
        latent_dim: of a network, which is then the only candidate. Default: the `candidates` that
            the data suggest.
        members: of each candidate; each is trained without one part of the ids. Default: 5, or 3
            where a wide network is one: to train on, there are 500 ids with 40,000 values or more.
        recalibrate: whether bands are widened or narrowed, so that they hold what was left out.
        steps, patience, batch_size: of `cross_fit`.
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
    asked: Any = dict(static=static, inputs=inputs or {}, error=error or {})
    columns = columns_of(names, values=values, log=log, unit=unit, **asked)
    settings = columns | dict(window=window, on_disk=on_disk, holdout=holdout)
    settings |= dict(residual=residual, inference=inference)
    settings |= dict(latent_dim=latent_dim, members=members, recalibrate=recalibrate)
    settings |= dict(steps=steps, patience=patience, batch_size=batch_size, seed=seed)
    settings |= dict(origins=origins, split=seed if split is None else split)
    check_settings(settings)
    trajectories = read_table(data, columns, on_disk=on_disk, window=window)
    settings = {"data": digest(data), **settings}
    settings["kind"] = choose_kinds(in_memory(trajectories), kind or {})
    # As they will be read from metrics.json: JSON has no tuples.
    settings = json.loads(json.dumps(settings))
    say, checkpoints = print if progress else _say_nothing, checkpoint_dir(output_dir, settings)
    if done := finished(output_dir, settings):
        _end(checkpoints, say, f"{output_dir} holds this fit already: {_summary(done)}")
        return done
    check_new(output_dir, settings, overwrite=overwrite)
    parts = divide(trajectories, holdout, settings["split"])
    if window is not None:
        parts = parts.cut(window)
    if members is None:
        wide = latent_dim is None and is_rich(in_memory(parts.train))
        members = MEMBERS_OF_MANY if wide else MEMBERS
    say(_described(data, trajectories, parts, settings["kind"], unit, checkpoints, members))
    cross = _fit(parts, settings | {"members": members}, checkpoints, progress=progress)
    metrics = _score_and_write(output_dir, parts, cross, settings, say, overwrite=overwrite)
    _end(checkpoints, say, f"{_summary(metrics)}\nresults in {output_dir}")
    return metrics


def _score_and_write(
    output_dir: Path,
    parts: Parts,
    cross: CrossFit,
    settings: dict[str, Any],
    say: Callable[[str], None],
    *,
    overwrite: bool,
) -> dict[str, Any]:
    _, *keys, variance_key = _keys(settings["seed"])
    say("trained; what each fold left out chooses the inference and the widths of bands ...")
    choice = _choose(keys[0], cross, parts.train, settings["inference"])
    fitted = cross.ensemble
    if settings["recalibrate"]:
        fitted = recalibrated(keys[1], cross, parts.train, inference=choice.inference)
    # If the dynamics diverge for one trajectory, the others' scores are still of use.
    silent = with_solver(fitted, throw=False)
    if parts.test is not None:
        say("scoring forecasts of those held out, beside those of baselines ...")
    options: Any = dict(inference=choice.inference, num_origins=settings["origins"])
    options |= dict(num_trained=len(parts.train))
    some = in_memory(parts.train)
    scores = score_held_out((keys[0], keys[1]), silent, some, parts.test, parts.t0, **options)
    metrics = {"settings": settings, **training_metrics(parts, cross), **scores.metrics}
    log_scores = {name: finite(score) for name, score in choice.scores.items()}
    metrics["inference"] = {"name": choice.name, "log_scores": log_scores}
    metrics["bands"] = None
    if fitted.bands is not None:
        names = parts.train.names.features
        metrics["bands"] = dict(zip(names, fitted.bands.widths.tolist(), strict=True))
    metrics["variance"] = variance_metrics(variance_key, silent, some)
    write(output_dir, fitted, metrics, scores.held_out, overwrite=overwrite)
    say("drawing figures ...")
    # After the fit is safe, as no figure may cost it.
    _draw(output_dir, scores.figures)
    return metrics


def _choose(
    rng_key: Array, cross: CrossFit, train: Trajectories | StoredTrajectories, name: str
) -> Choice:
    """The inference of a name; of auto, that which forecasts best what was left out."""
    if name != AUTO:
        return Choice(name, INFERENCES[name], {})
    best = max(cross.weights, key=lambda candidate: cross.weights[candidate])
    # A mixed model knows nothing of inputs, errors and limits, and takes counts and bits for
    # numbers. Then its exact posterior is not that of the model.
    of_numbers = {*kinds(cross.ensemble)} == {NUMBERS}
    more = (train.inputs, train.error, train.limits)
    if best == "backbone" and of_numbers and all(one is None for one in more):
        return Choice("guide", INFERENCES["guide"], {})
    folds = [(cross.of(best)[k], *train[rows].split()) for k, rows in enumerate(cross.left_out)]
    return choose_by_folds(rng_key, folds)


def _say_nothing(text: str) -> None:
    pass


def _end(checkpoints: Path, say: Callable[[str], None], text: str) -> None:
    shutil.rmtree(checkpoints, ignore_errors=True)
    say(text)


def _described(
    data: Path,
    trajectories: Trajectories | StoredTrajectories,
    parts: Parts,
    kinds: Mapping[str, str],
    unit: str | None,
    checkpoints: Path,
    members: int,
) -> str:
    some = in_memory(trajectories)
    stored = isinstance(trajectories, StoredTrajectories)
    of_all = f"{len(trajectories)} ids on disk, some of them: " if stored else ""
    lines = [f"{data}: {of_all}{trajectories_table(some)}", kinds_said(kinds), str(parts)]
    samples = dict(start=MOST_ESTIMATED, fold=most_left_out(parts.train, members))
    lines.append(samples_said(len(parts.train), members, **samples))
    lines, names = [line for line in lines if line], trajectories.names
    if unit is not None and names.origin is None:
        lines.append(f"unit {unit} is ignored, as the times in column {names.time!r} are numbers")
    if parts.train.names.span is None and not stored and (advice := windows_advised(some)):
        lines.append(advice)
    if checkpoints.exists():
        lines.append(f"going on from {checkpoints}")
    return "\n".join(lines)


def _fit(parts: Parts, settings: dict[str, Any], checkpoints: Path, *, progress: bool) -> CrossFit:
    train, seed = parts.train, settings["seed"]
    fit_key, *_ = _keys(seed)
    scaling = Scaling.fit(train, t0=parts.t0)
    likelihood = _likelihood(settings, scaling)
    latent_dim = settings["latent_dim"]
    if latent_dim is None:
        found = candidates(train, scaling=scaling, likelihood=likelihood)
    else:
        options: Any = dict(latent_dim=latent_dim, scaling=scaling)
        found = {
            "network": lambda train, rngs: latent_ode(
                train, likelihood=likelihood(), rngs=rngs, **options
            )
        }
    return cross_fit(
        fit_key,
        found,
        train,
        num_folds=settings["members"],
        num_steps=settings["steps"],
        patience=settings["patience"],
        batch_size=settings["batch_size"],
        conditioning=MOSTLY_PARTS,
        checkpoint_dir=checkpoints,
        progress=progress,
    )


def _likelihood(settings: dict[str, Any], scaling: Scaling) -> Callable[..., Likelihood]:
    """Makes the likelihood of all columns, by their kinds."""
    numbers = LIKELIHOODS[settings["residual"]]
    named = {name: OF_KINDS[kind]() for name, kind in settings["kind"].items() if kind in OF_KINDS}
    if not named:
        return numbers
    return partial(FeatureLikelihoods.by_name, named, scaling, numbers)


def _keys(seed: int) -> tuple[Array, Array, Array, Array]:
    """The random keys of the fit, of the scores, of the draws, and of the variance."""
    fit_key, score_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    return fit_key, score_key, draw_key, jax.random.fold_in(draw_key, 1)


def _draw(output_dir: Path, figures: dict[str, Callable[[], Any]]) -> None:
    """Draws each figure by itself; one that fails is warned of."""
    for name, draw in figures.items():
        try:
            draw().savefig(output_dir / f"{name}.png")
        # matplotlib and ArviZ raise exceptions of many types.
        except Exception as error:
            warn_user(f"The figure {name}.png could not be drawn: {error}.")


def _summary(metrics: dict[str, Any]) -> str:
    lines = [candidates_table(metrics), inference_chosen(metrics["inference"])]
    if "methods" in metrics:
        lines += ["", scores_table(metrics), coverage_table(metrics), horizons_table(metrics)]
        lines += verdicts(metrics)
    if table := variance_table(metrics):
        lines += ["", table]
    return "\n".join(lines)

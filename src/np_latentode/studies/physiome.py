"""The study of Physiome-ODE: solutions of equations from biology, beside published errors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.scaling import Scaling
from np_latentode.forecasts.calibration import Calibration, calibration
from np_latentode.forecasts.prediction import forecast
from np_latentode.forecasts.scores import Forecasts, of_calibration, of_levels, score
from np_latentode.programs.assemble import candidates
from np_latentode.programs.ensemble import Ensemble
from np_latentode.storage.results import check_output_dir, result_dir
from np_latentode.studies.datasets.physiome import Fold, divide, solutions
from np_latentode.studies.datasets.physiome_systems import SYSTEMS
from np_latentode.studies.physiome_published import published
from np_latentode.training.cross_fit import BATCH_SIZE, PATIENCE, cross_fit
from np_latentode.training.recalibration import recalibrated

__all__ = ["run"]

DRAWS = 200
SHOWN = 4
SCORES = ("mse", "crps", "coverage_90")


def run(
    output_dir: Path,
    name: str,
    *,
    folds: int = 5,
    steps: int = 6_000,
    members: int = 1,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Forecasts the second half of held-out solutions from the first, as the benchmark does.

    The data are made from the equations, by the benchmark's rules. The candidates and how they are
    trained are those of `np-latentode fit`, the same for every set, and forecasts are by the guide.
    Scores are over all values asked, in standard deviations of the state; the noise alone has a
    mean squared error of 0.0025.

    Args:
        output_dir: where metrics.json and the figures go.
        name: of the set, one of `datasets.physiome_systems.SYSTEMS`.
        folds: the number of folds, 0, 1 and so on.
        steps: the highest number of steps of each member, as in `cross_fit`.
        members: of each candidate. One leaves a seventh of the instances out, which choose its
            step, as the benchmark's validation data do. Five leave out a fifth each.
        seed: of the networks and of training.
        overwrite: whether the results of an earlier run are replaced.
        progress: whether to show progress and print the scores.

    Returns:
        The content of metrics.json: the scores of each method, one per fold.

    Raises:
        ValueError: if there is no such set, an argument is out of range, or output_dir cannot be
            used.
        FloatingPointError: if an instance cannot be solved.
    """
    check_counts(folds=folds, steps=steps, members=members)
    check_seed(seed)
    check_output_dir(output_dir, overwrite=overwrite)
    if progress:
        print(f"solving {name} ...")
    states, done = solutions(name), []
    for k in range(folds):
        if progress:
            print(f"fold {k}")
        key = jax.random.fold_in(jax.random.key(seed), k)
        settings: Any = dict(steps=steps, members=members, progress=progress)
        done.append(_one_fold(key, divide(states, fold=k), **settings))
    metrics: dict[str, Any] = {
        **dict(set=name, folds=folds, steps=steps, members=members, seed=seed),
        "seconds": [one.seconds for one in done],
        "weights": [one.weights for one in done],
        "methods": {
            method: {key: [one.scores[method].get(key) for one in done] for key in SCORES}
            for method in done[0].scores
        },
        "published": published(name),
    }
    # Imported after training, as training should not wait for matplotlib.
    from np_latentode.report import plots

    figures = {
        "forecasts": _forecast_figure(jax.random.key(seed), done[0], [*SYSTEMS[name].states]),
        "calibration": plots.plot_calibration(done[0].calibration),
    }
    with result_dir(output_dir, overwrite=overwrite) as directory:
        for figure_name, figure in figures.items():
            figure.savefig(directory / f"{figure_name}.png")
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if progress:
        print(_summary(metrics, output_dir))
    return metrics


class _Split(NamedTuple):
    scores: dict[str, dict[str, float]]
    seconds: float
    weights: dict[str, float]
    calibration: Calibration
    fitted: Ensemble
    fold: Fold


def _one_fold(rng_key: Array, fold: Fold, *, steps: int, members: int, progress: bool) -> _Split:
    started = time.perf_counter()
    fit_key, bands_key, score_key = jax.random.split(rng_key, 3)
    cross = cross_fit(
        fit_key,
        candidates(fold.train, scaling=Scaling.fit(fold.train)),
        fold.train,
        num_folds=members,
        num_steps=steps,
        batch_size=BATCH_SIZE,
        patience=PATIENCE,
        conditioning=MOSTLY_PARTS,
        progress=progress,
    )
    fitted = recalibrated(bands_key, cross, fold.train)
    found = calibration(score_key, fitted, fold.context, fold.target, num_samples=DRAWS)
    seconds = time.perf_counter() - started
    made = {"latent ODE": of_calibration(fold.target, found)}
    made |= of_levels(fold.train, fold.context, fold.target)
    scores = {name: _score(fold, forecasts) for name, forecasts in made.items()}
    return _Split(scores, seconds, cross.weights, found, fitted, fold)


def _score(fold: Fold, forecasts: Forecasts) -> dict[str, float]:
    """The scores of a method, with the square of its RMSE, which is what is published."""
    found = score(fold.target, np.ones(fold.target.num_features), forecasts)
    return {"mse": found.pop("rmse") ** 2, **found}


def _forecast_figure(rng_key: Array, one: _Split, states: list[str]) -> Any:
    """The first few instances: what is given, what is asked, and forecasts."""
    from np_latentode.report.fans import plot_forecasts

    times = np.linspace(0.0, 1.0, 100)
    context = one.fold.context[:SHOWN]
    return plot_forecasts(
        context,
        forecast(rng_key, one.fitted, context, times),
        times,
        target=one.fold.target[:SHOWN],
        count=SHOWN,
        feature_names=states,
        trajectory_names=[f"held-out instance {i}" for i in range(SHOWN)],
    )


def _summary(metrics: dict[str, Any], output_dir: Path) -> str:
    """A line per method, with the mean and the standard deviation over folds."""
    title = f"{metrics['set']}, folds: {metrics['folds']}"
    lines = ["", f"{title:28s}" + "".join(f"{key:>18s}" for key in SCORES)]
    for name, scores in metrics["methods"].items():
        cells = [f"{_mean_and_sd(scores[key]):>18s}" for key in SCORES]
        lines.append(f"{name:28s}" + "".join(cells))
    for name, mse in metrics["published"].items():
        lines.append(f"{name + ', published':28s}{mse:18.3f}")
    lines += [
        "",
        f"at most {max(metrics['seconds']):.0f} s to fit and forecast a fold",
        f"results in {output_dir}",
    ]
    return "\n".join(lines)


def _mean_and_sd(values: list[float | None]) -> str:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return "-"
    if len(known) == 1:
        return f"{known[0]:.3f}"
    return f"{known.mean():.3f} +- {known.std(ddof=1):.3f}"

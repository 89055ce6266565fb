"""How should a wide network be trained? Compares schedules, starts and what the encoder sees.

    python benchmarks/schedules.py
    python benchmarks/schedules.py --sets LEN01 LI01 --ways default loud --steps 3000

Each way is the default with one change. It trains one network on seven ninths of the training data
of a set of Physiome-ODE; the others choose the step. The mean squared error is that of the second
half of the test data, of the first fold. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from np_latentode import (
    Fitted,
    Scaling,
    Trajectories,
    calibration,
    candidates,
    datasets,
    optimizer,
    random_points,
)
from np_latentode.data.conditioning import MOSTLY_PARTS
from np_latentode.programs import assemble
from np_latentode.training.plan import make_plan
from np_latentode.training.steps import dispatches
from np_latentode.training.validation import forecast_score

RATE, BATCH_SIZE = 5e-3, 50


def annealed(steps: int) -> dict[str, Any]:
    """The KL counts little in the beginning."""
    return dict(kl_weight=optax.linear_schedule(0.01, 1.0, steps // 2))


def constant(steps: int) -> dict[str, Any]:
    """A learning rate that does not fall."""
    rate = optax.linear_schedule(0.0, RATE, steps // 50)
    clip = optax.clip_by_global_norm(10.0)
    return dict(optim=optax.chain(clip, optax.adamw(rate, weight_decay=1e-2)))


def first_half(steps: int) -> dict[str, Any]:
    """The encoder sees the first half, or random points of it."""

    def see(rng_key: jax.Array, some: Trajectories) -> Trajectories:
        whole_key, points_key = jax.random.split(rng_key)
        half = some.keep(some.times <= 0.5)
        whole = jax.random.bernoulli(whole_key, 0.5, (len(some), 1, 1))
        return half.keep(random_points(points_key, half).mask | (half.mask & whole))

    return dict(conditioning=see)


WAYS: dict[str, Callable[[int], dict[str, Any]]] = {
    "default": lambda steps: {},
    "loud": lambda steps: dict(noise=0.5),
    "annealed": annealed,
    "constant": constant,
    "averaged": lambda steps: constant(steps) | dict(averaged=10),
    "averaged end": lambda steps: dict(averaged=5),
    "first half": first_half,
    "impatient": lambda steps: dict(patience=500),
}
"""What a way changes. averaged: of so many dispatches, the mean of their parameters is judged."""


def train(
    fold: Any,
    steps: int,
    *,
    noise: float = assemble.WIDE_NOISE,
    averaged: int = 1,
    patience: int | None = None,
    **changed: Any,
) -> tuple[Fitted, int]:
    """The fit with the best validation score, and its step."""
    cut = round(len(fold.train) * 7 / 9)
    known, judges = fold.train[:cut], fold.train[cut:]
    assemble.WIDE_NOISE = noise
    build = candidates(known, scaling=Scaling.fit(known))["network"]
    settings: Any = dict(num_steps=steps, batch_size=BATCH_SIZE, conditioning=MOSTLY_PARTS)
    settings |= dict(optim=optimizer(steps, learning_rate=RATE), kl_weight=None, loss=None)
    held_out = (judges.before(0.5), judges.after(0.5))
    model, guide = build(known, nnx.Rngs(0))
    plan = make_plan(
        jax.random.key(0), model, guide, known, held_out, patience=None, **settings | changed
    )
    programs, judge_key = plan.programs, jax.random.key(1)
    params, state = programs.init(plan.rng_key, plan.buckets[0], None)
    taken, best, last = 0, (np.inf, 0, params), []
    for after, losses in dispatches(programs.take, state, steps, plan.data_at(0)):
        taken += len(losses)
        last = [*last, programs.svi.get_params(after)][-averaged:]
        mean = jax.tree.map(lambda *each: sum(each) / len(each), *last)
        score = forecast_score(judge_key, programs.fitted(mean), *plan.held_out)
        if score < best[0]:
            best = (score, taken, mean)
        if patience is not None and taken - best[1] >= patience:
            break
    return programs.fitted(best[2]), best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["LEN01", "LI01", "WOD01"])
    parser.add_argument("--ways", nargs="+", default=[*WAYS], choices=[*WAYS])
    parser.add_argument("--steps", type=int, default=3_000)
    given = parser.parse_args()
    print(f"{'set':8s}{'way':14s}{'MSE':>8s}{'CRPS':>8s}{'best step':>10s}{'seconds':>9s}")
    for name in given.sets:
        fold = datasets.physiome(name)
        for way in given.ways:
            started = time.process_time()
            fitted, step = train(fold, given.steps, **WAYS[way](given.steps))
            seconds = time.process_time() - started
            found = calibration(jax.random.key(2), fitted, fold.context, fold.target)
            mse, crps = np.nanmean(found.error**2), np.nanmean(found.crps)
            print(f"{name:8s}{way:14s}{mse:8.4f}{crps:8.4f}{step:10d}{seconds:9.0f}", flush=True)
            jax.clear_caches()


if __name__ == "__main__":
    main()

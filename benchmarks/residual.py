"""What does a residual process cost where there is none? Spirals, with and without one.

    python benchmarks/residual.py --seeds 5

Spirals leave nothing behind but white noise. Each seed trains the defaults of `latent_ode` with
the `GaussianLikelihood` and with the `OrnsteinUhlenbeckLikelihood`, and scores 500 fresh spirals.
Before that, training steps of both are timed in turn, at 30 observations a spiral.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO
from summary import print_summary

from np_latentode import (
    GaussianLikelihood,
    OrnsteinUhlenbeckLikelihood,
    calibration,
    datasets,
    fit,
    latent_ode,
    optimizer,
    random_context,
)
from np_latentode.studies.spirals_scores import CUT
from np_latentode.training.steps import dispatches, steps_of

LIKELIHOODS = {"none": GaussianLikelihood, "ou": OrnsteinUhlenbeckLikelihood}
ROUNDS = 15


def step_ratio(train: datasets.Spirals) -> float:
    """The time of a training step with the residual, over that without; the median of pairs."""
    runs = []
    for likelihood in LIKELIHOODS.values():
        model, guide = latent_ode(train, latent_dim=4, likelihood=likelihood(), rngs=nnx.Rngs(0))
        model = model.with_solver(max_steps=model.steps_to(train.times, train.offset))
        options = dict(batch_size=50, conditioning=random_context)
        svi = SVI(model, guide, optimizer(10_000), Trace_ELBO(), **options)
        state = jax.jit(svi.init)(jax.random.key(0), train)
        runs.append(dispatches(steps_of(svi), state, 10_000, train))
    seconds = []
    for _ in range(ROUNDS):
        seconds.append([])
        for run in runs:
            started = time.perf_counter()
            next(run)
            seconds[-1].append(time.perf_counter() - started)
    # Without the first, which compiles.
    none, ou = np.array(seconds[1:]).T
    return float(np.median(ou / none))


def scores(name: str, seed: int, steps: int) -> dict[str, float]:
    """Scores of forecasts of fresh spirals, and the scales that were learned."""
    family = datasets.SpiralFamily()
    train = family.sample(jax.random.key(0), 250)[:200]
    fresh = family.sample(jax.random.key(1_000), 500)
    likelihood = LIKELIHOODS[name]()
    model, guide = latent_ode(train, latent_dim=4, likelihood=likelihood, rngs=nnx.Rngs(seed))
    options = dict(num_steps=steps, batch_size=50, progress=False)
    fitted = fit(jax.random.key(seed), model, guide, train, **options)
    found = calibration(jax.random.key(7), fitted, fresh.before(CUT), fresh.after(CUT))
    scale = fitted.params.get("residual_scale", jnp.zeros(2))
    return {
        "crps": float(np.nanmean(found.crps)),
        "mse": float(np.nanmean(found.error**2)),
        "coverage_90": float(found.coverage[2]),
        "noise_scale": float(fitted.params["noise_scale"].mean()),
        "residual_scale": float(scale.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14_000)
    arguments = parser.parse_args()
    train = datasets.SpiralFamily().sample(jax.random.key(0), 250)[:200]
    print(f"a step with the residual takes {step_ratio(train):.2f} times one without", flush=True)
    for name in LIKELIHOODS:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(scores(name, seed, arguments.steps))
            print(name, seed, {key: round(x, 5) for key, x in rows[-1].items()}, flush=True)
        print_summary(name, rows, [*rows[0]])


if __name__ == "__main__":
    main()

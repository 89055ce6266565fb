"""How good are sharpened posteriors? Spirals with five model seeds, and what plain SVI gives.

    python benchmarks/inference.py --seeds 5
    python benchmarks/inference.py --seeds 3 --plain
    python benchmarks/inference.py --members 5 --ensembles 3

Each seed trains as `np-latentode spirals` does, and is scored on 500 fresh spirals. --plain trains
by a step size that falls along a cosine and by prefixes alone, without polishing, as a NumPyro user
would at first. --members scores ensembles, each of fits with other seeds.
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
from scipy.spatial import cKDTree
from summary import print_summary

from np_latentode import (
    Ensemble,
    Fitted,
    MixturePrior,
    Sharpened,
    Trajectories,
    amortized,
    calibration,
    datasets,
    exact_posterior,
    fit,
    fit_prior,
    forecast,
    latent_ode,
    posterior,
    random_prefix,
    sharpen,
    simulation_ranks,
)
from np_latentode.studies.spirals_priors import train as train_study
from np_latentode.studies.spirals_scores import CUT, score_draws
from np_latentode.training.stacking import stack

FAMILY = datasets.SpiralFamily()
TRAIN = FAMILY.sample(jax.random.key(0), 250)[:200]
FRESH = FAMILY.sample(jax.random.key(1_000), 500)
NUM_EXACT, FEW = 50, 5
INFERENCES = {"guide": amortized, "sharpened": Sharpened()}


def trained(seed: int, steps: int, spirals: Any = TRAIN) -> Fitted:
    """A fit as in the study of spirals."""
    options = dict(steps=steps, seed=seed, latent_dim=4, batch_size=50, progress=False)
    return train_study("normal", spirals, **options).fitted


def trained_plainly(seed: int, steps: int) -> Fitted:
    """A fit by the optimizer and the conditioning that one may think of first."""
    rate = optax.cosine_decay_schedule(5e-3, steps)
    optim = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate))
    options = dict(num_steps=steps, batch_size=50, optim=optim, conditioning=random_prefix)
    model, guide = latent_ode(TRAIN, latent_dim=4, rngs=nnx.Rngs(seed))
    return fit(jax.random.key(seed), model, guide, TRAIN, **options, progress=False)


def errors(fitted: Fitted | Ensemble, name: str) -> dict[str, float]:
    """Squared errors of reconstruction and extrapolation, and the coverage of 90%."""
    options = dict(inference=INFERENCES[name], num_samples=100)
    whole, half = (
        forecast(jax.random.key(7), fitted, context, FRESH.dense_times, **options)
        for context in (FRESH, FRESH.before(CUT))
    )
    return {f"{name}_{key}": x for key, x in score_draws(whole, half, FRESH).items()}


def first_points(count: int) -> tuple[Trajectories, Trajectories]:
    """The first few points of each fresh spiral, and the others."""
    early = np.tile(np.arange(FRESH.times.shape[1]) < count, (len(FRESH), 1))
    return FRESH.keep(early), FRESH.keep(~early)


def coverages(fitted: Fitted) -> dict[str, float]:
    """The coverage of sharpened bands, from the first half and from five points."""
    found = {}
    for name, pair in (
        ("", (FRESH.before(CUT), FRESH.after(CUT))),
        ("_of_5", first_points(FEW)),
    ):
        bands = calibration(jax.random.key(8), fitted, *pair, inference=Sharpened())
        for level, share in zip(bands.levels, bands.coverage, strict=True):
            found[f"coverage_{round(100 * level)}{name}"] = float(share)
    return found


def beside_exact(fitted: Fitted) -> dict[str, float]:
    """Sharpened moments against those of NUTS, for some trajectories."""
    context = FRESH[:NUM_EXACT].before(CUT)
    q = posterior(fitted, context)
    tree = exact_posterior(jax.random.key(9), fitted, context, q=q, progress=False)
    nuts = np.asarray(tree["posterior"]["z0"]).reshape(-1, NUM_EXACT, 4)
    z0 = np.asarray(sharpen(jax.random.key(10), fitted, context, num_samples=1_000).z0)
    shift = np.abs(z0.mean(0) - nuts.mean(0)) / nuts.std(0)
    ratio = z0.std(0) / nuts.std(0)
    return {"sd_ratio": float(np.median(ratio)), "shift": float(np.median(shift))}


def ranks(fitted: Fitted, seed: int) -> dict[str, float]:
    """Simulation-based calibration, with a prior that is fitted to the codes."""
    prior = MixturePrior(4, rngs=nnx.Rngs(seed))
    on_codes = fit_prior(jax.random.key(11), prior, fitted, TRAIN, progress=False)
    found = simulation_ranks(jax.random.key(12), on_codes, FRESH, inference=Sharpened())
    return {"sbc_p_least": float(found.p_value.min()), "sbc_c2st": c2st(found.ranks)}


def c2st(ranks: np.ndarray) -> float:
    """How often the nearest neighbours tell ranks from uniform numbers; half of the time, if never.

    Classifier two-sample test (Lopez-Paz & Oquab 2017), by a majority of nine neighbours.
    """
    uniform = np.random.default_rng(0).uniform(size=ranks.shape)
    points, is_rank = np.vstack([ranks, uniform]), np.repeat([1, 0], len(ranks))
    _, nearest = cKDTree(points).query(points, k=10)
    return float(np.mean((is_rank[nearest[:, 1:]].mean(1) > 0.5) == is_rank))


def cost(fitted: Fitted) -> float:
    """The time of a sharpened forecast over that of the guide's, after compilation."""
    seconds = {name: [] for name in INFERENCES}
    for k in range(4):
        for name, inference in INFERENCES.items():
            started = time.perf_counter()
            forecast(
                jax.random.key(k),
                fitted,
                FRESH.before(CUT),
                FRESH.dense_times,
                inference=inference,
                num_samples=100,
            )
            seconds[name].append(time.perf_counter() - started)
    return float(np.median(np.array(seconds["sharpened"][1:]) / seconds["guide"][1:]))


def scores(fitted: Fitted, seed: int, *, plain: bool) -> dict[str, float]:
    row = {"noise_scale": float(fitted.params["noise_scale"].mean())}
    for name in INFERENCES:
        row |= errors(fitted, name)
    report = sharpen(jax.random.key(13), fitted, FRESH.before(CUT), exact=False)
    row["pareto_k_trusted"] = float(np.mean(report.pareto_k <= 0.7))
    row["log_evidence"] = float(report.log_evidence.mean())
    if plain:
        return row
    found = coverages(fitted) | beside_exact(fitted) | ranks(fitted, seed)
    return row | found | {"cost": cost(fitted)}


def ensemble(first_seed: int, members: int, steps: int) -> Ensemble:
    """Fits of 170 spirals with other seeds, weighed by 30 others."""
    fits = [trained(first_seed + k, steps, TRAIN[:170]) for k in range(members)]
    held_out = TRAIN[170:]
    pair = held_out.before(CUT), held_out.after(CUT)
    return Ensemble(tuple(fits), stack(jax.random.key(14), fits, *pair))


def run(count: int, row_of: Callable[[int], dict[str, float]], title: str) -> None:
    rows = []
    for k in range(count):
        started = time.perf_counter()
        rows.append(row_of(k))
        shown = {key: round(x, 5) for key, x in rows[-1].items()}
        print(title, k, shown, f"{time.perf_counter() - started:.0f} s", flush=True)
    print_summary(title, rows, [*rows[0]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--plain", action="store_true", help="by plain SVI, without polishing")
    parser.add_argument("--members", type=int, default=5, help="of each ensemble")
    parser.add_argument("--ensembles", type=int, default=0)
    arguments = parser.parse_args()
    make = trained_plainly if arguments.plain else trained
    steps = arguments.steps or (6_000 if arguments.plain else 10_000)

    def of_seed(seed: int) -> dict[str, float]:
        return scores(make(seed, steps), seed, plain=arguments.plain)

    def of_ensemble(k: int) -> dict[str, float]:
        made = ensemble(100 * (k + 1), arguments.members, steps)
        return errors(made, "sharpened") | {"largest_weight": float(made.weights.max())}

    if arguments.seeds:
        run(arguments.seeds, of_seed, "plain SVI" if arguments.plain else "as in the study")
    if arguments.ensembles:
        run(arguments.ensembles, of_ensemble, "ensembles")


if __name__ == "__main__":
    main()

"""Which defaults fit spirals best? Trains each candidate with several seeds and prints its scores.

    python benchmarks/defaults.py --list
    python benchmarks/defaults.py baseline solver_bosh3_12 --seeds 5

A candidate is the baseline with one change. It is scored on 500 fresh spirals, so that nothing is
tuned to the 50 held-out spirals of the study. Compare times within one run of this script only.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import (
    GRU,
    ODERNN,
    AmortizedGuide,
    BoundedDynamics,
    DiagonalNormal,
    Fitted,
    LatentODE,
    MLPDecoder,
    MLPDynamics,
    PathODE,
    Scaling,
    Solver,
    TimeMLPDynamics,
    Trajectories,
    datasets,
    forecast,
    latent_ode,
    optimizer,
    random_context,
    random_points,
    random_prefix,
)
from np_latentode.data.scaling import SPAN


class Narrow(DiagonalNormal):
    """Starts with the given scale; the default starts at about 0.7."""

    def __init__(self, *sizes, width, scale=0.7, rngs):
        super().__init__(*sizes, width=width, rngs=rngs)
        bias = self.head.layers[-1].bias
        bias[...] = bias[...].at[sizes[1] :].set(math.log(math.expm1(scale)))


class TanhDynamics(nnx.Module):
    """With random biases, so that it is no odd function."""

    def __init__(self, width, bias, rngs):
        self.field = nnx.Sequential(
            nnx.Linear(4, width, bias_init=nnx.initializers.normal(bias), rngs=rngs),
            jnp.tanh,
            nnx.Linear(width, 4, rngs=rngs),
        )

    def __call__(self, t, z):
        return self.field(z)


def parts(rng_key, trajectories, *, shares):
    whole_key, prefix_key, points_key = jax.random.split(rng_key, 3)
    part = random_prefix(prefix_key, trajectories, min_share=shares[0])
    part = random_points(points_key, part, min_share=shares[1])
    whole = jax.random.bernoulli(whole_key, 0.5, (len(trajectories),))
    return trajectories.keep(part.mask | whole[:, None, None])


BASELINE = {
    "method": diffrax.Bosh3(),
    "steps_per_span": 8,
    "dynamics": lambda rngs: MLPDynamics(4, width=64, depth=1, rngs=rngs),
    "decoder": {"width": 80, "depth": 1},
    "encoder": ODERNN,
    "posterior": {"width": 40},
    "span": SPAN,
    "noise_start": 0.5,
    "conditioning": random_context,
    "optimizer": optimizer,
}
CANDIDATES = {
    "baseline": {},
    "lr_1e-2": {"optimizer": partial(optimizer, learning_rate=1e-2)},
    "lr_2e-3": {"optimizer": partial(optimizer, learning_rate=2e-3)},
    "decay_5e-2": {"optimizer": partial(optimizer, weight_decay=5e-2)},
    "decay_0": {"optimizer": partial(optimizer, weight_decay=0.0)},
    "decay_3e-2": {"optimizer": partial(optimizer, weight_decay=3e-2)},
    "decay_1e-1": {"optimizer": partial(optimizer, weight_decay=1e-1)},
    "plain_adam": {"optimizer": lambda num_steps: optax.adam(5e-3)},
    "span_1": {"span": 1.0},
    "span_2": {"span": 2.0},
    "span_10": {"span": 10.0},
    "noise_0.1": {"noise_start": 0.1},
    "noise_0.2": {"noise_start": 0.2},
    "noise_1.0": {"noise_start": 1.0},
    "solver_bosh3_12": {"steps_per_span": 12},
    "solver_tsit5_5": {"method": diffrax.Tsit5(), "steps_per_span": 5},
    "solver_tsit5_8": {"method": diffrax.Tsit5(), "steps_per_span": 8},
    "solver_ralston_12": {"method": diffrax.Ralston(), "steps_per_span": 12},
    "dynamics_40x2": {"dynamics": lambda rngs: MLPDynamics(4, width=40, depth=2, rngs=rngs)},
    "dynamics_32": {"dynamics": lambda rngs: MLPDynamics(4, width=32, depth=1, rngs=rngs)},
    "dynamics_100": {"dynamics": lambda rngs: MLPDynamics(4, width=100, depth=1, rngs=rngs)},
    "dynamics_time": {"dynamics": lambda rngs: TimeMLPDynamics(4, rngs=rngs)},
    "dynamics_bounded": {
        "dynamics": lambda rngs: BoundedDynamics(MLPDynamics(4, rngs=rngs), speed=5.0)
    },
    "decoder_20": {"decoder": {"width": 20, "depth": 1}},
    "tanh": {"dynamics": lambda rngs: TanhDynamics(64, 0.0, rngs)},
    "tanh_bias": {"dynamics": lambda rngs: TanhDynamics(64, 1.0, rngs)},
    "decoder_40": {"decoder": {"width": 40, "depth": 1}},
    "decoder_120": {"decoder": {"width": 120, "depth": 1}},
    "decoder_40x2": {"decoder": {"width": 40, "depth": 2}},
    "narrow_0.1": {"posterior": {"width": 40, "scale": 0.1}},
    "encoder_40": {"encoder": partial(ODERNN, hidden_dim=40, width=40)},
    "encoder_24": {"encoder": partial(ODERNN, hidden_dim=24, width=24)},
    "encoder_12": {"encoder": partial(ODERNN, hidden_dim=12, width=12)},
    "encoder_32": {"encoder": partial(ODERNN, hidden_dim=32, width=32)},
    "encoder_path_ode": {"encoder": PathODE},
    "encoder_path_ode_32": {
        "encoder": partial(PathODE, solver=Solver(diffrax.Midpoint(), dt0=SPAN / 32))
    },
    "encoder_gru": {"encoder": GRU},
    "whole": {"conditioning": None},
    "prefix": {"conditioning": random_prefix},
    "mostly_whole": {"conditioning": partial(random_context, whole_share=0.75)},
    "rarely_whole": {"conditioning": partial(random_context, whole_share=0.25)},
    "never_whole": {"conditioning": partial(random_context, whole_share=0.0)},
    "parts_15_30": {"conditioning": partial(parts, shares=(0.15, 0.3))},
    "parts_20_40": {"conditioning": partial(parts, shares=(0.2, 0.4))},
    "parts_30_50": {"conditioning": partial(parts, shares=(0.3, 0.5))},
    "points": {"conditioning": random_points},
}


def train_and_score(config: dict, *, seed: int, steps: int) -> dict[str, float]:
    family = datasets.SpiralFamily()
    train = family.sample(jax.random.key(0), 250)[:200]
    fresh = family.sample(jax.random.key(1_000), 500)
    fitted, losses, ms_per_step = train_timed(config, train, seed=seed, steps=steps)
    return {
        "ms_per_step": ms_per_step,
        **score(jax.random.key(seed), fitted, fresh),
        "noise": float(np.mean(fitted.params["noise_scale"])),
        "loss": float(np.mean(losses[-200:])),
    }


def networks(config: dict, train: Trajectories, *, seed: int) -> tuple[LatentODE, AmortizedGuide]:
    rngs = nnx.Rngs(seed)
    scaling = Scaling.fit(train)
    scaling = replace(scaling, time_unit=scaling.time_unit * SPAN / config["span"])
    dynamics, decoder = config["dynamics"](rngs), MLPDecoder(4, 2, **config["decoder"], rngs=rngs)
    encoder = config["encoder"](2, rngs=rngs)
    return latent_ode(
        train,
        latent_dim=4,
        dynamics=dynamics,
        decoder=decoder,
        encoder=encoder,
        posterior=Narrow(encoder.hidden_dim, 4, **config["posterior"], rngs=rngs),
        scaling=scaling,
        solver=Solver(method=config["method"], dt0=config["span"] / config["steps_per_span"]),
        rngs=rngs,
    )


def train_timed(
    config: dict, train: Trajectories, *, seed: int, steps: int
) -> tuple[Fitted, Array, float]:
    """The fit, the losses, and the milliseconds per step without compilation."""
    model, guide = networks(config, train, seed=seed)
    svi = SVI(
        model,
        guide,
        config["optimizer"](steps),
        Trace_ELBO(),
        batch_size=50,
        conditioning=config["conditioning"],
    )
    key = jax.random.key(seed)
    start = {"noise_scale": jnp.asarray(config["noise_start"] * model.scaling.scale, jnp.float32)}
    warm = svi.run(key, 1, train, init_params=start, progress_bar=False)
    run = jax.jit(lambda state: svi.run(key, steps, train, init_state=state, progress_bar=False))
    compiled = run.lower(warm.state).compile()
    began = time.perf_counter()
    result = jax.block_until_ready(compiled(warm.state))
    ms_per_step = 1e3 * (time.perf_counter() - began) / steps
    return Fitted(model, guide, result.params), result.losses, ms_per_step


def score(key: Array, fitted: Fitted, fresh: datasets.Spirals) -> dict[str, float]:
    """Errors of the mean and coverage, given all observations and given the early ones."""
    times = np.asarray(fresh.dense_times)
    noisy = fresh.curves + 0.05 * jax.random.normal(jax.random.key(7), fresh.curves.shape)
    scores = {}
    for name, context, where in (
        ("reconstruction", fresh, slice(None)),
        ("extrapolation", fresh.before(2.5), times > 2.5),
    ):
        draws = forecast(key, fitted, context, times, num_samples=100)
        error = np.asarray((draws["x_mean"].mean(0) - fresh.curves) ** 2)[:, where]
        low, high = np.quantile(np.asarray(draws["x"]), [0.05, 0.95], axis=0)
        inside = ((low <= noisy) & (noisy <= high))[:, where]
        scores[f"{name}_mse"] = float(error.mean())
        scores[f"{name}_median"] = float(np.median(error.mean((1, 2))))
        scores[f"{name}_coverage_90"] = float(inside.mean())
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("candidates", nargs="*", default=["baseline"], metavar="CANDIDATE")
    parser.add_argument("--list", action="store_true", help="print the candidates and stop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=14_000)
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(f"{name}: {change}" for name, change in CANDIDATES.items()))
        return
    for name in arguments.candidates:
        rows = []
        for seed in range(arguments.seeds):
            rows.append(
                train_and_score(BASELINE | CANDIDATES[name], seed=seed, steps=arguments.steps)
            )
            print(name, seed, json.dumps({k: round(v, 5) for k, v in rows[-1].items()}), flush=True)
        for key in rows[0]:
            values = [row[key] for row in rows]
            print(f"{name:20s} {key:28s} median {np.median(values):.5f} worst {max(values):.5f}")


if __name__ == "__main__":
    main()

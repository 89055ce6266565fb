"""Do the bands of `effect` hold? Fits simulated randomized trials whose effect is known.

    python benchmarks/effects.py
    python benchmarks/effects.py --trials 50 --steps 6000

Each trial has 100 ids, half of them on a drug that changes the slope over time, an age that
matters and a sex that does not, up to 8 irregular visits, random levels and slopes, and a residual
that lasts. Each is fitted by the default assembly, as `np-latentode fit` does. The script prints
bias and coverage of the 90% bands at the middle and at the end, beside a linear mixed model's
interval.
"""

from __future__ import annotations

import argparse
import os
import tempfile

import jax
import numpy as np
import pandas as pd
from statsmodels.regression.mixed_linear_model import MixedLM

from np_latentode import Scaling, Trajectories, candidates, cross_fit, effect, random_context

TIMES = np.array([2.5, 5.0])
SLOPE = 0.3
"""The effect of the drug, per unit of time."""


def trial(seed: int, ids: int = 100) -> pd.DataFrame:
    """The table of a trial."""
    rng, rows = np.random.default_rng(seed), []
    arms = rng.permutation(np.arange(ids) % 2)
    for i in range(ids):
        age, sex = rng.normal(50, 10), rng.choice(["f", "m"])
        level = 2 + 0.04 * (age - 50) + rng.normal()
        slope = -0.2 + SLOPE * arms[i] + 0.3 * rng.normal()
        t = np.sort(rng.uniform(0, 5, rng.integers(4, 9)))
        residual = rng.multivariate_normal(np.zeros(len(t)), 0.09 * np.exp(-np.abs(t[:, None] - t)))
        x = level + slope * t + residual + 0.2 * rng.normal(size=len(t))
        arm = "drug" if arms[i] else "placebo"
        rows += [(i, *pair, age, sex, arm) for pair in zip(t, x, strict=True)]
    return pd.DataFrame(rows, columns=["id", "time", "x", "age", "sex", "arm"])


def by_latent_ode(df: pd.DataFrame, seed: int, steps: int) -> tuple[np.ndarray, ...]:
    """Estimate, low and high of the default assembly, at TIMES."""
    names = dict(id="id", time="time", values="x", static=["age", "sex", "arm"])
    train = Trajectories.from_dataframe(df, **names)
    scaling = Scaling.fit(train, t0=0.0)
    cross = cross_fit(
        jax.random.key(seed),
        candidates(train, scaling=scaling),
        train,
        num_steps=steps,
        batch_size=50,
        patience=500,
        conditioning=random_context,
        progress=False,
    )
    found = effect(
        jax.random.key(seed), cross.ensemble, "arm", train, TIMES, between=("placebo", "drug")
    )
    return found.estimate[:, 0], found.low[:, 0], found.high[:, 0]


def by_mixed_model(df: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """The same of a linear mixed model with random levels and slopes."""
    drug, t = (df["arm"] == "drug").to_numpy(float), df["time"].to_numpy()
    ones = np.ones(len(t))
    fixed = np.column_stack([ones, t, df["age"] - 50, df["sex"] == "m", drug, drug * t])
    fit = MixedLM(
        df["x"].to_numpy(), fixed.astype(float), df["id"], exog_re=np.column_stack([ones, t])
    ).fit()
    at = np.column_stack([np.ones(2), TIMES])
    estimate = at @ fit.fe_params[-2:]
    cov = np.asarray(fit.cov_params())[4:6, 4:6]
    half = 1.645 * np.sqrt(np.einsum("ki,ij,kj->k", at, cov, at))
    return estimate, estimate - half, estimate + half


def described(name: str, found: list[tuple[np.ndarray, ...]]) -> str:
    estimate, low, high = (np.stack(each) for each in zip(*found, strict=True))
    truth = SLOPE * TIMES
    covered = ((low <= truth) & (truth <= high)).mean(0)
    bias, sd = estimate.mean(0) - truth, estimate.std(0)
    cells = [
        f"at {t:g}: truth {x:.2f}, bias {b:+.3f} (sd {s:.3f}), width {w:.2f}, coverage {c:.2f}"
        for t, x, b, s, w, c in zip(
            TIMES, truth, bias, sd, (high - low).mean(0), covered, strict=True
        )
    ]
    return f"{name}, {len(found)} trials: {'; '.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--steps", type=int, default=6_000)
    given = parser.parse_args()
    kept = os.path.join(tempfile.gettempdir(), "np-latentode-effects")
    jax.config.update("jax_compilation_cache_dir", kept)
    ours, mixed = [], []
    for seed in range(given.trials):
        df = trial(seed)
        ours.append(by_latent_ode(df, seed, given.steps))
        mixed.append(by_mixed_model(df))
        shown = ", ".join(f"{x:.2f}" for x in (*ours[-1][0], *ours[-1][1], *ours[-1][2]))
        print(f"trial {seed}: {shown}", flush=True)
    print(described("latent ODE", ours))
    print(described("mixed model", mixed))


if __name__ == "__main__":
    main()

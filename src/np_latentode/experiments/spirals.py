"""Spirals: fit, reconstruct, extrapolate, and ask how Gaussian the code is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import baselines
from np_latentode.assemble import latent_ode
from np_latentode.conditioning import random_context
from np_latentode.datasets import SpiralFamily, Spirals
from np_latentode.experiments.priors import make_prior, score_prior
from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.prediction import forecast, posterior, prior_predictive
from np_latentode.results import check_output_dir, result_dir
from np_latentode.training import STEPS_AT_ONCE, fit_prior, optimizer
from np_latentode.training import run as run_svi
from np_latentode.trajectories import Trajectories

__all__ = ["CUT", "Fit", "compare", "fit", "on_codes", "run", "score"]

CUT = 2.5
"""Extrapolation starts here: what was observed later is hidden and predicted."""

SEED_NOTEBOOK = {"reconstruction_mse": 0.126, "extrapolation_mse": 2.21}


def score(
    predicted: np.ndarray, draws: np.ndarray | None, spirals: Spirals, *, after: float | None
) -> dict[str, float]:
    """The error of a mean curve against the noiseless one and, where there are draws, how many of
    the noisy observations lie within the central 90% of them.

    Args:
        predicted: shape (trajectory, dense, 2), at the dense times.
        draws: shape (draw, trajectory, dense, 2), of noisy observations at the dense times.
        spirals: the truth.
        after: score later times only. Default: all.
    """
    times = np.asarray(spirals.dense_times)
    late = times > (-np.inf if after is None else after)
    scores = {"mse": float(np.mean((predicted - np.asarray(spirals.curves))[:, late] ** 2))}
    if draws is not None:
        low, high = np.quantile(draws, [0.05, 0.95], axis=0)
        # Observed times lie on the dense grid.
        slot = np.searchsorted(times, np.asarray(spirals.times) - 1e-4)
        rows = np.arange(len(spirals))[:, None]
        values = np.asarray(spirals.values)
        inside = (low[rows, slot] <= values) & (values <= high[rows, slot])
        scores["coverage_90"] = float(inside[late[slot]].mean())
    return scores


class Fit(NamedTuple):
    """A trained pair, and what training took."""

    model: LatentODE
    guide: AmortizedGuide
    params: dict[str, Any]
    losses: np.ndarray
    ms_per_step: float
    first_done: float
    """When the first steps were done, by `time.perf_counter`."""


def run(
    output_dir: Path,
    *,
    steps: int,
    seed: int,
    latent_dim: int,
    batch_size: int,
    priors: Sequence[str] = (),
    diagnose: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    started: float | None = None,
) -> dict[str, Any]:
    """The main job: trains on 200 spirals and writes scores, draws and figures on 50 others.

    Args:
        output_dir: where metrics.json, posterior.nc and the figures go.
        steps, seed, latent_dim, batch_size: of each fit.
        priors: names as in `make_prior`, of priors to fit under and to compare with N(0, I).
        diagnose: whether to check guide and bands, which takes a minute or two.
        overwrite: whether an earlier run's results are replaced.
        progress: whether to show progress and print the scores.
        started: when the program started, by `time.perf_counter`.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: if an argument is out of range, or output_dir is in the way.
    """
    started = time.perf_counter() if started is None else started
    check_output_dir(output_dir, overwrite=overwrite)
    for name in priors:
        make_prior(name, latent_dim, rngs=nnx.Rngs(0))
    _keep_compiled_programs()
    family = SpiralFamily()
    spirals = family.sample(jax.random.key(0), 250)
    train, test = spirals[:200], spirals[200:]

    settings = dict(steps=steps, seed=seed, latent_dim=latent_dim, batch_size=batch_size)
    normal = fit("normal", train, **settings, progress=progress)
    model, guide, params, losses, ms_per_step, first_done = normal
    metrics = {
        "steps": steps,
        "seed": seed,
        "latent_dim": latent_dim,
        "batch_size": batch_size,
        "noise_scale": np.asarray(params["noise_scale"]).tolist(),
        "loss": float(np.mean(losses[-steps // 20 :])) / len(train),
        "exact_loss": -float(family.posterior(train).log_evidence.mean()),
        "ms_per_step": ms_per_step,
        "seconds_to_first_step": first_done - started,
    }
    # Imported after training, as a first step should not wait for ArviZ and matplotlib.
    from np_latentode import diagnostics, plots

    _, score_key = jax.random.split(jax.random.key(seed))
    (
        test_key,
        fresh_key,
        noise_key,
        gauss_key,
        tree_key,
        code_key,
        prior_key,
        diagnose_key,
    ) = jax.random.split(score_key, 8)
    whole, half = _forecasts(test_key, model, guide, params, test)
    methods = {"model": _score_draws(whole, half, test)}
    methods |= _score_others(noise_key, family, train, test)
    metrics |= methods["model"]
    fresh = family.sample(jax.random.key(1_000), 500)
    # Half the draws: their number of trajectories makes up for it.
    fresh_draws = _forecasts(fresh_key, model, guide, params, fresh, num_samples=100)
    fresh_scores = _score_draws(*fresh_draws, fresh)
    metrics |= {f"fresh_{name}": value for name, value in fresh_scores.items()}
    metrics["others"] = {name: scores for name, scores in methods.items() if name != "model"}
    many = family.sample(jax.random.key(2_000), 20_000)
    report = diagnostics.gaussianization(gauss_key, model, guide, params, many)
    metrics |= {
        "kl": report.kl,
        "mutual_information": report.mutual_information,
        "kl_marginal": report.kl_marginal,
        "kl_marginal_se": report.standard_error,
        "kl_marginal_n": report.num_trajectories,
        "log_n": report.log_n,
        "energy_distance": report.energy_distance,
        "energy_distance_error": report.energy_distance_error,
        "active_units": int(np.sum(report.activity > 0.01)),
        "latent_mean": report.mean.tolist(),
        "latent_sd": report.sd.tolist(),
        "latent_skew": report.skew.tolist(),
        "latent_excess_kurtosis": report.excess_kurtosis.tolist(),
    }
    times = np.asarray(test.dense_times)
    z0 = posterior(guide, params, many[:2_000]).sample(code_key)
    figures = {
        "data": plots.plot_sampling(train),
        "training": plots.plot_training(
            losses, num_trajectories=len(train), best=metrics["exact_loss"]
        ),
        "reconstructions": plots.plot_forecasts(test, test, whole, times),
        "extrapolations": plots.plot_forecasts(test, test.before(CUT), half, times, start=CUT),
        "latent": plots.plot_latent(z0),
    }
    found = None
    if diagnose:
        from np_latentode.experiments.diagnosis import diagnose as check

        if progress:
            print("\nchecking guide and bands ...", flush=True)
        found = check(diagnose_key, model, guide, params, test, cut=CUT, many=fresh)
        metrics |= found.metrics
        figures |= found.figures
    if priors:
        fits = {"normal": normal}
        codes_key, compare_key, draw_key = jax.random.split(prior_key, 3)
        for name in dict.fromkeys(priors):
            if name == "normal":
                continue
            if progress:
                print(f"\nwith the prior {name}")
            fits[name] = fit(name, train, **settings, progress=progress)
            if fits[name].model.support == guide.support:
                fits[f"{name} on codes"] = on_codes(
                    codes_key, name, normal, train, seed=seed, progress=progress
                )
        compared, curves = {}, {}
        for name, other in fits.items():
            compared[name] = compare(compare_key, other, family, codes=many, fresh=fresh)
            draws = prior_predictive(
                draw_key, other.model, other.params, family.dense_times, num_samples=12
            )
            curves[name] = np.asarray(draws["x_mean"])
        metrics["priors"] = compared
        figures["priors"] = plots.plot_prior_draws(
            curves, family, shares={n: s["prior_predictive_share"] for n, s in compared.items()}
        )
    tree = diagnostics.to_datatree(
        tree_key, model, guide, params, test, feature_names=["x_1", "x_2"]
    )
    with result_dir(output_dir, overwrite=overwrite) as directory:
        tree.to_netcdf(directory / "posterior.nc", engine="h5netcdf")
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.png")
        metrics["seconds_total"] = time.perf_counter() - started
        (directory / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    if progress:
        if priors:
            print(_compared(metrics["priors"]))
        if found is not None:
            print(f"\n{found.text}")
        print(_summary(metrics, methods, report, output_dir))
    return metrics


def fit(
    prior: str,
    train: Spirals,
    *,
    steps: int,
    seed: int,
    latent_dim: int,
    batch_size: int,
    progress: bool = True,
) -> Fit:
    """Trains under the prior of a name; the other arguments are those of `run`."""
    # Apart, so that the networks start from the same weights under every prior.
    parts = make_prior(prior, latent_dim, rngs=nnx.Rngs(seed + 1_000))
    model, guide = latent_ode(train, latent_dim=latent_dim, rngs=nnx.Rngs(seed), **parts)
    svi = SVI(
        model,
        guide,
        optimizer(steps),
        Trace_ELBO(),
        batch_size=batch_size,
        conditioning=random_context,
    )
    train_key, _ = jax.random.split(jax.random.key(seed))
    (params, _, losses), first_done = run_svi(svi, train_key, steps, train, progress=progress)
    ms_per_step = 1e3 * (time.perf_counter() - first_done) / max(1, steps - STEPS_AT_ONCE)
    return Fit(model, guide, params, np.asarray(losses), ms_per_step, first_done)


def on_codes(
    rng_key: Array, name: str, fitted: Fit, train: Spirals, *, seed: int, progress: bool
) -> Fit:
    """The same networks under another prior, which is fitted to the codes that they make."""
    model = fitted.model
    part = make_prior(name, model.latent_dim, rngs=nnx.Rngs(seed))["prior"]
    params = fit_prior(rng_key, part, fitted.guide, fitted.params, train, progress=progress)
    model = LatentODE(
        model.dynamics,
        model.decoder,
        prior=part,
        scaling=model.scaling,
        likelihood=model.likelihood,
        solver=model.solver,
    )
    return fitted._replace(model=model, params=params)


def compare(
    rng_key: Array, fitted: Fit, family: SpiralFamily, *, codes: Spirals, fresh: Spirals
) -> dict[str, float]:
    """The scores of a prior, as of `score_prior`, and the errors of its model on fresh spirals."""
    score_key, draw_key = jax.random.split(rng_key)
    trained = fitted.model, fitted.guide, fitted.params
    scores = score_prior(score_key, *trained, family=family, codes=codes, fresh=fresh)
    draws = _forecasts(draw_key, *trained, fresh, num_samples=100)
    errors = _score_draws(*draws, fresh)
    return scores | {name: errors[name] for name in ("reconstruction_mse", "extrapolation_mse")}


def _keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on disk, so that a second run starts in seconds."""
    if jax.config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "np_latentode" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _forecasts(
    rng_key: Array,
    model: Any,
    guide: Any,
    params: dict,
    spirals: Spirals,
    *,
    num_samples: int = 200,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draws at the dense times, given all observations and given the early ones."""
    contexts: list[Trajectories] = [spirals, spirals.before(CUT)]
    whole, half = (
        forecast(
            key,
            model,
            guide,
            params,
            context,
            spirals.dense_times,
            num_samples=num_samples,
        )
        for key, context in zip(jax.random.split(rng_key), contexts, strict=True)
    )
    return whole, half


def _score_draws(
    whole: dict[str, Array], half: dict[str, Array], spirals: Spirals
) -> dict[str, float]:
    scores = {}
    for task, draws, after in (("reconstruction", whole, None), ("extrapolation", half, CUT)):
        mean, noisy = np.asarray(draws["x_mean"]).mean(0), np.asarray(draws["x"])
        scores |= {f"{task}_{k}": v for k, v in score(mean, noisy, spirals, after=after).items()}
    scores["coverage_90"] = scores.pop("extrapolation_coverage_90")
    return scores


def _score_others(
    rng_key: Array, family: SpiralFamily, train: Spirals, test: Spirals
) -> dict[str, dict[str, float]]:
    """The exact answer, and those that learn nothing."""
    times = test.dense_times
    whole, half = (
        {"x_mean": oracle.mean(times)[None], "x": oracle.sample(rng_key, times, 200)}
        for oracle in (family.posterior(test), family.posterior(test.before(CUT)))
    )
    scores = {"exact Bayes oracle": _score_draws(whole, half, test)}
    for name, predict in (
        ("constant", baselines.constant),
        ("last value", baselines.last_value),
        ("linear interpolation", baselines.linear),
    ):
        scores[name] = {}
        for task, context, after in (
            ("reconstruction", test, None),
            ("extrapolation", test.before(CUT), CUT),
        ):
            predicted = predict(train, context, np.asarray(times))
            scores[name][f"{task}_mse"] = score(predicted, None, test, after=after)["mse"]
    scores["seed notebook, as published"] = SEED_NOTEBOOK
    return scores


def _summary(
    metrics: dict[str, Any], methods: dict[str, dict[str, float]], report: Any, output_dir: Path
) -> str:
    columns = ("reconstruction_mse", "extrapolation_mse", "coverage_90")
    lines = ["", f"{'on 50 held-out spirals':30s}" + "".join(f"{c:>20s}" for c in columns)]
    fresh = {c: metrics[f"fresh_{c}"] for c in columns}
    names = {"model": "latent ODE"}
    for name, scores in (methods | {"latent ODE, 500 fresh spirals": fresh}).items():
        cells = (f"{scores[c]:20.5f}" if c in scores else f"{'-':>20s}" for c in columns)
        lines.append(f"{names.get(name, name):30s}" + "".join(cells))
    lines += [
        "",
        f"noise {np.mean(metrics['noise_scale']):.4f} (true 0.05), "
        f"-ELBO a trajectory {metrics['loss']:.2f} (exact -log p(x) {metrics['exact_loss']:.2f})",
        str(report),
        "",
        f"{metrics['ms_per_step']:.2f} ms a step, first step after "
        f"{metrics['seconds_to_first_step']:.1f} s, all in {metrics['seconds_total']:.1f} s",
        f"results in {output_dir}",
    ]
    return "\n".join(lines)


def _compared(priors: dict[str, dict[str, float]]) -> str:
    columns = {
        "elbo": "ELBO",
        "kl": "KL",
        "mutual_information": "I(x; z)",
        "kl_marginal": "KL(q||p)",
        "code_phase_ks": "KS codes",
        "prior_phase_ks": "KS draws",
        "prior_predictive_share": "share",
        "reconstruction_mse": "reconstr.",
        "extrapolation_mse": "extrapol.",
    }
    lines = ["", f"{'prior':28s}" + "".join(f"{title:>11s}" for title in columns.values())]
    for name, scores in priors.items():
        cells = (f"{scores[c]:11.4f}" if c in scores else f"{'-':>11s}" for c in columns)
        lines.append(f"{name:28s}" + "".join(cells))
    return "\n".join(lines)

"""Spirals: fit, reconstruct, extrapolate, and ask how Gaussian the code is."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from np_latentode.forecasts.prediction import posterior, prior, prior_predictive
from np_latentode.storage.results import check_output_dir, result_dir
from np_latentode.studies.datasets import SpiralFamily
from np_latentode.studies.spirals_priors import fit, make_prior, on_codes, score_prior
from np_latentode.studies.spirals_scores import CUT, forecasts, score_draws, score_others

__all__ = ["run"]


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
    family = SpiralFamily()
    spirals = family.sample(jax.random.key(0), 250)
    train, test = spirals[:200], spirals[200:]

    settings = dict(steps=steps, seed=seed, latent_dim=latent_dim, batch_size=batch_size)
    normal = fit("normal", train, **settings, progress=progress)
    model, guide, params, history, ms_per_step, first_done = normal
    metrics = {
        "steps": steps,
        "seed": seed,
        "latent_dim": latent_dim,
        "batch_size": batch_size,
        "noise_scale": np.asarray(params["noise_scale"]).tolist(),
        "loss": float(np.nanmean(history.losses[-steps // 20 :])) / len(train),
        "exact_loss": -float(family.posterior(train).log_evidence.mean()),
        "ms_per_step": ms_per_step,
        "seconds_to_first_step": first_done - started,
    }
    # Imported after training, as a first step should not wait for ArviZ and matplotlib.
    from np_latentode.report import datatree as diagnostics, plots
    from np_latentode.studies import figures as drawn

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
    whole, half = forecasts(test_key, model, guide, params, test)
    methods = {"model": score_draws(whole, half, test)}
    methods |= score_others(noise_key, family, train, test)
    metrics |= methods["model"]
    fresh = family.sample(jax.random.key(1_000), 500)
    # Half the draws: their number of trajectories makes up for it.
    fresh_draws = forecasts(fresh_key, model, guide, params, fresh, num_samples=100)
    fresh_scores = score_draws(*fresh_draws, fresh)
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
        "data": drawn.plot_sampling(train),
        "training": plots.plot_training(
            history.losses, num_trajectories=len(train), best=metrics["exact_loss"]
        ),
        "reconstructions": drawn.plot_spirals(test, test, whole, times),
        "extrapolations": drawn.plot_spirals(test, test.before(CUT), half, times),
        "latent": plots.plot_latent(z0, prior(model, params).sample(code_key, (2_000,))),
    }
    found = None
    if diagnose:
        from np_latentode.studies.diagnosis import diagnose as check

        found = check(
            diagnose_key, model, guide, params, test, cut=CUT, many=fresh, progress=progress
        )
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
            compared[name] = score_prior(compare_key, other, family, codes=many, fresh=fresh)
            draws = prior_predictive(
                draw_key, other.model, other.params, family.dense_times, num_samples=12
            )
            curves[name] = np.asarray(draws["x_mean"])
        metrics["priors"] = compared
        figures["priors"] = drawn.plot_prior_draws(
            curves, family, shares={n: s["prior_predictive_share"] for n, s in compared.items()}
        )
    tree = diagnostics.to_datatree(
        tree_key,
        model,
        guide,
        params,
        test,
        times=test.dense_times if diagnose else None,
        feature_names=["x_1", "x_2"],
    )
    with result_dir(output_dir, overwrite=overwrite) as directory:
        tree.to_netcdf(directory / "posterior.nc", engine="h5netcdf")
        if found is not None:
            found.exact.to_netcdf(directory / "exact.nc", engine="h5netcdf")
            (directory / "diagnosis.txt").write_text(found.text + "\n")
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

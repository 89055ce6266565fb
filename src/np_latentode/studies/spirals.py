"""The study of spirals: fit, reconstruct, extrapolate, and measure how Gaussian the codes are."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior, prior
from np_latentode.forecasts.prediction import prior_predictive
from np_latentode.inference.pareto import TRUSTED
from np_latentode.inference.sharpening import Sharpened, Sharpening, sharpen
from np_latentode.programs.fitted import Fitted
from np_latentode.storage.results import check_output_dir, result_dir
from np_latentode.studies.datasets import SpiralFamily, Spirals
from np_latentode.studies.spirals_priors import Trained, make_prior, on_codes, score_prior, train
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
    """The main study: trains on 200 spirals, and writes scores, draws and figures of 50 others.

    Args:
        output_dir: where metrics.json, posterior.nc and the figures go.
        steps, seed, latent_dim, batch_size: of each fit.
        priors: the names of priors to compare with N(0, I), as in `make_prior`.
        diagnose: whether to check guide and bands, which takes one or two minutes.
        overwrite: whether the results of an earlier run are replaced.
        progress: whether to show progress and print the scores.
        started: when the program started, by `time.perf_counter`.

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: if an argument is out of range, or output_dir cannot be used.
    """
    started = time.perf_counter() if started is None else started
    check_output_dir(output_dir, overwrite=overwrite)
    for name in priors:
        make_prior(name, latent_dim, rngs=nnx.Rngs(0))
    settings = dict(steps=steps, seed=seed, latent_dim=latent_dim, batch_size=batch_size)
    data, keys = _Data(), _keys(seed)
    normal = train("normal", data.train, **settings, progress=progress)
    found = _Results({**settings, **_fit_metrics(normal, data, steps, started)})
    whole, half = _score(found, keys, normal, data)
    _draw(found, keys, normal, data, whole, half)
    if diagnose:
        _diagnose(found, keys, normal, data, progress=progress)
    if priors:
        _compare_priors(found, keys, normal, data, priors, settings, progress=progress)
    _write(found, keys, normal, data, output_dir, overwrite=overwrite, started=started)
    if progress:
        print(_summary(found, output_dir))
    return found.metrics


class _Data:
    """The spirals of the study; those that training does not need are drawn when first used."""

    def __init__(self):
        self.family = SpiralFamily()
        spirals = self.family.sample(jax.random.key(0), 250)
        self.train, self.test = spirals[:200], spirals[200:]

    @cached_property
    def fresh(self) -> Spirals:
        """More spirals than the 50, to score forecasts with less noise."""
        return self.family.sample(jax.random.key(1_000), 500)

    @cached_property
    def many(self) -> Spirals:
        """For the KL from codes to prior."""
        return self.family.sample(jax.random.key(2_000), 20_000)


class _Keys(NamedTuple):
    """One random key for each step of the study."""

    test: Array
    fresh: Array
    noise: Array
    gauss: Array
    tree: Array
    code: Array
    prior: Array
    diagnose: Array


@dataclass
class _Results:
    """What the steps of the study find."""

    metrics: dict[str, Any]
    methods: Any = None
    figures: Any = None
    gaussianization: Any = None
    diagnosis: Any = None


def _keys(seed: int) -> _Keys:
    _, score_key = jax.random.split(jax.random.key(seed))
    return _Keys(*jax.random.split(score_key, len(_Keys._fields)))


def _fit_metrics(trained: Trained, data: _Data, steps: int, started: float) -> dict[str, Any]:
    losses = trained.fitted.history.losses
    return {
        "noise_scale": np.asarray(trained.fitted.params["noise_scale"]).tolist(),
        "loss": float(np.nanmean(losses[-steps // 20 :])) / len(data.train),
        "exact_loss": -float(data.family.posterior(data.train).log_evidence.mean()),
        "ms_per_step": trained.ms_per_step,
        "seconds_to_first_step": trained.first_done - started,
    }


def _score(
    found: _Results, keys: _Keys, trained: Trained, data: _Data
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores forecasts and codes; returns draws given all observations, and given early ones."""
    # Imported after training, as the first step should not wait for ArviZ.
    from np_latentode.report.gaussianization import gaussianization

    fitted, test = trained.fitted, data.test
    methods = {"model": score_draws(*forecasts(keys.test, fitted, test), test)}
    whole, half = forecasts(keys.test, fitted, test, inference=Sharpened())
    methods["sharpened"] = score_draws(whole, half, test)
    methods |= score_others(keys.noise, data.family, data.train, test)
    # Half the draws are enough, as there are ten times as many trajectories.
    fresh = score_draws(*forecasts(keys.fresh, fitted, data.fresh, num_samples=100), data.fresh)
    sharpened = _sharpened(keys.fresh, fitted, data.fresh)
    report = gaussianization(keys.gauss, fitted, data.many)
    found.methods, found.gaussianization = methods, report
    found.metrics |= methods["model"]
    found.metrics |= {f"fresh_{name}": value for name, value in fresh.items()}
    found.metrics |= {f"sharpened_{name}": value for name, value in sharpened.items()}
    found.metrics["others"] = {name: scores for name, scores in methods.items() if name != "model"}
    found.metrics |= {
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
    return whole, half


def _sharpened(rng_key: Array, fitted: Fitted, fresh: Spirals) -> dict[str, float]:
    """Scores of sharpened forecasts, and the share of weights that can be trusted."""
    reports: list[Sharpening] = []

    def noted(rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int) -> Array:
        reports.append(sharpen(rng_key, fitted, context, num_samples=num_samples))
        return reports[-1].z0

    draws = forecasts(rng_key, fitted, fresh, inference=noted, num_samples=100)
    scores = {f"fresh_{name}": value for name, value in score_draws(*draws, fresh).items()}
    trusted = np.mean([report.pareto_k <= TRUSTED for report in reports])
    return scores | {"pareto_k_trusted": float(trusted)}


def _draw(
    found: _Results,
    keys: _Keys,
    trained: Trained,
    data: _Data,
    whole: dict[str, Any],
    half: dict[str, Any],
) -> None:
    """Draws the data, the training, forecasts and codes."""
    from np_latentode.report import plots
    from np_latentode.studies import spirals_figures as drawn

    fitted, test = trained.fitted, data.test
    times = np.asarray(test.dense_times)
    z0 = posterior(fitted, data.many[:2_000]).sample(keys.code)
    found.figures = {
        "data": drawn.plot_sampling(data.train),
        "training": plots.plot_training(
            fitted.history.losses,
            num_trajectories=len(data.train),
            best=found.metrics["exact_loss"],
        ),
        "reconstructions": drawn.plot_spirals(test, test, whole, times),
        "extrapolations": drawn.plot_spirals(test, test.before(CUT), half, times),
        "latent": plots.plot_latent(z0, prior(fitted).sample(keys.code, (2_000,))),
    }


def _diagnose(
    found: _Results, keys: _Keys, trained: Trained, data: _Data, *, progress: bool
) -> None:
    """Checks guide and bands by exact posteriors."""
    from np_latentode.studies.diagnosis import diagnose

    found.diagnosis = diagnose(
        keys.diagnose, trained.fitted, data.test, cut=CUT, many=data.fresh, progress=progress
    )
    found.metrics |= found.diagnosis.metrics
    found.figures |= found.diagnosis.figures


def _compare_priors(
    found: _Results,
    keys: _Keys,
    normal: Trained,
    data: _Data,
    priors: Sequence[str],
    settings: dict[str, int],
    *,
    progress: bool,
) -> None:
    """Fits under each prior, jointly and on the codes of N(0, I), and scores all of them."""
    from np_latentode.studies.spirals_figures import plot_prior_draws

    fits = {"normal": normal}
    codes_key, compare_key, draw_key = jax.random.split(keys.prior, 3)
    for name in dict.fromkeys(priors):
        if name == "normal":
            continue
        if progress:
            print(f"\nwith the prior {name}")
        fits[name] = train(name, data.train, **settings, progress=progress)
        if fits[name].fitted.model.support == normal.fitted.guide.support:
            fits[f"{name} on codes"] = on_codes(
                codes_key, name, normal, data.train, seed=settings["seed"], progress=progress
            )
    compared, curves, family = {}, {}, data.family
    for name, other in fits.items():
        compared[name] = score_prior(
            compare_key, other.fitted, family, codes=data.many, fresh=data.fresh
        )
        draws = prior_predictive(draw_key, other.fitted, family.dense_times, num_samples=12)
        curves[name] = np.asarray(draws["x_mean"])
    found.metrics["priors"] = compared
    found.figures["priors"] = plot_prior_draws(
        curves, family, shares={n: s["prior_predictive_share"] for n, s in compared.items()}
    )


def _write(
    found: _Results,
    keys: _Keys,
    trained: Trained,
    data: _Data,
    output_dir: Path,
    *,
    overwrite: bool,
    started: float,
) -> None:
    """Writes draws, figures and metrics: all of them, or none if a step fails."""
    from np_latentode.report.datatree import to_datatree

    tree = to_datatree(
        keys.tree,
        trained.fitted,
        data.test,
        times=None if found.diagnosis is None else data.test.dense_times,
        feature_names=["x_1", "x_2"],
    )
    with result_dir(output_dir, overwrite=overwrite) as directory:
        tree.to_netcdf(directory / "posterior.nc", engine="h5netcdf")
        if found.diagnosis is not None:
            found.diagnosis.exact.to_netcdf(directory / "exact.nc", engine="h5netcdf")
            (directory / "diagnosis.txt").write_text(found.diagnosis.text + "\n")
        for name, figure in found.figures.items():
            figure.savefig(directory / f"{name}.png")
        found.metrics["seconds_total"] = time.perf_counter() - started
        (directory / "metrics.json").write_text(json.dumps(found.metrics, indent=2) + "\n")


def _summary(found: _Results, output_dir: Path) -> str:
    metrics = found.metrics
    parts = [_compared(metrics["priors"])] if "priors" in metrics else []
    if found.diagnosis is not None:
        parts.append(f"\n{found.diagnosis.text}")
    columns = ("reconstruction_mse", "extrapolation_mse", "coverage_90")
    lines = ["", f"{'on 50 held-out spirals':30s}" + "".join(f"{c:>20s}" for c in columns)]
    fresh = {c: metrics[f"fresh_{c}"] for c in columns}
    sharpened = {c: metrics[f"sharpened_fresh_{c}"] for c in columns}
    names = {"model": "latent ODE, guide", "sharpened": "latent ODE, sharpened"}
    others = {"guide, 500 fresh spirals": fresh, "sharpened, 500 fresh": sharpened}
    for name, scores in (found.methods | others).items():
        cells = (f"{scores[c]:20.5f}" if c in scores else f"{'-':>20s}" for c in columns)
        lines.append(f"{names.get(name, name):30s}" + "".join(cells))
    lines += [
        "",
        f"noise {np.mean(metrics['noise_scale']):.4f} (true 0.05), "
        f"-ELBO per trajectory {metrics['loss']:.2f} (exact -log p(x) {metrics['exact_loss']:.2f})",
        str(found.gaussianization),
        "",
        f"{metrics['ms_per_step']:.2f} ms per step, first step after "
        f"{metrics['seconds_to_first_step']:.1f} s, all in {metrics['seconds_total']:.1f} s",
        f"results in {output_dir}",
    ]
    return "\n".join([*parts, *lines])


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

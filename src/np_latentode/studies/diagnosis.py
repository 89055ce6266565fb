"""All checks of a fit at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from arviz_stats.utils import ELPDDataLOO
from jaxtyping import Array
from matplotlib.figure import Figure
from numpyro.distributions import Distribution
from xarray import DataTree

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.calibration import (
    Calibration,
    SimulationRanks,
    calibration,
    simulation_ranks,
)
from np_latentode.forecasts.codes import posterior
from np_latentode.forecasts.prediction import forecast
from np_latentode.inference.amortization import AmortizationReport, amortization
from np_latentode.inference.importance import ImportanceReport, elpd, importance
from np_latentode.inference.nuts import exact_posterior
from np_latentode.inference.pareto import TRUSTED
from np_latentode.inference.sharpening import Sharpened, Sharpening, sharpen
from np_latentode.programs.fitted import Fitted
from np_latentode.report import plots
from np_latentode.report.fans import plot_forecasts

__all__ = ["Diagnosis", "diagnose", "needed"]

NEAR, NEAR_CRPS = 0.15, 0.02
"""How far from the exact posterior an inference may be that is enough: the median shift in standard
deviations, the median ratio of standard deviations from 1, and the share by which CRPS is higher.
"""

SHARPENED = Sharpened()


class Diagnosis(NamedTuple):
    """The result of all checks."""

    metrics: dict[str, Any]
    figures: dict[str, Figure]
    exact: DataTree
    """Draws from the exact posteriors."""
    text: str


def diagnose(
    rng_key: Array,
    fitted: Fitted,
    trajectories: Trajectories,
    *,
    cut: float,
    many: Trajectories,
    progress: bool = True,
) -> Diagnosis:
    """Checks a fit on trajectories that it was not trained on.

    Args:
        rng_key: a key.
        fitted: the fit.
        trajectories: those with exact posteriors. Observations up to `cut` are the context, later
            ones are the target.
        cut: the time at which forecasts begin.
        many: more trajectories, for bands and ranks.
        progress: whether to print each step.
    """
    keys = iter(jax.random.split(rng_key, 12))
    context, target = trajectories.before(cut), trajectories.after(cut)
    say = _say if progress else lambda what: None
    say("importance weights, bands and ranks")
    guide = _check_guide(keys, fitted, context, target, many, cut)
    times = np.linspace(fitted.model.scaling.t0, trajectories.given.times.max(), 101)
    fans = forecast(next(keys), fitted, context, times)
    say("exact posteriors")
    q = posterior(fitted, context)
    exact = exact_posterior(next(keys), fitted, context, q=q, progress=progress)
    say("sharpened posteriors")
    sharpened = _check_sharpened(keys, fitted, context, many)
    others = {"sharpened": SHARPENED}
    report = amortization(next(keys), fitted, context, target, exact=exact, others=others)
    figures = {
        "fans": plot_forecasts(context, fans, times, target=target),
        "calibration": plots.plot_calibration(guide.bands),
        "ranks": plots.plot_ranks(guide.ranks),
        "pareto_k": plots.plot_pareto_k(guide.scores),
        "guide": _plot_worst(next(keys), report, exact, q, sharpened),
    }
    parts = (guide.bands, guide.weights, guide.ranks, sharpened.draws, sharpened.ranks, report)
    text = "\n".join([*map(str, parts), needed(report)])
    metrics = _guide_metrics(guide) | _sharpened_metrics(sharpened) | _exact_metrics(report)
    return Diagnosis(metrics, figures, exact, text)


def needed(report: AmortizationReport) -> str:
    """Which inference forecasts need, in words: the cheapest one that is near the exact one."""
    for name in report.shift:
        shift = float(np.median(np.abs(report.shift[name])))
        ratio = float(np.median(report.sd_ratio[name]))
        crps, exact = (float(np.nanmean(report.crps[key])) for key in (name, "exact"))
        words = (
            f"means are {shift:.2f} exact standard deviations off in the median, standard "
            f"deviations {ratio:.2f} times the exact ones, and the CRPS of forecasts is {crps:.4g} "
            f"beside {exact:.4g}"
        )
        if shift <= NEAR and abs(ratio - 1) <= NEAR and crps <= (1 + NEAR_CRPS) * exact:
            return f"{name} is enough: {words}"
    return f"exact posteriors are needed: of {name}, {words}"


def _say(what: str) -> None:
    print(f"{what} ...", flush=True)


class _SharpenedChecks(NamedTuple):
    """Checks of sharpened posteriors that need no exact ones."""

    draws: Sharpening
    ranks: SimulationRanks


def _check_sharpened(
    keys: Iterator[Array], fitted: Fitted, context: Trajectories, many: Trajectories
) -> _SharpenedChecks:
    return _SharpenedChecks(
        draws=sharpen(next(keys), fitted, context, num_samples=400),
        ranks=simulation_ranks(next(keys), fitted, many, inference=SHARPENED),
    )


class _Guide(NamedTuple):
    """Checks of the guide that need no exact posterior."""

    weights: ImportanceReport
    scores: ELPDDataLOO
    ahead: ELPDDataLOO
    bands: Calibration
    ranks: SimulationRanks


def _check_guide(
    keys: Iterator[Array],
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories,
    many: Trajectories,
    cut: float,
) -> _Guide:
    return _Guide(
        weights=importance(next(keys), fitted, context),
        scores=elpd(next(keys), fitted, context),
        ahead=elpd(next(keys), fitted, context, target),
        bands=calibration(next(keys), fitted, many.before(cut), many.after(cut)),
        ranks=simulation_ranks(next(keys), fitted, many),
    )


def _guide_metrics(guide: _Guide) -> dict[str, Any]:
    weights, scores, ahead, bands = guide.weights, guide.scores, guide.ahead, guide.bands
    coverage = {
        f"coverage_{round(100 * level)}_forecasts": float(share)
        for level, share in zip(bands.levels, bands.coverage, strict=True)
    }
    return coverage | {
        "crps": float(np.nanmean(bands.crps)),
        "log_score": float(np.nanmean(bands.log_score)),
        "elpd": scores.elpd / scores.n_data_points,
        "elpd_forecasts": ahead.elpd / ahead.n_data_points,
        "pareto_k_median": float(np.median(weights.pareto_k)),
        "pareto_k_worst": float(weights.pareto_k.max()),
        "pareto_k_trusted": float(np.mean(weights.pareto_k <= TRUSTED)),
        "elbo_gap_median": float(np.median(weights.gap)),
        "sbc_p_values": guide.ranks.p_value.tolist(),
    }


def _sharpened_metrics(sharpened: _SharpenedChecks) -> dict[str, Any]:
    return {
        "pareto_k_trusted_sharpened": float(np.mean(sharpened.draws.pareto_k <= TRUSTED)),
        "sbc_p_values_sharpened": sharpened.ranks.p_value.tolist(),
    }


def _exact_metrics(report: AmortizationReport) -> dict[str, Any]:
    shift = {name: np.abs(values) for name, values in report.shift.items()}
    return {
        "rhat_worst": float(report.convergence.rhat.max()),
        "ess_least": float(report.convergence.ess.min()),
        "divergences": int(report.convergence.divergences.sum()),
        **{f"sd_ratio_median_{name}": float(np.median(r)) for name, r in report.sd_ratio.items()},
        **{f"shift_median_{name}": float(np.median(s)) for name, s in shift.items()},
        **{f"shift_worst_{name}": float(s.max()) for name, s in shift.items()},
        **{f"crps_{name}": float(np.nanmean(c)) for name, c in report.crps.items()},
    }


def _plot_worst(
    rng_key: Array,
    report: AmortizationReport,
    exact: DataTree,
    q: Distribution,
    sharpened: _SharpenedChecks,
) -> Figure:
    """Draws of the trajectory whose guide is furthest from the exact posterior."""
    worst = int(np.abs(report.shift["guide"]).max(-1).argmax())
    z0 = np.asarray(exact["posterior"]["z0"])
    nuts = z0[:, :, worst].reshape(-1, z0.shape[-1])
    draws = {
        "exact (NUTS)": nuts[:: max(1, len(nuts) // 600)],
        "guide": np.asarray(q.sample(rng_key, (400,)))[:, worst],
        "sharpened": np.asarray(sharpened.draws.z0)[:, worst],
    }
    return plots.plot_guide(draws, title=f"trajectory {worst}, where the guide is worst")

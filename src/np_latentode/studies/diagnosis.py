"""Can the forecasts be trusted? Everything that the library knows to ask of a fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure
from xarray import DataTree

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.calibration import calibration, simulation_ranks
from np_latentode.forecasts.prediction import forecast, posterior
from np_latentode.inference.amortization import amortization
from np_latentode.inference.importance import TRUSTED, elpd, importance
from np_latentode.inference.nuts import exact_posterior
from np_latentode.inference.refinement import refine
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.report import plots

__all__ = ["Diagnosis", "diagnose"]


class Diagnosis(NamedTuple):
    """What was found: numbers, figures, draws of the exact posteriors, and sentences."""

    metrics: dict[str, Any]
    figures: dict[str, Figure]
    exact: DataTree
    text: str


def diagnose(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    trajectories: Trajectories,
    *,
    cut: float,
    many: Trajectories,
    progress: bool = True,
) -> Diagnosis:
    """Checks a fit on trajectories that it was not trained on.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: for the exact posterior: their observations up to `cut` are the context, the
            later ones the target.
        cut: where forecasts begin.
        many: more trajectories, for calibration.
        progress: whether to say what is being done.
    """
    keys = iter(jax.random.split(rng_key, 10))
    fitted = model, guide, params
    context, target = trajectories.before(cut), trajectories.after(cut)
    q = posterior(guide, params, context)

    def say(what: str) -> None:
        if progress:
            print(f"{what} ...", flush=True)

    say("importance weights, bands and ranks")
    weights = importance(next(keys), *fitted, context)
    scores = elpd(next(keys), *fitted, context)
    ahead = elpd(next(keys), *fitted, context, target)
    bands = calibration(next(keys), *fitted, many.before(cut), many.after(cut))
    ranks = simulation_ranks(next(keys), *fitted, many)
    times = np.linspace(model.scaling.t0, float(trajectories.times.max()), 101)
    fans = forecast(next(keys), *fitted, context, times)
    say("exact posteriors")
    exact = exact_posterior(next(keys), model, params, context, q=q, progress=progress)
    say("refinement")
    refined = refine(next(keys), *fitted, context)
    report = amortization(next(keys), *fitted, context, target, exact=exact, refined=refined)
    shift = {name: np.abs(values) for name, values in report.shift.items()}
    worst = int(shift["guide"].max(-1).argmax())
    nuts = np.asarray(exact["posterior"]["z0"])[:, :, worst].reshape(-1, model.latent_dim)
    draw_key = next(keys)
    draws = {
        "exact (NUTS)": nuts[:: max(1, len(nuts) // 600)],
        "guide": np.asarray(q.sample(draw_key, (400,)))[:, worst],
        "refined": np.asarray(refined.q.sample(draw_key, (400,)))[:, worst],
    }
    coverage = {
        f"coverage_{round(100 * level)}_forecasts": float(share)
        for level, share in zip(bands.levels, bands.coverage, strict=True)
    }
    metrics = coverage | {
        "crps": float(np.nanmean(bands.crps)),
        "log_score": float(np.nanmean(bands.log_score)),
        "elpd": scores.elpd / scores.n_data_points,
        "elpd_forecasts": ahead.elpd / ahead.n_data_points,
        "pareto_k_median": float(np.median(weights.pareto_k)),
        "pareto_k_worst": float(weights.pareto_k.max()),
        "pareto_k_trusted": float(np.mean(weights.pareto_k <= TRUSTED)),
        "elbo_gap_median": float(np.median(weights.gap)),
        "sbc_p_values": ranks.p_value.tolist(),
        "rhat_worst": float(report.convergence.rhat.max()),
        "ess_least": float(report.convergence.ess.min()),
        "divergences": int(report.convergence.divergences.sum()),
        **{f"sd_ratio_median_{name}": float(np.median(r)) for name, r in report.sd_ratio.items()},
        **{f"shift_median_{name}": float(np.median(s)) for name, s in shift.items()},
        **{f"shift_worst_{name}": float(s.max()) for name, s in shift.items()},
        **{f"crps_{name}": float(np.nanmean(c)) for name, c in report.crps.items()},
    }
    figures = {
        "fans": plots.plot_forecasts(context, fans, times, target=target),
        "calibration": plots.plot_calibration(bands),
        "ranks": plots.plot_ranks(ranks),
        "pareto_k": plots.plot_pareto_k(scores),
        "guide": plots.plot_guide(draws, title=f"trajectory {worst}, where the guide is worst"),
    }
    text = "\n".join(map(str, (bands, weights, ranks, report)))
    return Diagnosis(metrics, figures, exact, text)

"""Can the forecasts be trusted? Everything that the library knows to ask of a fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from np_latentode import plots
from np_latentode.amortization import amortization
from np_latentode.calibration import calibration, simulation_ranks
from np_latentode.exact import exact_posterior
from np_latentode.guide import AmortizedGuide
from np_latentode.importance import elpd, importance
from np_latentode.model import LatentODE
from np_latentode.prediction import posterior
from np_latentode.refinement import refine
from np_latentode.trajectories import Trajectories

__all__ = ["Diagnosis", "diagnose"]


class Diagnosis(NamedTuple):
    """What was found: numbers, figures, and sentences."""

    metrics: dict[str, Any]
    figures: dict[str, Figure]
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
) -> Diagnosis:
    """Checks a fit on trajectories that it was not trained on.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        trajectories: for the exact posterior: their observations up to `cut` are the context, the
            later ones the target.
        cut: where forecasts begin.
        many: more trajectories, for calibration.
    """
    keys = iter(jax.random.split(rng_key, 8))
    fitted = model, guide, params
    context, target = trajectories.before(cut), trajectories.after(cut)
    weights = importance(next(keys), *fitted, context)
    scores = elpd(next(keys), *fitted, context, target)
    bands = calibration(next(keys), *fitted, many.before(cut), many.after(cut))
    ranks = simulation_ranks(next(keys), *fitted, many)
    exact = exact_posterior(next(keys), model, params, context, guide=guide)
    refined = refine(next(keys), *fitted, context)
    report = amortization(next(keys), *fitted, context, target, exact=exact, refined=refined)
    draw_key = next(keys)
    shift = {name: np.abs(values) for name, values in report.shift.items()}
    worst = int(shift["guide"].max(-1).argmax())
    draws = {
        "exact (NUTS)": np.asarray(exact["posterior"]["z0"])[:, ::10, worst].reshape(
            -1, model.latent_dim
        ),
        "guide": np.asarray(posterior(guide, params, context).sample(draw_key, (400,)))[:, worst],
        "refined": np.asarray(refined.q.sample(draw_key, (400,)))[:, worst],
    }
    coverage = {
        f"coverage_{round(100 * level)}_forecasts": float(share)
        for level, share in zip(bands.levels, bands.coverage, strict=True)
    }
    metrics = coverage | {
        "crps": float(np.nanmean(bands.crps)),
        "log_score": float(np.nanmean(bands.log_score)),
        "log_score_exact": scores.elpd / scores.n_data_points,
        "pareto_k_median": float(np.median(weights.pareto_k)),
        "pareto_k_worst": float(weights.pareto_k.max()),
        "elbo_gap_median": float(np.median(weights.gap)),
        "sbc_p_values": ranks.p_value.tolist(),
        "rhat_worst": float(report.convergence.rhat.max()),
        "ess_least": float(report.convergence.ess.min()),
        **{f"shift_median_{name}": float(np.median(s)) for name, s in shift.items()},
        **{f"shift_worst_{name}": float(s.max()) for name, s in shift.items()},
        **{f"crps_{name}": float(np.nanmean(c)) for name, c in report.crps.items()},
    }
    figures = {
        "calibration": plots.plot_calibration(bands),
        "ranks": plots.plot_ranks(ranks),
        "pareto_k": plots.plot_pareto_k(weights),
        "guide": plots.plot_guide(draws, title=f"trajectory {worst}, where the guide is worst"),
    }
    return Diagnosis(metrics, figures, "\n".join(map(str, (bands, weights, ranks, report))))

"""How far amortized answers are from exact ones, and what that costs in forecasts."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scoringrules
from jaxtyping import Array
from xarray import DataTree

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.prediction import decode, observed_times, posterior
from np_latentode.inference.nuts import Convergence, check_exact, convergence
from np_latentode.inference.refinement import Refined
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data

__all__ = ["AmortizationReport", "amortization"]


@dataclass(frozen=True)
class AmortizationReport:
    """How far a guide and its refinement are from the exact posterior, and what that costs.

    Keys are "guide" and "refined", in `crps` also "exact". In the coordinates of z0 itself,
    `shift` is the difference of means in units of the exact standard deviation, and `sd_ratio`
    that of standard deviations, shape (trajectory, latent). `crps` is the continuous ranked
    probability score of the target's observed values, averaged over each trajectory, in original
    units (features are averaged as they are).
    """

    shift: dict[str, np.ndarray]
    sd_ratio: dict[str, np.ndarray]
    crps: dict[str, np.ndarray]
    convergence: Convergence

    def __str__(self) -> str:
        titles = ("|shift| median", "worst", "sd ratio median", "least", "most", "CRPS")
        lines = [" " * 8 + "".join(f"{title:>16s}" for title in titles)]
        for name, crps in self.crps.items():
            cells = ["-"] * 5
            if name in self.shift:
                shift, ratio = np.abs(self.shift[name]), self.sd_ratio[name]
                figures = [np.median(shift), shift.max()]
                figures += [np.median(ratio), ratio.min(), ratio.max()]
                cells = [f"{figure:.3f}" for figure in figures]
            cells.append(f"{np.nanmean(crps):.5f}")
            lines.append(f"{name:8s}" + "".join(f"{cell:>16s}" for cell in cells))
        return "\n".join([*lines, f"exact: {self.convergence}"])


def amortization(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    context: Trajectories,
    target: Trajectories,
    *,
    exact: DataTree,
    refined: Refined | None = None,
    num_moments: int = 4_000,
    num_samples: int = 400,
) -> AmortizationReport:
    """Compares the guide, and its refinement, with the exact posterior and their forecasts.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        context: what z0 was inferred from.
        target: what was observed of the same trajectories, to score forecasts by.
        exact: what `exact_posterior` drew for this context.
        refined: what `refine` returned for it. Default: the guide alone is compared.
        num_moments: draws that means and standard deviations are taken from.
        num_samples: draws of each forecast.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_moments=num_moments, num_samples=num_samples)
    check_data(model, context, target, targets=True)
    nuts = np.asarray(check_exact(exact, context)["posterior"]["z0"], dtype=float)
    nuts = nuts.reshape(-1, *nuts.shape[2:])
    guide_key, refined_key, pick_key, x_key = jax.random.split(rng_key, 4)
    z0 = {"guide": posterior(guide, params, context).sample(guide_key, (num_moments,))}
    if refined is not None:
        z0["refined"] = refined.q.sample(refined_key, (num_moments,))
    draws = {name: np.asarray(value, dtype=float) for name, value in z0.items()}
    exact_mean, exact_sd = nuts.mean(0), nuts.std(0)
    crps, times = {}, observed_times(model, target)
    for name, all_draws in (draws | {"exact": nuts}).items():
        picked = jax.random.choice(pick_key, len(all_draws), (num_samples,))
        # The same noise for all, so that their scores differ by z0 alone.
        x = decode(x_key, model, params, jnp.asarray(all_draws)[picked], times)["x"]
        crps[name] = _mean_crps(target, np.asarray(x, dtype=float))
    return AmortizationReport(
        shift={name: (d.mean(0) - exact_mean) / exact_sd for name, d in draws.items()},
        sd_ratio={name: d.std(0) / exact_sd for name, d in draws.items()},
        crps=crps,
        convergence=convergence(exact),
    )


def _mean_crps(target: Trajectories, draws: np.ndarray) -> np.ndarray:
    scores = scoringrules.crps_ensemble(np.asarray(target.values, dtype=float), draws, m_axis=0)
    mask = np.asarray(target.mask)
    total, count = np.where(mask, scores, 0.0).sum((1, 2)), mask.sum((1, 2))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)

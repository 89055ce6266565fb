"""The amortization gap: the guide against the exact posterior, and their forecasts' scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scoringrules
from jaxtyping import Array
from xarray import DataTree

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes
from np_latentode.forecasts.densities import observed_times
from np_latentode.forecasts.prediction import draw_x
from np_latentode.inference.convergence import Convergence, check_exact, convergence
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["AmortizationReport", "amortization"]


@dataclass(frozen=True)
class AmortizationReport:
    """How far a guide and others are from the exact posterior, and how well they forecast.

    The keys are "guide" and the names of the others; `crps` also has "exact". `shift` and
    `sd_ratio`, shape (trajectory, latent), are in the coordinates of z0: the difference of means in
    units of the exact standard deviation, and the ratio of standard deviations. `crps` is the
    continuous ranked probability score of the target, averaged over the observed values of each
    trajectory, in original units.
    """

    shift: dict[str, np.ndarray]
    sd_ratio: dict[str, np.ndarray]
    crps: dict[str, np.ndarray]
    convergence: Convergence

    def __str__(self) -> str:
        width = 2 + max(map(len, self.crps))
        titles = ("|shift| median", "worst", "sd ratio median", "least", "most", "CRPS")
        lines = [" " * width + "".join(f"{title:>16s}" for title in titles)]
        for name, crps in self.crps.items():
            cells = ["-"] * 5
            if name in self.shift:
                shift, ratio = np.abs(self.shift[name]), self.sd_ratio[name]
                figures = [np.median(shift), shift.max()]
                figures += [np.median(ratio), ratio.min(), ratio.max()]
                cells = [f"{figure:.3f}" for figure in figures]
            cells.append(f"{np.nanmean(crps):.5f}")
            lines.append(f"{name:{width}s}" + "".join(f"{cell:>16s}" for cell in cells))
        return "\n".join([*lines, f"exact: {self.convergence}"])


def amortization(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories,
    *,
    exact: DataTree,
    others: Mapping[str, Inference] | None = None,
    num_moments: int = 4_000,
    num_samples: int = 400,
) -> AmortizationReport:
    """Compares the guide, and other inferences, with the exact posterior and its forecasts.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the observations from which z0 is inferred.
        target: later observations of the same trajectories, with which forecasts are scored.
        exact: the result of `exact_posterior` for this context.
        others: further inferences by name, such as `{"sharpened": Sharpened()}`. Default: the guide
            alone is compared.
        num_moments: draws for means and standard deviations.
        num_samples: draws per forecast.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_moments=num_moments, num_samples=num_samples)
    context, target = check_data(fitted.model, context, target, targets=True)
    nuts = np.asarray(check_exact(exact, context)["posterior"]["z0"], dtype=float)
    nuts = nuts.reshape(-1, *nuts.shape[2:])
    z0_key, pick_key, x_key = jax.random.split(rng_key, 3)
    draws = {}
    for name, inference in {"guide": amortized, **(others or {})}.items():
        z0 = draw_codes(inference, z0_key, fitted, context, num_moments)
        draws[name] = np.asarray(z0, dtype=float)
    exact_mean, exact_sd = nuts.mean(0), nuts.std(0)
    crps, times = {}, observed_times(fitted.model, target)
    for name, all_draws in (draws | {"exact": nuts}).items():
        picked = jax.random.choice(pick_key, len(all_draws), (num_samples,))
        # All methods get the same noise, so that scores differ by z0 only.
        x = draw_x(
            x_key, fitted, jnp.asarray(all_draws)[picked], times, target.offset, context=context
        )["x"]
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

"""Calibration: coverage, PIT and scores of forecasts, and ranks by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scoringrules
from arviz_stats.base.array import array_stats
from jaxtyping import Array

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes, prior
from np_latentode.forecasts.densities import log_predictive, observed_times
from np_latentode.forecasts.mixture import join, log_mixture, widened
from np_latentode.forecasts.prediction import as_measured, draw_observed, draw_x
from np_latentode.programs.ensemble import Ensemble, Share, check_fit, members_of
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_context, check_data

__all__ = ["Calibration", "SimulationRanks", "calibration", "simulation_ranks"]

LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Calibration:
    """How forecasts compare with the observations.

    `pit`, `error`, `crps` and `log_score` have the target's shape (trajectory, time, feature) and
    are NaN where nothing was observed. `pit` is the share of draws below the observation; it is
    uniform if the forecasts are right. Of zeros and ones, and of counts, it is randomised: a random
    share of the draws that equal the observation counts as below (Czado et al. 2009). `error` is
    the forecast's mean curve less the observation. Of limits, such as <0.5, a random share of the
    draws in the interval counts as below, `error` and `crps` are NaN, and `log_score` is -log of
    the probability of the interval. Draws have the standard errors of the target. `crps`, the
    continuous ranked probability score, is in the feature's unit, and `log_score` is -log of the
    forecast's density, or of its probability; lower is better for both. All are of the values as
    they are modelled: of logarithms, where the table was read so. `coverage` is the share of
    observations inside the central band of each level. For counts, an observation at the end of a
    band is inside with the probability that makes the band's level exact.
    """

    levels: tuple[float, ...]
    coverage: np.ndarray
    pit: np.ndarray
    error: np.ndarray
    crps: np.ndarray
    log_score: np.ndarray

    def __str__(self) -> str:
        covered = "  ".join(
            f"{level:.0%} band {share:.3f}"
            for level, share in zip(self.levels, self.coverage, strict=True)
        )
        observed, exact = np.isfinite(self.pit), np.isfinite(self.crps)
        limits = (observed & ~exact).sum()
        crps = f"{self.crps[exact].mean():.5f}" if exact.any() else "-"
        return (
            f"coverage of {observed.sum()} observations"
            + (f", {limits} of them limits" if limits else "")
            + f": {covered}\nCRPS {crps}, log score {np.nanmean(self.log_score):.4f}"
        )


def calibration(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    target: Trajectories,
    *,
    inference: Inference = amortized,
    levels: Sequence[float] = LEVELS,
    num_samples: int = 500,
) -> Calibration:
    """Compares forecasts of a target with its observed values.

    PIT_k = the share of draws x_k | context below the observed x_k      (Gneiting et al. 2007)

    The density of an ensemble's forecast is the mixture of those of its members: member m makes
    n_m of the n draws, and log p(x_k | context) = log sum_m n_m / n p_m(x_k | context). With bands,
    draws are stretched about their median, and the density is that of the stretched draws.

    Observations of one trajectory share its z0, so their errors are correlated. A test of
    uniformity that takes n of them as independent is too strict.

    Args:
        rng_key: a key.
        fitted: the fit, or an `Ensemble`.
        context: the observations to forecast from.
        target: later observations of the same trajectories, not shown to the guide.
        inference: how z0 is drawn given the context, as in `forecast`.
        levels: of the central bands, between 0 and 1.
        num_samples: draws per forecast, at least 2.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fit(fitted)
    levels = _checked(levels, num_samples)
    for member in members_of(fitted):
        context, target = check_data(member.model, context, target, targets=True)
    forecast_key, tie_key = jax.random.split(rng_key)
    some, each = draw_observed(forecast_key, fitted, context, target, inference, num_samples)
    forecasts = widened(fitted, joined := join(some, each))
    draws, slots = forecasts["x"], np.asarray(target.observed)
    mask, x = np.asarray(target.mask), np.asarray(target.values)[slots]

    def where_observed(scores: np.ndarray) -> np.ndarray:
        everywhere = np.full(mask.shape, np.nan, scores.dtype)
        everywhere[slots] = scores
        return np.where(mask, everywhere, np.nan)

    share = np.asarray(jax.random.uniform(tie_key, mask.shape))[slots]
    exact = ~target.limited[slots]
    pit = where_observed(_pit(share, draws, *_ends(target, slots, x)))
    inside = np.abs(pit[mask] - 0.5) <= np.array(levels)[:, None] / 2
    log_density = _log_density(fitted, some, each, joined["x"], context, target)
    return Calibration(
        levels=levels,
        coverage=inside.mean(-1),
        pit=pit,
        error=where_observed(np.where(exact, np.asarray(forecasts["x_mean"]).mean(0) - x, np.nan)),
        crps=where_observed(
            np.where(exact, scoringrules.crps_ensemble(x, draws, m_axis=0), np.nan)
        ),
        log_score=where_observed(-log_density[slots]),
    )


def _checked(levels: Sequence[float], num_samples: int) -> tuple[float, ...]:
    """The levels, if they and the number of draws are possible."""
    levels = tuple(float(level) for level in levels)
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be numbers between 0 and 1; got {levels}.")
    if not (isinstance(num_samples, int) and num_samples >= 2):
        raise ValueError(f"num_samples must be an integer of at least 2; got {num_samples!r}.")
    return levels


def _log_density(
    fitted: Fitted | Ensemble,
    some: Sequence[Share],
    each: Sequence[dict[str, Any]],
    draws: np.ndarray,
    context: Trajectories,
    target: Trajectories,
) -> np.ndarray:
    """log p(x | context) of the forecasts, with the bands of an ensemble that has some.

    log p(x) = log p_mixture(x') - log width,  x' the value that is widened to x
    """
    bands = None if isinstance(fitted, Fitted) else fitted.bands
    if bands is not None:
        values, slots = np.array(target.values), np.asarray(target.observed)
        median = np.median(draws, axis=0)
        values[slots] = bands.narrow(values[slots], median)
        limits = target.limits and target.limits.each(
            lambda ends: _narrowed(ends, slots, lambda x: bands.narrow(x, median))
        )
        target = target.replace_arrays(target.times, jnp.asarray(values), target.mask, limits)
    log_p = [
        log_predictive(share.fitted, jnp.asarray(made["z0"]), context, target)
        for share, made in zip(some, each, strict=True)
    ]
    log_density = np.asarray(log_mixture(some, log_p))
    if bands is None:
        return log_density
    # A probability has no unit, and is not stretched.
    wide = np.log(bands.widths)
    return log_density - np.where(target.limited, 0, wide)


def _ends(target: Trajectories, slots: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the limits in these slots; the value itself where there is none."""
    if target.limits is None:
        return x, x
    ends = (np.asarray(end)[slots] for end in (target.limits.lower, target.limits.upper))
    lower, upper = (np.where(np.isnan(end), x, end) for end in ends)
    return lower, upper


def _narrowed(ends: Array, slots: np.ndarray, narrow: Callable[[np.ndarray], np.ndarray]) -> Array:
    """One end of all limits, narrowed in the observed slots."""
    changed = np.array(ends)
    changed[slots] = narrow(changed[slots])
    return jnp.asarray(changed, ends.dtype)


def _pit(share: np.ndarray, draws: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The share of draws below each observation, and the given share of the ties.

    If that share were not random, counts and bits could never be calibrated. Of limits, all draws
    in the interval are ties; of values, `lower` and `upper` are the value.
    """
    below, ties = (draws < lower).sum(0), ((draws >= lower) & (draws <= upper)).sum(0)
    return (below + share * (ties + 1)) / (len(draws) + 1)


@dataclass(frozen=True)
class SimulationRanks:
    """Ranks of z0 from the prior among the guide's draws given the data simulated from it.

    `ranks`, shape (simulation, latent), lie between 0 and 1. They are uniform if the inference
    is exact. They crowd in the middle if it is too wide, at the ends if it is too narrow, and on
    one side if it is biased. `p_value`, shape (latent,), is that of a test for uniformity.
    """

    ranks: np.ndarray
    p_value: np.ndarray

    def __str__(self) -> str:
        lines = [f"ranks of {len(self.ranks)} simulations (uniform: mean 0.500, sd 0.289)"]
        for j, (ranks, p) in enumerate(zip(self.ranks.T, self.p_value, strict=True)):
            lines.append(f"  z0[{j}]  mean {ranks.mean():.3f}  sd {ranks.std():.3f}  p {p:.3g}")
        return "\n".join(lines)


def simulation_ranks(
    rng_key: Array,
    fitted: Fitted,
    like: Trajectories,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
) -> SimulationRanks:
    """Simulation-based calibration of model and inference together (Talts et al. 2018).

    z0 ~ prior,  x ~ likelihood at the observed times of `like`,  rank of z0 among draws of q(. | x)

    The ranks of an exact posterior are uniform in every coordinate, for any data. The simulated
    data have the standard errors of `like`, and values where `like` has limits.

    Args:
        rng_key: a key.
        fitted: the fit.
        like: each of its trajectories gives one simulation, observed at the same points.
        inference: how z0 is drawn given x, as in `forecast`.
        num_samples: draws of z0 given x, among which z0 is ranked.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    model = fitted.model
    like = check_context(like, model.scaling, name="like")
    z0_key, x_key, draw_key, tie_key = jax.random.split(rng_key, 4)
    z0 = jnp.asarray(prior(fitted).sample(z0_key, (len(like),)))
    at = observed_times(model, like)
    x = draw_x(x_key, fitted, z0[None], at, like.offset, static=like.static, inputs=like.inputs)[
        "x"
    ][0]
    x = as_measured(x_key, x[None], like.error)[0]
    seen = like.replace_arrays(like.times, jnp.where(like.mask, x, 0.0), like.mask)
    draws = draw_codes(inference, draw_key, fitted, seen, num_samples)
    share = jax.random.uniform(tie_key, z0.shape)
    ranks = np.asarray(((draws < z0).sum(0) + share) / (num_samples + 1), float)
    p_value = np.array([array_stats.uniformity_test(column)[0] for column in ranks.T])
    return SimulationRanks(ranks, p_value)

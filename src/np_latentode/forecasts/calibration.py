"""Are the bands right? Coverage, PIT and scores of forecasts, and calibration by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scoringrules
from arviz_stats.base.array import array_stats
from jaxtyping import Array

from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.plate import check_context, check_counts, check_data
from np_latentode.prediction import (
    decode,
    forecast,
    log_predictive,
    observed_times,
    posterior,
    prior,
)
from np_latentode.trajectories import Trajectories

__all__ = ["Calibration", "SimulationRanks", "calibration", "simulation_ranks"]

LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Calibration:
    """How forecasts compare with what was observed.

    `pit`, `crps` and `log_score` have the target's shape (trajectory, time, feature) and are NaN
    where it was not observed. `pit` is the share of draws below the observation, uniform where
    forecasts are right; the continuous ranked probability score is in the feature's unit, and the
    logarithmic score is -log of the forecast's density: less is better in both. `coverage` is the
    share of observations within the central bands of `levels`, whose ends, where the feature
    counts, hold only so much of their probability as makes up the level.
    """

    levels: tuple[float, ...]
    coverage: np.ndarray
    pit: np.ndarray
    crps: np.ndarray
    log_score: np.ndarray

    def __str__(self) -> str:
        covered = "  ".join(
            f"{level:.0%} band {share:.3f}"
            for level, share in zip(self.levels, self.coverage, strict=True)
        )
        return (
            f"coverage of {np.isfinite(self.pit).sum()} observations: {covered}\n"
            f"CRPS {np.nanmean(self.crps):.5f}, log score {np.nanmean(self.log_score):.4f}"
        )


def calibration(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    context: Trajectories,
    target: Trajectories,
    *,
    levels: Sequence[float] = LEVELS,
    num_samples: int = 500,
) -> Calibration:
    """Compares forecasts of a target with its observed values.

    PIT_k = the share of draws x_k | context below the observed x_k      (Gneiting et al. 2007)

    Observations of one trajectory share its z0, and so their errors are correlated: what a test of
    uniformity takes for n independent values are fewer.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        context: what forecasts are made from.
        target: what was observed of the same trajectories, and not shown to the guide.
        levels: of the central bands, between 0 and 1.
        num_samples: draws of each forecast, at least 2.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    levels = tuple(float(level) for level in levels)
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be numbers between 0 and 1; got {levels}.")
    if not (isinstance(num_samples, int) and num_samples >= 2):
        raise ValueError(f"num_samples must be an integer of at least 2; got {num_samples!r}.")
    check_data(model, context, target, targets=True)
    forecast_key, tie_key = jax.random.split(rng_key)
    forecasts = forecast(
        forecast_key,
        model,
        guide,
        params,
        context,
        observed_times(model, target),
        num_samples=num_samples,
    )
    draws = np.asarray(forecasts["x"])
    mask, x = np.asarray(target.mask), np.asarray(target.values)

    def where_observed(scores: np.ndarray) -> np.ndarray:
        return np.where(mask, scores, np.nan)

    # At random between ties, or counts and bits would never be calibrated.
    below, ties = (draws < x).sum(0), (draws == x).sum(0)
    share = np.asarray(jax.random.uniform(tie_key, x.shape))
    pit = where_observed((below + share * (ties + 1)) / (num_samples + 1))
    inside = np.abs(pit[mask] - 0.5) <= np.array(levels)[:, None] / 2
    log_density = np.asarray(log_predictive(model, params, forecasts["z0"], target))
    return Calibration(
        levels=levels,
        coverage=inside.mean(-1),
        pit=pit,
        crps=where_observed(scoringrules.crps_ensemble(x, draws, m_axis=0)),
        log_score=where_observed(-log_density),
    )


@dataclass(frozen=True)
class SimulationRanks:
    """Where z0 that were drawn from the prior fall among the guide's draws for what they caused.

    `ranks`, shape (simulation, latent), lie between 0 and 1, uniform where the guide is exact; too
    often in the middle where it is too wide, at the ends where it is too narrow, to one side where
    it is biased. `p_value`, shape (latent,), tests for uniformity.
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
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    like: Trajectories,
    *,
    num_samples: int = 200,
) -> SimulationRanks:
    """Simulation-based calibration of model and guide together (Talts et al. 2018).

    z0 ~ prior,  x ~ likelihood at the observed times of `like`,  rank of z0 among draws of q(. | x)

    Whatever the data are, the ranks of an exact posterior are uniform in every coordinate.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        like: one simulation for each of its trajectories, observed where that is.
        num_samples: draws from the guide that z0 is ranked among.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples)
    check_context(like, model.scaling, name="like")
    z0_key, x_key, draw_key, tie_key = jax.random.split(rng_key, 4)
    z0 = jnp.asarray(prior(model, params).sample(z0_key, (len(like),)))
    x = decode(x_key, model, params, z0[None], observed_times(model, like))["x"][0]
    seen = Trajectories(like.times, x, like.mask)
    draws = jnp.asarray(posterior(guide, params, seen).sample(draw_key, (num_samples,)))
    share = jax.random.uniform(tie_key, z0.shape)
    ranks = np.asarray(((draws < z0).sum(0) + share) / (num_samples + 1), float)
    p_value = np.array([array_stats.uniformity_test(column)[0] for column in ranks.T])
    return SimulationRanks(ranks, p_value)

"""Stacking: the weights with which the members of an ensemble forecast held-out data best."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from arviz_stats.loo.compare import compare
from arviz_stats.utils import ELPDDataLOO
from jaxtyping import Array, Float
from xarray import DataArray

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import amortized
from np_latentode.forecasts.densities import log_predictive
from np_latentode.programs.ensemble import Ensemble, members_of, with_solver
from np_latentode.programs.fitted import Fitted

__all__ = ["stack", "stacking_weights"]

NUM_DRAWS = 200
"""Draws of z0 per score."""
LOWEST = -300.0
"""Log scores further below the best member's count as this far below. exp of it is not yet 0."""


def stack(
    rng_key: Array, members: Sequence[Fitted], context: Trajectories, target: Trajectories
) -> Float[np.ndarray, " member"]:
    """The weights that stack the members' forecasts of a target.

    The score of trajectory i is the sum of log p_k(x | context_i) over the observations of its
    target, as in `log_predictive`. A member whose ODE solve fails has the score -inf there.

    Args:
        rng_key: a key; all members use it.
        members: the fits.
        context, target: held-out data, as of `held_out_pair`.
    """
    if len(members) == 1:
        return np.ones(1)
    scores = []
    for member in members_of(with_solver(Ensemble(tuple(members)), throw=False)):
        z0 = amortized(rng_key, member, context, NUM_DRAWS)
        log_p = log_predictive(member, z0, context, target)
        scores.append(np.asarray(jnp.where(target.mask, log_p, 0.0).sum((1, 2)), float))
    return stacking_weights(np.stack(scores))


def stacking_weights(
    log_p: Float[np.ndarray, "member trajectory"],
) -> Float[np.ndarray, " member"]:
    """The weights of several forecasts by their log scores (Yao et al. 2018, equation 4).

    max_w sum_i log sum_k w_k p_k(x_i),   w_k >= 0,  sum_k w_k = 1

    ArviZ finds them. A trajectory that no member scores says nothing. If there is no other one, the
    weights are equal.

    Args:
        log_p: log p_k(x_i); NaN counts as -inf.
    """
    log_p = np.where(np.isnan(log_p), -np.inf, log_p)
    best = log_p.max(0)
    if not (known := np.isfinite(best)).any():
        return np.full(len(log_p), 1 / len(log_p))
    # Less the best, which does not change the weights: ArviZ takes exp, which may be 0 for all.
    scores = np.maximum(log_p[:, known] - best[known], LOWEST)
    with warnings.catch_warnings():
        # Of many, or of equal members: neither matters for weights.
        warnings.simplefilter("ignore")
        found = compare(
            {str(k): _elpd(row) for k, row in enumerate(scores)},
            method="stacking",
            round_to="none",
        )
    weights = np.array([found.loc[str(k), "weight"] for k in range(len(scores))], float)
    # The optimizer may leave weights a little below 0.
    weights = np.clip(weights, 0.0, None)
    return weights / weights.sum()


def _elpd(scores: Float[np.ndarray, " trajectory"]) -> ELPDDataLOO:
    """Log scores as ArviZ's type; only they are used."""
    return ELPDDataLOO(
        elpd=float(scores.sum()),
        se=float(np.sqrt(len(scores) * scores.var())),
        p=0.0,
        n_samples=NUM_DRAWS,
        n_data_points=len(scores),
        scale="log",
        warning=False,
        good_k=np.inf,
        elpd_i=DataArray(scores, dims=["trajectory"]),
        pareto_k=DataArray(np.zeros(len(scores)), dims=["trajectory"]),
    )

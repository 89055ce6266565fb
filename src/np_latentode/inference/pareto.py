"""Pareto-smoothed importance weights."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

__all__ = ["FEWEST", "TRUSTED", "most_trusted", "smooth"]

TRUSTED = 0.7
"""The highest Pareto k at which importance weights are trusted (Vehtari et al. 2024)."""

FEWEST = 25
"""The fewest draws to whose tail of weights a distribution is fitted."""


def most_trusted(num_draws: int) -> float:
    """The highest Pareto k at which this many weights are trusted: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / np.log10(num_draws), TRUSTED)


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised log weights with a smoothed tail, Pareto k, and the log of the mean weight.

    Weights of a trajectory are not smoothed if too few of them are positive.
    """
    from arviz_stats.base.array import array_stats  # a forecast by the guide does without

    total = np.asarray(logsumexp(log_weights, axis=0))
    with np.errstate(invalid="ignore"):
        smoothed = np.where(np.isfinite(total), log_weights - total, -np.inf)
    log_mean = total - np.log(len(log_weights))
    pareto_k = np.zeros(log_weights.shape[1])
    for i, column in enumerate(log_weights.T):
        finite = np.sort(column[np.isfinite(column)])
        # The tail, as long as ArviZ's, and the largest weight below it, which is not smoothed.
        tail = finite[-_tail_length(len(column)) - 1 :]
        if len(tail) <= _tail_length(len(column)):
            pareto_k[i] = np.inf
            continue
        # Equal up to rounding: nothing to smooth, and ArviZ refuses a tail of equal values.
        if np.ptp(tail) <= 1e-3:
            continue
        # ArviZ takes log likelihoods, and its weights are their inverse.
        new, k = array_stats.psislw(-column)
        lowest = np.flatnonzero(column == tail[0])[0]
        smoothed[:, i], pareto_k[i] = new, k if np.isfinite(k) else np.inf
        # ArviZ normalises as well. The weight below the tail shows by how much.
        log_mean[i] = logsumexp(new + column[lowest] - new[lowest]) - np.log(len(column))
    return smoothed, pareto_k, log_mean


def _tail_length(num_samples: int) -> int:
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))

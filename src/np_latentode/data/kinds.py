"""Kinds of columns: zeros and ones, counts, and numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["BERNOULLI", "COUNTS", "KINDS", "NUMBERS", "fits", "only_bits"]

BERNOULLI, COUNTS, NUMBERS = "bernoulli", "counts", "numbers"

KINDS = {BERNOULLI: "be 0 or 1", COUNTS: "be counts, 0, 1, 2, ...,", NUMBERS: "be numbers"}
"""What the values of each kind must be."""


def fits(kind: str, values: Float[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """True where a value may be of the kind."""
    if kind == BERNOULLI:
        return np.isin(values, (0, 1))
    if kind == COUNTS:
        return (values >= 0) & (values == np.round(values))
    return np.ones(np.shape(values), bool)


def only_bits(draws: Float[np.ndarray, "*rest feature"]) -> Bool[np.ndarray, " feature"]:
    """True for features of which every draw is 0 or 1: the mean of x is then a probability."""
    rows = draws.reshape(-1, draws.shape[-1])
    return fits(BERNOULLI, rows).all(0) & (len(rows) > 0)

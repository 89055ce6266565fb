"""Kinds of columns: zeros and ones, counts, and numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Shaped

__all__ = ["BERNOULLI", "COUNTS", "KINDS", "NUMBERS", "all_fit", "fits"]

BERNOULLI, COUNTS, NUMBERS = "bernoulli", "counts", "numbers"

KINDS = {BERNOULLI: "be 0 or 1", COUNTS: "be counts, 0, 1, 2, ...,", NUMBERS: "be numbers"}
"""What the values of each kind must be."""


def fits(kind: str, values: Shaped[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """True where a value may be of the kind."""
    if kind == BERNOULLI:
        return np.isin(values, (0, 1))
    if kind == COUNTS:
        return (values >= 0) & (values == np.round(values))
    return np.ones(np.shape(values), bool)


def all_fit(kind: str, draws: Shaped[np.ndarray, "*rest feature"]) -> Bool[np.ndarray, " feature"]:
    """True for features of which every draw may be of the kind: no draws of numbers are whole."""
    rows = draws.reshape(-1, draws.shape[-1])
    return fits(kind, rows).all(0) & (len(rows) > 0)

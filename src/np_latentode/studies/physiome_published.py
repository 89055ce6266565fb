"""Published errors on Physiome-ODE (Klötergens et al., ICLR 2025)."""

from __future__ import annotations

__all__ = ["PUBLISHED", "published"]

METHODS = ("GRU-ODE-Bayes", "Neural Flows", "CRU", "GraFITi", "LinODEnet", "constant in time")
PUBLISHED = {
    "WOD01": (0.612, 0.510, 0.113, 0.164, 0.154, 0.344),
    "LEN01": (1.028, 1.009, 0.754, 0.607, 0.387, 0.970),
    "GUP01": (0.153, 0.043, 0.057, 0.041, 0.018, 0.035),
    "LI01": (1.067, 0.979, 0.175, 0.202, 0.084, 0.742),
    "HOD01": (0.851, 0.701, 0.409, 0.493, 0.441, 0.609),
}
"""Mean squared errors, means of five folds, in the order of `METHODS`. "constant in time" is their
GraFITi-C, which forecasts one number for all times."""


def published(name: str) -> dict[str, float]:
    """The errors by method; empty for a set that has no published row here."""
    return dict(zip(METHODS, PUBLISHED.get(name, ()), strict=False))

"""Bands that hold: factors by which forecasts are widened, learned from held-out forecasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped

from np_latentode.data.numbers import is_concrete

__all__ = ["Bands"]

LEVEL = 0.9
"""The central band that is to hold as many observations."""

PRIOR = 40
"""Trust in the bands as they are, as if so many trajectories had said that they hold."""


@dataclass(frozen=True, eq=False)
class Bands:
    """Factors that stretch the draws of a forecast about their median, one for each feature.

    x' = median + width_j (x - median)

    Widths of 1 change nothing. The draws are of values as they are modelled: of logarithms, where
    the table was read so.

    Args:
        widths: positive numbers, shape (feature,).

    Raises:
        ValueError: if they are not positive and finite, or not one per feature.
    """

    widths: Any

    def __post_init__(self) -> None:
        widths = np.array(self.widths, float)
        if widths.ndim != 1 or not (np.isfinite(widths) & (widths > 0)).all():
            raise ValueError(
                f"widths must be positive and finite, one per feature; got {self.widths}."
            )
        object.__setattr__(self, "widths", widths)

    @classmethod
    def fit(
        cls,
        draws: Float[np.ndarray, "draw row *rest feature"],
        x: Float[np.ndarray, "row *rest feature"],
        mask: Bool[np.ndarray, "row *rest feature"],
        ids: Shaped[np.ndarray, " row"] | None = None,
    ) -> Bands:
        """The widths with which the central 90% would have held 90% of held-out observations.

        log width_j = n_j / (n_j + 40) log q_j,
        q_j = quantile of |x - median| / (half the width of the band on that side)

        q_j is that of split conformal prediction (Lei et al. 2018) of asymmetric bands. It is
        shrunk towards 1 by the number n_j of trajectories in which feature j was observed.

        Args:
            draws: of forecasts.
            x: what was observed.
            mask: True where something was observed.
            ids: which trajectory each row is of. Default: each is one of its own.
        """
        ids = np.arange(len(x)) if ids is None else ids
        low, median, high = np.quantile(draws, [0.5 - LEVEL / 2, 0.5, 0.5 + LEVEL / 2], axis=0)
        half = np.maximum(np.where(x > median, high - median, median - low), np.finfo(float).tiny)
        ratio, widths = np.abs(x - median) / half, np.ones(x.shape[-1])
        for j in range(x.shape[-1]):
            seen = mask[..., j] & np.isfinite(ratio[..., j])
            if seen.any():
                number = seen.sum()
                trajectories = len(np.unique(ids[seen.reshape(len(seen), -1).any(1)]))
                place = min(int(np.ceil((number + 1) * LEVEL)), number) - 1
                quantile = max(np.sort(ratio[..., j][seen])[place], 1e-3)
                widths[j] = quantile ** (trajectories / (trajectories + PRIOR))
        return cls(widths)

    def widen(self, draws: Any) -> Any:
        """The draws, of shape (draw, ..., feature), stretched about their median."""
        xp: Any = np if is_concrete(draws) else jnp
        x = xp.asarray(draws)
        median = xp.median(x, axis=0)
        return (median + self.widths * (x - median)).astype(x.dtype)

    def narrow(self, x: Any, median: Any) -> np.ndarray:
        """The values that are widened to x."""
        return median + (np.asarray(x) - median) / self.widths

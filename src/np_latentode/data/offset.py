"""Offset: the numbers that are subtracted before JAX computes in single precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Offset"]

FAR = 1_000.0
"""A feature has an offset if its level is this many times its spread. Up to there, rounding to
single precision moves a value by less than 1e-4 of the spread."""
FAR_IN_TIME = 4.0
"""The same for times. Their gaps are smaller than their spread, so rounding must be smaller."""


@dataclass(frozen=True)
class Offset:
    """What is subtracted from times and values in double precision, before JAX sees them.

    Single precision has 24 bits. Readings of 1,000,000 +- 0.8, Julian dates and unix seconds would
    lose their differences in it. Less their offset, they lose nothing.

    The offset is zero where single precision loses nothing, so that JAX mostly sees the numbers of
    the user.

    Args:
        time: subtracted from all times.
        values: subtracted from the values, one number per feature; empty for zeros.
    """

    time: float = 0.0
    values: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        times: Float[np.ndarray, "trajectory time"],
        values: Float[np.ndarray, "trajectory time feature"],
        mask: Bool[np.ndarray, "trajectory time feature"],
    ) -> Offset:
        """The offset that these observations need."""
        seen = times[mask.any(-1)]
        time = 0.0 if _exact_in_single(seen) else _level(seen, FAR_IN_TIME)
        levels = [_level(values[..., j][mask[..., j]], FAR) for j in range(values.shape[-1])]
        return cls(time, tuple(levels) if any(levels) else ())

    def __bool__(self) -> bool:
        return bool(self.time) or any(self.values)

    @property
    def row(self) -> np.ndarray | float:
        """The offset of the values as an array, one per feature, or 0."""
        return np.array(self.values) if any(self.values) else 0.0


def _exact_in_single(numbers: np.ndarray) -> bool:
    return bool((numbers.astype(np.float32) == numbers).all())


def _level(numbers: np.ndarray, far: float) -> float:
    """The median, if it is large beside the spread; otherwise 0."""
    if not numbers.size:
        return 0.0
    low, middle, high = np.quantile(numbers, [0.05, 0.5, 0.95])
    spread = high - low or np.ptp(numbers)
    return float(middle) if spread and abs(middle) > far * spread else 0.0

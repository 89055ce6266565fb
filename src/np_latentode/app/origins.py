"""Origins: the times from which those held out are forecast, to score the forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from np_latentode.app.horizons import all_finite
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.scores import Forecasts, score

__all__ = ["Origins"]


class Origins(NamedTuple):
    """Forecasts from several origins: an id comes once for each of its origins."""

    context: Trajectories
    """What is known at the origin."""
    target: Trajectories
    """What comes after it."""
    number: Int[np.ndarray, " trajectory"]
    """The number k of the origin of each, from 1 on: the share k / (K + 1) of times is known."""
    shares: tuple[float, ...]
    """The shares of the observed times that are known, one for each origin."""

    @classmethod
    def of(cls, test: Trajectories, count: int) -> Origins:
        """The rolling origins of those held out; a single one is at half of their times.

        An origin of a short trajectory may be the one before, or leave nothing to forecast. It then
        does not count for it.
        """
        shares = tuple(k / (count + 1) for k in range(1, count + 1))
        if count == 1:
            return cls(*test.split(), np.ones(len(test), int), shares)
        known = np.stack([np.asarray(test.split(share)[0].mask) for share in shares])
        new = np.ones(known.shape[:2], bool)
        new[1:] = (known[1:] != known[:-1]).any((2, 3))
        left = np.asarray(test.mask) & ~known
        k, rows = np.nonzero(new & left.any((2, 3)))
        each = test[rows]
        return cls(each.keep(known[k, rows]), each.keep(left[k, rows]), k + 1, shares)

    def middle(self) -> tuple[Trajectories, Trajectories]:
        """Context and target of the origin in the middle, each id once."""
        if len(self.shares) == 1:
            return self.context, self.target
        present, counts = np.unique(self.number, return_counts=True)
        # Of origins that as many trajectories have, that closest to the middle.
        distance = np.abs(2 * present - len(self.shares) - 1)
        rows = np.flatnonzero(self.number == present[np.lexsort((distance, -counts))[0]])
        return self.context[rows], self.target[rows]

    def scored(
        self,
        made: dict[str, Forecasts],
        unit: Float[np.ndarray, " feature"],
        kind: Sequence[str],
    ) -> list[dict[str, Any]]:
        """The scores of each origin: the share that is known, and those of each method.

        RMSE and CRPS are None where all values are limits.
        """
        found = []
        for k, share in enumerate(self.shares, 1):
            rows = np.flatnonzero(self.number == k)
            methods = {}
            if rows.size:
                target = self.target[rows]
                methods = {
                    name: all_finite(score(target, unit, forecasts.select(rows), kind))
                    for name, forecasts in made.items()
                }
            values = int(np.asarray(self.target.mask)[rows].sum())
            found.append({"share": share, "values": values, "methods": methods})
        return found

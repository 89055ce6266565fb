"""Crossing: when a trajectory is beyond a threshold, and when it is so for the first time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.labels import Labels
from np_latentode.data.numbers import Numbers, as_doubles
from np_latentode.data.tidy import check_quantiles
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized
from np_latentode.forecasts.signals import signals
from np_latentode.forecasts.thresholds import Threshold
from np_latentode.programs.ensemble import Ensemble
from np_latentode.programs.fitted import Fitted

__all__ = ["Crossing", "check_crossing_columns", "crossing"]

QUANTILES = (0.05, 0.5, 0.95)
"""The quantiles of the first crossing time in tables."""

COLUMNS = ("feature", "threshold", "probability", "probability_by_then")
"""The columns of tables of crossings besides id, time and quantiles."""


@dataclass(frozen=True)
class Crossing:
    """When the signal of each trajectory is beyond a threshold; see `crossing`.

    `times`, shape (trajectory, time), are in original units, and `names` are those of the
    trajectories. `probability` is that of being beyond at a time, and `by_then` that of having been
    beyond at this time or at an earlier one of the times. `first`, shape (draw, trajectory), are
    draws of the first crossing time, infinite where a draw is never beyond.
    """

    threshold: Threshold
    names: Labels
    times: Float[np.ndarray, "trajectory time"]
    probability: Float[np.ndarray, "trajectory time"]
    by_then: Float[np.ndarray, "trajectory time"]
    first: Float[np.ndarray, "draw trajectory"]

    @classmethod
    def of(
        cls, draws: dict[str, Any], times: Numbers, threshold: Threshold | str, names: Labels
    ) -> Crossing:
        """The crossings of draws that `signals` has made; of several thresholds, all of one call.

        Args:
            draws: of which `signal` counts.
            times: those of the draws, (time,) or (trajectory, time), in any order.
            threshold: as in `crossing`.
            names: `Trajectories.names` of the context.

        Raises:
            ValueError: naming the argument, the rule and what came.
        """
        threshold = Threshold.read(threshold) if isinstance(threshold, str) else threshold
        signal = np.asarray(draws["signal"], float)[..., threshold.place(names)]
        at = as_doubles("times", times)
        if at.shape not in (signal.shape[2:], signal.shape[1:]):
            raise ValueError(
                f"times must be those of the draws, shape {signal.shape[2:]} or "
                f"{signal.shape[1:]}; got shape {at.shape}."
            )
        at = np.broadcast_to(at, signal.shape[1:])
        beyond = threshold.beyond(signal)
        # In the order of time, and back.
        order = np.argsort(at, axis=1, kind="stable")
        rising = np.take_along_axis(beyond, order[None], axis=2)
        reached = np.logical_or.accumulate(rising, axis=2)
        by_then = np.take_along_axis(reached.mean(0), np.argsort(order, axis=1), axis=1)
        first = np.where(beyond, at, np.inf).min(2)
        return cls(threshold, names, at, beyond.mean(0), by_then, first)

    @property
    def ever(self) -> Float[np.ndarray, " trajectory"]:
        """The probability of being beyond at any of the times."""
        return np.isfinite(self.first).mean(0)

    def quantiles(self, levels: Sequence[float]) -> Float[np.ndarray, "level trajectory"]:
        """Quantiles of the first crossing time: the first of the times by which a share of the
        draws has crossed, infinite where so many never do.

        Args:
            levels: the shares, between 0 and 1.
        """
        check_quantiles(levels)
        # Nothing is interpolated, as some draws are infinite.
        return np.quantile(self.first, list(levels), axis=0, method="inverted_cdf")

    def to_dataframe(self, *, backend: Any = "pandas") -> Any:
        """A row for each id and time, with both probabilities.

        Args:
            backend: the library of the data frame: "pandas", "polars" or "pyarrow".

        Raises:
            ValueError: if id or time has the name of another column.
        """
        names = check_crossing_columns(self.names)
        i, k = (index.ravel() for index in np.indices(self.times.shape))
        columns = {
            names.id: [names.ids[n] for n in i],
            names.time: names.calendar(self.times)[i, k],
            "feature": [self.threshold.feature] * len(i),
            "threshold": [self.threshold.side] * len(i),
            "probability": self.probability[i, k],
            "probability_by_then": self.by_then[i, k],
        }
        return _to_native(columns, names, [names.time], backend)

    def first_to_dataframe(
        self, *, quantiles: Sequence[float] = QUANTILES, backend: Any = "pandas"
    ) -> Any:
        """A row for each id: quantiles of the first crossing time, and the probability of one.

        Quantiles are times as in the table, and empty where they are not reached by the last time.

        Args:
            quantiles: between 0 and 1.
            backend: the library of the data frame: "pandas", "polars" or "pyarrow".

        Raises:
            ValueError: if id has the name of another column, or a quantile is not between 0 and 1.
        """
        names = check_crossing_columns(self.names, quantiles)
        found = self.quantiles(quantiles).T
        reached = np.isfinite(found)
        when = names.calendar(np.where(reached, found, 0.0))
        when[~reached] = np.nan if when.dtype.kind == "f" else np.datetime64("NaT", "us")
        levels = [f"q{q:g}" for q in quantiles]
        columns = {
            names.id: [*names.ids],
            "feature": [self.threshold.feature] * len(found),
            "threshold": [self.threshold.side] * len(found),
            **dict(zip(levels, when.T, strict=True)),
            "probability": self.ever,
        }
        return _to_native(columns, names, levels, backend)


def crossing(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: Numbers,
    threshold: Threshold | str,
    *,
    inference: Inference = amortized,
    num_samples: int = 1_000,
) -> Crossing:
    """The probability that each trajectory is beyond a threshold at a time, and ever by then.

    P(signal(t_k) > c | context),  P(signal(t_l) > c for some t_l <= t_k | context),
    T = min{t_k: signal(t_k) > c}

    All are of paths without white noise, the `signals`: of what the subject is like, not of what
    one more measurement would show. A residual is drawn at all times together. Shares of draws are
    reported, whose standard error is at most 1 / (2 sqrt(num_samples)).

    A crossing between two of the times is not seen, so take them dense: of fewer times, `by_then`
    is lower and T later. A trajectory that is beyond at the first of the times has crossed then.

    Args:
        rng_key: a key.
        fitted: the fit; or an `Ensemble`, with its bands as `signals` says.
        context: the known observations of each trajectory.
        times: in original units: (time,) for all, or (trajectory, time).
        threshold: such as "bili > 2", or `Threshold("bili", ">", 2.0)`; in the units of the table,
            also where the logarithm is modelled.
        inference: how z0 is drawn, as in `forecast`.
        num_samples: the number of draws.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    threshold = Threshold.read(threshold) if isinstance(threshold, str) else threshold
    threshold.place(context.names)
    draws = signals(rng_key, fitted, context, times, inference=inference, num_samples=num_samples)
    return Crossing.of(draws, times, threshold, context.names)


def check_crossing_columns(names: Labels, quantiles: Sequence[float] = QUANTILES) -> Labels:
    """The labels, if tables of crossings can hold their columns of ids and times.

    Raises:
        ValueError: naming those that they cannot.
    """
    check_quantiles(quantiles)
    own = [*COLUMNS, *(f"q{q:g}" for q in quantiles)]
    if taken := {names.id, names.time} & {*own}:
        raise ValueError(f"id and time must not be called {', '.join(own)}; got {taken}.")
    return names


def _to_native(columns: dict[str, Any], names: Labels, times: Sequence[str], backend: Any) -> Any:
    """A data frame of the backend, with null where a time is missing."""
    frame = nw.from_dict(columns, backend=backend)
    if names.origin is None:
        return frame.with_columns(nw.col(*times).fill_nan(None)).to_native()
    if names.zone:
        frame = frame.with_columns(nw.col(*times).dt.replace_time_zone("UTC"))
    return frame.to_native()

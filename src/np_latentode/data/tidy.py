"""Tidy forecasts: a table with a row for each id, time and feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from np_latentode.data.frames import to_native
from np_latentode.data.kinds import BERNOULLI, COUNTS, all_fit
from np_latentode.data.labels import Labels

__all__ = ["check_quantiles", "forecast_columns", "tidy_forecast"]


def tidy_forecast(
    draws: dict[str, Any],
    times: Any,
    labels: Labels,
    *,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    backend: Any = "pandas",
) -> Any:
    """Forecasts as a tidy table: a row for each id, time and feature.

    The columns are id and time as in the table, `feature`, `mean`, `sd`, and one column per
    quantile, such as `q0.05`. They describe new observations, noise included, in the units of the
    table. The mean of zeros and ones is their probability. Quantiles of them and of counts are
    draws themselves.

    Args:
        draws: as `forecast` returns them.
        times: the times of the forecast, (time,) or (trajectory, time).
        labels: `Trajectories.names` of the context.
        quantiles: numbers between 0 and 1.
        backend: the library of the data frame: "pandas", "polars" or "pyarrow".

    Raises:
        ValueError: if draws, times and labels do not agree, or a quantile is not between 0 and 1.
    """
    quantiles = [float(q) for q in quantiles]
    check_quantiles(quantiles)
    if not isinstance(labels, Labels):
        raise ValueError(
            f"labels must be the `names` of the context, of type Labels; "
            f"got {type(labels).__name__}."
        )
    names = [labels.id, labels.time, *forecast_columns(quantiles)]
    if len(set(names)) != len(names):
        raise ValueError(
            "id, time and quantiles must have different names, and none of feature, mean and sd; "
            f"got {names}."
        )
    x = np.asarray(draws["x"], dtype=float)
    when = labels.calendar(_draw_times(x, times, labels))
    i, k, j = (index.ravel() for index in np.indices(x.shape[1:]))
    columns = {
        labels.id: [labels.ids[n] for n in i],
        labels.time: when[i, k],
        "feature": [labels.features[d] for d in j],
        "mean": _mean(x, draws)[i, k, j],
        "sd": x.std(0)[i, k, j],
    }
    levels = _quantiles(x, quantiles)
    for name, level in zip(names[len(columns) :], levels, strict=True):
        columns[name] = level[i, k, j]
    return to_native(columns, labels, (), backend)


def _mean(x: np.ndarray, draws: dict[str, Any]) -> np.ndarray:
    """The mean over draws; of zeros and ones that of x_mean, which varies less."""
    mean, bits = x.mean(0), all_fit(BERNOULLI, x)
    if "x_mean" not in draws or not bits.any():
        return mean
    return np.where(bits, np.asarray(draws["x_mean"], dtype=float).mean(0), mean)


def _quantiles(x: np.ndarray, quantiles: Sequence[float]) -> np.ndarray:
    """Quantiles of draws; of counts without means of two counts."""
    levels, whole = np.quantile(x, quantiles, axis=0), all_fit(COUNTS, x)
    if whole.any():
        some = x[..., whole]
        levels[..., whole] = np.quantile(some, quantiles, axis=0, method="inverted_cdf")
    return levels


def check_quantiles(quantiles: Sequence[float]) -> None:
    """Refuses quantiles that do not differ, or do not lie between 0 and 1."""
    if not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles must lie between 0 and 1; got {quantiles}.")
    if len(set(quantiles)) != len(quantiles):
        raise ValueError(f"quantiles must differ; got {quantiles}.")


def _draw_times(x: np.ndarray, times: Any, labels: Labels) -> np.ndarray:
    """The times of draws of x, shape (trajectory, time), if draws, times and labels agree."""
    shape = (len(labels.ids), len(labels.features))
    if (x.shape[1], x.shape[3]) != shape:
        raise ValueError(
            f"draws must be of {shape[0]} trajectories and {shape[1]} features, as the labels are; "
            f"got {x.shape[1]} and {x.shape[3]}."
        )
    when = np.asarray(times)
    if when.shape not in (x.shape[2:3], x.shape[1:3]):
        raise ValueError(
            f"times must be those of the draws, shape {x.shape[2:3]} or {x.shape[1:3]}; "
            f"got shape {when.shape}."
        )
    return np.broadcast_to(when, x.shape[1:3])


def forecast_columns(quantiles: Sequence[float]) -> list[str]:
    """The columns of a tidy forecast besides id and time."""
    return ["feature", "mean", "sd", *(f"q{q:g}" for q in quantiles)]

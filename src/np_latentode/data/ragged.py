"""Padding: trajectories of unequal lengths as one batch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from np_latentode.data.numbers import Numbers

__all__ = ["pad", "pad_beside"]


def pad(
    sequences: Iterable[tuple[Numbers, Numbers]], num_features: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Times (trajectory, time) and values (trajectory, time, feature), with NaN in padded slots.

    Arguments and errors are those of `Trajectories.from_ragged`.
    """
    pairs = [_ragged_pair(i, pair) for i, pair in enumerate(sequences)]
    if not pairs:
        raise ValueError("sequences must hold at least one trajectory; got none.")
    widths = {values.shape[1] for times, values in pairs if len(times)}
    if num_features is not None:
        widths.add(num_features)
    if len(widths) != 1:
        raise ValueError(
            "sequences must agree on the number of features "
            f"(pass num_features where all are empty); got {sorted(widths) or 'no values'}."
        )
    width = widths.pop()
    length = max(1, max(len(times) for times, _ in pairs))
    start = min((times[0] for times, _ in pairs if len(times)), default=0.0)
    all_times = np.full((len(pairs), length), start)
    all_values = np.full((len(pairs), length, width), np.nan)
    for i, (times, values) in enumerate(pairs):
        if len(times):
            all_times[i, : len(times)], all_times[i, len(times) :] = times, times[-1]
            all_values[i, : len(times)] = values
    return all_times, all_values


def _ragged_pair(i: int, pair: tuple[Numbers, Numbers]) -> tuple[np.ndarray, np.ndarray]:
    try:
        times, values = pair
    except (TypeError, ValueError) as error:
        raise ValueError(f"sequences[{i}] must be a pair (times, values): {error}.") from error
    try:
        times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sequences[{i}] must hold arrays of numbers: {error}.") from error
    if values.ndim == 1:
        values = values[:, None]
    if times.ndim != 1 or values.ndim != 2 or len(times) != len(values):
        raise ValueError(
            f"sequences[{i}] must pair times of shape (time,) with values of shape (time, feature) "
            f"or (time,); got {times.shape} and {values.shape}."
        )
    if not np.isfinite(times).all():
        raise ValueError(f"sequences[{i}] must have finite times; got {times}.")
    if (np.diff(times) < 0).any():
        raise ValueError(f"sequences[{i}] must have times that do not decrease; got {times}.")
    return times, values


def pad_beside(
    name: str, sequences: Iterable[Numbers], shape: tuple[int, ...]
) -> Float[np.ndarray, "trajectory time feature"]:
    """What belongs to the values of each trajectory, with NaN in padded slots.

    Args:
        name: the argument that errors name.
        sequences: one array (time, feature) or (time,) per trajectory.
        shape: of the padded values.
    """
    padded, each = np.full(shape, np.nan), [np.asarray(x, float) for x in sequences]
    for i, array in enumerate(each):
        array = array.reshape(len(array), -1)
        if len(each) != shape[0] or len(array) > shape[1] or array.shape[1] != shape[2]:
            raise ValueError(
                f"{name} must have an array of the shape of the values for each of {shape[0]} "
                f"trajectories; got {len(each)}, and {name}[{i}] of shape {array.shape}."
            )
        padded[i, : len(array)] = array
    return padded

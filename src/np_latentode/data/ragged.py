"""Padding: trajectories of unequal lengths as one batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from np_latentode.data.numbers import Numbers, as_doubles

__all__ = ["pad", "pad_beside"]


def pad(
    sequences: Iterable[tuple[Numbers, Numbers]], num_features: int | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Times (trajectory, time) and values (trajectory, time, feature), with NaN in padded slots.

    The length of each trajectory comes last.

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
    return all_times, all_values, [len(times) for times, _ in pairs]


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
    name: str, sequences: Iterable[Numbers], lengths: Sequence[int], width: int
) -> Float[np.ndarray, "trajectory time feature"]:
    """What belongs to the values of each trajectory, with NaN in padded slots.

    Args:
        name: the argument that errors name.
        sequences: one array (time, feature) or (time,) per trajectory.
        lengths: of each trajectory.
        width: the number of features.

    Raises:
        ValueError: if there is not one for each trajectory, of its own shape.
    """
    each = [_as_columns(f"{name}[{i}]", x, width) for i, x in enumerate(sequences)]
    if len(each) != len(lengths):
        raise ValueError(
            f"{name} must have an array of the shape of the values for each of {len(lengths)} "
            f"trajectories; got {len(each)}."
        )
    padded = np.full((len(lengths), max(1, *lengths), width), np.nan)
    for i, (array, length) in enumerate(zip(each, lengths, strict=True)):
        if array.shape != (length, width):
            raise ValueError(
                f"{name}[{i}] must have the shape of the values of its trajectory, "
                f"{(length, width)}; got {array.shape}."
            )
        padded[i, :length] = array
    return padded


def _as_columns(name: str, numbers: Numbers, width: int) -> np.ndarray:
    """An array (time, feature) of one that may be without features, or empty."""
    array = as_doubles(name, numbers)
    if not array.size:
        return array.reshape(0, width)
    return array[:, None] if array.ndim == 1 else array

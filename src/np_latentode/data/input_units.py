"""The units of inputs, in which networks see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from np_latentode.data.inputs import EVENT, Inputs

__all__ = ["InputUnits"]


@dataclass(frozen=True, eq=False)
class InputUnits:
    """The units of inputs: networks see (value - mean) / scale.

    They are mean and standard deviation of what was given in the training data. The mean of events
    is 0, as no amount stays none, and their scale is the root of the mean square of what was given.

    Args:
        names, kinds: of the inputs.
        mean, scale: shape (input,).
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))

    @classmethod
    def fit(cls, inputs: Inputs, names: Sequence[str]) -> InputUnits:
        """The units of the training data.

        Raises:
            ValueError: if an input is never given.
        """
        values, mean, scale = inputs.given_values, [], []
        for j, kind in enumerate(inputs.kinds):
            x = values[..., j][~np.isnan(values[..., j])]
            x = x[x != 0] if kind == EVENT else x
            if not x.size:
                raise ValueError(
                    f"train must hold an entry of every input; got none of {names[j]}."
                )
            centre = 0.0 if kind == EVENT else x.mean()
            unit = np.sqrt(np.mean((x - centre) ** 2))
            mean.append(centre)
            scale.append(unit if unit > abs(centre) * 8 * np.finfo(np.float32).eps else 1.0)
        return cls(tuple(names), inputs.kinds, np.array(mean), np.array(scale))

    @property
    def num_controls(self) -> int:
        """The number of constant and linear inputs, which dynamics read."""
        return len(self.kinds) - self.num_events

    @property
    def num_events(self) -> int:
        """The number of events, which a jump reads."""
        return self.kinds.count(EVENT)

    @property
    def num_readings(self) -> int:
        """The number of entries that an encoder reads at each time; see `Inputs.read`."""
        return self.num_controls + 2 * self.num_events

    def encode(self, values: Array) -> Array:
        """Values in scaled units."""
        mean, scale = (jnp.asarray(x, values.dtype) for x in (self.mean, self.scale))
        return (values - mean) / scale

    def like(self, other: InputUnits | None) -> bool:
        """Whether both make the same numbers."""
        return other is not None and self._settings == other._settings

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.names, self.kinds, self.mean.tolist(), self.scale.tolist()

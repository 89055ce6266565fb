"""Inputs: what is given to a trajectory over time and known ahead, such as doses and temperature.

An input is of one of three kinds.

- constant: each row's number holds from its time on, as an infusion rate does. Before the first
  row, the first number holds.
- linear: interpolated between the rows, as a temperature is; constant before and after them.
- event: an amount that is given at the row's time at once, as a dose is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from np_latentode.data.far import warn_user
from np_latentode.data.input_paths import read_events, read_path
from np_latentode.data.numbers import (
    Numbers,
    as_doubles,
    as_floats,
    check_shapes,
    check_times,
    is_concrete,
)

__all__ = [
    "EVENT",
    "KINDS",
    "Inputs",
    "Kinds",
    "asked_kinds",
    "event_times",
    "pad_inputs",
    "warn_of_held",
]

CONSTANT, LINEAR, EVENT = KINDS = ("constant", "linear", "event")

Kinds = Sequence[str | int] | Mapping[str, str] | str
"""The columns of inputs, which are constant; in a mapping, with their kinds."""

_Given = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]
"""Times and values in double precision, and the times in the table."""


@jax.tree_util.register_pytree_with_keys_class
class Inputs:
    """What is given to each trajectory over time: rows of numbers, one for each input.

    All of it is known ahead: observations may be hidden from an encoder, inputs never are.

    A pytree: `jax.jit`, `jax.tree.map` and `jax.vmap` see times and values. An index selects
    trajectories.

    Args:
        times: shape (trajectory, row), on the clock of the observations; finite, and never
            decreasing along a trajectory. Shorter ones are padded: the last time is repeated, and
            the values are NaN.
        values: shape (trajectory, row, input). NaN means nothing new in this row.
        kinds: of each input: "constant", "linear" or "event"; or one for all.

    Raises:
        ValueError: if shapes disagree, times decrease or are not finite, a value is infinite, or a
            kind is unknown.
    """

    times: Float[Array, "trajectory row"]
    values: Float[Array, "trajectory row input"]
    kinds: tuple[str, ...]

    offset: float = 0.0
    """What is subtracted from `times`, as `Trajectories.offset` is from theirs."""

    _given: _Given = (None, None, None)

    def __init__(self, times: Numbers, values: Numbers, kinds: Sequence[str] | str):
        known = is_concrete(times, values)
        convert: Any = as_doubles if known else as_floats
        when, what = convert("times", times), convert("values", values)
        try:
            check_shapes(when, what)
            if known:
                check_times(when)
        except ValueError as error:
            raise ValueError(f"inputs: {error}") from error
        if known and np.isinf(what).any():
            raise ValueError(
                f"inputs: values must be finite, or NaN where nothing new; got {what}."
            )
        of_each = (kinds,) * what.shape[2] if isinstance(kinds, str) else tuple(kinds)
        check_kinds(of_each)
        if len(of_each) != what.shape[2]:
            raise ValueError(
                f"inputs: kinds must be of {what.shape[2]} inputs, as values has; got {of_each}."
            )
        self.times, self.values = as_floats("times", when), as_floats("values", what)
        self.kinds = of_each
        self._given = (when, what, None) if known else (None, None, None)

    @property
    def given_times(self) -> np.ndarray:
        """The times in double precision, with the offset: as they were given."""
        known = self._given[0]
        return np.asarray(self.times, float) + self.offset if known is None else known

    @property
    def given_values(self) -> np.ndarray:
        """The values in double precision, as they were given."""
        known = self._given[1]
        return np.asarray(self.values, float) if known is None else known

    @property
    def table_times(self) -> np.ndarray | None:
        """The times in the table, if they are counted from another origin, and if known."""
        return self._given[2]

    @property
    def controls(self) -> list[int]:
        """Which inputs are constant or linear, and so drive the dynamics."""
        return [j for j, kind in enumerate(self.kinds) if kind != EVENT]

    @property
    def events(self) -> list[int]:
        """Which inputs are events."""
        return [j for j, kind in enumerate(self.kinds) if kind == EVENT]

    @property
    def amounts(self) -> Float[Array, "trajectory row event"]:
        """What is given at each row, 0 for nothing."""
        return jnp.nan_to_num(self.values[..., jnp.array(self.events, int)])

    def between(
        self, left: Float[Array, "trajectory time"], right: Float[Array, "trajectory time"]
    ) -> tuple[Array, Array]:
        """The constant and linear inputs just after `left`, and just before `right`.

        No row may lie between them, but at them. A constant input that a trajectory never gets is
        0, which in scaled units is the average of the training data.

        Returns:
            Two arrays of shape (trajectory, time, control).
        """
        if not (chosen := self.controls):
            nothing = jnp.zeros((*left.shape, 0), self.values.dtype)
            return nothing, nothing
        constant = jnp.array([self.kinds[j] == CONSTANT for j in chosen])
        values = self.values[..., jnp.array(chosen)]
        by_input = jax.vmap(read_path, in_axes=(None, 1, 0, None, None), out_axes=1)
        return jax.vmap(by_input, in_axes=(0, 0, None, 0, 0))(
            self.times, values, constant, left, right
        )

    @property
    def giving(self) -> np.ndarray:
        """True for the rows in which an event gives something, (trajectory, row)."""
        return (np.nan_to_num(self.given_values[..., self.events]) != 0).any(-1)

    def read(
        self, times: Float[Array, "trajectory time"], decay: float = 0.0
    ) -> Float[Array, "trajectory time reading"]:
        """What an encoder reads of the inputs at these times.

        They are the constant and linear inputs; and of each event the amount that was given before,
        from time 0 on, as far as it has not decayed, and the time since it was last given, 0 if
        never.

        Args:
            times: on the clock of the inputs.
            decay: the rate at which amounts decay, per unit of time.
        """
        now, _ = self.between(times, times)
        if not self.events:
            return now
        so_far, since = self.read_events(times, decay)
        return jnp.concatenate([now, so_far, since], axis=-1)

    def read_events(
        self, times: Float[Array, "trajectory time"], decay: float = 0.0
    ) -> tuple[Array, Array]:
        """Of each event the amount given before, from time 0 on, and the time since the last.

        sum_d amount_d exp(-decay (t - t_d)),   t_d < t
        """
        each = jax.vmap(read_events, in_axes=(0, 0, 0, None))
        return each(self.times, self.amounts, times, decay)

    def at_offset(self, time: float) -> Inputs:
        """The same inputs, with times less another offset."""
        if time == self.offset:
            return self
        if self._given[0] is not None:
            return self._replace(times=as_floats("times", self._given[0] - time), offset=time)
        return self._replace(times=self.times + (self.offset - time), offset=time)

    def less(self, time: float) -> Inputs:
        """The same inputs on a clock that starts this much later."""
        return self.at_offset(time)._replace(offset=0.0, _given=(None, None, None))

    def scaled(self, times: Array, values: Array) -> Inputs:
        """Inputs of the same kinds with other numbers, unchecked."""
        return self._replace(times=times, values=values, offset=0.0, _given=(None, None, None))

    def shifted(self, index: Any, starts: np.ndarray, table_times: np.ndarray | None) -> Inputs:
        """Those of the trajectories of an index array, each counted from a start of its own."""
        times = self.given_times[index] - starts[:, None]
        made = Inputs(times, self.given_values[index], self.kinds)
        return made.with_table_times(None if table_times is None else table_times[index])

    def with_table_times(self, table_times: np.ndarray | None) -> Inputs:
        """The same inputs, which know their times in a table."""
        return self._replace(_given=(*self._given[:2], table_times))

    def without_events(self, gone: np.ndarray) -> Inputs:
        """These inputs without the events of the rows where `gone`, (trajectory, row), is True."""
        events = np.isin(np.arange(len(self.kinds)), self.events)
        values = np.where(gone[..., None] & events, np.nan, self.given_values)
        return Inputs(self.given_times, values, self.kinds).with_table_times(self.table_times)

    def with_rows(self, ids: np.ndarray, when: np.ndarray, what: np.ndarray) -> Inputs:
        """These inputs, and more rows of some of the trajectories.

        Args:
            ids: the place of the trajectory of each row.
            when, what: times (row,), and numbers (row, input), NaN where nothing new.
        """
        i, k = np.indices(self.times.shape).reshape(2, -1)
        rows = (
            np.concatenate([i, ids]),
            np.concatenate([self.given_times[i, k], when]),
            np.concatenate([self.given_values[i, k], what]),
        )
        return pad_inputs(*rows, self.kinds, None)

    def _replace(self, **changes: Any) -> Inputs:
        changed = copy.copy(self)
        changed.__dict__.update(changes)
        return changed

    def __len__(self) -> int:
        return self.times.shape[0]

    def __getitem__(self, index: Any) -> Inputs:
        known = is_concrete(index)
        given = tuple(a[index] if known and a is not None else None for a in self._given)
        return self._replace(times=self.times[index], values=self.values[index], _given=given)

    def __repr__(self) -> str:
        trajectories, rows, _ = self.values.shape
        return f"Inputs({trajectories} trajectories, up to {rows} rows, {', '.join(self.kinds)})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
        names = ("times", "values")
        arrays = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names]
        return arrays, (self.kinds, self.offset)

    @classmethod
    def tree_unflatten(cls, rest: tuple[Any, ...], arrays: Sequence[Any]) -> Inputs:
        self = object.__new__(cls)
        self.times, self.values = arrays
        self.kinds, self.offset = rest
        return self

    @classmethod
    def none(cls, count: int, kinds: tuple[str, ...], dtype: Any) -> Inputs:
        """Those of trajectories that get nothing."""
        arrays = (jnp.zeros((count, 1), dtype), jnp.full((count, 1, len(kinds)), jnp.nan, dtype))
        return cls.tree_unflatten((kinds, 0.0), arrays)


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuses unknown kinds of inputs."""
    if strange := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"inputs must be of the kinds {', '.join(KINDS)}; got {strange[0]!r}.")


def asked_kinds(names: Kinds) -> dict[str, str]:
    """The kind that a user names for each input.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(names, Mapping):
        asked = {str(name): str(kind) for name, kind in names.items()}
    else:
        listed = [names] if isinstance(names, (str, int)) else names
        asked = dict.fromkeys(map(str, listed), CONSTANT)
    check_kinds([*asked.values()])
    return asked


def pad_inputs(
    ids: np.ndarray,
    when: np.ndarray,
    what: np.ndarray,
    kinds: Sequence[str],
    table_times: np.ndarray | None,
) -> Inputs:
    """The inputs of each id, from the rows of a table that give some.

    Args:
        ids: the number of each row's id.
        when, what: times (row,), and numbers (row, input), NaN where nothing new.
        kinds: of the inputs.
        table_times: the times in the table, if they are other ones.
    """
    giving = np.flatnonzero(~np.isnan(what).all(1))
    count = int(ids.max()) + 1
    order = giving[np.lexsort((when[giving], ids[giving]))]
    lengths = np.bincount(ids[order], minlength=count)
    slots = np.arange(max(1, lengths.max()))
    present = slots < lengths[:, None]
    rows = np.zeros(present.shape, int)
    rows[present] = order
    last = np.take_along_axis(rows, np.maximum(lengths - 1, 0)[:, None], axis=1)
    # An id without inputs has the time of its own first row.
    every = np.lexsort((when, ids))
    first = every[np.searchsorted(ids[every], np.arange(count))]
    rows = np.where(present, rows, np.where(lengths[:, None] > 0, last, first[:, None]))
    made = Inputs(when[rows], np.where(present[..., None], what[rows], np.nan), tuple(kinds))
    return made.with_table_times(None if table_times is None else table_times[rows])


def event_times(inputs: Inputs) -> np.ndarray:
    """The times at which an event gives something."""
    return inputs.given_times[inputs.giving]


def warn_of_held(inputs: Inputs | None, times: Array, names: Sequence[str]) -> None:
    """Warns of constant and linear inputs that end before a forecast does, or are never given.

    Args:
        inputs: of the context.
        times: of the forecast, (trajectory, time), less the offset of the inputs.
        names: of the inputs.
    """
    if inputs is None or not inputs.controls or not is_concrete(inputs.times, inputs.values, times):
        return
    chosen = inputs.controls
    known = ~np.isnan(np.asarray(inputs.values)[..., chosen])
    for j, never in zip(chosen, (~known.any(1)).sum(0).tolist(), strict=True):
        if never:
            warn_user(
                f"input {names[j]} is never given to {never} of {len(inputs)} ids, and counts as "
                "the average of the training data; give it a row for each id to say otherwise."
            )
    when = np.where(known.any(-1), np.asarray(inputs.times), -np.inf).max(1)
    short = int((np.isfinite(when) & (when < np.asarray(times).max(1))).sum())
    if short:
        called = ", ".join(names[j] for j in chosen)
        warn_user(
            f"inputs ({called}) end before the forecast of {short} of {len(inputs)} ids, and their "
            "last values are held; give rows of the future to say otherwise."
        )

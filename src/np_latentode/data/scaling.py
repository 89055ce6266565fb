"""Scaling: the affine maps between original units and the scaled units of the networks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.covariates import Covariates
from np_latentode.data.far import usual, usual_times, warn_user
from np_latentode.data.input_units import InputUnits
from np_latentode.data.inputs import Inputs, event_times
from np_latentode.data.labels import Labels
from np_latentode.data.numbers import as_floats, is_concrete
from np_latentode.data.offset import Offset
from np_latentode.data.stored import Moments, StoredTrajectories
from np_latentode.data.trajectories import Trajectories

__all__ = ["SPAN", "Scaling", "check_scaling", "first_time"]

SPAN = 5.0
"""The length of the training data in scaled time. Over this length, the initial dynamics move a
state about as far as data move."""


STAGGERED = 2_000
"""The number of trajectories on disk that show whether all overlap in time."""


@dataclass(frozen=True, eq=False)
class Scaling:
    """Affine units of values and time, and the one time `t0` at which z0 lives.

    Networks see `(values - loc) / scale` and `(times - t0) / time_unit`. Everything outside of the
    model and the guide is in original units. Model and guide must be given the same scaling.

    Args:
        loc, scale: the origin and the unit of each feature, shape (feature,); scale > 0.
        t0: the time of z0, in original units. No observation may be earlier.
        time_unit: the length of one scaled unit of time, in original units; > 0.
        labels: the labels of the training table. Tables with other features, or with another
            origin or unit of time, are refused.
        offset: that of the training data; model and guide take it off all others as well.
        covariates: how static covariates become numbers. Default: none are read.
        inputs: the units of inputs. Default: none are read.
    """

    loc: np.ndarray
    scale: np.ndarray
    t0: float = 0.0
    time_unit: float = 1.0
    labels: Labels | None = field(default=None, repr=False)
    offset: Offset = field(default=Offset(), repr=False)
    covariates: Covariates | None = field(default=None, repr=False)
    inputs: InputUnits | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=float))
        if self.loc.ndim != 1 or self.loc.shape != self.scale.shape:
            raise ValueError(
                "loc and scale must both have shape (feature,); "
                f"got {self.loc.shape} and {self.scale.shape}."
            )
        if not np.isfinite(self.loc).all():
            raise ValueError(f"loc must be finite; got {self.loc}.")
        if not (np.isfinite(self.scale) & (self.scale > 0)).all():
            raise ValueError(f"scale must be positive and finite; got {self.scale}.")
        if not np.isfinite(self.t0):
            raise ValueError(f"t0 must be finite; got {self.t0}.")
        if not (np.isfinite(self.time_unit) and self.time_unit > 0):
            raise ValueError(f"time_unit must be positive and finite; got {self.time_unit}.")

    @classmethod
    def identity(cls, num_features: int, *, t0: float = 0.0) -> Scaling:
        """Changes no number: for dynamics that are written in physical units."""
        return cls(np.zeros(num_features), np.ones(num_features), t0)

    @classmethod
    def fit(cls, train: Trajectories | StoredTrajectories, *, t0: float | None = None) -> Scaling:
        """Units of the training data.

        `loc` and `scale` are mean and standard deviation of each feature's observed values. The
        unit of time is a fifth of the span from t0 to the latest observation. The unit of a
        constant feature is its absolute value, or 1 if that is 0. Numbers far outside, more than
        ten times the range of 90% of the numbers away from it, change no unit.

        Warns if the trajectories hardly overlap in time, as with patients who enter one by one.

        Args:
            train: the trajectories that the model will be fitted on. Of those on disk, a random
                100,000 rows say which numbers are far outside; all else is exact.
            t0: the time of z0. Default: the earliest observed time of `train`, or that of an event
                before, if it is not far outside; 0 for windows, as their clock begins there.

        Raises:
            ValueError: if a feature is never observed, or an observation is earlier than t0.
        """
        on_disk = isinstance(train, StoredTrajectories)
        loc, sd, begin, end = train.moments() if on_disk else _moments(train)
        if (never := np.flatnonzero(np.isnan(loc))).size:
            raise ValueError(
                "train must hold at least one observation of every feature; "
                f"got none of {', '.join(train.names.features[j] for j in never)}."
            )
        t0 = begin if t0 is None else float(t0)
        size = np.where(loc == 0, 1.0, np.abs(loc))
        # Rounding gives a constant feature a standard deviation of a few units in the last place.
        constant = sd <= np.abs(loc) * 8 * np.finfo(float).eps
        unit = np.where(constant, size, sd)
        # JAX takes smaller numbers for 0.
        unit = np.where(unit < float(np.finfo(np.float32).tiny), 1.0, unit)
        span = max(end - t0, 0.0)
        static = train.given_static
        covariates = None if static is None else Covariates.fit(static, train.names)
        given = None if on_disk else train.inputs
        inputs = None if given is None else InputUnits.fit(given, train.names.inputs)
        unit_of_time = (span or 1.0) / SPAN
        scaling = cls(loc, unit, t0, unit_of_time, train.labels, train.offset, covariates, inputs)
        scaling.check(train, name="train")
        _warn_of_staggered(train.sample(STAGGERED) if on_disk else train)
        return scaling

    def check(self, trajectories: Trajectories | StoredTrajectories, *, name: str) -> None:
        """Refuses trajectories that do not fit these units.

        Raises:
            ValueError: if the number of features or the labels differ, or an observation is earlier
                than t0. Times are checked only outside of JAX transformations, where they are
                known.
        """
        if trajectories.num_features != len(self.loc):
            raise ValueError(
                f"{name} must have {len(self.loc)} features, as the scaling has; "
                f"got {trajectories.num_features}."
            )
        ours, theirs = self.labels, trajectories.labels
        if ours and theirs and not ours.like(theirs):
            raise ValueError(
                f"{name} must have the features, units and origin of the training table, {ours}; "
                f"got {theirs}."
            )
        on_disk = isinstance(trajectories, StoredTrajectories)
        static = trajectories.given_static if on_disk else trajectories.static
        if self.covariates is not None and static is None:
            raise ValueError(
                f"{name} must have the static covariates of the training data, "
                f"{', '.join(self.covariates.names)}, NaN where missing; got none."
            )
        if on_disk:
            self.check_times(np.array(trajectories.ends), name=name)
            return
        self._check_inputs(trajectories, name)
        if is_concrete(trajectories.times, trajectories.mask):
            # In NumPy: inside `jax.jit`, JAX would trace these operations even on known values.
            observed = np.asarray(trajectories.mask).any(-1)
            self.check_times(trajectories.given.times[observed], name=name)

    def _check_inputs(self, trajectories: Trajectories, name: str) -> None:
        if self.inputs is None:
            return
        inputs, asked = trajectories.inputs, ", ".join(self.inputs.names)
        if inputs is None or inputs.kinds != self.inputs.kinds:
            kinds = "none" if inputs is None else f"the kinds {', '.join(inputs.kinds)}"
            raise ValueError(
                f"{name} must have the inputs of the training data, {asked} "
                f"({', '.join(self.inputs.kinds)}); got {kinds}."
            )
        # Of a window, what was given before is part of the state at its start.
        labels = trajectories.labels or self.labels
        span = None if labels is None else labels.span
        if inputs.events and span is None and is_concrete(inputs.times, inputs.values):
            self.check_times(event_times(inputs), name=f"the events of {name}")

    def check_times(self, times: Array | np.ndarray, *, name: str) -> None:
        """Refuses times that are not finite or earlier than t0, if their values are known."""
        if not is_concrete(times):
            return
        times = np.asarray(times, float)
        if not np.isfinite(times).all():
            raise ValueError(f"{name} must be finite; got {times}.")
        # Times may have been rounded to single precision, less their offset.
        size = max(self.time_unit, abs(self.t0 - self.offset.time))
        slack = 8 * float(np.finfo(np.float32).eps) * size
        early = times < self.t0 - slack
        if early.any():
            raise ValueError(
                f"{name} must not be earlier than t0 = {self.t0:g}, the time of z0; "
                f"got {times[early].min():g}. Build model and guide with an earlier t0: "
                "scaling=Scaling.fit(train, t0=...)."
            )

    def like(self, other: Scaling) -> bool:
        """Whether numbers have the same meaning in both units."""
        ours, theirs = (
            (x.loc.tolist(), x.scale.tolist(), x.t0, x.time_unit, x.offset) for x in (self, other)
        )
        if self.covariates is not None and not self.covariates.like(other.covariates):
            return False
        if self.inputs is not None and not self.inputs.like(other.inputs):
            return False
        if self.labels is None or other.labels is None:
            return ours == theirs and self.labels is other.labels
        return ours == theirs and self.labels.like(other.labels)

    def less(self, offset: Offset) -> Scaling:
        """The same units of numbers that are less this offset."""
        if not offset:
            return self
        less = dict(loc=self.loc - offset.row, t0=self.t0 - offset.time)
        return replace(self, **less, offset=Offset())

    @property
    def num_covariates(self) -> int:
        """The number of entries of s, the static covariates as networks read them."""
        return 0 if self.covariates is None else self.covariates.size

    def scale_static(
        self, static: Float[Array, "trajectory covariate"] | None
    ) -> Float[Array, "trajectory entry"] | None:
        """Static covariates as networks read them; None if there are none."""
        if self.covariates is None or static is None:
            return None
        return self.covariates.encode(static)

    def scale_inputs(self, inputs: Inputs | None) -> Inputs | None:
        """Inputs as networks read them; None if none are read. Their offset must be that of the
        scaling."""
        if self.inputs is None or inputs is None:
            return None
        return inputs.scaled(self.scale_times(inputs.times), self.inputs.encode(inputs.values))

    def check_row(self, static: Any) -> Array:
        """The static covariates of one trajectory, shape (covariate,).

        Raises:
            ValueError: if no covariates are read, or it is of another shape.
        """
        count = 0 if self.covariates is None else len(self.covariates.names)
        row = as_floats("static", static)
        if row.shape != (count,) or not count:
            raise ValueError(
                f"static must have shape ({count},), one entry for each covariate of the training "
                f"data; got shape {row.shape}."
            )
        return row

    def check_given(self, inputs: Inputs | None) -> Inputs | None:
        """The inputs of one trajectory; None for none.

        Raises:
            ValueError: if none are read, or they are of other kinds or of several trajectories.
        """
        kinds = () if self.inputs is None else self.inputs.kinds
        if inputs is not None and (inputs.kinds != kinds or len(inputs) != 1):
            raise ValueError(
                f"inputs must be of one trajectory, of the kinds of the training data, "
                f"{', '.join(kinds) or 'none'}; got {inputs}."
            )
        return inputs

    def scale_values(
        self, values: Float[Array, "*batch feature"]
    ) -> Float[Array, "*batch feature"]:
        return (values - self._as_array(self.loc)) / self._as_array(self.scale)

    def unscale_values(
        self, values: Float[Array, "*batch feature"]
    ) -> Float[Array, "*batch feature"]:
        return values * self._as_array(self.scale) + self._as_array(self.loc)

    def scale_times(self, times: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
        return (times - self.t0) / self.time_unit

    @staticmethod
    def _as_array(numbers: ArrayLike) -> Array:
        return jnp.asarray(numbers, dtype=jnp.result_type(float))


def _moments(train: Trajectories) -> Moments:
    """The statistics by which units are chosen; NaN of a feature that was never observed."""
    values, mask = train.given.values, np.asarray(train.mask)
    known = [values[..., j][mask[..., j]] for j in range(train.num_features)]
    near = [x[usual(x)] for x in known]
    loc, sd = (np.array([f(x) if x.size else np.nan for x in near]) for f in (np.mean, np.std))
    if not mask.any():
        return Moments(loc, sd, np.nan, np.nan)
    times = train.given.times[mask.any(-1)]
    begin = first_time(train) if train.names.span is None else 0.0
    return Moments(loc, sd, begin, float(times[usual(times)].max()))


def first_time(train: Trajectories) -> float:
    """The first time of all observations and events that is not far outside."""
    observed = train.given.times[np.asarray(train.observed)]
    given = np.zeros(0) if train.inputs is None else event_times(train.inputs)
    near, also = usual_times(observed, given)
    # Events may be so many that all observations lie far outside of them.
    near = near if near.any() else usual(observed)
    return float(np.concatenate([observed[near], given[also]]).min())


def _warn_of_staggered(train: Trajectories) -> None:
    """Warns if most trajectories are short beside the differences between their first times."""
    observed, times = np.asarray(train.observed), train.given.times
    several = train.lengths > 1
    if several.sum() < 5 or train.names.own_clocks:
        return
    first = np.min(times, axis=1, where=observed, initial=np.inf)[several]
    last = np.max(times, axis=1, where=observed, initial=-np.inf)[several]
    low, high = np.quantile(first, [0.1, 0.9])
    if high - low > 2 * np.median(last - first):
        length = np.median(last - first)
        warn_user(
            f"train hardly overlaps in time: half of the trajectories last {length:.4g} or less, "
            f"but their first times lie {high - low:.4g} apart. If the time since each one's start "
            "says more than one clock for all, read the table with since='first' (--since first)."
        )


def check_scaling(scaling: object) -> Scaling:
    """The scaling, or a ValueError that says what came instead."""
    if not isinstance(scaling, Scaling):
        raise ValueError(f"scaling must be a np_latentode.Scaling; got {scaling!r}.")
    return scaling

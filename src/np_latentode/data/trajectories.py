"""Trajectories: a batch of irregular time series as one pytree."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from np_latentode.data.clocks import start_column
from np_latentode.data.columns import Columns
from np_latentode.data.covariates import Names, asked_levels
from np_latentode.data.folds import random_rows
from np_latentode.data.given import (
    Given,
    Rows,
    modelled_error,
    modelled_limits,
    pad_rows,
)
from np_latentode.data.inputs import Inputs, Kinds, asked_kinds
from np_latentode.data.labels import UNITS, Labels
from np_latentode.data.limits import Limits
from np_latentode.data.numbers import (
    Numbers,
    as_doubles,
    as_floats,
    check_error_shape,
    check_errors,
    check_shapes,
    check_times,
    check_values,
    is_concrete,
)
from np_latentode.data.offset import Offset
from np_latentode.data.plans import plan_rows
from np_latentode.data.ragged import pad, pad_beside
from np_latentode.data.tables import asked_errors, from_rows
from np_latentode.data.windows import window_rows
from np_latentode.data.written import to_rows

__all__ = ["Trajectories"]


@jax.tree_util.register_pytree_with_keys_class
class Trajectories:
    """A batch of irregularly sampled trajectories, each with its own times.

    `values[i, k, d]` was observed at `times[i, k]` if `mask[i, k, d]` is True. Shorter trajectories
    are padded: their last time is repeated and their mask is False. Unobserved values are stored as
    zero, so that nothing can depend on them.

    A pytree: `jax.jit`, `jax.tree.map` and `jax.vmap` see its arrays. `len` counts
    trajectories. An index selects trajectories: an integer, a slice, or an index array.

    `times` and `values` are JAX arrays, less `offset`. The offset is 0 unless single precision
    would lose differences, as those of 1,000,000.1 and 1,000,000.2, or of Julian dates. All
    arguments and results of the library are with the offset, in double precision, as `given` is.

    `labels` are the names of trajectories, features and times in a table. They are None without a
    table, and in the results of JAX's transformations, which only keep arrays and the offset.

    Args:
        times: shape (trajectory, time); finite, and never decreasing along a trajectory.
        values: shape (trajectory, time, feature). NaN means unobserved.
        mask: booleans of the shape of `values`, True where observed. Default: True where values are
            not NaN.
        static: covariates that do not change, shape (trajectory, covariate); NaN means missing.
            Default: none. Categories of a table are the places among their levels.
        inputs: what is given over time, such as doses and temperature, past and future; an entry
            per trajectory. Default: none.
        error: the known standard error of each value, in the units and of the shape of `values`.
            Default: none is known, and all noise is the model's.
        limits: of values of which only an interval is known, of the shape of `values`. There
            `values` hold a stand-in, the bound or the middle, whatever was given. Default: none.

    Raises:
        ValueError: if shapes disagree, there is no trajectory, times decrease or are not finite,
            an observed value or a covariate is infinite, or an error is negative or not finite.
    """

    times: Float[Array, "trajectory time"]
    values: Float[Array, "trajectory time feature"]
    mask: Bool[Array, "trajectory time feature"]
    static: Float[Array, "trajectory covariate"] | None = None
    inputs: Inputs | None = None
    error: Float[Array, "trajectory time feature"] | None = None
    limits: Limits | None = None
    """Less `offset`, as `values`."""

    offset: Offset = Offset()
    labels: Labels | None = None

    _arrays = ("times", "values", "mask", "static", "inputs", "error", "limits")
    _given: Given | None = None
    _static: np.ndarray | None = None

    def __init__(
        self,
        times: Numbers,
        values: Numbers,
        mask: Numbers | None = None,
        *,
        static: Numbers | None = None,
        inputs: Inputs | None = None,
        error: Numbers | None = None,
        limits: Limits | None = None,
    ):
        bounds = jax.tree.leaves(limits)
        if not is_concrete(times, values, mask, static, error, *bounds):
            self._trace(as_floats("times", times), as_floats("values", values), mask, error, limits)
            self.static = None if static is None else as_floats("static", static)
            self._keep_inputs(inputs)
            return
        when, what = as_doubles("times", times), as_doubles("values", values)
        if limits is not None:
            what = _with_stand_ins(what, limits)
        observed = ~np.isnan(what)
        if mask is not None:
            observed &= _checked_mask(np.asarray(mask), what.shape)
        check_shapes(when, what)
        check_times(when)
        what = np.where(observed, what, 0.0)
        check_values(what, observed)
        sds = None if error is None else check_errors(as_doubles("error", error), observed)
        self._keep(Given(when, what, error=sds, limits=limits).hide(~observed), observed)
        self._keep_static(None if static is None else as_doubles("static", static))
        self._keep_inputs(inputs)

    def _trace(
        self, times: Array, values: Array, mask: Any, error: Numbers | None, limits: Limits | None
    ) -> None:
        """Keeps what a transformation of JAX computes: its numbers cannot be checked."""
        if limits is not None:
            values = _with_stand_ins(values, limits).astype(values.dtype)
        observed = ~jnp.isnan(values)
        if mask is not None:
            observed &= _checked_mask(jnp.asarray(mask), values.shape)
        check_shapes(times, values)
        self.times, self.values, self.mask = times, jnp.where(observed, values, 0.0), observed
        if error is not None:
            sds = as_floats("error", error)
            check_error_shape(sds, observed)
            self.error = jnp.where(observed, sds, 0.0)
        if limits is not None:
            self.limits = limits.each(
                lambda bounds: jnp.where(observed, as_floats("limits", bounds), jnp.nan)
            )

    def _keep(self, given: Given, mask: np.ndarray) -> None:
        """Keeps what was given in double precision, and for JAX the same less the offset."""
        self._given, self.offset = given, Offset.of(given.times, given.values, mask)
        self.times, self.values = _less(given, mask, self.offset)
        self.mask = jnp.asarray(mask)
        self.error, self.limits = _beside_less(given, self.labels, self.offset)
        # Numbers may be finite in double precision only.
        check_times(np.asarray(self.times))
        check_values(np.asarray(self.values), mask)
        if self.error is not None:
            check_errors(np.asarray(self.error), mask)

    def _keep_static(self, static: np.ndarray | None) -> None:
        """Keeps static covariates in double precision, and for JAX in its own."""
        if static is None:
            return
        if static.ndim != 2 or len(static) != len(self) or not static.shape[1]:
            raise ValueError(
                f"static must have shape (trajectory, covariate), with {len(self)} trajectories as "
                f"the values have; got {static.shape}."
            )
        if np.isinf(static).any():
            raise ValueError(f"static must be finite, or NaN where missing; got {static}.")
        self._static, self.static = static, as_floats("static", static)

    def _keep_inputs(self, inputs: Inputs | None) -> None:
        """Keeps inputs, less the offset of the times."""
        if inputs is None:
            return
        if not isinstance(inputs, Inputs) or len(inputs) != len(self):
            came = len(inputs) if isinstance(inputs, Inputs) else type(inputs).__name__
            raise ValueError(
                f"inputs must be a np_latentode.Inputs of {len(self)} trajectories, as the values "
                f"are; got {came}."
            )
        self.inputs = inputs.at_offset(self.offset.time)

    @classmethod
    def from_ragged[T: Trajectories](
        cls: type[T],
        sequences: Iterable[tuple[Numbers, Numbers]],
        *,
        num_features: int | None = None,
        error: Iterable[Numbers] | None = None,
        limits: Iterable[Limits] | None = None,
    ) -> T:
        """Pads trajectories of unequal lengths into one batch.

        Args:
            sequences: one pair per trajectory: times (time,) and values (time, feature). Values of
                shape (time,) are one feature. NaN means unobserved. A pair of empty sequences is a
                trajectory without observations.
            num_features: the number of features; needed only if no trajectory has a value.
            error, limits: one per trajectory, of the shape of its values. An empty series has an
                empty one. Default: none.

        Raises:
            ValueError: if there is no trajectory, or one is malformed; it is named by its index.
        """
        times, values, lengths = pad(sequences, num_features)
        width = values.shape[2]
        errors = None if error is None else pad_beside("error", error, lengths, width)
        bounds = None
        if limits is not None:
            pairs = [*limits]
            for i, one in enumerate(pairs):
                if not isinstance(one, Limits):
                    raise ValueError(
                        f"limits[{i}] must be a np_latentode.Limits; got {type(one).__name__}."
                    )
            each = ([x.lower for x in pairs], [x.upper for x in pairs])
            bounds = Limits(*(pad_beside("limits", one, lengths, width) for one in each))
        return cls(times, values, error=errors, limits=bounds)

    @classmethod
    def from_dataframe[T: Trajectories](
        cls: type[T],
        df: Any,
        *,
        id: str | int,
        time: str | int,
        values: Sequence[str | int] | int = (),
        feature: str | int | None = None,
        value: str | int | None = None,
        log: Sequence[str | int] | int = (),
        since: str | None = None,
        origin: Any = None,
        unit: str = "D",
        static: Names = (),
        inputs: Kinds = (),
        error: Any = None,
    ) -> T:
        """Trajectories from a table: each row holds an id, a time, and measurements.

        Rows may come in any order, and trajectories come in the order of their first rows. Several
        rows of one id and time are separate observations, in the order of the table. A row without
        measurements is not an observation. An id that has only such rows is a trajectory without
        observations.

        Args:
            df: a data frame of pandas, polars, pyarrow, or another library that narwhals supports.
                Levels of an index of pandas are columns too. Names are compared as text.
            id: the column that identifies trajectories.
            time: the column of times: numbers, dates, datetimes, or texts that
                `csv_files.read_csv` reads as such. Datetimes with a time zone are converted to UTC.
            values: the columns of measurements: numbers, or true and false. An empty entry was not
                measured. Texts such as <0.5, >120 or 1..2 are `limits`. With `feature`: those of
                its entries that are read. Default: all of them.
            feature, value: for a table with one row per measurement, the column of what was
                measured, and that of the result. Rows of one id and time become one observation of
                all features.
            log: the columns among `values` that are modelled by their logarithm. `values` of the
                trajectories are then logarithms; tables and figures stay in the column's own units.
            since: "first" counts the times of each id from its first row on. The name of a column
                counts them from the entry there, such as a birth or an operation. Tables and
                figures keep the table's own times. Default: one clock for all ids.
            origin: the date from which times are counted. Default: the first date that is not far
                outside. A table to forecast from must get the origin of the training table,
                `train.labels.origin`.
            unit: the unit in which dates are counted: W, D, h, m or s.
            static: the columns of covariates that do not change within an id, such as age at entry,
                sex or arm: numbers or categories. All rows of an id hold the same entry, or none. A
                column of numbers, or of true and false, is a number. A mapping says more:
                {"diet": "category"} where categories are numbers, "number", the categories in their
                order as ["placebo", "drug"], or None.
            inputs: the columns of what is given over time and known ahead, such as a temperature or
                a treatment, past and future: numbers, empty where nothing new is given. All rows of
                an id count, also those without measurements and those after the last one. A mapping
                names their kinds, as {"dose": "event", "temp": "linear"}; see `Inputs`. Default
                kind: constant. Several events of one id and time add up.
            error: the column of the known standard error of each value, by the column of the value,
                as {"bili": "bili_sd"}, in the same units. It is empty only where there is no value,
                or a limit. In `log`, that of the logarithm is error / value.

        Raises:
            MalformedRows: a ValueError that lists all rows without id or time, with an infinite
                value, with a value in `log` that is not positive, with a limit that is none, with a
                standard error that is negative or not there, or with another static entry than the
                rows before it; each with its number (from 0), the column and what came.
            ValueError: if the table lacks a column, has no rows, or holds text.
        """
        names: dict[str, Any] = dict(id=id, time=time, values=values, feature=feature, value=value)
        asked, kinds, errors = asked_levels(static), asked_kinds(inputs), asked_errors(error)
        names |= dict(static=asked, inputs=kinds, error=errors.values())
        columns = Columns.of(**names, start=start_column(since))
        settings: Any = dict(log=log, since=since, origin=origin, unit=unit, static=asked)
        return cls._from_rows(from_rows(df, columns, **settings, kinds=kinds, error=errors))

    @classmethod
    def from_file[T: Trajectories](
        cls: type[T],
        path: str | os.PathLike[str],
        *,
        id: str | int,
        time: str | int,
        values: Sequence[str | int] | int = (),
        feature: str | int | None = None,
        value: str | int | None = None,
        log: Sequence[str | int] | int = (),
        since: str | None = None,
        origin: Any = None,
        unit: str = "D",
        static: Names = (),
        inputs: Kinds = (),
        error: Any = None,
    ) -> T:
        """Trajectories from a file that holds a table; see `from_dataframe`.

        Args:
            path: of a .csv, .tsv, .xlsx, .parquet or .nc (netCDF) file; .csv and .tsv may be
                compressed, as .csv.gz. `csv_files.read_csv` says how texts are read; ids stay text.
                Of .xlsx, the first sheet is read. An index and coordinates are columns.
            id, time, values, feature, value, log, since, origin, unit, static, inputs, error: as in
                `from_dataframe`.

        Raises:
            MalformedRows: a ValueError that lists all rows that cannot be read: lines of a CSV file
                (from 1), or rows (from 0).
            ValueError: naming the file, if it has another format or lacks a column.
            ImportError: if the library that reads .parquet or .xlsx is missing.
            OSError: if the system cannot read the file.
        """
        # Imported here, as pandas and xarray take most of a second.
        from np_latentode.data.files import read_rows

        names = dict(id=id, time=time, values=values, feature=feature, value=value)
        settings: Any = dict(log=log, since=since, origin=origin, unit=unit, static=static)
        return cls._from_rows(read_rows(path, **names, **settings, inputs=inputs, error=error))

    @classmethod
    def _from_rows[T: Trajectories](cls: type[T], rows: Rows) -> T:
        self = object.__new__(cls)
        given, mask = pad_rows(rows)
        self.labels = rows.labels
        self._keep(given, mask)
        self._keep_static(rows.static)
        self._keep_inputs(rows.inputs)
        return self

    def to_dataframe(self, *, backend: Any = "pandas") -> Any:
        """A table of the observations: one row per id and time, empty where not observed.

        Times, values, static covariates and inputs are those of the original table, to the last
        bit. What is given at another time than that of an observation has a row of its own. A
        column with limits is text, such as <0.5 beside 0.7.

        Args:
            backend: the library of the data frame: "pandas", "polars" or "pyarrow".
        """
        mask, names = np.asarray(self.mask), self.names
        return to_rows(self.given, mask, names, self.given_static, self.inputs, backend=backend)

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Writes the table of `to_dataframe` to a file, whole or not at all.

        Args:
            path: of the file, with an ending that `from_file` reads. An earlier file is replaced
                once the new one is complete.

        Raises:
            ValueError: if the file's format is not known, or cannot hold an id or a name.
            ImportError: if the library that writes .parquet or .xlsx is missing.
            OSError: if the system cannot write the file. An earlier file is then unchanged.
        """
        from np_latentode.data.files import write_table

        write_table(self.to_dataframe(), path)

    @property
    def names(self) -> Labels:
        """The labels; without a table, ids 0, 1, ... and features x_0, x_1, ..."""
        if self.labels is not None:
            return self.labels
        features = tuple(f"x_{j}" for j in range(self.num_features))
        labels = Labels(tuple(range(len(self))), features)
        if self.inputs is not None:
            kinds = self.inputs.kinds
            given = tuple(f"u_{j}" for j in range(len(kinds)))
            labels = replace(labels, inputs=given, kinds=kinds)
        if self.error is not None:
            labels = replace(labels, error=tuple(f"{name}_error" for name in features))
        if self.static is None:
            return labels
        static = tuple(f"s_{c}" for c in range(self.static.shape[1]))
        return replace(labels, static=static, levels=((),) * len(static))

    @property
    def given(self) -> Given:
        """Times and values in double precision, with the offset: as they were given.

        After a transformation of JAX, they are as precise as JAX's arrays.
        """
        if self._given is not None:
            return self._given
        times, values = np.asarray(self.times, float), np.asarray(self.values, float)
        values = np.where(np.asarray(self.mask), values + self.offset.row, 0.0)
        error = None if self.error is None else np.asarray(self.error, float)
        limits = self.limits and self.limits.each(
            lambda bounds: np.asarray(bounds, float) + self.offset.row
        )
        return Given(times + self.offset.time, values, error=error, limits=limits)

    @property
    def given_static(self) -> np.ndarray | None:
        """Static covariates in double precision, as they were given; None if there are none."""
        if self._static is not None or self.static is None:
            return self._static
        return np.asarray(self.static, float)

    def before[T: Trajectories](self: T, time: Numbers) -> T:
        """The same trajectories with only their observations up to and including `time`.

        Args:
            time: one time for all, or one per trajectory, shape (trajectory,).
        """
        return self._where(self.times <= self._per_trajectory(time))

    def after[T: Trajectories](self: T, time: Numbers) -> T:
        """The same trajectories with only their observations later than `time`: the complement of
        `before(time)`.

        Args:
            time: one time for all, or one per trajectory, shape (trajectory,).
        """
        return self._where(self.times > self._per_trajectory(time))

    def with_inputs[T: Trajectories](self: T, inputs: Inputs | Trajectories) -> T:
        """The same trajectories with other inputs: what would be, if these were given?

        Args:
            inputs: one entry per trajectory; or other trajectories with inputs and labels of the
                same table, of which those of the same ids are taken.

        Raises:
            ValueError: if they are of other kinds, or there are none of an id.
        """
        if isinstance(inputs, Trajectories):
            inputs = self._inputs_of(inputs)
        if inputs is None:
            raise ValueError(
                "inputs must be a np_latentode.Inputs, or trajectories that have some; got None."
            )
        changed = self._replace(inputs=None)
        changed._keep_inputs(inputs)
        if self.labels is not None and not self.labels.inputs:
            given = tuple(f"u_{j}" for j in range(len(inputs.kinds)))
            changed.labels = replace(self.labels, inputs=given, kinds=inputs.kinds)
        if self.inputs is not None and inputs.kinds != self.inputs.kinds:
            raise ValueError(
                f"inputs must be of the kinds {', '.join(self.inputs.kinds)}; got "
                f"{', '.join(inputs.kinds)}."
            )
        return changed

    def _inputs_of(self, others: Trajectories) -> Inputs:
        """The inputs of the trajectories of the same ids."""
        if others.inputs is None:
            raise ValueError("inputs must be of trajectories that have some; got none.")
        if not self.names.like(others.names):
            raise ValueError(f"inputs must be of a table of {self.names}; got {others.names}.")
        ours, theirs = self.names, others.names
        places = {str(name): place for place, name in enumerate(theirs.ids)}
        if absent := [name for name in ours.ids if str(name) not in places]:
            raise ValueError(f"inputs must be of every {ours.id}; got none of {absent[0]!r}.")
        index = np.array([places[str(name)] for name in ours.ids])
        if not (ours.starts and theirs.starts):
            return others.inputs[index]
        # Each trajectory has a clock of its own, which may start at another time there.
        starts = np.array(ours.starts) - np.array(theirs.starts)[index]
        if ours.origin is not None and theirs.origin is not None:
            starts = starts - (theirs.origin - ours.origin) / UNITS[ours.unit or "D"]
        return others.inputs.shifted(index, starts, others.inputs.table_times)

    def with_plan[T: Trajectories](self: T, plan: Any) -> T:
        """The same trajectories, to which more is given: the rows of a plan are added.

        Args:
            plan: a data frame as in `from_dataframe`, or the path of a file as in `from_file`,
                with the columns of ids, times and inputs. Rows may be past or future.

        Raises:
            MalformedRows: a ValueError that lists the rows with an id that is not among these, and
                all others that `from_dataframe` refuses.
            ValueError: if it lacks a column, or the trajectories have no inputs.
        """
        if not self.names.inputs:
            raise ValueError("plan must be of inputs; got one, and the trajectories have none.")
        if isinstance(plan, (str, os.PathLike)):
            from np_latentode.data.files import read_plan

            rows = read_plan(plan, self.names)
        else:
            rows = plan_rows(plan, self.names)
        inputs = self.inputs or Inputs.none(len(self), self.names.kinds, self.times.dtype)
        return self.with_inputs(inputs.with_rows(*rows))

    def split[T: Trajectories](self: T, share: float = 0.5) -> tuple[T, T]:
        """Splits each trajectory in time: early observations to forecast from, and late ones to
        compare forecasts with.

        Args:
            share: the share of the observed times that are early, rounded up; between 0 and 1.

        Raises:
            ValueError: if the share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1; got {share}.")
        observed = self.observed
        # Observations at one time stay together.
        latest = jax.lax.cummax(jnp.where(observed, self.times, -jnp.inf), axis=1)
        earlier = jnp.pad(latest[:, :-1], ((0, 0), (1, 0)), constant_values=-jnp.inf)
        new = observed & (self.times > earlier)
        # A product such as 0.1 * 10 may be slightly too large, which must not count as one more.
        count = jnp.ceil(share * new.sum(1, keepdims=True) - 1e-4)
        early = jnp.cumsum(new, axis=1) <= count
        return self.keep(early), self.keep(~early)

    def keep[T: Trajectories](self: T, mask: Numbers) -> T:
        """The same trajectories with only those observations where `mask` is True.

        Args:
            mask: booleans of shape (trajectory, time) or (trajectory, time, feature).
        """
        mask = jnp.asarray(mask)
        if mask.dtype != bool or mask.shape not in (self.mask.shape[:2], self.mask.shape):
            raise ValueError(
                f"mask must hold booleans of shape {self.mask.shape[:2]} or {self.mask.shape}; "
                f"got dtype {mask.dtype} and shape {mask.shape}."
            )
        return self._where(mask)

    def windows(self, span: float, step: float | None = None) -> Trajectories:
        """Windows of equal span that overlap: parts of long trajectories, each a trajectory.

        Let T be the time of a trajectory's last observation. Its window n = 0, 1, ... holds the
        observations at times t with

            T - n step - span < t <= T - n step,

        and its clock counts from the window's start, T - n step - span. So every window lies on
        one clock from 0 to span, and the last observation of a trajectory is at `span` in its last
        window, n = 0. Windows go back to the first that holds all that is left, which may begin
        before the first observation. A trajectory shorter than the span gives one window.

        Windows are in the order of the trajectories, and in that of time in each of them. A window
        keeps the id of its trajectory, so `names.ids` repeat, and `to_dataframe` lists an
        observation once for each window that holds it. `names.starts` are the starts, so
        `names.calendar(times)` gives the table's own times, and `names.counted(dates)` the times in
        each window. Slots without observations are gone. So is what a subclass adds. A window has
        all inputs of its trajectory; events before its start are part of the state there.

        Warns if a trajectory has no window, and is left out.

        Args:
            span: the length of a window, in the unit of the times.
            step: how much later than the one before each window begins; at most `span`. Windows
                with fewer than two observed times are left out. Default: only the last window of
                each trajectory, of those with an observation: to forecast from.

        Raises:
            ValueError: if span or step are not positive and finite, step is longer than span, no
                window is left, or the span is so long that times become equal in single precision.
        """
        return Trajectories._from_rows(
            window_rows(
                self.given,
                np.asarray(self.mask),
                self.names,
                self.given_static,
                self.inputs,
                span,
                step,
            )
        )

    @property
    def num_features(self) -> int:
        """The number of features."""
        return self.values.shape[2]

    @property
    def observed(self) -> Bool[Array, "trajectory time"]:
        """True at the times where at least one feature was observed."""
        return self.mask.any(-1)

    @property
    def lengths(self) -> Int[np.ndarray, " trajectory"]:
        """The number of observed times of each."""
        return np.asarray(self.observed).sum(1)

    @property
    def limited(self) -> Bool[np.ndarray, "trajectory time feature"]:
        """True where only limits of a value are known."""
        if self.limits is None:
            return np.zeros(self.mask.shape, bool)
        # By NumPy, as a program that is traced asks this of known limits too.
        return self.limits.each(np.asarray).censored

    def _per_trajectory(self, time: Numbers) -> Array:
        known = as_doubles("time", time) if is_concrete(time) else as_floats("time", time)
        time = as_floats("time", known - self.offset.time)
        if time.shape not in ((), (len(self),)):
            raise ValueError(
                f"time must be one number, or one per trajectory, shape ({len(self)},); "
                f"got shape {time.shape}."
            )
        return time[..., None]

    def _where[T: Trajectories](self: T, keep: Array) -> T:
        mask = self.mask & (keep if keep.ndim == 3 else keep[..., None])
        given = self._given if is_concrete(mask) else None
        return self._replace(
            values=jnp.where(mask, self.values, 0.0),
            mask=mask,
            error=None if self.error is None else jnp.where(mask, self.error, 0.0),
            limits=self.limits and self.limits.each(lambda x: jnp.where(mask, x, jnp.nan)),
            _given=given and given.hide(~np.asarray(mask)),
        )

    def without[T: Trajectories](self: T, mask: Numbers) -> T:
        """The same trajectories without the slots where `mask` is True, which are then gone.

        `keep` only hides observations: the model still solves to their times.

        Args:
            mask: booleans of shape (trajectory, time).
        """
        gone, given = np.asarray(mask), self.given
        count, length = gone.shape
        hidden = ~np.asarray(self.mask)
        given = given._replace(values=np.where(hidden, np.nan, given.values))
        flat = given.each(lambda array: array.reshape(-1, *array.shape[2:]))
        rows = [length * i + np.flatnonzero(~gone[i]) for i in range(count)]
        return self._from_rows(Rows(flat, rows, self.names, self.given_static, self.inputs))

    def sample[T: Trajectories](self: T, count: int) -> T:
        """Random ones of them, or all if there are no more; always the same ones."""
        return self if len(self) <= count else self[random_rows(len(self), count)]

    def at_slots[T: Trajectories](self: T, slots: Array | np.ndarray) -> T:
        """The same trajectories with these slots of each, shape (trajectory, slot)."""
        known = self._given if is_concrete(slots, self.times) else None

        def pick(array: Any, xp: Any) -> Any:
            index = slots.reshape(*slots.shape, *[1] * (array.ndim - 2))
            return xp.take_along_axis(array, index, axis=1)

        given = known and known.each(lambda array: pick(array, np))
        names = ("times", "values", "mask", "error", "limits")
        arrays = {name: getattr(self, name) for name in names}
        return self._replace(**jax.tree.map(lambda x: pick(x, jnp), arrays), _given=given)

    def at_offset[T: Trajectories](self: T, offset: Offset) -> T:
        """The same trajectories less another offset, where their numbers are known."""
        if self.offset == offset or not is_concrete(self.times, self.values, self.mask):
            return self
        given = self.given
        times, values = _less(given, np.asarray(self.mask), offset)
        changed = dict(times=times, values=values, offset=offset, _given=given)
        changed |= dict(inputs=None if self.inputs is None else self.inputs.at_offset(offset.time))
        if self.limits is not None:
            changed |= dict(limits=_beside_less(given, self.labels, offset)[1])
        return self._replace(**changed)

    def replace_arrays[T: Trajectories](
        self: T, times: Any, values: Any, mask: Any, limits: Limits | None = None
    ) -> T:
        """Trajectories of other arrays with the same offset, unchecked: for use inside of JAX.

        Standard errors, static covariates and inputs stay; limits are those given.
        """
        arrays = dict(times=times, values=values, mask=mask, limits=limits)
        return self._replace(**arrays, labels=None, _given=None)

    def _replace[T: Trajectories](self: T, **changes: Any) -> T:
        changed = copy.copy(self)
        changed.__dict__.update(changes)
        return changed

    def __len__(self) -> int:
        return self.times.shape[0]

    def __getitem__[T: Trajectories](self: T, index: Any) -> T:
        if isinstance(index, (int, np.integer)):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index must lie within {len(self)} trajectories; got {index}.")
            index = slice(index, index + 1 or None)
        elif not isinstance(index, slice) and is_concrete(index):
            # In NumPy: JAX would replace an index out of range by that of the last trajectory.
            try:
                index = np.arange(len(self))[np.asarray(index)]
            except IndexError as error:
                raise IndexError(f"index must select trajectories: {error}.") from error
        arrays = {name: getattr(self, name) for name in self._arrays}
        selected: dict[str, Any] = {
            name: None if a is None else a[index] for name, a in arrays.items()
        }
        if selected["times"].ndim != 2 or not len(selected["times"]):
            raise ValueError(f"index must select at least one trajectory; got {index}.")
        if not is_concrete(index):
            return self._replace(**selected, labels=None, _given=None, _static=None)
        given = self._given and self._given.select(index)
        static = None if self._static is None else self._static[index]
        labels = self.labels and self.labels.select(index)
        return self._replace(**selected, labels=labels, _given=given, _static=static)

    def __repr__(self) -> str:
        trajectories, slots, features = self.values.shape
        count = f", {int(self.mask.sum())} observed values" if is_concrete(self.mask) else ""
        return f"Trajectories({trajectories} of up to {slots} times, {features} features{count})"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], dict[str, Any]]:
        arrays = [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in self._arrays]
        # Without labels: with them, JAX would compile a new program for every set of ids.
        kept = {*self.__dict__} - {*self._arrays, "labels", "_given", "_static"}
        return arrays, {"offset": self.offset} | {name: self.__dict__[name] for name in kept}

    @classmethod
    def tree_unflatten[T: Trajectories](
        cls: type[T], rest: dict[str, Any], arrays: Iterable[Any]
    ) -> T:
        # Unchecked, as JAX also rebuilds pytrees with tracers and placeholders in place of arrays.
        self = object.__new__(cls)
        self.__dict__.update(zip(cls._arrays, arrays, strict=True), **rest)
        return self


def _less(given: Given, mask: np.ndarray, offset: Offset) -> tuple[Array, Array]:
    """Times and values for JAX: less the offset, and 0 where nothing was observed."""
    values = np.where(mask, given.values - offset.row, 0.0)
    return as_floats("times", given.times - offset.time), as_floats("values", values)


def _beside_less(
    given: Given, labels: Labels | None, offset: Offset
) -> tuple[Array | None, Limits | None]:
    """Standard errors and limits for JAX: as modelled, and limits less the offset."""
    error, limits = modelled_error(given, labels), modelled_limits(given, labels)
    errors = None if error is None else as_floats("error", error)
    if limits is None:
        return errors, None
    less = limits.each(lambda bounds: as_floats("limits", bounds - offset.row))
    narrow = np.asarray(less.lower) >= np.asarray(less.upper)
    if narrow.any():
        at = tuple(np.argwhere(narrow)[0].tolist())
        raise ValueError(
            "limits: lower and upper must differ in JAX's float type; got "
            f"{limits.lower[at]} and {limits.upper[at]} at {[*at]}."
        )
    return errors, less


def _with_stand_ins(values: Any, limits: Limits) -> Any:
    if not isinstance(limits, Limits) or np.shape(limits.lower) != values.shape:
        came = np.shape(limits.lower) if isinstance(limits, Limits) else type(limits).__name__
        raise ValueError(
            f"limits must be a np_latentode.Limits of the shape of values, {values.shape}; got "
            f"{came}."
        )
    xp: Any = np if isinstance(values, np.ndarray) else jnp
    return xp.where(limits.censored, limits.stand_in, values)


def _checked_mask[T: (Array, np.ndarray)](mask: T, shape: tuple[int, ...]) -> T:
    if mask.dtype != bool:
        raise ValueError(f"mask must hold booleans; got dtype {mask.dtype}.")
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape of values, {shape}; got {mask.shape}.")
    return mask

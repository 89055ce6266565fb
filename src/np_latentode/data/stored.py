"""Trajectories on disk: for tables that are larger than memory."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from np_latentode.data.buckets import bucket_rows
from np_latentode.data.clocks import start_column
from np_latentode.data.columns import Columns
from np_latentode.data.covariates import Names, asked_levels
from np_latentode.data.far import usual_range
from np_latentode.data.folds import random_rows
from np_latentode.data.labels import Labels
from np_latentode.data.offset import Offset
from np_latentode.data.trajectories import Trajectories

__all__ = ["Moments", "StoredTrajectories"]

ROWS_AT_ONCE = 100_000
"""About the number of rows that are read from disk at once, where all are read."""


class Moments(NamedTuple):
    """Statistics of all observations; numbers far outside, as `usual` says, are left out."""

    loc: Float[np.ndarray, " feature"]
    """The means."""
    sd: Float[np.ndarray, " feature"]
    """The standard deviations."""
    begin: float
    end: float
    """The earliest and the latest time."""


class StoredTrajectories:
    """Trajectories on disk, from which `fit` reads some at a time.

    `fit`, `cross_fit`, `latent_ode`, `candidates` and `Scaling.fit` take them in place of
    `Trajectories`. `len` counts them, and an index reads those that it selects, as `Trajectories`.

    Memory holds 8 bytes a trajectory, and 8 for each static covariate. The observations lie in a
    directory as numbers in double precision, the rows of each trajectory one after the other, so
    that any of them is read by itself.

    Make one with `from_parquet`.
    """

    offset: Offset
    """That of all, as in `Trajectories`."""

    inputs = error = limits = None
    """They are not read from disk yet."""

    def __init__(self, directory: Path, kept: Any, rows: Int[np.ndarray, " trajectory"] | None):
        self._directory, self._kept, self._rows = directory, kept, rows
        sample = kept.sample
        seen = ~np.isnan(sample[None, :, 1:])
        self.offset = Offset.of(sample[None, :, 0], np.where(seen, sample[None, :, 1:], 0.0), seen)

    @classmethod
    def from_parquet(
        cls,
        path: str | os.PathLike[str],
        *,
        id: str | int,
        time: str | int,
        values: Sequence[str | int] | int,
        feature: str | int | None = None,
        value: str | int | None = None,
        log: Sequence[str | int] | int = (),
        since: str | None = None,
        origin: Any = None,
        unit: str = "D",
        static: Names = (),
        directory: str | os.PathLike[str] | None = None,
    ) -> StoredTrajectories:
        """Trajectories of a Parquet file, read once, some rows at a time.

        The rows of an id must follow each other; those of one id may come in any order. Numbers far
        outside are told by a random 100,000 rows. With `since="first"`, which first times are far
        outside is told by each part of about 100,000 rows that is read. All else is exact.

        Args:
            path: of a .parquet file.
            id, time, values, feature, value, log, since, unit: as in `Trajectories.from_dataframe`,
                but values must be named.
            origin: as there. Default: the first date of the first rows.
            static: as there. Of categories, the levels must be given, as no part of the table may
                hold all of them.
            directory: a new directory for the numbers. It stays after the object is gone, but
                nothing opens it again: remove it when training is over. Default: one for temporary
                files, which is removed with the object; it may be a part of memory on some systems.

        Raises:
            MalformedRows: a ValueError with the errors of the first rows that have some.
            ValueError: naming the file, if the rows of an id do not follow each other, it is no
                Parquet file, or it lacks a column; or if the directory exists.
            ImportError: if pyarrow is missing.
            OSError: if the system cannot read the file, or write the directory.
        """
        # Imported here, as pandas takes half a second.
        from np_latentode.data.storing import store

        asked = asked_levels(static)
        names: Any = dict(id=id, time=time, values=values, feature=feature, value=value)
        columns = Columns.of(**names, start=start_column(since), static=asked)
        settings: Any = dict(log=log, since=since, origin=origin, unit=unit, static=asked)
        if directory is None:
            made = Path(tempfile.mkdtemp(prefix="np-latentode-"))
        else:
            made = Path(directory)
            if made.exists():
                raise ValueError(f"directory must be new; got {str(made)!r}.")
            made.mkdir(parents=True)
        try:
            kept = store(path, made, columns, settings)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        self = cls(made, kept, None)
        if directory is None:
            # Of the first object: what others read of it holds `_kept` alive.
            weakref.finalize(kept, shutil.rmtree, made, ignore_errors=True)
        return self

    @property
    def labels(self) -> Labels:
        """Those of the table, without ids."""
        return self._kept.labels

    names = labels

    @property
    def num_features(self) -> int:
        """The number of features."""
        return len(self.labels.features)

    @property
    def given_static(self) -> np.ndarray | None:
        """The static covariates, shape (trajectory, covariate)."""
        static = self._kept.static
        return static if static is None else static[self.rows]

    @property
    def rows(self) -> Int[np.ndarray, " trajectory"]:
        """Where the trajectories are among those of the file."""
        return np.arange(len(self._kept.starts) - 1) if self._rows is None else self._rows

    @property
    def lengths(self) -> Int[np.ndarray, " trajectory"]:
        """The number of observed times of each."""
        return np.diff(self._kept.starts)[self.rows]

    @property
    def fingerprint(self) -> np.ndarray:
        """A hash of all numbers, and which trajectories these are."""
        return np.concatenate([np.frombuffer(self._kept.digest, np.uint8), self.rows])

    def __len__(self) -> int:
        return len(self._kept.starts) - 1 if self._rows is None else len(self._rows)

    def __repr__(self) -> str:
        return (
            f"StoredTrajectories({len(self)} of up to {self.lengths.max()} times, "
            f"{self.num_features} features)"
        )

    def __getitem__(self, index: Any) -> Trajectories:
        some = np.atleast_1d(self._selected(index))
        if some.ndim != 1 or not some.size:
            raise ValueError(f"index must select at least one trajectory; got {index}.")
        found = self.padded(some, int(max(1, self.lengths[some].max())))
        rows, starts = self.rows[some], self._kept.own_starts
        ids = tuple(_ids(self._directory, rows))
        own = () if starts is None else tuple(starts[rows].tolist())
        return found._replace(labels=replace(self.labels, ids=ids, starts=own))

    def _selected(self, index: Any) -> Any:
        try:
            return np.arange(len(self))[index]
        except IndexError as error:
            raise IndexError(f"index must select trajectories: {error}.") from error

    def without(self, index: Any) -> StoredTrajectories:
        """All but those that an index selects, still on disk."""
        left = np.ones(len(self), bool)
        left[self._selected(index)] = False
        if not left.any():
            raise ValueError(f"index must leave at least one trajectory; got {index}.")
        return StoredTrajectories(self._directory, self._kept, self.rows[left])

    def sample(self, count: int) -> Trajectories:
        """Random ones of them, or all if there are no more; always the same ones."""
        return self[random_rows(len(self), count)]

    def buckets(self) -> list[tuple[Int[np.ndarray, " _"], int]]:
        """Which trajectories are of similar lengths, and how many slots these need."""
        return bucket_rows(np.maximum(self.lengths, 1))

    def padded(self, index: Int[np.ndarray, " trajectory"], slots: int) -> Trajectories:
        """Some of them with so many slots, without labels."""
        lengths = self._lengths_at(index)
        numbers, width = self._read(self._rows_at(index)), self.num_features
        known = np.arange(slots) < lengths[:, None]
        times = np.zeros(known.shape)
        times[known] = numbers[:, 0]
        # A padded slot repeats the last time.
        last = np.cumsum(lengths) - 1
        some = lengths > 0
        times[some] = np.where(known[some], times[some], numbers[last[some], :1])
        if not some.all() and self.lengths.any():
            times[~some] = self.ends[0]
        values = np.full((*known.shape, width), np.nan)
        values[known] = numbers[:, 1:]
        static = self._kept.static
        static = None if static is None else static[self._rows_at(index)]
        return Trajectories(times, values, static=static).at_offset(self.offset)

    def _rows_at(self, index: np.ndarray) -> np.ndarray:
        return index if self._rows is None else self._rows[index]

    def _lengths_at(self, index: np.ndarray) -> np.ndarray:
        rows, starts = self._rows_at(index), self._kept.starts
        return starts[rows + 1] - starts[rows]

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The earliest and the latest observed time; a ValueError if nothing was observed."""
        found = [(x[:, 0].min(), x[:, 0].max()) for _, x in self.parts()]
        if not found:
            raise ValueError("train must hold at least one observation; got none.")
        low, high = zip(*found, strict=True)
        return float(min(low)), float(max(high))

    def with_far_times(self) -> Int[np.ndarray, " trajectory"]:
        """Those that have a time far outside, which the same random rows tell."""
        low, high = usual_range(self._kept.sample[:, 0])
        lengths, found = self.lengths, [np.zeros(0, int)]
        for part, rows in self.parts():
            far = (rows[:, 0] < low) | (rows[:, 0] > high)
            found.append(np.unique(np.repeat(part, lengths[part])[far]))
        return np.concatenate(found)

    def moments(self) -> Moments:
        """Statistics of the observations, in one pass over the numbers on disk, the first time.

        Which numbers are far outside is told by a random 100,000 rows.
        """
        return self._moments

    @cached_property
    def _moments(self) -> Moments:
        sample = self._kept.sample
        columns = [x[~np.isnan(x)] for x in sample.T]
        low, high = np.array([usual_range(x) for x in columns]).T
        about = np.array([np.median(x) if x.size else 0.0 for x in columns])
        total, squares, count = (np.zeros(len(about)) for _ in range(3))
        begin, end = np.inf, -np.inf
        for _, rows in self.parts():
            near = (low <= rows) & (rows <= high)
            # About the median, so that squares of large numbers lose no digits.
            off = np.where(near, rows - about, 0.0)
            total, squares, count = (
                total + off.sum(0),
                squares + (off**2).sum(0),
                count + near.sum(0),
            )
            begin = min(begin, np.min(rows[:, 0], where=near[:, 0], initial=np.inf))
            end = max(end, np.max(rows[:, 0], where=near[:, 0], initial=-np.inf))
        mean = total / np.maximum(count, 1)
        sd = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0.0))
        loc = np.where(count > 0, about + mean, np.nan)
        return Moments(loc[1:], sd[1:], float(begin), float(end))

    def parts(self) -> Iterator[tuple[Int[np.ndarray, " part"], Float[np.ndarray, "row column"]]]:
        """Some trajectories at a time, in order: which these are, and their rows, as in `_read`."""
        ends = np.cumsum(self.lengths)
        cuts = np.searchsorted(ends, np.arange(ROWS_AT_ONCE, ends[-1], ROWS_AT_ONCE), "right")
        for part in np.split(np.arange(len(self)), np.unique(cuts)):
            if part.size and len(numbers := self._read(self._rows_at(part))):
                yield part, numbers

    def _read(self, rows: np.ndarray) -> Float[np.ndarray, "row column"]:
        """The rows of these trajectories of the file, one after the other: time, then values."""
        size = 8 * (1 + self.num_features)
        starts = self._kept.starts
        # Trajectories that follow each other are read together.
        first = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        last = np.append(first[1:], len(rows)) - 1
        begin, end = starts[rows[first]] * size, starts[rows[last] + 1] * size
        file = os.open(self._directory / "rows", os.O_RDONLY)
        try:
            spans = zip(begin.tolist(), end.tolist(), strict=True)
            read = [part for at, stop in spans for part in self._bytes(file, at, stop)]
        finally:
            os.close(file)
        return np.frombuffer(b"".join(read), float).reshape(-1, 1 + self.num_features)

    def _bytes(self, file: int, at: int, stop: int) -> Iterator[bytes]:
        """The bytes of a file from one to another; a system reads no more than 2 GiB at once."""
        while at < stop:
            if not (part := os.pread(file, stop - at, at)):
                raise OSError(f"{self._directory}/rows must hold {stop} bytes; it ends at {at}.")
            at += len(part)
            yield part


def _ids(directory: Path, rows: np.ndarray) -> list[Any]:
    """The ids of these trajectories of the file."""
    import pyarrow

    with pyarrow.memory_map(str(directory / "ids")) as file:
        return pyarrow.ipc.open_file(file).read_all()["id"].take(rows).to_pylist()

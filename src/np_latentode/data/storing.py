"""Storing: one pass over a Parquet file that checks its rows and writes their numbers to disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import narwhals as nw
import numpy as np
import pandas as pd
from pandas.util import hash_array

from np_latentode.data.columns import Columns
from np_latentode.data.entries import shown
from np_latentode.data.far import warn_user
from np_latentode.data.files import check_path
from np_latentode.data.given import Rows
from np_latentode.data.labels import Labels
from np_latentode.data.long_tables import check_features, feature_names
from np_latentode.data.problems import MalformedRows, Problems
from np_latentode.data.stored import ROWS_AT_ONCE
from np_latentode.data.tables import from_rows

__all__ = ["Kept", "store"]

SAMPLE = 100_000
"""The number of random rows that tell which numbers are far outside."""
WARNINGS = 5
"""The most warnings of a file that are passed on."""


@dataclass(eq=False)
class Kept:
    """What memory holds of a file."""

    labels: Labels
    starts: np.ndarray
    """The first row of each trajectory, and the number of rows."""
    sample: np.ndarray
    """Random rows: time, then values."""
    digest: bytes
    static: np.ndarray | None
    own_starts: np.ndarray | None
    """`Labels.starts`, if each trajectory has a clock of its own."""


def store(
    path: str | os.PathLike[str], directory: Path, columns: Columns, settings: dict[str, Any]
) -> Kept:
    """Writes the numbers of a Parquet file into a directory; see `StoredTrajectories`.

    Args:
        path: of the file.
        directory: an empty one.
        columns: those that are read.
        settings: those of `from_rows`.

    Raises:
        ValueError, ImportError, OSError: as `StoredTrajectories.from_parquet`.
    """
    path, form = check_path(path)
    if not form.needs or form.needs[0] != "pyarrow":
        raise ValueError(f"path must end in .parquet; got {str(path)!r}.")
    if columns.feature is not None and not columns.values:
        raise ValueError("values must name the features of a table on disk; got none.")
    import pyarrow

    said: list[str] = []
    try:
        with (directory / "rows").open("wb") as rows, (directory / "ids").open("wb") as ids:
            pass_ = _Pass(columns, dict(settings), rows, ids, str(path))
            for first, df in _whole_ids(path, columns):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    pass_.add(first, df)
                said += [str(one.message) for one in caught]
            kept = pass_.end()
    except (MalformedRows, OSError):
        raise
    except (ValueError, pyarrow.ArrowException) as error:
        named = str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
        raise ValueError(named) from error
    for text in said[:WARNINGS]:
        warn_user(text)
    if len(said) > WARNINGS:
        warn_user(f"{path}: {len(said) - WARNINGS} more warnings of this kind.")
    return kept


def _whole_ids(path: Path, columns: Columns) -> Iterator[tuple[int, pd.DataFrame]]:
    """Parts of the table that hold all rows of their ids, if these follow each other."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet as pq

    # Its functions are made as it is imported, so that type checkers do not know them.
    pc: Any = pyarrow.compute
    with pq.ParquetFile(path) as file:
        every = file.schema_arrow.names
        names = [name for name in columns.read if name in every]
        if missing := [name for name in columns.read if name not in every]:
            raise ValueError(
                f"{path}: {columns.arguments} must name columns of the table; got {missing}, and "
                f"it has {shown(every)}."
            )
        left, first = None, 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
            table = pyarrow.Table.from_batches([batch])
            left = table if left is None else pyarrow.concat_tables([left, table])
            if len(left) < 2:
                continue
            who = left[columns.id].combine_chunks()
            same = pc.fill_null(pc.equal(who[1:], who[:-1]), False).to_numpy(zero_copy_only=False)
            if len(others := np.flatnonzero(~same)):
                cut = int(others[-1]) + 1
                yield first, left.slice(0, cut).to_pandas()
                first, left = first + cut, left.slice(cut)
        if left is not None:
            yield first, left.to_pandas()


@dataclass
class _Pass:
    """The pass over a file: what was found so far."""

    columns: Columns
    settings: dict[str, Any]
    rows: BinaryIO
    ids: BinaryIO
    name: str
    labels: Labels | None = None
    lengths: list[np.ndarray] = field(default_factory=list)
    hashes: list[np.ndarray] = field(default_factory=list)
    static: list[np.ndarray] = field(default_factory=list)
    own_starts: list[np.ndarray] = field(default_factory=list)
    features: dict[str, None] = field(default_factory=dict)
    """All features of a long table, also those that are not read."""
    time: Any = None
    """The last time of a long table that was seen."""
    sample: np.ndarray | None = None
    """Random rows, each after the number that chose it."""

    def __post_init__(self) -> None:
        self.digest, self.rng, self.writer = hashlib.sha256(), np.random.default_rng(0), None

    def add(self, first: int, df: pd.DataFrame) -> None:
        """Checks and writes rows that hold all of their ids.

        Args:
            first: the number of the first of them.
            df: the rows.
        """
        problems = Problems(self.name, numbers=range(first, first + len(df)))
        df = self._with_features(df)
        found = from_rows(df, self.columns, **self.settings, problems=problems)
        if found.columns.limits is not None:
            raise ValueError("values must be numbers in a table on disk; got limits, such as <0.5.")
        self._check_labels(found.labels)
        order = np.concatenate(found.of_each)
        numbers = np.column_stack([found.columns.times, found.columns.values])[order]
        data = numbers.tobytes()
        self.rows.write(data)
        self.digest.update(data)
        self.lengths.append(np.array([len(mine) for mine in found.of_each]))
        self.digest.update(self.lengths[-1].tobytes())
        self._sample(numbers)
        self._keep_ids(found)

    def _with_features(self, df: pd.DataFrame) -> pd.DataFrame:
        """The rows of a long table; if none is of a feature that is read, they keep their ids only.

        Then each is a row of the first feature without a measurement, at the last known time of
        others, as a row that only gives its id needs none.
        """
        feature, time = self.columns.feature, self.columns.time
        if feature is None or not {feature, time} <= {*df.columns}:
            return df
        distinct: pd.DataFrame = df.drop_duplicates(feature)
        known = feature_names(nw.from_native(distinct, eager_only=True), self.columns)
        self.features |= dict.fromkeys(known)
        if len(some := df[time].dropna()):
            self.time = some.iloc[-1]
        if {*known} & {*self.columns.values}:
            return df
        time_of_all = df[time] if self.time is None else [self.time] * len(df)
        empty = {
            feature: self.columns.values[0],
            str(self.columns.value): np.nan,
            time: time_of_all,
        }
        return df.assign(**empty)

    def _check_labels(self, labels: Labels) -> None:
        bare = replace(labels, ids=(), starts=())
        if self.labels is None:
            self.labels = bare
            # The dates of all parts are counted from the same one.
            self.settings["origin"] = labels.origin
        if self.labels.levels != bare.levels:
            raise ValueError(
                "static must list the levels of categories in a table on disk, as in "
                f"{{'arm': ['placebo', 'drug']}}; got {self.labels.levels} in some rows and "
                f"{bare.levels} in others."
            )
        if not self.labels.like(bare):
            raise ValueError(f"all rows must be of {self.labels}; got rows of {bare}.")

    def _sample(self, numbers: np.ndarray) -> None:
        chosen = np.column_stack([self.rng.uniform(size=len(numbers)), numbers])
        every = chosen if self.sample is None else np.concatenate([self.sample, chosen])
        if len(every) > SAMPLE:
            every = every[np.argpartition(every[:, 0], SAMPLE)[:SAMPLE]]
        self.sample = every

    def _keep_ids(self, found: Rows) -> None:
        import pyarrow

        ids = [*found.labels.ids]
        hashed: Any = hash_array  # pandas gives it no type.
        self.hashes.append(hashed(np.array([str(x) for x in ids], object)))
        batch = pyarrow.record_batch({"id": ids})
        if self.writer is None:
            self.writer = pyarrow.ipc.new_file(self.ids, batch.schema)
        self.writer.write_batch(batch)
        if found.static is not None:
            self.static.append(found.static)
            self.digest.update(found.static.tobytes())
        if found.labels.starts:
            self.own_starts.append(np.array(found.labels.starts))

    def end(self) -> Kept:
        """What memory holds, once all rows were added."""
        if self.labels is None or self.sample is None or self.writer is None:
            raise ValueError("it must hold at least one row; got none.")
        self.writer.close()
        if self.columns.feature is not None:
            check_features(self.columns.values, [*self.features], self.columns)
        hashes = np.sort(np.concatenate(self.hashes))
        if again := int((hashes[1:] == hashes[:-1]).sum()):
            id = self.columns.id
            raise ValueError(
                f"the rows of each {id} must follow each other; got rows of {again} apart. "
                f"Sort the table first: by DuckDB, COPY (SELECT * FROM 'table.parquet' ORDER BY "
                f"{id}) TO 'sorted.parquet'; or by polars, scan_parquet('table.parquet')"
                f".sort({id!r}).sink_parquet('sorted.parquet')."
            )
        starts = np.concatenate([[0], np.cumsum(np.concatenate(self.lengths))])
        return Kept(
            self.labels,
            starts,
            self.sample[:, 1:],
            self.digest.digest(),
            np.concatenate(self.static) if self.static else None,
            np.concatenate(self.own_starts) if self.own_starts else None,
        )

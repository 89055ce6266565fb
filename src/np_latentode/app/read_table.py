"""The table of a fit, as the command reads it: into memory, or left on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from np_latentode.app.division import check_columns
from np_latentode.data.covariates import Names, asked_levels
from np_latentode.data.far import warn_user, without_far_times
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories

__all__ = ["columns_of", "digest", "read_table"]


def columns_of(
    names: dict[str, str | None],
    *,
    values: Sequence[str],
    log: Sequence[str],
    static: Names,
    inputs: Mapping[str, str],
    error: Mapping[str, str],
    unit: str | None,
) -> dict[str, Any]:
    """The arguments of `Trajectories.from_file`; those that were not given are left out."""
    given: dict[str, Any] = {name: column for name, column in names.items() if column is not None}
    given |= {"static": asked_levels(static)} if static else {}
    given |= {"inputs": {**inputs}} if inputs else {}
    given |= {"error": {**error}} if error else {}
    return {**given, "values": list(values), "log": list(log), "unit": unit or "D"}


def read_table(
    data: Path, columns: dict[str, Any], *, on_disk: bool, window: float | None
) -> Trajectories | StoredTrajectories:
    """The trajectories of a table that can be fitted, without times far outside."""
    if on_disk:
        _check_on_disk(columns, window)
        trajectories = _without_far(StoredTrajectories.from_parquet(data, **columns))
    else:
        trajectories = without_far_times(Trajectories.from_file(data, **columns))
    check_columns(trajectories)
    return trajectories


def _without_far(stored: StoredTrajectories) -> StoredTrajectories:
    """Those without ids that have a time far outside: rows cannot be left out on disk."""
    if not len(far := stored.with_far_times()):
        return stored
    if len(far) == len(stored):
        raise ValueError("data must hold ids whose times are near those of most; got none.")
    warn_user(f"{len(far)} of {len(stored)} ids have a time far outside, and are left out.")
    return stored.without(far)


def _check_on_disk(columns: dict[str, Any], window: float | None) -> None:
    """Refuses what is not read from disk."""
    given = {name: columns[name] for name in ("inputs", "error") if name in columns}
    given |= {} if window is None else {"window": window}
    for name, value in given.items():
        raise ValueError(f"{name} must be left out for a table on disk; got {value}.")


def digest(path: Path) -> str:
    """A hash of a file, which memory need not hold."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

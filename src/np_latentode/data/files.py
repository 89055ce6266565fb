"""Tables in CSV, Parquet and netCDF files: reading and writing."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from np_latentode.data.atomic import write_bytes
from np_latentode.data.csv_files import read_csv, write_csv
from np_latentode.data.labels import Labels
from np_latentode.data.problems import MalformedRows, Problems
from np_latentode.data.tables import from_rows

__all__ = ["check_path", "read_rows", "read_table", "write_table"]


def read_rows(
    path: str | os.PathLike[str], *, id: str, time: str, values: Sequence[str], **options: Any
) -> tuple[list[tuple[np.ndarray, np.ndarray]], Labels]:
    """A pair (times, values) for each id, and the labels, as `tables.from_rows` gives them.

    Arguments and errors are those of `Trajectories.from_file`.
    """
    df, problems = read_table(path, id=id, time=time, values=values)
    try:
        return from_rows(df, id=id, time=time, values=values, **options, problems=problems)
    except MalformedRows:
        raise
    except ValueError as error:
        raise ValueError(f"{problems.name}: {error}") from error


def read_table(
    path: str | os.PathLike[str], *, id: str, time: str, values: Sequence[str]
) -> tuple[pd.DataFrame, Problems]:
    """The table in a file, and the errors of its rows found so far.

    Args:
        path: its ending says what it is: .csv, .parquet or .nc.
        id, time, values: the columns that are needed; of a CSV file, others are not read.

    Raises:
        ValueError: naming the file, if it is not what its ending says or has no such columns.
        ImportError: if pyarrow, which reads Parquet, is missing.
        OSError: if the system cannot read it.
    """
    path, form = check_path(path)
    with _told(path, "read"):
        data = path.read_bytes()
    columns = [id, time, *([values] if isinstance(values, str) else values)]
    return form.read(data, str(path), columns)


def write_table(df: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a table to a file, whole or not at all.

    Args:
        df: of pandas; its index is left out.
        path: its ending says what to write: .csv, .parquet or .nc. What is there is replaced once
            all is written.

    Raises:
        ValueError: naming the file, if its ending is not known or it cannot hold the table.
        ImportError: if pyarrow, which writes Parquet, is missing.
        OSError: if the system cannot write it; what was there is left as it was.
    """
    path, form = check_path(path)
    try:
        data = form.write(df.reset_index(drop=True))
    # pyarrow, h5py and xarray raise what they please at entries that they cannot write.
    except Exception as error:
        raise ValueError(
            f"{path} must be given a table that its format can hold; got one that cannot be "
            f"written: {_said(error)}."
        ) from error
    with _told(path, "written"):
        write_bytes(path, data)


def _read_parquet(data: bytes) -> pd.DataFrame:
    df = pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    return df if df.index.names == [None] else df.reset_index()


def _write_parquet(df: pd.DataFrame) -> bytes:
    file = io.BytesIO()
    df.to_parquet(file, engine="pyarrow")
    return file.getvalue()


def _read_netcdf(data: bytes) -> pd.DataFrame:
    # Microseconds, as nanoseconds hold the years from 1678 to 2262 only.
    dates = xr.coders.CFDatetimeCoder(time_unit="us")
    dataset = xr.load_dataset(
        io.BytesIO(data), engine="h5netcdf", decode_times=dates, decode_timedelta=False
    )
    return dataset.to_dataframe().reset_index()


def _write_netcdf(df: pd.DataFrame) -> bytes:
    # The dimension must have a name that no variable has.
    row = "row"
    while row in df.columns:
        row += "_"
    dataset = df.rename_axis(row).to_xarray().drop_vars(row)
    return bytes(dataset.to_netcdf(engine="h5netcdf"))


def _by_library(
    read: Callable[[bytes], pd.DataFrame],
) -> Callable[[bytes, str, Sequence[str]], tuple[pd.DataFrame, Problems]]:
    """A reader for files that hold columns, whose rows have no errors of their own."""

    def read_whole(data: bytes, name: str, columns: Sequence[str]):
        try:
            return read(data), Problems(name)
        # pyarrow, h5py and xarray raise what they please at bytes that are none of theirs.
        except Exception as error:
            raise ValueError(
                f"{name} must be what its ending says; got a file that cannot be read as such: "
                f"{_said(error)}."
            ) from error

    return read_whole


class Format(NamedTuple):
    """How a kind of file is read, as `read_csv` does, and written."""

    read: Callable[[bytes, str, Sequence[str]], tuple[pd.DataFrame, Problems]]
    write: Callable[[pd.DataFrame], bytes]


FORMATS = {
    ".csv": Format(read_csv, write_csv),
    ".parquet": Format(_by_library(_read_parquet), _write_parquet),
    ".nc": Format(_by_library(_read_netcdf), _write_netcdf),
}


def check_path(path: str | os.PathLike[str]) -> tuple[Path, Format]:
    """The path of a table, and its format, which its ending names.

    Raises:
        ValueError: if the ending is not known.
        ImportError: if pyarrow, for Parquet, is missing.
    """
    try:
        path = Path(path)
    except TypeError as error:
        raise ValueError(f"path must name a file; got {path!r}.") from error
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}; got {str(path)!r}.")
    if ending == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(
            f"pyarrow must be installed for Parquet, by pip install 'np-latentode[parquet]'; got "
            f"{str(path)!r} and no pyarrow."
        )
    return path, FORMATS[ending]


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """Reports errors of the system in a sentence that names the file."""
    try:
        yield
    except OSError as error:
        told = type(error)(f"{path} cannot be {what}: {_said(error.strerror or error)}.")
        told.errno = error.errno
        raise told from error
    # A NUL byte in the name, for one.
    except ValueError as error:
        raise ValueError(f"path must name a file; got {str(path)!r}: {_said(error)}.") from error


def _said(error: object) -> str:
    """The message of a library on one line."""
    return shorten(str(error), 200).rstrip(".") or type(error).__name__

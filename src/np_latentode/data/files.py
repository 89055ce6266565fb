"""Files of tables: reading and writing, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from np_latentode.data.atomic import replacing
from np_latentode.data.clocks import start_column
from np_latentode.data.columns import Columns
from np_latentode.data.covariates import asked_levels
from np_latentode.data.formats import FORMATS, Format, message
from np_latentode.data.frames import as_frame
from np_latentode.data.given import Rows
from np_latentode.data.inputs import asked_kinds
from np_latentode.data.labels import Labels
from np_latentode.data.long_tables import feature_names
from np_latentode.data.plans import plan_rows
from np_latentode.data.problems import MalformedRows, Problems
from np_latentode.data.tables import asked_errors, from_rows

__all__ = [
    "check_path",
    "read_columns",
    "read_names",
    "read_plan",
    "read_rows",
    "read_table",
    "write_table",
    "writing_tables",
]


def read_rows(
    path: str | os.PathLike[str],
    *,
    log: Sequence[str | int] | int = (),
    since: str | None = None,
    origin: Any = None,
    unit: str = "D",
    static: Any = (),
    inputs: Any = (),
    error: Any = None,
    **names: Any,
) -> Rows:
    """The rows of the table in a file by trajectory, as `tables.from_rows` gives them.

    Arguments and errors are those of `Trajectories.from_file`; `names` are those of columns.
    """
    try:
        asked, kinds, errors = asked_levels(static), asked_kinds(inputs), asked_errors(error)
        of: Any = dict(static=asked, inputs=kinds, error=errors.values())
        columns = Columns.of(**names, start=start_column(since), **of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    df, problems = read_columns(path, columns)
    try:
        settings: Any = dict(log=log, since=since, origin=origin, unit=unit, static=asked)
        settings |= dict(kinds=kinds, error=errors)
        return from_rows(df, columns, **settings, problems=problems)
    except MalformedRows:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_table(
    path: str | os.PathLike[str], *, id: str, time: str, values: Sequence[str]
) -> tuple[pd.DataFrame, Problems]:
    """The table in a file, and the errors of its rows found so far.

    Args:
        path: a file whose ending is one of `FORMATS` and decides how it is read.
        id, time, values: the columns that are needed. Others are not read from CSV and Excel files.

    Raises:
        ValueError: naming the file, if it is not of the format that its ending names, or lacks a
            column.
        ImportError: if the library that reads the format is missing.
        OSError: if the system cannot read the file.
    """
    return read_columns(path, Columns.of(id=id, time=time, values=values))


def read_plan(path: str | os.PathLike[str], labels: Labels) -> tuple[Any, ...]:
    """The rows of the plan in a file, as `plans.plan_rows` gives them; so are the errors."""
    columns = Columns.of_plan(labels.id, labels.time, labels.inputs)
    df, problems = read_columns(path, columns)
    try:
        return plan_rows(df, labels, problems)
    except MalformedRows:
        raise
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_columns(path: str | os.PathLike[str], columns: Columns) -> tuple[pd.DataFrame, Problems]:
    """Some columns of the table in a file; errors are those of `read_table`."""
    path, form = check_path(path)
    with _named_errors(path, "read"):
        data = path.read_bytes()
    return form.read(data, str(path), columns)


def read_names(path: str | os.PathLike[str], **names: Any) -> list[str]:
    """What `values` may name in a file: its columns, or the features of a long table.

    Arguments and errors are those of `read_table`.
    """
    path, form = check_path(path)
    columns = Columns.of(**names)
    if columns.feature is not None:
        df, problems = read_columns(path, columns)
        return feature_names(as_frame(df, columns, problems), columns)
    with _named_errors(path, "read"):
        data = path.read_bytes()
    return form.column_names(data, str(path), columns.read)


def write_table(df: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Writes a table to a file, whole or not at all.

    Args:
        df: a data frame of pandas; its index is left out.
        path: of a file whose ending is one of `FORMATS` and decides the format. An earlier file is
            replaced once the new one is complete.

    Raises:
        ValueError: naming the file, if its ending is not known or its format cannot hold the table.
        ImportError: if the library that writes the format is missing.
        OSError: if the system cannot write the file. An earlier file is then unchanged.
    """
    with writing_tables(path) as add:
        add(df)


@contextmanager
def writing_tables(
    path: str | os.PathLike[str], dates: np.ndarray | None = None
) -> Iterator[Callable[[pd.DataFrame], None]]:
    """A function that adds a table to a file, below those before; all are written, or none.

    CSV and Parquet files are written table by table, so that memory holds one at a time; the other
    formats at the end. In CSV, dates are as short as those of a table, and `dates`, allow. An error
    between two tables is raised as it is.

    Args:
        path: as of `write_table`, with its errors.
        dates: all that any table will have, so that all are written alike.
    """
    path, form = check_path(path)
    with _named_errors(path, "written"):
        path = Path(os.path.realpath(path))

    def checked(write: Callable[[], Any]) -> None:
        try:
            with _system_errors(path, "written"):
                write()
        except OSError:
            raise
        # Libraries raise exceptions of many types for entries that they cannot write.
        except Exception as error:
            raise ValueError(
                f"{path} must be given a table that its format can hold; got one that cannot be "
                f"written: {message(error)}."
            ) from error

    # Step by step, as errors of the caller, in between, must not be taken for those of writing.
    whole = replacing(path)
    with _system_errors(path, "written"):
        file = whole.__enter__()
    pieces = form.write(file, dates)
    try:
        add = pieces.__enter__()
        yield lambda df: checked(lambda: add(df.reset_index(drop=True)))
        checked(lambda: pieces.__exit__(None, None, None))
    except BaseException as error:
        came = (type(error), error, error.__traceback__)
        for opened in (pieces, whole):
            with suppress(BaseException):
                opened.__exit__(*came)
        raise
    with _system_errors(path, "written"):
        whole.__exit__(None, None, None)


def check_path(path: str | os.PathLike[str]) -> tuple[Path, Format]:
    """The path of a table, and the format that its ending names.

    Raises:
        ValueError: if the ending is not known.
        ImportError: if the library that the format needs is missing.
    """
    try:
        path = Path(path)
    except TypeError as error:
        raise ValueError(f"path must name a file; got {path!r}.") from error
    ending = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])
    form = FORMATS.get(ending.lower())
    if form is None and path.is_dir():
        raise ValueError(f"path must name a file; got {str(path)!r}, which is a directory.")
    if form is None:
        raise ValueError(f"path must end in one of {', '.join(FORMATS)}; got {str(path)!r}.")
    if form.needs and find_spec(form.needs[0]) is None:
        library, noun, extra = form.needs
        raise ImportError(
            f"{library} must be installed for {noun}, by pip install 'np-latentode[{extra}]'; got "
            f"{str(path)!r} without {library}."
        )
    return path, form


@contextmanager
def _named_errors(path: Path, what: str) -> Iterator[None]:
    """Raises errors of the system again, in a sentence that names the file."""
    try:
        with _system_errors(path, what):
            yield
    # For example, if the name holds a NUL byte.
    except ValueError as error:
        raise ValueError(f"path must name a file; got {str(path)!r}: {message(error)}.") from error


@contextmanager
def _system_errors(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        named = type(error)(f"{path} cannot be {what}: {message(error.strerror or error)}.")
        named.errno = error.errno
        raise named from error

"""The formats of files: how each is read, and written table by table."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase
from textwrap import shorten
from typing import Any, NamedTuple

import pandas as pd
import xarray as xr

from np_latentode.data.columns import Columns
from np_latentode.data.csv_files import csv_column_names, read_csv, write_csv, zones_as_texts
from np_latentode.data.excel_files import read_sheet, write_excel
from np_latentode.data.problems import Problems
from np_latentode.data.records import column_names, read_records

__all__ = ["FORMATS", "Format", "message"]


def _read_parquet(data: bytes) -> pd.DataFrame:
    df = pd.read_parquet(io.BytesIO(data), engine="pyarrow")
    return df if df.index.names == [None] else df.reset_index()


@contextmanager
def _write_parquet(file: BufferedIOBase, dates: Any) -> Iterator[Callable[[pd.DataFrame], None]]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer = None

    def add(df: pd.DataFrame) -> None:
        nonlocal writer
        table = pyarrow.Table.from_pandas(df, preserve_index=False)
        writer = writer or ParquetWriter(file, table.schema)
        writer.write_table(table.cast(writer.schema))

    try:
        yield add
    finally:
        if writer is not None:
            writer.close()


def _read_netcdf(data: bytes) -> pd.DataFrame:
    # In microseconds, as nanoseconds only reach from the year 1678 to 2262.
    dates = xr.coders.CFDatetimeCoder(time_unit="us")
    dataset = xr.load_dataset(
        io.BytesIO(data), engine="h5netcdf", decode_times=dates, decode_timedelta=False
    )
    return dataset.to_dataframe().reset_index()


def _write_netcdf(df: pd.DataFrame) -> bytes:
    df = zones_as_texts(df)
    # The name of the dimension must differ from the names of all variables.
    row = "row"
    while row in df.columns:
        row += "_"
    dataset = df.rename_axis(row).to_xarray().drop_vars(row)
    return bytes(dataset.to_netcdf(engine="h5netcdf"))


Writer = Callable[[BufferedIOBase, Any], AbstractContextManager[Callable[[pd.DataFrame], None]]]


class Format(NamedTuple):
    """The functions that read and write one format, and what they need."""

    read: Callable[[bytes, str, Columns], tuple[pd.DataFrame, Problems]]
    """With the signature of `read_csv`."""
    column_names: Callable[[bytes, str, Sequence[str]], list[str]]
    """With the signature of `csv_column_names`."""
    write: Writer
    """Gives a function that adds a table to an open file, and is told all dates in advance."""
    needs: tuple[str, ...] = ()
    """The library, the name of the format, and the extra that installs the library."""


def _at_end(write: Callable[[pd.DataFrame], bytes]) -> Writer:
    """The writer of a format that takes one table: it gets all at the end."""

    @contextmanager
    def writer(file: BufferedIOBase, dates: Any) -> Iterator[Callable[[pd.DataFrame], None]]:
        tables: list[pd.DataFrame] = []
        yield tables.append
        whole = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
        file.write(write(whole))

    return writer


def _texts(separator: str) -> Writer:
    """The writer of CSV; only the first table has a header."""

    @contextmanager
    def writer(file: BufferedIOBase, dates: Any) -> Iterator[Callable[[pd.DataFrame], None]]:
        header = True

        def add(df: pd.DataFrame) -> None:
            nonlocal header
            file.write(write_csv(df, separator, header=header, dates=dates))
            header = False

        yield add

    return writer


def _by_library(read: Callable[[bytes], pd.DataFrame], write: Writer, *needs: str) -> Format:
    """A format in which a file is readable as a whole, or not at all."""
    return Format(
        lambda data, name, columns: (_whole(read, data, name), Problems(name)),
        lambda data, name, likely: [str(column) for column in _whole(read, data, name).columns],
        write,
        needs,
    )


def _whole[T](read: Callable[[bytes], T], data: bytes, name: str) -> T:
    try:
        return read(data)
    # pyarrow, h5py, xarray, openpyxl and gzip raise exceptions of many types for other bytes.
    except Exception as error:
        raise ValueError(
            f"{name} must be what its ending says; got a file that cannot be read as such: "
            f"{message(error)}."
        ) from error


def _gzipped(form: Format) -> Format:
    """The same format, compressed by gzip."""
    return Format(
        lambda data, name, columns: form.read(_whole(_unzipped, data, name), name, columns),
        lambda data, name, likely: form.column_names(_whole(_unzipped, data, name), name, likely),
        lambda file, dates: _zipped(form, file, dates),
        form.needs,
    )


@contextmanager
def _zipped(
    form: Format, file: BufferedIOBase, dates: Any
) -> Iterator[Callable[[pd.DataFrame], None]]:
    # Without the time of writing, so that the same table gives the same file.
    zipped: Any = gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)
    with zipped, form.write(zipped, dates) as add:
        yield add


def _unzipped(data: bytes) -> bytes:
    if not data:
        raise EOFError("it is empty")
    return gzip.decompress(data)


def _read_excel(data: bytes, name: str, columns: Columns) -> tuple[pd.DataFrame, Problems]:
    return read_records(_whole(read_sheet, data, name), name, columns, noun="sheet row")


def _excel_column_names(data: bytes, name: str, likely: Sequence[str]) -> list[str]:
    # A sheet is slow to read.
    return column_names(_whole(lambda data: read_sheet(data, 1_000), data, name), name)


CSV = Format(read_csv, csv_column_names, _texts(","))


TSV = CSV._replace(write=_texts("\t"))


FORMATS = {
    ".csv": CSV,
    ".csv.gz": _gzipped(CSV),
    ".tsv": TSV,
    ".tsv.gz": _gzipped(TSV),
    ".xlsx": Format(
        _read_excel, _excel_column_names, _at_end(write_excel), ("openpyxl", "Excel", "excel")
    ),
    ".parquet": _by_library(_read_parquet, _write_parquet, "pyarrow", "Parquet", "parquet"),
    ".nc": _by_library(_read_netcdf, _at_end(_write_netcdf)),
}
"""The formats by the endings of their files."""


def message(error: object) -> str:
    """The message of a library, on one line."""
    return shorten(str(error), 200).rstrip(".") or type(error).__name__

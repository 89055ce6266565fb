"""Directories of results: each is written whole, or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["MARKER", "check_output_dir", "result_dir"]

MARKER = "metrics.json"
"""Every result directory holds this file; a directory without it is not ours to replace."""


def check_output_dir(path: Path, *, overwrite: bool) -> None:
    """Refuses a directory that is in the way, before anything is computed.

    Raises:
        ValueError: if `path` exists and may not be replaced, or is no result directory.
    """
    if not path.exists() and not path.is_symlink():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise ValueError(
                f"output-dir must be where files can be written; got {path}: {error.strerror}."
            ) from error
        return
    if not path.is_dir() or path.is_symlink():
        raise ValueError(f"output-dir must be a directory; got a file or a link at {path}.")
    if not any(path.iterdir()):
        return
    if not (path / MARKER).is_file():
        raise ValueError(
            f"output-dir must be new, or the results of an earlier run; got {path}, which holds "
            f"other files (no {MARKER}) and is left alone."
        )
    if not overwrite:
        raise ValueError(
            f"output-dir must be new; got {path}, which holds the results of an earlier run "
            "(--overwrite replaces them as a whole)."
        )


@contextmanager
def result_dir(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A directory to write results into, which takes the place of `path` once all are written.

    Until then, and where anything fails, whatever was at `path` stays as it was.

    Raises:
        ValueError: as `check_output_dir`.
    """
    check_output_dir(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    new, old = scratch / "new", scratch / "old"
    try:
        new.mkdir()
        yield new
        check_output_dir(path, overwrite=overwrite)
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(new, path)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
    finally:
        # Earlier results that could not be put back stay where they are.
        if path.exists() or not old.exists():
            shutil.rmtree(scratch, ignore_errors=True)

"""Directories of results, each written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["MARKER", "check_output_dir", "earlier", "result_dir"]

MARKER = "metrics.json"
"""Every directory of results holds this file. A directory without it is never replaced."""


def check_output_dir(path: Path, *, overwrite: bool) -> None:
    """Checks that results can be written to a directory, before anything is computed.

    Args:
        path: the directory.
        overwrite: whether earlier results there may be replaced.

    Raises:
        ValueError: if files cannot be written there, if it holds earlier results and `overwrite` is
            false, or if it holds anything else.
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
    """A new directory to write results into; it replaces `path` once all of them are written.

    Until then, and if anything fails, earlier results at `path` stay as they were.

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
        # If earlier results could not be put back, they are kept here.
        if path.exists() or not old.exists():
            shutil.rmtree(scratch, ignore_errors=True)


def earlier(output_dir: Path) -> dict[str, Any]:
    """The metrics of the results in a directory; empty if it holds none that can be read."""
    try:
        metrics = json.loads((output_dir / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return metrics if isinstance(metrics, dict) else {}

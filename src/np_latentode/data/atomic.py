"""Writing of one file, whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

__all__ = ["replacing", "write_bytes"]


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file in one step, in place of an earlier file at that path."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BufferedIOBase]:
    """A file to write; at the end it takes the place of an earlier file at that path.

    After an error, it is gone, and an earlier file is unchanged.
    """
    # A symbolic link stays a link: the file that it points to is replaced.
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            # A full disk may be reported only here.
            os.fsync(file.fileno())
        if path.is_file():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

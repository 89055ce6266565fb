"""The files that a command writes: their names, that they are new, and figures in them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from np_latentode.data.atomic import write_bytes

__all__ = ["beside", "check_new", "write_figure"]


def beside(output: Path, ending: str) -> Path:
    """The output with another ending."""
    bare = output.with_suffix("" if output.suffix == ".gz" else output.suffix).with_suffix("")
    return bare.with_name(bare.name + ending)


def check_new(outputs: Iterable[Path], *, overwrite: bool) -> None:
    """Refuses outputs that exist."""
    for path in outputs:
        if path.exists() and not overwrite:
            raise ValueError(f"output must be new; got {path}, which exists (--overwrite).")


def write_figure(path: Path, figure: Any) -> None:
    """Writes a figure of matplotlib as PNG, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_bytes(path, image.getvalue())

"""The directory of a run of `fit`: what it may hold before, and what it holds in the end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from np_latentode.data.files import write_table
from np_latentode.programs.ensemble import Ensemble
from np_latentode.storage.results import MARKER, check_output_dir, earlier, result_dir
from np_latentode.storage.saving import FIT, save

__all__ = ["check_new", "checkpoint_dir", "finished", "write"]


def finished(output_dir: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a finished fit with these settings, if there is one."""
    metrics = earlier(output_dir)
    same = metrics.get("settings") == settings
    return metrics if same and (output_dir / FIT).is_dir() else None


def check_new(output_dir: Path, settings: dict[str, Any], *, overwrite: bool) -> None:
    """Checks the output directory; if it holds another fit, the error says what differs."""
    try:
        check_output_dir(output_dir, overwrite=overwrite)
    except ValueError as error:
        past = earlier(output_dir).get("settings")
        if not isinstance(past, dict):
            raise
        every = sorted({*settings, *past})
        differ = [name for name in every if settings.get(name) != past.get(name)]
        if not differ:
            raise
        raise ValueError(f"{error} Its settings differ in {', '.join(differ)}.") from error


def checkpoint_dir(output_dir: Path, settings: dict[str, Any]) -> Path:
    """A directory for each training, so that no other one's checkpoints are taken for its own."""
    name = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    return output_dir.parent / f".{output_dir.name}-training-{name}"


def write(
    output_dir: Path, fitted: Ensemble, metrics: dict[str, Any], held_out: Any, *, overwrite: bool
) -> None:
    """Writes the results of a fit, all of them or none."""
    with result_dir(output_dir, overwrite=overwrite) as directory:
        save(directory / FIT, fitted)
        if held_out is not None:
            write_table(held_out, directory / "heldout.csv")
        (directory / MARKER).write_text(json.dumps(metrics, indent=2) + "\n")

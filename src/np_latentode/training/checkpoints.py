"""The checkpoints of a training: only the latest is kept, and a damaged one is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from np_latentode.storage.arrays import read, write

__all__ = ["Checkpoints"]

OURS = re.compile(r"(\d{9})(\.orbax-checkpoint-tmp.*)?", re.ASCII)
"""The names of checkpoints: numbers of steps. A longer name is one that is not yet whole."""


class Checkpoints:
    """The checkpoints of one training in one directory. Only the latest is kept.

    Args:
        directory: new, empty, or that of the same training.
        settings: the settings of the training, as JSON. A checkpoint with others is refused.

    Raises:
        ValueError: if the directory holds other files, or is a file.
    """

    def __init__(self, directory: Path, settings: dict[str, Any]):
        self.directory = directory
        # They are compared with settings that were read from JSON, which turns tuples into lists.
        self.settings = json.loads(json.dumps(settings))
        if not directory.exists():
            return
        if not directory.is_dir():
            raise ValueError(f"checkpoint_dir must be a directory; got a file at {directory}.")
        others = sorted(p.name for p in directory.iterdir() if not OURS.fullmatch(p.name))
        if others:
            raise ValueError(
                "checkpoint_dir must be new, empty, or that of the same training; got "
                f"{directory}, which holds {', '.join(others[:5])}."
            )
        # orbax leaves these behind if it is killed while it writes.
        for rest in directory.glob("*orbax-checkpoint-tmp*"):
            shutil.rmtree(rest, ignore_errors=True)

    def latest(self) -> dict[str, np.ndarray] | None:
        """The arrays of the latest checkpoint, or None if there is no checkpoint.

        Raises:
            ValueError: if the checkpoint is damaged, or of another training.
        """
        steps = self._steps()
        if not steps:
            return None
        arrays, settings = read(self._path(steps[-1]))
        if differ := [k for k in self.settings if settings.get(k) != self.settings[k]]:
            raise ValueError(
                f"checkpoint_dir must be that of the same training; the one in {self.directory} "
                f"differs in {', '.join(differ)}. Take another directory, or delete this one."
            )
        return arrays

    def save(self, step: int, tree: Any) -> None:
        """Writes the checkpoint of a step, and then removes the earlier ones.

        Raises:
            OSError: if it cannot be written; then the earlier one is kept.
        """
        earlier = self._steps()
        if step in earlier:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write(self._path(step), tree, self.settings)
        for other in earlier:
            shutil.rmtree(self._path(other), ignore_errors=True)

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (OURS.fullmatch(p.name) for p in self.directory.iterdir())
        return sorted(int(name[1]) for name in names if name and not name[2])

    def _path(self, step: int) -> Path:
        return self.directory / f"{step:09d}"

"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir"]


def cache_dir() -> Path:
    """`np_latentode` in the user's cache, `$XDG_CACHE_HOME` or `~/.cache`; it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "np_latentode"

"""Panels: the common style and colours of the figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, NullLocator

__all__ = ["DATA", "GIVEN", "MODEL", "STYLE", "TRUTH", "marker_of", "panels", "plain_ticks"]

TRUTH, MODEL, DATA, GIVEN = "0.7", "tab:blue", "black", "tab:red"

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
    "figure.dpi": 110,
    "legend.frameon": False,
}


@contextmanager
def panels(rows: int, columns: int, *, size: tuple[float, float]) -> Iterator[tuple[Figure, Any]]:
    """A figure in the common style, and its axes, each of `size` (width, height) in inches."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            squeeze=False,
            layout="constrained",
            figsize=(size[0] * columns, size[1] * rows),
        )
        yield figure, axes
        # Leave the figure to the caller, not to pyplot's list of open windows.
        plt.close(figure)


def plain_ticks(axis: Axes, locator: Locator) -> None:
    """Ticks of a vertical axis of any scale, where the locator says, as plain numbers."""
    axis.yaxis.set_major_locator(locator)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter("{x:g}")


def marker_of(times: np.ndarray) -> str:
    """The marker of a line over times in order: a dot if all are one, as it has no length then."""
    return "o" if times[0] == times[-1] else ""

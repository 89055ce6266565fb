"""Crossings: the probability of being beyond a threshold, over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from np_latentode.forecasts.crossing import Crossing
from np_latentode.report.fans import with_dates
from np_latentode.report.panels import MODEL, TRUTH, marker_of, panels

__all__ = ["plot_crossings"]


def plot_crossings(crossings: Sequence[Crossing], *, count: int = 4) -> Figure:
    """Curves of probabilities: one row per threshold, one column per trajectory.

    Args:
        crossings: of the same trajectories and times, one for each threshold.
        count: the number of trajectories shown, from the first on.

    Raises:
        ValueError: if there is no crossing, or they are of different trajectories.
    """
    if not crossings or len({one.names for one in crossings}) > 1:
        raise ValueError(
            f"crossings must be at least one, all of the same trajectories; got {len(crossings)}."
        )
    names = crossings[0].names
    count = min(count, len(names.ids))
    with panels(len(crossings), count, size=(3.2, 2.3)) as (figure, axes):
        for one, row in zip(crossings, axes, strict=True):
            when, order = names.calendar(one.times), one.times.argsort(1, kind="stable")
            for i, axis in enumerate(row):
                rising = order[i]
                at = when[i, rising]
                marker = marker_of(at)
                # Wide and below, as the two are often the same.
                below: Any = dict(lw=4, alpha=0.4, color=TRUTH, marker=marker, ms=8, mew=0)
                axis.plot(at, one.by_then[i, rising], label="by then", **below)
                above: Any = dict(lw=1.3, color=MODEL, marker=marker)
                axis.plot(at, one.probability[i, rising], label="at the time", **above)
                axis.set_ylim(-0.03, 1.03)
                if names.origin is not None:
                    with_dates(axis)
            row[0].set_ylabel(f"P({one.threshold})")
        for i, axis in enumerate(axes[0]):
            axis.set_title(f"{names.id} {names.ids[i]}")
        for axis in axes[-1]:
            axis.set_xlabel(f"{names.time} (UTC)" if names.zone else names.time)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

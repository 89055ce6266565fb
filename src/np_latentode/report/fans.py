"""Fans: forecasts as nested bands, with the observations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from np_latentode.data.given import table_times, table_values
from np_latentode.data.kinds import BERNOULLI, all_fit
from np_latentode.data.limits import Limits
from np_latentode.data.numbers import Numbers
from np_latentode.data.trajectories import Trajectories
from np_latentode.report.panels import DATA, GIVEN, MODEL, TRUTH, marker_of, panels, plain_ticks

__all__ = ["fan", "plot_forecasts", "with_dates"]

EVENTS = "^vD*"
"""The markers of events, one for each input."""

LIMITS = {"below": "v", "above": "^", "between": "d"}
"""The markers of limits, which stand where the encoder sees a value."""

Middle = tuple[str, Callable[..., Any]]


def fan(
    axis: Axes,
    times: np.ndarray,
    x: np.ndarray,
    levels: Sequence[float],
    *,
    middle: Middle = ("median", np.median),
    what: str = "new values",
) -> None:
    """Draws the median of x (draw, time) and nested central bands; wider bands are lighter.

    Args:
        axis: where.
        times: shape (time,).
        x: draws.
        levels: of the bands.
        middle: the name and the function of the line in place of the median.
        what: the bands hold, for the legend.
    """
    ordered = np.argsort(times)
    times, x = times[ordered], x[:, ordered]
    marker = marker_of(times)
    for shade, level in enumerate(sorted(levels, reverse=True)):
        low, high = np.quantile(x, [(1 - level) / 2, (1 + level) / 2], axis=0)
        alpha = 0.2 + 0.4 * shade / len(levels)
        # The band of a single time has no width but that of its edge.
        look: Any = dict(color=MODEL, alpha=alpha, lw=6 if marker else 0)
        axis.fill_between(times, low, high, label=f"{level:.0%} of {what}", **look)
    name, function = middle
    line = function(x, axis=0)
    axis.plot(times, line, color=MODEL, lw=1.3, marker=marker, label=name)


def _probability(axis: Axes, times: np.ndarray, p: np.ndarray, levels: Sequence[float]) -> None:
    """Draws a probability, the mean of p (draw, time), and bands of what the draws say."""
    middle: Middle = ("probability", np.mean)
    fan(axis, times, p, levels, middle=middle, what="draws of the probability")
    axis.set_ylim(-0.05, 1.05)


def plot_forecasts(
    context: Trajectories,
    draws: dict[str, Any],
    times: Numbers,
    *,
    target: Trajectories | None = None,
    count: int = 4,
    levels: Sequence[float] = (0.5, 0.9),
    feature_names: Sequence[Any] | None = None,
    trajectory_names: Sequence[Any] | None = None,
) -> Figure:
    """Forecast fans: one row per feature, one column per trajectory, with all observations.

    Everything is in the units of the table from which the context was read, if there was one: times
    are dates if it had dates, and features read as logarithms are shown in their own units, on a
    log scale. Of zeros and ones, the probability of a one is shown, `x_mean`, with its bands.
    Events of the context, such as doses, are marked at the bottom of each panel.

    Args:
        context: the observations that the forecast was given.
        draws: the forecast, as `forecast` returns it.
        times: the times of the forecast, (time,) or (trajectory, time).
        target: observations that the forecast was not given. Default: none.
        count: the number of trajectories shown, from the first on.
        levels: the shares of new observations that the central bands should hold.
        feature_names: labels of the rows. Default: `context.names`.
        trajectory_names: titles of the columns. Default: `context.names`.

    Raises:
        ValueError: if draws or target are not of the context's trajectories, the target is in other
            units, or there are too few or too many names.
    """
    x = np.asarray(draws["x"])
    _check_draws(x, context, target)
    names = context.names
    rows = names.features if feature_names is None else feature_names
    columns = (
        [f"{names.id} {i}" for i in names.ids] if trajectory_names is None else trajectory_names
    )
    _, num_trajectories, num_times, num_features = x.shape
    if len(rows) != num_features or len(columns) != num_trajectories:
        raise ValueError(
            f"feature_names and trajectory_names must name {num_features} features and "
            f"{num_trajectories} trajectories; got {len(rows)} and {len(columns)}."
        )
    when = names.calendar(np.broadcast_to(np.asarray(times), (num_trajectories, num_times)))
    count = min(count, num_trajectories)
    bits = all_fit(BERNOULLI, x) & ("x_mean" in draws)
    shown = np.where(bits, draws["x_mean"], x) if bits.any() else x
    with panels(num_features, count, size=(3.2, 2.3)) as (figure, axes):
        for j, i in np.ndindex(num_features, count):
            draw = _probability if bits[j] else fan
            draw(axes[j, i], when[i], shown[:, i, :, j], levels)
            _plot_observations(axes[j, i], context, target, i, j)
            _plot_events(axes[j, i], context, i)
        for i, axis in enumerate(axes[0]):
            axis.set_title(str(columns[i]))
        for j, axis in enumerate(axes[:, 0]):
            axis.set_ylabel(str(rows[j]))
        for axis in axes[-1]:
            axis.set_xlabel(f"{names.time} (UTC)" if names.zone else names.time)
        _legend(figure, axes.T.flat, ncols=len(levels) + 3)
        return figure


def _legend(figure: Figure, axes: Iterable[Axes], *, ncols: int) -> None:
    """One legend of all panels; what several of them show is in it once."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    figure.legend([*named.values()], [*named], loc="outside lower center", ncols=ncols)


def _check_draws(x: np.ndarray, context: Trajectories, target: Trajectories | None) -> None:
    """Refuses draws and targets that do not match the context in trajectories or units."""
    for name, given in (("draws", x.shape[1]), ("target", target and len(target))):
        if given is not None and given != len(context):
            raise ValueError(
                f"{name} must be of as many trajectories as the context, {len(context)}; "
                f"got {given}."
            )
    names = context.names
    if target is not None and target.labels and not names.like(target.labels):
        raise ValueError(f"target must be read as the context was, {names}; got {target.labels}.")


def _plot_observations(
    axis: Axes, context: Trajectories, target: Trajectories | None, i: int, j: int
) -> None:
    """Plots feature j of trajectory i: context, target, and the time at which the context ends."""
    names = context.names
    for data, face, label in ((context, DATA, "seen"), (target, "white", "not seen")):
        if data is not None:
            seen = np.asarray(data.mask[i, :, j])
            at = table_times(data.given, names)[i, seen]
            values = table_values(data.given, names)[i, seen, j]
            style: Any = dict(ls="none", ms=4, mec=DATA, mew=0.8, mfc=face, zorder=2)
            error, limits = data.given.error, data.given.limits
            kinds = _kinds_of_limits(limits and limits[i, seen, j], len(at))
            known = kinds == ""
            axis.plot(at[known], values[known], marker="o", label=label, **style)
            if error is not None:
                bars: Any = dict(fmt="none", ecolor=DATA, elinewidth=0.8, zorder=2)
                bars["label"] = "± 1 standard error"
                axis.errorbar(at[known], values[known], error[i, seen, j][known], **bars)
            for kind in [kind for kind in LIMITS if kind in kinds]:
                mine, marker = kinds == kind, LIMITS[kind]
                axis.plot(at[mine], values[mine], marker=marker, label=f"{label}, {kind}", **style)
    if bool(context.observed[i].any()):
        at = table_times(context.given, names)[i]
        end = at[np.asarray(context.observed[i])].max()
        axis.axvline(end, color=TRUTH, lw=0.8, ls=":", zorder=1)  # below the point seen then
    if names.origin is not None:
        with_dates(axis)
    if names.features[j] in names.log:
        _in_log_scale(axis)


def _kinds_of_limits(limits: Limits | None, count: int) -> np.ndarray:
    """Of each value what its limits say, in the words of `LIMITS`; "" where it is known."""
    kinds = np.full(count, "", dtype="<U7")
    if limits is not None:
        lower, upper = np.asarray(limits.lower), np.asarray(limits.upper)
        kinds[limits.censored] = "between"
        kinds[np.isneginf(lower)], kinds[np.isposinf(upper)] = "below", "above"
    return kinds


def _plot_events(axis: Axes, context: Trajectories, i: int) -> None:
    """Marks the events of trajectory i at the bottom, as far as they lie in the panel."""
    inputs, names = context.inputs, context.names
    if inputs is None:
        return
    known = inputs.table_times
    at = axis.convert_xunits((names.calendar(inputs.given_times) if known is None else known)[i])
    low, high = axis.get_xlim()
    for k, j in enumerate(inputs.events):
        given = np.nan_to_num(inputs.given_values[..., j]) != 0
        # An empty line as well, so that the legend does not depend on the panels.
        if given.any():
            x = at[given[i] & (low <= at) & (at <= high)]
            marker, foot = EVENTS[k % len(EVENTS)], axis.get_xaxis_transform()
            style: Any = dict(ls="none", marker=marker, ms=5, color=GIVEN, transform=foot)
            axis.plot(x, np.full(len(x), 0.03), **style, label=names.inputs[j])


def with_dates(axis: Axes) -> None:
    """Sets ticks and labels of dates on the horizontal axis."""
    # With more ticks at least, it finds no interval for some ranges, such as three years.
    locator = AutoDateLocator(minticks=2, maxticks=5)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _in_log_scale(axis: Axes) -> None:
    """Sets a log scale with a few ticks, which are plain numbers, even if the range is narrow."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high < 5 * low:
        locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    else:
        locator = LogLocator(subs=(1, 2, 5) if high < 1e3 * low else (1,))
    plain_ticks(axis, locator)

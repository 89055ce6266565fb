"""Figures of spirals, in the plane and over time."""

from __future__ import annotations

from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from np_latentode.data.trajectories import Trajectories
from np_latentode.report.fans import fan
from np_latentode.report.panels import DATA, MODEL, TRUTH, panels
from np_latentode.studies.datasets import SpiralFamily, Spirals

__all__ = ["plot_prior_draws", "plot_sampling", "plot_spirals"]


def plot_sampling(spirals: Spirals, *, count: int = 6) -> Figure:
    """Spirals in the plane with their observations, and the times of these."""
    with panels(1, 2, size=(5.0, 4.5)) as (figure, axes):
        plane, when = axes[0]
        for i in range(count):
            color = plt.get_cmap("viridis")(i / count)
            seen = np.asarray(spirals.observed[i])
            values, times = np.asarray(spirals.values[i])[seen], np.asarray(spirals.times[i])[seen]
            plane.plot(*np.asarray(spirals.curves[i]).T, color=color, lw=1, alpha=0.6)
            plane.scatter(*values.T, s=12, color=color)
            when.scatter(times, np.full(len(times), i), s=12, color=color)
        plane.set(xlabel="$x_1$", ylabel="$x_2$", title="curves and noisy observations")
        plane.set_aspect("equal")
        when.set(xlabel="time", ylabel="trajectory", title="observed times")
        return figure


def plot_spirals(
    spirals: Spirals,
    context: Trajectories,
    draws: dict[str, Any],
    times: ArrayLike,
    *,
    count: int = 6,
    level: float = 0.9,
) -> Figure:
    """Forecasts of spirals: in the plane, and over time with a band of new observations.

    Args:
        spirals: the truth.
        context: the part of them that the model saw.
        draws: as `forecast` returns them.
        times: shape (query,), the times of the draws.
        count: the number of spirals, from the first on.
        level: of the central bands.
    """
    times, x = np.asarray(times), np.asarray(draws["x"])
    x_mean = np.asarray(draws["x_mean"]).mean(0)
    with panels(3, count, size=(2.8, 2.4)) as (figure, axes):
        for i in range(count):
            _plot_curves(axes[:, i], spirals, x_mean[i], i)
            for d in range(2):
                fan(axes[1 + d, i], times, x[:, i, :, d], [level])
            _plot_points(axes[:, i], spirals, context, i)
            axes[2, i].set_xlabel("time")
        for axis, label in zip(axes[:, 0], ("$x_2$", "$x_1$", "$x_2$"), strict=True):
            axis.set_ylabel(label)
        both = [axis.get_legend_handles_labels() for axis in axes[:2, 0]]
        named = {
            name: handle
            for handles, names in both
            for handle, name in zip(handles, names, strict=True)
        }
        figure.legend(
            list(named.values()), list(named), loc="outside lower center", ncols=len(named)
        )
        return figure


def _plot_curves(axes: np.ndarray, spirals: Spirals, mean: np.ndarray, i: int) -> None:
    """The true curve of spiral i and the mean of the model."""
    plane, curve, dense = axes[0], np.asarray(spirals.curves[i]), np.asarray(spirals.dense_times)
    plane.plot(*curve.T, color=TRUTH, lw=2, label="truth")
    plane.plot(*mean.T, color=MODEL, lw=1.2, label="mean of the model")
    plane.set(title=f"held-out spiral {i}", xlabel="$x_1$")
    plane.set_aspect("equal", adjustable="datalim")
    for d in range(2):
        axes[1 + d].plot(dense, curve[:, d], color=TRUTH, lw=2)


def _plot_points(axes: np.ndarray, spirals: Spirals, context: Trajectories, i: int) -> None:
    """The observations of spiral i, and where the context ends if some are hidden."""
    seen, observed = np.asarray(context.mask[i, :, 0]), np.asarray(spirals.mask[i, :, 0])
    values, when = np.asarray(spirals.values[i]), np.asarray(spirals.times[i])
    hidden = observed & ~seen
    for picked, face, label in ((seen, DATA, "seen"), (hidden, "white", "not seen")):
        style = dict(ls="", marker="o", ms=3.5, mec=DATA, mew=0.7, mfc=face, label=label)
        if picked.any():
            axes[0].plot(*values[picked].T, **style)
        for d in range(2):
            axes[1 + d].plot(when[picked], values[picked, d], **style)
    if hidden.any():
        for axis in axes[1:]:
            axis.axvline(when[seen].max(initial=0.0), color=TRUTH, lw=0.8, ls=":")


def plot_prior_draws(
    curves: dict[str, np.ndarray], family: SpiralFamily, *, shares: dict[str, float]
) -> Figure:
    """Curves of draws from each prior, beside true spirals.

    Args:
        curves: by the prior's name, shape (draw, time, 2).
        family: the truth; as many spirals are drawn from it.
        shares: by the prior's name, the share of draws that are spirals.
    """
    count = max(len(draws) for draws in curves.values())
    truth = family.sample(jax.random.key(0), count).curves
    shown = {"spirals": np.asarray(truth), **curves}
    limit = 1.15 * np.abs(shown["spirals"]).max()
    columns = min(5, len(shown))
    rows = -(-len(shown) // columns)
    with panels(rows, columns, size=(2.8, 3.1)) as (figure, axes):
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, (name, draws) in zip(axes.flat, shown.items(), strict=False):
            for k, draw in enumerate(draws):
                axis.plot(*draw.T, color=plt.get_cmap("viridis")(k / len(draws)), lw=1)
                axis.plot(*draw[0], "o", ms=2.5, color="black")
            share = f"\n{shares[name]:.0%} are spirals" if name in shares else "\nthe truth"
            axis.set(
                title=f"{name}{share}",
                xlim=(-limit, limit),
                ylim=(-limit, limit),
                xlabel="$x_1$",
                ylabel="$x_2$",
            )
            axis.set_aspect("equal")
        return figure

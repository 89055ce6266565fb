"""Figures, in one style."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import NormalDist
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from arviz_stats.ecdf_utils import ecdf_pit
from jaxtyping import ArrayLike
from matplotlib.figure import Figure

from np_latentode.calibration import Calibration, SimulationRanks
from np_latentode.datasets import SpiralFamily, Spirals
from np_latentode.importance import ImportanceReport
from np_latentode.trajectories import Trajectories

__all__ = [
    "plot_calibration",
    "plot_forecasts",
    "plot_guide",
    "plot_latent",
    "plot_pareto_k",
    "plot_prior_draws",
    "plot_ranks",
    "plot_sampling",
    "plot_training",
]

TRUTH, MODEL, DATA = "0.45", "tab:blue", "tab:orange"


@contextmanager
def _figure(rows: int, columns: int, *, size: tuple[float, float]) -> Iterator[tuple[Figure, Any]]:
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": "medium",
        "legend.frameon": False,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            rows,
            columns,
            squeeze=False,
            layout="constrained",
            dpi=110,
            figsize=(size[0] * columns, size[1] * rows),
        )
        yield figure, axes
        # Leave the figure to the caller, not to pyplot's list of open windows.
        plt.close(figure)


def plot_sampling(spirals: Spirals, *, count: int = 6) -> Figure:
    """Spirals in the plane with their observations, and when these were made."""
    with _figure(1, 2, size=(5.0, 4.5)) as (figure, axes):
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


def plot_training(losses: ArrayLike, *, num_trajectories: int, best: float | None = None) -> Figure:
    """The loss a trajectory over the steps, each step's and a running median.

    Args:
        losses: of every step, summed over the data as Trace_ELBO gives them.
        num_trajectories: that the losses are sums over.
        best: the lowest possible loss a trajectory, -log p(x), where it is known.
    """
    losses = np.asarray(losses) / num_trajectories
    window = max(1, len(losses) // 100)
    smooth = [np.median(part) for part in np.array_split(losses, max(1, len(losses) // window))]
    with _figure(1, 1, size=(7.0, 4.0)) as (figure, axes):
        axis = axes[0, 0]
        axis.plot(losses, color="0.8", lw=0.5, label="each step")
        axis.plot(
            (np.arange(len(smooth)) + 0.5) * len(losses) / len(smooth),
            smooth,
            color=MODEL,
            label=f"median of {window} steps",
        )
        if best is not None:
            axis.axhline(best, color="black", ls=":", label="exact $-\\log p(x)$")
        axis.set(xlabel="step", ylabel="-ELBO a trajectory (nats)", title="training")
        axis.set_yscale("symlog", linthresh=100)
        axis.legend()
        return figure


def plot_forecasts(
    spirals: Spirals,
    context: Trajectories,
    draws: dict[str, Any],
    times: ArrayLike,
    *,
    start: float | None = None,
    count: int = 6,
    level: float = 0.9,
) -> Figure:
    """What a model makes of spirals: in the plane, and over time with bands of new observations.

    Args:
        spirals: the truth.
        context: what the model had seen of them.
        draws: as `forecast` returns them.
        times: shape (query,), where the draws were made.
        start: from this time on it is a forecast, drawn dashed. Default: it never is.
        count: how many spirals, from the first on.
        level: of the central bands.
    """
    times, x_mean = np.asarray(times), np.asarray(draws["x_mean"]).mean(0)
    low, high = np.quantile(np.asarray(draws["x"]), [(1 - level) / 2, (1 + level) / 2], axis=0)
    future = times > (np.inf if start is None else start)
    parts = [(~future, "-", "model"), (future, "--", "forecast")]
    with _figure(2, count, size=(3.2, 3.2)) as (figure, axes):
        for i in range(count):
            plane, over_time = axes[:, i]
            seen = np.asarray(context.observed[i])
            values, when = np.asarray(context.values[i])[seen], np.asarray(context.times[i])[seen]
            plane.plot(*np.asarray(spirals.curves[i]).T, color=TRUTH, lw=1, label="truth")
            plane.scatter(*values.T, s=10, color=DATA, zorder=3, label="observed")
            for where, line, label in parts:
                if where.any():
                    plane.plot(*x_mean[i, where].T, color=MODEL, ls=line, lw=1.5, label=label)
            plane.set_aspect("equal", adjustable="datalim")
            plane.set(title=f"held-out spiral {i}", xlabel="$x_1$")
            for d, color in enumerate((MODEL, "tab:green")):
                over_time.fill_between(
                    times,
                    low[i, :, d],
                    high[i, :, d],
                    color=color,
                    alpha=0.25,
                    lw=0,
                    label=f"$x_{d + 1}$, {level:.0%} band",
                )
                for where, line, _ in parts:
                    over_time.plot(times[where], x_mean[i, where, d], color=color, ls=line, lw=1)
                over_time.plot(
                    spirals.dense_times, np.asarray(spirals.curves[i, :, d]), color=TRUTH, lw=0.7
                )
                over_time.scatter(when, values[:, d], s=8, color=DATA, zorder=3)
            if start is not None:
                over_time.axvline(start, color="0.7", lw=0.8, ls=":")
            over_time.set(xlabel="time")
        axes[0, 0].set(ylabel="$x_2$")
        axes[1, 0].set(ylabel="$x_1, x_2$")
        for axis in axes[:, 0]:
            figure.legend(
                *axis.get_legend_handles_labels(),
                loc="outside lower center" if axis is axes[1, 0] else "outside upper center",
                ncols=4,
            )
        return figure


def plot_latent(z0: ArrayLike) -> Figure:
    """Codes against N(0, I): scatters of neighbouring dimensions, and a QQ plot of each.

    Args:
        z0: shape (trajectory, latent), one draw a trajectory.
    """
    z0 = np.asarray(z0)
    latent_dim = z0.shape[1]
    pairs = [(j, (j + 1) % latent_dim) for j in range(latent_dim)]
    shares = (np.arange(len(z0)) + 0.5) / len(z0)
    normal = np.array([NormalDist().inv_cdf(share) for share in shares])
    circle = np.linspace(0, 2 * np.pi, 200)
    with _figure(2, latent_dim, size=(3.0, 3.0)) as (figure, axes):
        for j, (first, second) in enumerate(pairs):
            scatter, qq = axes[:, j]
            scatter.scatter(z0[:, first], z0[:, second], s=3, color=MODEL, alpha=0.4, lw=0)
            for radius in (1, 2):
                scatter.plot(
                    radius * np.cos(circle), radius * np.sin(circle), color="black", lw=0.7, ls=":"
                )
            scatter.set(xlabel=f"$z_0[{first}]$", ylabel=f"$z_0[{second}]$")
            qq.plot([-3.5, 3.5], [-3.5, 3.5], color="black", lw=0.7, ls=":")
            qq.scatter(normal, np.sort(z0[:, j]), s=3, color=MODEL, lw=0)
            qq.set(xlabel="N(0, 1) quantile", ylabel=f"quantile of $z_0[{j}]$")
            for axis in (scatter, qq):
                axis.set(xlim=(-3.8, 3.8), ylim=(-3.8, 3.8))
                axis.set_aspect("equal")
        figure.suptitle("codes, one draw a spiral, against N(0, I) (dotted)")
        return figure


def plot_prior_draws(
    curves: dict[str, np.ndarray], family: SpiralFamily, *, shares: dict[str, float]
) -> Figure:
    """What each prior believes in: curves of draws from it, beside true spirals.

    Args:
        curves: by the prior's name, shape (draw, time, 2).
        family: the truth, from which as many spirals are drawn.
        shares: by the prior's name, the share of draws that are spirals.
    """
    count = max(len(draws) for draws in curves.values())
    truth = family.sample(jax.random.key(0), count).curves
    panels = {"spirals": np.asarray(truth), **curves}
    limit = 1.15 * np.abs(panels["spirals"]).max()
    columns = min(5, len(panels))
    rows = -(-len(panels) // columns)
    with _figure(rows, columns, size=(2.8, 3.1)) as (figure, axes):
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, draws) in zip(axes.flat, panels.items(), strict=False):
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


def plot_calibration(calibration: Calibration) -> Figure:
    """Are the bands right? PIT values as a histogram and as an ECDF, and coverage."""
    pit = calibration.pit[np.isfinite(calibration.pit)]
    points, ecdf, lower, upper = ecdf_pit(pit, 0.95, 1_000, rng=np.random.default_rng(0))
    with _figure(1, 3, size=(3.6, 3.3)) as (figure, axes):
        histogram, difference, coverage = axes[0]
        _unit_histogram(histogram, pit)
        histogram.set(xlabel="PIT", ylabel="density", title="uniform if calibrated")
        difference.fill_between(
            points, lower - points, upper - points, color="0.85", label="95%, simultaneous"
        )
        difference.plot(points, ecdf - points, color=MODEL, label="observed")
        difference.axhline(0, color="black", lw=0.8, ls=":")
        difference.set(xlabel="PIT", ylabel="ECDF - uniform", title="inside if calibrated")
        difference.legend()
        coverage.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
        coverage.plot(calibration.levels, calibration.coverage, "o-", color=MODEL)
        coverage.set(xlabel="level of the band", ylabel="share inside", title="coverage")
        return figure


def _unit_histogram(axis: Any, values: np.ndarray) -> None:
    """Of numbers that are uniform on [0, 1] if all is well."""
    axis.hist(values, bins=20, range=(0, 1), density=True, color=MODEL, alpha=0.6)
    axis.axhline(1, color="black", lw=0.8, ls=":")


def plot_ranks(simulated: SimulationRanks) -> Figure:
    """Simulation-based calibration: a histogram of ranks for each dimension of z0."""
    count = simulated.ranks.shape[1]
    with _figure(1, count, size=(2.8, 2.8)) as (figure, axes):
        for j, axis in enumerate(axes[0]):
            _unit_histogram(axis, simulated.ranks[:, j])
            axis.set(xlabel=f"rank of $z_0[{j}]$", title=f"p = {simulated.p_value[j]:.2g}")
        axes[0, 0].set(ylabel="density")
        return figure


def plot_pareto_k(report: ImportanceReport) -> Figure:
    """Pareto k of each trajectory, with the limits that it should keep."""
    with _figure(1, 1, size=(6.0, 3.3)) as (figure, axes):
        axis = axes[0, 0]
        axis.plot(report.pareto_k, "+", color=MODEL)
        for limit, line in ((0.5, ":"), (0.7, "--")):
            axis.axhline(limit, color="black", lw=0.8, ls=line, label=f"k = {limit}")
        axis.set(xlabel="trajectory", ylabel="Pareto k", title="importance weights of the guide")
        axis.legend()
        return figure


def plot_guide(draws: dict[str, np.ndarray], *, title: str = "") -> Figure:
    """Draws of one trajectory's z0 by several methods, in pairs of neighbouring dimensions.

    Args:
        draws: by the method's name, shape (draw, latent).
        title: of the figure.
    """
    latent_dim = next(iter(draws.values())).shape[1]
    pairs = [(j, j + 1) for j in range(latent_dim - 1)] or [(0, 0)]
    styles = [("0.6", "o"), (MODEL, "+"), (DATA, "x")]
    with _figure(1, len(pairs), size=(3.2, 3.2)) as (figure, axes):
        for axis, (i, j) in zip(axes[0], pairs, strict=True):
            for (name, z0), (color, marker) in zip(draws.items(), styles, strict=False):
                axis.plot(z0[:, i], z0[:, j], marker, ms=3, color=color, alpha=0.5, label=name)
            axis.set(xlabel=f"$z_0[{i}]$", ylabel=f"$z_0[{j}]$")
            axis.locator_params(nbins=4)
        axes[0, 0].legend()
        figure.suptitle(title)
        return figure

"""Figures of training, codes and calibration."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from arviz_plots import plot_khat
from arviz_stats.ecdf_utils import ecdf_pit
from arviz_stats.utils import ELPDData
from jaxtyping import ArrayLike
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from np_latentode.forecasts.calibration import Calibration, SimulationRanks
from np_latentode.programs.fitted import History
from np_latentode.report.panels import DATA, MODEL, STYLE, TRUTH, panels, plain_ticks

__all__ = [
    "plot_calibration",
    "plot_guide",
    "plot_latent",
    "plot_pareto_k",
    "plot_ranks",
    "plot_training",
]


def plot_training(
    losses: ArrayLike,
    *,
    num_trajectories: int,
    best: float | None = None,
    history: History | None = None,
) -> Figure:
    """The loss per trajectory over the steps: of each step, and as a running median.

    With validation, also its scores, and the step whose parameters were kept.

    Args:
        losses: one per step, summed over the data, as Trace_ELBO gives them.
        num_trajectories: the number of trajectories in each sum.
        best: the lowest possible loss per trajectory, -log p(x), if it is known.
        history: of a fit with validation data.
    """
    losses = np.asarray(losses) / num_trajectories
    validated = history is not None and len(history.validation) > 0
    with panels(1 + validated, 1, size=(7.0, 3.0 if validated else 4.0)) as (figure, axes):
        _plot_losses(axes[0, 0], losses, best)
        if history is not None and validated:
            _plot_validation(axes[1, 0], history)
            axes[1, 0].set_xlim(axes[0, 0].get_xlim())
        return figure


def _plot_losses(axis: Axes, losses: np.ndarray, best: float | None) -> None:
    window = max(1, len(losses) // 100)
    parts = np.array_split(losses, max(1, len(losses) // window))
    # Steps whose loss is not finite were skipped in training.
    smooth = [
        np.median(part[np.isfinite(part)]) if np.isfinite(part).any() else np.nan for part in parts
    ]
    axis.plot(losses, color="0.8", lw=0.5, label="each step")
    axis.plot(
        (np.arange(len(smooth)) + 0.5) * len(losses) / len(smooth),
        smooth,
        color=MODEL,
        label=f"median of {window} steps" if window > 1 else "each step",
    )
    if best is not None:
        axis.axhline(best, color="black", ls=":", label="exact $-\\log p(x)$")
    axis.set(xlabel="step", ylabel="-ELBO per trajectory (nats)", title="training")
    axis.set_yscale("symlog", linthresh=100)
    _tick_in_plain_numbers(axis)
    axis.legend()


def _tick_in_plain_numbers(axis: Axes) -> None:
    """Sets ticks of a symlog scale, from three on: its own are powers of ten and 0 only."""
    low, high = axis.get_ylim()
    size = np.array([50, 100, 200, 500, *np.outer(10.0 ** np.arange(3, 31), [1, 2, 5]).ravel()])
    ticks = np.array([*-size[::-1], 0, *size])
    ticks = ticks[(low <= ticks) & (ticks <= high)]
    if len(ticks) > 8:
        ticks = ticks[np.isin(np.abs(ticks), [0, *10.0 ** np.arange(2, 31)])]
    plain_ticks(axis, FixedLocator(ticks.tolist()) if len(ticks) > 2 else MaxNLocator(5))


def _plot_validation(axis: Axes, history: History) -> None:
    axis.plot(history.evaluated, history.validation, "o-", ms=3, color=MODEL)
    kept = history.best_step
    axis.axvline(kept, color="black", lw=0.8, ls=":", label=f"kept: step {kept}")
    axis.set(
        xlabel="step",
        ylabel="$-\\log p$ per observation",
        title="held-out targets given their contexts",
    )
    axis.legend()


def plot_latent(z0: ArrayLike, prior: ArrayLike) -> Figure:
    """Codes against their prior: scatters of neighbouring dimensions, and a QQ plot of each.

    Args:
        z0: shape (trajectory, latent), one draw from the guide per trajectory.
        prior: shape (draw, latent), draws from the model's prior.

    Raises:
        ValueError: if z0 and prior are not arrays of these shapes.
    """
    z0, prior = np.asarray(z0, float), np.asarray(prior, float)
    if z0.ndim != 2 or prior.ndim != 2 or z0.shape[1] != prior.shape[1]:
        raise ValueError(
            "z0 and prior must be of shapes (trajectory, latent) and (draw, latent); "
            f"got {z0.shape} and {prior.shape}."
        )
    latent_dim = z0.shape[1]
    shares = (np.arange(200) + 0.5) / 200
    with panels(2, latent_dim, size=(3.0, 3.0)) as (figure, axes):
        for j in range(latent_dim):
            scatter, qq = axes[:, j]
            k = (j + 1) % latent_dim
            scatter.plot(prior[:, j], prior[:, k], ".", ms=3, mew=0, color=TRUTH, label="prior")
            scatter.plot(z0[:, j], z0[:, k], ".", ms=3, mew=0, color=MODEL, label="codes")
            scatter.set(xlabel=f"$z_0[{j}]$", ylabel=f"$z_0[{k}]$")
            ours, expected = (np.quantile(draws[:, j], shares) for draws in (z0, prior))
            ends = np.array([min(ours[0], expected[0]), max(ours[-1], expected[-1])])
            qq.plot(ends, ends, color="black", lw=0.8, ls=":")
            qq.plot(expected, ours, ".", ms=4, mew=0, color=MODEL)
            qq.set(xlabel=f"quantile of the prior of $z_0[{j}]$", ylabel=f"quantile of $z_0[{j}]$")
            qq.set_aspect("equal", adjustable="datalim")
        figure.suptitle("codes, one draw per trajectory, and their prior")
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            markerscale=3,
        )
        return figure


def plot_calibration(calibration: Calibration) -> Figure:
    """Calibration: PIT values as a histogram and as an ECDF, and coverage."""
    seen = np.isfinite(calibration.pit)
    pit, rng = calibration.pit[seen], np.random.default_rng(0)
    # The bands assume independent numbers, so one observation is taken per trajectory.
    alone = np.array(
        [rng.choice(p[s]) for p, s in zip(calibration.pit, seen, strict=True) if s.any()]
    )
    with panels(1, 3, size=(3.6, 3.3)) as (figure, axes):
        histogram, difference, coverage = axes[0]
        _unit_histogram(histogram, pit)
        histogram.set(xlabel="PIT", ylabel="density", title="uniform if calibrated")
        # ArviZ needs two numbers.
        if len(alone) > 1:
            _ecdf_difference(difference, alone, rng)
        difference.axhline(0, color="black", lw=0.8, ls=":")
        difference.set(
            xlabel="PIT, one per trajectory",
            ylabel="ECDF - uniform",
            title="inside if calibrated" if len(alone) > 1 else "needs two trajectories",
        )
        named = difference.get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=max(1, len(named[1])))
        coverage.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
        coverage.plot(calibration.levels, calibration.coverage, "o-", color=MODEL)
        coverage.set(xlabel="level of the band", ylabel="share inside", title="coverage")
        return figure


def _ecdf_difference(axis: Axes, pit: np.ndarray, rng: np.random.Generator) -> None:
    points, ecdf, lower, upper = ecdf_pit(pit, 0.95, 1_000, rng=rng)
    axis.fill_between(
        points, lower - points, upper - points, color="0.85", label="95%, simultaneous"
    )
    axis.plot(points, ecdf - points, color=MODEL, label="observed")


def _unit_histogram(axis: Any, values: np.ndarray) -> None:
    """A histogram of numbers that should be uniform on [0, 1]."""
    axis.hist(values, bins=20, range=(0, 1), density=True, color=MODEL, alpha=0.6)
    axis.axhline(1, color="black", lw=0.8, ls=":")


def plot_pareto_k(scores: ELPDData) -> Figure:
    """`az.plot_khat` of the result of `elpd`: above 0.7 the guide misses part of the posterior."""
    visuals: Any = {"hlines": True, "bin_text": True}
    with plt.rc_context(STYLE):
        figure = plot_khat(scores, visuals=visuals, backend="matplotlib").viz["figure"].item()
        figure.set_layout_engine("constrained")
        figure.axes[0].set(xlabel="trajectory", ylabel="Pareto k of the guide")
        figure.axes[0].set_xlim(left=-1)
        plt.close(figure)
        return figure


def plot_ranks(simulated: SimulationRanks) -> Figure:
    """Simulation-based calibration: a histogram of ranks for each dimension of z0."""
    count = simulated.ranks.shape[1]
    with panels(1, count, size=(2.8, 2.8)) as (figure, axes):
        for j, axis in enumerate(axes[0]):
            _unit_histogram(axis, simulated.ranks[:, j])
            p = simulated.p_value[j]
            title = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
            axis.set(xlabel=f"rank of $z_0[{j}]$", title=title)
        axes[0, 0].set(ylabel="density")
        return figure


def plot_guide(draws: dict[str, np.ndarray], *, title: str = "") -> Figure:
    """Draws of one trajectory's z0 by several methods, in pairs of neighbouring dimensions.

    Args:
        draws: the draws of each method, by its name, shape (draw, latent).
        title: the title of the figure.
    """
    latent_dim = next(iter(draws.values())).shape[1]
    pairs = [(j, j + 1) for j in range(latent_dim - 1)] or [(0, 0)]
    styles = [(TRUTH, "o"), (MODEL, "+"), (DATA, "x")]
    with panels(1, len(pairs), size=(3.2, 3.2)) as (figure, axes):
        for axis, (i, j) in zip(axes[0], pairs, strict=True):
            for (name, z0), (color, marker) in zip(draws.items(), cycle(styles), strict=False):
                axis.plot(z0[:, i], z0[:, j], marker, ms=3, color=color, alpha=0.5, label=name)
            axis.set(xlabel=f"$z_0[{i}]$", ylabel=f"$z_0[{j}]$")
            axis.locator_params(nbins=4)
        named = axes[0, 0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=len(draws))
        figure.suptitle(title)
        return figure

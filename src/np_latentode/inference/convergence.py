"""Convergence: whether the chains of exact draws agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from arviz_stats.sampling_diagnostics import ess, rhat
from xarray import DataTree

from np_latentode.data.trajectories import Trajectories

__all__ = ["Convergence", "check_exact", "convergence"]


@dataclass(frozen=True)
class Convergence:
    """Whether the chains of each trajectory agree.

    `rhat` and `ess`, shape (trajectory, latent), are ArviZ's rank-normalized split R-hat and bulk
    effective sample size (Vehtari et al. 2021). `divergences`, shape (trajectory,), are counts.
    """

    num_chains: int
    num_draws: int
    rhat: np.ndarray
    ess: np.ndarray
    divergences: np.ndarray

    def __str__(self) -> str:
        worst, least = self.rhat.max(-1), self.ess.min(-1)
        return (
            f"{self.num_chains} chains of {self.num_draws} draws for each of {len(worst)} "
            f"trajectories: worst R-hat {worst.max():.4f} (trajectory {worst.argmax()}), "
            f"least ESS {least.min():.0f} (trajectory {least.argmin()}), "
            f"{self.divergences.sum()} divergences"
        )


def convergence(exact: DataTree) -> Convergence:
    """R-hat, effective sample sizes and divergences of the result of `exact_posterior`."""
    z0 = exact["posterior"]["z0"]
    return Convergence(
        num_chains=z0.sizes["chain"],
        num_draws=z0.sizes["draw"],
        rhat=np.asarray(rhat(exact)["z0"]),
        ess=np.asarray(ess(exact)["z0"]),
        divergences=np.asarray(exact["sample_stats"]["diverging"]).sum((0, 1)),
    )


def check_exact(exact: DataTree, context: Trajectories) -> DataTree:
    """Refuses draws whose trajectories are not those of the context.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    dims = ("chain", "draw", "trajectory", "latent")
    held = exact.children.get("posterior", {}) if isinstance(exact, DataTree) else {}
    z0 = held.get("z0")
    if z0 is None or z0.dims != dims or z0.sizes["trajectory"] != len(context):
        came = "none" if z0 is None else dict(z0.sizes)
        raise ValueError(
            f"exact must hold draws of z0, dimensions {dims}, of as many trajectories as the "
            f"context, {len(context)}; got {came}."
        )
    return exact

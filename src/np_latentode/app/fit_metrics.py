"""What metrics.json says of a training: candidates, members, and the split of the variance."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from jaxtyping import Array

from np_latentode.app.division import Parts
from np_latentode.app.horizons import finite
from np_latentode.data.kinds import NUMBERS
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.variance import variance_shares
from np_latentode.programs.ensemble import Ensemble, heaviest, kinds
from np_latentode.programs.fitted import Fitted
from np_latentode.training.cross_fit import CrossFit

__all__ = ["training_metrics", "variance_metrics"]


def training_metrics(parts: Parts, cross: CrossFit) -> dict[str, Any]:
    """The candidates with their scores and weights, and what their training took."""
    members = cross.ensemble.members
    return {
        "trained_on": len(parts.train),
        "members": len(cross.left_out),
        "candidates": {
            name: {
                "log_score": finite(score),
                "weight": cross.weights[name],
                "share_kept": cross.shares_kept[name],
                "latent_dim": some[0].model.latent_dim if (some := cross.of(name)) else None,
                "best_steps": [member.history.best_step for member in some],
            }
            for name, score in cross.scores.items()
        },
        "steps_taken": sum(len(member.history.losses) for member in members),
        "seconds": cross.seconds,
        "time_unit": parts.train.names.unit,
    }


def variance_metrics(
    rng_key: Array, fitted: Fitted | Ensemble, train: Trajectories
) -> dict[str, dict[str, float | None]]:
    """The shares of path, residual and noise, and the half-life of the residual, by column.

    They are those of the member with the largest weight, of columns that are numbers.
    """
    some = [
        name
        for name, kind in zip(train.names.features, kinds(fitted), strict=True)
        if kind == NUMBERS
    ]
    if not some:
        return {}
    shares = asdict(variance_shares(rng_key, heaviest(fitted), train, features=some))
    return {
        column: {name: finite(numbers[j]) for name, numbers in shares.items()}
        for j, column in enumerate(some)
    }

"""Validation: the score of held-out forecasts during training."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import amortized
from np_latentode.forecasts.densities import log_predictive
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data

__all__ = ["NUM_DRAWS", "forecast_score", "held_out_pair"]

NUM_DRAWS = 20
"""Draws of z0 per score."""


def held_out_pair(model: LatentODE, validation: Any) -> tuple[Trajectories, Trajectories] | None:
    """The validation data as a pair (context, target), or None if there are none.

    Raises:
        ValueError: if they are something else, or do not fit the model.
    """
    if validation is None:
        return None
    if isinstance(validation, Trajectories):
        validation = validation.split()
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise ValueError(
            "validation must be Trajectories, or a pair (context, target) of them; got "
            f"{type(validation).__name__}."
        )
    context, target = validation
    return check_data(model, context, target, targets=True)


def forecast_score(
    rng_key: Array, fitted: Fitted, context: Trajectories, target: Trajectories
) -> float:
    """-log p(target | context) per observation; infinite if an ODE solve fails."""
    z0 = amortized(rng_key, fitted, context, NUM_DRAWS)
    score = -float(log_predictive(fitted, z0, context, target).sum() / target.mask.sum())
    return np.inf if np.isnan(score) else score

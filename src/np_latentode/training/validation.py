"""How well held-out data are forecast while a model is trained."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.prediction import log_predictive, posterior
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data

__all__ = ["NUM_DRAWS", "forecast_score", "held_out_pair"]

NUM_DRAWS = 20
"""Of z0, from which a score is made."""


def held_out_pair(model: LatentODE, validation: Any) -> tuple[Trajectories, Trajectories] | None:
    """What is forecast from, and what is scored of it; None where there is nothing.

    Raises:
        ValueError: naming the rule and what came.
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
    check_data(model, context, target, targets=True)
    return context, target


def forecast_score(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict[str, Any],
    context: Trajectories,
    target: Trajectories,
) -> float:
    """-log p(target | context) an observation; infinite where a solve fails."""
    score = float(_negative_log_density(rng_key, model, guide, params, context, target))
    return np.inf if np.isnan(score) else score


@partial(jax.jit, static_argnums=(1, 2))
def _negative_log_density(rng_key, model, guide, params, context, target):
    z0 = posterior(guide, params, context).sample(rng_key, (NUM_DRAWS,))
    return -log_predictive(model, params, z0, target).sum() / target.mask.sum()

"""The choice of the inference that forecasts use, by held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes
from np_latentode.forecasts.densities import log_predictive
from np_latentode.inference.nuts import Exact
from np_latentode.inference.sharpening import Sharpened
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["INFERENCES", "Choice", "choose_inference"]

INFERENCES: dict[str, Inference] = {
    "guide": amortized,
    "sharpened": Sharpened(),
    "exact": Exact(),
}
"""The inferences by the names that the commands give them."""


class Choice(NamedTuple):
    """An inference, and the scores that chose it."""

    name: str
    inference: Inference
    scores: dict[str, float]
    """log p(target | context) per observation, by the name of the inference; higher is better."""


def choose_inference(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories,
    *,
    candidates: Mapping[str, Inference] | None = None,
    num_samples: int = 200,
) -> Choice:
    """The inference that forecasts held-out data best.

    A sharpened posterior is closer to p(z0 | context) than the guide's. It forecasts better where
    the model is right. Where it is not, a guide that was trained to forecast may know better.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: what is known of trajectories that were not trained on.
        target: later observations of them.
        candidates: inferences by name; of equal scores the first wins. Default: "guide" and
            "sharpened", which are `amortized` and `Sharpened()`.
        num_samples: draws of each.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    if candidates is None:
        candidates = {name: INFERENCES[name] for name in ("guide", "sharpened")}
    if not candidates:
        raise ValueError("candidates must hold at least one inference; got none.")
    context, target = check_data(fitted.model, context, target, targets=True)
    # A solve that fails costs an inference its score, and not the whole choice.
    fitted = replace(fitted, model=fitted.model.with_solver(throw=False))
    scores = {}
    for name, inference in candidates.items():
        z0 = draw_codes(inference, rng_key, fitted, context, num_samples)
        scores[name] = float(log_predictive(fitted, z0, context, target).sum() / target.mask.sum())
    best = max(scores, key=lambda name: -np.inf if np.isnan(scores[name]) else scores[name])
    return Choice(best, candidates[best], scores)

"""The choice of the inference that forecasts use, by held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes
from np_latentode.forecasts.densities import log_predictive
from np_latentode.inference.nuts import Exact
from np_latentode.inference.sharpening import UNSURE, Sharpened
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["INFERENCES", "Choice", "choose_by_folds", "choose_inference"]

INFERENCES: dict[str, Inference] = {
    "guide": amortized,
    "sharpened": Sharpened(exact=False),
    "exact": Exact(),
}
"""The inferences by the names that the commands give them. NUTS for the few trajectories that
importance sampling does not reach takes minutes to compile: who needs it asks for "exact"."""


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
            "sharpened", which are `amortized` and `Sharpened(exact=False)`.
        num_samples: draws of each.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    folds = [(fitted, context, target)]
    return choose_by_folds(rng_key, folds, candidates=candidates, num_samples=num_samples)


def choose_by_folds(
    rng_key: Array,
    folds: Sequence[tuple[Fitted, Trajectories, Trajectories]],
    *,
    candidates: Mapping[str, Inference] | None = None,
    num_samples: int = 200,
) -> Choice:
    """The inference that forecasts best what several fits have left out.

    Args:
        rng_key: a key.
        folds: fits, each with the context and the target of what it was not trained on.
        candidates, num_samples: as in `choose_inference`.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples)
    if candidates is None:
        candidates = {name: INFERENCES[name] for name in ("guide", "sharpened")}
    if not candidates:
        raise ValueError("candidates must hold at least one inference; got none.")
    totals, count = dict.fromkeys(candidates, 0.0), 0
    for fitted, context, target in folds:
        model = check_fitted(fitted).model
        context, target = check_data(model, context, target, targets=True)
        # A solve that fails costs an inference its score, and not the whole choice.
        one = replace(fitted, model=model.with_solver(throw=False))
        for name, inference in candidates.items():
            with warnings.catch_warnings():
                # Only of the inference that is chosen, the user should hear.
                warnings.filterwarnings("ignore", UNSURE[:30])
                z0 = draw_codes(inference, rng_key, one, context, num_samples)
            totals[name] += float(log_predictive(one, z0, context, target).sum())
        count += int(target.mask.sum())
    scores = {name: total / count for name, total in totals.items()}
    best = max(scores, key=lambda name: -np.inf if np.isnan(scores[name]) else scores[name])
    return Choice(best, candidates[best], scores)

"""The settings of a fit of a table, checked before anything is read."""

from __future__ import annotations

from typing import Any

from np_latentode.data.checks import check_counts, check_seed
from np_latentode.inference.choice import INFERENCES
from np_latentode.parts.likelihoods import GaussianLikelihood
from np_latentode.parts.residuals import OrnsteinUhlenbeckLikelihood

__all__ = ["AUTO", "LIKELIHOODS", "check_settings"]

LIKELIHOODS = {"none": GaussianLikelihood, "ou": OrnsteinUhlenbeckLikelihood}
"""The likelihoods of numbers, by what they assume of the residual."""

AUTO = "auto"
"""The word for the inference that forecasts best what was left out of the training."""


def check_settings(settings: dict[str, Any]) -> None:
    """Refuses settings that break a rule, with a ValueError."""
    counts = ("latent_dim", "members", "steps", "patience", "batch_size", "origins")
    given = {name: settings[name] for name in counts if settings.get(name) is not None}
    check_counts(**given)
    for name in ("seed", "split"):
        check_seed(settings[name], name=name)
    residual, holdout = settings["residual"], settings["holdout"]
    window = settings["window"]
    if window is not None and not 0 < window < float("inf"):
        raise ValueError(f"window must be positive and finite; got {window}.")
    if (inference := settings["inference"]) not in (AUTO, *INFERENCES):
        known = ", ".join((AUTO, *INFERENCES))
        raise ValueError(f"inference must be one of {known}; got {inference!r}.")
    if residual not in LIKELIHOODS:
        raise ValueError(f"residual must be one of {', '.join(LIKELIHOODS)}; got {residual!r}.")
    several = (origins := settings["origins"]) > 1
    if several and not holdout:
        raise ValueError(f"origins must be 1 where nothing is held out; got {origins}.")
    if several and "origin" in (settings["id"], settings["time"]):
        raise ValueError(
            "id and time must not be called origin, where several origins are told apart by a "
            "column of this name."
        )
    if not 0 <= holdout < 1:
        raise ValueError(f"holdout must be a share of the trajectories, below 1; got {holdout}.")

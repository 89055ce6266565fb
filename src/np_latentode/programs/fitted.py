"""A fit: model, guide and parameters that belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from numpyro.infer.svi import SVIState

from np_latentode.data.scaling import Scaling
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import check_params

__all__ = ["Fitted", "History", "check_fitted"]


class History(NamedTuple):
    """The losses, validation scores and times of a training."""

    losses: Float[np.ndarray, " step"] = np.zeros(0)
    """-ELBO of each step, summed over the data; NaN if the step was skipped as not finite."""
    evaluated: Int[np.ndarray, " evaluation"] = np.zeros(0, int)
    """The number of steps taken at each validation."""
    validation: Float[np.ndarray, " evaluation"] = np.zeros(0)
    """-log p(target | context) per observation at each validation; lower is better."""
    seconds: Float[np.ndarray, " dispatch"] = np.zeros(0)
    """Seconds since `fit` began, after each dispatch of steps."""
    others: Float[np.ndarray, " evaluation"] = np.zeros(0)
    """The mean score of the members of a cross-fit other than this one, at each validation: they
    choose its step. Empty for a fit, which chooses its own."""

    @property
    def best_step(self) -> int:
        """The step whose parameters are kept: that with the lowest score, or the last step if no
        score is finite. Of a cross-fit, as much of them as `CrossFit.shares_kept` says."""
        scores = self.others if len(self.others) else self.validation
        if not np.isfinite(scores).any():
            return len(self.losses)
        return int(self.evaluated[np.argmin(scores)])


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Fitted:
    """A model and its guide with their parameters: `fit` and `load` return a fit.

    `Fitted(model, guide, result.params)` makes a fit from the result of NumPyro's `SVI.run`. The
    names and shapes of the parameters are checked when a fit is made.

    A fit is a pytree of its parameters, so that `jax.jit` takes it as an argument. Inside of JAX's
    transformations, and in their results, it has no history and no state.

    Args:
        model, guide: the NumPyro programs.
        params: their parameters by the names of their sites, as in `SVIRunResult.params`.
        history: the history of the training; empty unless `fit` returned it.
        state: the state of SVI after the last step; None unless `fit` returned it.

    Raises:
        ValueError: if model or guide is of another type, or a parameter is missing, unknown, or of
            another shape.
    """

    model: LatentODE
    guide: AmortizedGuide
    params: dict[str, Any] = field(repr=False)
    history: History = field(default=History(), repr=False)
    state: SVIState | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, LatentODE):
            raise ValueError(f"model must be a LatentODE; got {type(self.model).__name__}.")
        if not isinstance(self.guide, AmortizedGuide):
            raise ValueError(f"guide must be an AmortizedGuide; got {type(self.guide).__name__}.")
        check_params(self.model, self.guide, self.params)

    @property
    def scaling(self) -> Scaling:
        """The units of the model."""
        return self.model.scaling

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[Any, Any]]:
        return [(jax.tree_util.GetAttrKey("params"), self.params)], (self.model, self.guide)

    @classmethod
    def tree_unflatten(cls, programs: tuple[Any, Any], children: Any) -> Fitted:
        # Unchecked, as JAX also rebuilds pytrees with other objects in place of arrays.
        self = object.__new__(cls)
        values = (*programs, *children, History(), None)
        self.__dict__.update(zip(cls.__dataclass_fields__, values, strict=True))
        return self


def check_fitted(fitted: Any, *, name: str = "fitted") -> Fitted:
    """The fit, or a ValueError that says what came instead."""
    if isinstance(fitted, Fitted):
        return fitted
    if hasattr(fitted, "members"):
        raise ValueError(
            f"{name} must be a Fitted, one member of the ensemble, such as ensemble.members[0]: "
            f"each has a latent space of its own; got {type(fitted).__name__}."
        )
    raise ValueError(
        f"{name} must be a Fitted, as `fit` and `load` return it and as Fitted(model, guide, "
        f"params) makes it; got {type(fitted).__name__}."
    )

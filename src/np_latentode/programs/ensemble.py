"""An ensemble: several fits of the same data, each with a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int

from np_latentode.data.kinds import NUMBERS
from np_latentode.data.scaling import Scaling
from np_latentode.parts.likelihoods import kinds_of
from np_latentode.programs.bands import Bands
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.model import LatentODE

__all__ = [
    "Ensemble",
    "Share",
    "check_fit",
    "heaviest",
    "kinds",
    "members_of",
    "shares",
    "shortest_reach",
    "with_solver",
]

ROUNDING = 1e-6
"""How far from 1 a sum of weights may be, as single precision rounds."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several fits, each with a weight: their forecasts are mixed.

    p(x | context) = sum_k w_k p_k(x | context),  w_k >= 0,  sum_k w_k = 1

    `forecast`, `prior_predictive` and `calibration` take an ensemble in place of a fit, and `save`
    and `load` keep it. Functions of z0, such as `posterior` and `elpd`, take one member, as each
    member has a latent space of its own.

    Args:
        members: the fits; their units must be the same, their parts need not be.
        weights: one number per member; they sum to 1. Default: equal weights.
        bands: how forecasts, but not draws of the prior, are stretched about their median, as
            `recalibrated` finds. Default: they are not.
        folds: which fold of the training data each member was trained without, as `cross_fit`
            says. Default: all were trained on the same data.

    Raises:
        ValueError: if there is no member, a member is no fit or has other units, the weights are
            no distribution over the members, the bands are of other features, or there is not one
            fold per member.
    """

    members: tuple[Fitted, ...]
    weights: Any = None
    bands: Bands | None = None
    folds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.members, (tuple, list)) or not self.members:
            came = "none" if self.members in ((), []) else type(self.members).__name__
            raise ValueError(f"members must be a tuple of at least one Fitted; got {came}.")
        members = tuple(
            check_fitted(member, name=f"members[{k}]") for k, member in enumerate(self.members)
        )
        _check_units(members)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "weights", _check_weights(self.weights, len(members)))
        _check_bands(self.bands, len(self.scaling.loc))
        if self.folds is not None and len(self.folds) != len(members):
            raise ValueError(
                f"folds must be one number for each of {len(members)} members; got {self.folds}."
            )

    @property
    def scaling(self) -> Scaling:
        """The units, which all members share."""
        return self.members[0].model.scaling

    def allot(self, num_samples: int) -> Int[np.ndarray, " member"]:
        """The number of draws of each member, by the largest remainders.

        n_k = floor(w_k n), and one more for those of the largest remainders, until sum_k n_k = n

        A member of weight 0 gets none. Of equal remainders, that of the earlier member counts.
        """
        quotas = self.weights * num_samples
        counts = np.floor(quotas).astype(int)
        # Rounded, as equal weights have equal remainders only up to the last bits.
        remainders = np.where(self.weights > 0, np.round(quotas - counts, 9), -1.0)
        counts[np.argsort(-remainders, kind="stable")[: num_samples - counts.sum()]] += 1
        return counts


class Share(NamedTuple):
    """The draws of one member, in an ensemble or alone."""

    fitted: Fitted
    rng_key: Array
    num_samples: int
    member: int | None
    """Its number in the ensemble; None for a fit alone."""


def shares(rng_key: Array, fitted: Fitted | Ensemble, num_samples: int) -> list[Share]:
    """The members that draw, how often and with which key. A fit alone draws everything.

    If a single member draws, its key is the one given, so that its draws are those of its fit.
    """
    if isinstance(fitted, Fitted):
        return [Share(fitted, rng_key, num_samples, None)]
    counts = fitted.allot(num_samples)
    drawing = np.flatnonzero(counts).tolist()
    keys = {k: rng_key if len(drawing) == 1 else jax.random.fold_in(rng_key, k) for k in drawing}
    return [Share(fitted.members[k], keys[k], int(counts[k]), k) for k in drawing]


def members_of(fitted: Fitted | Ensemble) -> tuple[Fitted, ...]:
    """The members of an ensemble, or the one fit."""
    return fitted.members if isinstance(fitted, Ensemble) else (fitted,)


def heaviest(fitted: Fitted | Ensemble) -> Fitted:
    """The member with the largest weight, the first of equal ones; or the one fit."""
    if isinstance(fitted, Fitted):
        return fitted
    return fitted.members[int(np.argmax(fitted.weights))]


def kinds(fitted: Fitted | Ensemble) -> tuple[str, ...]:
    """The kind of each feature, as the likelihoods say; numbers, where those of members differ."""
    count = len(fitted.scaling.loc)
    each = [kinds_of(one.model.likelihood, count) for one in members_of(fitted)]
    some = [{*found} for found in zip(*each, strict=True)]
    return tuple(next(iter(found)) if len(found) == 1 else NUMBERS for found in some)


def shortest_reach(fitted: Fitted | Ensemble) -> LatentODE:
    """The model whose solver reaches least far, which bounds what all can forecast."""
    return min((one.model for one in members_of(fitted)), key=lambda model: model.solver.reach)


def with_solver(fitted: Fitted | Ensemble, **changes: Any) -> Fitted | Ensemble:
    """The same fit or ensemble, with other settings of the `Solver` of its models."""

    def changed(one: Fitted) -> Fitted:
        return replace(one, model=one.model.with_solver(**changes))

    if isinstance(fitted, Fitted):
        return changed(fitted)
    return replace(fitted, members=tuple(map(changed, fitted.members)))


def check_fit(fitted: Any) -> Fitted | Ensemble:
    """The fit or the ensemble, or a ValueError that says what came instead."""
    return fitted if isinstance(fitted, Ensemble) else check_fitted(fitted)


def _check_bands(bands: Any, num_features: int) -> None:
    if bands is None:
        return
    if not isinstance(bands, Bands) or len(bands.widths) != num_features:
        came = len(bands.widths) if isinstance(bands, Bands) else type(bands).__name__
        raise ValueError(f"bands must be Bands of {num_features} features; got {came}.")


def _check_units(members: tuple[Fitted, ...]) -> None:
    ours = members[0].model.scaling
    for k, member in enumerate(members):
        for name, theirs in (("model", member.model.scaling), ("guide", member.guide.scaling)):
            if not ours.like(theirs):
                raise ValueError(
                    "members must share their units, the scaling of their models and guides; got "
                    f"{theirs} in the {name} of members[{k}], and {ours} in members[0]."
                )


def _check_weights(weights: Any, count: int) -> np.ndarray:
    if weights is None:
        return np.full(count, 1 / count)
    rule = f"weights must be {count} nonnegative numbers that sum to 1, one per member"
    try:
        given = np.array(weights, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{rule}; got {weights!r}.") from error
    if given.shape != (count,):
        raise ValueError(f"{rule}; got shape {given.shape}.")
    # Not `given < 0`, as NaN would pass.
    if not ((given >= 0).all() and abs(given.sum() - 1) <= ROUNDING):
        raise ValueError(f"{rule}; got {given.tolist()}.")
    return given / given.sum()

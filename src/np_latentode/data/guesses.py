"""Guesses: the likely kind of each column of a table, and the kinds that were given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float

from np_latentode.data.kinds import BERNOULLI, COUNTS, KINDS, NUMBERS, fits
from np_latentode.data.trajectories import Trajectories

__all__ = ["check_kinds", "choose_kinds", "guess_kinds"]

LEAST_ZEROS = 0.25
"""The least share of zeros in a column that is taken for counts. Ages, ranks, scores and doses
rarely have so many."""

HIGHEST_COUNT = 50
"""The highest value in a column that is taken for counts: above, a cost or a concentration is more
likely, and numbers serve as well."""


def guess_kinds(trajectories: Trajectories) -> dict[str, str]:
    """The likely kind of each feature.

    A feature is `bernoulli` if it holds 0 and 1, both of them, and nothing else. It is `counts` if
    it holds integers from 0 to at most 50, among them 0, 1 and 2, of which a quarter or more are 0,
    and with a variance that is not below the mean, as of all mixtures of Poisson distributions. Any
    other one is `numbers`, and so is one of which the logarithm is modelled, or which has limits or
    standard errors.
    """
    values, mask = trajectories.given.values, np.asarray(trajectories.mask)
    names, inexact = trajectories.names, _inexact(trajectories)
    return {
        name: NUMBERS if name in names.log or inexact[j] else _guess(values[..., j][mask[..., j]])
        for j, name in enumerate(names.features)
    }


def _inexact(trajectories: Trajectories) -> Bool[np.ndarray, " feature"]:
    """True for features with limits, or with known standard errors."""
    found = trajectories.limited.any((0, 1))
    error = trajectories.given.error
    return found if error is None else found | (error > 0).any((0, 1))


def _counted(trajectories: Trajectories, j: int) -> str:
    """The limits and standard errors of a feature, in words."""
    error = trajectories.given.error
    counts = {
        "limits": trajectories.limited[..., j].sum(),
        "standard errors": 0 if error is None else (error[..., j] > 0).sum(),
    }
    return " and ".join(f"{count} {what}" for what, count in counts.items() if count)


def _guess(x: Float[np.ndarray, " value"]) -> str:
    found = {*np.unique(x).tolist()}
    if found == {0, 1}:
        return BERNOULLI
    small = found >= {0, 1, 2} and fits(COUNTS, x).all() and x.max() <= HIGHEST_COUNT
    return COUNTS if small and np.mean(x == 0) >= LEAST_ZEROS and x.var() >= x.mean() else NUMBERS


def choose_kinds(trajectories: Trajectories, given: Mapping[str, str]) -> dict[str, str]:
    """The kind of each feature: the one given, or else the guess.

    Args:
        trajectories: all that will be modelled.
        given: kinds by the name of the feature.

    Raises:
        ValueError: if a name or a kind is unknown, a value is not of the kind, or a logarithm would
            be of another kind than numbers.
    """
    names = trajectories.names
    if strange := [name for name in given if name not in names.features]:
        raise ValueError(
            f"kind must name columns among values, {[*names.features]}; got {strange}."
        )
    for name, kind in given.items():
        check_kind(name, kind)
        if kind != NUMBERS and name in names.log:
            raise ValueError(
                f"kind must be {NUMBERS} for a column in log, {[*names.log]}; got {kind!r} for "
                f"{name!r}."
            )
    kinds = guess_kinds(trajectories) | {**given}
    check_kinds(trajectories, kinds, advice=f" Say --kind {{name}}={NUMBERS}.")
    return kinds


def check_kind(name: str, kind: str) -> None:
    """Refuses a word that is no kind."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r} for {name!r}.")


def check_kinds(
    trajectories: Trajectories,
    kinds: Mapping[str, str],
    *,
    data: object = "data",
    advice: str = "",
) -> None:
    """Refuses values that are not of the kind of their feature.

    Args:
        trajectories: of a table.
        kinds: by the name of the feature.
        data: what the table is called.
        advice: what to do about limits and errors, with {name} for the column. Default: nothing, as
            where the kinds are those of a fit.
    """
    names, offsets = trajectories.names, trajectories.offset.values
    values, mask = trajectories.given.values, np.asarray(trajectories.mask)
    inexact = _inexact(trajectories)
    for j, name in enumerate(names.features):
        kind = kinds[name]
        where = f"in column {name!r}, as its kind is {kind}"
        if kind != NUMBERS and inexact[j]:
            raise ValueError(
                f"{data} must hold neither limits, such as <0.5, nor standard errors {where}; got "
                f"{_counted(trajectories, j)}.{advice.format(name=name)}"
            )
        wrong = np.argwhere(mask[..., j] & ~fits(kind, values[..., j]))
        if wrong.size:
            i, k = wrong[0]
            raise ValueError(
                f"{data} must {KINDS[kind].removesuffix(',')} {where}; got {values[i, k, j]:g} "
                f"for {names.id} {names.ids[i]}."
            )
        if kind != NUMBERS and any(offsets) and offsets[j]:
            raise ValueError(
                f"{data} must vary by more than a thousandth of its level {where}; got values "
                f"close to {offsets[j]:g}."
            )

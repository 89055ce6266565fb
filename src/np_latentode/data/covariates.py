"""Covariates: what is known of a trajectory besides its observations, such as age, sex and arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import narwhals as nw
import numpy as np
from jaxtyping import Array, Float, Int

from np_latentode.data.entries import MISSING, read_number, shown
from np_latentode.data.problems import Problems

__all__ = ["KINDS", "Asked", "Covariates", "Names", "Static", "asked_levels", "read_static"]

Names = Sequence[str | int] | Mapping[str, Sequence[str] | str | None] | str
"""The columns of static covariates; in a mapping, with their levels or one of `KINDS`."""

KINDS = ("number", "category")
"""What a static covariate may be. By default, the table decides."""


Asked = tuple[str, ...] | str | None
"""The levels that are known already, none for numbers; one of `KINDS`; or None."""


class Static(NamedTuple):
    """The static covariates of a table."""

    numbers: Float[np.ndarray, "trajectory covariate"]
    """Numbers, or the places of categories among their levels; NaN where missing."""
    levels: tuple[tuple[str, ...], ...]
    """Of each covariate; none for numbers."""


@dataclass(frozen=True, eq=False)
class Covariates:
    """How static covariates become numbers for networks, s.

    s = (entry - mean) / scale

    A number is one entry. A category has one entry for each level but the first, which is 1 or 0;
    their scale is 1. A covariate that some of the training data lack has one more, 1 where it is
    missing. So s = 0 is the average of the training data. Entries that are missing count as it.

    Args:
        names: of the covariates.
        levels: of each; none for numbers.
        lacking: whether some of the training data lack it.
        mean, scale: of the entries, shape (entry,).
    """

    names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    lacking: tuple[bool, ...]
    mean: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        for name in ("mean", "scale"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), float))

    @classmethod
    def fit(cls, static: Float[np.ndarray, "trajectory covariate"], labels: Any) -> Covariates:
        """The units of the training data.

        Args:
            static: as `Trajectories.static`.
            labels: `Trajectories.names`.

        Raises:
            ValueError: if a covariate is missing in all of the training data.
        """
        static = np.asarray(static, float)
        known = np.isfinite(static)
        names = labels.static or tuple(f"s_{c}" for c in range(static.shape[1]))
        if never := [name for name, any_ in zip(names, known.any(0), strict=True) if not any_]:
            raise ValueError(
                f"train must hold an entry of every static covariate; got none of {never}."
            )
        levels = labels.levels or ((),) * len(names)
        lacking = tuple((~known.all(0)).tolist())
        raw = cls(names, levels, lacking, np.zeros(0), np.ones(0))._entries(static)
        mean = np.nanmean(raw, axis=0)
        sd = np.nanstd(raw, axis=0)
        constant = sd <= np.abs(mean) * 8 * np.finfo(float).eps
        scale = np.where(constant | cls._are_shares(levels, lacking), 1.0, sd)
        return cls(names, levels, lacking, mean, scale)

    @property
    def size(self) -> int:
        """The number of entries of s."""
        return len(self.mean)

    def encode(self, static: Any) -> Float[Array, "trajectory entry"]:
        """The numbers s of static covariates, shape (trajectory, covariate)."""
        if static.shape[1:] != (len(self.names),):
            raise ValueError(
                f"static must have shape (trajectory, {len(self.names)}), the covariates "
                f"{', '.join(self.names)} of the training data; got {static.shape}."
            )
        raw = self._entries(jnp.asarray(static))
        s = (raw - jnp.asarray(self.mean, raw.dtype)) / jnp.asarray(self.scale, raw.dtype)
        return jnp.nan_to_num(s)

    def unknown(self, count: int) -> Float[Array, "trajectory covariate"]:
        """The covariates of trajectories of which none is known."""
        return jnp.full((count, len(self.names)), jnp.nan)

    def like(self, other: Covariates | None) -> bool:
        """Whether both make the same numbers."""
        return other is not None and self._settings == other._settings

    @property
    def _settings(self) -> tuple[Any, ...]:
        return self.names, self.levels, self.lacking, self.mean.tolist(), self.scale.tolist()

    def _entries(self, static: Any) -> Any:
        """The entries before they are scaled; NaN where missing."""
        xp: Any = np if isinstance(static, np.ndarray) else jnp
        columns = []
        for c, (levels, lacking) in enumerate(zip(self.levels, self.lacking, strict=True)):
            x = static[:, c]
            others = range(1, len(levels))
            columns += [xp.where(xp.isnan(x), x, x == k) for k in others] if levels else [x]
            columns += [xp.isnan(x).astype(x.dtype)] if lacking else []
        return xp.stack(columns, axis=1) if columns else static[:, :0]

    @staticmethod
    def _are_shares(levels: Sequence[Sequence[str]], lacking: Sequence[bool]) -> np.ndarray:
        """True for the entries that are 0 or 1."""
        found: list[bool] = []
        for some, lack in zip(levels, lacking, strict=True):
            found += [True] * (len(some) - 1) if some else [False]
            found += [True] * lack
        return np.array(found, bool)


def asked_levels(names: Names) -> dict[str, Asked]:
    """What a user asks of each covariate.

    Raises:
        ValueError: if a kind is not known.
    """
    if not isinstance(names, Mapping):
        listed = [names] if isinstance(names, (str, int)) else names
        return {str(name): None for name in listed}
    found: dict[str, Asked] = {}
    for name, asked in names.items():
        if isinstance(asked, str) and asked not in KINDS:
            raise ValueError(
                f"static must say of each column number, category, or its categories; got "
                f"{asked!r} for {name!r}."
            )
        levels = None if asked is None or isinstance(asked, str) else tuple(map(str, asked))
        found[str(name)] = asked if isinstance(asked, str) else levels
    return found


def read_static(
    frame: nw.DataFrame,
    asked: Mapping[str, Asked],
    ids: Int[np.ndarray, " row"],
    problems: Problems,
) -> Static:
    """The static covariates of each id, from the rows of a table.

    All rows of an id hold the same entry, or none. A column whose entries are all numbers, or true
    and false, is a number. Any other is a category, whose levels are its entries in their order.

    Args:
        frame: the table.
        asked: the columns, and what is asked of them.
        ids: the number of each row's id.
        problems: collects the rows that break a rule.
    """
    count = int(ids.max()) + 1
    numbers, levels = np.full((count, len(asked)), np.nan), []
    for c, (name, known) in enumerate(asked.items()):
        entries = static_entries(frame[name])
        _check_same(name, entries, ids, problems)
        parsed, found = _parsed(name, entries, known, problems)
        levels.append(found)
        for who, number in zip(ids.tolist(), parsed, strict=True):
            if number == number:
                numbers[who, c] = number
    return Static(numbers, tuple(levels))


def static_entries(column: nw.Series) -> list[Any]:
    """The entries; None where one is missing."""
    nulls = column.is_null().to_list()
    texts = column.dtype in (nw.String, nw.Object, nw.Categorical, nw.Enum)
    found = []
    for entry, null in zip(column.to_list(), nulls, strict=True):
        if null or entry is None or entry != entry:
            found.append(None)
        elif texts and not isinstance(entry, (int, float)):
            text = str(entry).strip()
            found.append(None if text in MISSING else text)
        else:
            found.append(entry)
    return found


def _check_same(name: str, entries: list[Any], ids: np.ndarray, problems: Problems) -> None:
    first: dict[int, Any] = {}
    bad = np.zeros(len(entries), bool)
    for row, (who, entry) in enumerate(zip(ids.tolist(), entries, strict=True)):
        if entry is not None:
            bad[row] = first.setdefault(who, entry) != entry
    rule = "must hold the same entry in all rows of an id, as it is static"
    problems.check(name, rule, bad, lambda row: shown(entries[row]))


def _parsed(
    name: str, entries: list[Any], asked: Asked, problems: Problems
) -> tuple[list[float], tuple[str, ...]]:
    """The numbers of a column, and its levels."""
    numbers = [_number(entry) for entry in entries]
    strange = np.array([e is not None and x is None for e, x in zip(entries, numbers, strict=True)])
    if asked in ((), "number") or (asked is None and not strange.any()):
        rule = "must hold finite numbers" + ("" if asked else ", as the table fitted does")
        problems.check(name, rule, strange, lambda row: shown(entries[row]))
        return [np.nan if x is None else x for x in numbers], ()
    texts = [None if entry is None else _text(entry) for entry in entries]
    levels = asked if isinstance(asked, tuple) else _in_order(texts)
    places = {level: float(k) for k, level in enumerate(levels)}
    unseen = np.array([x is not None and x not in places for x in texts])
    rule = f"must hold one of {shown([*levels])}, the categories of the table fitted"
    problems.check(name, rule, unseen, lambda row: shown(texts[row]))
    return [np.nan if x is None else places.get(x, np.nan) for x in texts], levels


def _in_order(texts: list[str | None]) -> tuple[str, ...]:
    """The different texts, by their numbers if all are numbers."""
    found = sorted({x for x in texts if x is not None})
    numbers = [read_number(x) for x in found]
    known = [x for x in numbers if x is not None]
    if len(known) == len(found):
        found = [found[k] for k in np.argsort(known, kind="stable")]
    return tuple(found)


def _number(entry: Any) -> float | None:
    """The entry as a finite number, None if it is none."""
    if entry is None:
        return None
    number = read_number(entry) if isinstance(entry, str) else _as_float(entry)
    return number if number is not None and np.isfinite(number) else None


def _as_float(entry: Any) -> float | None:
    try:
        return float(entry)
    except (TypeError, ValueError):
        return None


def _text(entry: Any) -> str:
    # In pandas, integers beside a missing entry are floats.
    if isinstance(entry, float) and entry.is_integer():
        entry = int(entry)
    return str(entry)

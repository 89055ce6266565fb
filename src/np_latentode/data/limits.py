"""Limits: values of which only an interval is known, such as <0.5, >120 or 1..2."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from np_latentode.data.entries import (
    BLANKS,
    MISSING,
    number_reader,
    read_number,
    read_numbers,
    shown,
)
from np_latentode.data.numbers import Numbers, as_doubles, is_concrete
from np_latentode.data.problems import Problems

__all__ = [
    "Column",
    "Limits",
    "has_limits",
    "limit_text",
    "of_one_type",
    "read_column",
    "read_entries",
]


@jax.tree_util.register_pytree_with_keys_class
class Limits:
    """Intervals in place of values: the value lies between `lower` and `upper`.

    They say where a measurement reached its limit of detection, or was only read as a range. A
    pytree: `jax.jit`, `jax.tree.map` and `jax.vmap` see both arrays.

    Args:
        lower, upper: shape (trajectory, time, feature), in the units of the values. `-inf` in
            `lower` means below `upper`; `inf` in `upper` means above `lower`. NaN in both where the
            value is known.

    Raises:
        ValueError: if shapes disagree, one of a pair is NaN and the other is not, both are
            infinite, or `lower` is not below `upper`.
    """

    lower: Any
    upper: Any

    def __init__(self, lower: Numbers, upper: Numbers):
        if not is_concrete(lower, upper):
            self.lower, self.upper = lower, upper
            return
        self.lower, self.upper = as_doubles("lower", lower), as_doubles("upper", upper)
        if self.lower.shape != self.upper.shape:
            raise ValueError(
                "limits: lower and upper must have one shape, that of the values; got "
                f"{self.lower.shape} and {self.upper.shape}."
            )
        alone = np.isnan(self.lower) != np.isnan(self.upper)
        infinite = np.isinf(self.lower) & np.isinf(self.upper)
        bad = alone | infinite | (self.lower >= self.upper)
        if bad.any():
            at = tuple(np.argwhere(bad)[0].tolist())
            raise ValueError(
                "limits: lower must be below upper, one of them finite, or both NaN where the "
                f"value is known; got {self.lower[at]} and {self.upper[at]} at {[*at]}."
            )

    @property
    def censored(self) -> Any:
        """True where only an interval is known."""
        return self.lower == self.lower

    @property
    def stand_in(self) -> Any:
        """The finite bound, or the middle between two: what those see that read numbers only."""
        xp: Any = np if isinstance(self.lower, np.ndarray) else jnp
        lower = xp.where(xp.isinf(self.lower), self.upper, self.lower)
        upper = xp.where(xp.isinf(self.upper), self.lower, self.upper)
        return (lower + upper) / 2

    def each(self, change: Any) -> Limits:
        """The same with both arrays changed, unchecked."""
        return Limits.tree_unflatten(None, (change(self.lower), change(self.upper)))

    def __getitem__(self, index: Any) -> Limits:
        return self.each(lambda array: array[index])

    def __repr__(self) -> str:
        known = is_concrete(self.lower) and hasattr(self.lower, "shape")
        count = f"{int(np.sum(self.censored))} of " if known else ""
        return f"Limits({count}{np.shape(self.lower)} values)"

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], None]:
        return [(jax.tree_util.GetAttrKey(n), getattr(self, n)) for n in ("lower", "upper")], None

    @classmethod
    def tree_unflatten(cls, rest: None, arrays: Sequence[Any]) -> Limits:
        # Unchecked, as JAX also rebuilds pytrees with placeholders in place of arrays.
        self = object.__new__(cls)
        self.lower, self.upper = arrays
        return self


RULE = "must hold numbers, or limits such as <0.5, >120 or 1..2, the lower number first"

LIKE = re.compile(r"[<>≤≥\[(]|.*\.\.|\d[\d.,]*\s*[-–]\s*\d[\d.,]*$")  # noqa: RUF001
"""How an entry begins that is meant as a limit, rightly written or not."""

_NUMBER = r"([+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?)"
NUMBER = re.compile(_NUMBER, re.ASCII)
ONE_SIDED = re.compile(rf"([<>≤≥])=?\s*{_NUMBER}", re.ASCII)
BETWEEN = re.compile(rf"{_NUMBER}\s*\.\.\s*{_NUMBER}", re.ASCII)


def read_limit(
    text: str, number: Callable[[str], float | None] = read_number
) -> tuple[float, float] | None:
    """The lower and the upper bound that a text says; None if it says none.

    Args:
        text: of a cell.
        number: reads each bound.
    """
    if found := ONE_SIDED.fullmatch(text):
        bound = number(found[2])
        if bound is None or not np.isfinite(bound):
            return None
        return (-np.inf, bound) if found[1] in "<≤" else (bound, np.inf)
    if found := BETWEEN.fullmatch(text):
        lower, upper = number(found[1]), number(found[2])
        if lower is not None and upper is not None and -np.inf < lower < upper < np.inf:
            return lower, upper
    return None


def limit_text(lower: float, upper: float) -> str:
    """An interval as a table has it, to the last bit."""
    low, high = (repr(float(x)).removesuffix(".0") for x in (lower, upper))
    if np.isinf(lower):
        return f"<{high}"
    return f">{low}" if np.isinf(upper) else f"{low}..{high}"


def read_entries(
    entries: Sequence[str], name: str, problems: Problems, *, comma: bool = False
) -> np.ndarray:
    """Floats, as `entries.read_numbers` gives them; with limits, objects: floats and their texts.

    Arguments are those of `read_numbers`. A decimal comma in one entry, number or bound, is one in
    all of them. Limits have a point before the fraction afterwards.
    """
    like = [LIKE.match(entry) is not None for entry in entries]
    plain = ["" if limit else entry for entry, limit in zip(entries, like, strict=True)]
    limits = [entry for entry, limit in zip(entries, like, strict=True) if limit]
    bounds = [bound for entry in limits for bound in NUMBER.findall(entry)]
    numbers = read_numbers(plain, name, problems, comma=comma, beside=bounds)
    if not limits:
        return numbers
    number, with_comma = number_reader([*plain, *bounds], comma=comma)
    found, bad = numbers.astype(object), np.zeros(len(entries), bool)
    for row in np.flatnonzero(like).tolist():
        pair = read_limit(entries[row], number)
        bad[row] = pair is None
        found[row] = np.nan if pair is None else limit_text(*pair)
    problems.check(name, f"{RULE}{with_comma}", bad, lambda row: shown(entries[row]))
    return found


class Column(NamedTuple):
    """A column of values: its numbers, and its limits, if it has some."""

    numbers: Float[np.ndarray, " row"]
    """NaN where the table is empty, and the stand-in of each limit."""
    limits: Limits | None


def read_column(entries: Sequence[Any], name: str, problems: Problems) -> Column | None:
    """A column of texts that are numbers or limits; None if it holds no text, or other texts only.

    A column without any limit is read where all its texts are numbers: a later table of the same
    column may hold none.

    Args:
        entries: of a data frame, of any type; None and NaN where it is empty.
        name: of the column.
        problems: collects the rows that are neither.
    """
    if not (has_limits(entries) or _are_numbers(entries)):
        return None
    numbers, bad = np.full(len(entries), np.nan), np.zeros(len(entries), bool)
    bounds = np.full((2, len(entries)), np.nan)
    for row, entry in enumerate(entries):
        text = entry.strip(BLANKS) if isinstance(entry, str) else None
        if entry is None or text in MISSING:
            continue
        pair = None if text is None else read_limit(text)
        number = _as_number(entry) if text is None else read_number(text)
        if pair is not None:
            bounds[:, row] = pair
        elif number is None:
            bad[row] = True
        else:
            numbers[row] = number
    problems.check(name, RULE, bad, lambda row: shown(entries[row]))
    if np.isnan(bounds).all():
        return Column(numbers, None)
    limits = Limits(*bounds)
    return Column(np.where(limits.censored, limits.stand_in, numbers), limits)


def _as_number(entry: Any) -> float | None:
    """The number that an entry is, which is no text; None if it is none, as a date."""
    try:
        return float(entry)
    except (TypeError, ValueError):
        return None


def _are_numbers(entries: Sequence[Any]) -> bool:
    """Whether some entries are texts, and all texts numbers."""
    texts = [x.strip(BLANKS) for x in entries if isinstance(x, str)]
    known = [text for text in texts if text not in MISSING]
    return bool(known) and all(read_number(text) is not None for text in known)


def has_limits(entries: Sequence[Any]) -> bool:
    """Whether some entries are meant as limits."""
    return any(isinstance(x, str) and LIKE.match(x.strip(BLANKS)) for x in entries)


def of_one_type(entries: Sequence[Any]) -> list[Any]:
    """Floats, if all entries are numbers or texts of them; else texts. None stays None."""
    found = [read_number(x.strip(BLANKS)) if isinstance(x, str) else x for x in entries]
    if all(x is not None for x, entry in zip(found, entries, strict=True) if entry is not None):
        return found
    return [entry if entry is None or isinstance(entry, str) else repr(entry) for entry in entries]

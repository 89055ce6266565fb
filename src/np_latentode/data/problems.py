"""The errors of a table's rows, collected and reported together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

__all__ = ["MalformedRows", "Problems"]

SHOWN = 5
"""The number of problems that a message shows; the error holds all of them."""


GOT = "; got "
"""What comes between a rule and what broke it."""


class MalformedRows(ValueError):  # noqa: N818 - the name says what the error holds: rows
    """Some rows of a table cannot be read; the error holds all of them.

    Args:
        problems: pairs (row, sentence). Rows are numbered from 0, lines of a file from 1.
        name: the name of the table; messages begin with it.
    """

    problems: tuple[tuple[int, str], ...]
    """The errors, sorted by row."""

    def __init__(self, problems: Iterable[tuple[int, str]], name: str = ""):
        self.problems = tuple(sorted(problems, key=lambda problem: problem[0]))
        self.name = name
        said, more = _said([sentence for _, sentence in self.problems])
        rows = len({row for row, _ in self.problems})
        count = f"{rows} row{'s' if rows > 1 else ''} cannot be read: "
        super().__init__(
            (f"{name}: " if name else "")
            + (count if len(self.problems) > 1 else "")
            + said
            + (f"; and {more} more." if more > 0 else ".")
        )

    def __reduce__(self):
        return type(self), (self.problems, self.name)


def _said(sentences: Sequence[str]) -> tuple[str, int]:
    """The first few sentences, and the number of rows that they leave out.

    Those that broke the same rule are one: "column 'x' must hold numbers; got 'a' in line 2, 'b' in
    line 3".
    """
    found: dict[str, list[str]] = {}
    for sentence in sentences:
        rule, _, came = sentence.partition(GOT)
        found.setdefault(rule, []).append(came)
    kinds = [*found.items()][:SHOWN]
    said = [rule + GOT + ", ".join(came[:SHOWN]) if came[0] else rule for rule, came in kinds]
    return "; ".join(said), len(sentences) - sum(min(len(came), SHOWN) for _, came in kinds)


class Problems:
    """Collects the errors of a table's rows.

    Args:
        name: the name of the table; messages begin with it.
        noun: the word for a row in messages: "row" or "line".
        numbers: the number of each row in messages. Default: 0, 1, and so on.
    """

    def __init__(self, name: str = "", noun: str = "row", numbers: Sequence[int] | None = None):
        self.name, self.noun, self.numbers = name, noun, numbers
        self.found: dict[tuple[int, str], str] = {}
        self.called: dict[str, str] = {}
        """What messages call a column, where that is not its name."""

    def keep(self, rows: np.ndarray) -> None:
        """Numbers the rows that are left of a table; `rows` is True for each of them."""
        numbers = np.arange(len(rows)) if self.numbers is None else np.asarray(self.numbers)
        self.numbers = numbers[rows].tolist()

    def add(self, number: int, column: str, what: str) -> None:
        """Adds an error for one row and column, unless there is one already."""
        self.found.setdefault((number, column), what)

    def number(self, row: int) -> int:
        """The number of a row in messages."""
        return row if self.numbers is None else int(self.numbers[row])

    def check(self, column: str, rule: str, bad: Any, got: Callable[[int], Any]) -> None:
        """Adds an error for each row where `bad` is True.

        Args:
            column: the name of the column.
            rule: the rule that its entries must obey.
            bad: booleans, one per row.
            got: the entry of a row, as the message shows it.
        """
        for row in np.flatnonzero(bad).tolist():
            called = self.called.get(column, repr(column))
            self.add(self.number(row), column, f"column {called} {rule}{GOT}{got(row)}")

    def raise_if_any(self) -> None:
        """Raises MalformedRows if there are errors."""
        if self.found:
            raise MalformedRows(
                ((n, f"{what} in {self.noun} {n}") for (n, _), what in self.found.items()),
                self.name,
            )

"""Columns: the names of those columns of a table that are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Columns"]


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read, as text; all others may hold anything.

    Args:
        id, time: of ids and times.
        values: of measurements. With `feature`, the entries of that column which are read, or none
            for all of them.
        feature, value: in a table with one row per measurement, the columns of what was measured
            and of the result.
        start: of the time from which the times of each id are counted.
        static: of static covariates.
        inputs: of inputs.
        error: of standard errors of the values.
    """

    id: str
    time: str
    values: tuple[str, ...]
    feature: str | None = None
    value: str | None = None
    start: str | None = None
    static: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    error: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        id: str | int,
        time: str | int,
        values: Sequence[str | int] | int = (),
        feature: str | int | None = None,
        value: str | int | None = None,
        start: str | int | None = None,
        static: Iterable[str] = (),
        inputs: Iterable[str] = (),
        error: Iterable[str] = (),
    ) -> Columns:
        """The columns that a user names.

        Raises:
            ValueError: if the names are not different, or one is missing.
        """
        names = [values] if isinstance(values, (str, int)) else values
        pair = [None if name is None else str(name) for name in (feature, value, start)]
        covariates = tuple(map(str, static))
        given = tuple(map(str, inputs))
        # Features may share a column of errors, as all of a long table do.
        errors = tuple(dict.fromkeys(map(str, error)))
        own = (str(id), str(time), tuple(map(str, names)), *pair)
        self = cls(*own, static=covariates, inputs=given, error=errors)
        if (feature is None) != (value is None):
            raise ValueError(
                "feature and value must be given together, the column of what was measured and the "
                f"column of the result; got {feature!r} and {value!r}."
            )
        if not self.numbers or len(set(self.read)) != len(self.read):
            what = self.arguments
            least = ", and values at least one" if feature is None else ""
            raise ValueError(f"{what} must name different columns{least}; got {[*self.read]}.")
        if len(set(self.values)) != len(self.values):
            raise ValueError(f"values must name different features; got {[*self.values]}.")
        return self

    @classmethod
    def of_plan(cls, id: str, time: str, inputs: tuple[str, ...]) -> Columns:
        """Those of a table that only gives inputs."""
        return cls(id, time, (), inputs=inputs)

    @property
    def arguments(self) -> str:
        """The arguments that name the columns, as messages list them."""
        names = ["id", "time", *([] if self.start is None else ["since"])]
        names += ["static"] if self.static else []
        names += ["inputs"] if self.inputs else []
        names += ["error"] if self.error else []
        if self.numbers:
            names += ["values"] if self.feature is None else ["feature", "value"]
        return f"{', '.join(names[:-1])} and {names[-1]}"

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold texts: ids, and what was measured."""
        return (self.id,) if self.feature is None else (self.id, self.feature)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that hold measurements."""
        return self.values if self.value is None else (self.value,)

    @property
    def times(self) -> tuple[str, ...]:
        """The columns that hold times."""
        return (self.time,) if self.start is None else (self.time, self.start)

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns of what is known besides measurements."""
        return (*self.static, *self.inputs, *self.error)

    @property
    def read(self) -> tuple[str, ...]:
        """All columns that are read."""
        start = () if self.start is None else (self.start,)
        known = (*self.texts[1:], *start, *self.beside)
        return (self.id, self.time, *known, *self.numbers)

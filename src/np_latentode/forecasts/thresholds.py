"""Thresholds: a level of a feature, and the side of it that is asked about."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from np_latentode.data.labels import Labels

__all__ = ["Threshold"]

RELATIONS: dict[str, Any] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

TEXT = re.compile(r"\s*(?P<feature>.*\S)\s*(?P<relation>>=|<=|>|<)(?P<level>[^<>=]*)", re.DOTALL)
"""A threshold as text. The last relation counts, as the name of a feature may hold others."""


@dataclass(frozen=True)
class Threshold:
    """A level of a feature, and the side of it that counts as beyond: `bili > 2`.

    Args:
        feature: the name of the feature, as in `Labels.features`.
        relation: one of >, >=, < and <=.
        level: in the units of the table.

    Raises:
        ValueError: if the relation is another one, or the level is no finite number.
    """

    feature: str
    relation: str
    level: float

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ValueError(
                f"relation must be one of {', '.join(RELATIONS)}; got {self.relation!r}."
            )
        if not np.isfinite(self.level):
            raise ValueError(f"level must be finite; got {self.level}.")

    @classmethod
    def read(cls, text: str) -> Threshold:
        """The threshold that a text such as `bili > 2` says.

        Blanks may stand anywhere, and names may hold blanks.

        Raises:
            ValueError: with the text, if it says none.
        """
        found = TEXT.fullmatch(text)
        rule = "threshold must be a column, one of >, >=, < and <=, and a number, as in 'bili > 2'"
        try:
            if found is None:
                raise ValueError("no relation")
            return cls(found["feature"], found["relation"], float(found["level"]))
        except ValueError as error:
            raise ValueError(f"{rule}; got {text!r}.") from error

    def place(self, names: Labels) -> int:
        """The number of the feature among those of a table.

        Raises:
            ValueError: if the table has no such feature.
        """
        if self.feature not in names.features:
            raise ValueError(
                f"threshold must name one of the columns {[*names.features]}; got "
                f"{self.feature!r} in {str(self)!r}."
            )
        return names.features.index(self.feature)

    def beyond(self, values: Float[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
        """Where values of the feature are beyond the level."""
        return RELATIONS[self.relation](values, self.level)

    @property
    def side(self) -> str:
        """The relation and the level, without the feature."""
        return f"{self.relation} {self.level:.15g}"

    def __str__(self) -> str:
        return f"{self.feature} {self.side}"

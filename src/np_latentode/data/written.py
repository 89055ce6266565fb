"""Tables from trajectories: a row for each observed time."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from np_latentode.data.frames import to_native
from np_latentode.data.given import Given, table_times, table_values
from np_latentode.data.inputs import Inputs
from np_latentode.data.labels import Labels
from np_latentode.data.limits import limit_text
from np_latentode.data.long_tables import merged

__all__ = ["cells_as_texts", "to_rows"]


def to_rows(
    given: Given,
    mask: np.ndarray,
    labels: Labels,
    static: np.ndarray | None,
    inputs: Inputs | None,
    *,
    backend: Any,
) -> Any:
    """A table with a row for each observed time, empty where a feature was not observed.

    What is given at an observed time is in its row; what is given at another has its own row.
    """
    i, k = np.nonzero(mask.any(-1))
    every = [table_values(given, labels)]
    every += [] if given.error is None else [given.error]
    every += [] if given.limits is None else [given.limits.lower, given.limits.upper]
    seen = np.concatenate([np.where(mask, cells, np.nan)[i, k] for cells in every], axis=-1)
    times, rest = table_times(given, labels)[i, k], {}
    if inputs is not None:
        own = inputs.table_times
        own = labels.calendar(inputs.given_times) if own is None else own
        n, row = np.nonzero(~np.isnan(inputs.given_values).all(-1))
        i, times, seen, amounts = merged(
            (i, times, seen), (n, own[n, row], inputs.given_values[n, row])
        )
        rest = {name: amounts[:, j] for j, name in enumerate(labels.inputs)}
    cells = _cell_columns(np.split(seen, len(every), axis=1), given.error is not None, labels)
    columns = {
        labels.id: [labels.ids[n] for n in i],
        labels.time: times,
        **_static_columns(static, labels, i),
        **cells,
        **rest,
    }
    numbers = [name for name, some in zip(labels.static, labels.levels, strict=True) if not some]
    numbers += [name for name, column in cells.items() if isinstance(column, np.ndarray)]
    return to_native(columns, labels, (*numbers, *rest), backend)


def _cell_columns(
    every: Sequence[np.ndarray], errors: bool, labels: Labels
) -> dict[str, np.ndarray | list[str | None]]:
    """The columns of values and of their standard errors.

    Args:
        every: values, standard errors if there are some, and both bounds of limits if there are
            some; each (row, feature).
        errors: whether there are standard errors.
        labels: their names.
    """
    values, found = every[0], {}
    limits = every[-2:] if len(every) > 2 else ()
    for j, name in enumerate(labels.features):
        found[name] = cells_as_texts(values[:, j], *(bounds[:, j] for bounds in limits))
    for j, name in _error_columns(labels).items() if errors else ():
        found[name] = every[1][:, j]
    return found


def _error_columns(labels: Labels) -> dict[int, str]:
    """The name of the column of standard errors of each feature that has one.

    A long table has one column for all features. Each feature then has one of its own,
    `{feature}_{column}`. A name that another column has is numbered, as in sd_2.
    """
    counts, found = Counter(labels.error), {}
    taken = {labels.id, labels.time, *labels.features, *labels.static, *labels.inputs}
    pairs = [*enumerate(zip(labels.features, labels.error, strict=False))]
    # First those that keep their names.
    for j, (feature, column) in sorted(pairs, key=lambda pair: counts[pair[1][1]] > 1):
        if column:
            wanted = column if counts[column] == 1 else f"{feature}_{column}"
            names = itertools.chain([wanted], (f"{wanted}_{k}" for k in itertools.count(2)))
            found[j] = next(name for name in names if name not in taken)
            taken.add(found[j])
    return dict(sorted(found.items()))


def cells_as_texts(
    values: np.ndarray, lower: np.ndarray | None = None, upper: np.ndarray | None = None
) -> np.ndarray | list[str | None]:
    """The cells of a column: numbers, or if some are limits, texts, None where empty."""
    if lower is None or upper is None or np.isnan(lower).all():
        return values
    plain = (None if np.isnan(x) else repr(float(x)).removesuffix(".0") for x in values)
    pairs = zip(plain, zip(lower, upper, strict=True), strict=True)
    return [text if np.isnan(pair[0]) else limit_text(*pair) for text, pair in pairs]


def _static_columns(
    static: np.ndarray | None, labels: Labels, of: np.ndarray
) -> dict[str, list[Any] | np.ndarray]:
    """The static covariates of these trajectories, as the table has them."""
    found: dict[str, list[Any] | np.ndarray] = {}
    for c, (name, levels) in enumerate(zip(labels.static, labels.levels, strict=True)):
        numbers = np.asarray(static)[of, c]
        texts = [None if np.isnan(x) else levels[int(x)] for x in numbers] if levels else []
        found[name] = texts if levels else numbers
    return found

"""Column names as they are typed: several in one text, separated by commas."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from np_latentode.data.covariates import KINDS as KINDS_OF_STATIC
from np_latentode.data.files import read_names
from np_latentode.data.inputs import CONSTANT, KINDS as KINDS_OF_INPUTS, asked_kinds

__all__ = ["named_errors", "named_kinds", "named_values", "split_names"]


def named_values(
    data: Path,
    values: Sequence[str] | None,
    log: Sequence[str] | None,
    static: Sequence[str] | None = None,
    inputs: Sequence[str] | None = None,
    **names: Any,
) -> dict[str, Any]:
    """The arguments `values`, `log`, `static` and `inputs` of `fit_table`, from texts with commas.

    Args:
        data: the table. It is read if there are commas.
        values, log, static, inputs: the texts. An input may have its kind, as in dose=event.
        names: the arguments id, time, feature and value.
    """

    def known() -> list[str]:
        # The columns of a wide table need no column of values to be listed.
        own = names if names["feature"] is not None else names | {"values": [*(values or ())]}
        return read_names(data, **own)

    def columns() -> list[str]:
        own = names | {"feature": None, "value": None}
        return read_names(data, **own, values=[names["value"] or "values"])

    def with_kinds(kinds: Sequence[str]) -> list[str]:
        return [x for name in columns() for x in (name, *(f"{name}={kind}" for kind in kinds))]

    split = split_names("values", values, known)
    found: dict[str, Any] = {"values": split}
    found["log"] = split_names("log", log, lambda: split or known())
    # Those that are not given are left out.
    if static is not None:
        names_of_static = split_names("static", static, lambda: with_kinds(KINDS_OF_STATIC))
        found["static"] = _with_kinds(names_of_static)
    if inputs is not None:
        given = split_names("inputs", inputs, lambda: with_kinds(KINDS_OF_INPUTS))
        found["inputs"] = _input_kinds(given, columns)
    return found


def _with_kinds(names: Sequence[str]) -> dict[str, str | None]:
    """Names of static covariates, such as age and diet=category, with what they are."""
    found: dict[str, str | None] = {}
    for name in names:
        column, _, kind = name.rpartition("=")
        found |= {column: kind} if column and kind in KINDS_OF_STATIC else {name: None}
    return found


def named_kinds(given: Sequence[str] | None) -> dict[str, str]:
    """The argument `kind` of `fit_table`, from texts such as edema=bernoulli,seizures=counts.

    A name may hold commas, and may be quoted. Blanks around names and kinds are left out.

    Raises:
        ValueError: if a text names no kind, or a name comes twice.
    """
    return _pairs("kind", "column=kind", "edema=bernoulli", given)


def named_errors(given: Sequence[str] | None) -> dict[str, str]:
    """The argument `error` of `fit_table`, from texts such as bili=bili_sd,albumin=albumin_sd.

    Names are as in `named_kinds`; that of a column of errors must not be quoted.
    """
    return _pairs("error", "column=column of its errors", "bili=bili_sd", given)


def _pairs(option: str, rule: str, example: str, given: Sequence[str] | None) -> dict[str, str]:
    """Pairs of names in the texts of an option."""
    pairs: dict[str, str] = {}
    for text in given or ():
        pieces: list[str] = []
        for piece in text.split(","):
            pieces.append(piece)
            if "=" not in piece:
                continue
            name, _, other = ",".join(pieces).rpartition("=")
            name = name.strip()
            if len(name) > 1 and name.startswith('"') and name.endswith('"'):
                name = name[1:-1]
            if name in pairs:
                raise ValueError(f"{option} must name each column once; got {name!r} twice.")
            pairs[name], pieces = other.strip(), []
        if pieces:
            raise ValueError(
                f"{option} must be {rule}, separated by commas, as in {example}; got {text!r}."
            )
    return pairs


def _input_kinds(texts: Sequence[str], columns: Callable[[], Sequence[str]]) -> dict[str, str]:
    """The argument `inputs` of `fit_table`, from texts such as treated and dose=event.

    Raises:
        ValueError: if a kind is none, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, given, kind = (part.strip() for part in text.rpartition("="))
        # A name may hold the sign itself.
        if not (given and name) or (kind not in KINDS_OF_INPUTS and text in columns()):
            name, kind = text, CONSTANT
        if name in found:
            raise ValueError(f"inputs must name each column once; got {name!r} twice.")
        found[name] = kind
    return asked_kinds(found)


def split_names(
    option: str, given: Sequence[str] | None, known: Callable[[], Sequence[str]]
) -> list[str]:
    """The names in the texts of an option.

    A name may hold commas itself: if it is quoted, as in '"a,b",c', or if the table has it. Blanks
    around a name are left out.

    Args:
        option: the name of the option.
        given: its texts.
        known: returns the names that the table has; it is called if there are commas.

    Raises:
        ValueError: naming the option, if there is nothing on one side of a comma, quotes are not
            closed, or a text can be split in several ways.
    """
    return [name for text in given or () for name in _split(option, text, known)]


def _split(option: str, text: str, known: Callable[[], Sequence[str]]) -> list[str]:
    pieces = text.split(",")
    if any(piece.strip().startswith('"') for piece in pieces):
        try:
            [pieces] = csv.reader([text], strict=True, skipinitialspace=True)
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"{option} must close each quote at the end of a name; got {text!r}."
            ) from error
        ways = []
    else:
        ways = _ways(pieces, {*known()}) if len(pieces) > 1 else []
    if len(ways) > 1:
        raise ValueError(
            f"{option} must name columns in one way; got {text!r}, which may mean {ways[0]} or "
            f"{ways[1]}. Quote a name that holds commas, or repeat the option for each name."
        )
    names = ways[0] if ways else [piece.strip() for piece in pieces]
    if "" in names:
        raise ValueError(f"{option} must be names separated by commas; got {text!r}.")
    return names


def _ways(pieces: Sequence[str], known: set[str]) -> list[list[str]]:
    """All ways to join neighbouring pieces into known names."""
    if not pieces:
        return [[]]
    names = [",".join(pieces[:k]).strip() for k in range(1, len(pieces) + 1)]
    return [
        [name, *rest]
        for k, name in enumerate(names, 1)
        if name in known
        for rest in _ways(pieces[k:], known)
    ]

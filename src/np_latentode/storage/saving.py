"""Fits and ensembles on disk: `save` and `load`."""

from __future__ import annotations

import json
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from np_latentode.parts.likelihoods import Likelihood
from np_latentode.parts.modules import Part
from np_latentode.parts.solve import Solver
from np_latentode.programs.bands import Bands
from np_latentode.programs.ensemble import Ensemble, check_fit
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import initial_params
from np_latentode.storage.arrays import fill, read, write
from np_latentode.storage.descriptions import build, describe

__all__ = ["FIT", "describe_parts", "load", "save"]

FIT = "fit"
"""The name of a fit's directory in the output directory of `np-latentode fit`."""

OF_MODEL = ("dynamics", "decoder", "prior", "likelihood", "solver", "shift", "jump")
OF_GUIDE = ("encoder", "posterior")


def save(path: str | PathLike[str], fitted: Fitted | Ensemble) -> None:
    """Writes a fit or an ensemble into a new directory, whole or not at all; `load` reads it.

    The directory holds the parameters, the units, the column names of the training table, and the
    name and constructor arguments of each part. It holds no ids, no data and no history. Of an
    ensemble, it holds the weights and all members.

    Args:
        path: the new directory.
        fitted: the fit, or the ensemble.

    Raises:
        ValueError: if `path` exists.
        OSError: if the directory cannot be written; then nothing is at `path`.
    """
    if isinstance(fitted := check_fit(fitted), Fitted):
        settings = {"kind": "fit", "parts": describe_parts(fitted.model, fitted.guide)}
        return write(Path(path), fitted.params, settings)
    parts = [describe_parts(one.model, one.guide) for one in fitted.members]
    settings = {"kind": "ensemble", "weights": fitted.weights.tolist(), "members": parts}
    settings["bands"] = None if fitted.bands is None else fitted.bands.widths.tolist()
    settings["folds"] = None if fitted.folds is None else [*map(int, fitted.folds)]
    write(Path(path), [one.params for one in fitted.members], settings)


def load(
    path: str | PathLike[str],
    *,
    dynamics: Part | None = None,
    decoder: Part | None = None,
    prior: Part | None = None,
    likelihood: Likelihood | None = None,
    solver: Solver | None = None,
    encoder: Part | None = None,
    posterior: Part | None = None,
    shift: Part | None = None,
    jump: Part | None = None,
) -> Fitted | Ensemble:
    """Reads a fit or an ensemble that `save` wrote. The files hold no code.

    Args:
        path: the directory; or the output directory of `np-latentode fit`, which holds one.
        dynamics, decoder, prior, likelihood, solver, encoder, posterior, shift, jump: parts of your
            own, built as they were for training. An error names a missing one. The library's own
            parts need not be given. All members of an ensemble get the same.

    Raises:
        ValueError: if `path` holds no fit, if the fit is damaged, if a part of your own is missing,
            or if a part has other parameters than the saved one.
    """
    path = Path(path)
    if (path / FIT).is_dir():
        path = path / FIT
    arrays, settings = read(path)
    if settings.get("kind") not in ("fit", "ensemble"):
        raise ValueError(f"{path} must be what `save` wrote; got a {settings.get('kind')}.")
    given = dict(dynamics=dynamics, decoder=decoder, prior=prior, likelihood=likelihood)
    given |= dict(solver=solver, encoder=encoder, posterior=posterior, shift=shift, jump=jump)
    ensemble = settings["kind"] == "ensemble"
    try:
        descriptions = settings["members"] if ensemble else [settings["parts"]]
        pairs = _build_pairs(path, descriptions, given)
        of_all = ("weights", "bands", "folds")
        weights, widths, folds = (settings[k] if ensemble else None for k in of_all)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be of this version of np_latentode; got a description that does not fit "
            f"its parts: {error}."
        ) from error
    if not ensemble:
        return Fitted(*pairs[0], fill(initial_params(*pairs[0]), arrays, name="path"))
    params = fill([initial_params(*pair) for pair in pairs], arrays, name="path")
    members = [Fitted(*pair, own) for pair, own in zip(pairs, params, strict=True)]
    bands = None if widths is None else Bands(widths)
    return Ensemble(tuple(members), weights, bands, None if folds is None else tuple(folds))


def _build_pairs(
    path: Path, descriptions: list[dict[str, Any]], given: dict[str, Any]
) -> list[tuple[LatentODE, AmortizedGuide]]:
    """Model and guide of each description; equal descriptions share theirs, and so compile once."""
    made: dict[str, tuple[LatentODE, AmortizedGuide]] = {}
    names = [json.dumps(description, sort_keys=True) for description in descriptions]
    for name, description in zip(names, descriptions, strict=True):
        if name not in made:
            parts = _build_parts(path, description, given)
            scaling = parts["scaling"]
            model = LatentODE(**{part: parts[part] for part in OF_MODEL}, scaling=scaling)
            guide = AmortizedGuide(**{part: parts[part] for part in OF_GUIDE}, scaling=scaling)
            made[name] = (model, guide)
    return [made[name] for name in names]


def _build_parts(path: Path, descriptions: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The parts that were given, and the others built from their descriptions."""
    parts = {"scaling": build(descriptions["scaling"])}
    for name, part in given.items():
        description = descriptions[name]
        own = isinstance(description, dict) and description.get("own")
        if own and part is None:
            raise ValueError(
                f"{name} must be given, as it was trained with a part of your own, {own}: "
                f"load({str(path)!r}, {name}=...)."
            )
        parts[name] = build(description) if part is None else part
    return parts


def describe_parts(model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """The parts of model and guide as JSON. A user's own part is described by its name only."""
    # Ids are left out: they may be personal data, and not all of them can be written as JSON.
    labels = model.scaling.labels and replace(model.scaling.labels, ids=(), starts=())
    parts: dict[str, Any] = {"scaling": describe(replace(model.scaling, labels=labels))}
    for program, names in ((model, OF_MODEL), (guide, OF_GUIDE)):
        for name in names:
            part = getattr(program, name)
            try:
                parts[name] = describe(part)
            except TypeError:
                parts[name] = {"own": getattr(part, "__name__", type(part).__name__)}
    return parts

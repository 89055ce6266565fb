"""Finished models on disk, and back."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.handlers as handlers

from np_latentode.checkpoints import fill, named_leaves, read, write
from np_latentode.descriptions import build, describe
from np_latentode.guide import AmortizedGuide
from np_latentode.likelihoods import Likelihood
from np_latentode.model import LatentODE
from np_latentode.modules import Part
from np_latentode.prediction import check_params
from np_latentode.solve import Solver

__all__ = ["describe_parts", "initial_params", "load", "save"]

OF_MODEL = ("dynamics", "decoder", "prior", "likelihood", "solver")
OF_GUIDE = ("encoder", "posterior")


def save(
    path: str | PathLike[str], model: LatentODE, guide: AmortizedGuide, params: dict[str, Any]
) -> None:
    """Writes a fit into a new directory, from which `load` makes it anew: as a whole or not at all.

    It holds the parameters, the units with what the table trained on called its columns, and of
    each part its name and its constructor's arguments; no ids and no data.

    Args:
        path: where; nothing may be there.
        model, guide, params: as fitted.

    Raises:
        ValueError: if something is at `path`, or params are those of no fit.
        OSError: if it cannot be written.
    """
    check_params(params, model, guide)
    # What could not be loaded is not saved.
    fill(initial_params(model, guide), named_leaves(params), name="params")
    write(Path(path), params, {"kind": "fit", "parts": describe_parts(model, guide)})


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
) -> tuple[LatentODE, AmortizedGuide, dict[str, Any]]:
    """Model, guide and params as they were saved. No code is read from the files, and so none run.

    Args:
        path: where `save` wrote.
        dynamics, decoder, prior, likelihood, solver, encoder, posterior: those parts that are not
            this library's own, made as they were for `latent_ode`; it says which they are.

    Raises:
        ValueError: if there is no fit at `path`, if it is damaged, if a part of your own is not
            given, or if what is given has other parameters than those saved.
    """
    arrays, settings = read(Path(path))
    if settings.get("kind") != "fit":
        raise ValueError(f"{path} must be what `save` wrote; got a {settings.get('kind')}.")
    given: dict[str, Any] = {
        "dynamics": dynamics,
        "decoder": decoder,
        "prior": prior,
        "likelihood": likelihood,
        "solver": solver,
        "encoder": encoder,
        "posterior": posterior,
    }
    try:
        parts = {"scaling": build(settings["parts"]["scaling"])}
        for name, part in given.items():
            description = settings["parts"][name]
            own = isinstance(description, dict) and description.get("own")
            if own and part is None:
                raise ValueError(
                    f"{name} must be given, as it was trained with a part of your own, {own}: "
                    f"load({str(path)!r}, {name}=...)."
                )
            parts[name] = build(description) if part is None else part
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be of this version of np_latentode; got a description that does not fit "
            f"its parts: {error}."
        ) from error
    scaling = parts["scaling"]
    model = LatentODE(**{name: parts[name] for name in OF_MODEL}, scaling=scaling)
    guide = AmortizedGuide(**{name: parts[name] for name in OF_GUIDE}, scaling=scaling)
    return model, guide, fill(initial_params(model, guide), arrays, name="path")


def describe_parts(model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """What model and guide are made of, as JSON; of parts that are a user's own, the name only."""
    # Who was trained on is nobody's business, and ids may be anything.
    labels = model.scaling.labels and replace(model.scaling.labels, ids=())
    parts: dict[str, Any] = {"scaling": describe(replace(model.scaling, labels=labels))}
    for program, names in ((model, OF_MODEL), (guide, OF_GUIDE)):
        for name in names:
            part = getattr(program, name)
            try:
                parts[name] = describe(part)
            except TypeError:
                parts[name] = {"own": getattr(part, "__name__", type(part).__name__)}
    return parts


def initial_params(model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """Parameters before any training, by their sites."""
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        model._bind()
        guide._bind()
    values = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    return jax.tree.map(jnp.asarray, values)

"""Parts as JSON, and back: the name and the arguments of a constructor, no code."""

from __future__ import annotations

import inspect
from typing import Any

import diffrax
import numpy as np
from flax import nnx

from np_latentode.data.covariates import Covariates
from np_latentode.data.input_units import InputUnits
from np_latentode.data.labels import Labels
from np_latentode.data.offset import Offset
from np_latentode.data.scaling import Scaling
from np_latentode.parts import (
    decoder,
    dynamics,
    encoders,
    jumps,
    likelihoods,
    posteriors,
    priors,
    regression,
    residuals,
    shifts,
)
from np_latentode.parts.solve import Solver

__all__ = ["build", "describe"]

PARTS = (
    decoder,
    dynamics,
    encoders,
    jumps,
    likelihoods,
    posteriors,
    priors,
    regression,
    residuals,
    shifts,
)
KINDS = {
    name: kind
    for module in PARTS
    for name in module.__all__
    if isinstance(kind := getattr(module, name), type)
} | {kind.__name__: kind for kind in (Scaling, Solver, Labels, Offset, Covariates, InputUnits)}

DIFFRAX = (diffrax.AbstractSolver, diffrax.AbstractStepSizeController, diffrax.AbstractAdjoint)


def describe(thing: Any) -> Any:
    """Describes a part as JSON, so that `build` can make it again.

    A description names a constructor of this library or of diffrax, and its arguments. The value of
    an argument is that of the attribute of the same name.

    Raises:
        TypeError: if it is no such part, for example one of your own, or if it holds one.
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if isinstance(thing, (list, tuple, nnx.List)):
        return [describe(item) for item in thing]
    if isinstance(thing, np.datetime64):
        return {"date": str(thing)}
    if isinstance(thing, np.generic):
        return thing.item()
    if hasattr(thing, "__array__"):
        return {"array": np.asarray(thing).tolist()}
    return _describe_part(thing)


def _describe_part(thing: Any) -> dict[str, Any]:
    name = type(thing).__name__
    if type(thing) is not _kind(name):
        raise TypeError(f"{name} is not one of this library's parts")
    arguments = {}
    for parameter in _parameters(type(thing)):
        if parameter.name == "rngs":
            continue
        if not hasattr(thing, parameter.name):
            raise TypeError(f"{name} cannot be described, as it was made from other objects")
        value = getattr(thing, parameter.name)
        # Defaults are written as well, as those of another version may differ. Functions cannot be
        # written; some are defaults of diffrax.
        if not (value is parameter.default and callable(value)):
            arguments[parameter.name] = describe(value)
    return {"made by": name, "from": arguments}


def build(description: Any) -> Any:
    """Builds a part from its description; its networks have new initial weights.

    Raises:
        ValueError: if the description does not name a part of this library or of diffrax.
    """
    if isinstance(description, list):
        return tuple(build(item) for item in description)
    if not isinstance(description, dict):
        return description
    if "date" in description:
        return np.datetime64(description["date"])
    if "array" in description:
        return np.asarray(description["array"], dtype=float)
    kind = _kind(str(description.get("made by")))
    if kind is None:
        raise ValueError(f"a description must name a part of this library; got {description}.")
    arguments = {name: build(value) for name, value in description["from"].items()}
    positional: tuple[Any, ...] = ()
    for parameter in _parameters(kind):
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional = arguments.pop(parameter.name)
        elif parameter.name == "rngs":
            arguments["rngs"] = nnx.Rngs(0)
    return kind(*positional, **arguments)


def _kind(name: str) -> type | None:
    if name in KINDS:
        return KINDS[name]
    kind = getattr(diffrax, name, None)
    return kind if isinstance(kind, type) and issubclass(kind, DIFFRAX) else None


def _parameters(kind: type) -> list[inspect.Parameter]:
    # Of `__init__`, as the metaclass of flax modules accepts any arguments.
    init: Any = kind.__init__
    return [] if init is object.__init__ else list(inspect.signature(init).parameters.values())[1:]

"""Export: the forecasts of a fit as one program that runs without this package."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array

from np_latentode.data.atomic import write_bytes
from np_latentode.data.checks import check_counts
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import amortized
from np_latentode.forecasts.prediction import check_reach, draw_given
from np_latentode.programs.ensemble import Ensemble, check_fit, members_of, with_solver
from np_latentode.programs.fitted import Fitted

__all__ = ["export_forecast"]

PLATFORMS = ("cpu", "cuda", "tpu")
"""Of which a program holds the code."""


def export_forecast(
    path: str | os.PathLike[str],
    fitted: Fitted | Ensemble,
    *,
    num_seen: int,
    num_times: int,
    latest: float,
    num_samples: int = 200,
) -> None:
    """Writes `forecast` by the guide as a StableHLO program, which JAX alone can run.

    The program takes any number of trajectories:

    seed (2,), times (trajectory, seen), values (trajectory, seen, feature), mask like values,
    asked (trajectory, time) -> {x_mean, x}, each (trajectory, draw, time, feature)

    With static covariates, the last argument is static (trajectory, covariate), as
    `Trajectories.static`. `seed` is `jax.random.key_data(key)`. Times and values are those of
    `Trajectories`: numbers as they are modelled, logarithms where the table was read so. All times,
    and values, are less the offset that is written beside; it is mostly 0. What is returned is in
    the units of the table. Slots whose mask is False are not read. Where a solve fails, draws are
    NaN. Every value counts as exact: errors and limits have no argument. To run it:

        from jax import export
        program = export.deserialize(open("forecast.stablehlo", "rb").read())
        draws = program.call(seed, times, values, mask, asked)

    `{path}.json` says the shapes, names, categories, offsets and clocks of all arguments.

    Args:
        path: the file of the program.
        fitted: the fit; or an `Ensemble`, with its bands.
        num_seen: the slots for observations of a trajectory.
        num_times: the times that are asked for.
        latest: the latest of these, in original units. The solver takes steps up to it.
        num_samples: draws per trajectory.

    Raises:
        ValueError: naming the argument, the rule and what came; also for a fit that reads inputs or
            standard errors.
        ImportError: if the package flatbuffers is missing.
        OSError: if a file cannot be written; an earlier one is kept then.
    """
    check_fit(fitted)
    check_counts(num_seen=num_seen, num_times=num_times, num_samples=num_samples)
    if not np.isfinite(latest):
        raise ValueError(f"latest must be a finite time; got {latest}.")
    scaling = fitted.scaling
    if scaling.inputs is not None:
        raise ValueError(
            "fitted must read no inputs, as their plan has no place among the arguments of the "
            f"program; got a fit with {', '.join(scaling.inputs.names)}."
        )
    if scaling.labels and (errors := scaling.labels.errors):
        raise ValueError(
            "fitted must read no standard errors, which have no place among the arguments of the "
            f"program; got a fit with {', '.join(errors.values())}."
        )
    check_reach(fitted, np.array([latest]))
    shapes = _shapes(fitted, num_seen, num_times)
    program = partial(_forecasts, _reaching(fitted, latest), num_samples)
    exported = export.export(jax.jit(program), platforms=PLATFORMS)(*shapes.values())
    described = {
        "arguments": {name: [str(shape.shape), str(shape.dtype)] for name, shape in shapes.items()},
        "returns": {"x_mean": "(n, draw, time, feature)", "x": "(n, draw, time, feature)"},
        "offset": {"times": scaling.offset.time, "values": [*scaling.offset.values]},
        "latest": latest,
        **_names(scaling),
    }
    path = Path(path)
    data = bytes(exported.serialize())
    write_bytes(path.with_name(f"{path.name}.json"), json.dumps(described, indent=2).encode())
    write_bytes(path, data)


def _names(scaling: Scaling) -> dict[str, Any]:
    """What the table called its columns, and how it counted time."""
    covariates, named = scaling.covariates, {}
    if covariates is not None:
        # A category is given as its place in this list, a number as it is.
        named["static"] = {
            name: [*levels] or "number"
            for name, levels in zip(covariates.names, covariates.levels, strict=True)
        }
    if (labels := scaling.labels) is None:
        return named
    logged = [name for name, log in zip(labels.features, labels.logged, strict=True) if log]
    origin = None if labels.origin is None else str(labels.origin)
    clock = dict(unit=labels.unit, origin=origin, since=labels.since, span=labels.span)
    return named | {"features": [*labels.features], "logarithms": logged, "clock": clock}


def _shapes(
    fitted: Fitted | Ensemble, num_seen: int, num_times: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arguments of the program, for any number n of trajectories."""
    (n,), number = export.symbolic_shape("n"), jnp.result_type(float)
    features, covariates = len(fitted.scaling.loc), fitted.scaling.covariates
    shapes = {
        "seed": ((2,), jnp.uint32),
        "times": ((n, num_seen), number),
        "values": ((n, num_seen, features), number),
        "mask": ((n, num_seen, features), jnp.bool_),
        "asked": ((n, num_times), number),
    }
    if covariates is not None:
        shapes["static"] = ((n, len(covariates.names)), number)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _reaching(fitted: Fitted | Ensemble, latest: float) -> Fitted | Ensemble:
    """The fit with as many steps as the latest time needs, and without errors at run time."""
    models = {one.model for one in members_of(fitted)}
    at, offset = np.array([[latest - fitted.scaling.offset.time]]), fitted.scaling.offset
    most = max(model.steps_to(at, offset) for model in models)
    return with_solver(fitted, throw=False, max_steps=most)


def _forecasts(
    fitted: Fitted | Ensemble,
    num_samples: int,
    seed: Array,
    times: Array,
    values: Array,
    mask: Array,
    asked: Array,
    static: Array | None = None,
) -> dict[str, Array]:
    """Forecasts of each trajectory by itself: its draws depend on no other one but by its place."""
    rest, key = {"offset": fitted.scaling.offset}, jax.random.wrap_key_data(seed)

    def of_one(place: Array, *arrays: Any) -> dict[str, Array]:
        when, x, seen, at, s = jax.tree.map(lambda array: array[None], arrays)
        arrays = (when, jnp.where(seen, x, 0.0), seen, s, None, None, None)
        context = Trajectories.tree_unflatten(rest, arrays)
        options: Any = dict(inference=amortized, num_samples=num_samples)
        draws = draw_given(jax.random.fold_in(key, place), fitted, context, at, **options)
        return {name: draws[name][:, 0] for name in ("x_mean", "x")}

    places = jnp.arange(times.shape[0])
    return jax.vmap(of_one)(places, times, values, mask, asked, static)

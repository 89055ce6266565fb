"""The plate of model and guide, and checks of their arguments."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.limits import Limits
from np_latentode.data.numbers import Numbers, as_doubles, as_floats, is_concrete
from np_latentode.data.offset import Offset
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.likelihoods import check_observed

__all__ = [
    "check_batch",
    "check_call",
    "check_context",
    "check_data",
    "check_new",
    "check_trajectories",
    "less_offset",
    "limits_less",
    "prediction_times",
    "subsample",
    "trajectory_plate",
]


def check_call(
    context: Any, target: Any, *, batch_size: int | None, kl_weight: ArrayLike, scaling: Scaling
) -> tuple[Trajectories, Trajectories | Array]:
    """Checks the arguments of a call of model or guide.

    Returns:
        The context; and the target: observed trajectories, or times (trajectory, time) to predict,
        less the context's offset.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    context = check_context(context, scaling)
    if target is None:
        target = context
    elif isinstance(target, Trajectories):
        if len(target) != len(context):
            raise ValueError(
                f"target must have as many trajectories as the context, {len(context)}; "
                f"got {len(target)}."
            )
        scaling.check(target, name="target")
        target = target.at_offset(scaling.offset)
    else:
        of = context.offset
        target = prediction_times(target, len(context), scaling, offset=of, name="target")
        if batch_size is not None:
            raise ValueError(
                "batch_size must be None if target is an array of times, as model and guide would "
                f"pick different trajectories; got {batch_size}."
            )
    whole = isinstance(batch_size, int) and 1 <= batch_size <= len(context)
    if batch_size is not None and not whole:
        raise ValueError(
            "batch_size must be an integer from 1 to the number of trajectories, "
            f"{len(context)}; got {batch_size!r}."
        )
    if is_concrete(kl_weight) and not np.all(np.asarray(kl_weight) > 0):
        raise ValueError(f"kl_weight must be positive; got {kl_weight}.")
    return context, target


def check_trajectories(given: Any, *, name: str) -> Trajectories:
    """The trajectories, or a ValueError that says what came instead."""
    if not isinstance(given, Trajectories):
        raise ValueError(f"{name} must be Trajectories; got {type(given).__name__}.")
    return given


def check_context(context: Any, scaling: Scaling, *, name: str = "context") -> Trajectories:
    """Refuses a context that the guide cannot encode.

    Returns:
        The context, less the offset of the scaling where its numbers are known.

    Raises:
        ValueError: naming the rule and what came.
    """
    scaling.check(check_trajectories(context, name=name), name=name)
    return context.at_offset(scaling.offset)


def check_data(
    model: Any, context: Any, target: Any = None, *, targets: bool = False
) -> tuple[Trajectories, Any]:
    """Refuses trajectories that a model cannot explain, before anything is compiled.

    Args:
        model: a `LatentODE`.
        context: the observations that z0 is inferred from.
        target: the observations of the same trajectories that are explained. Default: the context.
        targets: whether a target with at least one observation is required.

    Returns:
        Context and target, less the offset of the scaling where their numbers are known.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    if target is not None or targets:
        target = check_trajectories(target, name="target")
        if targets and not bool(target.mask.any()):
            raise ValueError("target must hold at least one observation; got none.")
    context, asked = check_call(
        context, target, batch_size=None, kl_weight=1.0, scaling=model.scaling
    )
    check_observed(model.likelihood, context, name="context")
    if target is None:
        return context, None
    if isinstance(asked, Trajectories):
        check_observed(model.likelihood, asked, name="target")
        if model.remembers:
            check_new(context, asked)
    return context, asked


def check_new(context: Trajectories, target: Trajectories) -> None:
    """Refuses a target that repeats observations of the context, where their numbers are known.

    It is needed under a likelihood that remembers: it would take them for further observations.

    Raises:
        ValueError: with the number of those that are repeated.
    """
    if not is_concrete(context.times, context.mask, target.times, target.mask):
        return
    if context.mask.shape == target.mask.shape:
        (t, x, *_), (s, y, *_) = context.given, target.given
        both = np.asarray(context.mask) & np.asarray(target.mask)
        count = int((both & (t == s)[..., None] & (x == y)).sum())
    else:
        count = len(np.intersect1d(_entries(context), _entries(target)))
    if count:
        raise ValueError(
            "target must hold no observations of the context, as the likelihood remembers those; "
            f"got {count} of them. Split the data with `before` and `after`, or with `split`."
        )


def _entries(trajectories: Trajectories) -> np.ndarray:
    """The observed values, each with its trajectory, feature and time, as records."""
    times, values, *_ = trajectories.given
    i, k, j = np.nonzero(np.asarray(trajectories.mask))
    return np.rec.fromarrays([i, j, times[i, k], values[i, k, j]])


def prediction_times(
    times: Numbers, num_trajectories: int, scaling: Scaling, *, offset: Offset, name: str
) -> Float[Array, "trajectory time"]:
    """The times to predict, one row per trajectory, less the offset.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    known = is_concrete(times)
    at = (as_doubles if known else as_floats)(name, times)
    allowed = (at.shape[-1:], (num_trajectories, *at.shape[-1:]))
    if at.size == 0 or at.ndim == 0 or at.shape not in allowed:
        kind = "Trajectories or times" if name == "target" else "times"
        raise ValueError(
            f"{name} must be {kind} of shape (time,) or ({num_trajectories}, time); "
            f"got an array of shape {at.shape}."
        )
    scaling.check_times(at, name=name)
    at = as_floats(name, at - offset.time)
    return jnp.broadcast_to(at, (num_trajectories, at.shape[-1]))


def less_offset(trajectories: Trajectories, offset: Offset) -> tuple[Array, Array]:
    """Times and values less another offset, also where their numbers are not known."""
    own = trajectories.offset
    if own == offset:
        return trajectories.times, trajectories.values
    row = jnp.asarray(own.row - offset.row, trajectories.values.dtype)
    values = jnp.where(trajectories.mask, trajectories.values + row, 0.0)
    return trajectories.times + (own.time - offset.time), values


def limits_less(trajectories: Trajectories, offset: Offset) -> Limits | None:
    """Limits less another offset, as `less_offset` gives the values."""
    own, limits = trajectories.offset, trajectories.limits
    if limits is None or own == offset:
        return limits
    row = jnp.asarray(own.row - offset.row, trajectories.values.dtype)
    return limits.each(lambda bounds: bounds + row)


def trajectory_plate(context: Trajectories, batch_size: int | None) -> numpyro.plate:
    """The plate `trajectory`, the same in model and guide.

    With a batch size, it draws that many trajectories at random, and scales their log densities up
    to the size of the data.
    """
    return numpyro.plate("trajectory", len(context), subsample_size=batch_size, dim=-1)


def check_batch(sites: dict[str, Any]) -> None:
    """Refuses z0 that come from outside, as from `Predictive`, for trajectories drawn here.

    They would be those of other trajectories.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    plate, z0 = sites["trajectory"], sites["z0"]
    size, count = plate["args"]
    if count is None or count == size:
        return
    # The handler `seed` gives a key to what is to be drawn.
    drawn = {site["name"] for site in (plate, z0) if site["kwargs"].get("rng_key") is not None}
    if drawn == {"trajectory"}:
        raise ValueError(
            "batch_size must be left out where z0 is given, as in Predictive: the given z0 are of "
            f"other trajectories than those drawn; got batch_size {count} of {size}."
        )


def subsample(data: Trajectories | Array) -> Any:
    """The trajectories that the enclosing plate has drawn."""
    if isinstance(data, Trajectories):
        return jax.tree.map(subsample, data)
    return numpyro.subsample(data, event_dim=data.ndim - 1)

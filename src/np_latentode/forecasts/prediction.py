"""Draws of z0 and x from a fit: forecasts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.buckets import batches, trimmed
from np_latentode.data.checks import check_counts
from np_latentode.data.inputs import Inputs, warn_of_held
from np_latentode.data.labels import Labels
from np_latentode.data.numbers import Numbers, is_concrete
from np_latentode.data.offset import Offset
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes, prior
from np_latentode.forecasts.densities import (
    DRAWS_AT_ONCE,
    both,
    nothing_seen,
    observed_times,
    run_given,
)
from np_latentode.forecasts.mixture import join, widened
from np_latentode.parts.devices import TRAJECTORY, check_mesh, divided, gathered, on_mesh
from np_latentode.parts.solve import Solver
from np_latentode.programs.ensemble import (
    Ensemble,
    Share,
    check_fit,
    shares,
    shortest_reach,
    with_solver,
)
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import (
    check_context,
    less_offset,
    limits_less,
    prediction_times,
)

__all__ = [
    "as_measured",
    "check_reach",
    "decode",
    "decode_observed",
    "draw_forecast",
    "draw_given",
    "draw_observed",
    "draw_x",
    "forecast",
    "forecast_observed",
    "in_table_units",
    "mean_and_x",
    "prior_predictive",
    "warn_of_inputs",
]

ERRORS = 2**31 - 1
"""What is folded into the key of draws, for the errors of measurements."""

Reading = Callable[[dict[str, Any], Array], dict[str, Array]]
"""`(sites, rng_key) -> arrays`: what is kept of a run of the model given z0. It may draw more."""


def mean_and_x(sites: dict[str, Any], rng_key: Array) -> dict[str, Array]:
    """The curves without and with white noise."""
    return {name: sites[name]["value"] for name in ("x_mean", "x")}


def prior_predictive(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    times: Numbers,
    *,
    static: Numbers | None = None,
    inputs: Inputs | None = None,
    num_samples: int = 200,
) -> dict[str, Any]:
    """Draws of trajectories of which nothing was observed.

    z0 ~ prior,  x_mean = decode(z(t)),  x ~ likelihood

    Args:
        rng_key: a key.
        fitted: the fit; or an `Ensemble`, as in `forecast`.
        times: shape (time,), in original units.
        static: the static covariates, shape (covariate,), as a row of `Trajectories.static`.
            Default: unknown, which counts as the average of the training data.
        inputs: what is given, of one trajectory. Default: nothing.
        num_samples: the number of draws.

    Returns:
        `z0` (draw, latent), and `x_mean` and `x` (draw, time, feature) in the units of the table.
        Of an ensemble also `member` (draw,), as in `forecast`.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fit(fitted)
    check_counts(num_samples=num_samples)
    scaling = fitted.scaling
    at = prediction_times(times, 1, scaling, offset=scaling.offset, name="times")
    check_reach(fitted, times)
    row = None if static is None else scaling.check_row(static)
    given = scaling.check_given(inputs)

    def draw(share: Share) -> dict[str, Any]:
        z0_key, x_key = jax.random.split(share.rng_key)
        z0 = jnp.asarray(prior(share.fitted).sample(z0_key, (1, share.num_samples)))
        rows = jnp.broadcast_to(at, (share.num_samples, at.shape[1]))
        known = None if row is None else jnp.tile(row, (share.num_samples, 1))
        same = None if given is None else given[np.zeros(share.num_samples, int)]
        options: Any = dict(static=known, inputs=same)
        draws = draw_x(x_key, share.fitted, z0, rows, scaling.offset, **options)
        draws = in_table_units(draws, scaling.offset, scaling.labels)
        return {name: values[0] for name, values in draws.items()}

    some = shares(rng_key, fitted, num_samples)
    return join(some, [draw(share) for share in some])


def decode(
    rng_key: Array,
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    times: Float[ArrayLike, "trajectory time"],
    *,
    context: Trajectories | None = None,
    draws_at_once: int = DRAWS_AT_ONCE,
) -> dict[str, Any]:
    """Decodes given z0 at given times: `z0`, `x_mean` and `x`, in the units of the table.

    Args:
        rng_key: a key.
        fitted: the fit.
        z0: draws from any distribution.
        times: in original units.
        context: what was seen of each trajectory, which a likelihood with a residual process
            continues, its static covariates and its inputs. Default: nothing was seen, covariates
            are unknown, and nothing is given.
        draws_at_once: the number of draws solved side by side, which bounds the memory.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    scaling = fitted.model.scaling
    at = prediction_times(times, z0.shape[1], scaling, offset=scaling.offset, name="times")
    if context is not None:
        context = check_context(context, scaling)
        if len(context) != z0.shape[1]:
            raise ValueError(
                f"context must have as many trajectories as z0, {z0.shape[1]}; got {len(context)}."
            )
    draws = draw_x(
        rng_key, fitted, z0, at, scaling.offset, context=context, draws_at_once=draws_at_once
    )
    return in_table_units(draws, scaling.offset, scaling.labels)


def draw_x(
    rng_key: Array,
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    times: Float[Array, "trajectory time"],
    offset: Offset,
    *,
    context: Trajectories | None = None,
    static: Array | None = None,
    inputs: Inputs | None = None,
    slots: tuple[np.ndarray, ...] | None = None,
    draws_at_once: int = DRAWS_AT_ONCE,
    reading: Reading = mean_and_x,
) -> dict[str, Array]:
    """Draws of `z0`, `x_mean` and `x` as they are modelled: all numbers are less the offset.

    They are at all times; or at the given slots only, with one axis (slot,) in place of two. They
    continue what a context shows, if the likelihood remembers it. Static covariates and inputs are
    those of the context; without one, they are `static` and `inputs`, or unknown and none. With
    another `reading`, they are what that keeps.
    """
    model = fitted.model
    if context is not None:
        static, inputs = context.static, context.inputs
    # All other numbers are less the offset, and so their own offset is 0.
    inputs = None if inputs is None else inputs.less(offset.time)
    if context is None or not model.remembers:
        # Without memory, the model uses nothing of the context but its number of trajectories.
        context, latest = nothing_seen(model.less(offset), times, static, inputs), times
    else:
        arrays = (*less_offset(context, offset), context.mask, static, inputs)
        beside = (context.error, limits_less(context, offset))
        context = Trajectories.tree_unflatten({}, (*arrays, *beside))
        latest = both(times, observed_times(model.less(offset), context))
    return _draw_x(
        rng_key,
        fitted,
        z0,
        times,
        context,
        slots,
        offset=offset,
        draws_at_once=min(draws_at_once, len(z0)),
        max_steps=model.steps_to(latest, offset),
        reading=reading,
    )


def as_measured(rng_key: Array, x: Array, error: Array | None) -> Array:
    """Draws of x with the errors of measurements whose standard errors are known.

    Args:
        rng_key: that of the draws of x, of which another key is made.
        x: shape (draw, *shape, feature).
        error: shape (*shape, feature). None: no error is known.
    """
    if error is None:
        return x
    noise = jax.random.normal(jax.random.fold_in(rng_key, ERRORS), x.shape, x.dtype)
    return x + jnp.where(error > 0, error * noise, 0.0)


def in_table_units(draws: dict[str, Any], offset: Offset, labels: Labels | None) -> dict[str, Any]:
    """Draws in the units of the table: with the offset, and exp of logarithms."""
    known = is_concrete(draws["x"])
    own: dict[str, Any] = dict(draws)
    for name in [name for name in ("x_mean", "x", "signal") if name in draws]:
        x = np.asarray(draws[name]) if known else draws[name]
        if any(offset.values):
            x = x + (offset.row if known else jnp.asarray(offset.row, x.dtype))
        own[name] = labels.own_units(x) if labels else x
    return own


@partial(jax.jit, static_argnames=("offset", "draws_at_once", "max_steps", "reading"))
def _draw_x(
    rng_key: Array,
    fitted: Fitted,
    z0s: Array,
    times: Array,
    context: Trajectories,
    slots: tuple[Array, ...] | None,
    *,
    offset: Offset,
    draws_at_once: int,
    max_steps: int,
    reading: Reading,
) -> dict[str, Array]:
    # Of numbers that are less the offset: the model need not subtract it again.
    model = fitted.model.less(offset).with_solver(max_steps=max_steps)

    def explain(key_and_z0: tuple[Array, Array]) -> dict[str, Array]:
        sites = run_given(model, fitted.params, *key_and_z0, context, times)
        x = reading(sites, key_and_z0[0])
        if slots is not None:
            x = jax.tree.map(lambda a: a[slots], x)
        return {"z0": key_and_z0[1], **x}

    count = len(z0s)
    each = (jax.random.split(rng_key, count), z0s)
    # Some draws are made twice: a last batch that is not full would be compiled for itself.
    more = -count % draws_at_once
    each = jax.tree.map(lambda a: jnp.concatenate([a, a[:more]]), each)
    made = jax.lax.map(explain, each, batch_size=draws_at_once)
    return jax.tree.map(lambda a: a[:count], made)


def forecast(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: Numbers,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
    draws_at_once: int = DRAWS_AT_ONCE,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Draws from the posterior predictive at new times, like `Predictive(model, guide=guide)`.

    z0 ~ q(z0 | context),  x_mean = E[x | z0, context],  x ~ likelihood given the context

    Given z0, x depends on the context under a residual process only. The context is encoded once
    for all draws. With another `inference`, z0 is drawn from a better approximation of
    p(z0 | context) than the guide's q.

    Args:
        rng_key: a key.
        fitted: the fit; or an `Ensemble`, of which each member draws its share.
        context: the known observations of each trajectory.
        times: times to predict, in original units: (time,) for all, or (trajectory, time). Dates
            are counted as `context.names.counted` does. Nothing is measured then: x has no known
            error, as if `error` were 0.
        inference: how z0 is drawn: `amortized`, `Sharpened()`, `Exact()`, or a function of yours.
        num_samples: the number of draws.
        draws_at_once: the number of draws solved side by side, which bounds the memory.
        mesh: the devices over which the trajectories are divided, as in `fit`. Draws are those of
            one device, but for rounding. With several processes, all call alike, and each gets all
            draws. Inference must be `amortized`. Default: one device.

    Returns:
        `z0` (draw, trajectory, latent), and `x_mean` and `x` (draw, trajectory, time, feature) in
        the units of the table: curves without and with white noise. Under a residual process both
        continue the residuals of the context. For a feature of which the logarithm is modelled,
        they are exponentials, and `x_mean` is the median. Of an ensemble also `member` (draw,): the
        number of the member that made each draw, in rising order; and no `z0` if the latent
        dimensions of the members differ. With bands, `x` is stretched about its median by them.

    Raises:
        ValueError: naming the argument, the rule and what came.
        Exception: at run time, if an ODE solve fails; on a mesh, a RuntimeError.
    """
    draws = draw_forecast(
        rng_key,
        fitted,
        context,
        times,
        inference=inference,
        num_samples=num_samples,
        draws_at_once=draws_at_once,
        reading=mean_and_x,
        mesh=mesh,
    )
    warn_of_inputs(fitted, context, times)
    return draws


def warn_of_inputs(fitted: Fitted | Ensemble, context: Trajectories, times: Numbers) -> None:
    """Warns of inputs that a forecast holds after their end, or that were never given."""
    scaling = fitted.scaling
    if scaling.inputs is None:
        return
    context = check_context(context, scaling)
    of = context.offset
    at = prediction_times(times, len(context), scaling, offset=of, name="times")
    warn_of_held(context.inputs, at, scaling.inputs.names)


def draw_forecast(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: Numbers,
    *,
    inference: Inference,
    num_samples: int,
    draws_at_once: int,
    reading: Reading,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """What `forecast` returns, or what another reading keeps of the same runs of the model.

    It says nothing of inputs that end early; see `warn_of_inputs`.
    """
    check_fit(fitted)
    check_counts(num_samples=num_samples, draws_at_once=draws_at_once)
    if times is None or isinstance(times, Trajectories):
        raise ValueError(f"times must be an array of times; got {type(times).__name__}.")
    scaling = fitted.scaling
    context = check_context(context, scaling)
    at = prediction_times(times, len(context), scaling, offset=context.offset, name="times")
    check_reach(fitted, times)
    options: Any = dict(inference=inference, num_samples=num_samples)
    options |= dict(draws_at_once=draws_at_once, reading=reading)
    if mesh is not None:
        options |= dict(mesh=_checked_mesh(mesh, inference))
    return draw_given(rng_key, fitted, context, at, **options)


def draw_given(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    times: Float[Array, "trajectory time"],
    *,
    inference: Inference,
    num_samples: int,
    draws_at_once: int = DRAWS_AT_ONCE,
    reading: Reading = mean_and_x,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """What `draw_forecast` returns, of a context that was checked and of times less its offset."""
    offset, labels = context.offset, context.labels
    if mesh is not None:
        # Programs on several devices do not call this process: failures come back as NaN.
        fitted, context, times = (
            with_solver(fitted, throw=False),
            divided(context, mesh),
            divided(times, mesh),
        )
    kept: dict[str, Any] = dict(context=context, draws_at_once=draws_at_once, reading=reading)

    def draw(share: Share) -> dict[str, Any]:
        one, (z0_key, x_key) = share.fitted, jax.random.split(share.rng_key)
        with on_mesh(mesh):
            z0 = draw_codes(inference, z0_key, one, context, share.num_samples)
            made = draw_x(x_key, one, z0, times, offset, **kept)
        if mesh is None:
            return made
        return _solved(gathered(made, mesh), one.model.solver)

    some = shares(rng_key, fitted, num_samples)
    draws = widened(fitted, join(some, [draw(share) for share in some]))
    return in_table_units(draws, offset, labels or fitted.scaling.labels)


def _checked_mesh(mesh: Any, inference: Inference) -> Mesh:
    if inference is not amortized:
        raise ValueError(f"inference must be amortized with a mesh; got {inference!r}.")
    return check_mesh(mesh, TRAJECTORY)


def _solved(draws: dict[str, Array], solver: Solver) -> dict[str, Array]:
    """The draws, unless the solve of a trajectory failed, which left nothing but NaN."""
    failed = np.isnan(np.asarray(draws["x_mean"])).all((2, 3)).any(0)
    if failed.any():
        raise RuntimeError(
            f"The ODE solve of {failed.sum()} trajectories failed, first of trajectory "
            f"{int(np.argmax(failed))}: it diverged, or ran out of steps (max_steps="
            f"{solver.max_steps}, dt0={solver.dt0} in scaled time). Use a bounded dynamics, a "
            "smaller dt0, a PIDController or a larger max_steps in the Solver."
        )
    return draws


def forecast_observed(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    target: Trajectories,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
) -> dict[str, np.ndarray]:
    """Draws as those of `forecast`, at the observed times of a target and at no others.

    Args:
        rng_key: a key.
        fitted: the fit, or an `Ensemble`.
        context: the known observations of each trajectory.
        target: later observations of the same trajectories.
        inference, num_samples: as in `forecast`.

    Returns:
        `z0` (draw, trajectory, latent), and `x_mean` and `x` as `decode_observed` returns them. Of
        an ensemble also `member`, as in `forecast`.
    """
    check_fit(fitted)
    made = draw_observed(rng_key, fitted, context, target, inference, num_samples)
    return widened(fitted, join(*made))


def draw_observed(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    target: Trajectories,
    inference: Inference,
    num_samples: int,
) -> tuple[list[Share], list[dict[str, np.ndarray]]]:
    """The draws of `forecast_observed`, those of each member apart."""
    context = check_context(context, fitted.scaling)
    target = check_context(target, fitted.scaling, name="target")
    check_reach(fitted, target.given.times[np.asarray(target.observed)])

    def draw(share: Share) -> dict[str, np.ndarray]:
        z0_key, x_key = jax.random.split(share.rng_key)
        z0 = draw_codes(inference, z0_key, share.fitted, context, share.num_samples)
        draws = decode_observed(x_key, share.fitted, z0, target, context=context)
        return {"z0": np.asarray(z0), **draws}

    some = shares(rng_key, fitted, num_samples)
    return some, [draw(share) for share in some]


def decode_observed(
    rng_key: Array,
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    target: Trajectories,
    *,
    context: Trajectories | None = None,
) -> dict[str, np.ndarray]:
    """Decodes given z0 at the observed times of a target and at no others.

    Static covariates and inputs are those of the context; without one, those of the target.

    Args:
        rng_key: a key.
        fitted: the fit.
        z0: draws from any distribution.
        target: observations, less the offset of the model.
        context: what was seen of each trajectory, as in `decode`. Default: nothing.

    Returns:
        `x_mean` and `x` (draw, slot, feature), as they are modelled and less the target's offset.
        The slots are those of `target.observed`, one trajectory after the other. `x` are
        measurements: with the standard errors of the target.
    """
    model, observed = fitted.model, np.asarray(target.observed)
    place = np.full(observed.shape, -1)
    place[observed] = np.arange(observed.sum())
    shape = (len(z0), observed.sum(), target.num_features)
    draws = {name: np.empty(shape, target.values.dtype) for name in ("x_mean", "x")}
    some = batches(target)
    for k, (rows, part) in enumerate(some):
        key = rng_key if len(some) == 1 else jax.random.fold_in(rng_key, k)
        slots, at = np.nonzero(np.asarray(part.observed)), observed_times(model, part)
        error, count = None if part.error is None else part.error[slots], len(slots[0])
        seen = None if context is None else trimmed(context[rows])
        # Some slots come twice, as JAX compiles a program for each number of them.
        padded = tuple(np.resize(index, 1 << max(0, count - 1).bit_length()) for index in slots)
        options: dict[str, Any] = dict(context=seen, static=part.static, slots=padded)
        options |= dict(inputs=part.inputs)
        made = draw_x(key, fitted, z0[:, rows], at, target.offset, **options)
        made = {name: made[name][:, :count] for name in draws}
        made["x"] = as_measured(key, made["x"], error)
        where = place[rows[slots[0]], slots[1]]
        for name, values in draws.items():
            values[:, where] = made[name]
    return draws


def check_reach(fitted: Fitted | Ensemble, times: Numbers) -> None:
    """Refuses times that the solver cannot reach, where they are known."""
    model = shortest_reach(fitted)
    latest = model.latest_time
    if is_concrete(times) and (last := float(np.max(np.asarray(times, float)))) > latest:
        raise ValueError(
            f"times must be within reach of the solver, {latest:g}, which takes "
            f"{model.solver.max_steps} steps from t0 = {model.scaling.t0:g} on; got {last:g}. "
            "Raise max_steps of the Solver, though so far beyond the training data little is known."
        )

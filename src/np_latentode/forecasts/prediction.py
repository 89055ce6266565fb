"""Draws of z0 and x from a fit: forecasts, and their densities."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers as handlers
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.buckets import buckets, trimmed
from np_latentode.data.checks import check_counts
from np_latentode.data.labels import Labels
from np_latentode.data.numbers import Numbers, is_concrete
from np_latentode.data.offset import Offset
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.emissions import of_each
from np_latentode.parts.modules import bind_prior
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import (
    check_context,
    check_new,
    less_offset,
    prediction_times,
)

__all__ = [
    "decode",
    "decode_observed",
    "draw_and_score",
    "draw_x",
    "forecast",
    "forecast_observed",
    "in_table_units",
    "log_likelihood",
    "log_predictive",
    "observed_times",
    "posterior",
    "prior",
    "prior_predictive",
]

DRAWS_AT_ONCE = 10
"""The number of draws that are solved side by side."""


def prior(fitted: Fitted) -> dist.Distribution:
    """The model's distribution p(z0), with its trained parameters."""
    check_fitted(fitted)
    with handlers.seed(rng_seed=0), handlers.substitute(data=fitted.params):
        return bind_prior(fitted.model.prior)


def posterior(fitted: Fitted, context: Trajectories) -> dist.Distribution:
    """The guide's distribution q(z0 | context), one per trajectory.

    Args:
        fitted: the fit.
        context: the known observations of each trajectory.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    context = check_context(context, fitted.guide.scaling)
    with (
        handlers.seed(rng_seed=0),
        handlers.trace() as sites,
        handlers.substitute(data=fitted.params),
    ):
        fitted.guide(context)
    return sites["z0"]["fn"]


def prior_predictive(
    rng_key: Array, fitted: Fitted, times: Numbers, *, num_samples: int = 200
) -> dict[str, Any]:
    """Draws of trajectories of which nothing was observed.

    z0 ~ prior,  x_mean = decode(z(t)),  x ~ likelihood

    Args:
        rng_key: a key.
        fitted: the fit.
        times: shape (time,), in original units.
        num_samples: the number of draws.

    Returns:
        `z0` (draw, latent), and `x_mean` and `x` (draw, time, feature) in the units of the table.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples)
    scaling = fitted.model.scaling
    at = prediction_times(times, 1, scaling, offset=scaling.offset, name="times")
    _check_reach(fitted.model, times)
    z0_key, x_key = jax.random.split(rng_key)
    z0 = jnp.asarray(prior(fitted).sample(z0_key, (1, num_samples)))
    at = jnp.broadcast_to(at, (num_samples, at.shape[1]))
    draws = draw_x(x_key, fitted, z0, at, scaling.offset)
    draws = in_table_units(draws, scaling.offset, scaling.labels)
    return {name: values[0] for name, values in draws.items()}


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
            continues. Default: nothing was seen.
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
    slots: tuple[np.ndarray, ...] | None = None,
    draws_at_once: int = DRAWS_AT_ONCE,
) -> dict[str, Array]:
    """Draws of `z0`, `x_mean` and `x` as they are modelled: all numbers are less the offset.

    They are at all times; or at the given slots only, with one axis (slot,) in place of two. They
    continue what a context shows, if the likelihood remembers it.
    """
    model = fitted.model
    if context is None or not model.remembers:
        # Without memory, the model uses nothing of the context but its number of trajectories.
        context, latest = _nothing_seen(model.less(offset), times), times
    else:
        context = Trajectories.tree_unflatten({}, (*less_offset(context, offset), context.mask))
        latest = _both(times, observed_times(model.less(offset), context))
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
    )


def _both(times: Array, others: Array) -> Array:
    return jnp.concatenate([times, others], axis=1)


def _nothing_seen(model: LatentODE, times: Array) -> Trajectories:
    """As many trajectories without observations."""
    shape = (len(times), 1, len(model.scaling.loc))
    t0 = jnp.full(shape[:2], model.scaling.t0, times.dtype)
    arrays = (t0, jnp.zeros(shape, times.dtype), jnp.zeros(shape, bool))
    return Trajectories.tree_unflatten({}, arrays)


def in_table_units(draws: dict[str, Any], offset: Offset, labels: Labels | None) -> dict[str, Any]:
    """Draws in the units of the table: with the offset, and exp of logarithms."""
    known = is_concrete(draws["x"])
    own: dict[str, Any] = dict(draws)
    for name in ("x_mean", "x"):
        x = np.asarray(draws[name]) if known else draws[name]
        if any(offset.values):
            x = x + (offset.row if known else jnp.asarray(offset.row, x.dtype))
        own[name] = labels.own_units(x) if labels else x
    return own


def draw_and_score(
    rng_key: Array, q: dist.Distribution, num_draws: int
) -> tuple[Array, Float[Array, "draw trajectory"]]:
    """Draws of z0 and their log densities.

    The sampling intermediates are reused, as some transforms cannot be inverted: an angle loses
    its number of turns.
    """
    z0, intermediates = q.sample_with_intermediates(rng_key, (num_draws,))
    log_q = q.log_prob(z0, intermediates) if intermediates else q.log_prob(z0)
    return jnp.asarray(z0), jnp.asarray(log_q)


def observed_times(model: LatentODE, trajectories: Trajectories) -> Float[Array, "trajectory time"]:
    """The observed times, less the offset; t0 in unobserved slots, which may be earlier than t0."""
    t0 = model.scaling.less(trajectories.offset).t0
    return jnp.where(trajectories.observed, trajectories.times, t0)


@partial(jax.jit, static_argnames=("offset", "draws_at_once", "max_steps"))
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
) -> dict[str, Array]:
    # Of numbers that are less the offset: the model need not subtract it again.
    model = fitted.model.less(offset).with_solver(max_steps=max_steps)

    def explain(key_and_z0: tuple[Array, Array]) -> dict[str, Array]:
        sites = _run(model, fitted.params, *key_and_z0, context, times)
        x = {name: sites[name]["value"] for name in ("x_mean", "x")}
        if slots is not None:
            x = jax.tree.map(lambda a: a[slots], x)
        return {"z0": key_and_z0[1], **x}

    keys = jax.random.split(rng_key, len(z0s))
    return jax.lax.map(explain, (keys, z0s), batch_size=draws_at_once)


def _run(
    model: LatentODE, params: dict[str, Any], rng_key: Array | int, z0: Array, *args: Any
) -> dict[str, Any]:
    """The sites of the trained model, given z0."""
    with (
        handlers.seed(rng_seed=rng_key),
        handlers.trace() as sites,
        handlers.substitute(data={**params, "z0": z0}),
    ):
        model(*args)
    return sites


def log_likelihood(
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    trajectories: Trajectories,
    *,
    draws_at_once: int = DRAWS_AT_ONCE,
) -> Float[Array, "draw trajectory time feature"]:
    """log p(x | z0) under the trained networks: one term per observation, 0 where unobserved.

    NumPyro's function of this name does not substitute params, and sums over each trajectory.
    Under a likelihood with a residual process, each term is given the earlier observations:
    log p(x_k | x_1, ..., x_k-1, z0).

    Args:
        fitted: the fit.
        z0: draws from any distribution.
        trajectories: the observations.
        draws_at_once: the number of draws solved side by side, which bounds the memory.
    """
    check_fitted(fitted)
    trajectories = check_context(trajectories, fitted.model.scaling, name="trajectories")
    max_steps = fitted.model.steps_to(trajectories.times, trajectories.offset)
    return _log_likelihood(fitted, z0, trajectories, min(draws_at_once, len(z0)), max_steps)


@partial(jax.jit, static_argnums=(3, 4))
def _log_likelihood(
    fitted: Fitted, z0s: Array, trajectories: Trajectories, draws_at_once: int, max_steps: int
) -> Array:
    score = partial(_score, fitted, trajectories, max_steps)
    return jax.lax.map(score, z0s, batch_size=draws_at_once)


def _score(fitted: Fitted, trajectories: Trajectories, max_steps: int, z0: Array) -> Array:
    model = fitted.model.with_solver(max_steps=max_steps)
    x = _run(model, fitted.params, 0, z0, trajectories)["x"]
    # Before to_event summed it over times and features.
    return x["fn"].base_dist.log_prob(x["value"])


def log_predictive(
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    context: Trajectories,
    target: Trajectories,
) -> Float[Array, "trajectory time feature"]:
    """log p(x | context): one term per observation, 0 where unobserved.

    log 1/S sum_s p(x | z0_s, context),  z0_s ~ q(z0 | context): the density of a forecast is a
    mixture over z0, so it is computed and not estimated from draws of x. Each observation is scored
    by itself, whatever the other ones of the target are.

    Args:
        fitted: the fit.
        z0: draws given the context.
        context: what was seen of the trajectories; only a likelihood with a residual process
            depends on it, once z0 is given.
        target: observations of the same trajectories.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    model = fitted.model
    context = check_context(context, model.scaling)
    target = check_context(target, model.scaling, name="target")
    if not model.remembers:
        context = _nothing_seen(model.less(target.offset), target.times)
    else:
        check_new(context, target)
    max_steps = model.steps_to(_both(target.times, observed_times(model, context)), target.offset)
    if not is_concrete(target.mask, context.mask):
        return _log_predictive(fitted, z0, context, target, max_steps)
    # By buckets, as nothing has to be solved for the padding after a short trajectory.
    log_p = jnp.zeros(target.values.shape, target.values.dtype)
    for rows, some in buckets(target):
        found = _log_predictive(fitted, z0[:, rows], trimmed(context[rows]), some, max_steps)
        log_p = log_p.at[rows, : found.shape[1]].set(found)
    return log_p


@partial(jax.jit, static_argnums=4)
def _log_predictive(
    fitted: Fitted, z0s: Array, context: Trajectories, target: Trajectories, max_steps: int
) -> Array:
    """Summed over a few draws at a time, so that memory does not grow with their number."""
    model = fitted.model.with_solver(max_steps=max_steps)

    def score_one(z0: Array) -> Array:
        x = _run(model, fitted.params, 0, z0, context, target)["x"]
        return jnp.asarray(of_each(x["fn"].base_dist).log_prob(x["value"]))

    score = jax.vmap(score_one)

    def add(total: Array, some: Array) -> tuple[Array, None]:
        return jnp.logaddexp(total, jax.nn.logsumexp(score(some), axis=0)), None

    at_once = min(DRAWS_AT_ONCE, len(z0s))
    whole = len(z0s) // at_once * at_once
    total = jnp.full(target.values.shape, -jnp.inf, target.values.dtype)
    chunks = z0s[:whole].reshape(-1, at_once, *z0s.shape[1:])
    total, _ = jax.lax.scan(add, total, chunks)
    if whole < len(z0s):
        total, _ = add(total, z0s[whole:])
    return jnp.where(target.mask, total - jnp.log(len(z0s)), 0.0)


def forecast(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    times: Numbers,
    *,
    num_samples: int = 200,
    draws_at_once: int = DRAWS_AT_ONCE,
) -> dict[str, Any]:
    """Draws from the posterior predictive at new times, like `Predictive(model, guide=guide)`.

    z0 ~ q(z0 | context),  x_mean = E[x | z0, context],  x ~ likelihood given the context

    Given z0, x depends on the context under a residual process only. The context is encoded once
    for all draws.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        times: times to predict, in original units: (time,) for all, or (trajectory, time). Dates
            are counted as `context.names.counted` does.
        num_samples: the number of draws.
        draws_at_once: the number of draws solved side by side, which bounds the memory.

    Returns:
        `z0` (draw, trajectory, latent), and `x_mean` and `x` (draw, trajectory, time, feature) in
        the units of the table: curves without and with white noise. Under a residual process both
        continue the residuals of the context. For a feature of which the logarithm is modelled,
        they are exponentials, and `x_mean` is the median.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples, draws_at_once=draws_at_once)
    if times is None or isinstance(times, Trajectories):
        raise ValueError(f"times must be an array of times; got {type(times).__name__}.")
    context = check_context(context, fitted.model.scaling)
    offset = context.offset
    at = prediction_times(times, len(context), fitted.model.scaling, offset=offset, name="times")
    _check_reach(fitted.model, times)
    z0_key, x_key = jax.random.split(rng_key)
    z0 = _draw_codes(z0_key, fitted, context, num_samples)
    draws = draw_x(x_key, fitted, z0, at, offset, context=context, draws_at_once=draws_at_once)
    return in_table_units(draws, offset, context.labels or fitted.model.scaling.labels)


def forecast_observed(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories,
    *,
    num_samples: int = 200,
) -> dict[str, np.ndarray]:
    """Draws as those of `forecast`, at the observed times of a target and at no others.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        target: later observations of the same trajectories.
        num_samples: the number of draws.

    Returns:
        `z0` (draw, trajectory, latent), and `x_mean` and `x` as `decode_observed` returns them.
    """
    context = check_context(context, fitted.model.scaling)
    target = check_context(target, fitted.model.scaling, name="target")
    _check_reach(fitted.model, target.given.times[np.asarray(target.observed)])
    z0_key, x_key = jax.random.split(rng_key)
    z0 = _draw_codes(z0_key, fitted, context, num_samples)
    return {"z0": np.asarray(z0), **decode_observed(x_key, fitted, z0, target, context=context)}


def decode_observed(
    rng_key: Array,
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    target: Trajectories,
    *,
    context: Trajectories | None = None,
) -> dict[str, np.ndarray]:
    """Decodes given z0 at the observed times of a target and at no others.

    Args:
        rng_key: a key.
        fitted: the fit.
        z0: draws from any distribution.
        target: observations, less the offset of the model.
        context: what was seen of each trajectory, as in `decode`. Default: nothing.

    Returns:
        `x_mean` and `x` (draw, slot, feature), as they are modelled and less the target's offset.
        The slots are those of `target.observed`, one trajectory after the other.
    """
    model, observed = fitted.model, np.asarray(target.observed)
    place = np.full(observed.shape, -1)
    place[observed] = np.arange(observed.sum())
    shape = (len(z0), observed.sum(), target.num_features)
    draws = {name: np.empty(shape, target.values.dtype) for name in ("x_mean", "x")}
    some = buckets(target)
    for k, (rows, part) in enumerate(some):
        key = rng_key if len(some) == 1 else jax.random.fold_in(rng_key, k)
        slots, at = np.nonzero(np.asarray(part.observed)), observed_times(model, part)
        seen = None if context is None else trimmed(context[rows])
        made = draw_x(key, fitted, z0[:, rows], at, target.offset, context=seen, slots=slots)
        where = place[rows[slots[0]], slots[1]]
        for name, values in draws.items():
            values[:, where] = made[name]
    return draws


def _check_reach(model: LatentODE, times: Numbers) -> None:
    latest = model.scaling.t0 + model.solver.reach * model.scaling.time_unit
    if is_concrete(times) and (last := float(np.max(np.asarray(times, float)))) > latest:
        raise ValueError(
            f"times must be within reach of the solver, {latest:g}, which takes "
            f"{model.solver.max_steps} steps from t0 = {model.scaling.t0:g} on; got {last:g}. "
            "Raise max_steps of the Solver, though so far beyond the training data little is known."
        )


@partial(jax.jit, static_argnums=3)
def _draw_codes(rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int) -> Array:
    return jnp.asarray(posterior(fitted, context).sample(rng_key, (num_samples,)))

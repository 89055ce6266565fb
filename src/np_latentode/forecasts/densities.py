"""The densities of x under a trained model, given z0."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.handlers as handlers
from jaxtyping import Array, Float

from np_latentode.data.buckets import batches, trimmed
from np_latentode.data.inputs import Inputs
from np_latentode.data.numbers import is_concrete
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.devices import on_devices
from np_latentode.parts.emissions import of_each
from np_latentode.parts.threads import one_at_a_time
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_context, check_new

__all__ = [
    "DRAWS_AT_ONCE",
    "both",
    "log_likelihood",
    "log_predictive",
    "nothing_seen",
    "observed_times",
    "run_given",
]

DRAWS_AT_ONCE = 10
"""The number of draws that are solved side by side."""


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
    log p(x_k | x_1, ..., x_k-1, z0). Limits, such as <0.5, come after all other observations of
    their trajectory: a limit is given those and the limits before it.

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
    x = run_given(model, fitted.params, 0, z0, trajectories)["x"]
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
    apart = not is_concrete(target.mask, context.mask) or on_devices(target.mask)
    if not model.remembers:
        given: Any = dict(static=context.static, inputs=context.inputs)
        context = nothing_seen(model.less(target.offset), target.times, **given)
    elif not apart:
        check_new(context, target)
    max_steps = model.steps_to(both(target.times, observed_times(model, context)), target.offset)
    if apart:
        return _log_predictive(fitted, z0, context, target, max_steps)
    # In batches, as nothing has to be solved for the padding after a short trajectory.
    log_p = jnp.zeros(target.values.shape, target.values.dtype)
    for rows, some in batches(target):
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
        x = run_given(model, fitted.params, 0, z0, context, target)["x"]
        return jnp.asarray(of_each(x["fn"].base_dist).log_prob(x["value"]))

    score = jax.vmap(score_one)

    def add(total: Array, batch: tuple[Array, Array]) -> tuple[Array, None]:
        some, counts = batch
        terms = jnp.where(counts[:, None, None, None], score(some), -jnp.inf)
        return jnp.logaddexp(total, jax.nn.logsumexp(terms, axis=0)), None

    # Some draws come twice, and count once: a last batch that is not full would be compiled for
    # itself.
    count, at_once = len(z0s), min(DRAWS_AT_ONCE, len(z0s))
    every = jnp.concatenate([z0s, z0s[: -count % at_once]])
    batches = every.reshape(-1, at_once, *z0s.shape[1:])
    counts = (jnp.arange(len(every)) < count).reshape(-1, at_once)
    total = jnp.full(target.values.shape, -jnp.inf, target.values.dtype)
    total, _ = jax.lax.scan(add, total, (batches, counts))
    return jnp.where(target.mask, total - jnp.log(len(z0s)), 0.0)


@one_at_a_time
def run_given(
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


def observed_times(model: LatentODE, trajectories: Trajectories) -> Float[Array, "trajectory time"]:
    """The observed times, less the offset; t0 in unobserved slots, which may be earlier than t0."""
    t0 = model.scaling.less(trajectories.offset).t0
    return jnp.where(trajectories.observed, trajectories.times, t0)


def nothing_seen(
    model: LatentODE, times: Array, static: Array | None = None, inputs: Inputs | None = None
) -> Trajectories:
    """As many trajectories without observations.

    By default, their covariates are unknown, and nothing is given to them.
    """
    covariates, units = model.scaling.covariates, model.scaling.inputs
    if covariates is not None and static is None:
        static = covariates.unknown(len(times))
    if units is not None and inputs is None:
        inputs = Inputs.none(len(times), units.kinds, times.dtype)
    shape = (len(times), 1, len(model.scaling.loc))
    t0 = jnp.full(shape[:2], model.scaling.t0, times.dtype)
    arrays = (t0, jnp.zeros(shape, times.dtype), jnp.zeros(shape, bool), static, inputs)
    return Trajectories.tree_unflatten({}, (*arrays, None, None))


def both(times: Array, others: Array) -> Array:
    return jnp.concatenate([times, others], axis=1)

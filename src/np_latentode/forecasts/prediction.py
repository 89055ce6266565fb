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

from np_latentode.data.checks import check_counts
from np_latentode.data.labels import Labels
from np_latentode.data.numbers import Numbers, is_concrete
from np_latentode.data.offset import Offset
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.modules import bind_prior
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_context, prediction_times

__all__ = [
    "decode",
    "draw_and_score",
    "draw_forecast",
    "draw_x",
    "forecast",
    "in_table_units",
    "log_likelihood",
    "log_predictive",
    "observed_times",
    "posterior",
    "prior",
    "prior_predictive",
]


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
    check_context(context, fitted.guide.scaling)
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
    draws_at_once: int = 10,
) -> dict[str, Any]:
    """Decodes given z0 at given times: `z0`, `x_mean` and `x`, in the units of the table.

    Args:
        rng_key: a key.
        fitted: the fit.
        z0: draws from any distribution.
        times: in original units.
        draws_at_once: the number of draws solved side by side, which bounds the memory.
    """
    check_fitted(fitted)
    scaling = fitted.model.scaling
    at = prediction_times(times, z0.shape[1], scaling, offset=scaling.offset, name="times")
    draws = draw_x(rng_key, fitted, z0, at, scaling.offset, draws_at_once=draws_at_once)
    return in_table_units(draws, scaling.offset, scaling.labels)


def draw_x(
    rng_key: Array,
    fitted: Fitted,
    z0: Float[Array, "draw trajectory latent"],
    times: Float[Array, "trajectory time"],
    offset: Offset,
    *,
    draws_at_once: int = 10,
) -> dict[str, Array]:
    """Draws of `z0`, `x_mean` and `x` as they are modelled: all numbers are less the offset."""
    return _draw_x(rng_key, fitted, z0, times, offset, min(draws_at_once, len(z0)))


def in_table_units(
    draws: dict[str, Array], offset: Offset, labels: Labels | None
) -> dict[str, Any]:
    """Draws in the units of the table: with the offset, and exp of logarithms."""
    if not is_concrete(draws["x"]):
        return draws
    own: dict[str, Any] = dict(draws)
    for name in ("x_mean", "x"):
        x = np.asarray(draws[name])
        x = x + offset.row if any(offset.values) else x
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


@partial(jax.jit, static_argnums=(4, 5))
def _draw_x(
    rng_key: Array, fitted: Fitted, z0s: Array, times: Array, offset: Offset, draws_at_once: int
) -> dict[str, Array]:
    # Of numbers that are less the offset: the model need not subtract it again.
    model = fitted.model.less(offset)
    # Once z0 is given, the model uses nothing of the context but its number of trajectories.
    shape = (z0s.shape[1], 1, len(model.scaling.loc))
    nothing = Trajectories.tree_unflatten(
        {},
        (
            jnp.full(shape[:2], model.scaling.t0, times.dtype),
            jnp.zeros(shape, times.dtype),
            jnp.zeros(shape, bool),
        ),
    )

    def explain(key_and_z0: tuple[Array, Array]) -> dict[str, Array]:
        sites = _run(model, fitted.params, *key_and_z0, nothing, times)
        return {name: sites[name]["value"] for name in ("z0", "x_mean", "x")}

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
    draws_at_once: int = 10,
) -> Float[Array, "draw trajectory time feature"]:
    """log p(x | z0) under the trained networks: one term per observation, 0 where unobserved.

    NumPyro's function of this name does not substitute params, and sums over each trajectory.

    Args:
        fitted: the fit.
        z0: draws from any distribution.
        trajectories: the observations.
        draws_at_once: the number of draws solved side by side, which bounds the memory.
    """
    check_fitted(fitted)
    return _log_likelihood(fitted, z0, trajectories, min(draws_at_once, len(z0)))


@partial(jax.jit, static_argnums=3)
def _log_likelihood(
    fitted: Fitted, z0s: Array, trajectories: Trajectories, draws_at_once: int
) -> Array:
    def score(z0: Array) -> Array:
        x = _run(fitted.model, fitted.params, 0, z0, trajectories)["x"]
        # Before to_event summed it over times and features.
        return x["fn"].base_dist.log_prob(x["value"])

    return jax.lax.map(score, z0s, batch_size=draws_at_once)


def log_predictive(
    fitted: Fitted, z0: Float[Array, "draw trajectory latent"], target: Trajectories
) -> Float[Array, "trajectory time feature"]:
    """log p(x | context): one term per observation, 0 where unobserved.

    log 1/S sum_s p(x | z0_s),  z0_s ~ q(z0 | context): the density of a forecast is a mixture over
    z0, so it is computed and not estimated from draws of x.

    Args:
        fitted: the fit.
        z0: draws given the context.
        target: observations of the same trajectories.
    """
    check_fitted(fitted)
    log_liks = log_likelihood(fitted, z0, target)
    return jax.nn.logsumexp(log_liks, axis=0) - jnp.log(len(z0))


def forecast(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    times: Numbers,
    *,
    num_samples: int = 200,
    draws_at_once: int = 10,
) -> dict[str, Any]:
    """Draws from the posterior predictive at new times, like `Predictive(model, guide=guide)`.

    z0 ~ q(z0 | context),  x_mean = decode(z(t)),  x ~ likelihood

    The context is encoded once for all draws.

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
        the units of the table: curves without and with observation noise. For a feature of which
        the logarithm is modelled, they are exponentials, and `x_mean` is the median.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_samples=num_samples, draws_at_once=draws_at_once)
    if times is None or isinstance(times, Trajectories):
        raise ValueError(f"times must be an array of times; got {type(times).__name__}.")
    check_context(context, fitted.model.scaling)
    offset = context.offset
    at = prediction_times(times, len(context), fitted.model.scaling, offset=offset, name="times")
    _check_reach(fitted.model, times)
    draws = draw_forecast(
        rng_key, fitted, context, at, num_samples, offset=offset, draws_at_once=draws_at_once
    )
    return in_table_units(draws, offset, context.labels or fitted.model.scaling.labels)


def draw_forecast(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    times: Float[Array, "trajectory time"],
    num_samples: int,
    *,
    offset: Offset,
    draws_at_once: int = 10,
) -> dict[str, Array]:
    """Draws of a forecast as they are modelled: times and x are less the offset."""
    z0_key, x_key = jax.random.split(rng_key)
    z0 = _draw_codes(z0_key, fitted, context, num_samples)
    return draw_x(x_key, fitted, z0, times, offset, draws_at_once=draws_at_once)


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

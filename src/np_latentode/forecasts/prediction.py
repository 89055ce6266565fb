"""Draws of the future: what the model expects where nothing was observed."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import numpyro.handlers as handlers
from jaxtyping import Array, Float

from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.modules import bind_prior
from np_latentode.plate import check_context, check_counts, prediction_times
from np_latentode.trajectories import Numbers, Trajectories, is_concrete

__all__ = [
    "check_params",
    "decode",
    "draw_and_score",
    "forecast",
    "log_likelihood",
    "log_predictive",
    "observed_times",
    "posterior",
    "prior",
    "prior_predictive",
]


def prior(model: LatentODE, params: dict) -> dist.Distribution:
    """The model's distribution p(z0), with what was learned of it.

    Args:
        model: the model that `params` were fitted with.
        params: the fitted parameters, `SVIRunResult.params`.

    Raises:
        ValueError: if params are those of no fit.
    """
    check_params(params, model)
    with handlers.seed(rng_seed=0), handlers.substitute(data=params):
        return bind_prior(model.prior)


def posterior(guide: AmortizedGuide, params: dict, context: Trajectories):
    """The guide's distribution q(z0 | context), one a trajectory.

    Args:
        guide: the guide that `params` were fitted with.
        params: the fitted parameters, `SVIRunResult.params`.
        context: what is known of each trajectory.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_context(context, guide.scaling)
    check_params(params, guide)
    with handlers.seed(rng_seed=0), handlers.trace() as sites, handlers.substitute(data=params):
        guide(context)
    return sites["z0"]["fn"]


def prior_predictive(
    rng_key: Array, model: LatentODE, params: dict, times: Numbers, *, num_samples: int = 200
) -> dict[str, Array]:
    """Draws of trajectories that were never observed at all.

    z0 ~ prior,  x_mean = decode(z(t)),  x ~ likelihood

    Args:
        rng_key: a key.
        model, params: as fitted.
        times: where to draw them, shape (time,), in original units.
        num_samples: how many.

    Returns:
        `z0` (draw, latent), and `x_mean` and `x` (draw, time, feature) in original units.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples)
    at = prediction_times(times, 1, model.scaling, name="times")
    _check_reach(model, at)
    z0_key, x_key = jax.random.split(rng_key)
    z0 = jnp.asarray(prior(model, params).sample(z0_key, (1, num_samples)))
    draws = decode(x_key, model, params, z0, jnp.broadcast_to(at, (num_samples, at.shape[1])))
    return {name: values[0] for name, values in draws.items()}


def decode(
    rng_key: Array,
    model: LatentODE,
    params: dict,
    z0: Float[Array, "draw trajectory latent"],
    times: Float[Array, "trajectory time"],
    *,
    draws_at_once: int = 10,
) -> dict[str, Array]:
    """What the model makes of given z0 at given times: `z0`, `x_mean` and `x`, in original units.

    Args:
        rng_key: a key.
        model, params: as fitted.
        z0: draws, however they were made.
        times: in original units.
        draws_at_once: how many draws to solve side by side, which bounds the memory.
    """
    check_params(params, model)
    return _decode(rng_key, model, params, z0, times, min(draws_at_once, len(z0)))


def draw_and_score(
    rng_key: Array, q: dist.Distribution, num_draws: int
) -> tuple[Array, Float[Array, "draw trajectory"]]:
    """Draws of z0 and their log densities, for which what was transformed need not be inverted.

    An angle could not be: which turn it is on is lost.
    """
    z0, intermediates = q.sample_with_intermediates(rng_key, (num_draws,))
    log_q = q.log_prob(z0, intermediates) if intermediates else q.log_prob(z0)
    return jnp.asarray(z0), jnp.asarray(log_q)


def observed_times(model: LatentODE, trajectories: Trajectories) -> Float[Array, "trajectory time"]:
    """Times to decode at what was observed; where nothing was, which may be before t0, t0."""
    return jnp.where(trajectories.observed, trajectories.times, model.scaling.t0)


@partial(jax.jit, static_argnums=(1, 5))
def _decode(rng_key, model, params, z0s, times, draws_at_once):
    # The context plays no part once z0 is given, but for its number of trajectories.
    num_features = len(model.scaling.loc)
    shape = (z0s.shape[1], 1, num_features)
    nothing = Trajectories.tree_unflatten(
        {},
        (
            jnp.full(shape[:2], model.scaling.t0, times.dtype),
            jnp.zeros(shape, times.dtype),
            jnp.zeros(shape, bool),
        ),
    )

    def explain(key_and_z0):
        rng_key, z0 = key_and_z0
        known = {**params, "z0": z0}
        with (
            handlers.seed(rng_seed=rng_key),
            handlers.trace() as sites,
            handlers.substitute(data=known),
        ):
            model(nothing, times)
        return {name: sites[name]["value"] for name in ("z0", "x_mean", "x")}

    keys = jax.random.split(rng_key, len(z0s))
    return jax.lax.map(explain, (keys, z0s), batch_size=draws_at_once)


def log_likelihood(
    model: LatentODE,
    params: dict,
    z0: Float[Array, "draw trajectory latent"],
    trajectories: Trajectories,
    *,
    draws_at_once: int = 10,
) -> Float[Array, "draw trajectory time feature"]:
    """log p(x | z0) under the trained networks, one term an observation, and 0 where there is none.

    NumPyro's function of this name knows no params, and sums over each trajectory.

    Args:
        model, params: as fitted.
        z0: draws, however they were made.
        trajectories: what was observed.
        draws_at_once: how many draws to solve side by side, which bounds the memory.
    """
    check_params(params, model)
    return _log_likelihood(model, params, z0, trajectories, min(draws_at_once, len(z0)))


@partial(jax.jit, static_argnums=(0, 4))
def _log_likelihood(model, params, z0s, trajectories, draws_at_once):
    def score(z0):
        known = {**params, "z0": z0}
        with (
            handlers.seed(rng_seed=0),
            handlers.trace() as sites,
            handlers.substitute(data=known),
        ):
            model(trajectories)
        x = sites["x"]
        # Before to_event summed it over times and features.
        return x["fn"].base_dist.log_prob(x["value"])

    return jax.lax.map(score, z0s, batch_size=draws_at_once)


def log_predictive(
    model: LatentODE,
    params: dict,
    z0: Float[Array, "draw trajectory latent"],
    target: Trajectories,
) -> Float[Array, "trajectory time feature"]:
    """log p(x | context), one term an observation, and 0 where there is none.

    log 1/S sum_s p(x | z0_s),  z0_s ~ q(z0 | context): the density of a forecast is a mixture, and
    need not be guessed from draws of x.

    Args:
        model, params: as fitted.
        z0: draws of what is known of each trajectory.
        target: what was observed of it later, say.
    """
    log_liks = log_likelihood(model, params, z0, target)
    return jax.nn.logsumexp(log_liks, axis=0) - jnp.log(len(z0))


def check_params(params: dict, *programs: LatentODE | AmortizedGuide) -> None:
    """Refuses parameters that a program would run without, untrained."""
    # NumPyro runs a program whose parameters are not substituted with its untrained networks.
    needed = frozenset().union(*(program.trained for program in programs))
    if missing := sorted(needed - set(params)):
        raise ValueError(
            f"params must be those of a fit, as in `SVIRunResult.params`; got none of {missing}."
        )


def forecast(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    context: Trajectories,
    times: Numbers,
    *,
    num_samples: int = 200,
    draws_at_once: int = 10,
) -> dict[str, Array]:
    """Draws from the posterior predictive at new times, as `Predictive(model, guide=guide)` gives.

    z0 ~ q(z0 | context),  x_mean = decode(z(t)),  x ~ likelihood

    The context is encoded once for all draws, and only `draws_at_once` of them are solved side by
    side, which bounds the memory beyond the result itself.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        context: what is known of each trajectory.
        times: where to predict, in original units: (time,) for all, or (trajectory, time).
        num_samples: how many draws.
        draws_at_once: how many of them to solve side by side.

    Returns:
        `z0` (draw, trajectory, latent), and `x_mean` and `x` (draw, trajectory, time, feature) in
        original units: curves without and with observation noise.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_samples=num_samples, draws_at_once=draws_at_once)
    if times is None or isinstance(times, Trajectories):
        raise ValueError(f"times must be an array of times; got {type(times).__name__}.")
    check_context(context, model.scaling)
    at = prediction_times(times, len(context), model.scaling, name="times")
    _check_reach(model, at)
    check_params(params, model, guide)
    z0_key, x_key = jax.random.split(rng_key)
    z0 = _draw_codes(z0_key, guide, params, context, num_samples)
    return decode(x_key, model, params, z0, at, draws_at_once=draws_at_once)


def _check_reach(model: LatentODE, times: Array) -> None:
    latest = model.scaling.t0 + model.solver.reach * model.scaling.time_unit
    if is_concrete(times) and float(times.max()) > latest:
        raise ValueError(
            f"times must be within reach of the solver, {latest:g}, which takes "
            f"{model.solver.max_steps} steps from t0 = {model.scaling.t0:g} on; got "
            f"{float(times.max()):g}. Raise max_steps of the Solver, though so far beyond the "
            "training data little is known."
        )


@partial(jax.jit, static_argnums=(1, 4))
def _draw_codes(rng_key, guide, params, context, num_samples):
    return posterior(guide, params, context).sample(rng_key, (num_samples,))

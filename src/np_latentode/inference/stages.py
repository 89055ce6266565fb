"""The compiled programs of sharpening: draws, their weights, and the mixtures they come from.

Of all arrays, trajectories are the first axis.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions.transforms import biject_to

from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import draw_and_score, posterior, prior
from np_latentode.forecasts.densities import DRAWS_AT_ONCE
from np_latentode.inference.density import log_joint, with_networks_fixed
from np_latentode.inference.mixtures import Mixture, of_modes
from np_latentode.inference.modes import find_modes
from np_latentode.parts.supports import periods
from np_latentode.programs.fitted import Fitted

__all__ = ["adapt", "find_mixture", "weigh_guide", "weigh_mixture"]

FROM_GUIDE, FROM_PRIOR, NUM_STEPS = 5, 3, 4
"""Starts of Levenberg-Marquardt, and steps of each. From the best start three steps are mostly
enough; the others are there to find other modes."""

POWER = 0.5
"""Of the modes' evidences, so that a mode with too low an evidence still gets draws."""


# Not `jax.jit`: a distribution of flowjax holds functions, which JAX cannot pass.
@eqx.filter_jit
def weigh_guide(
    rng_key: Array, context: Trajectories, *, fitted: Fitted, num_draws: int, max_steps: int
) -> tuple[Array, ...]:
    """Draws of the guide, log p(x, z0), and the logs of their weights."""
    fixed, _ = with_networks_fixed(fitted, context, max_steps)
    z0, log_q = draw_and_score(rng_key, posterior(fitted, context), num_draws)
    log_p = jax.lax.map(partial(log_joint, fixed, context), z0, batch_size=DRAWS_AT_ONCE)
    return _trajectories_first(z0, log_p, _finite_or_nothing(log_p - log_q))


@eqx.filter_jit
def find_mixture(
    rng_key: Array,
    context: Trajectories,
    z0: Array,
    log_p: Array,
    *,
    fitted: Fitted,
    max_steps: int,
) -> Mixture:
    """The mixture over the modes that are found from the best of these draws, others and the
    prior."""
    before = prior(fitted)
    to_support = biject_to(before.support)
    best = jnp.take_along_axis(z0, jnp.argmax(log_p, axis=1)[:, None, None], axis=1)
    blind = jnp.asarray(before.sample(rng_key, (len(context), FROM_PRIOR)))
    starts = jnp.concatenate([best, z0[:, : FROM_GUIDE - 1], blind], axis=1)
    modes = find_modes(
        fitted,
        context,
        to_support.inv(jnp.swapaxes(starts, 0, 1)),
        max_steps=max_steps,
        num_steps=NUM_STEPS,
    )
    return of_modes(modes, periods(to_support, fitted.model.latent_dim), power=POWER)


@eqx.filter_jit
def weigh_mixture(
    rng_key: Array,
    context: Trajectories,
    mixture: Mixture,
    *,
    fitted: Fitted,
    num_draws: int,
    max_steps: int,
) -> tuple[Array, ...]:
    """Draws u of the mixture, the z0 that they map to, and the logs of their weights."""
    fixed, before = with_networks_fixed(fitted, context, max_steps)
    to_support = biject_to(before.support)
    u, log_q = mixture.draw(rng_key, num_draws)
    z0 = jnp.asarray(to_support(u))
    log_p = jax.lax.map(partial(log_joint, fixed, context), z0, batch_size=DRAWS_AT_ONCE)
    log_p = log_p + to_support.log_abs_det_jacobian(u, z0)
    return _trajectories_first(u, z0, _finite_or_nothing(log_p - log_q))


@eqx.filter_jit
def adapt(_: Array, mixture: Mixture, u: Array, weights: Array, **__: Any) -> Mixture:
    return mixture.adapted(*_trajectories_first(u, weights))


def _finite_or_nothing(log_weights: Array) -> Array:
    """The log weights, without any weight where a solve failed."""
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)


def _trajectories_first(*arrays: Array) -> tuple[Array, ...]:
    return tuple(jnp.swapaxes(array, 0, 1) for array in arrays)

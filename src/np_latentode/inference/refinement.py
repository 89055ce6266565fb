"""Refinement: SVI for each trajectory, from the guide's posterior, under trained networks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import numpyro.handlers as handlers
import optax
from jaxtyping import Array, Float
from numpyro.distributions.transforms import biject_to
from numpyro.infer import SVI

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import draw_and_score, posterior
from np_latentode.inference.density import (
    log_joint,
    whitening,
    with_networks_fixed,
)
from np_latentode.inference.local import LocalNormals
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["Refined", "refine"]

LEARNING_RATE = 0.1
"""The initial one, in units of the guide. A guide nine standard deviations off still converges."""


class Refined(NamedTuple):
    """The guide's posteriors after further steps of SVI.

    `q` is a distribution over z0, one per trajectory. The ELBOs, shape (trajectory,), are those of
    the guide and of `q`: E[log p(x, z0) - log q(z0)], no larger than log p(x). On a circle `q` is
    treated as a normal over the line of angles, which holds while it is narrow.
    """

    q: dist.Distribution
    elbo_before: Float[Array, " trajectory"]
    elbo_after: Float[Array, " trajectory"]


def refine(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    *,
    num_steps: int = 500,
    num_particles: int = 8,
) -> Refined:
    """Closes the amortization gap by a few steps of SVI from each of the guide's posteriors.

    q(z0) = T(loc + scale_tril Normal(m, S S^T))

    T, loc and scale_tril are as in `exact_posterior`. SVI moves m from 0 and S from the
    identity, so its steps are in units of the guide (Kim et al. 2018, "Semi-amortized variational
    autoencoders"). The networks stay as they are.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        num_steps: steps of SVI.
        num_particles: draws per step.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_steps=num_steps, num_particles=num_particles)
    context, _ = check_data(fitted.model, context)
    max_steps = fitted.model.steps_to(context.times, context.offset)
    return _refine(rng_key, fitted, context, max_steps, num_steps, num_particles)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _refine(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    max_steps: int,
    num_steps: int,
    num_particles: int,
) -> Refined:
    moments_key, run_key, elbo_key = jax.random.split(rng_key, 3)
    fixed, prior = with_networks_fixed(fitted, context, max_steps)
    to_support = biject_to(prior.support)
    amortized = posterior(fitted, context)
    loc, scale_tril = whitening(moments_key, amortized, to_support)
    local = LocalNormals(loc, scale_tril, to_support)
    # Hides the networks from the optimizer, so that they stay as they are.
    model = handlers.block(fixed, hide_fn=lambda site: site["type"] == "param")
    svi = SVI(model, local, _optimizer(num_steps), OrderedELBO(num_particles=num_particles))
    result = svi.run(run_key, num_steps, context, progress_bar=False)
    refined = local.pushed(*local.of(result.params))
    return Refined(refined, *_elbos(elbo_key, fixed, context, amortized, refined))


def _optimizer(num_steps: int) -> optax.GradientTransformation:
    # In units of the guide, gradients are of order one. Where the ODE can hardly be solved, or not
    # at all, the gradient is huge or NaN, and Adam would not recover from it.
    rate = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    return optax.chain(optax.zero_nans(), optax.clip(10.0), optax.adam(rate))


def _elbos(
    rng_key: Array,
    fixed: Callable[..., Any],
    context: Trajectories,
    *qs: dist.Distribution,
    num_draws: int = 256,
) -> Float[Array, "q trajectory"]:
    keys = jax.random.split(rng_key, len(qs))
    scored = [draw_and_score(key, q, num_draws) for key, q in zip(keys, qs, strict=True)]
    draws, log_q = zip(*scored, strict=True)
    log_p = jax.lax.map(partial(log_joint, fixed, context), jnp.concatenate(draws), batch_size=8)
    log_q = jnp.stack(log_q)
    return jnp.mean(log_p.reshape(log_q.shape) - log_q, axis=1)

"""A guide's answers, refined one by one: local SVI under trained networks."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import numpyro.handlers as handlers
import optax
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer import SVI, Trace_ELBO

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.prediction import draw_and_score, posterior
from np_latentode.inference.density import (
    enough_steps,
    log_joint,
    whitening,
    with_networks_fixed,
)
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data, trajectory_plate

__all__ = ["Refined", "refine"]

LEARNING_RATE = 0.1
"""At first, in units of the guide: spirals whose guide is nine deviations off arrive."""


class Refined(NamedTuple):
    """A guide's answers after local steps.

    `q` is a distribution over z0, one a trajectory. The ELBOs, shape (trajectory,), are those of
    the guide and of `q`: E[log p(x, z0) - log q(z0)], no larger than log p(x). On a circle `q` is
    taken for a normal over the line of angles, which holds while it is narrow.
    """

    q: dist.Distribution
    elbo_before: Float[Array, " trajectory"]
    elbo_after: Float[Array, " trajectory"]


def refine(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    params: dict,
    context: Trajectories,
    *,
    num_steps: int = 500,
    num_particles: int = 8,
) -> Refined:
    """Closes the amortization gap: a few steps of SVI from the guide's answers, one by one.

    q(z0) = T(loc + scale_tril Normal(m, S S^T))

    With T, loc and scale_tril as in `exact_posterior`, SVI moves m from 0 and S from the identity,
    so that steps are in units of the guide (Kim et al. 2018, "Semi-amortized variational
    autoencoders"). The networks stay as they are.

    Args:
        rng_key: a key.
        model, guide, params: as fitted.
        context: what is known of each trajectory.
        num_steps: steps of SVI.
        num_particles: draws a step.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(num_steps=num_steps, num_particles=num_particles)
    check_data(model, context)
    max_steps = enough_steps(model, context)
    return _refine(rng_key, model, guide, params, context, max_steps, num_steps, num_particles)


@partial(jax.jit, static_argnums=(1, 2, 5, 6, 7))
def _refine(rng_key, model, guide, params, context, max_steps, num_steps, num_particles):
    moments_key, run_key, elbo_key = jax.random.split(rng_key, 3)
    fitted, prior = with_networks_fixed(model, params, context, max_steps)
    to_support = biject_to(prior.support)
    amortized = posterior(guide, params, context)
    loc, scale_tril = whitening(moments_key, amortized, to_support)
    identity = jnp.broadcast_to(jnp.eye(loc.shape[-1]), scale_tril.shape)

    def pushed(m, s):
        mean = loc + jnp.einsum("nij,nj->ni", scale_tril, m)
        normal = dist.MultivariateNormal(mean, scale_tril=scale_tril @ s)
        return dist.TransformedDistribution(normal, to_support)

    def local(context):
        m = numpyro.param("m", jnp.zeros_like(loc))
        s = numpyro.param("s", identity, constraint=constraints.softplus_lower_cholesky)
        with trajectory_plate(context, None):
            numpyro.sample("z0", pushed(m, s))

    rate = optax.cosine_decay_schedule(LEARNING_RATE, num_steps)
    svi = SVI(
        # Out of the optimizer's sight, the networks stay as they are.
        handlers.block(fitted, hide_fn=lambda site: site["type"] == "param"),
        local,
        # In units of the guide slopes are of order one, but a draw for which the ODE can hardly be
        # solved, or cannot, has one that is huge or NaN, which Adam would not forget.
        optax.chain(optax.zero_nans(), optax.clip(10.0), optax.adam(rate)),
        Trace_ELBO(num_particles=num_particles),
    )
    fit = svi.run(run_key, num_steps, context, progress_bar=False)
    refined = pushed(fit.params["m"], fit.params["s"])
    return Refined(refined, *_elbos(elbo_key, fitted, context, amortized, refined))


def _elbos(
    rng_key: Array, fitted: Any, context: Trajectories, *qs: Any, num_draws: int = 256
) -> Float[Array, "q trajectory"]:
    keys = jax.random.split(rng_key, len(qs))
    scored = [draw_and_score(key, q, num_draws) for key, q in zip(keys, qs, strict=True)]
    draws, log_q = zip(*scored, strict=True)
    log_p = jax.lax.map(partial(log_joint, fitted, context), jnp.concatenate(draws), batch_size=8)
    log_q = jnp.stack(log_q)
    return jnp.mean(log_p.reshape(log_q.shape) - log_q, axis=1)

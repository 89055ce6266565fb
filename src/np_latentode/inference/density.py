"""log p(x, z0) under trained networks, and the coordinates in which inference explores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import numpyro.handlers as handlers
from jaxtyping import Array, Float
from numpyro.distributions.transforms import Transform
from numpyro.infer.util import compute_log_probs

from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.model import LatentODE

__all__ = ["check_q", "log_joint", "whitening", "with_networks_fixed"]


def check_q[Q: dist.Distribution | None](q: Q, model: LatentODE, context: Trajectories) -> Q:
    """Refuses what is not a distribution over z0 with one entry per trajectory.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    shape = (len(context), model.latent_dim)
    if q is not None and (not isinstance(q, dist.Distribution) or q.shape() != shape):
        came = q.shape() if isinstance(q, dist.Distribution) else type(q).__name__
        raise ValueError(f"q must be over z0, one per trajectory, shape {shape}; got {came}.")
    return q


def with_networks_fixed(
    fitted: Fitted, context: Trajectories, max_steps: int
) -> tuple[Callable[..., Any], dist.Distribution]:
    """The model with its networks fixed, and its prior; a failed solve gives NaN.

    Raises:
        ValueError: if z0 is not the only site to infer.
    """
    model = fitted.model.with_solver(max_steps=max_steps, throw=False)
    fixed = handlers.substitute(model, data=fitted.params)
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        fixed(context)
    latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
    if latent != ["z0"]:
        raise ValueError(f"model must have z0 as its only unobserved site; got {latent}.")
    return fixed, sites["z0"]["fn"]


def log_joint(
    fixed: Callable[..., Any], context: Trajectories, z0: Float[Array, "trajectory latent"]
) -> Float[Array, " trajectory"]:
    """log p(x, z0) of the model with its networks fixed, one number per trajectory."""
    log_probs, _ = compute_log_probs(fixed, (context,), {}, {"z0": z0}, sum_log_prob=False)
    terms = [value.reshape(-1, len(context)).sum(0) for value in log_probs.values()]
    total = jnp.stack(terms).sum(0)
    return jnp.where(jnp.isnan(total), -jnp.inf, total)


def whitening(
    rng_key: Array, q: dist.Distribution, to_support: Transform, num_draws: int = 1_000
) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance of unconstrained z0, one per trajectory.

    By the delta method, which is exact if the transform is linear. Moments of the inverted draws
    would be wrong for an angle whose posterior crosses pi: the inverse splits it into two parts,
    near pi and near -pi.
    """
    draws = jnp.asarray(q.sample(rng_key, (num_draws,)))
    centre = to_support.inv(draws.mean(0))
    slope = jax.vmap(jax.jacfwd(to_support))(centre)
    gaps = draws - to_support(centre)
    steps = jnp.einsum("nuz,snz->snu", jnp.linalg.pinv(slope), gaps)
    mean = steps.mean(0)
    covariance = jnp.einsum("snu,snv->nuv", steps - mean, steps - mean) / num_draws
    # Rounding could make it indefinite where coordinates are nearly collinear.
    tril = jnp.linalg.cholesky(covariance * (1 + 1e-5 * jnp.eye(covariance.shape[-1])))
    return jnp.asarray(centre + mean), tril

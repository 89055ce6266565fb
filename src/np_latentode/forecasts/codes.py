"""z0 before and after a context was seen: the prior, the guide's posterior, and inference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import numpyro.handlers as handlers
from jaxtyping import Array, Float

from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.modules import bind_prior
from np_latentode.parts.threads import one_at_a_time
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_context

__all__ = ["Inference", "amortized", "draw_and_score", "draw_codes", "posterior", "prior"]

Inference = Callable[[Array, Fitted, Trajectories, int], Array]
"""`(rng_key, fitted, context, num_samples) -> z0`, shape (draw, trajectory, latent): how z0 is
drawn given a context. `amortized` asks the guide; `Sharpened()` and `Exact()` go on from there."""


@one_at_a_time
def prior(fitted: Fitted) -> dist.Distribution:
    """The model's distribution p(z0), with its trained parameters."""
    check_fitted(fitted)
    with handlers.seed(rng_seed=0), handlers.substitute(data=fitted.params):
        return bind_prior(fitted.model.prior)


@one_at_a_time
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


def amortized(rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int) -> Array:
    """Inference by the guide alone: draws z0 ~ q(z0 | context), in one pass of its encoder.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        num_samples: the number of draws.

    Returns:
        z0, shape (draw, trajectory, latent).
    """
    return _amortized(rng_key, fitted, context, num_samples)


@partial(jax.jit, static_argnums=3)
def _amortized(rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int) -> Array:
    return jnp.asarray(posterior(fitted, context).sample(rng_key, (num_samples,)))


def draw_codes(
    inference: Inference, rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int
) -> Float[Array, "draw trajectory latent"]:
    """Draws of z0 given a context, by any inference.

    Raises:
        ValueError: if `inference` is no function, or returns another shape.
    """
    if not callable(inference):
        raise ValueError(
            "inference must be a function (rng_key, fitted, context, num_samples) -> z0, such as "
            f"amortized or Sharpened(); got {inference!r}."
        )
    z0 = jnp.asarray(inference(rng_key, fitted, context, num_samples))
    shape = (num_samples, len(context), fitted.model.latent_dim)
    if z0.shape != shape:
        raise ValueError(
            f"inference must return z0 of shape (draw, trajectory, latent), {shape}; "
            f"got {z0.shape}."
        )
    return z0


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

"""Laplace's approximation of the posterior of z0."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.transforms import biject_to

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior, prior
from np_latentode.inference.mixtures import of_modes
from np_latentode.inference.modes import find_modes
from np_latentode.parts.supports import periods
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["laplace"]


def laplace(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    *,
    num_starts: int = 8,
    num_steps: int = 20,
) -> dist.Distribution:
    """The posterior of z0 as normals at its modes, weighed by their evidences (Tierney & Kadane
    1986).

    p(z0 | x) = T(sum_k w_k Normal(u_k, H_k^-1)),  w_k ~ p(x, u_k) |H_k|^-1/2

    T maps NumPyro's unconstrained space to the prior's support. The u_k are where
    Levenberg-Marquardt steps end that start at draws from the guide and from the prior; starts that
    end at the same mode count once. H_k is minus the second derivative of log p(x, u) there, by the
    generalized Gauss-Newton method, which takes the parameters of the distribution over x as
    linear in u. If they are, and x is normal, the approximation is exact.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        num_starts: starts per trajectory, of which half, rounded up, are the guide's.
        num_steps: Levenberg-Marquardt steps from each.

    Returns:
        A distribution over z0, one per trajectory. On a circle it is a mixture of normals over the
        line of angles, which holds while they are narrow.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(num_starts=num_starts, num_steps=num_steps)
    context, _ = check_data(fitted.model, context)
    max_steps = fitted.model.steps_to(context.times, context.offset)
    return _laplace(rng_key, fitted, context, num_starts, num_steps, max_steps)


@eqx.filter_jit
def _laplace(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    num_starts: int,
    num_steps: int,
    max_steps: int,
) -> dist.Distribution:
    guide_key, prior_key = jax.random.split(rng_key)
    before = prior(fitted)
    to_support = biject_to(before.support)
    guided = posterior(fitted, context).sample(guide_key, (num_starts - num_starts // 2,))
    blind = before.sample(prior_key, (num_starts // 2, len(context)))
    starts = to_support.inv(jnp.concatenate([guided, blind]))
    modes = find_modes(fitted, context, starts, max_steps=max_steps, num_steps=num_steps)
    found = of_modes(modes, periods(to_support, fitted.model.latent_dim))
    return dist.TransformedDistribution(found.normal, to_support)

"""Modes of p(z0 | x) and the curvature there, by Levenberg-Marquardt steps from several starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers as handlers
from jaxtyping import Array, Float
from numpyro.distributions.transforms import Transform, biject_to

from np_latentode.data.trajectories import Trajectories
from np_latentode.inference.density import with_networks_fixed
from np_latentode.inference.leaves import ordered_leaves
from np_latentode.programs.fitted import Fitted

__all__ = ["Place", "climb", "find_modes"]

LEAST_PRECISION = 0.1
"""Where the density is flat or convex, a mode counts as about three units of z0 wide."""

EASIER, HARDER = 0.2, 5.0
"""What a step that climbs, and one that does not, multiplies the damping by."""


class Place(NamedTuple):
    """Points u of unconstrained space, one per trajectory, and log p(x, u) around them."""

    u: Float[Array, "trajectory latent"]
    log_p: Float[Array, " trajectory"]
    slope: Float[Array, "trajectory latent"]
    precision: Float[Array, "trajectory latent latent"]
    """Minus the second derivative of log p(x, u), with the path linear in u."""

    @property
    def spectrum(self) -> tuple[Array, Array]:
        """The eigenvalues of the precision, all positive, and its eigenvectors."""
        values, vectors = jnp.linalg.eigh(self.precision)
        return jnp.maximum(values, LEAST_PRECISION), vectors

    @property
    def scale_tril(self) -> Array:
        """The Cholesky factor of the inverse of the precision."""
        values, vectors = self.spectrum
        return jnp.linalg.cholesky(jnp.einsum("nij,nj,nkj->nik", vectors, 1 / values, vectors))

    @property
    def log_evidence(self) -> Array:
        """log p(x) if p(x, u) were this normal: log p(x, u) + d/2 log 2 pi + log |scale_tril|."""
        values, _ = self.spectrum
        d = self.u.shape[-1]
        return self.log_p + 0.5 * d * math.log(2 * math.pi) - 0.5 * jnp.log(values).sum(-1)


def find_modes(
    fitted: Fitted,
    context: Trajectories,
    starts: Float[Array, "start trajectory latent"],
    *,
    max_steps: int,
    num_steps: int,
) -> Place:
    """Climbs log p(x, u) from each start; fields of the result have a first axis `start`.

    Args:
        fitted: the fit.
        context: the known observations of each trajectory.
        starts: points of unconstrained space.
        max_steps: of the ODE solve.
        num_steps: Levenberg-Marquardt steps.
    """
    # Forward derivatives: z0 has few dimensions, and x has many.
    forward = fitted.model.with_solver(adjoint=diffrax.ForwardMode())
    fitted = Fitted.tree_unflatten((forward, fitted.guide), (fitted.params,))
    fixed, prior = with_networks_fixed(fitted, context, max_steps)
    around = _around(fixed, prior, context, biject_to(prior.support))
    return jax.vmap(lambda u: climb(around, u, num_steps))(starts)


def climb(around: Callable[[Array], Place], u: Array, num_steps: int) -> Place:
    """Levenberg-Marquardt steps (Marquardt 1963): u + (precision + damping I)^-1 slope.

    A step that does not climb is not taken, and the next one is shorter.
    """

    def step(carry: tuple[Place, Array], _: None) -> tuple[tuple[Place, Array], None]:
        place, damping = carry
        values, vectors = place.spectrum
        along = jnp.einsum("nij,ni->nj", vectors, place.slope) / (values + damping[:, None])
        new = around(place.u + jnp.einsum("nij,nj->ni", vectors, along))
        climbed = (new.log_p > place.log_p) & jnp.isfinite(new.slope).all(-1)
        place = jax.tree.map(lambda a, b: jnp.where(_like(climbed, a), a, b), new, place)
        return (place, damping * jnp.where(climbed, EASIER, HARDER)), None

    first = jnp.ones(len(u), u.dtype)
    (place, _), _ = jax.lax.scan(step, (around(u), first), None, length=num_steps)
    return place


def _like(chosen: Array, array: Array) -> Array:
    return chosen.reshape(-1, *(1,) * (array.ndim - 1))


def _around(
    fixed: Callable[..., Any],
    prior: dist.Distribution,
    context: Trajectories,
    to_support: Transform,
) -> Callable[[Array], Place]:
    """u -> the density around it, by the generalized Gauss-Newton method (Schraudolph 2002).

    log p(x | u + e) is taken as log p(x | theta(u) + e d theta/du), where theta are the parameters
    of the distribution over x. It is exact if they are linear in u, whatever the distribution. The
    prior is not approximated.
    """

    def emission(u: Array) -> tuple[list[Array | None], Any]:
        with (
            handlers.seed(rng_seed=0),
            handlers.trace() as sites,
            handlers.substitute(data={"z0": jnp.asarray(to_support(u))}),
        ):
            fixed(context)
        # A distribution is a pytree of its parameters; its form is known when this was traced.
        leaves, rebuild["x"] = ordered_leaves(sites["x"]["fn"])
        real = [jnp.asarray(leaf) if _is_real(leaf) else None for leaf in leaves]
        others = [None if _is_real(leaf) else leaf for leaf in leaves]
        return real, (others, sites["x"]["value"])

    def log_prior(u: Array) -> Array:
        z0 = to_support(u)
        return jnp.asarray(prior.log_prob(z0) + to_support.log_abs_det_jacobian(u, z0))

    def around(u: Array) -> Place:
        d = u.shape[-1]
        units = jnp.broadcast_to(jnp.eye(d, dtype=u.dtype)[:, None], (d, *u.shape))
        real, slopes, (others, x) = jax.vmap(
            lambda unit: jax.jvp(emission, (u,), (unit,), has_aux=True), out_axes=(None, 0, None)
        )(units)

        def log_p(e: Array) -> Array:
            moved = jax.tree.map(lambda p, slope: p + jnp.tensordot(e, slope, 1), real, slopes)
            leaves = [b if a is None else a for a, b in zip(moved, others, strict=True)]
            return rebuild["x"](leaves).log_prob(x) + log_prior(u + e)

        def with_value(e: Array) -> tuple[Array, Array]:
            value = log_p(e)
            return value, value

        def with_slope(e: Array) -> tuple[Array, tuple[Array, Array]]:
            slope, value = jax.jacfwd(with_value, has_aux=True)(e)
            return slope, (slope, value)

        curvature, (slope, value) = jax.jacfwd(with_slope, has_aux=True)(jnp.zeros(d, u.dtype))
        value = jnp.where(jnp.isnan(value), -jnp.inf, value)
        return Place(u, value, slope, -curvature)

    rebuild: dict[str, Callable[[list[Any]], Any]] = {}
    return around


def _is_real(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)

"""Mixtures over unconstrained z0, one per trajectory: proposals that adapt to weighted draws."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from np_latentode.inference.modes import Place

__all__ = ["Mixture", "of_modes"]

DEGREES = 5.0
"""The degrees of freedom of a proposal's components. Its tails should be no lighter than those of
the posterior, or few draws would have most of the weight."""

SAME_MODE = 2.0
"""Two starts that end this close to each other, in standard deviations, have found one mode."""

TURNS = 3
"""The turns of a circle, to either side, over which a density is summed."""

LEAST_WEIGHT = 1e-3
"""A component with less weight than this is not adapted."""


class Mixture(eqx.Module):
    """A mixture over u, from which z0 is mapped, for each trajectory.

    `periods` are those of each coordinate: 2 pi for an angle, and infinite for other coordinates.
    An angle and the same angle after a turn are one point.
    """

    log_weight: Float[Array, "trajectory component"]
    loc: Float[Array, "trajectory component latent"]
    scale_tril: Float[Array, "trajectory component latent latent"]
    periods: tuple[float, ...] = eqx.field(static=True)

    @property
    def normal(self) -> dist.Distribution:
        """The mixture with normal components."""
        return self._of(dist.MultivariateNormal(self.loc, scale_tril=self.scale_tril))

    @property
    def student_t(self) -> dist.Distribution:
        """The mixture with Student's t components."""
        return self._of(dist.MultivariateStudentT(DEGREES, self.loc, self.scale_tril))

    def _of(self, components: Any) -> dist.Distribution:
        return dist.MixtureSameFamily(dist.CategoricalLogits(self.log_weight), components)

    def draw(
        self, rng_key: Array, num_draws: int
    ) -> tuple[Float[Array, "draw trajectory latent"], Float[Array, "draw trajectory"]]:
        """Draws of u with Student's t components, and their log densities."""
        u = jnp.asarray(self.student_t.sample(rng_key, (num_draws,)))
        gaps = shorter(u[:, :, None] - self.loc, self.periods)
        # A point of a circle is reached with each number of turns, the other way round as well.
        angles = [j for j, period in enumerate(self.periods) if period < float("inf")]
        log_q = []
        for turns in itertools.product(range(-TURNS, TURNS + 1), repeat=len(angles)):
            shift = jnp.zeros(u.shape[-1], u.dtype)
            for j, turn in zip(angles, turns, strict=True):
                shift = shift.at[j].set(turn * self.periods[j])
            log_q.append(self._log_components(gaps + shift))
        return u, jax.nn.logsumexp(jnp.stack(log_q), axis=(0, -1))

    def _log_components(self, gaps: Array) -> Array:
        """The weighted log densities of each component, at these distances from its loc."""
        centred = dist.MultivariateStudentT(DEGREES, jnp.zeros_like(self.loc), self.scale_tril)
        return centred.log_prob(gaps) + jax.nn.log_softmax(self.log_weight)

    def adapted(
        self, u: Float[Array, "draw trajectory latent"], weights: Float[Array, "draw trajectory"]
    ) -> Mixture:
        """The mixture with the weighted moments of its draws (Cappe et al. 2008, "M-PMC").

        weight_k = sum_s w_s r_ks,  loc_k = sum_s w_s r_ks u_s / weight_k,  and so on, where r_ks is
        the probability that draw u_s came from component k. With few draws to a component, some of
        its old covariance is kept.

        Args:
            u: draws of this mixture.
            weights: their importance weights; they sum to 1 for each trajectory.
        """
        gaps = shorter(u[:, :, None] - self.loc, self.periods)
        of = jax.nn.softmax(self._log_components(gaps), axis=-1)
        share = weights[..., None] * of
        weight = share.sum(0)
        share = share / jnp.maximum(weight, LEAST_WEIGHT)
        step = jnp.einsum("snk,snki->nki", share, gaps)
        rest = gaps - step
        covariance = jnp.einsum("snk,snki,snkj->nkij", share, rest, rest)
        old = jnp.einsum("nkij,nklj->nkil", self.scale_tril, self.scale_tril)
        kept = (u.shape[-1] + 2) * (share**2).sum(0)[..., None, None]
        covariance = (covariance + kept * old) / (1 + kept)
        tril = jnp.linalg.cholesky(covariance)
        good = (weight > LEAST_WEIGHT) & jnp.isfinite(tril).all((-1, -2))
        return replace(
            self,
            # What had no weight keeps none: no start ended there.
            log_weight=jnp.where(
                jnp.isneginf(self.log_weight),
                -jnp.inf,
                jnp.log(jnp.maximum(weight, LEAST_WEIGHT)),
            ),
            loc=jnp.where(good[..., None], self.loc + step, self.loc),
            scale_tril=jnp.where(good[..., None, None], tril, self.scale_tril),
        )


def of_modes(modes: Place, periods: tuple[float, ...], *, power: float = 1.0) -> Mixture:
    """A component at each mode, with its curvature and its share of the evidence.

    Args:
        modes: where the starts ended, with a first axis `start`.
        periods: as in `Mixture`.
        power: of the evidences. Below 1, weaker modes get more weight.
    """
    order = jnp.argsort(-modes.log_p, axis=0)
    ranked = jax.tree.map(
        lambda a: jnp.take_along_axis(a, order.reshape(*order.shape, *(1,) * (a.ndim - 2)), 0),
        modes,
    )
    found = jnp.stack([_found(ranked, k, periods) for k in range(len(order))])
    log_weight = jnp.where(found, -jnp.inf, power * jax.vmap(lambda m: m.log_evidence)(ranked))
    tril = jax.vmap(lambda m: m.scale_tril)(ranked)
    # Where a solve failed, all is NaN. Without any mode, the mixture is wide around the best start.
    nowhere = found.all(0)
    log_weight = log_weight.at[0].set(jnp.where(nowhere, 0.0, log_weight[0]))
    tril = tril.at[0].set(jnp.where(nowhere[:, None, None], jnp.eye(tril.shape[-1]), tril[0]))
    # A component without weight must have finite parameters, too.
    loc = jnp.where(found[..., None], ranked.u[0], ranked.u)
    tril = jnp.where(found[..., None, None], tril[0], tril)
    log_weight, loc, tril = (jnp.moveaxis(a, 0, 1) for a in (log_weight, loc, tril))
    return Mixture(jax.nn.log_softmax(log_weight), loc, tril, periods)


def shorter(gap: Array, periods: tuple[float, ...]) -> Array:
    """The gaps along each coordinate, by the shorter way around a circle."""
    period = jnp.asarray(periods, gap.dtype)
    turns = jnp.where(jnp.isfinite(period), jnp.round(gap / period), 0.0)
    return gap - jnp.where(turns == 0, 0.0, turns * period)


def _found(ranked: Place, k: int, periods: tuple[float, ...]) -> Array:
    """Whether a start with a higher density found the mode of the k-th one already."""
    lost = ~jnp.isfinite(ranked.log_p[k])
    if k == 0:
        return lost
    gap = shorter(ranked.u[k] - ranked.u[:k], periods)
    values, vectors = jax.vmap(lambda place: place.spectrum)(jax.tree.map(lambda a: a[:k], ranked))
    distance = (values * jnp.einsum("snij,sni->snj", vectors, gap) ** 2).sum(-1)
    return lost | (distance < SAME_MODE**2).any(0)

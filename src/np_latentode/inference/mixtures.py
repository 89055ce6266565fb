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
        # A point of a circle is reached with each number of turns.
        angles = [j for j, period in enumerate(self.periods) if period < float("inf")]
        log_q = []
        for turns in itertools.product((0, 1, -1), repeat=len(angles)):
            shift = jnp.zeros(u.shape[-1], u.dtype)
            for j, turn in zip(angles, turns, strict=True):
                shift = shift.at[j].set(turn * self.periods[j])
            log_q.append(self.student_t.log_prob(u + shift))
        return u, jax.nn.logsumexp(jnp.stack(log_q), axis=0)

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
        period = jnp.asarray(self.periods, u.dtype)
        gaps = u[:, :, None] - self.loc
        # The shorter way around a circle.
        turns = jnp.where(jnp.isfinite(period), jnp.round(gaps / period), 0.0)
        gaps = gaps - jnp.where(turns == 0, 0.0, turns * period)
        came = dist.MultivariateStudentT(DEGREES, jnp.zeros_like(self.loc), self.scale_tril)
        of = jax.nn.softmax(came.log_prob(gaps) + self.log_weight, axis=-1)
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
            log_weight=jnp.log(jnp.maximum(weight, LEAST_WEIGHT)),
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
    log_weight, loc, tril = (jnp.moveaxis(a, 0, 1) for a in (log_weight, ranked.u, tril))
    return Mixture(jax.nn.log_softmax(log_weight), loc, tril, periods)


def _found(ranked: Place, k: int, periods: tuple[float, ...]) -> Array:
    """Whether a start with a higher density found the mode of the k-th one already."""
    lost = ~jnp.isfinite(ranked.log_p[k])
    if k == 0:
        return jnp.zeros_like(lost)
    period = jnp.asarray(periods, ranked.u.dtype)
    gap = ranked.u[k] - ranked.u[:k]
    turns = jnp.where(jnp.isfinite(period), jnp.round(gap / period), 0.0)
    gap = gap - jnp.where(turns == 0, 0.0, turns * period)
    distance = jnp.einsum("sni,snij,snj->sn", gap, ranked.precision[:k], gap)
    return lost | (distance < SAME_MODE**2).any(0)

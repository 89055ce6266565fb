"""Noisy, irregularly observed spirals, and their exact posterior."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import i0e, i1e, logsumexp
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories

__all__ = ["SpiralFamily", "SpiralPosterior", "Spirals", "spirals"]


@jax.tree_util.register_pytree_with_keys_class
class Spirals(Trajectories):
    """Trajectories with the noiseless curves that their observations come from.

    Args:
        times, values: as of `Trajectories`.
        family: the family of the spirals.
        curves: shape (trajectory, dense, 2), noiseless, at `dense_times`.
        phase, direction: shape (trajectory,).
    """

    family: SpiralFamily
    curves: Float[Array, "trajectory dense 2"]
    phase: Float[Array, " trajectory"]
    direction: Float[Array, " trajectory"]

    _arrays = (*Trajectories._arrays, "curves", "phase", "direction")

    def __init__(
        self,
        times: ArrayLike,
        values: ArrayLike,
        *,
        family: SpiralFamily,
        curves: Array,
        phase: Array,
        direction: Array,
    ):
        super().__init__(times, values)
        self.family, self.curves = family, curves
        self.phase, self.direction = phase, direction

    @property
    def dense_times(self) -> Float[Array, " dense"]:
        return self.family.dense_times


@dataclass(frozen=True)
class SpiralFamily:
    """The curves  r(t) (cos a(t), sin a(t)),  r(t) = radius + growth t,
    a(t) = direction * speed * t + phase.  The phase is uniform on the circle, and the direction is
    -1 or 1. Observations are at random times of a regular grid and have Gaussian noise, as in Chen
    et al. (2018), section 5.1.

    Args:
        end: curves run over [0, end].
        num_dense: the number of grid points on it.
        num_observed: the number of grid points that are observed, drawn at random.
        noise_scale: standard deviation of the observations.
        radius, growth, speed: the shape, in units of x, x per time, radians per time.
    """

    end: float = 5.0
    num_dense: int = 100
    num_observed: int = 30
    noise_scale: float = 0.05
    radius: float = 0.5
    growth: float = 0.4
    speed: float = 1.5

    def __post_init__(self) -> None:
        for name in ("end", "noise_scale", "radius", "growth", "speed"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite; got {getattr(self, name)}.")
        for name in ("end", "noise_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}.")
        for name in ("num_dense", "num_observed"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"{name} must be an integer; got {getattr(self, name)}.")
        if not 1 <= self.num_observed <= self.num_dense:
            raise ValueError(
                f"num_observed must lie between 1 and num_dense = {self.num_dense}; "
                f"got {self.num_observed}."
            )

    @property
    def dense_times(self) -> Float[Array, " dense"]:
        return jnp.linspace(0.0, self.end, self.num_dense)

    def curve(
        self, phase: ArrayLike, direction: ArrayLike, times: Float[Array, "*batch time"]
    ) -> Float[Array, "*batch time 2"]:
        """The noiseless curve; phase and direction have the leading axes of `times`."""
        phase, direction = jnp.asarray(phase)[..., None], jnp.asarray(direction)[..., None]
        angle = direction * self.speed * times + phase
        r = self.radius + self.growth * times
        return jnp.stack([r * jnp.cos(angle), r * jnp.sin(angle)], axis=-1)

    def sample(self, rng_key: Array, num_trajectories: int) -> Spirals:
        """Draws spirals and observes them."""
        check_counts(num_trajectories=num_trajectories)
        return self._sample(rng_key, num_trajectories)

    @partial(jax.jit, static_argnums=(0, 2))
    def _sample(self, rng_key: Array, num_trajectories: int) -> Spirals:
        curve_key, sample_key, noise_key = jax.random.split(rng_key, 3)
        dense = self.dense_times

        def one(curve_key: Array, sample_key: Array) -> tuple[Array, Array, Array, Array]:
            phase_key, direction_key = jax.random.split(curve_key)
            phase = jax.random.uniform(phase_key, maxval=2 * jnp.pi)
            direction = jax.random.choice(direction_key, jnp.array([-1.0, 1.0]))
            slots = (self.num_observed,)
            seen = jax.random.choice(sample_key, self.num_dense, slots, replace=False)
            return phase, direction, self.curve(phase, direction, dense), jnp.sort(seen)

        phase, direction, curves, seen = jax.vmap(one)(
            jax.random.split(curve_key, num_trajectories),
            jax.random.split(sample_key, num_trajectories),
        )
        values = jnp.take_along_axis(curves, seen[..., None], axis=1)
        noise = self.noise_scale * jax.random.normal(noise_key, values.shape)
        return Spirals(
            dense[seen],
            values + noise,
            family=self,
            curves=curves,
            phase=phase,
            direction=direction,
        )

    def nearest(
        self, curves: Float[ArrayLike, "curve time 2"], times: Float[Array, " time"]
    ) -> tuple[Float[Array, " curve"], Float[Array, " curve"], Float[Array, " curve"]]:
        """The nearest spiral of the family to each curve: phase, direction, mean squared error.

        With curves as complex numbers y and r = radius + growth t, the mean squared error over
        times and the two coordinates is, minimised over the phase,

        (sum_k |y_k|^2 + r_k^2 - 2 |C_d|) / 2 K,   C_d = sum_k r_k exp(-i d speed t_k) y_k,

        at phase = arg C_d; the direction d is the better one of -1 and 1.
        """
        x = jnp.asarray(curves)
        y = x[..., 0] + 1j * x[..., 1]
        r = self.radius + self.growth * times
        directions = jnp.array([-1.0, 1.0])
        turn = jnp.exp(-1j * self.speed * directions[:, None] * times)
        c = jnp.einsum("dt,nt->nd", r * turn, y)
        best = jnp.argmax(jnp.abs(c), axis=-1)
        c = jnp.take_along_axis(c, best[:, None], axis=-1)[:, 0]
        mse = (jnp.sum(jnp.abs(y) ** 2 + r**2, axis=-1) - 2 * jnp.abs(c)) / (2 * len(times))
        return jnp.angle(c), directions[best], jnp.maximum(mse, 0.0)

    def posterior(self, context: Trajectories) -> SpiralPosterior:
        """The exact posterior of phase and direction: no method can do better.

        With x and curves as complex numbers, the log likelihood of a phase p under a direction d is
        Re(exp(-i p) C_d) / noise_scale^2 + const with C_d = sum_k r(t_k) exp(-i d speed t_k) x_k.
        So p | d, x ~ VonMises(arg C_d, |C_d| / noise_scale^2), and d has odds
        I0(|C_1| / noise_scale^2) : I0(|C_-1| / noise_scale^2).

        Raises:
            ValueError: if a point is observed in one coordinate only, as the formulas need both.
        """
        if (context.mask[..., 0] != context.mask[..., 1]).any():
            raise ValueError("context must observe both coordinates of a point, or none.")
        directions = jnp.array([-1.0, 1.0])
        x = context.values[..., 0] + 1j * context.values[..., 1]
        r = jnp.where(context.mask[..., 0], self.radius + self.growth * context.times, 0.0)
        turn = jnp.exp(-1j * self.speed * directions[:, None] * context.times[:, None])
        c = jnp.sum(r[:, None] * x[:, None] * turn, axis=-1)
        concentration = jnp.abs(c) / self.noise_scale**2
        log_i0 = jnp.log(i0e(concentration)) + concentration
        count = context.mask[..., 0].sum(-1)
        log_evidence = (
            logsumexp(log_i0, axis=-1)
            - jnp.log(2.0)
            - jnp.sum(jnp.abs(x) ** 2 + r**2, axis=-1) / (2 * self.noise_scale**2)
            - count * jnp.log(2 * jnp.pi * self.noise_scale**2)
        )
        weight = jax.nn.softmax(log_i0, axis=-1)
        return SpiralPosterior(self, weight, jnp.angle(c), concentration, log_evidence)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpiralPosterior:
    """The exact posterior of spirals: given the direction, -1 or 1, the phase is von Mises.

    `weight`, `loc`, `concentration` have shape (trajectory, 2), one column per direction.
    `log_evidence` (trajectory,) is log p(x).
    """

    family: SpiralFamily = field(metadata={"static": True})
    weight: Float[Array, "trajectory 2"]
    loc: Float[Array, "trajectory 2"]
    concentration: Float[Array, "trajectory 2"]
    log_evidence: Float[Array, " trajectory"]

    def mean(self, times: Float[Array, " time"]) -> Float[Array, "trajectory time 2"]:
        """E[x(t) | context]: each direction's curve at its mean phase, shrunk by I1 / I0."""
        shrink = i1e(self.concentration) / i0e(self.concentration)
        directions = jnp.broadcast_to(jnp.array([-1.0, 1.0]), self.loc.shape)
        times = jnp.broadcast_to(times, (*self.loc.shape, len(times)))
        curves = self.family.curve(self.loc, directions, times)
        return jnp.einsum("id,idtx->itx", self.weight * shrink, curves)

    def sample(
        self, rng_key: Array, times: Float[Array, " time"], num_samples: int
    ) -> Float[Array, "draw trajectory time 2"]:
        """Draws of noisy observations at new times."""
        direction_key, phase_key, noise_key = jax.random.split(rng_key, 3)
        shape = (num_samples, len(self.loc))
        pick = dist.CategoricalProbs(self.weight).sample(direction_key, (num_samples,))
        # An empty context has concentration 0: its phase is uniform. VonMises needs more than 0.
        concentration = jnp.maximum(self.concentration, 1e-6)
        phases = dist.VonMises(self.loc, concentration).sample(phase_key, (num_samples,))
        phase = jnp.take_along_axis(phases, pick[..., None], axis=-1)[..., 0]
        times = jnp.broadcast_to(times, (*shape, len(times)))
        curves = self.family.curve(phase, 2.0 * pick - 1.0, times)
        return curves + self.family.noise_scale * jax.random.normal(noise_key, curves.shape)


def spirals(rng_key: Array, num_trajectories: int = 250, **numbers: Any) -> Spirals:
    """Draws noisy spirals, irregularly observed.

    Args:
        rng_key: a key.
        num_trajectories: how many.
        **numbers: the arguments of `SpiralFamily`.
    """
    return SpiralFamily(**numbers).sample(rng_key, num_trajectories)

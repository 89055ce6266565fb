"""p(x, z0): the latent ODE as a NumPyro model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import ArrayLike

from np_latentode.conditioning import Conditioning
from np_latentode.modules import (
    bind,
    check_module,
    output_shape,
    vector_dim,
    with_parameters,
)
from np_latentode.plate import check_call, subsample, trajectory_plate
from np_latentode.scaling import Scaling, check_scaling
from np_latentode.solve import Solver, solve
from np_latentode.trajectories import Numbers, Trajectories

__all__ = ["LatentODE"]


class LatentODE:
    """The latent ODE (Rubanova, Chen & Duvenaud 2019), a NumPyro model.

    z0_i   ~  prior
    z_i(t) =  ODESolve(dynamics, z0_i, t0 -> t)
    x_i(t) ~  Normal(decoder(z_i(t)), noise_scale)     where observed

    Sites, all in the plate `trajectory`: `z0`, `x`, and the deterministic `x_mean`, which with `x`
    is in original units. Parameters: `dynamics$params`, `decoder$params`, those of the prior, and
    `noise_scale` where it is learned.

    Args:
        dynamics: an nnx module `(t, z) -> dz/dt`, with t a scalar in scaled time and z of shape
            (trajectory, latent).
        decoder: an nnx module `z -> E[x | z]` in scaled units.
        prior: an nnx module `() -> distribution` over z0.
        scaling: the units; the guide must be given the same.
        noise_scale: the standard deviation of the observations in original units, one for all or
            one a feature. Default: learned, one a feature, from half of the feature's unit on.
        solver: how to solve.

    Raises:
        ValueError: if a part is of the wrong kind, or the parts' dimensions do not fit.
    """

    def __init__(
        self,
        dynamics: nnx.Module,
        decoder: nnx.Module,
        *,
        prior: nnx.Module,
        scaling: Scaling,
        noise_scale: ArrayLike | None = None,
        solver: Solver | None = None,
    ):
        for name, module in (("dynamics", dynamics), ("decoder", decoder), ("prior", prior)):
            check_module(name, module)
        self.dynamics, self.decoder, self.prior = dynamics, decoder, prior
        self.scaling = check_scaling(scaling)
        self.noise_scale = _check_noise(noise_scale, scaling)
        self.solver = Solver() if solver is None else solver
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be a np_latentode.Solver; got {solver!r}.")
        self.trained = with_parameters(dynamics=dynamics, decoder=decoder, prior=prior)
        self.latent_dim = vector_dim("prior", prior, batch_shape=())
        self._check_dimensions()

    def __call__(
        self,
        context: Trajectories,
        target: Trajectories | Numbers | None = None,
        *,
        conditioning: Conditioning | None = None,
        batch_size: int | None = None,
        kl_weight: ArrayLike = 1.0,
    ) -> None:
        """Declares the joint distribution of z0 and x.

        Args:
            context: what the guide's encoder reads; here only the default of the target.
            target: what x is. Default: the context. Other `Trajectories` of as many trajectories:
                these are scored. Times, shape (time,) or (trajectory, time): x there is sampled.
            conditioning: what the encoder may see in a training step; for the guide alone.
            batch_size: draw that many trajectories at random and scale their log densities up.
            kl_weight: the weight of the KL from guide to prior; positive, 1 in an ELBO.

        Raises:
            ValueError: naming the argument, the rule and what came.
        """
        context, asked = check_call(
            context, target, batch_size=batch_size, kl_weight=kl_weight, scaling=self.scaling
        )
        dynamics, decoder = bind("dynamics", self.dynamics), bind("decoder", self.decoder)
        prior = bind("prior", self.prior)()
        noise_scale = self._noise_scale()
        with trajectory_plate(context, batch_size):
            asked = subsample(asked)
            times = asked.times if isinstance(asked, Trajectories) else asked
            with numpyro.handlers.scale(scale=kl_weight):
                z0 = jnp.asarray(numpyro.sample("z0", prior))
            z = solve(dynamics, z0, self.scaling.scale_times(times), solver=self.solver)
            x_mean = self.scaling.unscale_values(decoder(z))
            numpyro.deterministic("x_mean", x_mean)
            likelihood = dist.Normal(x_mean, noise_scale)
            if isinstance(asked, Trajectories):
                # Masked before to_event, each trajectory is one term, as LOO wants it.
                likelihood = likelihood.mask(asked.mask).to_event(2)
                numpyro.sample("x", likelihood, obs=asked.values)
            else:
                numpyro.sample("x", likelihood.to_event(2))

    def _noise_scale(self) -> jax.Array:
        if self.noise_scale is not None:
            return self.noise_scale
        start = jnp.asarray(0.5 * self.scaling.scale, dtype=jnp.result_type(float))
        noise_scale = numpyro.param("noise_scale", start, constraint=dist.constraints.positive)
        return jnp.asarray(noise_scale)

    def _check_dimensions(self) -> None:
        t, z = jnp.zeros(()), jnp.zeros((1, self.latent_dim))
        slope = output_shape("dynamics", self.dynamics, t, z)
        if slope != z.shape:
            raise ValueError(
                f"dynamics must return dz/dt of the shape of z, (trajectory, {self.latent_dim}); "
                f"got {slope} for one trajectory."
            )
        mean = output_shape("decoder", self.decoder, z[:, None])
        if mean != (1, 1, len(self.scaling.loc)):
            raise ValueError(
                f"decoder must return shape (trajectory, time, {len(self.scaling.loc)}), the "
                f"scaling's features; got {mean} for one trajectory at one time."
            )


def _check_noise(noise_scale: ArrayLike | None, scaling: Scaling) -> jax.Array | None:
    if noise_scale is None:
        return None
    noise_scale = jnp.asarray(noise_scale, dtype=jnp.result_type(float))
    positive = jnp.isfinite(noise_scale) & (noise_scale > 0)
    if noise_scale.shape not in ((), scaling.loc.shape) or not positive.all():
        raise ValueError(
            "noise_scale must be positive and finite, one number or one a feature, shape "
            f"{scaling.loc.shape}; got {noise_scale}."
        )
    return noise_scale

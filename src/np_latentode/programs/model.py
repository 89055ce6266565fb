"""The latent ODE p(x, z0), a NumPyro model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike

from np_latentode.data.conditioning import Conditioning
from np_latentode.data.inputs import Inputs
from np_latentode.data.numbers import Numbers
from np_latentode.data.offset import Offset
from np_latentode.data.scaling import Scaling, check_scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.devices import by_rows
from np_latentode.parts.driven import Drive, check_drivable, solve_driven
from np_latentode.parts.emissions import Seen, along, measured
from np_latentode.parts.likelihoods import (
    FeatureLikelihoods,
    GaussianLikelihood,
    Likelihood,
    check_distribution,
    check_likelihood,
    check_observed,
)
from np_latentode.parts.modules import (
    Part,
    as_pytree,
    bind,
    bind_prior,
    check_module,
    covariates_read,
    inputs_read,
    output_shape,
    parameter_names,
    told,
    vector_distribution,
)
from np_latentode.parts.solve import Solver, solve
from np_latentode.programs.plate import (
    check_batch,
    check_call,
    check_new,
    less_offset,
    limits_less,
    subsample,
    trajectory_plate,
)

__all__ = ["LatentODE"]


class LatentODE:
    """The latent ODE (Rubanova, Chen & Duvenaud 2019), a NumPyro model.

    z0_i   ~  prior
    z_i(t) =  ODESolve(dynamics, z0_i + shift(s_i), t0 -> t)
    x_i(t) ~  likelihood(decoder(z_i(t)))              where observed

    s_i are the static covariates of trajectory i, if there are some, in scaled units. With inputs,
    dynamics may read u_i(t), and the state jumps at events: z_i(t+) = z_i(t) + jump(amounts).

    Its sites are `z0`, `x`, and the deterministic site `x_mean`, all in the plate `trajectory`. `x`
    and `x_mean` are in original units, less `offset` of the trajectories, as their `values` are;
    the offset is mostly 0. Its parameters are `dynamics$params`, `decoder$params`,
    `prior$params`, `shift$params`, `jump$params`, and those that the likelihood declares, such as
    `noise_scale`.

    Each part is an nnx module; or a function without arguments that may declare NumPyro parameters
    and returns the part. The function is called outside of the plate.

    Args:
        dynamics: `(t, z) -> dz/dt`, with t a scalar in scaled time and z of shape
            (trajectory, latent). One with an attribute `num_covariates` is called with s as well,
            one with an attribute `num_inputs` with the constant and linear inputs at t, and one
            with both with [inputs, s].
        decoder: `z -> (trajectory, time, feature)` in scaled units.
        prior: `() -> distribution` over z0.
        scaling: the units. Model and guide must be given the same.
        likelihood: `scaling -> (decoded -> distribution over x)`; or a mapping of such by the name
            of their feature, as in `{"edema": BernoulliLikelihood()}`, which is kept as
            `FeatureLikelihoods`. Default, also of features that are not named: Gaussian, with a
            learned noise scale per feature.
        solver: the settings of the ODE solve.
        shift: `s -> (trajectory, latent)`, by which static covariates move z0. Default: they do
            not.
        jump: `amounts -> (trajectory, latent)`, by which events move z. Default: they do not.

    Raises:
        ValueError: if a part is of the wrong kind, or the parts' dimensions do not fit.
    """

    def __init__(
        self,
        dynamics: Part,
        decoder: Part,
        *,
        prior: Part,
        scaling: Scaling,
        likelihood: Likelihood | Mapping[str, Likelihood] | None = None,
        solver: Solver | None = None,
        shift: Part | None = None,
        jump: Part | None = None,
    ):
        parts = dict(dynamics=dynamics, decoder=decoder, prior=prior)
        asked = {name: part for name, part in dict(shift=shift, jump=jump).items()}
        asked = {name: part for name, part in asked.items() if part is not None}
        for name, module in (parts | asked).items():
            check_module(name, module)
        self.dynamics, self.decoder, self.prior = dynamics, decoder, prior
        self.shift, self.jump = shift, jump
        self.scaling = check_scaling(scaling)
        if isinstance(likelihood, Mapping):
            likelihood = FeatureLikelihoods.by_name(likelihood, scaling, GaussianLikelihood)
        self.likelihood = check_likelihood(
            GaussianLikelihood() if likelihood is None else likelihood
        )
        self.solver = Solver() if solver is None else solver
        if not isinstance(self.solver, Solver):
            raise ValueError(f"solver must be a np_latentode.Solver; got {solver!r}.")
        # The models that differ from this one in the settings of the solver only.
        self._alike = [self]
        self.latent_dim, self.support = vector_distribution("prior", prior, batch_shape=())
        self._check_dimensions()
        self.trained = parameter_names(lambda: self._bind(self.scaling))

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
            context: the observations that the guide's encoder reads. In the model, they are the
                default of the target. With a residual process, x is also conditioned on them.
                Static covariates and inputs are those of the context, whatever the target has.
            target: `Trajectories`, as many as in the context: the observed x. Or times, shape
                (time,) or (trajectory, time), at which x is sampled. Default: the context. With a
                residual process, a target must not repeat observations of the context.
            conditioning: ignored by the model; see `AmortizedGuide`.
            batch_size: the number of trajectories that are drawn at random; their log densities are
                scaled up to the size of the data. Default: all.
            kl_weight: the weight of the KL divergence from guide to prior; positive. It is 1 in an
                ELBO.

        Raises:
            ValueError: naming the argument, the rule and what came.
        """
        context, asked = check_call(
            context, target, batch_size=batch_size, kl_weight=kl_weight, scaling=self.scaling
        )
        if isinstance(asked, Trajectories):
            check_observed(self.likelihood, asked, name="context" if target is None else "target")
            if self.remembers and target is not None:
                check_new(context, asked)
        # All numbers of the model are less the offset, the units as well.
        offset = asked.offset if isinstance(asked, Trajectories) else context.offset
        scaling = self.scaling.less(offset)
        dynamics, decoder, prior, likelihood, shift, jump = self._bind(scaling)
        with numpyro.handlers.trace() as sites, trajectory_plate(context, batch_size):
            asked = subsample(asked)
            seen = self._seen(context, scaling, offset) if target is not None else None
            times, mask = self._asked(asked)
            with numpyro.handlers.scale(scale=kl_weight):
                z0 = jnp.asarray(numpyro.sample("z0", prior))
            check_batch(sites)
            # One solve for all times: those asked for, and those seen if the likelihood remembers.
            every = times if seen is None else jnp.concatenate([times, seen.times], axis=1)
            mine = subsample(context)
            s = scaling.scale_static(mine.static) if self._reads else None
            start = z0 if shift is None else z0 + shift(s)
            drive = self._drive(mine.inputs, s, scaling, offset)
            z = self._solve(dynamics, jump, start, scaling.scale_times(every), drive, s)
            decoded, before = jnp.split(decoder(z), [times.shape[1]], axis=1)
            known = None if seen is None else seen._replace(decoded=before)
            x = along(likelihood, decoded, times, mask, known)
            if isinstance(asked, Trajectories):
                x = measured(x, asked.error, asked.limits)
            numpyro.deterministic("x_mean", x.mean)
            if isinstance(asked, Trajectories):
                # Masked before to_event, so that each trajectory is one term, as LOO needs.
                numpyro.sample("x", x.mask(asked.mask).to_event(2), obs=asked.values)
            else:
                numpyro.sample("x", x.to_event(2))

    def _drive(
        self, inputs: Inputs | None, s: Array | None, scaling: Scaling, offset: Offset
    ) -> Drive | None:
        """What drives the solve; None if no part reads inputs."""
        if not self._driven or inputs is None:
            return None
        scaled = scaling.scale_inputs(inputs.at_offset(offset.time))
        static = s if "dynamics" in self._reads else None
        return None if scaled is None else Drive(scaled, static, "dynamics" in self._driven)

    def _solve(
        self,
        dynamics: Any,
        jump: Any,
        start: Array,
        times: Array,
        drive: Drive | None,
        s: Array | None,
    ) -> Array:
        parts = (as_pytree(dynamics), None if jump is None else as_pytree(jump))
        driven = None if drive is None else (drive.inputs, drive.s)

        def run(parts: Any, start: Array, times: Array, driven: Any, s: Array | None) -> Array:
            dynamics, jump = parts
            if drive is not None:
                mine = Drive(*driven, controlled=drive.controlled)
                return solve_driven(dynamics, jump, start, times, mine, solver=self.solver)
            if "dynamics" in self._reads:
                dynamics = told(dynamics, s)
            return solve(dynamics, start, times, solver=self.solver)

        if np.isinf(self.solver.reach):
            # Adaptive steps are those of the whole batch.
            return run(parts, start, times, driven, s)
        return by_rows(run, parts, start, times, driven, s)

    def _seen(self, context: Trajectories, scaling: Scaling, offset: Offset) -> Seen | None:
        """What the likelihood remembers of the context, less the offset and not decoded yet."""
        if not self.remembers:
            return None
        seen = subsample(context)
        times, values = less_offset(seen, offset)
        # The model does not solve to slots that are hidden, which may lie far ahead.
        times = jnp.where(seen.observed, times, scaling.t0)
        limits = limits_less(seen, offset)
        return Seen(jnp.zeros_like(values), times, values, seen.mask, seen.error, limits)

    def _asked(self, asked: Trajectories | Array) -> tuple[Array, Array]:
        """The times at which x is modelled, and where it is observed or asked for."""
        if isinstance(asked, Trajectories):
            return asked.times, asked.mask
        return asked, jnp.ones((*asked.shape, len(self.scaling.loc)), bool)

    def with_solver(self, **changes: Any) -> LatentODE:
        """The same model, with other settings of its `Solver`; for the same settings, one object.

        JAX compiles a program for each object anew.
        """
        solver = replace(self.solver, **changes)
        for model in self._alike:
            if model.solver == solver:
                return model
        model = copy.copy(self)
        model.solver = solver
        self._alike.append(model)
        return model

    def less(self, offset: Offset) -> LatentODE:
        """The same model of numbers that are less this offset."""
        model = copy.copy(self)
        model.scaling = self.scaling.less(offset)
        model._alike = [model]
        return model

    @property
    def latest_time(self) -> float:
        """The latest time that the solver reaches, in original units."""
        return self.scaling.t0 + self.solver.reach * self.scaling.time_unit

    def steps_to(self, times: Numbers, offset: Offset) -> int:
        """The `max_steps` of a solve to the latest of these times, which are less an offset.

        Inside of JAX's transformations times are not known, and the solver's own are returned.
        """
        if isinstance(times, jax.core.Tracer):
            return self.solver.max_steps
        return self.solver.steps_to(
            float(self.scaling.less(offset).scale_times(jnp.asarray(times)).max())
        )

    def with_prior(self, prior: Part) -> LatentODE:
        """The same model under another prior."""
        return LatentODE(
            self.dynamics,
            self.decoder,
            prior=prior,
            scaling=self.scaling,
            likelihood=self.likelihood,
            solver=self.solver,
            shift=self.shift,
            jump=self.jump,
        )

    def _bind(self, scaling: Scaling):
        """The parts with their parameters. Call it outside of the plate, as in `bind`."""
        return (
            bind("dynamics", self.dynamics),
            bind("decoder", self.decoder),
            bind_prior(self.prior),
            self.likelihood(scaling),
            None if self.shift is None else bind("shift", self.shift),
            None if self.jump is None else bind("jump", self.jump),
        )

    def _check_dimensions(self) -> None:
        t, z = jnp.zeros(()), jnp.zeros((1, self.latent_dim))
        count = self.scaling.num_covariates
        readers = dict(dynamics=self.dynamics, shift=self.shift)
        self._reads = {name for name, part in readers.items() if covariates_read(name, part, count)}
        s = [jnp.zeros((1, count))]
        self._check_inputs(z)
        size = count * ("dynamics" in self._reads)
        size += getattr(self.dynamics, "num_inputs", 0)
        u = [jnp.zeros((1, size))] if size else []
        slope = output_shape("dynamics", self.dynamics, t, z, *u)
        if slope != z.shape:
            raise ValueError(
                f"dynamics must return dz/dt of the shape of z, (trajectory, {self.latent_dim}); "
                f"got {slope} for one trajectory."
            )
        if self.shift is not None and output_shape("shift", self.shift, *s) != z.shape:
            raise ValueError(
                f"shift must return the shape of z0, (trajectory, {self.latent_dim}); got "
                f"{output_shape('shift', self.shift, *s)} for one trajectory."
            )
        mean = output_shape("decoder", self.decoder, z[:, None])
        if mean != (1, 1, len(self.scaling.loc)):
            raise ValueError(
                f"decoder must return shape (trajectory, time, {len(self.scaling.loc)}), the "
                f"scaling's features; got {mean} for one trajectory at one time."
            )
        self.remembers = check_distribution(self.likelihood, self.scaling)

    def _check_inputs(self, z: Array) -> None:
        """Notes which parts read inputs, if they and the solver fit."""
        units = self.scaling.inputs
        controls, events = (0, 0) if units is None else (units.num_controls, units.num_events)
        self._driven: set[str] = set()
        if inputs_read("dynamics", self.dynamics, controls):
            self._driven.add("dynamics")
        if self.jump is not None:
            if not events:
                raise ValueError("jump must be left out where no input is an event; got one.")
            self._driven.add("jump")
            shape = output_shape("jump", self.jump, jnp.zeros((1, events)))
            if shape != z.shape:
                raise ValueError(
                    f"jump must return the shape of z, (trajectory, {self.latent_dim}); got "
                    f"{shape} for one trajectory."
                )
        if self._driven:
            check_drivable(self.solver)

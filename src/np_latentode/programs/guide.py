"""The amortized guide q(z0 | x), a NumPyro guide."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro
from jaxtyping import Array, ArrayLike

from np_latentode.data.conditioning import Conditioning
from np_latentode.data.numbers import Numbers
from np_latentode.data.scaling import Scaling, check_scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.devices import by_rows
from np_latentode.parts.modules import (
    Part,
    as_pytree,
    bind,
    check_module,
    covariates_read,
    feature_dim,
    inputs_read,
    parameter_names,
    told,
    vector_distribution,
)
from np_latentode.programs.plate import check_call, subsample, trajectory_plate

__all__ = ["AmortizedGuide"]


class AmortizedGuide:
    """The recognition network of a latent ODE, a NumPyro guide for `LatentODE`.

    z0_i  ~  posterior(encoder(context_i))

    Its one site is `z0`, in the plate `trajectory`. Its parameters are `encoder$params` and
    `posterior$params`. Each part is an nnx module, or a function as in `LatentODE`.

    Args:
        encoder: `(times, values, mask) -> features`, with inputs in scaled units and one row of
            features per trajectory. One with an attribute `num_inputs` takes what `Inputs.read`
            says of inputs at these times as well, with amounts that decay at the rate of its
            attribute `event_decay`, if it has one. One with an attribute `num_covariates` takes the
            static covariates s.
        posterior: `features -> distribution` over z0.
        scaling: the units. Model and guide must be given the same.

    Raises:
        ValueError: if a part is of the wrong kind, holds state other than parameters, or does not
            fit the other.
    """

    def __init__(self, encoder: Part, posterior: Part, *, scaling: Scaling):
        for name, module in (("encoder", encoder), ("posterior", posterior)):
            check_module(name, module)
        self.encoder, self.posterior = encoder, posterior
        self.scaling = check_scaling(scaling)
        count = self.scaling.num_covariates
        self._reads = covariates_read("encoder", encoder, count)
        units = self.scaling.inputs
        entries = 0 if units is None else units.num_readings
        self._reads_inputs = inputs_read("encoder", encoder, entries)
        features = jnp.zeros((1, feature_dim(encoder, len(self.scaling.loc), count, entries)))
        self.latent_dim, self.support = vector_distribution(
            "posterior", posterior, features, batch_shape=(1,)
        )
        self.trained = parameter_names(self._bind)

    def __call__(
        self,
        context: Trajectories,
        target: Trajectories | Numbers | None = None,
        *,
        conditioning: Conditioning | None = None,
        batch_size: int | None = None,
        kl_weight: ArrayLike = 1.0,
    ) -> None:
        """Declares the approximate posterior of z0; the arguments are those of `LatentODE`.

        Args:
            context: the observations that the encoder reads.
            target: ignored by the guide.
            conditioning: `(rng_key, trajectories) -> trajectories`, picks the part of the context
                that the encoder sees in this call. The model still explains its whole target: any
                q(z0 | part of x) gives a lower bound of log p(x).
            batch_size, kl_weight: as in `LatentODE`.

        Raises:
            ValueError: naming the argument, the rule and what came.
        """
        context, _ = check_call(
            context, target, batch_size=batch_size, kl_weight=kl_weight, scaling=self.scaling
        )
        encoder, posterior = self._bind()
        scaling = self.scaling.less(context.offset)
        with trajectory_plate(context, batch_size):
            seen = subsample(context)
            if conditioning is not None:
                seen = conditioning(jnp.asarray(numpyro.prng_key()), seen)
            beside: list[Array | None] = []
            if self._reads:
                beside.append(scaling.scale_static(seen.static))
            times = scaling.scale_times(seen.times)
            if self._reads_inputs and seen.inputs is not None:
                inputs = scaling.scale_inputs(seen.inputs.at_offset(context.offset.time))
                decay = getattr(self.encoder, "event_decay", 0.0)
                beside.append(None if inputs is None else inputs.read(times, decay))
            values = jnp.where(seen.mask, scaling.scale_values(seen.values), 0.0)
            features = by_rows(_encode, as_pytree(encoder), times, values, seen.mask, beside)
            with numpyro.handlers.scale(scale=kl_weight):
                numpyro.sample("z0", posterior(features))

    def _bind(self):
        return bind("encoder", self.encoder), bind("posterior", self.posterior)


def _encode(
    encoder: Any, times: Array, values: Array, mask: Array, beside: list[Array | None]
) -> Array:
    for one in beside:
        encoder = told(encoder, one)
    return encoder(times, values, mask)

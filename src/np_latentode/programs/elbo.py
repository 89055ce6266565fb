"""The ELBO, as a program that is the same in every process."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.handlers import replay, seed
from numpyro.infer import Trace_ELBO
from numpyro.infer.util import log_density
from numpyro.util import check_model_guide_match

__all__ = ["OrderedELBO"]


class OrderedELBO(Trace_ELBO):
    """`Trace_ELBO`, with the terms of the sites in the order of the programs.

    -loss = mean_k [log p(x, z0_k) - log q(z0_k | x)],   z0_k ~ q(z0 | x)

    `Trace_ELBO` takes them in the order of a set of names. Python changes that from process to
    process, and JAX then does not find the compiled program on disk. Draws are the same, and so is
    the loss, but for rounding.

    Args:
        num_particles: the number of draws, K.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(num_particles)

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def loss(key: Array) -> Array:
            model_key, guide_key = jax.random.split(key)
            log_q, drawn = log_density(seed(guide, guide_key), args, kwargs, param_map)
            replayed = replay(seed(model, model_key), drawn)
            log_p, trace = log_density(replayed, args, kwargs, param_map)
            check_model_guide_match(trace, drawn)
            return jnp.asarray(log_q - log_p)

        if self.num_particles == 1:
            return {"loss": loss(rng_key), "mutable_state": None}
        losses = self.vectorize_particles_fn(loss, jax.random.split(rng_key, self.num_particles))
        return {"loss": jnp.mean(losses), "mutable_state": None}

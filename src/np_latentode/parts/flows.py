"""Normalizing flows: NumPyro's inverse autoregressive flow, and any flow of flowjax."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jax.example_libraries import stax
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN

from np_latentode.data.checks import check_counts

__all__ = ["FlowjaxParameters", "inverse_autoregressive"]


def inverse_autoregressive(
    dim: int, num_layers: int, width: int, *, context_dim: int = 0, rngs: nnx.Rngs
) -> nnx.List:
    """Layers of an inverse autoregressive flow; each reverses the order of dimensions of the last.

    Raises:
        ValueError: if a number is not a positive integer.
    """
    check_counts(latent_dim=dim, num_layers=num_layers, width=width)
    orders = [jnp.arange(dim)[:: (-1) ** k] for k in range(num_layers)]
    return nnx.List([_Autoregressive(dim, context_dim, width, o, rngs=rngs) for o in orders])


class _Autoregressive(nnx.Module):
    """x -> mean(x, c) + scale(x, c) * x, each dimension given those before it and the context c.

    NumPyro's network only takes x as input. So the context is passed as additional dimensions that
    come first, and their outputs are dropped.
    """

    def __init__(self, dim: int, context_dim: int, width: int, order: Array, *, rngs: nnx.Rngs):
        self.context_dim = context_dim
        inputs = context_dim + dim
        places = [*range(context_dim), *(context_dim + order).tolist()]
        # NumPyro needs at least as many hidden units as inputs, to give each input a degree.
        self.network = _Network(inputs, max(width, inputs), places)
        weights = self.network.init(rngs.params(), (inputs,))[1]
        weights, self.structure = jax.tree.flatten(weights)
        # With small weights in the last layer, the flow starts close to the identity.
        weights[-2:] = [0.01 * w for w in weights[-2:]]
        self.weights = nnx.List([nnx.Param(w) for w in weights])

    def __call__(self, context: Array | None = None) -> InverseAutoregressiveTransform:
        params = jax.tree.unflatten(self.structure, [w[...] for w in self.weights])

        def mean_and_log_scale(x: Array) -> tuple[Array, ...]:
            if context is not None:
                c = jnp.broadcast_to(context, (*x.shape[:-1], context.shape[-1]))
                x = jnp.concatenate([c, x], axis=-1)
            return tuple(out[..., self.context_dim :] for out in self.network.apply(params, x))

        return InverseAutoregressiveTransform(mean_and_log_scale)


class _Network:
    """NumPyro's autoregressive network; pickled by its arguments, as it consists of closures."""

    def __init__(self, inputs: int, hidden: int, places: list[int]):
        self.arguments = (inputs, hidden, places)
        self.init, self.apply = AutoregressiveNN(
            inputs, [hidden], permutation=jnp.array(places), nonlinearity=stax.Elu
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _Network, self.arguments


class FlowjaxParameters(nnx.Module):
    """An nnx module with the parameters of a flowjax distribution, which is an Equinox module.

    Args:
        distribution: the flowjax distribution.
        cond_dim: the dimension of its condition. None: it must be unconditional.

    Raises:
        ValueError: if it is not a flowjax distribution over vectors, or has another condition.
        ImportError: if flowjax is missing.
    """

    def __init__(self, distribution: Any, *, cond_dim: int | None):
        try:
            from flowjax.distributions import AbstractDistribution
            from paramax import NonTrainable
        except ImportError as error:
            raise ImportError(
                "flowjax must be installed for its distributions, by pip install "
                "'np-latentode[flows]'; got no flowjax."
            ) from error
        if not isinstance(distribution, AbstractDistribution) or len(distribution.shape) != 1:
            raise ValueError(
                f"distribution must be a flowjax distribution over vectors; got {distribution!r}."
            )
        cond_shape = None if cond_dim is None else (cond_dim,)
        if distribution.cond_shape != cond_shape:
            raise ValueError(
                f"distribution must have cond_shape {cond_shape}; got {distribution.cond_shape}."
            )
        trained, rest = eqx.partition(
            distribution, eqx.is_inexact_array, is_leaf=lambda x: isinstance(x, NonTrainable)
        )
        leaves, structure = jax.tree.flatten(trained)
        self.weights = nnx.List([nnx.Param(leaf) for leaf in leaves])
        # In a partial: as attributes, nnx would treat untrained arrays as mutable state.
        self.rebuild = partial(_combine, structure, rest)

    def distribution(self, condition: Array | None = None) -> dist.Distribution:
        """The NumPyro distribution, one for each row of `condition`."""
        from paramax import unwrap

        return _FlowjaxDistribution(unwrap(self.rebuild([w[...] for w in self.weights])), condition)


def _combine(structure: Any, rest: Any, leaves: list[Array]) -> Any:
    return eqx.combine(jax.tree.unflatten(structure, leaves), rest)


class _FlowjaxDistribution(dist.Distribution):
    pytree_data_fields = ("flow", "condition")

    def __init__(self, flow: Any, condition: Array | None, *, validate_args: bool | None = None):
        self.flow, self.condition = flow, condition
        batch_shape = () if condition is None else condition.shape[:-1]
        super().__init__(batch_shape, flow.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def has_rsample(self) -> bool:
        return True

    def sample_with_intermediates(
        self, key: Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        key = _typed(key)
        draw, log_prob = self.flow.sample_and_log_prob(key, sample_shape, self.condition)
        return draw, [log_prob]

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.flow.sample(_typed(key), sample_shape, self.condition)

    def log_prob(self, value: Any, intermediates: list[Array] | None = None) -> Array:
        if intermediates:
            return intermediates[0]
        return self.flow.log_prob(value, self.condition)


def _typed(key: Any) -> Array:
    # NumPyro's `Predictive` passes raw keys, which flowjax refuses.
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)

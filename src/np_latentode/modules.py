"""flax nnx modules as parts of a NumPyro program: building, checking and binding them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx
from jaxtyping import Array
from numpyro.contrib.module import nnx_module

__all__ = [
    "bind",
    "check_module",
    "feature_dim",
    "mlp",
    "output_shape",
    "vector_dim",
    "with_parameters",
]


def mlp(
    sizes: Sequence[int], *, activation: Callable[[Array], Array] = jax.nn.silu, rngs: nnx.Rngs
) -> nnx.Sequential:
    """A multilayer perceptron through layers of the given sizes, linear at the end.

    With tanh and biases of zero it would start as an odd function, f(-x) = -f(x), without the
    products of inputs that make a spiral turn left or right: training lingers on that saddle.
    SiLU has an even part.
    """
    layers: list[Callable[..., Any]] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nnx.Linear(inputs, outputs, rngs=rngs), activation]
    return nnx.Sequential(*layers[:-1])


def check_module(name: str, module: object) -> None:
    """Refuses what `bind` cannot bind.

    NumPyro turns every leaf of a module that is not an `nnx.Param` (Dropout's and BatchNorm's
    state, a stored Rngs, a plain array) into a mutable site that is written while the module is
    called, and inside a scan or an ODE solve that leaks tracers.

    Raises:
        ValueError: naming the argument and the leaves that are no parameters.
    """
    if not isinstance(module, nnx.Module) or not callable(module):
        raise ValueError(f"{name} must be a callable flax nnx.Module; got {module!r}.")
    others = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
    if others:
        paths = ", ".join(".".join(map(str, path)) for path, _ in others)
        raise ValueError(
            f"{name} must hold nnx.Param leaves only, as other state cannot be carried through an "
            f"ODE solve; got {paths} in {type(module).__name__}."
        )


def bind(name: str, module: nnx.Module) -> Callable[..., Any]:
    """The module as a function of its inputs, its parameters registered as `{name}$params`.

    Call it outside of any plate: parameters belong to no trajectory.
    """
    return nnx_module(name, module)


def with_parameters(**modules: nnx.Module) -> tuple[str, ...]:
    """The names of those modules that have something to train."""
    return tuple(n for n, m in modules.items() if jax.tree.leaves(nnx.state(m, nnx.Param)))


def output_shape(name: str, module: nnx.Module, *inputs: Array) -> tuple[int, ...]:
    """The shape of what the module makes of such inputs, without computing it.

    Raises:
        ValueError: naming the argument, if the module refuses them or returns no array.
    """
    return _abstract(name, module, lambda output: output, *inputs).shape


def feature_dim(encoder: nnx.Module, num_features: int) -> int:
    """How many features the encoder makes of a trajectory.

    Raises:
        ValueError: if it does not return one row a trajectory.
    """
    values = jnp.zeros((1, 1, num_features))
    shape = output_shape("encoder", encoder, values[..., 0], values, values.astype(bool))
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(
            f"encoder must return features of shape (trajectory, hidden); got {shape} for one "
            "trajectory."
        )
    return shape[1]


def vector_dim(name: str, module: nnx.Module, *inputs: Array, batch_shape: tuple[int, ...]) -> int:
    """The dimension of the vectors that the module returns a distribution over.

    Raises:
        ValueError: if it returns something else.
    """
    shapes: list[Any] = []

    def note(output: Any) -> Array:
        if not isinstance(output, dist.Distribution):
            raise ValueError(f"it returned a {type(output).__name__}")
        shapes.append((output.batch_shape, output.event_shape))
        return jnp.zeros(())

    _abstract(name, module, note, *inputs)
    batch, event = shapes[0]
    if batch != batch_shape or len(event) != 1:
        raise ValueError(
            f"{name} must return a distribution over vectors, of batch shape {batch_shape} and one "
            f"event axis (as to_event(1) makes it); got batch shape {batch}, event shape {event}."
        )
    return event[0]


def _abstract(name: str, module: nnx.Module, finish: Callable[[Any], Any], *inputs: Array) -> Any:
    call: Any = module
    try:
        return jax.eval_shape(lambda *inputs: finish(call(*inputs)), *inputs)
    except (AttributeError, TypeError, ValueError) as error:
        shapes = ", ".join(str(x.shape) for x in inputs) or "none"
        raise ValueError(f"{name} must accept inputs of shapes {shapes}: {error}.") from error

"""flax nnx modules as parts of a NumPyro program: building, checking and binding them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array
from numpyro.contrib.module import nnx_module

__all__ = ["bind", "check_module", "mlp", "output_shape"]


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


def output_shape(name: str, module: nnx.Module, *inputs: Array) -> tuple[int, ...]:
    """The shape of what the module makes of such inputs, without computing it.

    Raises:
        ValueError: naming the argument, if the module refuses them.
    """
    call: Callable[..., Any] = module  # type: ignore[assignment]  # check_module has seen to it
    try:
        return jax.eval_shape(lambda *inputs: call(*inputs), *inputs).shape
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(x.shape) for x in inputs)
        raise ValueError(f"{name} must accept inputs of shapes {shapes}: {error}") from error

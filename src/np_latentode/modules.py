"""flax nnx modules as parts of a NumPyro program: building, checking and binding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array
from numpyro.contrib.module import nnx_module

__all__ = ["bind", "check_module", "mlp"]


def mlp(
    sizes: Sequence[int], *, activation: Callable[[Array], Array] = jnp.tanh, rngs: nnx.Rngs
) -> nnx.Sequential:
    """A multilayer perceptron through layers of the given sizes, linear at the end."""
    layers: list[Callable[..., Any]] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
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

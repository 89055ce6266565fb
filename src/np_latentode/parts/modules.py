"""flax nnx modules as parts of a NumPyro program: how they are built, checked and bound."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import numpyro.handlers as handlers
from flax import nnx
from jaxtyping import Array
from numpyro.contrib.module import nnx_module

from np_latentode.parts.initializers import lecun_normal
from np_latentode.parts.supports import describe_support

__all__ = [
    "Part",
    "as_pytree",
    "bind",
    "bind_prior",
    "check_factors",
    "check_module",
    "check_residual",
    "covariates_read",
    "feature_dim",
    "free",
    "gru_cell",
    "inputs_read",
    "linear",
    "mlp",
    "output_shape",
    "parameter_names",
    "told",
    "vector_distribution",
]

Part = nnx.Module | Callable[[], Any]
"""An nnx module; or a function without arguments that declares NumPyro parameters and returns a
callable with the same arguments. For a prior, it returns the distribution."""

CALLS = {
    "dynamics": "(t, z) -> dz/dt",
    "decoder": "z -> decoded",
    "prior": "() -> distribution",
    "shift": "s -> what is added to z0",
    "jump": "amounts -> what is added to z",
    "encoder": "(times, values, mask) -> features",
    "posterior": "features -> distribution",
}


# Functions of JAX themselves cannot be pickled: in their module, their names are those of others.


def silu(x: Array) -> Array:
    return jax.nn.silu(x)


def sigmoid(x: Array) -> Array:
    return jax.nn.sigmoid(x)


def tanh(x: Array) -> Array:
    return jnp.tanh(x)


def gru_cell(inputs: int, hidden_dim: int, *, rngs: nnx.Rngs) -> nnx.GRUCell:
    """flax's GRU cell, made so that it can be pickled."""
    return nnx.GRUCell(
        inputs,
        hidden_dim,
        gate_fn=sigmoid,
        activation_fn=tanh,
        kernel_init=lecun_normal,
        rngs=rngs,
    )


def linear(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """flax's linear layer, quick to start."""
    return nnx.Linear(inputs, outputs, kernel_init=lecun_normal, rngs=rngs)


def mlp(sizes: Sequence[int], *, from_zero: bool = False, rngs: nnx.Rngs) -> nnx.Sequential:
    """A multilayer perceptron with layers of the given sizes; the last layer is linear.

    With `from_zero`, the last layer starts at 0, and so does the network: for what is added to
    something that is right already.

    The activation is SiLU. With tanh and biases of zero, the network would start as an odd
    function, f(-x) = -f(x). Such a function has no products of inputs, which decide whether a
    spiral turns left or right, and training stays near this saddle point for long.
    """
    layers: list[Callable[..., Any]] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [linear(inputs, outputs, rngs=rngs), silu]
    if from_zero:
        layers[-2] = nnx.Linear(*sizes[-2:], kernel_init=nnx.initializers.zeros, rngs=rngs)
    return nnx.Sequential(*layers[:-1])


def free(name: str, start: Any, ndim: int) -> nnx.Param:
    """A learned array that starts at the given numbers.

    Raises:
        ValueError: if they are not finite, or have another number of axes.
    """
    array = jnp.asarray(start, dtype=jnp.result_type(float))
    if array.ndim != ndim or not jnp.isfinite(array).all():
        raise ValueError(
            f"{name} must be a finite array with {ndim} axes; got shape {array.shape}."
        )
    return nnx.Param(array)


def check_residual(name: str, residual: Any) -> Any:
    """The residual network of a linear part, if there is one.

    Raises:
        ValueError: if it is not a callable nnx module.
    """
    if residual is not None and not (isinstance(residual, nnx.Module) and callable(residual)):
        raise ValueError(
            f"residual must be a callable flax nnx.Module, called as {CALLS[name]}; got "
            f"{residual!r}."
        )
    return residual


def check_module(name: str, module: object) -> None:
    """Refuses a part that `bind` cannot bind.

    A module may only hold `nnx.Param` leaves. Other leaves are the state of Dropout or BatchNorm, a
    stored Rngs, or a plain array. NumPyro makes each of them a mutable site, which is written when
    the module is called. Inside a scan or an ODE solve, this leaks tracers.

    Raises:
        ValueError: naming the argument and the leaves that are not parameters.
    """
    if _makes_a_part(module):
        return
    if not isinstance(module, nnx.Module) or not callable(module):
        call = CALLS.get(name, name)
        raise ValueError(
            f"{name} must be a callable flax nnx.Module, called as {call}, or a function without "
            f"arguments that returns such a callable; got {module!r}."
        )
    others = nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
    if others:
        paths = ", ".join(".".join(map(str, path)) for path, _ in others)
        raise ValueError(
            f"{name} must hold nnx.Param leaves only, as other state cannot be carried through an "
            f"ODE solve; got {paths} in {type(module).__name__}."
        )


def check_factors(factors: Sequence[object]) -> None:
    """Refuses factors of a product that are not modules.

    A function cannot be a factor: it would declare NumPyro sites inside of a module.

    Raises:
        ValueError: naming the factor.
    """
    if not factors:
        raise ValueError("factors must hold at least one module; got none.")
    for k, factor in enumerate(factors):
        if not isinstance(factor, nnx.Module):
            raise ValueError(f"factors[{k}] must be a callable flax nnx.Module; got {factor!r}.")
        check_module(f"factors[{k}]", factor)


def _makes_a_part(part: object) -> bool:
    if isinstance(part, (nnx.Module, type, dist.Distribution)) or not callable(part):
        return False
    needed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(part).parameters.values()
    return not any(p.default is p.empty and p.kind in needed for p in parameters)


def bind(name: str, part: Part) -> Callable[..., Any]:
    """Declares a part's parameters to NumPyro. Returns the part as a function of its inputs.

    The parameters of a module are the site `{name}$params`. A function is called here, and declares
    its own parameters; inside of an ODE solve, its sites would leak.

    Call it outside of any plate, as parameters do not belong to a trajectory.
    """
    if isinstance(part, nnx.Module):
        return nnx_module(name, part)
    made = part()
    if isinstance(made, nnx.Module):
        raise ValueError(
            f"{name} must be given as the module itself, not as a function that returns one, which "
            f"would leave it untrained; got a function that returns a {type(made).__name__}."
        )
    return made


def covariates_read(name: str, part: Any, num_covariates: int) -> bool:
    """Whether a part reads s, static covariates, as its last argument: it says of how many entries.

    Raises:
        ValueError: if it reads another number of entries than there are.
    """
    count = getattr(part, "num_covariates", 0)
    if count and count != num_covariates:
        raise ValueError(
            f"{name} must read as many covariates as the scaling has, {num_covariates} (with one "
            f"for each further level of a category); got {count}."
        )
    return bool(count)


def inputs_read(name: str, part: Any, num_inputs: int) -> bool:
    """Whether a part reads inputs: it says how many entries of them.

    Raises:
        ValueError: if it reads another number of entries than there are.
    """
    count = getattr(part, "num_inputs", 0)
    if count and count != num_inputs:
        what = "constant and linear inputs" if name == "dynamics" else "entries of inputs"
        raise ValueError(
            f"{name} must read as many {what} as the scaling has, {num_inputs}; got {count}."
        )
    return bool(count)


def as_pytree(part: Callable[..., Any]) -> jax.tree_util.Partial:
    """A bound part as a pytree of its parameters, which JAX can pass as an argument."""
    if isinstance(part, jax.tree_util.Partial):
        return part
    if isinstance(part, functools.partial):
        return jax.tree_util.Partial(part.func, *part.args, **part.keywords)
    return jax.tree_util.Partial(part)


def told(part: Callable[..., Any], s: Array | None) -> Callable[..., Any]:
    """A bound part that reads s, as a function of its other inputs."""
    return jax.tree_util.Partial(_with_last, as_pytree(part), s)


def _with_last(part: Callable[..., Any], last: Any, *inputs: Any) -> Any:
    return part(*inputs, last)


def bind_prior(part: Part) -> Any:
    """The prior's distribution. A prior has no inputs, so a function returns it directly."""
    prior = bind("prior", part)
    return prior() if isinstance(part, nnx.Module) else prior


def parameter_names(program: Callable[[], Any]) -> frozenset[str]:
    """The names of a program's parameter sites, without those that hold no arrays."""
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        program()
    return frozenset(
        name
        for name, site in sites.items()
        if site["type"] == "param" and jax.tree.leaves(site["value"])
    )


def output_shape(name: str, part: Part, *inputs: Array) -> tuple[int, ...]:
    """The shape of the part's output for such inputs, without computing it.

    Raises:
        ValueError: naming the argument, if the part refuses the inputs or does not return an array.
    """
    return _abstract(name, part, lambda output: output, *inputs).shape


def feature_dim(
    encoder: Part, num_features: int, num_covariates: int = 0, num_inputs: int = 0
) -> int:
    """The number of features that the encoder returns per trajectory.

    Args:
        encoder: the part.
        num_features: of x.
        num_covariates: the entries of s, for an encoder that reads them.
        num_inputs: the entries of inputs at each time, likewise.

    Raises:
        ValueError: if it does not return one row per trajectory.
    """
    values = jnp.zeros((1, 1, num_features))
    inputs = [values[..., 0], values, values.astype(bool)]
    if inputs_read("encoder", encoder, num_inputs):
        inputs.append(jnp.zeros((1, 1, num_inputs)))
    if covariates_read("encoder", encoder, num_covariates):
        inputs.append(jnp.zeros((1, num_covariates)))
    shape = output_shape("encoder", encoder, *inputs)
    if len(shape) != 2 or shape[0] != 1:
        raise ValueError(
            f"encoder must return features of shape (trajectory, hidden); got {shape} for one "
            "trajectory."
        )
    return shape[1]


def vector_distribution(
    name: str, part: Part, *inputs: Array, batch_shape: tuple[int, ...]
) -> tuple[int, str]:
    """The dimension and the support of the distribution over vectors that the part returns.

    Raises:
        ValueError: if the part does not return a distribution over vectors.
    """
    seen: list[Any] = []

    def note(output: Any) -> Array:
        if not isinstance(output, dist.Distribution):
            raise ValueError(f"it returned a {type(output).__name__}")
        support = describe_support(output) if len(output.event_shape) == 1 else ""
        seen.append((output.batch_shape, output.event_shape, support))
        return jnp.zeros(())

    _abstract(name, part, note, *inputs)
    batch, event, support = seen[0]
    if batch != batch_shape or len(event) != 1:
        raise ValueError(
            f"{name} must return a distribution over vectors, of batch shape {batch_shape} and one "
            f"event axis (as to_event(1) makes it); got batch shape {batch}, event shape {event}."
        )
    return event[0], support


def _abstract(name: str, part: Part, finish: Callable[[Any], Any], *inputs: Array) -> Any:
    # A function is called outside of the trace, as flax refuses to make networks inside of it.
    with handlers.seed(rng_seed=0), handlers.trace():
        bound = bind(name, part)

    def call(*inputs: Array) -> Any:
        with handlers.seed(rng_seed=0), handlers.trace():
            return finish(bound(*inputs) if inputs else bind_prior(part))

    try:
        return jax.eval_shape(call, *inputs)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        shapes = ", ".join(str(x.shape) for x in inputs) or "none"
        raise ValueError(f"{name} must accept inputs of shapes {shapes}: {error}.") from error

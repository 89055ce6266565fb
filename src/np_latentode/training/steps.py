"""The steps of NumPyro's SVI, many in one compiled program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from np_latentode.parts.devices import everywhere
from np_latentode.parts.threads import one_at_a_time

__all__ = ["STEPS_AT_ONCE", "dispatches", "steps_of"]

STEPS_AT_ONCE = 100
"""Steps per dispatch. Progress bar, validation and checkpoints run between dispatches."""


def steps_of(svi: SVI, *, kl_weight: Callable[[Array], ArrayLike] | None = None) -> Callable:
    """The program that takes some steps of an SVI; all trainings of it may share the program.

    Args:
        svi: any SVI.
        kl_weight: `step -> weight`, the argument `kl_weight` of the model and the guide.

    Returns:
        `(state, first, count, *args) -> (state, losses)`, where `first` steps were taken before.
    """

    @jax.jit
    @one_at_a_time
    def take(state: SVIState, first: ArrayLike, count: ArrayLike, *args: Any) -> Any:
        def step(k: Array, carry: tuple[SVIState, Array]) -> tuple[SVIState, Array]:
            state, losses = carry
            number: Any = first + k
            weights: Any = {} if kl_weight is None else {"kl_weight": kl_weight(number)}
            state, loss = svi.stable_update(state, *args, **weights)
            return state, losses.at[k].set(loss)

        # A loop, as one program then takes any count: the last dispatch may be shorter.
        taken = jax.lax.fori_loop(0, count, step, (state, jnp.full(STEPS_AT_ONCE, jnp.nan)))
        return everywhere(taken)

    return take


def dispatches(
    take: Callable, state: SVIState, num_steps: int, *args: Any, start: int = 0
) -> Iterator[tuple[SVIState, Float[np.ndarray, " step"]]]:
    """Takes the steps of SVI from `start` to `num_steps`, `STEPS_AT_ONCE` in one compiled program.

    Args:
        take: the program, `steps_of(svi)`.
        state: the state of SVI after `start` steps.
        num_steps: the number of steps in all.
        *args: the arguments of the model and the guide. They are arguments of the compiled program,
            too, while `SVI.run` would compile the data into it as constants.
        start: the number of steps already taken.

    Yields:
        The state after each dispatch, and the loss of each of its steps.

    Raises:
        FloatingPointError: if none of the steps of a dispatch is finite.
    """
    for first in range(start, num_steps, STEPS_AT_ONCE):
        count = min(STEPS_AT_ONCE, num_steps - first)
        state, losses = take(state, first, count, *args)
        losses = np.asarray(losses)[:count]
        if not np.isfinite(losses).any():
            raise FloatingPointError(
                f"None of the steps {first + 1} to {first + len(losses)} was finite: training has "
                "diverged. Lower the learning rate of optim, let the Solver take shorter steps, or "
                "wrap the model's dynamics in a BoundedDynamics."
            )
        yield state, losses

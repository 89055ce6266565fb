"""z0 -> z(t): one joint ODE solve for a whole batch, read off at each trajectory's own times."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffrax
import equinox as eqx
import interpax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Dynamics", "Solver", "solve"]

Dynamics = Callable[[Array, Array], Array]
"""A vector field `(t, z) -> dz/dt` on states of shape (trajectory, latent), t a scalar."""


@dataclass(frozen=True)
class Solver:
    """Settings of the solve: diffrax's own objects, passed to `diffrax.diffeqsolve`.

    Args:
        method: any diffrax ODE solver.
        controller: `ConstantStepSize()` takes the fewest steps that are no longer than dt0;
            `PIDController(rtol, atol)` adapts one step size to the whole batch.
        dt0: the (first) step, in scaled time. `Scaling.fit` makes the training data 5 units long,
            which the default crosses in 8 steps: enough for dynamics that are learned through the
            same steps. For dynamics that are given, take shorter steps or a PIDController.
        max_steps: the most steps a solve may take before it is an error.
        adjoint: how gradients are taken through the solve.
        throw: whether a solve that fails raises, as in diffrax. Otherwise the states of the rows
            that failed are NaN, which a sampler can reject.

    Raises:
        ValueError: naming the argument that is not of diffrax's kind, or out of range.
    """

    method: diffrax.AbstractSolver = field(default_factory=diffrax.Bosh3)
    controller: diffrax.AbstractStepSizeController = field(default_factory=diffrax.ConstantStepSize)
    dt0: float | None = 0.625
    max_steps: int = 256
    adjoint: diffrax.AbstractAdjoint = field(
        default_factory=lambda: diffrax.RecursiveCheckpointAdjoint(checkpoints=16)
    )
    throw: bool = True

    def __post_init__(self) -> None:
        for name, kind in (
            ("method", diffrax.AbstractSolver),
            ("controller", diffrax.AbstractStepSizeController),
            ("adjoint", diffrax.AbstractAdjoint),
        ):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"{name} must be a diffrax.{kind.__name__}; got {getattr(self, name)!r}."
                )
        if isinstance(self.adjoint, (diffrax.BacksolveAdjoint, diffrax.ImplicitAdjoint)):
            raise ValueError(
                "adjoint must allow saving the steps that trajectories are read off from, as "
                "RecursiveCheckpointAdjoint and DirectAdjoint do; "
                f"got {type(self.adjoint).__name__}."
            )
        if self.dt0 is None and isinstance(self.controller, diffrax.ConstantStepSize):
            raise ValueError("dt0 must be a number with ConstantStepSize; got None.")
        if self.dt0 is not None and not 0 < self.dt0 < float("inf"):
            raise ValueError(f"dt0 must be positive and finite; got {self.dt0}.")
        if not (isinstance(self.max_steps, int) and self.max_steps > 0):
            raise ValueError(f"max_steps must be a positive integer; got {self.max_steps!r}.")
        if not isinstance(self.throw, bool):
            raise ValueError(f"throw must be True or False; got {self.throw!r}.")

    @property
    def reach(self) -> float:
        """The latest scaled time that max_steps reach; infinite if it depends on the states."""
        if self.dt0 is None or not isinstance(self.controller, diffrax.ConstantStepSize):
            return float("inf")
        return self.dt0 * self.max_steps


def solve(
    dynamics: Dynamics,
    z0: Float[Array, "trajectory latent"],
    times: Float[Array, "trajectory time"],
    *,
    solver: Solver,
) -> Float[Array, "trajectory time latent"]:
    """The states at each trajectory's own times, all from one solve.

    z_i(t) = z0_i + int_0^t dynamics(s, z_i(s)) ds     (Rubanova et al. 2019, equation 8)

    The batch is one system on one grid of steps from 0 to the latest time. Each trajectory is read
    off between the steps by the cubic Hermite polynomial through the states and their slopes,
    whose error is of fourth order in the step.

    Args:
        dynamics: the vector field.
        z0: the states at time 0.
        times: where to read the states off, in any order; earlier than 0 counts as 0.
        solver: method, step control, max_steps, adjoint, and whether a failure raises.

    Raises:
        Exception: at run time, also under `jax.jit`, where the steps run out or a state stops
            being finite. The message says which, in which row, and what to change. With
            `throw=False` these rows are NaN instead.
    """
    # A bound module carries its parameters: as a pytree they travel through diffrax's `args`,
    # which every adjoint differentiates, instead of through a closure, which some refuse.
    if isinstance(dynamics, functools.partial):
        dynamics = jax.tree_util.Partial(dynamics.func, *dynamics.args, **dynamics.keywords)
    else:
        dynamics = jax.tree_util.Partial(dynamics)
    end = jnp.maximum(times.max(), jnp.finfo(times.dtype).tiny)
    if isinstance(solver.controller, diffrax.ConstantStepSize) and solver.dt0 is not None:
        # Whole steps: the grid, and so the answer, does not depend on the rest of the batch.
        end = jnp.maximum(jnp.ceil(end / solver.dt0), 1) * solver.dt0
    solution = _integrate(dynamics, z0, end, solver)
    # diffrax pads the buffer with infinities, which would make gradients NaN. They are moved past
    # the end, so that the latest time still finds the last state on its left.
    taken = jnp.isfinite(solution.ts)
    grid = jnp.where(taken, solution.ts, end + 1)
    states, slopes = (jnp.where(taken[:, None, None], a, 0.0) for a in solution.ys)
    z = _read_off(jnp.clip(times, 0, end), grid, states, slopes)
    # All states count, also those that are not read, as gradients flow through all of them.
    diverged = ~jnp.isfinite(states).all((0, 2))
    if not solver.throw:
        failed = diverged | ~diffrax.is_successful(solution.result)
        return jnp.where(failed[:, None, None], jnp.nan, z)
    return _raise_if_failed(z, diverged, solution.result, solver)


def _integrate(dynamics: jax.tree_util.Partial, z0: Array, end: Array, solver: Solver) -> Any:
    """States and slopes at every step from 0 to `end`."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, dynamics: dynamics(t, z)),
        solver.method,
        t0=jnp.zeros_like(end),
        t1=end,
        dt0=solver.dt0,
        y0=z0,
        args=dynamics,
        # Slopes are saved inside the loop; outside they would cost max_steps evaluations.
        saveat=diffrax.SaveAt(t0=True, steps=True, fn=lambda t, z, dynamics: (z, dynamics(t, z))),
        stepsize_controller=solver.controller,
        adjoint=solver.adjoint,
        max_steps=solver.max_steps,
        throw=False,
    )


def _read_off(
    times: Float[Array, "trajectory time"],
    grid: Float[Array, " step"],
    states: Float[Array, "step trajectory latent"],
    slopes: Float[Array, "step trajectory latent"],
) -> Float[Array, "trajectory time latent"]:
    """The cubic Hermite polynomial through states and slopes, at each trajectory's times."""
    read = functools.partial(interpax.interp1d, method="cubic", extrap=True)
    if times.shape[1] < 4 * len(grid):
        each = jax.vmap(lambda t, z, dz: read(t, grid, z, fx=dz), in_axes=(0, 1, 1))
        return each(times, states, slopes)
    # It is linear in both: with many times a step, products with its weights take two thirds of the
    # time of picking out two states for each time, whose gradients have to be scattered back.
    unit = jnp.eye(len(grid), dtype=states.dtype)
    each = jax.vmap(lambda t, z, dz: read(t, grid, z, fx=dz), in_axes=(0, None, None))
    # In full precision, which GPUs would otherwise save on.
    product = functools.partial(jnp.einsum, "its,sil->itl", precision=jax.lax.Precision.HIGHEST)
    return product(each(times, unit, 0 * unit), states) + product(
        each(times, 0 * unit, unit), slopes
    )


def _raise_if_failed(z: Array, diverged: Array, result: diffrax.RESULTS, solver: Solver) -> Array:
    z = eqx.error_if(
        z,
        result == diffrax.RESULTS.max_steps_reached,
        f"The ODE solve ran out of steps before the latest time: max_steps={solver.max_steps}, "
        f"dt0={solver.dt0} (scaled time). Raise max_steps or dt0 of the Solver, or loosen its "
        "controller's tolerances.",
    )
    return eqx.branched_error_if(
        z,
        diverged.any() | ~diffrax.is_successful(result),
        jnp.argmax(diverged),
        [
            f"The ODE solve diverged: row {row} of its batch stopped being finite. Use a bounded "
            "dynamics, a smaller dt0 or a PIDController in the Solver, or a lower learning rate."
            for row in range(len(z))
        ],
    )

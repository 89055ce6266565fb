"""The ODE solve z0 -> z(t): one joint solve per batch, read at each trajectory's own times."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from np_latentode.data.checks import check_counts
from np_latentode.parts.hermite import hermite
from np_latentode.parts.modules import as_pytree

__all__ = ["Dynamics", "Solver", "checked", "explicit_step", "is_explicit", "solve"]

Dynamics = Callable[[Array, Array], Array]
"""A vector field `(t, z) -> dz/dt`, with a scalar t and z of shape (trajectory, latent)."""


@dataclass(frozen=True)
class Solver:
    """Settings of the ODE solve: diffrax's own objects, passed to `diffrax.diffeqsolve`.

    Args:
        method: any diffrax ODE solver.
        controller: `ConstantStepSize()` takes steps of dt0. `PIDController(rtol, atol)` adapts the
            step size, one for the whole batch.
        dt0: the step, or with a PIDController the first step, in scaled time. `Scaling.fit` makes
            the training data 5 units long, which is 8 steps of the default. These are enough for
            dynamics that are learned with the same steps. For given dynamics, take shorter steps or
            a PIDController.
        max_steps: the largest number of steps. A solve that needs more fails.
        adjoint: how gradients of the solve are computed. With the default kind, a few hundred
            constant steps of an explicit method are taken without diffrax's loop, which is slow to
            compile. They are the same steps.
        throw: whether a failed solve raises an error, as in diffrax. Otherwise the states of failed
            rows are NaN, which a sampler can reject.

    Raises:
        ValueError: naming the argument that is not the diffrax object it must be, or out of range.
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
                "adjoint must allow saving the steps that trajectories are read from, as "
                "RecursiveCheckpointAdjoint and DirectAdjoint do; "
                f"got {type(self.adjoint).__name__}."
            )
        if self.dt0 is None and isinstance(self.controller, diffrax.ConstantStepSize):
            raise ValueError("dt0 must be a number with ConstantStepSize; got None.")
        if self.dt0 is not None and not 0 < self.dt0 < float("inf"):
            raise ValueError(f"dt0 must be positive and finite; got {self.dt0}.")
        check_counts(max_steps=self.max_steps)
        if not isinstance(self.throw, bool):
            raise ValueError(f"throw must be True or False; got {self.throw!r}.")

    @property
    def reach(self) -> float:
        """The latest scaled time that max_steps can reach; infinite for adaptive steps."""
        return float("inf") if (step := self._constant_step) is None else step * self.max_steps

    def steps_to(self, end: float) -> int:
        """The `max_steps` of a solve to the scaled time `end`. More cost time, even if not taken.

        With constant steps, these are the steps to `end`, rounded up to a power of two, as JAX
        compiles another program for each number. They are never more than `max_steps`. The number
        of adaptive steps is not known, so `max_steps` is returned.
        """
        if (step := self._constant_step) is None:
            return self.max_steps
        # One more, in case that rounding leaves the last step a little short of the end.
        needed = math.ceil(max(end, 0.0) / step) + 1
        return min(self.max_steps, 2 ** (needed - 1).bit_length())

    @property
    def _constant_step(self) -> float | None:
        return self.dt0 if isinstance(self.controller, diffrax.ConstantStepSize) else None


def solve(
    dynamics: Dynamics,
    z0: Float[Array, "trajectory latent"],
    times: Float[Array, "trajectory time"],
    *,
    solver: Solver,
) -> Float[Array, "trajectory time latent"]:
    """The states at each trajectory's own times, from one joint solve.

    z_i(t) = z0_i + int_0^t dynamics(s, z_i(s)) ds     (Rubanova et al. 2019, equation 8)

    The batch is one system, solved with one grid of steps from 0 to the latest time. Between steps,
    each trajectory is the cubic Hermite polynomial through its states and slopes. The error of the
    polynomial is of fourth order in the step.

    Args:
        dynamics: the vector field.
        z0: the states at time 0.
        times: the times at which states are returned, in any order. Times before 0 count as 0.
        solver: the settings of the solve.

    Raises:
        Exception: at run time, also under `jax.jit`, if the steps run out or a state is not finite.
            The message names the failure, the row, and what to change. With `throw=False`, these
            rows are NaN instead.
    """
    # A bound module holds its parameters. As a pytree, they can be passed as diffrax's `args`,
    # which every adjoint differentiates. Some adjoints refuse parameters in a closure.
    field = as_pytree(dynamics)
    end = jnp.maximum(times.max(), jnp.finfo(times.dtype).tiny)
    if isinstance(solver.controller, diffrax.ConstantStepSize) and solver.dt0 is not None:
        # Only whole steps, so that the grid and the result do not depend on the rest of the batch.
        end = jnp.maximum(jnp.ceil(end / solver.dt0), 1) * solver.dt0
    steps = _integrate(field, z0, end, solver)
    # What unused slots hold would make gradients NaN. Their times are set after the end, so that
    # the latest time still lies to the right of the last state.
    taken = jnp.isfinite(steps.times)
    grid = jnp.where(taken, steps.times, end + 1)
    states, slopes = (jnp.where(taken[:, None, None], a, 0.0) for a in (steps.states, steps.slopes))
    z = _read_off(jnp.clip(times, 0, end), grid, states, slopes)
    # This includes states that are not returned, as gradients flow through all states.
    diverged = ~jnp.isfinite(states).all((0, 2))
    return checked(z, diverged, steps.ran_out, steps.failed, solver)


class _Steps(NamedTuple):
    """The steps of a solve, with time 0 first. The times of unused slots are infinite."""

    times: Float[Array, " step"]
    states: Float[Array, "step trajectory latent"]
    slopes: Float[Array, "step trajectory latent"]
    ran_out: Bool[Array, ""]
    failed: Bool[Array, ""]
    """Whether the solve failed for any reason that is known without its states."""


def _integrate(dynamics: jax.tree_util.Partial, z0: Array, end: Array, solver: Solver) -> _Steps:
    """States and slopes at every step from 0 to `end`."""
    integrate = _integrate_by_scan if _can_scan(solver) else _integrate_by_diffrax
    return integrate(dynamics, z0, end, solver)


_TERM = diffrax.ODETerm(lambda t, z, dynamics: dynamics(t, z))
"""The field of a solve, for diffrax. It makes what the dynamics return as large as z."""

LONGEST_SCAN = 256
"""The most steps of a scan. It runs through all of them, though it skips those after the end."""


def is_explicit(solver: Solver) -> bool:
    """Whether steps are those of an explicit Runge-Kutta method, and constant."""
    return (
        isinstance(solver.method, diffrax.AbstractERK)
        and type(solver.method).step is diffrax.AbstractERK.step
        and type(solver.method.tableau) is diffrax.ButcherTableau
        and type(solver.controller) is diffrax.ConstantStepSize
    )


def _can_scan(solver: Solver) -> bool:
    """Whether steps are explicit, constant and not too many, with an adjoint that a scan serves."""
    return (
        is_explicit(solver)
        and type(solver.adjoint) in (diffrax.RecursiveCheckpointAdjoint, diffrax.ForwardMode)
        and solver.max_steps <= LONGEST_SCAN
    )


def _integrate_by_scan(dynamics: Dynamics, z0: Array, end: Array, solver: Solver) -> _Steps:
    """Explicit steps of constant size, where `end` is a whole number of them.

    The arithmetic is that of diffrax, with the same tableau. The reason is compile time: diffrax's
    loop takes 40 % of that of a program that trains or forecasts.
    """
    dt0: Any = solver.dt0
    times = dt0 * jnp.arange(solver.max_steps + 1, dtype=end.dtype)
    z0 = z0.astype(jnp.result_type(z0, end))
    slope = functools.partial(_TERM.vf, args=dynamics)

    def step(z: Array, time: Array) -> tuple[Array, tuple[Array, Array]]:
        def take() -> tuple[Array, Array]:
            # From the end on, steps have no length. So they evaluate nothing but the slope at the
            # end, and gradients are finite wherever those of this slope are.
            dt = dt0 * (time < end)
            return explicit_step(slope, jnp.minimum(time, end), z, dt, solver.method)

        # Of all solves under vmap: if the condition were each one's own, all steps would be taken.
        needed = eqxi.unvmap_any(time <= end)
        later, now = jax.lax.cond(needed, take, lambda: (z, jnp.zeros_like(z)))
        return later, (z, now)

    # Gradients keep the states only, and compute the stages of each step again.
    _, (states, slopes) = jax.lax.scan(jax.checkpoint(step, prevent_cse=False), z0, times)
    ran_out = times[-1] < end
    return _Steps(jnp.where(times <= end, times, jnp.inf), states, slopes, ran_out, ran_out)


def explicit_step(
    slope: Dynamics, t: Array, z: Array, dt: Array, method: Any
) -> tuple[Array, Array]:
    """The state one step later, and the slope now."""
    tableau = method.tableau
    slopes = [slope(t, z)]

    def moved(weights: np.ndarray) -> Array:
        pairs = zip(weights.tolist(), slopes, strict=False)
        return z + dt * sum(weight * one for weight, one in pairs if weight)

    # The stages after these are for estimates of the error only.
    used = np.flatnonzero(tableau.b_sol).max()
    for c, weights in zip(tableau.c[:used].tolist(), tableau.a_lower, strict=False):
        slopes.append(slope(t + c * dt, moved(weights)))
    return moved(tableau.b_sol), slopes[0]


def _integrate_by_diffrax(
    dynamics: jax.tree_util.Partial, z0: Array, end: Array, solver: Solver
) -> _Steps:
    """Steps of any kind."""
    solution: Any = diffrax.diffeqsolve(
        _TERM,
        solver.method,
        t0=jnp.zeros_like(end),
        t1=end,
        dt0=solver.dt0,
        y0=z0,
        args=dynamics,
        # Slopes are saved inside of the loop; afterwards, they would cost max_steps evaluations.
        saveat=diffrax.SaveAt(t0=True, steps=True, fn=lambda t, z, dynamics: (z, dynamics(t, z))),
        stepsize_controller=solver.controller,
        adjoint=solver.adjoint,
        max_steps=solver.max_steps,
        throw=False,
    )
    ran_out = solution.result == diffrax.RESULTS.max_steps_reached
    failed = ~diffrax.is_successful(solution.result)
    states, slopes = solution.ys
    return _Steps(solution.ts, states, slopes, ran_out, failed)


def _read_off(
    times: Float[Array, "trajectory time"],
    grid: Float[Array, " step"],
    states: Float[Array, "step trajectory latent"],
    slopes: Float[Array, "step trajectory latent"],
) -> Float[Array, "trajectory time latent"]:
    """The cubic Hermite polynomial of the step that ends at or after each time."""
    # One search for all times: a search for each trajectory takes long to compile.
    ends = jnp.searchsorted(grid, times)
    place, rows = jnp.clip(ends, 1, len(grid) - 1) - 1, jnp.arange(len(times))[:, None]
    length = (grid[place + 1] - grid[place])[..., None]
    share = (times - grid[place])[..., None] / length
    start, stop = ((states[k, rows], slopes[k, rows]) for k in (place, place + 1))
    return hermite(share, length, start, stop)


def checked(z: Array, diverged: Array, ran_out: Array, failed: Array, solver: Solver) -> Array:
    """The states of a solve, or what the solver says of a solve that failed."""
    if not solver.throw:
        return jnp.where((diverged | failed)[:, None, None], jnp.nan, z)
    z = eqx.error_if(
        z,
        ran_out,
        f"The ODE solve ran out of steps before the latest time: max_steps={solver.max_steps}, "
        f"dt0={solver.dt0} (scaled time). Raise max_steps or dt0 of the Solver, or loosen its "
        "controller's tolerances.",
    )
    return eqx.branched_error_if(
        z,
        diverged.any() | failed,
        jnp.argmax(diverged),
        [
            f"The ODE solve diverged: row {row} of its batch stopped being finite. Use a bounded "
            "dynamics, a smaller dt0 or a PIDController in the Solver, or a lower learning rate."
            for row in range(len(z))
        ],
    )

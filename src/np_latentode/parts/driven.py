"""The ODE solve with inputs: each trajectory has a grid of steps of its own.

dz_i/dt = dynamics(t, z_i, [u_i(t), s_i]),   z_i(t+) = z_i(t) + jump(amounts given at t)

The steps of the solver are cut at the times of a trajectory's inputs. So a control is smooth
within each step, and an event is at its own time exactly. What one trajectory gets changes nothing
of another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from np_latentode.data.inputs import Inputs
from np_latentode.parts.hermite import hermite
from np_latentode.parts.solve import Solver, checked, explicit_step, is_explicit

__all__ = ["Drive", "check_drivable", "solve_driven"]


class Drive(NamedTuple):
    """What drives the trajectories of a solve, in scaled units."""

    inputs: Inputs
    s: Float[Array, "trajectory entry"] | None = None
    """Static covariates, if the dynamics read them."""
    controlled: bool = True
    """Whether the dynamics read the constant and linear inputs."""


def check_drivable(solver: Solver) -> None:
    """Refuses a solver whose steps cannot be cut at the times of inputs.

    Raises:
        ValueError: naming the rule and what came.
    """
    if not is_explicit(solver):
        raise ValueError(
            "solver must take constant steps of an explicit Runge-Kutta method where inputs are "
            f"read; got {type(solver.method).__name__} with {type(solver.controller).__name__}."
        )


def solve_driven(
    dynamics: Callable[..., Array],
    jump: Callable[[Array], Array] | None,
    z0: Float[Array, "trajectory latent"],
    times: Float[Array, "trajectory time"],
    drive: Drive,
    *,
    solver: Solver,
) -> Float[Array, "trajectory time latent"]:
    """The states at each trajectory's own times, as `solve` gives them, with inputs.

    At the time of an event, the state is that before it. Events before time 0 do nothing, as z0 is
    the state after them.

    Args:
        dynamics: `(t, z) -> dz/dt`; `(t, z, u)` if it reads something of the drive, with
            u = [constant and linear inputs, s].
        jump: `amounts -> (trajectory, latent)`, by which events move the state. None: not at all.
        z0: the states at time 0.
        times: the times at which states are returned, in any order. Times before 0 count as 0.
        drive: what drives them.
        solver: the settings of the solve; see `check_drivable`.

    Raises:
        Exception: at run time, as in `solve`.
    """
    dt0: Any = solver.dt0
    end = jnp.maximum(times.max(), jnp.finfo(times.dtype).tiny)
    # Only whole steps, so that the grid and the result do not depend on the rest of the batch.
    needed = jnp.maximum(jnp.ceil(end / dt0), 1)
    end = needed * dt0
    z0 = z0.astype(jnp.result_type(z0, end))
    grid, jumps = _grid(jump, z0, end, drive.inputs, solver)
    steps = _integrate(dynamics, z0, grid, jumps, drive, solver)
    z = _read_off(jnp.clip(times, 0, end), grid, steps)
    diverged = ~(jnp.isfinite(steps.start) & jnp.isfinite(steps.stop)).all((0, 2))
    # Of counts: the products with dt0 are rounded, each in its own precision.
    ran_out = needed > solver.max_steps
    return checked(z, diverged, ran_out, ran_out, solver)


class _Steps(NamedTuple):
    """States and slopes just after the start and just before the end of each step."""

    start: Float[Array, "step trajectory latent"]
    slope_at_start: Float[Array, "step trajectory latent"]
    stop: Float[Array, "step trajectory latent"]
    slope_at_stop: Float[Array, "step trajectory latent"]


def _grid(
    jump: Callable[[Array], Array] | None, z0: Array, end: Array, inputs: Inputs, solver: Solver
) -> tuple[Float[Array, "trajectory node"], Float[Array, "trajectory step latent"]]:
    """The nodes of each trajectory's grid, and by how much events move its state after each step.

    They are time 0, the steps of the solver, and the rows of inputs, in order. Those after the end
    lie at the end, where steps have no length.
    """
    dt0: Any = solver.dt0
    count, rows = inputs.times.shape
    steps = jnp.minimum(dt0 * jnp.arange(1, solver.max_steps + 1, dtype=end.dtype), end)
    steps = jnp.broadcast_to(steps, (count, solver.max_steps))
    nodes = jnp.concatenate([steps, jnp.clip(inputs.times, 0, end).astype(end.dtype)], axis=1)
    moves = jnp.zeros((count, rows, z0.shape[1]), z0.dtype)
    if jump is not None:
        amounts = inputs.amounts.astype(z0.dtype)
        within = (inputs.times >= 0) & (inputs.times < end) & (amounts != 0).any(-1)
        moved = jump(amounts.reshape(-1, amounts.shape[-1])).reshape(moves.shape)
        moves = jnp.where(within[..., None], moved, 0.0)
    moves = jnp.pad(moves, ((0, 0), (solver.max_steps, 0), (0, 0)))
    order = jnp.argsort(nodes, axis=1, stable=True)
    nodes, moves = (
        jnp.take_along_axis(a, order.reshape(*order.shape, *[1] * (a.ndim - 2)), axis=1)
        for a in (nodes, moves)
    )
    return jnp.pad(nodes, ((0, 0), (1, 0))), moves


def _integrate(
    dynamics: Callable[..., Array],
    z0: Array,
    grid: Array,
    jumps: Array,
    drive: Drive,
    solver: Solver,
) -> _Steps:
    """One explicit step of the solver's method in each interval of the grid."""
    left, right = grid[:, :-1], grid[:, 1:]
    first, last = _controls(drive, left, right)
    length = right - left
    # In a step without length, a control does not change.
    rate = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1.0), 0.0)[..., None]
    rate = (last - first) * rate

    def step(z: Array, now: tuple[Array, ...]) -> tuple[Array, _Steps]:
        t, dt, u, change, moved = now

        def slope(at: Array, z: Array) -> Array:
            return _slopes(dynamics, at[:, 0], z, u + change * (at - t))

        def take() -> _Steps:
            later, before = explicit_step(slope, t, z, dt, solver.method)
            return _Steps(z, before, later, slope(t + dt, later))

        # Of all solves under vmap: if the condition were each one's own, all steps would be taken.
        needed = eqxi.unvmap_any(dt > 0)
        still = jnp.zeros_like(z)
        taken = jax.lax.cond(needed, take, lambda: _Steps(z, still, z, still))
        return taken.stop + moved, taken

    each = (left[..., None], length[..., None], first, rate, jumps)
    each = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), each)
    # Gradients keep the states only, and compute the stages of each step again.
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), z0, each)[1]


def _controls(drive: Drive, left: Array, right: Array) -> tuple[Array, Array]:
    """What the dynamics read at both ends of each step, shape (trajectory, step, entry)."""
    if drive.controlled:
        ends = drive.inputs.between(left, right)
    else:
        nothing = jnp.zeros((*left.shape, 0), left.dtype)
        ends = nothing, nothing
    if drive.s is None:
        return ends
    s = jnp.broadcast_to(drive.s[:, None], (*left.shape, drive.s.shape[1]))
    return jnp.concatenate([ends[0], s], axis=-1), jnp.concatenate([ends[1], s], axis=-1)


def _slopes(
    dynamics: Callable[..., Array],
    times: Float[Array, " trajectory"],
    z: Float[Array, "trajectory latent"],
    u: Float[Array, "trajectory entry"],
) -> Float[Array, "trajectory latent"]:
    """The field, which takes one time for all, at a time for each trajectory."""

    def of_one(t: Array, z: Array, u: Array) -> Array:
        rest = (u[None],) if u.size else ()
        return jnp.broadcast_to(dynamics(t, z[None], *rest), (1, *z.shape))[0]

    return jax.vmap(of_one)(times, z, u).astype(z.dtype)


def _read_off(
    times: Float[Array, "trajectory time"], grid: Float[Array, "trajectory node"], steps: _Steps
) -> Float[Array, "trajectory time latent"]:
    """The cubic Hermite polynomial of the step that ends at or after each time."""
    ends = jax.vmap(lambda nodes, t: jnp.searchsorted(nodes, t, side="left"))(grid, times)
    place = jnp.clip(ends, 1, grid.shape[1] - 1) - 1

    def at(array: Array) -> Array:
        return jnp.take_along_axis(jnp.moveaxis(array, 0, 1), place[..., None], axis=1)

    start, stop = (jnp.take_along_axis(grid, place + k, axis=1)[..., None] for k in (0, 1))
    length = jnp.where(stop > start, stop - start, 1.0)
    share = jnp.where(stop > start, (times[..., None] - start) / length, 0.0)
    z, dz, later, dlater = (at(a) for a in steps)
    return hermite(share, length, (z, dz), (later, dlater))

"""The data of Physiome-ODE: solutions of equations from biology, seen now and then, with noise."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.integrate import ode

from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.trajectories import Trajectories
from np_latentode.studies.datasets.physiome_systems import SYSTEMS, System

__all__ = ["INSTANCES", "NOISE", "Fold", "divide", "physiome", "solutions"]

INSTANCES = 2_000
"""Instances of each system in the benchmark."""

NOISE = 0.05
"""The standard deviation of the noise, in those of the state."""

TIMES, WINDOW, ASKED_FROM = 200, 100, 50
KEPT, FARTHEST = 0.2, 10.0
TRAINING = 0.9
RETRY = 2_000
"""Added to the seed of an instance that cannot be solved."""


class Fold(NamedTuple):
    """One of the random divisions of a set; each has its own noise, and its own missing values."""

    train: Trajectories
    """Whole windows, times from 0 to 1: nine tenths of the instances, of which the benchmark takes
    two ninths for validation."""
    context: Trajectories
    """What is given of the others: the times up to 1/2."""
    target: Trajectories
    """What is asked of them: the times after 1/2."""


def physiome(name: str, *, fold: int = 0, instances: int = INSTANCES) -> Fold:
    """A set of Physiome-ODE (Klötergens et al., ICLR 2025), made from its equations.

    Instance n of a system has the start and the constants that the benchmark draws with the seed n.
    What is random beyond that (noise, missing values, division) is drawn anew here, by the same
    rules: a fold is another one than the published fold of its number.

    Args:
        name: one of `SYSTEMS`.
        fold: the seed of all that the fold draws.
        instances: how many; the benchmark has 2,000.

    Raises:
        ValueError: if there is no such system, or a number is out of range.
    """
    return divide(solutions(name, instances=instances), fold=fold)


def solutions(name: str, *, instances: int = INSTANCES) -> Float[np.ndarray, "instance time state"]:
    """A window of 100 states from each instance's solution, without noise.

    A solution has 200 states, evenly spaced, by LSODA with tolerances of 1e-6.

    Args:
        name: one of `SYSTEMS`.
        instances: how many. Their seeds are 0, 1 and so on.

    Raises:
        ValueError: if there is no such system, or the number is not positive.
        FloatingPointError: if an instance cannot be solved with either of its two seeds.
    """
    if name not in SYSTEMS:
        raise ValueError(f"name must be one of {', '.join(SYSTEMS)}; got {name!r}.")
    check_counts(instances=instances)
    return np.stack([_window(name, n) for n in range(instances)])


def divide(states: Float[np.ndarray, "instance time state"], *, fold: int) -> Fold:
    """Standardises, adds noise, hides values and divides, as the benchmark does.

    x' = (x - mean) / sd,   x = x' + N(0, 0.05^2),   each value is kept with probability 0.2

    Mean and standard deviation are those of all instances, test included. Instances with a number
    beyond 10 standard deviations are left out, and of a window the last state. By the code of the
    benchmark, a time keeps its values only if their number is odd. A random tenth of the instances
    is for testing.

    Args:
        states: as `solutions` returns them.
        fold: the seed of what is random.

    Raises:
        ValueError: if a state never varies, fewer than ten instances are left, or fold is negative.
    """
    check_seed(fold, name="fold")
    states = states[:, :-1]
    if not ((spread := states.std((0, 1), ddof=1)) > 0).all():
        raise ValueError(f"states must vary, each of them; got standard deviations of {spread}.")
    x = (states - states.mean((0, 1))) / spread
    x = x[(np.abs(x) <= FARTHEST).all((1, 2))]
    if len(x) < 10:
        raise ValueError(f"states must hold ten instances within 10 sd or more; got {len(x)}.")
    rng = np.random.default_rng(fold)
    x = rng.permutation(x)
    observed = x + NOISE * rng.standard_normal(x.shape)
    whole = _seen(observed, _odd(rng.uniform(size=x.shape) < KEPT))
    cut = round(TRAINING * len(x))
    test = whole[cut:]
    return Fold(whole[:cut], test.before(0.5), test.after(0.5))


def _window(name: str, number: int) -> Float[np.ndarray, "time state"]:
    for seed in (number, number + RETRY):
        # The legacy generator, as of the benchmark: first the states, then the constants, in order.
        rng = np.random.RandomState(seed)
        solved = _solved(SYSTEMS[name], rng)
        if np.isfinite(solved).all():
            start = rng.randint(0, WINDOW)
            return solved[start : start + WINDOW]
    raise FloatingPointError(f"Instance {number} of {name} cannot be solved.")


def _solved(system: System, rng: np.random.RandomState) -> Float[np.ndarray, "time state"]:
    """The states at 200 times; those after a failure are NaN."""

    def drawn(value: float, jitter: float) -> float:
        return rng.uniform(value * (1 - jitter), value * (1 + jitter))

    start = [drawn(value, system.jitter_states) for value in system.states.values()]
    constants = SimpleNamespace(
        **{name: drawn(x, system.jitter_constants) for name, x in system.constants.items()}
    )
    found = np.full((TIMES, len(start)), np.nan)
    found[0] = start
    # Floats, not the array: NumPy is slow with arrays of a few numbers.
    solver = ode(lambda t, states: system.rates(t, states.tolist(), constants))
    solver.set_integrator("lsoda", method="bdf", atol=1e-6, rtol=1e-6, max_step=1, nsteps=10_000)
    solver.set_initial_value(start, 0.0)
    for k, time in enumerate(np.linspace(0.0, system.end, TIMES)[1:], 1):
        states = solver.integrate(time)
        if not solver.successful():
            break
        found[k] = states
    return found


def _odd(drawn: Bool[np.ndarray, "instance time state"]) -> np.ndarray:
    """Only the times with an odd number of values."""
    return drawn & (drawn.sum(-1, keepdims=True) % 2 == 1)


def _seen(
    values: Float[np.ndarray, "instance time state"], kept: Bool[np.ndarray, "instance time state"]
) -> Trajectories:
    """The values that are kept, at the times that have some."""
    # The last state, which is left out, has the time 1.
    times = np.arange(values.shape[1]) / values.shape[1]
    rows = np.where(kept, values, np.nan)
    seen = kept.any(-1)
    return Trajectories.from_ragged((times[at], x[at]) for at, x in zip(seen, rows, strict=True))

"""The falling hopper of the latent ODE paper, simulated with MuJoCo."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float

from np_latentode.data.atomic import write_bytes
from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.storage.cache import cache_dir

__all__ = ["STATES", "hopper", "windows"]

STATES = 200
"""States of a trajectory, one physics step of 5 ms apart, at the times 0, 1/200, ..., 199/200."""

POSITIONS = 7
FEATURES = 2 * POSITIONS
WINDOW = 100
SEED, WINDOW_SEED = 123, 1991


def hopper(num_trajectories: int = 10_000) -> Trajectories:
    """dm_control's hopper, thrown at random and left to fall: the data of the paper's table 3.

    x' = (x - min) / max     of each feature, over every state of every trajectory generated

    as in the code of Rubanova, Chen & Duvenaud (2019). It divides by the maximum, not by the range,
    and its errors are in these units. One seed draws the trajectories one after the other: a
    smaller set holds the first trajectories of a larger one, but in other units.

    The first call simulates, in about 3 ms per trajectory. Later calls read the result from
    `$XDG_CACHE_HOME/np_latentode` (or `~/.cache`). It has one file per number of trajectories and
    version of MuJoCo, as versions differ slightly where the hopper meets the ground. A file with a
    wrong checksum is replaced.

    Args:
        num_trajectories: how many; the paper has 10,000.

    Returns:
        Times (trajectory, 200) as fractions of the whole duration. Values (trajectory, 200, 14):
        the positions rootx, rootz, rooty, waist, hip, knee and ankle, and then their velocities.

    Raises:
        ValueError: if the number of trajectories is not positive.
        ImportError: if dm_control is not installed.
    """
    check_counts(num_trajectories=num_trajectories)
    path = _cache_path(num_trajectories)
    states = _read(path, num_trajectories)
    if states is None:
        states = _simulate(num_trajectories)
        _write(path, states)
    times = np.broadcast_to(np.arange(STATES) / STATES, states.shape[:2])
    return Trajectories(times, _scale(states))


def windows(trajectories: Trajectories) -> Trajectories:
    """Cuts 100 consecutive states from each trajectory: the data that the paper interpolates.

    The windows start at random states, and their times start at 0. They are those of the original,
    whose seed draws the windows of all trajectories at once. So cut windows from the whole set,
    before it is split.

    Args:
        trajectories: as `hopper` returns them.

    Raises:
        ValueError: if they do not have 200 states.
    """
    count, length = trajectories.times.shape
    if length != STATES:
        raise ValueError(
            f"trajectories must have {STATES} times, as `hopper` returns them; got {length}."
        )
    start = np.random.RandomState(WINDOW_SEED).randint(0, STATES - WINDOW + 1, size=count)
    slots = start[:, None] + np.arange(WINDOW)
    values = np.take_along_axis(np.asarray(trajectories.values), slots[..., None], axis=1)
    return Trajectories(trajectories.times[:, :WINDOW], values)


def _scale(states: np.ndarray) -> np.ndarray:
    low, high = states.min((0, 1)), states.max((0, 1))
    return (states - low) / np.where(high == 0, 1, high)


def _simulate(num_trajectories: int) -> Float[np.ndarray, "trajectory time feature"]:
    # Otherwise it looks for a display, and warns if there is none.
    os.environ.setdefault("MUJOCO_GL", "disable")
    try:
        from dm_control import suite
    except ImportError as error:
        raise _missing() from error
    physics = suite.load("hopper", "stand").physics
    rng = np.random.RandomState(SEED)
    states = np.empty((num_trajectories, STATES, FEATURES), np.float32)
    for trajectory in states:
        with physics.reset_context():
            physics.data.qpos[:2] = rng.uniform(0, 0.5, size=2)
            physics.data.qpos[2:] = rng.uniform(-2, 2, size=POSITIONS - 2)
            physics.data.qvel[:] = rng.uniform(-5, 5, size=POSITIONS)
        for state in trajectory:
            state[:POSITIONS], state[POSITIONS:] = physics.data.qpos, physics.data.qvel
            physics.step()
    return states


def _missing() -> ImportError:
    return ImportError(
        "The hopper needs dm_control and MuJoCo: pip install 'np-latentode[hopper]'."
    )


def _cache_path(num_trajectories: int) -> Path:
    try:
        version = importlib.metadata.version("mujoco")
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing() from error
    return cache_dir() / f"hopper-{num_trajectories}-mujoco-{version}.bin"


def _read(path: Path, num_trajectories: int) -> np.ndarray | None:
    """The states in the cache; None if there is no file, or if it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    size = hashlib.sha256().digest_size
    digest, array = content[:size], content[size:]
    if hashlib.sha256(array).digest() != digest:
        return None
    states = np.load(io.BytesIO(array), allow_pickle=False)
    return states if states.shape == (num_trajectories, STATES, FEATURES) else None


def _write(path: Path, states: np.ndarray) -> None:
    """Writes a checksum and then the array. The file gets its name when it is complete."""
    array = io.BytesIO()
    np.save(array, states)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, hashlib.sha256(array.getbuffer()).digest() + array.getvalue())

"""The members of an ensemble, trained side by side: by threads, or on a mesh of devices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from np_latentode.parts.devices import MEMBER, TRAJECTORY, check_mesh, from_one, of_member
from np_latentode.parts.threads import cores
from np_latentode.storage.arrays import packed, unpacked
from np_latentode.training.plan import Plan
from np_latentode.training.progress import Progress, restored, train_all

__all__ = ["check_places", "train_members"]


def check_places(mesh: Mesh | None, num_members: int, max_workers: int | None) -> Mesh | None:
    """The mesh of an ensemble.

    Raises:
        ValueError: if it is none, has more places than members, or leaves out a process; or if a
            number of threads is given, too.
    """
    if mesh is None:
        return None
    if max_workers is not None:
        raise ValueError(f"max_workers must be left out with a mesh; got {max_workers}.")
    mesh = check_mesh(mesh, MEMBER, TRAJECTORY)
    if (places := mesh.shape.get(MEMBER, 1)) > num_members:
        raise ValueError(
            f"mesh must have at most num_members, {num_members}, places on its axis {MEMBER!r}; "
            f"got {places}."
        )
    processes = {device.process_index for device in mesh.devices.flat}
    if len(processes) not in (1, jax.process_count()):
        raise ValueError(
            f"mesh must hold devices of one process, or of all {jax.process_count()}; got those "
            f"of {sorted(processes)}."
        )
    return mesh


def train_members(
    plans: Sequence[Plan],
    directories: Sequence[Path | None],
    *,
    mesh: Mesh | None,
    max_workers: int | None,
    progress: bool,
) -> list[Progress]:
    """Trains each member; on a mesh, those whose devices are in this process, and gets the others.

    Args:
        plans: of the members.
        directories: of their checkpoints.
        mesh: as of `check_places`. A member has the devices at its place on the axis of members.
        max_workers: how many are trained side by side, without a mesh. Default: one per core.
        progress: whether to show a progress bar.
    """
    places = [None if mesh is None else of_member(mesh, k) for k in range(len(plans))]
    mine = [k for k, place in enumerate(places) if place is None or _has_part_in(place)]
    own = []
    for k in mine:
        directory, plan = directories[k], plans[k]
        own.append((plan if directory is None else plan.kept_in(directory)).on(places[k]))
    if mesh is None:
        workers = cores() if max_workers is None else max_workers
    else:
        workers = len({places[k] for k in mine})
    done = train_all(own, progress=progress, max_workers=min(len(mine), workers))
    made = dict(zip(mine, done, strict=True))
    if len(mine) == len(plans):
        return done
    return [_from_owner(plan, made.get(k)) for k, plan in enumerate(plans)]


def _has_part_in(mesh: Mesh) -> bool:
    """Whether a device of the mesh is of this process."""
    return any(device.process_index == jax.process_index() for device in mesh.devices.flat)


def _from_owner(plan: Plan, done: Progress | None) -> Progress:
    """The progress of a member, from the one process that trained it."""
    content = from_one(None if done is None else packed(done))
    return done if done is not None else restored(plan, unpacked(content), name="mesh")

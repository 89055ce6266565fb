"""Devices: a mesh of them, over which trajectories are divided, while networks are on each.

sum_i f(params, x_i) = sum_devices sum_{i on this device} f(params, x_i)

A program is one for all devices, as JAX writes it: its random numbers, and which trajectories a
step takes, do not depend on their number. The heavy parts, `by_rows`, run on each device for its
own trajectories, so that devices talk once per call, and not at each step of a solve.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = [
    "MEMBER",
    "TRAJECTORY",
    "by_rows",
    "check_mesh",
    "divided",
    "everywhere",
    "from_one",
    "gathered",
    "of_member",
    "on_devices",
    "on_mesh",
    "replicated",
    "said",
    "writes",
]

TRAJECTORY, MEMBER = "trajectory", "member"
"""The names of the axes of a mesh: that of the plate, and that of an ensemble."""


def check_mesh(mesh: Any, *axes: str) -> Mesh:
    """The mesh, all of whose axes are among these, less JAX's types of them.

    Raises:
        ValueError: if it is no mesh, has other axes, or no device of this process.
    """
    rule = f"mesh must be a jax.sharding.Mesh with the axis {' or '.join(map(repr, axes))}"
    if not isinstance(mesh, Mesh):
        raise ValueError(f"{rule}, such as jax.make_mesh((8,), ({axes[0]!r},)); got {mesh!r}.")
    if not mesh.axis_names or not {*mesh.axis_names} <= {*axes}:
        raise ValueError(f"{rule}, and no other; got the axes {mesh.axis_names}.")
    here = jax.process_index()
    if all(device.process_index != here for device in mesh.devices.flat):
        raise ValueError(
            f"mesh must hold a device of every process that calls; got none of process {here}."
        )
    # JAX decides how arrays are divided: with explicit axes, NumPyro's programs would have to.
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


LOCKS: dict[Mesh, Any] = defaultdict(threading.RLock)
"""Of each mesh: two programs at once on the same devices may wait for each other for ever."""


@contextlib.contextmanager
def on_mesh(mesh: Mesh | None) -> Iterator[None]:
    """The context in which programs run on a mesh, one at a time; without one, nothing changes."""
    if mesh is None:
        yield
        return
    with LOCKS[mesh], jax.set_mesh(mesh):
        yield


def of_member(mesh: Mesh, member: int) -> Mesh:
    """The devices of a member of an ensemble: its place on the axis of members, or all of them.

    Raises:
        ValueError: if the mesh has an axis of members, and they are in several processes.
    """
    if MEMBER not in mesh.axis_names:
        return mesh
    place = member % mesh.shape[MEMBER]
    own = np.moveaxis(mesh.devices, mesh.axis_names.index(MEMBER), 0)[place : place + 1]
    if len(processes := {device.process_index for device in own.flat}) > 1:
        raise ValueError(
            "mesh must have the devices of a member in one process; got those of member "
            f"{member} in processes {sorted(processes)}."
        )
    return Mesh(own.reshape(-1), (TRAJECTORY,), axis_types=(AxisType.Auto,))


def from_one(content: bytes | None) -> bytes:
    """What one process has, for all processes of `jax.distributed`; the others give None."""
    has = content is not None
    size = int(broadcast_one_to_all(np.int32(len(content or b"")), has))
    own = np.frombuffer((content or bytes(size)) + bytes(-size % 4), np.int32)
    return np.asarray(broadcast_one_to_all(own, has)).tobytes()[:size]


def on_devices(array: Any) -> bool:
    """Whether an array lies on more devices than one."""
    return len(array.devices()) > 1


def writes(mesh: Mesh | None) -> bool:
    """Whether this process is the one that writes: that of the first device of the mesh."""
    return mesh is None or mesh.devices.flat[0].process_index == jax.process_index()


def by_rows(run: Callable[..., Any], shared: Any, *rows: Any) -> Any:
    """`run(shared, *rows)`, where each device of the mesh in context computes its share of rows.

    A number of rows that devices do not divide is filled up by copies of the first row. What is
    computed of copies is dropped, so they change nothing, and their gradients are 0.

    Args:
        run: a function of which each row of the result depends on the same row of `rows` only.
        shared: a pytree of arrays that all devices get whole, such as networks.
        *rows: pytrees of arrays, whose first axes are trajectories.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or (devices := dict(mesh.shape).get(TRAJECTORY, 1)) == 1:
        return run(shared, *rows)
    count = len(jax.tree.leaves(rows)[0])
    more = -count % devices

    def filled(array: Any) -> Any:
        copies = jnp.broadcast_to(array[:1], (more, *array.shape[1:]))
        return jnp.concatenate([array, copies]) if more else array

    each = PartitionSpec(TRAJECTORY)
    divided_run = jax.shard_map(
        run,
        in_specs=(PartitionSpec(), *[each] * len(rows)),
        out_specs=each,
        # It would refuse loops that start at constants.
        check_vma=False,
    )
    return jax.tree.map(lambda a: a[:count], divided_run(shared, *jax.tree.map(filled, rows)))


def everywhere(tree: Any) -> Any:
    """Inside of a compiled program: arrays that all devices of the mesh in context hold whole."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a, PartitionSpec()), tree)


_whole = jax.jit(everywhere)


def divided(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays whose first axes are trajectories, each device with its share of them.

    If the devices do not divide their number, each device gets all.
    """
    if mesh is None:
        return tree
    even = all(len(a) % mesh.devices.size == 0 for a in jax.tree.leaves(tree))
    return _put(tree, NamedSharding(mesh, PartitionSpec(TRAJECTORY if even else None)))


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays of which each device of the mesh has all."""
    return tree if mesh is None else _put(tree, NamedSharding(mesh, PartitionSpec()))


def gathered(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays on a mesh as arrays of this process alone, each of them whole."""
    if mesh is None:
        return tree
    if mesh.is_multi_process:
        with on_mesh(mesh):
            tree = _whole(tree)
    return jax.tree.map(_local, tree)


def said(number: int, mesh: Mesh) -> list[int]:
    """The numbers that the processes of a mesh say, one for each device."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    own = np.array([number], np.int32)
    each = jax.make_array_from_callback((mesh.devices.size,), sharding, lambda index: own)
    return np.asarray(gathered(each, mesh)).tolist()


def _put(tree: Any, sharding: NamedSharding) -> Any:
    def put(array: Any) -> Any:
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            impl = jax.random.key_impl(array)
            return jax.random.wrap_key_data(put(jax.random.key_data(array)), impl=impl)
        own = np.asarray(array)
        # Each process has all of it, and hands its devices their shares: nothing is sent.
        return jax.make_array_from_callback(own.shape, sharding, lambda index: own[index])

    return jax.tree.map(put, tree)


def _local(array: Any) -> Any:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(array)
        return jax.random.wrap_key_data(_local(jax.random.key_data(array)), impl=impl)
    return jnp.asarray(np.asarray(array))

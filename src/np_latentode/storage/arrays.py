"""Pytrees of arrays on disk, with settings: written whole or not at all, and checked on reading."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import io
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from np_latentode.programs.params import named_leaves

__all__ = ["digest", "fill", "packed", "read", "unpacked", "write"]

FORMAT = 1
ARRAYS, SETTINGS = "arrays", "settings"


def write(path: Path, tree: Any, settings: dict[str, Any]) -> None:
    """Writes a pytree of arrays, with settings, into a new directory by orbax.

    orbax gives the directory its name once everything is written. A digest is stored as well, since
    orbax does not notice every damaged array.

    Args:
        path: the new directory.
        tree: the arrays.
        settings: what else to store; it must be JSON.

    Raises:
        ValueError: if `path` exists.
        OSError: if the directory cannot be written; then nothing is at `path`.
    """
    if path.exists():
        raise ValueError(f"path must be new; got {path}, which exists.")
    leaves = {name: np.asarray(_plain(leaf)) for name, leaf in named_leaves(tree).items()}
    # Files are numbered, as the names of leaves hold brackets and quotes.
    arrays = {str(k): array for k, array in enumerate(leaves.values()) if array.size}
    about = {
        "format": FORMAT,
        "names": list(leaves),
        # orbax does not store arrays without entries.
        "empty": {
            name: [list(array.shape), str(array.dtype)]
            for name, array in leaves.items()
            if not array.size
        },
        "digest": digest((arrays, json.dumps(settings, sort_keys=True))),
        SETTINGS: settings,
    }
    with _quiet(), _checkpointer() as orbax:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(
            **{ARRAYS: ocp.args.StandardSave(arrays), SETTINGS: ocp.args.JsonSave(about)}
        )
        try:
            orbax.save(path.absolute(), args)
        except Exception as error:
            _ignore_closed_loops()
            for rest in path.parent.glob(f"{glob.escape(path.name)}.orbax-checkpoint-tmp*"):
                shutil.rmtree(rest, ignore_errors=True)
            raise OSError(f"{path} cannot be written: {_first_line(error)}") from error


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads what `write` wrote: the arrays by their names in the pytree, and the settings.

    The files hold numbers and JSON, no code.

    Raises:
        ValueError: if `path` is no directory that `write` wrote, or if it is damaged.
    """
    if not path.is_dir():
        raise ValueError(f"{path} must be a directory that np_latentode wrote; there is none.")
    try:
        with _quiet(), _checkpointer() as orbax:
            about = _restore_about(orbax, path)
            names = {
                str(k): name for k, name in enumerate(about["names"]) if name not in about["empty"]
            }
            arrays = _restore_arrays(orbax, path, list(names))
        if digest((arrays, json.dumps(about[SETTINGS], sort_keys=True))) != about["digest"]:
            raise ValueError("these are not the arrays and settings that were written")
    except Exception as error:
        _ignore_closed_loops()
        raise ValueError(
            f"{path} must be whole, and written by np_latentode; it is damaged, or something else."
        ) from error
    found = {name: arrays[k] for k, name in names.items()}
    found |= {name: np.zeros(shape, dtype) for name, (shape, dtype) in about["empty"].items()}
    return found, about[SETTINGS]


def _restore_about(orbax: Any, path: Path) -> dict[str, Any]:
    """What `write` stored beside the arrays."""
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(**{SETTINGS: ocp.args.JsonRestore()})
    about = orbax.restore(path.absolute(), args)[SETTINGS]
    if not (isinstance(about, dict) and about.get("format") == FORMAT):
        raise ValueError(f"its settings are not of format {FORMAT}")
    return about


def _restore_arrays(orbax: Any, path: Path, files: list[str]) -> dict[str, np.ndarray]:
    import orbax.checkpoint as ocp

    # As NumPy arrays, which keep double precision whatever the precision of JAX is.
    template = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in files}
    args = ocp.args.Composite(**{ARRAYS: ocp.args.PyTreeRestore(restore_args=template)})
    arrays = orbax.restore(path.absolute(), args)[ARRAYS]
    return {k: np.asarray(arrays[k]) for k in files}


def packed(tree: Any) -> bytes:
    """The arrays of a pytree as bytes, for another process."""
    file, leaves = io.BytesIO(), named_leaves(tree)
    arrays: dict[str, Any] = {name: np.asarray(_plain(leaf)) for name, leaf in leaves.items()}
    np.savez(file, **arrays)
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, np.ndarray]:
    """The arrays that were `packed`, by their names, as `fill` takes them."""
    with np.load(io.BytesIO(content)) as arrays:
        return dict(arrays)


def fill(template: Any, arrays: dict[str, Any], *, name: str) -> Any:
    """A pytree like the template, with these arrays as its leaves.

    Args:
        template: a pytree of arrays, or of their shapes and types.
        arrays: the new leaves by their names; they are converted to the template's types.
        name: the argument that errors name.

    Raises:
        ValueError: if a leaf is missing, unknown, or of another shape.
    """
    wanted = named_leaves(template)
    if differ := sorted(wanted.keys() ^ arrays.keys()):
        raise ValueError(
            f"{name} must have the parameters of model and guide; missing or unknown are {differ}."
        )
    filled = []
    for key, leaf in wanted.items():
        plain, array = jax.eval_shape(_plain, leaf), arrays[key]
        if array.shape != plain.shape:
            raise ValueError(
                f"{name} must have arrays of the program's shapes; got {array.shape} at {key}, "
                f"not {plain.shape}."
            )
        array = jnp.asarray(array, plain.dtype)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            array = jax.random.wrap_key_data(
                array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype))
            )
        filled.append(array)
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def digest(tree: Any) -> str:
    """A hash of a pytree: of the names, shapes, types and contents of its leaves."""
    found = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        array = np.asarray(_plain(leaf))
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _plain(leaf: Any) -> Any:
    """The leaf, or the numbers of a random key."""
    if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _checkpointer() -> Any:
    # Imported here, as the import takes a third of a second, which other calls should not wait for.
    import orbax.checkpoint as ocp

    # Without these, orbax waits for all processes of `jax.distributed` to write or read as well.
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    return ocp.Checkpointer(
        ocp.CompositeCheckpointHandler(composite_options=options), multiprocessing_options=alone
    )


@functools.cache
def _ignore_closed_loops() -> None:
    """Hides what orbax's threads report after orbax failed.

    The threads go on, find their event loop closed, and report that long after our own error.
    """
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # orbax logs warnings where nothing is wrong, and logs each error that it also raises.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""Pytrees of arrays on disk, with settings: written whole or not at all, checked when read."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
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

__all__ = ["digest", "fill", "read", "write"]

FORMAT = 1
ARRAYS, SETTINGS = "arrays", "settings"


def write(path: Path, tree: Any, settings: dict[str, Any]) -> None:
    """Writes a pytree of arrays, and settings that are JSON, into a new directory by orbax.

    orbax gives a directory its name when all of it is written. A digest goes with it, as not every
    damaged array is noticed on reading.

    Raises:
        ValueError: if something is at `path` already.
        OSError: if it cannot be written; then nothing is at `path`.
    """
    if path.exists():
        raise ValueError(f"path must be new; got {path}, where something is already.")
    leaves = {name: np.asarray(_plain(leaf)) for name, leaf in named_leaves(tree).items()}
    # The names of leaves, with their brackets and quotes, are kept apart from file names.
    arrays = {str(k): array for k, array in enumerate(leaves.values()) if array.size}
    about = {
        "format": FORMAT,
        "names": list(leaves),
        # orbax has no arrays without entries.
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
    """The arrays that `write` wrote, by their names in the pytree, and the settings.

    Nothing in the files is run: they hold numbers and JSON.

    Raises:
        ValueError: if there is nothing at `path`, or something else, or it is damaged.
    """
    if not path.is_dir():
        raise ValueError(f"{path} must be a directory that np_latentode wrote; there is none.")
    try:
        with _quiet(), _checkpointer() as orbax:
            import orbax.checkpoint as ocp

            about = orbax.restore(
                path.absolute(), ocp.args.Composite(**{SETTINGS: ocp.args.JsonRestore()})
            )[SETTINGS]
            if not (isinstance(about, dict) and about.get("format") == FORMAT):
                raise ValueError(f"its settings are not of format {FORMAT}")
            names = {
                str(k): name for k, name in enumerate(about["names"]) if name not in about["empty"]
            }
            # NumPy's, of whatever precision they were written in.
            template = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in names}
            arrays = orbax.restore(
                path.absolute(),
                ocp.args.Composite(**{ARRAYS: ocp.args.PyTreeRestore(restore_args=template)}),
            )[ARRAYS]
        arrays = {k: np.asarray(arrays[k]) for k in names}
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


def fill(template: Any, arrays: dict[str, Any], *, name: str) -> Any:
    """The pytree of the template's structure with the arrays of these names, in its types.

    Raises:
        ValueError: if it has other leaves than there are arrays, or one of another shape.
    """
    wanted = named_leaves(template)
    if missing := sorted(wanted.keys() ^ arrays.keys()):
        raise ValueError(
            f"{name} must have the parameters of model and guide; got a difference in {missing}."
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
        keyed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if keyed:
            array = jax.random.wrap_key_data(
                array, impl=jax.random.key_impl(jnp.empty((), leaf.dtype))
            )
        filled.append(array)
    return jax.tree.unflatten(jax.tree.structure(template), filled)


def digest(tree: Any) -> str:
    """A number for the shapes, types and contents of the leaves of a pytree."""
    found = hashlib.sha256()
    for name, leaf in named_leaves(tree).items():
        array = np.asarray(_plain(leaf))
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _plain(leaf: Any) -> Any:
    if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf


def _checkpointer() -> Any:
    # Imported here, as it takes a third of a second that only those should wait for who save.
    import orbax.checkpoint as ocp

    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


@functools.cache
def _ignore_closed_loops() -> None:
    """Where orbax fails, its threads go on, find their event loop closed, and would say so, long
    after the sentence that says what is wrong."""
    others = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # orbax logs what goes well as a warning, and what does not before it raises.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

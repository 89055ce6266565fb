"""The parameters of a model and its guide, by the names of their NumPyro sites."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.handlers as handlers

from np_latentode.parts.threads import one_at_a_time
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE

__all__ = ["check_params", "initial_params", "named_leaves"]


@one_at_a_time
def initial_params(model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """The parameters before training, by the names of their sites."""
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        model._bind(model.scaling)
        guide._bind()
    values = {name: site["value"] for name, site in sites.items() if site["type"] == "param"}
    return jax.tree.map(jnp.asarray, values)


def check_params(model: LatentODE, guide: AmortizedGuide, params: Any) -> None:
    """Refuses parameters with other names or shapes than those of model and guide.

    NumPyro itself would use the untrained network for a missing parameter, and ignore an unknown
    one.

    Raises:
        ValueError: naming the parameters that differ.
    """
    rule = "params must be those of this model and guide, as in `SVIRunResult.params`"
    if not isinstance(params, dict):
        raise ValueError(f"{rule}; got {type(params).__name__}.")
    wanted, given = named_leaves(initial_params(model, guide)), named_leaves(params)
    if missing := _sites(wanted.keys() - given.keys()):
        raise ValueError(f"{rule}; got none of {missing}.")
    if unknown := _sites(given.keys() - wanted.keys()):
        raise ValueError(f"{rule}; got {unknown} as well.")
    for name, leaf in wanted.items():
        if np.shape(given[name]) != leaf.shape:
            raise ValueError(
                f"{rule}, of shape {leaf.shape} at {name}; got {np.shape(given[name])}."
            )


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree, by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _sites(paths: set[str]) -> list[str]:
    """The sites of paths such as `['decoder$params']['layers']`: their first keys."""
    return sorted({path.split("']")[0].removeprefix("['") for path in paths})

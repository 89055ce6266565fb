"""Mixtures: the draws and the densities of the members of an ensemble, as one forecast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float

from np_latentode.programs.ensemble import Ensemble, Share
from np_latentode.programs.fitted import Fitted

__all__ = ["join", "log_mixture", "widened"]


def join(some: Sequence[Share], draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The draws of all members, in their order, and `member` (draw,): who made each draw.

    There is no `z0` if the members' latent dimensions differ. The draws of a fit alone stay as they
    are.

    Args:
        some: the members that draw.
        draws: what each has drawn; the draw is the first axis of each array.
    """
    if some[0].member is None:
        return draws[0]
    dims = {share.fitted.model.latent_dim for share in some}
    names = [name for name in draws[0] if name != "z0" or len(dims) == 1]
    joined = {name: _concatenated([one[name] for one in draws]) for name in names}
    member = [np.full(share.num_samples, share.member) for share in some]
    return {**joined, "member": np.concatenate(member)}


def widened(fitted: Fitted | Ensemble, draws: dict[str, Any]) -> dict[str, Any]:
    """The draws of a forecast as they are modelled, with the bands of an ensemble that has some."""
    if isinstance(fitted, Fitted) or fitted.bands is None:
        return draws
    stretched = {name: fitted.bands.widen(draws[name]) for name in ("x", "signal") if name in draws}
    return {**draws, **stretched}


def log_mixture(
    some: Sequence[Share], log_p: Sequence[Array]
) -> Float[Array, "trajectory time feature"]:
    """log sum_k n_k / n p_k: the log density of a forecast by n_k draws of each member.

    Args:
        some: the members that draw.
        log_p: log p_k of each.
    """
    counts = np.array([share.num_samples for share in some])
    weights = (counts / counts.sum()).reshape(-1, 1, 1, 1)
    return jnp.asarray(logsumexp(jnp.stack(log_p), axis=0, b=weights))


def _concatenated(arrays: Sequence[Any]) -> Any:
    if len(arrays) == 1:
        return arrays[0]
    # Not all by JAX, as NumPy's arrays may be in double precision.
    known = all(isinstance(array, np.ndarray) for array in arrays)
    return (np if known else jnp).concatenate(arrays)

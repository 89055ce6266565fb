"""Conditioning: the random part of a trajectory that the encoder sees in a training step.

A guide that was trained on whole trajectories cannot encode half of one. Pass one of these
functions to SVI, as in `SVI(model, guide, optim, loss, conditioning=random_context)`. The encoder
then learns to read any part. The likelihood still scores whole trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from np_latentode.data.trajectories import Trajectories

__all__ = ["MOSTLY_PARTS", "Conditioning", "random_context", "random_points", "random_prefix"]

Conditioning = Callable[[Array, Trajectories], Trajectories]
"""`(rng_key, trajectories) -> trajectories` with fewer observations and the same shapes."""


def random_prefix(
    rng_key: Array, trajectories: Trajectories, *, min_share: float = 0.25
) -> Trajectories:
    """Keeps the first part of each trajectory's time span: a training step of forecasting.

    The share of the span is drawn uniformly from [min_share, 1], once per trajectory.
    """
    observed, times = trajectories.observed, trajectories.times
    first = jnp.min(times, axis=1, where=observed, initial=jnp.inf)
    last = jnp.max(times, axis=1, where=observed, initial=-jnp.inf)
    share = jax.random.uniform(rng_key, (len(trajectories),), times.dtype, minval=min_share)
    end = jnp.where(observed.any(1), first + share * (last - first), 0.0)
    return trajectories.keep(times <= end[:, None])


def random_points(
    rng_key: Array, trajectories: Trajectories, *, min_share: float = 0.4
) -> Trajectories:
    """Keeps random times of each trajectory: a training step of interpolation.

    The probability of keeping a time is drawn uniformly from [min_share, 1], once per trajectory.
    """
    share_key, keep_key = jax.random.split(rng_key)
    times = trajectories.times
    share = jax.random.uniform(share_key, (len(trajectories), 1), times.dtype, minval=min_share)
    return trajectories.keep(jax.random.uniform(keep_key, times.shape, times.dtype) < share)


def random_context(
    rng_key: Array, trajectories: Trajectories, *, whole_share: float = 0.5
) -> Trajectories:
    """Keeps a trajectory whole with probability `whole_share`, and otherwise random points of a
    random prefix.

    Whole trajectories keep the estimated noise small. A part does not determine the rest, and the
    model explains the difference by noise.
    """
    whole_key, prefix_key, points_key = jax.random.split(rng_key, 3)
    part = random_points(points_key, random_prefix(prefix_key, trajectories))
    whole = jax.random.bernoulli(whole_key, whole_share, (len(trajectories),))
    return trajectories.keep(part.mask | whole[:, None, None])


MOSTLY_PARTS = partial(random_context, whole_share=0.2)
"""For forecasts from parts only. The learned noise then includes the errors of such forecasts, and
bands are wider."""

"""Recalibration: bands that hold for what was left out of the training."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.data.checks import check_counts
from np_latentode.data.kinds import NUMBERS
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import Inference, amortized, draw_codes
from np_latentode.forecasts.mixture import join
from np_latentode.forecasts.prediction import decode_observed
from np_latentode.programs.bands import Bands
from np_latentode.programs.ensemble import Ensemble, kinds, shares, with_solver
from np_latentode.training.cross_fit import CrossFit

__all__ = ["recalibrated"]


def recalibrated(
    rng_key: Array,
    cross: CrossFit,
    trajectories: Trajectories | StoredTrajectories,
    *,
    inference: Inference = amortized,
    num_samples: int = 200,
) -> Ensemble:
    """The ensemble with bands that hold for the trajectories that its members left out.

    Each trajectory that a fold left out is forecast by the members that were trained without it,
    the later half of its observed times from the first half; see `Bands.fit`. Fewer members
    forecast than in the ensemble, which makes the widths rather too large; but those left out have
    also chosen the weights, and what is kept of training, which makes them rather too small. Zeros
    and ones, and counts, keep their bands: stretched, they would be neither. Limits, such as <0.5,
    say nothing of the widths.

    Args:
        rng_key: a key.
        cross: what `cross_fit` returned.
        trajectories: those that it was given.
        inference: how forecasts draw z0.
        num_samples: draws per forecast.

    Raises:
        ValueError: if num_samples is not a positive integer, or there are other trajectories.
    """
    check_counts(num_samples=num_samples)
    if len(trajectories) != cross.num_trajectories:
        raise ValueError(
            f"trajectories must be the {cross.num_trajectories} that cross_fit was given; got "
            f"{len(trajectories)}."
        )
    silent = cross._replace(ensemble=with_solver(cross.ensemble, throw=False))
    stored = isinstance(trajectories, StoredTrajectories)
    who = np.arange(len(trajectories)) if stored else np.asarray(trajectories.names.ids)
    draws, x, mask, ids = [], [], [], []
    for k, rows in enumerate(cross.left_out):
        context, target = trajectories[rows].split()
        key, slots = jax.random.fold_in(rng_key, k), np.asarray(target.observed)
        draws.append(_draws(key, silent.fold(k), context, target, inference, num_samples))
        x.append(np.asarray(target.values)[slots])
        mask.append((np.asarray(target.mask) & ~target.limited)[slots])
        ids.append(who[rows[np.nonzero(slots)[0]]])
    stretched = np.array([kind == NUMBERS for kind in kinds(cross.ensemble)])
    mask = [seen & stretched for seen in mask]
    found = (np.concatenate(draws, axis=1), *map(np.concatenate, (x, mask, ids)))
    return replace(cross.ensemble, bands=Bands.fit(*found))


def _draws(
    rng_key: Array,
    ensemble: Ensemble,
    context: Trajectories,
    target: Trajectories,
    inference: Inference,
    num_samples: int,
) -> np.ndarray:
    """Draws of x (draw, slot, feature), at the observed slots of the target."""
    some, each = shares(rng_key, ensemble, num_samples), []
    for share in some:
        one, (z0_key, x_key) = share.fitted, jax.random.split(share.rng_key)
        z0 = draw_codes(inference, z0_key, one, context, share.num_samples)
        each.append(decode_observed(x_key, one, z0, target, context=context))
    return np.asarray(join(some, each)["x"])

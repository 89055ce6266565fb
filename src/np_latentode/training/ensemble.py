"""Training of an ensemble: several fits of the same data, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.ensemble import Ensemble
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import initial_params
from np_latentode.programs.plate import check_trajectories
from np_latentode.training.members import check_places, train_members
from np_latentode.training.plan import make_plan
from np_latentode.training.stacking import stack

__all__ = ["fit_ensemble", "starting_alike"]

Build = Callable[[nnx.Rngs], tuple[LatentODE, AmortizedGuide]]


def fit_ensemble(
    rng_key: Array,
    build: Build,
    train: Trajectories,
    validation: Trajectories | tuple[Trajectories, Trajectories] | None = None,
    *,
    num_members: int = 5,
    max_workers: int | None = None,
    num_steps: int = 5_000,
    batch_size: int | None = None,
    conditioning: Conditioning | None = random_context,
    optim: optax.GradientTransformation | None = None,
    kl_weight: Callable[[Array], ArrayLike] | None = None,
    loss: Any = None,
    patience: int | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Ensemble:
    """Trains several fits from different networks, and weighs them by their held-out forecasts.

    max_w sum_i log sum_k w_k p_k(target_i | context_i),   w_k >= 0,  sum_k w_k = 1

    These are the weights of stacking (Yao et al. 2018, equation 4), over the trajectories of the
    validation data. A fit that went wrong gets a weight near 0. Without validation, the weights are
    equal. The weights suit the validation data, so judge the ensemble by others.

    All members are trained by the programs of the first, which are compiled once. They differ in
    the initial parameters and in the key. Member k is, bit for bit, what `fit` makes of its key and
    its initial parameters: neither `num_members` nor `max_workers` changes it.

    Args:
        rng_key: a key.
        build: `rngs -> (model, guide)`, such as
            `lambda rngs: latent_ode(train, latent_dim=4, rngs=rngs)`. All that it may do
            differently from one call to the next is to initialise the networks.
        train, validation: as in `fit`.
        num_members: the number of fits.
        max_workers: how many are trained side by side, in threads. Default: one per core.
        num_steps, batch_size, conditioning, optim, kl_weight, loss: as in `fit`.
        patience: as in `fit`, for each member by itself.
        checkpoint_dir: the directory of the members' checkpoints, in `member-0`, `member-1`, and so
            on, as in `fit`.
        mesh: the devices to train on. Members are divided over its axis "member", trajectories over
            its axis "trajectory", as in `fit`; it may have one of both, or both. Member k is at the
            place k, modulo their number, and those of one place take turns. Default: one device.
        progress: whether to show one progress bar for all members. Beside it are the scores of the
            one that forecasts best.

    Returns:
        The ensemble. Its members share model and guide, so that forecasts compile once, too.

    Raises:
        ValueError: if an argument breaks a rule, before anything is computed.
        FloatingPointError: if none of the steps of a dispatch of a member is finite.
        OSError: if a checkpoint cannot be written; then the earlier one is kept.
    """
    check_counts(num_members=num_members, max_workers=1 if max_workers is None else max_workers)
    check_trajectories(train, name="train")
    devices = check_places(mesh, num_members, max_workers)
    start_key, train_key, weigh_key = jax.random.split(rng_key, 3)
    pairs = [_pair(build, jax.random.fold_in(start_key, k)) for k in range(num_members)]
    starts = starting_alike(pairs, name="build")
    model, guide = starts[0].model, starts[0].guide
    plan = make_plan(
        train_key,
        model,
        guide,
        train,
        validation,
        num_steps=num_steps,
        batch_size=batch_size,
        conditioning=conditioning,
        optim=optim,
        kl_weight=kl_weight,
        loss=loss,
        patience=patience,
    )
    plans = [
        plan._replace(rng_key=jax.random.fold_in(plan.rng_key, k), init_params=start.params)
        for k, start in enumerate(starts)
    ]
    parent = None if checkpoint_dir is None else Path(checkpoint_dir)
    directories = [parent and parent / f"member-{k}" for k in range(num_members)]
    options: Any = dict(mesh=devices, max_workers=max_workers, progress=progress)
    made = train_members(plans, directories, **options)
    members = [Fitted(model, guide, one.params, one.history, one.state) for one in made]
    weights = None if plan.held_out is None else stack(weigh_key, members, *plan.held_out)
    return Ensemble(tuple(members), weights)


def starting_alike(pairs: Sequence[tuple[LatentODE, AmortizedGuide]], *, name: str) -> list[Fitted]:
    """Where each training starts: the programs of the first pair, with its own parameters.

    Raises:
        ValueError: if the pairs have other units or parameters than the first.
    """
    model, guide = pairs[0]
    rule, starts = f"{name} must return the same parts in every call, newly initialised", []
    for k, pair in enumerate(pairs):
        if not model.scaling.like(pair[0].scaling):
            raise ValueError(f"{rule}; got other units for member {k}.")
        try:
            starts.append(Fitted(model, guide, initial_params(*pair)))
        except ValueError as error:
            raise ValueError(f"{rule}; for member {k}, {error}") from error
    return starts


def _pair(build: Any, rng_key: Array) -> Any:
    rule = "build must be a function rngs -> (model, guide), such as latent_ode's"
    if not callable(build):
        raise ValueError(f"{rule}; got {type(build).__name__}.")
    pair = build(nnx.Rngs(rng_key))
    kinds = [type(one) for one in pair] if isinstance(pair, tuple) else [type(pair)]
    if kinds != [LatentODE, AmortizedGuide]:
        came = ", ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{rule}; got one that returns {came}.")
    return pair

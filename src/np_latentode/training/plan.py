"""The plan of a training: its programs, data and settings, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike
from numpyro.infer import SVI

from np_latentode.data.buckets import buckets
from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.devices import divided, everywhere, replicated
from np_latentode.parts.threads import one_at_a_time
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.programs.fitted import Fitted, History, check_fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import initial_params
from np_latentode.programs.plate import check_call, check_data
from np_latentode.storage.arrays import digest
from np_latentode.storage.saving import describe_parts
from np_latentode.training.checkpoints import Checkpoints
from np_latentode.training.chunks import Chunks
from np_latentode.training.losses import BucketLoss, batch_sizes
from np_latentode.training.optimizer import optimizer
from np_latentode.training.steps import STEPS_AT_ONCE, steps_of
from np_latentode.training.validation import held_out_pair

__all__ = ["Plan", "Programs", "make_plan"]


class Programs:
    """What is compiled for a training. All trainings that share it compile it once.

    Args:
        svi: the SVI.
        model: its model, as it was given, but that a solve that fails gives NaN.
        kl_weight: `step -> weight`, or None for 1.
    """

    def __init__(self, svi: SVI, model: LatentODE, kl_weight: Callable[[Array], ArrayLike] | None):
        self.svi, self.model = svi, model
        self.init, self.take = jax.jit(self._init), steps_of(svi, kl_weight=kl_weight)

    @one_at_a_time
    def _init(self, rng_key: Array, train: Trajectories, params: dict[str, Any] | None) -> Any:
        """The parameters and the state before the first step."""
        state = self.svi.init(rng_key, train, init_params=params)
        return everywhere((self.svi.get_params(state), state))

    def fitted(self, params: dict[str, Any]) -> Fitted:
        return Fitted(self.model, self.svi.guide, params)


class Plan(NamedTuple):
    """What a training consists of."""

    rng_key: Array
    programs: Programs
    init_params: dict[str, Any] | None
    """Where training starts, unless at the initial parameters of the parts."""
    train: Trajectories | StoredTrajectories
    buckets: tuple[Trajectories, ...]
    """The training data, by similar lengths; of data on disk, the first chunk."""
    held_out: tuple[Trajectories, Trajectories] | None
    num_steps: int
    batch_size: int | None
    patience: int | None
    checkpoints: Checkpoints | None = None
    mesh: Mesh | None = None
    """The devices over which the trajectories are divided; None for the one of JAX's default."""
    chunks: Chunks | None = None
    """Of data on disk."""

    def data_at(self, dispatch: int) -> Any:
        """What the loss takes: a `BucketLoss` takes buckets, others take trajectories."""
        if self.chunks is not None:
            return self.chunks.at(dispatch)
        first, *others = self.buckets
        return self.buckets if others else first

    def finished(self, history: History) -> bool:
        taken = len(history.losses)
        waited = taken - history.best_step
        return taken >= self.num_steps or (self.patience is not None and waited >= self.patience)

    def kept_in(self, directory: Path) -> Plan:
        """The same plan, with checkpoints in a directory.

        Raises:
            ValueError: if the directory holds other files, or is a file.
        """
        model, guide = self.programs.svi.model, self.programs.svi.guide
        networks = self.init_params or initial_params(model, guide)
        train: Any = self.train
        if isinstance(train, StoredTrajectories):
            train = train.fingerprint
        data = dict(rng_key=self.rng_key, train=train, validation=self.held_out)
        settings = {
            "kind": "training",
            "parts": describe_parts(model, guide),
            **dict(num_steps=self.num_steps, batch_size=self.batch_size, patience=self.patience),
            **{name: digest(value) for name, value in (data | {"networks": networks}).items()},
        }
        return self._replace(checkpoints=Checkpoints(directory, settings))

    def shuffled(self, rng_key: Array) -> Plan:
        """The same plan with another key, and with data on disk in the order of that."""
        plan = self._replace(rng_key=rng_key)
        if plan.chunks is None:
            return plan
        chunks = plan.chunks.shuffled(rng_key)
        return plan._replace(chunks=chunks, buckets=chunks.at(0))

    def on(self, mesh: Mesh | None) -> Plan:
        """The same plan, with its data divided over a mesh. Its checkpoints are the same, too.

        Raises:
            ValueError: if there are fewer trajectories, or fewer of them in a step, than devices,
                or they are on disk.
        """
        if mesh is None:
            return self
        if self.chunks is not None:
            raise ValueError(
                "mesh must be left out where train is on disk, which one device reads; got one of "
                f"{mesh.devices.size} devices."
            )
        for name, count in dict(train=len(self.train), batch_size=self.batch_size).items():
            if count is not None and count < mesh.devices.size:
                raise ValueError(
                    f"mesh must have at most as many devices as {name} has trajectories, {count}; "
                    f"got {mesh.devices.size}."
                )
        return self._replace(
            mesh=mesh,
            init_params=replicated(self.init_params, mesh),
            buckets=tuple(divided(one, mesh) for one in self.buckets),
            held_out=divided(self.held_out, mesh),
        )


def make_plan(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    train: Trajectories | StoredTrajectories,
    validation: Any,
    *,
    num_steps: int,
    batch_size: int | None,
    conditioning: Conditioning | None,
    optim: optax.GradientTransformation | None,
    kl_weight: Callable[[Array], ArrayLike] | None,
    loss: Any,
    patience: int | None,
    start: Fitted | None = None,
    parts: tuple[Trajectories, ...] | None = None,
) -> Plan:
    """The plan of `fit`, which describes the arguments.

    Args:
        parts: the training data by similar lengths. Default: the buckets of `train`.

    Raises:
        ValueError: if an argument breaks a rule.
    """
    check_counts(num_steps=num_steps)
    chunks = None
    if isinstance(train, StoredTrajectories):
        chunks = _chunks(rng_key, model, train, batch_size)
        _check_stored(model.likelihood, train)
        parts = chunks.at(0)
        check_data(model, parts[0])
    else:
        train, _ = check_data(model, train)
        check_call(train, None, batch_size=batch_size, kl_weight=1.0, scaling=model.scaling)
        if parts is None:
            parts = tuple(bucket.trajectories for bucket in buckets(train))
    held_out = held_out_pair(model, validation)
    _check_patience(patience, held_out)
    _check_kl_weight(kl_weight, num_steps)
    init_params = None if start is None else _params_of(start, model, guide)
    loss, options = OrderedELBO() if loss is None else loss, dict(batch_size=batch_size)
    if chunks is not None:
        loss, options = BucketLoss(loss, chunks.sizes, chunks.weights), {}
    elif len(parts) > 1:
        loss, options = BucketLoss(loss, batch_sizes([*map(len, parts)], batch_size)), {}
    optim = optimizer(num_steps) if optim is None else optim
    # Without throw, a solve that fails costs one step, not the whole training.
    silent = model.with_solver(throw=False)
    solved = silent.with_solver(max_steps=_steps_to_end(model, train))
    svi = SVI(solved, guide, optim, loss, conditioning=conditioning, **options)
    return Plan(
        rng_key=rng_key,
        programs=Programs(svi, silent, kl_weight),
        init_params=init_params,
        train=train,
        buckets=parts,
        held_out=held_out,
        num_steps=num_steps,
        batch_size=batch_size,
        patience=patience,
        chunks=chunks,
    )


def _chunks(
    rng_key: Array, model: LatentODE, train: StoredTrajectories, batch_size: int | None
) -> Chunks:
    """The chunks of data on disk, if they fit the model."""
    model.scaling.check(train, name="train")
    if not (isinstance(batch_size, int) and 1 <= batch_size <= len(train)):
        raise ValueError(
            "batch_size must be an integer from 1 to the number of trajectories, where these are "
            f"on disk, {len(train)}; got {batch_size!r}."
        )
    settings: Any = dict(batch_size=batch_size, steps=STEPS_AT_ONCE, offset=model.scaling.offset)
    return Chunks(train, rng_key, **settings)


def _check_stored(likelihood: Any, train: StoredTrajectories) -> None:
    """Refuses values on disk that are impossible under the likelihood, in one pass over them."""
    if (check := getattr(likelihood, "check", None)) is None:
        return
    for part, rows in train.parts():
        values = rows[:, 1:]
        try:
            _check_rows(check, values, "train")
        except ValueError:
            # Checked one by one, to name the trajectory.
            each = np.split(values, np.cumsum(train.lengths[part])[:-1])
            for i, own in zip(part.tolist(), each, strict=True):
                _check_rows(check, own, f"train[{i}]")


def _check_rows(check: Callable[..., None], rows: np.ndarray, name: str) -> None:
    """Checks rows (time, feature), NaN where not observed, as one trajectory."""
    mask = ~np.isnan(rows)
    check(np.where(mask, rows, 0.0)[None], mask[None], name=name)


def _steps_to_end(model: LatentODE, train: Trajectories | StoredTrajectories) -> int:
    if isinstance(train, StoredTrajectories):
        offset = model.scaling.offset
        return model.steps_to(np.array(train.ends) - offset.time, offset)
    return model.steps_to(train.times, train.offset)


def _params_of(start: Any, model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """The parameters of a fit, if they are those of this model and guide."""
    return Fitted(model, guide, check_fitted(start, name="start").params).params


def _check_patience(patience: int | None, held_out: Any) -> None:
    if patience is None:
        return
    check_counts(patience=patience)
    if held_out is None:
        raise ValueError(f"patience must come with validation; got {patience} without.")


def _check_kl_weight(kl_weight: Callable[[Array], ArrayLike] | None, num_steps: int) -> None:
    if kl_weight is None:
        return
    for step in (0, num_steps - 1):
        if not np.asarray(weight := kl_weight(jnp.asarray(step))) > 0:
            raise ValueError(f"kl_weight must be positive; got {weight} at step {step}.")

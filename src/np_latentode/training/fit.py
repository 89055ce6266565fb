"""Training: the steps of NumPyro's SVI, many per dispatch, with validation and checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState
from tqdm import tqdm

from np_latentode.data.buckets import buckets
from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.fitted import Fitted, History, check_fitted
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import initial_params
from np_latentode.programs.plate import check_call, check_data
from np_latentode.storage.arrays import digest, fill
from np_latentode.storage.saving import describe_parts
from np_latentode.training.checkpoints import Checkpoints
from np_latentode.training.losses import BucketLoss, batch_sizes
from np_latentode.training.optimizer import optimizer
from np_latentode.training.validation import forecast_score, held_out_pair

__all__ = ["dispatches", "fit"]

STEPS_AT_ONCE = 100
"""Steps per dispatch. Progress bar, validation and checkpoints run between dispatches."""
SECONDS_BETWEEN = 30.0
"""The shortest time between two checkpoints, in seconds."""


def fit(
    rng_key: Array,
    model: LatentODE,
    guide: AmortizedGuide,
    train: Trajectories,
    validation: Trajectories | tuple[Trajectories, Trajectories] | None = None,
    *,
    num_steps: int = 5_000,
    batch_size: int | None = None,
    conditioning: Conditioning | None = random_context,
    optim: optax.GradientTransformation | None = None,
    kl_weight: Callable[[Array], ArrayLike] | None = None,
    loss: Any = None,
    patience: int | None = None,
    start: Fitted | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Fitted:
    """Trains by SVI, and keeps the parameters that forecast held-out data best.

    max E_q(z0 | conditioning(x)) [log p(x | z0)] - kl_weight KL(q || p)

    The steps are those of `SVI(model, guide, optim, Trace_ELBO(), batch_size=batch_size,
    conditioning=conditioning)`, a hundred per dispatch. A step that is not finite is skipped, as in
    `SVI.stable_update`. An ODE solve that fails is one cause.

    If more than half of the padded data would be padding, as with one long trajectory beside short
    ones, each step draws its share of the batch from each of several buckets of similar lengths.
    The ELBO is estimated without bias either way; `BucketLoss` says how.

    Args:
        rng_key: a key.
        model, guide: the programs to train; they are not changed.
        train: the training data.
        validation: a pair (context, target). After every hundred steps, the score is the log
            density of the target under forecasts from the context. For one `Trajectories` the pair
            is `validation.split()`: the second half of the observed times given the first.
        num_steps: the highest number of steps.
        batch_size: trajectories per step, at least one of each bucket. Default: all.
        conditioning: picks what the guide sees of each trajectory in a step.
        optim: an optimizer of optax. Default: `optimizer(num_steps)`.
        kl_weight: `step -> weight` of the KL in both model and guide, positive, such as
            `optax.linear_schedule(0.01, 1.0, 1_000)`. Default: 1, which gives the ELBO.
        loss: a loss of NumPyro. Default: `Trace_ELBO()`.
        patience: stop after this many steps without a better validation score. Default: never.
        start: a fit of the same model and guide, from whose parameters training starts. Default:
            the initial parameters of the parts.
        checkpoint_dir: the directory of checkpoints. One is written every half minute, and at the
            end. If there is one of the same training, `fit` goes on from it. On the same machine,
            the result is then bit for bit that of a training without interruption. `fit` cannot
            compare functions: pass the same optim, conditioning, kl_weight and loss.
        progress: whether to show a progress bar with the ELBO per trajectory, the validation score,
            and the time left.

    Returns:
        The fit. Its parameters are those of the step with the best validation score, or of the last
        step without validation. It holds the history, and the state of SVI after the last step.

    Raises:
        ValueError: if an argument breaks a rule, before anything is computed.
        FloatingPointError: if none of the steps of a dispatch is finite.
        OSError: if a checkpoint cannot be written; then the earlier one is kept.
    """
    check_counts(num_steps=num_steps)
    train, _ = check_data(model, train)
    check_call(train, None, batch_size=batch_size, kl_weight=1.0, scaling=model.scaling)
    held_out = held_out_pair(model, validation)
    _check_patience(patience, held_out)
    _check_kl_weight(kl_weight, num_steps)
    init_params = None if start is None else _params_of(start, model, guide)
    parts = tuple(bucket.trajectories for bucket in buckets(train))
    loss, options = Trace_ELBO() if loss is None else loss, dict(batch_size=batch_size)
    if len(parts) > 1:
        loss, options = BucketLoss(loss, batch_sizes([*map(len, parts)], batch_size)), {}
    optim = optimizer(num_steps) if optim is None else optim
    # Without throw, a solve that fails costs one step, not the whole training.
    silent = model.with_solver(throw=False)
    solved = silent.with_solver(max_steps=model.steps_to(train.times, train.offset))
    svi = SVI(solved, guide, optim, loss, conditioning=conditioning, **options)
    plan = _Plan(svi, silent, init_params, parts, held_out, num_steps, patience, kl_weight)
    if checkpoint_dir is not None:
        data = dict(rng_key=rng_key, train=train, validation=held_out)
        plan = plan._replace(checkpoints=_checkpoints(Path(checkpoint_dir), plan, batch_size, data))
    params, state, history = _train(rng_key, plan, progress)
    return Fitted(model, guide, params, history, state)


def _params_of(start: Any, model: LatentODE, guide: AmortizedGuide) -> dict[str, Any]:
    """The parameters of a fit, if they are those of this model and guide."""
    return Fitted(model, guide, check_fitted(start, name="start").params).params


class _Plan(NamedTuple):
    """What a training consists of, apart from its random key."""

    svi: SVI
    model: LatentODE
    """As it was given, but that a solve that fails gives NaN."""
    init_params: dict[str, Any] | None
    """Where training starts, unless at the initial parameters of the parts."""
    train: tuple[Trajectories, ...]
    """The training data, in buckets."""
    held_out: tuple[Trajectories, Trajectories] | None
    num_steps: int
    patience: int | None
    kl_weight: Callable[[Array], ArrayLike] | None
    checkpoints: Checkpoints | None = None

    @property
    def data(self) -> Any:
        """What the loss takes: a `BucketLoss` takes buckets, others take trajectories."""
        first, *others = self.train
        return self.train if others else first

    @property
    def num_trajectories(self) -> int:
        return sum(map(len, self.train))

    def finished(self, history: History) -> bool:
        taken = len(history.losses)
        waited = taken - history.best_step
        return taken >= self.num_steps or (self.patience is not None and waited >= self.patience)


class _Progress(NamedTuple):
    """The result of the steps so far; a checkpoint holds it."""

    params: dict[str, Any]
    """The parameters of the best step so far."""
    state: SVIState
    history: History

    @property
    def steps(self) -> int:
        return len(self.history.losses)


def _train(rng_key: Array, plan: _Plan, progress: bool) -> _Progress:
    """Takes the steps of a plan, from its latest checkpoint on, and saves checkpoints."""
    started = saved = time.perf_counter()
    done = first = _start(rng_key, plan)
    with tqdm(total=plan.num_steps, initial=done.steps, disable=not progress, unit="step") as bar:
        bar.set_postfix_str("compiling")
        try:
            for done in _advance(rng_key, plan, first, started):
                bar.set_postfix_str(_summary(done.history, plan.num_trajectories), refresh=False)
                bar.update(done.steps - bar.n)
                if plan.checkpoints and time.perf_counter() - saved > SECONDS_BETWEEN:
                    plan.checkpoints.save(done.steps, done)
                    saved = time.perf_counter()
        except BaseException:
            if plan.checkpoints:
                # The user should see the first error, not that saving failed as well.
                with contextlib.suppress(OSError):
                    plan.checkpoints.save(done.steps, done)
            raise
    if plan.checkpoints:
        plan.checkpoints.save(done.steps, done)
    return done


def _advance(rng_key: Array, plan: _Plan, done: _Progress, started: float) -> Iterator[_Progress]:
    """The progress after each dispatch, until the plan is finished."""
    score_key = jax.random.fold_in(rng_key, 1)
    before = sum(done.history.seconds[-1:])
    steps = dispatches(
        plan.svi, done.state, plan.num_steps, plan.data, kl_weight=plan.kl_weight, start=done.steps
    )
    while not plan.finished(done.history):
        state, losses = next(steps)
        params = plan.svi.get_params(state)
        score = None
        if plan.held_out is not None:
            fitted = Fitted(plan.model, plan.svi.guide, params)
            score = forecast_score(score_key, fitted, *plan.held_out)
        history = _append(done.history, losses, score, before + time.perf_counter() - started)
        best = history.best_step == len(history.losses)
        done = _Progress(params if best else done.params, state, history)
        yield done


def _append(past: History, losses: np.ndarray, score: float | None, seconds: float) -> History:
    """The history with one more dispatch."""
    history = past._replace(
        losses=np.append(past.losses, losses), seconds=np.append(past.seconds, seconds)
    )
    if score is None:
        return history
    return history._replace(
        evaluated=np.append(past.evaluated, len(history.losses)),
        validation=np.append(past.validation, score),
    )


def dispatches(
    svi: SVI,
    state: SVIState,
    num_steps: int,
    *args: Any,
    kl_weight: Callable[[Array], ArrayLike] | None = None,
    start: int = 0,
) -> Iterator[tuple[SVIState, Float[np.ndarray, " step"]]]:
    """Takes the steps of SVI from `start` to `num_steps`, `STEPS_AT_ONCE` in one compiled program.

    Args:
        svi: any SVI.
        state: its state after `start` steps.
        num_steps: the number of steps in all.
        *args: the arguments of the model and the guide. They are arguments of the compiled program,
            too, while `SVI.run` would compile the data into it as constants.
        kl_weight: `step -> weight`, the argument `kl_weight` of the model and the guide.
        start: the number of steps already taken.

    Yields:
        The state after each dispatch, and the loss of each of its steps.

    Raises:
        FloatingPointError: if none of the steps of a dispatch is finite.
    """

    @jax.jit
    def take(state: SVIState, first: ArrayLike, count: ArrayLike, *args: Any) -> Any:
        def step(k: Array, carry: tuple[SVIState, Array]) -> tuple[SVIState, Array]:
            state, losses = carry
            number: Any = first + k
            weights: Any = {} if kl_weight is None else {"kl_weight": kl_weight(number)}
            state, loss = svi.stable_update(state, *args, **weights)
            return state, losses.at[k].set(loss)

        # A loop, as one program then takes any count: the last dispatch may be shorter.
        return jax.lax.fori_loop(0, count, step, (state, jnp.full(STEPS_AT_ONCE, jnp.nan)))

    for first in range(start, num_steps, STEPS_AT_ONCE):
        count = min(STEPS_AT_ONCE, num_steps - first)
        state, losses = take(state, first, count, *args)
        losses = np.asarray(losses)[:count]
        if not np.isfinite(losses).any():
            raise FloatingPointError(
                f"None of the steps {first + 1} to {first + len(losses)} was finite: training has "
                "diverged. Lower the learning rate of optim, let the Solver take shorter steps, or "
                "wrap the model's dynamics in a BoundedDynamics."
            )
        yield state, losses


def _start(rng_key: Array, plan: _Plan) -> _Progress:
    """The progress before the first step, or at the latest checkpoint."""

    def init(train: Trajectories, params: dict[str, Any] | None) -> Any:
        state = plan.svi.init(rng_key, train, init_params=params)
        return plan.svi.get_params(state), state

    if plan.checkpoints is None or (arrays := plan.checkpoints.latest()) is None:
        params, state = jax.jit(init)(plan.train[0], plan.init_params)
        return _Progress(params, state, History())
    history = History(*(arrays[f".history.{name}"] for name in History._fields))
    params, state = jax.eval_shape(init, plan.train[0], plan.init_params)
    done = fill(_Progress(params, state, history), arrays, name="checkpoint_dir")
    # `fill` makes JAX arrays, often in single precision; the history stays in double.
    return done._replace(history=history)


def _checkpoints(
    directory: Path, plan: _Plan, batch_size: int | None, data: dict[str, Any]
) -> Checkpoints:
    """The checkpoints of the training with this plan and data."""
    model, guide = plan.svi.model, plan.svi.guide
    networks = plan.init_params or initial_params(model, guide)
    return Checkpoints(
        directory,
        {
            "kind": "training",
            "parts": describe_parts(model, guide),
            **dict(num_steps=plan.num_steps, batch_size=batch_size, patience=plan.patience),
            **{name: digest(value) for name, value in (data | {"networks": networks}).items()},
        },
    )


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


def _summary(history: History, num_trajectories: int) -> str:
    """The text beside the progress bar."""
    last = history.losses[(len(history.losses) - 1) // STEPS_AT_ONCE * STEPS_AT_ONCE :]
    text = f"ELBO {-np.nanmean(last) / num_trajectories:.2f}"
    if len(history.validation):
        best = history.validation.min()
        text += f", validation {history.validation[-1]:.3f}"
        text += f" (best {best:.3f} at {history.best_step})"
    return text

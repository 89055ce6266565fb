"""How to train: an optimizer that was measured, and SVI's steps with an eye on held-out data."""

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
from jaxtyping import Array, ArrayLike, Float, Int
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState
from tqdm import tqdm

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.params import initial_params
from np_latentode.programs.plate import check_call, check_data
from np_latentode.storage.arrays import digest, fill
from np_latentode.storage.saving import describe_parts
from np_latentode.training.checkpoints import Checkpoints
from np_latentode.training.validation import forecast_score, held_out_pair

__all__ = ["Fit", "History", "dispatches", "fit", "optimizer"]

STEPS_AT_ONCE = 100
"""Steps a dispatch: Python, the progress bar and the validation data wait for so many."""
SECONDS_BETWEEN = 30.0
"""Checkpoints, at least."""


def optimizer(
    num_steps: int, *, learning_rate: float = 5e-3, weight_decay: float = 1e-2
) -> optax.GradientTransformation:
    """AdamW on clipped gradients, warmed up and then annealed to zero along a cosine.

    The ELBO is a sum over all data, so its gradient is practically always longer than the clip:
    what Adam sees is a direction, and no single batch can throw it off. Modules decay, and with
    them priors, towards the standard normal or uniform that they are where their parameters are 0;
    a parameter with a name of its own, as `noise_scale`, is not pulled anywhere.

    Args:
        num_steps: over which the learning rate is annealed: those of `SVI.run`.
        learning_rate: at its highest, after a fiftieth of the steps.
        weight_decay: of the networks, times the learning rate, a step.

    Raises:
        ValueError: if num_steps is not positive.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be positive; got {num_steps}.")
    warm_up = num_steps // 50
    rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, max(num_steps, 2))
    adam = optax.adamw(rate, weight_decay=weight_decay, mask=_networks)
    return optax.chain(optax.clip_by_global_norm(10.0), adam)


class History(NamedTuple):
    """What happened in training."""

    losses: Float[np.ndarray, " step"]
    """-ELBO of each step, summed over the data; NaN where a step was not finite, and not taken."""
    evaluated: Int[np.ndarray, " evaluation"]
    """After how many steps the validation data were scored."""
    validation: Float[np.ndarray, " evaluation"]
    """-log p(target | context) an observation, then; the lower the better."""
    seconds: Float[np.ndarray, " dispatch"]
    """Since `fit` began, when steps had been dispatched."""

    @property
    def best_step(self) -> int:
        """Where the validation score was lowest; where there is no finite one, the last."""
        if not np.isfinite(self.validation).any():
            return len(self.losses)
        return int(self.evaluated[np.argmin(self.validation)])


class Fit(NamedTuple):
    """A trained pair's parameters, and how they came about."""

    params: dict[str, Any]
    """Of the best step by validation, or else of the last one, as `SVI.get_params` gives them."""
    state: SVIState
    """Of SVI, after the last step."""
    history: History


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
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    """Trains by SVI, and keeps the parameters under which held-out data are forecast best.

    max E_q(z0 | conditioning(x)) [log p(x | z0)] - kl_weight KL(q || p)

    with the steps of `SVI(model, guide, optim, Trace_ELBO(), batch_size=batch_size,
    conditioning=conditioning)`, a hundred a dispatch. A step that is not finite, such as one of
    which an ODE solve fails, is not taken (`SVI.stable_update`).

    Args:
        rng_key: a key.
        model, guide: what to train; they are not changed.
        train: what is explained.
        validation: a pair (context, target): after every hundred steps, the target is scored by its
            log density under forecasts from the context. One `Trajectories` is scored on the second
            half of its observed times given the first: `validation.split()`.
        num_steps: how many steps, at most.
        batch_size: trajectories a step. Default: all.
        conditioning: what the guide sees of a trajectory in a step.
        optim: of optax. Default: `optimizer(num_steps)`.
        kl_weight: `step -> weight` of the KL, in both model and guide, positive, such as
            `optax.linear_schedule(0.01, 1.0, 1_000)`. Default: 1, which makes it an ELBO.
        loss: of NumPyro. Default: `Trace_ELBO()`.
        patience: after how many steps without a better validation score to stop. Default: never.
        checkpoint_dir: where to write a checkpoint every half minute, and at the end. Where there
            is one of the same training, goes on from it, and ends bit for bit where it would have
            ended without the interruption, on the same machine. What is a function cannot be
            compared: give the same optim, conditioning, kl_weight and loss.
        progress: whether to show a progress bar with the ELBO a trajectory, the validation score,
            and the time left.

    Raises:
        ValueError: naming the argument, the rule and what came, before anything is computed.
        FloatingPointError: if none of a hundred steps is finite.
        OSError: if a checkpoint cannot be written; the one before is still there.
    """
    check_counts(num_steps=num_steps)
    check_data(model, train)
    check_call(train, None, batch_size=batch_size, kl_weight=1.0, scaling=model.scaling)
    held_out = held_out_pair(model, validation)
    if patience is not None:
        check_counts(patience=patience)
        if held_out is None:
            raise ValueError(f"patience must come with validation; got {patience} without.")
    if kl_weight is not None:
        for step in (0, num_steps - 1):
            if not np.asarray(weight := kl_weight(jnp.asarray(step))) > 0:
                raise ValueError(f"kl_weight must be positive; got {weight} at step {step}.")
    # A solve that fails is to cost a step, not all of the training.
    model = model.with_solver(throw=False)
    svi = SVI(
        model,
        guide,
        optimizer(num_steps) if optim is None else optim,
        Trace_ELBO() if loss is None else loss,
        batch_size=batch_size,
        conditioning=conditioning,
    )
    checkpoints = None
    if checkpoint_dir is not None:
        settings = {
            "kind": "training",
            "parts": describe_parts(model, guide),
            "num_steps": num_steps,
            "batch_size": batch_size,
            "patience": patience,
            "rng_key": digest(rng_key),
            "networks": digest(initial_params(model, guide)),
            "train": digest(train),
            "validation": digest(held_out),
        }
        checkpoints = Checkpoints(Path(checkpoint_dir), settings)
    started = saved = time.perf_counter()
    fitted = _start(svi, rng_key, train, checkpoints)
    before = sum(fitted.history.seconds[-1:])
    score_key = jax.random.fold_in(rng_key, 1)
    bar = tqdm(
        total=num_steps, initial=len(fitted.history.losses), disable=not progress, unit="step"
    )
    steps = dispatches(
        svi,
        fitted.state,
        num_steps,
        train,
        kl_weight=kl_weight,
        start=len(fitted.history.losses),
    )
    try:
        while not _finished(fitted.history, num_steps, patience):
            state, losses = next(steps)
            params = svi.get_params(state)
            score = held_out and forecast_score(score_key, model, guide, params, *held_out)
            seconds = before + time.perf_counter() - started
            fitted = _after(fitted, state, params, losses, score, seconds)
            bar.set_postfix_str(_summary(fitted.history, len(losses), len(train)), refresh=False)
            bar.update(len(losses))
            if checkpoints and time.perf_counter() - saved > SECONDS_BETWEEN:
                checkpoints.save(len(fitted.history.losses), fitted)
                saved = time.perf_counter()
    except BaseException:
        if checkpoints:
            # What interrupts is to be told, not that it could not be saved as well.
            with contextlib.suppress(OSError):
                checkpoints.save(len(fitted.history.losses), fitted)
        raise
    finally:
        bar.close()
    if checkpoints:
        checkpoints.save(len(fitted.history.losses), fitted)
    return fitted


def dispatches(
    svi: SVI,
    state: SVIState,
    num_steps: int,
    *args: Any,
    kl_weight: Callable[[Array], ArrayLike] | None = None,
    start: int = 0,
) -> Iterator[tuple[SVIState, Float[np.ndarray, " step"]]]:
    """SVI's steps from `start` to `num_steps`, `STEPS_AT_ONCE` of them compiled into one program.

    Args:
        svi: any SVI.
        state: after `start` steps.
        num_steps: how many steps in all.
        *args: of the model and the guide. They are arguments of the program, too: `SVI.run` would
            compile the data into it.
        kl_weight: `step -> kl_weight`, an argument of the model and the guide.
        start: how many steps were taken.

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

        # One program for any count: the last dispatch may be shorter.
        return jax.lax.fori_loop(0, count, step, (state, jnp.full(STEPS_AT_ONCE, jnp.nan)))

    for first in range(start, num_steps, STEPS_AT_ONCE):
        count = min(STEPS_AT_ONCE, num_steps - first)
        state, losses = take(state, first, count, *args)
        losses = np.asarray(losses)[:count]
        if not np.isfinite(losses).any():
            raise FloatingPointError(
                f"None of the steps {first + 1} to {first + len(losses)} was finite: training has "
                "diverged. Lower the learning rate of optim, let the Solver take shorter steps, or "
                "hold the field of the model in a BoundedDynamics."
            )
        yield state, losses


def _start(svi: SVI, rng_key: Array, train: Trajectories, checkpoints: Checkpoints | None) -> Fit:
    """Before the first step, or after those of the latest checkpoint."""

    def init(train: Trajectories) -> tuple[dict[str, Any], SVIState]:
        state = svi.init(rng_key, train)
        return svi.get_params(state), state

    empty = np.zeros(0)
    if checkpoints is None or (arrays := checkpoints.latest()) is None:
        params, state = jax.jit(init)(train)
        return Fit(params, state, History(empty, empty.astype(int), empty, empty))
    history = History(*(arrays[f".history.{name}"] for name in History._fields))
    params, state = jax.eval_shape(init, train)
    fitted = fill(Fit(params, state, history), arrays, name="checkpoint_dir")
    # In the precision in which they are kept, which is not that of the arrays of JAX.
    return fitted._replace(history=history)


def _after(
    fitted: Fit,
    state: SVIState,
    params: dict[str, Any],
    losses: np.ndarray,
    score: float | None,
    seconds: float,
) -> Fit:
    past = fitted.history
    history = past._replace(
        losses=np.append(past.losses, losses), seconds=np.append(past.seconds, seconds)
    )
    if score is not None:
        history = history._replace(
            evaluated=np.append(past.evaluated, len(history.losses)),
            validation=np.append(past.validation, score),
        )
    best = history.best_step == len(history.losses)
    return Fit(params if best else fitted.params, state, history)


def _finished(history: History, num_steps: int, patience: int | None) -> bool:
    taken = len(history.losses)
    waited = taken - history.best_step
    return taken >= num_steps or (patience is not None and waited >= patience)


def _summary(history: History, count: int, num_trajectories: int) -> str:
    text = f"ELBO {-np.nanmean(history.losses[-count:]) / num_trajectories:.2f}"
    if len(history.validation):
        best = history.validation.min()
        text += f", validation {history.validation[-1]:.3f}"
        text += f" (best {best:.3f} at {history.best_step})"
    return text


def _networks(params: dict[str, Any]) -> dict[str, bool]:
    # NumPyro names the parameters of a bound module so.
    return {name: name.endswith("$params") for name in params}

"""The progress of trainings: one, or several side by side."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpyro.infer.svi import SVIState
from tqdm import tqdm

from np_latentode.parts.devices import gathered, on_mesh, replicated, said, writes
from np_latentode.parts.threads import side_by_side
from np_latentode.programs.fitted import History
from np_latentode.storage.arrays import fill
from np_latentode.training.plan import Plan
from np_latentode.training.steps import STEPS_AT_ONCE, dispatches
from np_latentode.training.validation import forecast_score

__all__ = ["Progress", "restored", "train_all"]

SECONDS_BETWEEN = 30.0
"""The shortest time between two checkpoints, in seconds."""


class Progress(NamedTuple):
    """The result of the steps so far; a checkpoint holds it."""

    params: dict[str, Any]
    """The parameters of the best step so far."""
    state: SVIState
    history: History

    @property
    def steps(self) -> int:
        return len(self.history.losses)


def train_all(
    plans: Sequence[Plan],
    *,
    progress: bool,
    max_workers: int = 1,
    name: str | None = None,
    stop: threading.Event | None = None,
    together: bool = False,
) -> list[Progress]:
    """Takes the steps of all plans, from their latest checkpoints on, and saves checkpoints.

    Plans take turns: one dispatch of each that is not finished, `max_workers` of them at a time.
    A plan that starts from a fit scores that first, so that it never ends with a worse one.

    By itself, each plan keeps the parameters of its best step. Together, the others choose its
    step, by the mean of their scores: its own score then says how well it forecasts what had no
    part in it. All take as many steps, until all are finished.

    Args:
        plans: of the trainings.
        progress: whether to show a progress bar.
        max_workers: how many run side by side.
        name: of what is trained, for the progress bar.
        stop: once it is set, training ends as by an interruption.
        together: whether the plans choose each other's steps; of one plan, it changes nothing.

    Raises:
        FloatingPointError: if none of the steps of a dispatch is finite.
        OSError: if a checkpoint cannot be written; then the earlier one is kept.
    """
    started = saved = time.perf_counter()
    together = together and len(plans) > 1
    done = [_start(plan) for plan in plans]
    for k, one in enumerate(list(done)):
        # Checkpoints hold the scores of the others; some may be of later steps than others.
        if together and not len(one.history.others):
            done[k] = _judged(k, done)
    runs = [_advance(plan, first, started) for plan, first in zip(plans, done, strict=True)]
    with _bar(plans, done, progress, name) as bar, _turns(max_workers) as turns:
        try:
            while left := _left(plans, done, together=together):
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
                after = list(done)
                for k, one in zip(left, turns([runs[k] for k in left]), strict=True):
                    after[k] = one
                for k in left:
                    done[k] = _best(done[k], _judged(k, after) if together else after[k])
                bar.set_postfix_str(_summary(plans, done), refresh=False)
                bar.update(sum(one.steps for one in done) - bar.n)
                if time.perf_counter() - saved > SECONDS_BETWEEN:
                    _save(plans, done)
                    saved = time.perf_counter()
        except BaseException:
            # The user should see the first error, not that saving failed as well.
            with contextlib.suppress(OSError):
                _save(plans, done)
            raise
    _save(plans, done)
    return [_whole(plan, one) for plan, one in zip(plans, done, strict=True)]


def _left(plans: Sequence[Plan], done: Sequence[Progress], *, together: bool) -> list[int]:
    """The plans whose turn it is."""
    left = [k for k, plan in enumerate(plans) if not plan.finished(done[k].history)]
    if not together or not left:
        return left
    # After an interruption, some checkpoints may be later ones than others.
    least = min(one.steps for one in done)
    return [k for k, one in enumerate(done) if one.steps == least]


def _judged(k: int, done: Sequence[Progress]) -> Progress:
    """The progress of a member, with the scores of the others at the same steps."""
    history = done[k].history
    count = len(history.validation)
    each = [one.history.validation[:count] for i, one in enumerate(done) if i != k]
    # One that cannot be scored from the start on has no say.
    each = [scores for scores in each if np.isfinite(scores[:1]).all()] or [history.validation]
    others = np.mean(each, axis=0)
    if np.isfinite(history.validation[:1]).all():
        # Nor is a step chosen at which it diverges for those that it left out.
        others = np.where(np.isfinite(history.validation), others, np.inf)
    return done[k]._replace(history=history._replace(others=others))


def _best(before: Progress, after: Progress) -> Progress:
    """The progress with the parameters of the best step so far."""
    best = after.history.best_step == after.steps
    return after if best else after._replace(params=before.params)


def _start(plan: Plan) -> Progress:
    """The progress before the first step, or at the latest checkpoint."""
    arrays = None if plan.checkpoints is None else plan.checkpoints.latest()
    if arrays is None:
        _check_same_start(plan, 0)
        with on_mesh(plan.mesh):
            params, state = plan.programs.init(plan.rng_key, plan.buckets[0], plan.init_params)
            return Progress(params, state, _at_start(plan, params))
    done = restored(plan, arrays, name="checkpoint_dir")
    _check_same_start(plan, done.steps)
    params, state = replicated((done.params, done.state), plan.mesh)
    return done._replace(params=params, state=state)


def restored(plan: Plan, arrays: dict[str, np.ndarray], *, name: str) -> Progress:
    """The progress of a plan from its arrays."""
    # `fill` refuses a checkpoint that lacks some.
    none = np.zeros(0)
    history = History(*(arrays.get(f".history.{field}", none) for field in History._fields))
    arguments = (plan.rng_key, plan.buckets[0], plan.init_params)
    params, state = jax.eval_shape(plan.programs.init, *arguments)
    done = fill(Progress(params, state, history), arrays, name=name)
    # `fill` makes JAX arrays, often in single precision; the history stays in double.
    return done._replace(history=history)


def _check_same_start(plan: Plan, steps: int) -> None:
    """Refuses to go on where processes found different checkpoints: they would wait for ever."""
    if plan.checkpoints is None or plan.mesh is None:
        return
    found = sorted({*said(steps, plan.mesh)})
    if len(found) > 1:
        raise ValueError(
            "checkpoint_dir must be one directory that all processes see; they found checkpoints "
            f"of different steps, {found}, in {plan.checkpoints.directory}."
        )


def _whole(plan: Plan, done: Progress) -> Progress:
    """The progress as arrays of this process alone."""
    params, state = gathered((done.params, done.state), plan.mesh)
    return done._replace(params=params, state=state)


def _at_start(plan: Plan, params: dict[str, Any]) -> History:
    """The history before the first step: the score of the fit from which training starts."""
    if plan.init_params is None or plan.held_out is None:
        return History()
    score_key = jax.random.fold_in(plan.rng_key, 1)
    score = forecast_score(score_key, plan.programs.fitted(params), *plan.held_out)
    return History(evaluated=np.zeros(1, int), validation=np.array([score]))


def _advance(plan: Plan, done: Progress, started: float) -> Iterator[Progress]:
    """The progress after each dispatch, with the parameters of its last step."""
    programs, score_key = plan.programs, jax.random.fold_in(plan.rng_key, 1)
    history, before = done.history, sum(done.history.seconds[-1:])
    steps = _dispatches(plan, done)
    while len(history.losses) < plan.num_steps:
        with on_mesh(plan.mesh):
            state, losses = next(steps)
            params, score = programs.svi.get_params(state), None
            if plan.held_out is not None:
                score = forecast_score(score_key, programs.fitted(params), *plan.held_out)
        history = _append(history, losses, score, before + time.perf_counter() - started)
        yield Progress(params, state, history)


def _dispatches(plan: Plan, done: Progress) -> Iterator[tuple[SVIState, np.ndarray]]:
    """The dispatches of a plan, each with its data."""
    state, first = done.state, done.steps
    while first < plan.num_steps:
        end = min(first - first % STEPS_AT_ONCE + STEPS_AT_ONCE, plan.num_steps)
        data = plan.data_at(first // STEPS_AT_ONCE)
        for after in dispatches(plan.programs.take, state, end, data, start=first):
            state = after[0]
            yield after
        first = end


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


@contextlib.contextmanager
def _turns(max_workers: int) -> Iterator[Callable[[list[Iterator[Progress]]], Iterator[Progress]]]:
    """A function that takes the next dispatch of each run, some of them side by side."""
    if max_workers == 1:
        yield lambda runs: map(next, runs)
        return
    compiled = False

    def turns(runs: list[Iterator[Progress]]) -> Iterator[Progress]:
        nonlocal compiled
        # The first dispatch of all compiles, alone: side by side, each run would compile.
        first, compiled = 0 if compiled else 1, True
        yield from map(next, runs[:first])
        yield from each(next, runs[first:])

    with side_by_side(max_workers) as each:
        yield turns


def _save(plans: Sequence[Plan], done: Sequence[Progress]) -> None:
    for plan, one in zip(plans, done, strict=True):
        if plan.checkpoints and writes(plan.mesh):
            plan.checkpoints.save(one.steps, one)


def _bar(plans: Sequence[Plan], done: Sequence[Progress], progress: bool, name: str | None) -> tqdm:
    total, taken = sum(plan.num_steps for plan in plans), sum(one.steps for one in done)
    shown = progress and writes(plans[0].mesh)
    bar = tqdm(desc=name, total=total, initial=taken, disable=not shown, unit="step")
    bar.set_postfix_str("compiling")
    return bar


def _summary(plans: Sequence[Plan], done: Sequence[Progress]) -> str:
    """The text beside the progress bar, of the member that forecasts best so far."""
    best = min(done, key=lambda one: one.history.validation.min(initial=np.inf))
    history, num_trajectories = best.history, len(plans[0].train)
    last = history.losses[(len(history.losses) - 1) // STEPS_AT_ONCE * STEPS_AT_ONCE :]
    text = f"ELBO {-np.nanmean(last) / num_trajectories:.2f}"
    if len(history.validation):
        at = history.evaluated == history.best_step
        best = history.validation[at].min(initial=np.inf)
        text += f", validation {history.validation[-1]:.3f}"
        text += f" (best {best:.3f} at {history.best_step})"
    return text

"""Cross-fitting: candidates are trained on folds, weighed, and joined to one ensemble."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from scipy.special import logsumexp

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import amortized
from np_latentode.forecasts.densities import log_predictive
from np_latentode.parts.mixed_model import MOST_ESTIMATED
from np_latentode.parts.threads import cores, side_by_side
from np_latentode.programs.assemble import Candidate
from np_latentode.programs.ensemble import Ensemble
from np_latentode.programs.fitted import Fitted, History
from np_latentode.training.ensemble import starting_alike
from np_latentode.training.gains import share_kept
from np_latentode.training.plan import Plan, make_plan
from np_latentode.training.progress import Progress, train_all
from np_latentode.training.split import Split, split
from np_latentode.training.stacking import stacking_weights
from np_latentode.training.validation import NUM_DRAWS

__all__ = ["CrossFit", "cross_fit"]

NUM_STEPS, PATIENCE, BATCH_SIZE = 6_000, 500, 50
"""The settings with which `np-latentode fit` trains."""

REPEATS = 10
"""Times the draws of a validation score, per score that decides weights."""

LEAST_WEIGHT = 0.02
"""A candidate of a lower weight is left out."""


class CrossFit(NamedTuple):
    """An ensemble, and what its members say of the trajectories that they were not trained on."""

    ensemble: Ensemble
    """All members of all candidates with a weight: those of the first, fold by fold, and so on."""
    left_out: tuple[Int[np.ndarray, " trajectory"], ...]
    """The trajectories on which the members of each fold were not trained."""
    scores: dict[str, float]
    """log p(target | context) per observation of those left out, by candidate."""
    weights: dict[str, float]
    """The weight of each candidate in the ensemble."""
    shares_kept: dict[str, float]
    """How much of its training each candidate keeps: 1, or less where its gain may be chance and
    what lies between start and end is no worse than the start."""
    num_trajectories: int
    """That were given to `cross_fit`."""
    seconds: float
    """Of this call, with compiling."""

    def of(self, candidate: str) -> tuple[Fitted, ...]:
        """The members of a candidate, fold by fold; none if it has no weight."""
        with_weight = [name for name, weight in self.weights.items() if weight]
        if candidate not in with_weight:
            return ()
        each = len(self.left_out)
        first = with_weight.index(candidate) * each
        return self.ensemble.members[first : first + each]

    def fold(self, k: int) -> Ensemble:
        """The members that were not trained on `left_out[k]`."""
        some = slice(k, None, len(self.left_out))
        weights = np.asarray(self.ensemble.weights)[some]
        return Ensemble(self.ensemble.members[some], weights / weights.sum())


def cross_fit(
    rng_key: Array,
    candidates: Mapping[str, Candidate],
    trajectories: Trajectories | StoredTrajectories,
    *,
    num_folds: int = 5,
    max_workers: int | None = None,
    num_steps: int = NUM_STEPS,
    batch_size: int | None = None,
    conditioning: Conditioning | None = random_context,
    patience: int | None = None,
    checkpoint_dir: str | PathLike[str] | None = None,
    progress: bool = True,
) -> CrossFit:
    """Trains each candidate without each fold in turn, and weighs candidates by the folds.

    max_w sum_i log sum_c w_c p_c,-i(target_i | context_i),   w_c >= 0,  sum_c w_c = 1

    p_c,-i is the member of candidate c that was trained without the fold of trajectory i, at the
    step that is best for the other folds. So nearly every trajectory trains most of the members and
    chooses their steps; the member that saw nothing of it is judged by it. That gives the weights
    of the candidates (stacking, Yao et al. 2018), and the widths of their bands. The members of a
    candidate count alike.

    A gain that may be chance, by a t-test over the ids at 5%, is kept in part only; see
    `share_kept`. If that is the gain of a candidate's training, its parameters go a part of the way
    from the start: that parameters between start and end often forecast well is seen by Wortsman et
    al. (2022). Where they do not, all of the training is kept. If it is the gain of the weighted
    candidates over the first alone, their weights go a part of the way from the first's. So what
    starts as a mixed model stays near it where the data do not say otherwise.

    A fold leaves out a random 500 at most; if there are more, all members are trained on the rest.
    Of data on disk, each leaves out one or more, all together a seventh at most if there are
    enough, and no member is trained on what any of them leaves out: then all read the same chunks,
    in orders of their own.

    Args:
        rng_key: a key.
        candidates: by name, functions `(train, rngs) -> (model, guide)`, the most trusted first.
            For each fold, a candidate must return the same parts with the same units; only where
            they start may differ.
        trajectories: all that may be trained on. Of those on disk, candidates get a random 2,000.
        num_folds: of about the same size. With 1, a seventh is left out once.
        max_workers: how many members are trained side by side, in threads. Default: one per core.
        num_steps: the highest number of steps of each member. First a quarter of them is taken,
            with a schedule of its own; the others follow if the median member was best in the last
            tenth of these.
        batch_size: trajectories per step, or all of a member if it has fewer. Default: all; those
            on disk need one.
        conditioning: as in `fit`.
        patience: as in `fit`, in the first quarter of the steps; in proportion, in the others.
        checkpoint_dir: the directory of the members' checkpoints, as in `fit`.
        progress: whether to show a progress bar for each candidate.

    Raises:
        ValueError: if an argument breaks a rule, before anything is computed.
        FloatingPointError: if none of the steps of a dispatch of a member is finite.
        OSError: if a checkpoint cannot be written; then the earlier one is kept.
    """
    workers = cores() if max_workers is None else max_workers
    check_counts(num_folds=num_folds, num_steps=num_steps, max_workers=workers)
    if batch_size is not None:
        check_counts(batch_size=batch_size)
    elif isinstance(trajectories, StoredTrajectories):
        raise ValueError("batch_size must be given for trajectories on disk; got None.")
    if not candidates:
        raise ValueError("candidates must hold at least one function; got none.")
    divided = split(trajectories, num_folds)
    started = time.perf_counter()
    if batch_size is not None:
        batch_size = min(batch_size, divided.num_trained)
    settings: Any = dict(batch_size=batch_size, conditioning=conditioning, patience=patience)
    settings |= dict(num_steps=num_steps, progress=progress)
    settings |= dict(max_workers=max(1, workers // len(candidates)))

    keys = {name: jax.random.fold_in(rng_key, c) for c, name in enumerate(candidates)}
    starts = {name: _starts(keys[name], build, divided) for name, build in candidates.items()}
    _check_units(starts)
    stop = threading.Event()

    def train(name: str) -> tuple[list[Fitted], float, np.ndarray]:
        directory = None if checkpoint_dir is None else Path(checkpoint_dir) / name
        own = (keys[name], name, starts[name])
        try:
            return _trained(*own, divided, directory, stop=stop, **settings)
        except BaseException:
            stop.set()
            raise

    # Side by side, as each candidate is compiled for itself, which takes longer than its steps.
    with side_by_side(min(len(candidates), workers)) as each:
        try:
            made, shares, log_p = zip(*each(train, candidates), strict=True)
        except BaseException:
            # Of an interruption, only this thread is told.
            stop.set()
            raise
    by_name = dict(zip(candidates, made, strict=True))
    shares_kept = dict(zip(candidates, shares, strict=True))
    seconds = time.perf_counter() - started
    return _joined(by_name, shares_kept, np.stack(log_p), divided, seconds)


def _trained(
    rng_key: Array,
    name: str,
    members: list[Fitted],
    split: Split,
    directory: Path | None,
    *,
    num_steps: int,
    patience: int | None,
    progress: bool,
    max_workers: int,
    stop: threading.Event,
    **settings: Any,
) -> tuple[list[Fitted], float, Float[np.ndarray, " trajectory"]]:
    """The members of a candidate, what is kept of their training, and their scores of those left
    out."""
    starts, plans, rounds = members, [], _rounds(num_steps)
    for number, steps in enumerate(rounds):
        # As much of each schedule, so that none ends while its learning rate is still high.
        waited = None if patience is None else max(patience, patience * steps // rounds[0])
        own: Any = dict(num_steps=steps, patience=waited, **settings)
        plans = _plans(rng_key, members, split, **own)
        if directory is not None:
            plans = [plan.kept_in(directory / f"{number}-{k}") for k, plan in enumerate(plans)]
        options: Any = dict(progress=progress, max_workers=max_workers, name=name, stop=stop)
        done = train_all(plans, together=True, **options)
        members = [_continued(member, one) for member, one in zip(members, done, strict=True)]
        if not _improving(done, steps):
            break
    scores = partial(_left_out_scores, rng_key, plans=plans, split=split)
    return _kept(starts, members, scores, split.judges)


def _rounds(num_steps: int) -> list[int]:
    """The steps of the first round, a quarter of all, and those of the second."""
    first = max(1, num_steps // 4)
    return [first, num_steps - first] if num_steps > 1 else [1]


def _improving(done: Sequence[Progress], steps: int) -> bool:
    """Whether the median member was best in the last tenth of its steps."""
    return float(np.median([one.history.best_step for one in done])) >= 0.9 * steps


def _kept(
    starts: list[Fitted],
    members: list[Fitted],
    scores: Callable[[Sequence[Fitted]], Float[np.ndarray, " trajectory"]],
    ids: np.ndarray,
) -> tuple[list[Fitted], float, Float[np.ndarray, " trajectory"]]:
    """The members with what is kept of their training, how much that is, and their scores."""
    before, after = scores(starts), scores(members)
    share = share_kept(_less(after, before), ids)
    if share == 1:
        return members, share, after
    between = [_between(*pair, share) for pair in zip(starts, members, strict=True)]
    log_p = before if share == 0 else scores(between)
    if share and share_kept(_less(before, log_p), ids) > 0:
        # What lies between start and end is worse than the start.
        return members, 1.0, after
    return between, share, log_p


def _less(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b; NaN where both are infinite."""
    with np.errstate(invalid="ignore"):
        return a - b


def _between(start: Fitted, member: Fitted, share: float) -> Fitted:
    """The member with parameters between those of its start and its own."""
    params = jax.tree.map(lambda a, b: a + share * (b - a), start.params, member.params)
    return Fitted(start.model, start.guide, params, member.history)


def _continued(before: Fitted, done: Progress) -> Fitted:
    """The fit after one more round, with the history of all rounds."""
    past, new = before.history, done.history
    taken, seconds = len(past.losses), sum(past.seconds[-1:])
    # A second round scores its start, which the first has scored already: for a member at its best
    # step, for the others at theirs. From there their scores go on.
    fresh, others = slice(1 if taken else 0, None), new.others
    if taken and len(others):
        others = others - others[0] + past.others.min()
    history = History(
        np.append(past.losses, new.losses),
        np.append(past.evaluated, taken + new.evaluated[fresh]),
        np.append(past.validation, new.validation[fresh]),
        np.append(past.seconds, seconds + new.seconds),
        np.append(past.others, others[fresh]),
    )
    return Fitted(before.model, before.guide, done.params, history)


def _starts(rng_key: Array, build: Candidate, split: Split) -> list[Fitted]:
    """Where the member of each fold starts: the programs of the first, its own parameters."""
    some: list[Any] = [*split.train]
    if isinstance(some[0], StoredTrajectories):
        # All folds train on the same ones.
        some = [some[0].sample(MOST_ESTIMATED)] * len(some)
    rngs = [nnx.Rngs(jax.random.fold_in(rng_key, k)) for k in range(len(some))]
    return starting_alike([*map(build, some, rngs)], name="candidates")


def _check_units(starts: dict[str, list[Fitted]]) -> None:
    scalings = {name: some[0].model.scaling for name, some in starts.items()}
    first = next(iter(scalings.values()))
    if others := [name for name, scaling in scalings.items() if not first.like(scaling)]:
        raise ValueError(
            "candidates must share their units, as with scaling=Scaling.fit(trajectories); got "
            f"other ones for {', '.join(others)} than for {next(iter(scalings))}."
        )


def _plans(rng_key: Array, starts: Sequence[Fitted], split: Split, **settings: Any) -> list[Plan]:
    """The plan of each fold: they share the programs of the first."""
    one = starts[0]
    options: Any = dict(optim=None, kl_weight=None, loss=None, start=one, **settings)
    options |= dict(parts=None if split.kept is None else split.kept[0])
    first = make_plan(rng_key, one.model, one.guide, split.every, split.judged[0], **options)
    plans = []
    for k, start in enumerate(starts):
        key = jax.random.fold_in(rng_key, k)
        own = dict(init_params=start.params, held_out=split.judged[k], train=split.train[k])
        own |= {} if split.kept is None else dict(buckets=split.kept[k])
        plans.append(first._replace(**own).shuffled(key))
    return plans


def _left_out_scores(
    rng_key: Array, members: Sequence[Fitted], *, plans: Sequence[Plan], split: Split
) -> Float[np.ndarray, " trajectory"]:
    """log p(target | context) of each trajectory that was left out, fold by fold; -inf where a
    solve fails."""
    scores = []
    for one, plan, (context, target) in zip(members, plans, split.judged, strict=True):
        member = plan.programs.fitted(one.params)
        # As many draws at once as in validation, so that it is the same program.
        parts = []
        for key in jax.random.split(rng_key, REPEATS):
            z0 = amortized(key, member, context, NUM_DRAWS)
            parts.append(log_predictive(member, z0, context, target))
        log_p = jax.nn.logsumexp(jnp.stack(parts), axis=0) - np.log(REPEATS)
        scores.append(np.asarray(jnp.where(target.mask, log_p, 0.0).sum((1, 2)), float))
    every = np.concatenate(scores)
    return np.where(np.isnan(every), -np.inf, every)


def _joined(
    made: dict[str, list[Fitted]],
    shares_kept: dict[str, float],
    log_p: Float[np.ndarray, "candidate trajectory"],
    split: Split,
    seconds: float,
) -> CrossFit:
    weights = _weights(log_p, split.judges)
    weights = np.where(weights < LEAST_WEIGHT, 0.0, weights)
    weights = weights / weights.sum()
    each = len(split.left_out)
    members = [m for some, w in zip(made.values(), weights, strict=True) if w for m in some]
    count = sum(int(target.mask.sum()) for _, target in split.judged)
    share, folds = np.repeat(weights[weights > 0] / each, each), [*range(each)]
    return CrossFit(
        Ensemble(tuple(members), share, folds=tuple(folds * (len(members) // each))),
        split.left_out,
        dict(zip(made, (log_p.sum(1) / count).tolist(), strict=True)),
        dict(zip(made, weights.tolist(), strict=True)),
        shares_kept,
        len(split.ids),
        seconds,
    )


def _weights(
    log_p: Float[np.ndarray, "candidate trajectory"], ids: Any
) -> Float[np.ndarray, " candidate"]:
    """The weights of stacking, as far as they surely forecast better than the first candidate."""
    found, first = stacking_weights(log_p), np.eye(len(log_p))[0]
    mixture = logsumexp(log_p, axis=0, b=found[:, None])
    return first + share_kept(_less(mixture, log_p[0]), ids) * (found - first)

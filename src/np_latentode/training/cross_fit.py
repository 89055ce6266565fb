"""Cross-fitting: candidates are trained on folds, weighed, and joined to one ensemble."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int
from scipy.special import stdtrit

from np_latentode.data.buckets import Bucket, buckets
from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.folds import folds
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import amortized
from np_latentode.forecasts.densities import log_predictive
from np_latentode.parts.threads import cores, side_by_side
from np_latentode.programs.assemble import Candidate
from np_latentode.programs.ensemble import Ensemble
from np_latentode.programs.fitted import Fitted, History
from np_latentode.programs.plate import check_trajectories
from np_latentode.training.ensemble import starting_alike
from np_latentode.training.plan import Plan, make_plan
from np_latentode.training.progress import Progress, train_all
from np_latentode.training.stacking import stacking_weights
from np_latentode.training.validation import NUM_DRAWS

__all__ = ["CrossFit", "cross_fit"]

NUM_STEPS, PATIENCE, BATCH_SIZE = 6_000, 500, 50
"""The settings with which `np-latentode fit` trains."""

REPEATS = 10
"""Times the draws of a validation score, per score that decides weights."""

MOST_LEFT_OUT = 500
"""About the most trajectories that a fold leaves out: more would hardly judge better, but each
validation takes as long as there are of them."""

SURE = 0.95
"""About the probability, if training changes nothing, that not all of it is kept."""

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
    """How much of its training each candidate keeps: 1, or less where its gain may be chance."""
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
    trajectories: Trajectories,
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

    p_c,-i is the member of candidate c that was trained without the fold of trajectory i. So nearly
    every trajectory trains most of the members, and judges the others: their best step, and the
    weights of the candidates (stacking, Yao et al. 2018). The members of a candidate count alike.
    What they say of the trajectories that they left out also tells how wide their bands should be.

    If training improves the forecasts of a candidate by what may be chance (a t-test over the folds
    at 5%, where each is scored at the step that is best for the others), its parameters go only a
    part of the way from the start: 1 - 1 / t^2 or, if t < 1, none. The factor has the form of that
    of James & Stein (1961); that parameters between start and end forecast well is seen by Wortsman
    et al. (2022). So a backbone stays near the mixed model where the data do not say otherwise.

    A fold leaves out a random 500 at most; if there are more, all members are trained on the rest.

    Args:
        rng_key: a key.
        candidates: by name, functions `(train, rngs) -> (model, guide)`. For each fold, a candidate
            must return the same parts with the same units; only where they start may differ.
        trajectories: all that may be trained on.
        num_folds: of about the same size. With 1, a seventh is left out once.
        max_workers: how many members are trained side by side, in threads. Default: one per core.
        num_steps: the highest number of steps of each member. First a quarter of them is taken,
            with a schedule of its own; the others follow if the median member was best in the last
            tenth of these.
        batch_size: trajectories per step, or all of a member if it has fewer. Default: all.
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
    check_trajectories(trajectories, name="trajectories")
    if not candidates:
        raise ValueError("candidates must hold at least one function; got none.")
    split = _split(trajectories, num_folds)
    started = time.perf_counter()
    if batch_size is not None:
        batch_size = min(batch_size, sum(map(len, split.kept[0])))
    settings: Any = dict(batch_size=batch_size, conditioning=conditioning, patience=patience)
    settings |= dict(num_steps=num_steps, progress=progress)
    settings |= dict(max_workers=max(1, workers // len(candidates)))

    keys = {name: jax.random.fold_in(rng_key, c) for c, name in enumerate(candidates)}
    starts = {
        name: _starts(keys[name], build, trajectories, split) for name, build in candidates.items()
    }
    _check_units(starts)
    stop = threading.Event()

    def train(name: str) -> tuple[list[Fitted], float, np.ndarray]:
        directory = None if checkpoint_dir is None else Path(checkpoint_dir) / name
        own = (keys[name], name, starts[name])
        try:
            return _trained(*own, trajectories, split, directory, stop=stop, **settings)
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
    return _joined(by_name, shares_kept, np.stack(log_p), split, len(trajectories), seconds)


def _trained(
    rng_key: Array,
    name: str,
    members: list[Fitted],
    trajectories: Trajectories,
    split: _Split,
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
    starts, every, plans, rounds = members, [], [], _rounds(num_steps)
    for number, steps in enumerate(rounds):
        # As much of each schedule, so that none ends while its learning rate is still high.
        waited = None if patience is None else max(patience, patience * steps // rounds[0])
        own: Any = dict(num_steps=steps, patience=waited, **settings)
        plans = _plans(rng_key, members, trajectories, split, **own)
        if directory is not None:
            plans = [plan.kept_in(directory / f"{number}-{k}") for k, plan in enumerate(plans)]
        options: Any = dict(progress=progress, max_workers=max_workers, name=name, stop=stop)
        every.append(done := train_all(plans, **options))
        members = [_continued(member, one) for member, one in zip(members, done, strict=True)]
        if not _improving(done, steps):
            break
    share = _share_kept(_aligned(every))
    members = [_between(*pair, share) for pair in zip(starts, members, strict=True)]
    return members, share, _left_out_scores(rng_key, members, plans, split)


def _rounds(num_steps: int) -> list[int]:
    """The steps of the first round, a quarter of all, and those of the second."""
    first = max(1, num_steps // 4)
    return [first, num_steps - first] if num_steps > 1 else [1]


def _improving(done: Sequence[Progress], steps: int) -> bool:
    """Whether the median member was best in the last tenth of its steps."""
    return float(np.median([one.history.best_step for one in done])) >= 0.9 * steps


def _aligned(rounds: Sequence[Sequence[Progress]]) -> Float[np.ndarray, "member evaluation"]:
    """The scores of all members, round by round; one that has stopped keeps its last score."""
    columns = []
    for done in rounds:
        scores = [one.history.validation for one in done]
        longest = max(map(len, scores))
        columns.append(np.stack([np.pad(x, (0, longest - len(x)), mode="edge") for x in scores]))
    return np.concatenate(columns, axis=1)


def _share_kept(scores: Float[np.ndarray, "member evaluation"]) -> float:
    """How much of what training changed is kept: all, if it surely improved the scores.

    The gain of a member is that of the step that is best for the others. Its own best step is
    chosen by few trajectories, and so it always looks better than the start.
    """
    if len(scores) < 2 or not np.isfinite(scores[:, 0]).all():
        return 1.0
    # A step where one of them diverges is not best for any.
    scores = scores[:, np.isfinite(scores).all(0)]
    others = [np.delete(scores, k, axis=0).mean(0).argmin() for k in range(len(scores))]
    gain = scores[:, 0] - scores[np.arange(len(scores)), others]
    if gain.mean() <= 0:
        return 0.0
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    if gain.mean() > stdtrit(len(gain) - 1, SURE) * error:
        return 1.0
    return float(max(0.0, 1 - (error / gain.mean()) ** 2))


def _between(start: Fitted, member: Fitted, share: float) -> Fitted:
    """The member with parameters between those of its start and its own."""
    if share == 1:
        return member
    params = jax.tree.map(lambda a, b: a + share * (b - a), start.params, member.params)
    return Fitted(start.model, start.guide, params, member.history)


def _continued(before: Fitted, done: Progress) -> Fitted:
    """The fit after one more round, with the history of all rounds."""
    past, new = before.history, done.history
    taken, seconds = len(past.losses), sum(past.seconds[-1:])
    # A second round scores its start, which the first has scored already.
    fresh = slice(1 if taken else 0, None)
    history = History(
        np.append(past.losses, new.losses),
        np.append(past.evaluated, taken + new.evaluated[fresh]),
        np.append(past.validation, new.validation[fresh]),
        np.append(past.seconds, seconds + new.seconds),
    )
    return Fitted(before.model, before.guide, done.params, history)


class _Split(NamedTuple):
    """What each fold leaves out, and what is left, by buckets."""

    left_out: tuple[Int[np.ndarray, " trajectory"], ...]
    judged: tuple[tuple[Trajectories, Trajectories], ...]
    """Context and target of those left out."""
    kept: tuple[tuple[Trajectories, ...], ...]


def _split(trajectories: Trajectories, num_folds: int) -> _Split:
    """Folds that take as many trajectories from each bucket, so that they compile once.

    Only what was observed at two times or more can be forecast, and so left out.
    """
    able = np.asarray(trajectories.observed).sum(1) > 1
    ids = np.unique(trajectories.names.ids, return_inverse=True)[1]
    if (count := len(np.unique(ids[able]))) < max(num_folds, 2):
        raise ValueError(
            f"trajectories must hold {max(num_folds, 2)} ids or more that were observed at two "
            f"times or more, for num_folds={num_folds}; got {count}."
        )
    some = buckets(trajectories)
    most = MOST_LEFT_OUT / able.sum()
    divided = [_divided(bucket.rows, ids, able, num_folds, most) for bucket in some]
    if not all(len(other) for _, others in divided for other in others) or not any(
        len(out) for outs, _ in divided for out in outs
    ):
        # Of some length there are too few to divide: all lengths are divided as one.
        some = [Bucket(np.arange(len(ids)), trajectories)]
        divided = [_divided(some[0].rows, ids, able, num_folds, most)]
    left_out, kept = [], []
    for k in range(num_folds):
        outs = [rows[outs[k]] for (rows, _), (outs, _) in zip(some, divided, strict=True)]
        left_out.append(np.sort(np.concatenate(outs)))
        pairs = zip(some, divided, strict=True)
        kept.append(tuple(part[others[k]] for (_, part), (_, others) in pairs))
    judged = tuple(trajectories[rows].split() for rows in left_out)
    return _Split(tuple(left_out), judged, tuple(kept))


def _divided(
    rows: Int[np.ndarray, " row"],
    ids: Int[np.ndarray, " trajectory"],
    able: Bool[np.ndarray, " trajectory"],
    num_folds: int,
    most: float,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Which of the rows each fold leaves out, and which it keeps.

    Windows of one trajectory have the same id, and are left out together. If their numbers differ,
    folds leave some more rows out, so that all have the same size. `most` is the largest share of
    the ids that a fold may leave out.
    """
    everyone = np.unique(ids[able])
    # Windows of one trajectory may be in several buckets, and are left out together.
    who = everyone if len(everyone) < able.sum() else np.unique(ids[rows][able[rows]])
    each = folds(len(who), num_folds, most=max(1, round(most * len(who))))
    outs = [np.isin(ids[rows], who[fold]) for fold in each]
    chosen = [np.flatnonzero(out & able[rows]) for out in outs]
    others = [np.flatnonzero(~out) for out in outs]
    return _same_size(chosen), _same_size(others)


def _same_size(each: list[np.ndarray]) -> list[np.ndarray]:
    """As many of each, evenly spread."""
    count = min(map(len, each))
    return [rows[np.linspace(0, len(rows) - 1, count).round().astype(int)] for rows in each]


def _starts(
    rng_key: Array, build: Candidate, trajectories: Trajectories, split: _Split
) -> list[Fitted]:
    """Where the member of each fold starts: the programs of the first, its own parameters."""
    pairs = [
        build(_without(trajectories, rows), nnx.Rngs(jax.random.fold_in(rng_key, k)))
        for k, rows in enumerate(split.left_out)
    ]
    return starting_alike(pairs, name="candidates")


def _check_units(starts: dict[str, list[Fitted]]) -> None:
    scalings = {name: some[0].model.scaling for name, some in starts.items()}
    first = next(iter(scalings.values()))
    if others := [name for name, scaling in scalings.items() if not first.like(scaling)]:
        raise ValueError(
            "candidates must share their units, as with scaling=Scaling.fit(trajectories); got "
            f"other ones for {', '.join(others)} than for {next(iter(scalings))}."
        )


def _without(trajectories: Trajectories, rows: np.ndarray) -> Trajectories:
    """All but these, and but the other windows of the same trajectories."""
    ids = np.asarray(trajectories.names.ids)
    return trajectories[~np.isin(ids, ids[rows])]


def _plans(
    rng_key: Array,
    starts: Sequence[Fitted],
    trajectories: Trajectories,
    split: _Split,
    **settings: Any,
) -> list[Plan]:
    """The plan of each fold: they share the programs of the first."""
    one = starts[0]
    options: Any = dict(optim=None, kl_weight=None, loss=None, start=one, **settings)
    # The programs are made for all trajectories, as the latest time may be in any fold.
    first = make_plan(
        rng_key,
        one.model,
        one.guide,
        trajectories,
        split.judged[0],
        parts=split.kept[0],
        **options,
    )
    return [
        first._replace(
            rng_key=jax.random.fold_in(rng_key, k),
            init_params=start.params,
            train=_without(trajectories, split.left_out[k]),
            buckets=split.kept[k],
            held_out=split.judged[k],
        )
        for k, start in enumerate(starts)
    ]


def _left_out_scores(
    rng_key: Array, members: Sequence[Fitted], plans: Sequence[Plan], split: _Split
) -> Float[np.ndarray, " trajectory"]:
    """log p(target | context) of each trajectory that was left out, fold by fold."""
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
    return np.concatenate(scores)


def _joined(
    made: dict[str, list[Fitted]],
    shares_kept: dict[str, float],
    log_p: Float[np.ndarray, "candidate trajectory"],
    split: _Split,
    num_trajectories: int,
    seconds: float,
) -> CrossFit:
    weights = stacking_weights(log_p)
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
        num_trajectories,
        seconds,
    )

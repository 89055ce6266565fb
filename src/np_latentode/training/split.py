"""The division of trajectories for cross-fitting: what each fold leaves out, and what is left."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from np_latentode.data.buckets import Bucket, buckets
from np_latentode.data.folds import SHARE, folds
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.programs.plate import check_trajectories

__all__ = ["MOST_LEFT_OUT", "Split", "most_left_out", "split"]

MOST_LEFT_OUT = 500
"""About the most trajectories that a fold leaves out: more would hardly judge better, but each
validation takes as long as there are of them."""


class Split(NamedTuple):
    """What each fold leaves out, and what is left."""

    ids: Int[np.ndarray, " trajectory"]
    """A number for the id of each trajectory."""
    left_out: tuple[Int[np.ndarray, " trajectory"], ...]
    judged: tuple[tuple[Trajectories, Trajectories], ...]
    """Context and target of those left out."""
    train: tuple[Trajectories | StoredTrajectories, ...]
    """All others, without other windows of those left out; of data on disk, the same for all
    folds."""
    kept: tuple[tuple[Trajectories, ...], ...] | None
    """They by buckets, as many for each fold; None for data on disk."""
    every: Trajectories | StoredTrajectories
    """Those for which programs are made, as the latest time may be in any fold."""

    @property
    def judges(self) -> Int[np.ndarray, " left_out"]:
        """The ids of those left out, fold by fold."""
        return self.ids[np.concatenate(self.left_out)]

    @property
    def num_trained(self) -> int:
        """The trajectories that train a member, the same number for each."""
        return len(self.train[0]) if self.kept is None else sum(map(len, self.kept[0]))


def split(trajectories: Trajectories | StoredTrajectories, num_folds: int) -> Split:
    """Folds of trajectories. Only what was observed at two times or more can be forecast, and so
    left out.

    Raises:
        ValueError: if there are fewer of such ids than folds.
    """
    if isinstance(trajectories, StoredTrajectories):
        return _of_stored(trajectories, num_folds)
    check_trajectories(trajectories, name="trajectories")
    able = trajectories.lengths > 1
    ids = np.unique(trajectories.names.ids, return_inverse=True)[1]
    _check_able(len(np.unique(ids[able])), num_folds)
    left_out, kept = _even(trajectories, able, ids, num_folds)
    judged = tuple(trajectories[rows].split() for rows in left_out)
    train = tuple(trajectories[~np.isin(ids, ids[rows])] for rows in left_out)
    return Split(ids, left_out, judged, train, kept, trajectories)


def _of_stored(stored: StoredTrajectories, num_folds: int) -> Split:
    """Folds of one or more, together a seventh at most if there are enough; no member is trained on
    any of it."""
    able = np.flatnonzero(stored.lengths > 1)
    _check_able(len(able), num_folds)
    if len(stored) <= num_folds:
        raise ValueError(
            f"trajectories must hold more than num_folds={num_folds} ids; got {len(stored)}."
        )
    most = most_left_out(stored, num_folds)
    left_out = tuple(able[rows] for rows in folds(len(able), num_folds, most=most))
    judged = tuple(stored[rows].split() for rows in left_out)
    rest = stored.without(np.concatenate(left_out))
    return Split(np.arange(len(stored)), left_out, judged, (rest,) * num_folds, None, rest)


def most_left_out(trajectories: Trajectories | StoredTrajectories, num_folds: int) -> int:
    """About the most trajectories that a fold leaves out."""
    if not isinstance(trajectories, StoredTrajectories):
        return MOST_LEFT_OUT
    able = int((trajectories.lengths > 1).sum())
    return max(1, min(MOST_LEFT_OUT, able // (SHARE * num_folds)))


def _check_able(count: int, num_folds: int) -> None:
    if count < max(num_folds, 2):
        raise ValueError(
            f"trajectories must hold {max(num_folds, 2)} ids or more that were observed at two "
            f"times or more, for num_folds={num_folds}; got {count}."
        )


def _even(
    trajectories: Trajectories, able: np.ndarray, ids: np.ndarray, num_folds: int
) -> tuple[tuple[np.ndarray, ...], tuple[tuple[Trajectories, ...], ...]]:
    """Folds that take as many trajectories from each bucket, so that they compile once."""
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
    return tuple(left_out), tuple(kept)


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

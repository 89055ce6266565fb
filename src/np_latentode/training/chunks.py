"""Chunks: random parts of trajectories on disk, of a fixed shape, one for each dispatch."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from np_latentode.data.offset import Offset
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.training.losses import batch_sizes

__all__ = ["Chunks"]


class Chunks:
    """Random parts of trajectories on disk: each bucket is shuffled, and read part by part.

    In a dispatch of K steps, each step draws its batch from the chunk of the dispatch, which holds
    K times as many trajectories as a batch, or all there are. Chunk k of a bucket depends on the
    key and on k only: the bucket in a random order, cut into chunks; after the last one it is
    shuffled anew. So every trajectory is equally likely to be in a chunk, and the sum over a chunk,
    times the trajectories per trajectory of the chunk, is without bias.

    Args:
        stored: the trajectories.
        rng_key: a key.
        batch_size: trajectories per step.
        steps: K.
        offset: taken off all numbers.

    Raises:
        ImportError: if grain is missing.
    """

    def __init__(
        self,
        stored: StoredTrajectories,
        rng_key: Array,
        *,
        batch_size: int,
        steps: int,
        offset: Offset,
    ):
        if find_spec("grain") is None:
            raise ImportError(
                "grain must be installed to train from disk, by pip install 'np-latentode[disk]'."
            )
        import grain

        self.stored, self.offset = stored, offset
        self._settings: Any = dict(batch_size=batch_size, steps=steps, offset=offset)
        buckets: Any = stored.buckets()
        counts = [len(rows) for rows, _ in buckets]
        self.sizes = batch_sizes(counts, batch_size)
        """Trajectories per step of each bucket."""
        held = [min(n, steps * m) for n, m in zip(counts, self.sizes, strict=True)]
        self.weights = tuple(n / c for n, c in zip(counts, held, strict=True))
        """Trajectories per trajectory of the chunk, of each bucket."""
        self.slots = [slots for _, slots in buckets]
        key = jax.random.fold_in(rng_key, 2)
        seeds = np.asarray(jax.random.bits(key, (len(buckets),), "uint32")).tolist()
        self.orders: list[Any] = [
            grain.MapDataset.source(rows)
            .seed(seed)
            .shuffle()
            .batch(size, drop_remainder=True)
            .repeat()
            for (rows, _), size, seed in zip(buckets, held, seeds, strict=True)
        ]

    def shuffled(self, rng_key: Array) -> Chunks:
        """The same trajectories in the order of another key."""
        return Chunks(self.stored, rng_key, **self._settings)

    def at(self, k: int) -> tuple[Trajectories, ...]:
        """Chunk k: some trajectories of each bucket."""
        return tuple(
            self.stored.padded(np.sort(order[k]), slots).at_offset(self.offset)
            for order, slots in zip(self.orders, self.slots, strict=True)
        )

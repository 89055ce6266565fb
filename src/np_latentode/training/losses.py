"""The loss of data in buckets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array
from numpyro.infer.elbo import ELBO

from np_latentode.data.trajectories import Trajectories

__all__ = ["BucketLoss", "batch_sizes"]


class BucketLoss(ELBO):
    """The loss of data in buckets: the sum of the losses of a random batch from each.

    loss = sum_b loss(batch_b),   batch_b of m_b of the n_b trajectories of bucket b

    NumPyro scales the loss of a batch by n_b / m_b, so each term is unbiased, and the sum is, too.
    If a bucket holds only a random part of its trajectories, its term is weighed.
    This is stratified sampling: chance does not decide how many long trajectories are in a step.

    It takes the place of a loss of NumPyro, with the buckets in place of the trajectories.

    Args:
        each: a loss of NumPyro, such as `Trace_ELBO()`.
        sizes: m_b of each bucket, as of `batch_sizes`.
        weights: of the term of each bucket. Default: 1.
    """

    def __init__(self, each: Any, sizes: Sequence[int], weights: Sequence[float] | None = None):
        super().__init__()
        self.each, self.sizes = each, tuple(sizes)
        self.weights = (1.0,) * len(self.sizes) if weights is None else tuple(weights)
        # What SVI asks of a loss.
        self.can_infer_discrete = each.can_infer_discrete
        self.multi_sample_guide = getattr(each, "multi_sample_guide", False)

    def loss_with_mutable_state(
        self,
        rng_key: Array,
        param_map: dict[str, Any],
        model: Any,
        guide: Any,
        buckets: Sequence[Trajectories],
        **options: Any,
    ) -> Any:
        keys = jax.random.split(rng_key, len(buckets))
        of_each = zip(keys, buckets, self.sizes, self.weights, strict=True)
        losses = [
            w * self.each.loss(key, param_map, model, guide, bucket, batch_size=size, **options)
            for key, bucket, size, w in of_each
        ]
        # A Fitted's modules hold nothing but parameters, so no site of theirs is mutable.
        return {"loss": sum(losses), "mutable_state": None}


def batch_sizes(counts: Sequence[int], batch_size: int | None) -> tuple[int, ...]:
    """The number of trajectories to draw from each bucket: its share of the batch, at least one.

    Args:
        counts: the number of trajectories in each bucket.
        batch_size: the number in all. None: all trajectories.
    """
    if batch_size is None:
        return tuple(counts)
    return tuple(max(1, round(batch_size * count / sum(counts))) for count in counts)

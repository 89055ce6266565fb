"""Sharpening: from the guide's draws to the posterior, each trajectory as far as it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

from np_latentode.data.buckets import buckets, trimmed
from np_latentode.data.checks import check_counts
from np_latentode.data.far import warn_user
from np_latentode.data.numbers import is_concrete
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.densities import observed_times
from np_latentode.inference.chunks import at_rows, in_chunks
from np_latentode.inference.laplace import laplace
from np_latentode.inference.mixtures import Mixture
from np_latentode.inference.nuts import draw_exact
from np_latentode.inference.pareto import FEWEST, TRUSTED, most_trusted, smooth
from np_latentode.inference.stages import adapt, find_mixture, weigh_guide, weigh_mixture
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["Sharpened", "Sharpening", "sharpen"]

SCREENED = 40
"""Draws of the guide for each trajectory, from which starts are taken."""

PROMISING = 0.25
"""The effective share of these draws from which on the guide may be good enough."""

GUIDE_TRUSTED = 0.5
"""The highest Pareto k of draws of the guide. Its tails are mostly lighter than the posterior's, so
that weighted draws are too narrow before k is large."""

NUM_ROUNDS = 4
"""The highest number of times that a mixture adapts to its draws."""

NUM_WARMUP, NUM_EXACT = 300, 250
"""Of each of the four chains of NUTS."""

UNSURE = (
    "Importance sampling does not reach the posterior of some trajectories (Pareto k is too "
    "large): their bands may be too narrow. NUTS reaches it, in minutes: --inference exact, or "
    "Sharpened()."
)

ROWS_AT_ONCE = (16, 64)
"""Trajectories per call of a compiled program: the first that holds all, or the last. Few sizes, so
that few programs are compiled."""


@dataclass(frozen=True)
class Sharpening:
    """Draws from the posterior, and how each trajectory came by them.

    `z0`, shape (draw, trajectory, latent), are draws of equal weight. `ended`, shape (trajectory,),
    is the stage that its draws come from: "guide", "laplace", "adapted" or "exact". `pareto_k` is
    that of their importance weights, and `log_evidence` is log p(context), estimated by the mean of
    these. Draws of NUTS have no weights: both are then of the last stage before, which could not
    be trusted. Pareto k is infinite where no draw had a weight. `sure`, shape (trajectory,), is
    False where no stage could be trusted. `seconds` are those of each stage.
    """

    z0: Float[Array, "draw trajectory latent"]
    ended: np.ndarray
    pareto_k: np.ndarray
    log_evidence: np.ndarray
    sure: np.ndarray
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = [f"{'inference ended':16s}{'trajectories':>13s}{'Pareto k':>10s}{'seconds':>9s}"]
        for stage, seconds in self.seconds.items():
            here = self.ended == stage
            k = f"{np.median(self.pareto_k[here]):.2f}" if here.any() else "-"
            lines.append(f"{stage:16s}{here.sum():13d}{k:>10s}{seconds:9.2f}")
        trusted = np.mean(self.pareto_k <= TRUSTED)
        return "\n".join([*lines, f"{trusted:.1%} of trajectories have k up to {TRUSTED}"])


@dataclass(frozen=True)
class Sharpened:
    """Inference by `sharpen`: `forecast(..., inference=Sharpened())`.

    Without `exact`, it warns where the draws of a trajectory cannot be trusted.

    Args:
        num_weighted, exact: as in `sharpen`.
    """

    num_weighted: int | None = None
    exact: bool = True

    def __call__(
        self, rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int
    ) -> Array:
        options: Any = dict(num_weighted=self.num_weighted, exact=self.exact)
        found = sharpen(rng_key, fitted, context, num_samples=num_samples, **options)
        if not found.sure.all():
            warn_user(UNSURE)
        return found.z0


def sharpen(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    *,
    num_samples: int = 200,
    num_weighted: int | None = None,
    exact: bool = True,
) -> Sharpening:
    """Draws z0 ~ p(z0 | context), by the cheapest way whose importance weights can be trusted.

    1. guide: draws of the guide, weighed by p(context, z0) / q(z0 | context).
    2. laplace: the same, with t distributions at the modes that `laplace` finds.
    3. adapted: the same, with the moments of the weighted draws before, up to four times.
    4. exact: `exact_posterior`.

    A trajectory goes on while Pareto k of its weights is too large for their number: above
    1 - 1 / log10(num_weighted) or 0.7, and for the guide above 0.5 (Vehtari et al. 2024). Then its
    draws are resampled to equal weights. It is the "amortized Bayesian workflow" of Li et al.
    (2026), with adaptive importance sampling (Cappe et al. 2008) before NUTS.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        num_samples: draws per trajectory.
        num_weighted: weighted draws per trajectory, from which num_samples are taken; at least 25.
            Default: twice num_samples, and no fewer than 200.
        exact: whether NUTS ends the chain. Otherwise the last weights are taken as they are.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    num_weighted = max(200, 2 * num_samples) if num_weighted is None else num_weighted
    check_counts(num_samples=num_samples, num_weighted=num_weighted)
    if num_weighted < FEWEST:
        raise ValueError(f"num_weighted must be at least {FEWEST}; got {num_weighted}.")
    context, _ = check_data(fitted.model, context)
    if not is_concrete(context.times, context.values, context.mask, *jax.tree.leaves(fitted)):
        raise ValueError(
            "context and fitted must hold known numbers, as how far a trajectory goes depends on "
            "them; got those of a JAX transformation. Use `amortized` or `laplace` inside of it."
        )
    bucket_key, exact_key = jax.random.split(rng_key)
    found = _Found(num_samples, len(context), fitted.model.latent_dim)
    for k, (rows, part) in enumerate(buckets(context)):
        bucket = _Bucket(fitted, part, rows, num_weighted, found)
        bucket.run(jax.random.fold_in(bucket_key, k))
    if exact and found.unsure.size:
        _run_nuts(exact_key, fitted, context, found)
    return Sharpening(
        jnp.asarray(found.z0),
        found.ended,
        found.pareto_k,
        found.log_evidence,
        found.sure,
        dict(found.seconds),
    )


class _Found:
    """What the stages have found so far."""

    def __init__(self, num_samples: int, num_trajectories: int, latent_dim: int):
        self.z0 = np.zeros((num_samples, num_trajectories, latent_dim), jnp.result_type(float))
        self.ended = np.full(num_trajectories, "guide", dtype="<U7")
        self.pareto_k = np.full(num_trajectories, np.inf)
        self.log_evidence = np.full(num_trajectories, -np.inf)
        self.sure = np.zeros(num_trajectories, bool)
        self.seconds: dict[str, float] = {}

    @property
    def unsure(self) -> np.ndarray:
        """The trajectories whose weights cannot be trusted."""
        return np.flatnonzero(~self.sure)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        passed = time.perf_counter() - started
        self.seconds[stage] = self.seconds.get(stage, 0.0) + passed

    def start(self, rows: np.ndarray, z0: np.ndarray) -> None:
        """Unweighted draws of the guide, (trajectory, draw, latent), if nothing better is found."""
        count = np.arange(len(self.z0)) % z0.shape[1]
        self.z0[:, rows] = np.swapaxes(z0[:, count], 0, 1)

    def keep(
        self, stage: str, rows: np.ndarray, z0: np.ndarray, log_weights: np.ndarray
    ) -> np.ndarray:
        """Resamples the draws of a stage, unless an earlier stage had weights of a lower k.

        Args:
            stage: the name of the stage.
            rows: the trajectories.
            z0: weighted draws, shape (trajectory, draw, latent).
            log_weights: shape (trajectory, draw).

        Returns:
            The smoothed weights, shape (trajectory, draw).
        """
        smoothed, pareto_k, log_mean = smooth(log_weights.T.astype(float))
        weights = np.exp(smoothed.T)
        most = GUIDE_TRUSTED if stage == "guide" else most_trusted(log_weights.shape[1])
        sure = pareto_k <= most
        # What the guide is not trusted with does not compete with later stages.
        earlier = np.where(self.ended[rows] == "guide", np.inf, self.pareto_k[rows])
        better = np.isfinite(log_mean) & (sure | (pareto_k < earlier) | np.isinf(earlier))
        for i in np.flatnonzero(better):
            self.z0[:, rows[i]] = z0[i, _resampled(weights[i], len(self.z0))]
        self.ended[rows[better]] = stage
        self.pareto_k[rows[better]] = pareto_k[better]
        self.log_evidence[rows[better]] = log_mean[better]
        self.sure[rows] = sure & better
        return weights


def _resampled(weights: np.ndarray, count: int) -> np.ndarray:
    """Systematic resampling (Kitagawa 1996): each draw as often as its weight says, up to one."""
    ends = np.cumsum(weights)
    return np.searchsorted(ends, (np.arange(count) + 0.5) / count * ends[-1])


def _hidden_slots_at_t0(fitted: Fitted, part: Trajectories) -> Trajectories:
    """The trajectories up to their last slot; nothing is solved for slots that are hidden."""
    part = trimmed(part)
    times = observed_times(fitted.model, part)
    return part.replace_arrays(times, part.values, part.mask, part.limits)


class _Bucket:
    """Trajectories of similar lengths, on which the stages with importance weights run."""

    def __init__(
        self,
        fitted: Fitted,
        part: Trajectories,
        rows: np.ndarray,
        num_weighted: int,
        found: _Found,
    ):
        self.part, self.rows, self.found = _hidden_slots_at_t0(fitted, part), rows, found
        self.num_weighted = num_weighted
        max_steps = fitted.model.steps_to(self.part.times, self.part.offset)
        self.options: Any = dict(fitted=fitted, max_steps=max_steps)
        self.size = next((n for n in ROWS_AT_ONCE if len(rows) <= n), ROWS_AT_ONCE[-1])

    def run(self, rng_key: Array) -> None:
        guide_key, mode_key, *keys = jax.random.split(rng_key, 3 + NUM_ROUNDS)
        with self.found.timed("guide"):
            z0, log_p = self.ask_guide(guide_key)
        with self.found.timed("laplace"):
            if not (unsure := self.unsure).size:
                return
            mixture = self.each(find_mixture, mode_key, unsure, self.part, z0, log_p)
        for key, stage in zip(keys, ["laplace"] + ["adapted"] * NUM_ROUNDS, strict=True):
            with self.found.timed(stage):
                left, mixture = self.weigh(key, stage, unsure, mixture)
                unsure = unsure[left]
            if not unsure.size:
                return

    @property
    def unsure(self) -> np.ndarray:
        """Which of the trajectories of this bucket cannot be trusted yet."""
        return np.flatnonzero(~self.found.sure[self.rows])

    def each(self, call: Callable[..., Any], key: Array, local: np.ndarray, *trees: Any) -> Any:
        return in_chunks(partial(call, **self.options), self.size, key, local, trees)

    def ask_guide(self, rng_key: Array) -> tuple[np.ndarray, np.ndarray]:
        """Draws of the guide and their log p(x, z0); where they promise it, more are weighed."""
        screen_key, guide_key = jax.random.split(rng_key)
        screen = partial(weigh_guide, num_draws=SCREENED)
        z0, log_p, log_w = self.each(screen, screen_key, np.arange(len(self.rows)), self.part)
        self.found.start(self.rows, z0)
        promising = np.flatnonzero(_effective_share(log_w) >= PROMISING)
        if promising.size:
            # As often as needed with the same program, which takes longer to compile than to run.
            keys = jax.random.split(guide_key, -(-self.num_weighted // SCREENED))
            asked = [self.each(screen, key, promising, self.part) for key in keys]
            draws, weights = (
                np.concatenate([each[k] for each in asked], axis=1)[:, : self.num_weighted]
                for k in (0, 2)
            )
            self.found.keep("guide", self.rows[promising], draws, weights)
        return z0, log_p

    def weigh(
        self, rng_key: Array, stage: str, unsure: np.ndarray, mixture: Mixture
    ) -> tuple[np.ndarray, Mixture]:
        """Weighs draws of a mixture; returns who is still unsure, and their adapted mixture."""
        weigh = partial(weigh_mixture, num_draws=self.num_weighted)
        own = np.arange(len(unsure))
        u, z0, log_w = self.each(weigh, rng_key, own, at_rows(unsure, self.part), mixture)
        weights = self.found.keep(stage, self.rows[unsure], z0, log_w)
        left = np.flatnonzero(~self.found.sure[self.rows[unsure]])
        if left.size:
            weights = np.nan_to_num(weights).astype(u.dtype)
            mixture = self.each(adapt, rng_key, left, mixture, u, weights)
        return left, mixture


def _effective_share(log_weights: np.ndarray) -> np.ndarray:
    """The effective number of draws (Kong 1992), as a share, of weights (trajectory, draw)."""
    # Where no draw can be explained, all are alike.
    best = log_weights.max(axis=1, keepdims=True)
    weights = softmax(np.where(np.isfinite(best), log_weights, 0.0), axis=1)
    return 1 / np.square(weights).sum(1) / weights.shape[1]


def _run_nuts(rng_key: Array, fitted: Fitted, context: Trajectories, found: _Found) -> None:
    """The last stage: NUTS, for the trajectories that are left."""
    mode_key, run_key = jax.random.split(rng_key)
    unsure = found.unsure
    with found.timed("exact"):
        some = _hidden_slots_at_t0(fitted, context[unsure])
        q = laplace(mode_key, fitted, some)
        lengths = dict(num_warmup=NUM_WARMUP, num_draws=NUM_EXACT)
        z0 = draw_exact(run_key, fitted, some, q, len(found.z0), **lengths)
        found.z0[:, unsure] = z0
        found.ended[unsure] = "exact"
        found.sure[unsure] = True

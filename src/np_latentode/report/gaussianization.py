"""Gaussianization: how far the codes of a population are from the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jaxtyping import Array
from scipy.spatial.distance import cdist, pdist

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior, prior
from np_latentode.programs.fitted import Fitted, check_fitted

__all__ = ["GaussianizationReport", "gaussianization"]


@dataclass(frozen=True)
class GaussianizationReport:
    """How far the codes of a population are from the prior.

    Let q(z) be the mean of q(z0 | x_n) over `num_trajectories` trajectories. The KL of the ELBO
    splits into two parts (Hoffman & Johnson 2016, "ELBO surgery"):

    kl = mutual_information + kl_marginal,
    mutual_information = E[log q(z | x) - log q(z)],  kl_marginal = E[log q(z) - log p(z)].

    `mutual_information` cannot exceed `log_n`, the log of `num_trajectories`. The split is
    meaningful only while it stays well below. `standard_error` is that of `kl_marginal`.

    `energy_distance`, 2 E|z - w| - E|z - z'| - E|w - w'| with z ~ q(z) and w ~ p(z), is 0 if and
    only if the two are the same (Szekely & Rizzo 2013). It needs no density, and has a standard
    error of its own. `activity` is the variance over trajectories of E[z0 | x], one entry per
    dimension; a unit is active above 0.01 (Burda et al. 2016). The moments are those of draws
    z ~ q(z), one entry per dimension; for N(0, I) they are 0, 1, 0, 0.
    """

    num_trajectories: int
    log_n: float
    kl: float
    mutual_information: float
    kl_marginal: float
    standard_error: float
    energy_distance: float
    energy_distance_error: float
    activity: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    skew: np.ndarray
    excess_kurtosis: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"KL(q(z0|x) || p(z0)) {self.kl:.3f} nats",
            f"  = I(x; z0) {self.mutual_information:.3f} + KL(q(z0) || p(z0)) "
            f"{self.kl_marginal:.3f} +- {self.standard_error:.3f}"
            f"   from n = {self.num_trajectories}, log n = {self.log_n:.2f}",
            f"energy distance to the prior {self.energy_distance:.4f} +- "
            f"{self.energy_distance_error:.4f}, {np.sum(self.activity > 0.01)} of "
            f"{len(self.activity)} units active",
        ]
        for j, moments in enumerate(
            zip(self.mean, self.sd, self.skew, self.excess_kurtosis, strict=True)
        ):
            mean, sd, skew, kurtosis = moments
            lines.append(
                f"  z0[{j}]  mean {mean:+.3f}  sd {sd:.3f}  skew {skew:+.3f}  "
                f"excess kurtosis {kurtosis:+.3f}"
            )
        return "\n".join(lines)


def gaussianization(
    rng_key: Array, fitted: Fitted, trajectories: Trajectories, *, num_points: int = 4_000
) -> GaussianizationReport:
    """Moments of the aggregate posterior, and the split of its KL from the prior.

    Args:
        rng_key: a key.
        fitted: the fit.
        trajectories: a sample of the population. The limit log n is weaker the larger it is.
        num_points: the number of draws, one per trajectory, over which the KL terms are averaged.

    Raises:
        ValueError: if num_points is not positive, or there is only one trajectory.
    """
    check_fitted(fitted)
    check_counts(num_points=num_points)
    if len(trajectories) < 2:
        raise ValueError(f"trajectories must be at least 2; got {len(trajectories)}.")
    draw_key, pick_key, mean_key, prior_key = jax.random.split(rng_key, 4)
    q, p, n = posterior(fitted, trajectories), prior(fitted), len(trajectories)
    z = jnp.asarray(q.sample(draw_key))
    # The first few of a permutation are a sample without replacement.
    picked = jax.random.permutation(pick_key, n)[:num_points]
    several = np.asarray(q.sample(mean_key, (30,)), np.float64)
    # Sample means vary by this much more than E[z0 | x], as each is over few draws.
    noise = several.var(0, ddof=1).mean(0) / len(several)
    draws = np.asarray(z, dtype=np.float64)
    others = np.asarray(p.sample(prior_key, (min(n, num_points),)), np.float64)
    distance, distance_error = _energy_distance(draws[np.asarray(picked)], others)
    return GaussianizationReport(
        num_trajectories=n,
        log_n=float(np.log(n)),
        **_kl_terms(q, p, z, picked),
        energy_distance=distance,
        energy_distance_error=distance_error,
        activity=several.mean(0).var(0, ddof=1) - noise,
        **_moments(draws),
    )


def _kl_terms(
    q: dist.Distribution, p: dist.Distribution, z: Array, picked: Array
) -> dict[str, float]:
    """The KL and its two parts, averaged over the picked draws."""
    log_conditional = jnp.asarray(q.log_prob(z))[picked]

    def log_marginal(point: Array) -> Array:
        return logsumexp(q.log_prob(point)) - jnp.log(len(z))

    log_q = jax.lax.map(jax.jit(log_marginal), z[picked], batch_size=64)
    log_p = jnp.asarray(p.log_prob(z[picked]))
    gap = np.asarray(log_q - log_p)
    return {
        "kl": float(jnp.mean(log_conditional - log_p)),
        "mutual_information": float(jnp.mean(log_conditional - log_q)),
        "kl_marginal": float(gap.mean()),
        "standard_error": float(gap.std() / np.sqrt(len(gap))),
    }


def _moments(draws: np.ndarray) -> dict[str, Any]:
    standard = (draws - draws.mean(0)) / draws.std(0)
    return {
        "mean": draws.mean(0),
        "sd": draws.std(0),
        "skew": (standard**3).mean(0),
        "excess_kurtosis": (standard**4).mean(0) - 3,
    }


def _energy_distance(z: np.ndarray, w: np.ndarray, *, num_blocks: int = 10) -> tuple[float, float]:
    """The mean of unbiased estimates, one per block of draws, and its standard error."""
    distances = []
    for a, b in zip(np.array_split(z, num_blocks), np.array_split(w, num_blocks), strict=True):
        if min(len(a), len(b)) < 2:
            return float("nan"), float("nan")
        between = cdist(a, b).mean()
        distances.append(2 * between - pdist(a).mean() - pdist(b).mean())
    return float(np.mean(distances)), float(np.std(distances, ddof=1) / np.sqrt(num_blocks))

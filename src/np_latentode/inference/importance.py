"""Importance weights: Pareto k of a guide, bounds of log p(x), and elpd."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.utils import ELPDDataLOO
from jaxtyping import Array
from numpyro.distributions import Distribution
from numpyro.infer import log_likelihood
from scipy.special import logsumexp
from xarray import DataArray

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import draw_and_score, posterior
from np_latentode.inference.density import check_q, log_joint, with_networks_fixed
from np_latentode.inference.pareto import FEWEST, TRUSTED, most_trusted, smooth
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["ImportanceReport", "elpd", "importance"]


@dataclass(frozen=True)
class ImportanceReport:
    """What importance weights p(x, z0) / q(z0 | x) say about a guide; one entry per trajectory.

    `pareto_k` up to 0.5 is good, and 0 if all weights agree. Above 0.7 the guide misses part of the
    posterior. It is infinite if too few weights are positive. `elbo` is E_q[log weight] and `bound`
    the log of the mean weight. Both are lower bounds of log p(x) in expectation; `bound` is tight
    if the guide is good (Burda et al. 2016). `gap` is bound - elbo, an estimate of KL(q(z0 | x) ||
    p(z0 | x)).
    """

    num_samples: int
    pareto_k: np.ndarray
    elbo: np.ndarray
    bound: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        return self.bound - self.elbo

    def __str__(self) -> str:
        good = np.mean(self.pareto_k <= TRUSTED)
        return (
            f"Pareto k median {np.median(self.pareto_k):.2f}, worst {self.pareto_k.max():.2f}, "
            f"{good:.0%} up to {TRUSTED}, of {len(self.pareto_k)} trajectories\n"
            f"log p(x) at least {self.bound.mean():.3f}, ELBO {self.elbo.mean():.3f}, gap median "
            f"{np.median(self.gap):.3f}, worst {self.gap.max():.3f}"
        )


def importance(
    rng_key: Array,
    fitted: Fitted,
    trajectories: Trajectories,
    *,
    q: Distribution | None = None,
    num_samples: int = 1_000,
) -> ImportanceReport:
    """Weighs a guide's draws by the model's density (Yao et al. 2018).

    log w_s = log p(x, z0_s) - log q(z0_s | x),  z0_s ~ q(. | x)

    Args:
        rng_key: a key.
        fitted: the fit.
        trajectories: the contexts; all observations of each are scored.
        q: the distribution of the draws, such as `refine(...).q`. Default: the guide's posterior.
        num_samples: draws per trajectory, at least 25, as a distribution is fitted to the tail of
            their weights.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    _check_num_samples(num_samples)
    trajectories, _ = check_data(fitted.model, trajectories)
    log_weights, _ = _log_weights(rng_key, fitted, trajectories, None, q, num_samples)
    _, pareto_k, _ = smooth(log_weights)
    # Not smoothed: smoothed weights would give no lower bound.
    bound = np.asarray(logsumexp(log_weights, axis=0)) - np.log(num_samples)
    return ImportanceReport(
        num_samples=num_samples, pareto_k=pareto_k, elbo=log_weights.mean(0), bound=bound
    )


def elpd(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories | None = None,
    *,
    q: Distribution | None = None,
    num_samples: int = 1_000,
) -> ELPDDataLOO:
    """The expected log predictive density of trajectories, for `az.compare`.

    elpd_i = log p(x_i),  or with a target  log p(target_i | context_i),

    by Pareto-smoothed importance weights of the guide's draws (Vehtari et al. 2024). It scores the
    model and not the guide. Given the networks, trajectories are independent: for
    trajectories that were not trained on, log p(x_i) is the leave-one-out score of `az.loo`. It
    avoids the weights 1 / p(x_i | z0_i) of `az.loo`, which can hardly ever be trusted for a whole
    trajectory.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations.
        target: observations of the same trajectories to forecast. Default: none, and the context
            itself is scored.
        q: the distribution of the draws given the context, such as `refine(...).q` where Pareto k
            is large. Default: the guide's posterior.
        num_samples: draws per trajectory, at least 25.

    Returns:
        ArviZ's own result, pointwise, with Pareto k and one entry per trajectory. `p`, the
        effective number of parameters, is how much the log density rises when the model has seen
        the data.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    _check_num_samples(num_samples)
    context, target = check_data(fitted.model, context, target)
    log_weights, log_liks = _log_weights(rng_key, fitted, context, target, q, num_samples)
    before, pareto_k = np.zeros(len(context)), np.zeros(len(context))
    if target is not None:
        _, pareto_k, before = smooth(log_weights)
        log_weights = log_weights + log_liks
    smoothed, last_k, after = smooth(log_weights)
    elpd_i = after - before
    # Without a target the draws are weighted once only.
    pareto_k = last_k if target is None else np.maximum(pareto_k, last_k)
    seen = np.asarray(logsumexp(smoothed + log_liks, axis=0))
    good_k = most_trusted(num_samples)
    return ELPDDataLOO(
        elpd=float(elpd_i.sum()),
        se=float(np.sqrt(len(elpd_i) * elpd_i.var())),
        p=float((seen - elpd_i).sum()),
        n_samples=num_samples,
        n_data_points=len(elpd_i),
        scale="log",
        warning=bool((pareto_k > good_k).any()),
        good_k=good_k,
        elpd_i=DataArray(elpd_i, dims=["trajectory"]),
        pareto_k=DataArray(pareto_k, dims=["trajectory"]),
    )


def _log_weights(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories | None,
    q: Distribution | None,
    num_samples: int,
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, z0) - log q(z0) of draws z0 ~ q, and log p(x | z0), shape (draw, trajectory).

    With a target, the second is log p(target | z0).
    """
    model = fitted.model
    max_steps = max(model.steps_to(x.times, x.offset) for x in (context, target) if x is not None)
    given = check_q(q, model, context)
    of = eqx.filter_jit(posterior)(fitted, context) if given is None else given
    weights, liks = _weigh(rng_key, fitted, context, target, of, num_samples, max_steps)
    return np.asarray(weights, np.float64), np.asarray(liks, np.float64)


# Not `jax.jit`: a distribution of flowjax holds functions, which JAX cannot pass.
@eqx.filter_jit
def _weigh(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    target: Trajectories | None,
    q: Distribution,
    num_samples: int,
    max_steps: int,
) -> tuple[Array, ...]:
    fixed, p = with_networks_fixed(fitted, context, max_steps)
    z0s, log_q = draw_and_score(rng_key, q, num_samples)

    def explain(z0: Array) -> tuple[Array, Array]:
        log_p = log_joint(fixed, context, z0)
        if target is None:
            return log_p, log_p - p.log_prob(z0)
        return log_p, log_likelihood(fixed, {"z0": z0[None]}, context, target)["x"][0]

    log_p, log_lik = jax.lax.map(explain, z0s, batch_size=min(20, num_samples))
    return tuple(jnp.where(jnp.isnan(x), -jnp.inf, x) for x in (log_p - log_q, log_lik))


def _check_num_samples(num_samples: int) -> None:
    check_counts(num_samples=num_samples)
    if num_samples < FEWEST:
        raise ValueError(f"num_samples must be at least {FEWEST}; got {num_samples}.")

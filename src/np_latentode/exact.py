"""The exact posterior of z0 under trained networks, by NUTS on each trajectory."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import arviz_base
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers as handlers
from arviz_stats.sampling_diagnostics import ess, rhat
from jaxtyping import Array, Float
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.infer import NUTS
from numpyro.infer.util import ParamInfo, compute_log_probs
from xarray import DataTree

from np_latentode.guide import AmortizedGuide
from np_latentode.model import LatentODE
from np_latentode.plate import check_context, check_counts
from np_latentode.prediction import check_params, posterior
from np_latentode.trajectories import Trajectories

__all__ = [
    "Convergence",
    "check_exact",
    "convergence",
    "enough_steps",
    "exact_posterior",
    "log_joint",
    "whitening",
    "with_networks_fixed",
]

STATISTICS = {
    "potential_energy": "lp",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "diverging": "diverging",
}
"""What NumPyro calls the statistics of its sampler, and what ArviZ does."""

NUM_STARTS = 10
"""How often a chain may look for a place to start, as in NumPyro's own initialisation."""


def exact_posterior(
    rng_key: Array,
    model: LatentODE,
    params: dict,
    context: Trajectories,
    *,
    guide: AmortizedGuide | None = None,
    num_warmup: int = 500,
    num_samples: int = 1_500,
    num_chains: int = 4,
    max_tree_depth: int = 3,
) -> DataTree:
    """Draws from p(z0 | context) under the trained networks, which a guide only approximates.

    p(z0 | x) ~ p(x, z0),  z0 = T(loc + scale_tril w)

    with T the map from NumPyro's unconstrained space to the prior's support. The No-U-Turn sampler
    (Hoffman & Gelman 2014) moves w. Given the networks trajectories are independent: every chain of
    every trajectory adapts on its own, and all run side by side. The log density is the model's,
    and minus infinity where the ODE cannot be solved.

    Args:
        rng_key: a key.
        model, params: as fitted.
        context: what is known of each trajectory.
        guide: fitted with `params`. Its moments give loc and scale_tril, and chains start at its
            draws. Default: they start at draws from the prior, and w is unconstrained z0 itself.
        num_warmup: steps that adapt and are thrown away, a chain.
        num_samples: steps that are kept, a chain.
        num_chains: chains of each trajectory.
        max_tree_depth: a step takes fewer gradients than 2 ** max_tree_depth. In each step all
            chains wait for the slowest, and in units of the guide few gradients go a long way.

    Returns:
        The groups `posterior`, z0 of dimensions (chain, draw, trajectory, latent), and
        `sample_stats`, all of dimensions (chain, draw, trajectory), where `lp` is the log density
        of unconstrained z0. `convergence` tells whether to believe it.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    counts = dict(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        max_tree_depth=max_tree_depth,
    )
    check_counts(**counts)
    check_context(context, model.scaling)
    max_steps = enough_steps(model, context)
    z0, statistics = _nuts(rng_key, model, guide, params, context, max_steps, *counts.values())
    statistics["lp"] = -statistics["lp"]
    names = ["trajectory"]
    return arviz_base.from_dict(
        {
            "posterior": {"z0": np.asarray(z0)},
            "sample_stats": {name: np.asarray(value) for name, value in statistics.items()},
        },
        dims={"z0": [*names, "latent"]} | dict.fromkeys(STATISTICS.values(), names),
    )


@partial(jax.jit, static_argnums=(1, 2, 5, 6, 7, 8, 9))
def _nuts(
    rng_key, model, guide, params, context, max_steps, num_warmup, num_samples, num_chains, depth
):
    start_key, moments_key, run_key = jax.random.split(rng_key, 3)
    fitted, prior = with_networks_fixed(model, params, context, max_steps)
    to_support = biject_to(prior.support)
    if guide is None:
        q, loc = prior, jnp.zeros(to_support.inverse_shape(prior.shape()))
        scale_tril = jnp.broadcast_to(jnp.eye(loc.shape[-1]), (*loc.shape, loc.shape[-1]))
    else:
        q = posterior(guide, params, context)
        loc, scale_tril = whitening(moments_key, q, to_support)
    u = to_support.inv(q.sample(start_key, (num_chains, NUM_STARTS)))
    solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
    starts = jnp.vectorize(solve, signature="(i,i),(i)->(i)")(scale_tril, u - loc)
    # A lane is a chain of a trajectory; one axis of lanes, as two would be traced twice.
    lanes = (num_chains, len(context))
    starts = starts.swapaxes(1, 2).reshape(-1, NUM_STARTS, loc.shape[-1])

    def run(rng_key, starts, loc, scale_tril, trajectory):
        # A batch of one. Under vmap all of them become one solve.
        trajectory = jax.tree.map(lambda array: array[None], trajectory)

        def potential(w):
            u = loc + scale_tril @ w
            z0 = to_support(u)
            log_density = log_joint(fitted, trajectory, z0[None])[0]
            return -log_density - to_support.log_abs_det_jacobian(u, z0)

        kernel = NUTS(potential_fn=potential, dense_mass=True, max_tree_depth=depth)

        # `MCMC` would compile the model twice, to warm up and to sample.
        def step(state, _):
            state = kernel.sample(state, (), {})
            z0 = to_support(loc + scale_tril @ state.z)
            return state, (z0, {name: getattr(state, f) for f, name in STATISTICS.items()})

        energies, gradients = jax.lax.map(jax.value_and_grad(potential), starts)
        # The first start that can be left again. With its gradient NUTS compiles no other.
        first = jnp.argmax(jnp.isfinite(energies) & jnp.isfinite(gradients).all(-1))
        start = ParamInfo(starts[first], energies[first], gradients[first])
        state = kernel.init(rng_key, num_warmup, start)
        _, draws = jax.lax.scan(step, state, length=num_warmup + num_samples)
        return jax.tree.map(lambda array: array[num_warmup:], draws)

    each = jax.tree.map(
        lambda array: jnp.broadcast_to(array, (num_chains, *array.shape)).reshape(
            -1, *array.shape[1:]
        ),
        (loc, scale_tril, context),
    )
    draws = jax.vmap(run)(jax.random.split(run_key, len(starts)), starts, *each)
    # From (lane, draw, ...) to (chain, draw, trajectory, ...).
    return jax.tree.map(lambda array: array.reshape(*lanes, *array.shape[1:]).swapaxes(1, 2), draws)


@dataclass(frozen=True)
class Convergence:
    """Whether the chains of each trajectory agree.

    `rhat` and `ess` are ArviZ's rank-normalized split R-hat and bulk effective sample size
    (Vehtari et al. 2021), shape (trajectory, latent); `divergences` are counts, (trajectory,).
    """

    num_chains: int
    num_draws: int
    rhat: np.ndarray
    ess: np.ndarray
    divergences: np.ndarray

    def __str__(self) -> str:
        worst, least = self.rhat.max(-1), self.ess.min(-1)
        return (
            f"{self.num_chains} chains of {self.num_draws} draws for each of {len(worst)} "
            f"trajectories: worst R-hat {worst.max():.4f} (trajectory {worst.argmax()}), "
            f"least ESS {least.min():.0f} (trajectory {least.argmin()}), "
            f"{self.divergences.sum()} divergences"
        )


def convergence(exact: DataTree) -> Convergence:
    """R-hat, effective sample sizes and divergences of what `exact_posterior` returned."""
    z0 = exact["posterior"]["z0"]
    return Convergence(
        num_chains=z0.sizes["chain"],
        num_draws=z0.sizes["draw"],
        rhat=np.asarray(rhat(exact)["z0"]),
        ess=np.asarray(ess(exact)["z0"]),
        divergences=np.asarray(exact["sample_stats"]["diverging"]).sum((0, 1)),
    )


def check_exact(exact: DataTree, context: Trajectories) -> DataTree:
    """Refuses draws that are of other trajectories.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    dims = ("chain", "draw", "trajectory", "latent")
    held = exact.children.get("posterior", {}) if isinstance(exact, DataTree) else {}
    z0 = held.get("z0")
    if z0 is None or z0.dims != dims or z0.sizes["trajectory"] != len(context):
        came = "none" if z0 is None else dict(z0.sizes)
        raise ValueError(
            f"exact must hold draws of z0, dimensions {dims}, of as many trajectories as the "
            f"context, {len(context)}; got {came}."
        )
    return exact


def enough_steps(model: LatentODE, context: Trajectories) -> int:
    """How large `max_steps` has to be: a solver's buffer costs more than the steps it takes."""
    solver = model.solver
    if solver.dt0 is None or not isinstance(solver.controller, diffrax.ConstantStepSize):
        return solver.max_steps
    end = float(model.scaling.scale_times(context.times).max())
    needed = math.ceil(end / solver.dt0) + 1
    # A power of two, as another number is another program to compile.
    return min(solver.max_steps, 2 ** math.ceil(math.log2(needed)))


def with_networks_fixed(
    model: LatentODE, params: dict, context: Trajectories, max_steps: int
) -> tuple[Any, dist.Distribution]:
    """The model with its networks fixed, whose failed solves are NaN, and its prior.

    Raises:
        ValueError: if a parameter is missing, or z0 is not the one site to infer.
    """
    model = copy.copy(model)
    model.solver = replace(model.solver, max_steps=max_steps, throw=False)
    check_params(params, model)
    fitted = handlers.substitute(model, data=params)
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        fitted(context)
    latent = [n for n, s in sites.items() if s["type"] == "sample" and not s["is_observed"]]
    if latent != ["z0"]:
        raise ValueError(f"model must have z0 as its only unobserved site; got {latent}.")
    return fitted, sites["z0"]["fn"]


def log_joint(
    fitted: Any, context: Trajectories, z0: Float[Array, "trajectory latent"]
) -> Float[Array, " trajectory"]:
    """log p(x, z0), one a trajectory, as the model has it."""
    log_probs, _ = compute_log_probs(fitted, (context,), {}, {"z0": z0}, sum_log_prob=False)
    terms = [value.reshape(-1, len(context)).sum(0) for value in log_probs.values()]
    total = jnp.stack(terms).sum(0)
    return jnp.where(jnp.isnan(total), -jnp.inf, total)


def whitening(
    rng_key: Array, q: dist.Distribution, to_support: Transform, num_draws: int = 1_000
) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance of unconstrained z0, one a trajectory.

    By the delta method, exact where T is linear. The moments of T^-1 of each draw would split a
    posterior in two that lies across the cut of an angle.
    """
    draws = jnp.asarray(q.sample(rng_key, (num_draws,)))
    centre = to_support.inv(draws.mean(0))
    slope = jax.vmap(jax.jacfwd(to_support))(centre)
    gaps = draws - to_support(centre)
    steps = jnp.einsum("nuz,snz->snu", jnp.linalg.pinv(slope), gaps)
    mean = steps.mean(0)
    covariance = jnp.einsum("snu,snv->nuv", steps - mean, steps - mean) / num_draws
    # Rounding must not make it indefinite where coordinates are all but collinear.
    tril = jnp.linalg.cholesky(covariance * (1 + 1e-5 * jnp.eye(covariance.shape[-1])))
    return jnp.asarray(centre + mean), tril

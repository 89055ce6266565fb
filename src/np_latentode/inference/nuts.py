"""The exact posterior of z0 under trained networks, by NUTS on each trajectory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from arviz_stats.base.array import array_stats
from arviz_stats.sampling_diagnostics import ess, rhat
from jaxtyping import Array
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.infer import NUTS
from numpyro.infer.util import ParamInfo
from tqdm import tqdm
from xarray import DataTree

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.inference.density import (
    check_q,
    enough_steps,
    log_joint,
    whitening,
    with_networks_fixed,
)
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_data

__all__ = ["Convergence", "check_exact", "convergence", "exact_posterior"]

STATISTICS = {
    "potential_energy": "lp",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "diverging": "diverging",
}
"""What NumPyro calls the statistics of its sampler, and what ArviZ does."""

STEPS_AT_ONCE = 100
"""Between two looks at the progress bar."""

TARGET_ACCEPT = 0.9
"""Of spirals' narrow posteriors: a fifth of the divergences of 0.8."""

CONVERGED, NUM_REPEATS = 1.01, 2
"""R-hat that chains should not exceed (Vehtari et al. 2021), and how often those that do go on."""

NUM_STARTS = 10
"""How often a chain may look for a place to start, as in NumPyro's own initialisation."""


def exact_posterior(
    rng_key: Array,
    model: LatentODE,
    params: dict,
    context: Trajectories,
    *,
    q: dist.Distribution | None = None,
    num_warmup: int = 500,
    num_samples: int = 1_000,
    num_chains: int = 4,
    max_tree_depth: int = 3,
    progress: bool = True,
) -> DataTree:
    """Draws from p(z0 | context) under the trained networks, which a guide only approximates.

    p(z0 | x) ~ p(x, z0),  z0 = T(loc + scale_tril w)

    with T the map from NumPyro's unconstrained space to the prior's support. The No-U-Turn sampler
    (Hoffman & Gelman 2014) moves w. Given the networks trajectories are independent: every chain of
    every trajectory adapts on its own, and all run side by side. Chains of trajectories whose R-hat
    exceeds 1.01 go on, at most twice, warmed up anew, each time twice as long and with deeper
    trees; of their draws every second is kept, then every fourth. The log density is the model's,
    and minus infinity where the ODE cannot be solved.

    Args:
        rng_key: a key.
        model, params: as fitted.
        context: what is known of each trajectory.
        q: over z0, one a trajectory: `posterior(guide, params, context)`, or `refine(...).q`. Its
            moments give loc and scale_tril, and chains start at its draws. Default: they start at
            draws from the prior, and w is unconstrained z0 itself.
        num_warmup: steps that adapt and are thrown away, a chain.
        num_samples: steps that are kept, a chain.
        num_chains: chains of each trajectory.
        max_tree_depth: a step takes fewer gradients than 2 ** max_tree_depth. In each step all
            chains wait for the slowest, and in units of the guide few gradients go a long way.
        progress: whether to show a progress bar.

    Returns:
        The groups `posterior`, z0 of dimensions (chain, draw, trajectory, latent), and
        `sample_stats`, all of dimensions (chain, draw, trajectory), where `lp` is the log density
        of unconstrained z0. `convergence` tells whether to believe it.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_counts(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        max_tree_depth=max_tree_depth,
    )
    check_data(model, context)
    fixed = model, params, enough_steps(model, context)
    tuned = num_warmup, max_tree_depth
    start_key, *again_keys = jax.random.split(rng_key, 1 + NUM_REPEATS)
    state, lanes = _start(
        start_key, context, check_q(q, model, context), num_chains, *fixed, *tuned
    )
    state, draws = _run(state, lanes, num_samples, *fixed, *tuned, progress=progress)
    for repeat, again_key in enumerate(again_keys, start=1):
        z0 = draws["z0"].reshape(num_samples, num_chains, len(context), -1)
        rhats: Any = array_stats.rhat(z0, chain_axis=1, draw_axis=0)
        # All chains of a trajectory, or none.
        unsure = np.flatnonzero(np.tile(rhats.max(-1) > CONVERGED, num_chains))
        if not len(unsure):
            break
        longer, some = 2**repeat, _at(unsure, lanes)
        tuned = longer * num_warmup, max_tree_depth + repeat
        begun = _again(again_key, _at(unsure, state), some, *fixed, *tuned)
        ended, more = _run(begun, some, longer * num_samples, *fixed, *tuned, progress=progress)
        state = _replaced(unsure, state, ended)
        for name, values in more.items():
            draws[name][:, unsure] = values[::longer]
    groups = {
        name: np.moveaxis(
            values.reshape(num_samples, num_chains, len(context), *values.shape[2:]), 0, 1
        )
        for name, values in draws.items()
    }
    groups["lp"] *= -1
    names = ["trajectory"]
    return arviz_base.from_dict(
        {"posterior": {"z0": groups.pop("z0")}, "sample_stats": groups},
        dims={"z0": [*names, "latent"]} | dict.fromkeys(STATISTICS.values(), names),
        coords={"trajectory": list(context.names.ids)},
    )


def _at(lanes: np.ndarray, tree: Any) -> Any:
    return jax.tree.map(lambda array: array[lanes], tree)


def _replaced(lanes: np.ndarray, tree: Any, new: Any) -> Any:
    return jax.tree.map(lambda array, some: array.at[lanes].set(some), tree, new)


def _run(
    state: Any, lanes: _Lane, num_samples: int, *sampler: Any, progress: bool
) -> tuple[Any, dict[str, np.ndarray]]:
    """Warms lanes up and draws from them: the last state, and draws of shape (draw, lane, ...)."""
    *_, num_warmup, _ = sampler
    num_steps = num_warmup + num_samples
    at_once, parts = math.gcd(num_steps, STEPS_AT_ONCE), []
    name = f"NUTS, {len(lanes.loc)} chains"
    with tqdm(total=num_steps, disable=not progress, desc=name, unit="step") as bar:
        for _ in range(num_steps // at_once):
            state, some = _advance(state, lanes, at_once, *sampler)
            parts.append(jax.device_get(some))
            bar.update(at_once)
    return state, {n: np.concatenate([p[n] for p in parts])[num_warmup:] for n in parts[0]}


class _Lane(NamedTuple):
    """A chain of a trajectory, which is a batch of one; or many, along a first axis."""

    loc: Array
    scale_tril: Array
    trajectory: Trajectories


def _kernel(lane: _Lane, fitted: Any, to_support: Transform, depth: int) -> tuple[NUTS, Any, Any]:
    """The sampler of a lane, its potential, and where in the support w is."""

    def place(w):
        return to_support(lane.loc + lane.scale_tril @ w)

    def potential(w):
        u = lane.loc + lane.scale_tril @ w
        z0 = jnp.asarray(to_support(u))
        log_density = log_joint(fitted, lane.trajectory, z0[None])[0]
        return -log_density - to_support.log_abs_det_jacobian(u, z0)

    kernel = NUTS(
        potential_fn=potential,
        dense_mass=True,
        max_tree_depth=depth,
        target_accept_prob=TARGET_ACCEPT,
    )
    return kernel, potential, place


@partial(jax.jit, static_argnums=(3, 4, 6, 7, 8))
def _start(rng_key, context, q, num_chains, model, params, max_steps, num_warmup, depth):
    start_key, moments_key, run_key = jax.random.split(rng_key, 3)
    fitted, prior = with_networks_fixed(model, params, context, max_steps)
    to_support = biject_to(prior.support)
    if q is None:
        q, loc = prior, jnp.zeros(to_support.inverse_shape(prior.shape()))
        scale_tril = jnp.broadcast_to(jnp.eye(loc.shape[-1]), (*loc.shape, loc.shape[-1]))
    else:
        loc, scale_tril = whitening(moments_key, q, to_support)
    u = to_support.inv(q.sample(start_key, (num_chains, NUM_STARTS)))
    solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
    starts = jnp.vectorize(solve, signature="(i,i),(i)->(i)")(scale_tril, u - loc)
    starts = starts.swapaxes(1, 2).reshape(-1, NUM_STARTS, loc.shape[-1])
    # One axis of lanes, as two would be traced twice.
    one_each = jax.tree.map(lambda array: array[:, None], context)
    lanes = jax.tree.map(
        lambda array: jnp.broadcast_to(array, (num_chains, *array.shape)).reshape(
            -1, *array.shape[1:]
        ),
        _Lane(loc, scale_tril, one_each),
    )

    def start(rng_key, starts, lane):
        kernel, potential, _ = _kernel(lane, fitted, to_support, depth)
        energies, gradients = jax.lax.map(jax.value_and_grad(potential), starts)
        # The first start that can be left again. With its gradient NUTS compiles no other.
        first = jnp.argmax(jnp.isfinite(energies) & jnp.isfinite(gradients).all(-1))
        start = ParamInfo(starts[first], energies[first], gradients[first])
        return kernel.init(rng_key, num_warmup, start)

    return jax.vmap(start)(jax.random.split(run_key, len(starts)), starts, lanes), lanes


@partial(jax.jit, static_argnums=(3, 5, 6, 7))
def _again(rng_key, states, lanes, model, params, max_steps, num_warmup, depth):
    """The same lanes where they are, to be warmed up anew."""
    one = jax.tree.map(lambda array: array[0], lanes.trajectory)
    fitted, prior = with_networks_fixed(model, params, one, max_steps)

    def start(rng_key, state, lane):
        kernel, _, _ = _kernel(lane, fitted, biject_to(prior.support), depth)
        place = ParamInfo(state.z, state.potential_energy, state.z_grad)
        return kernel.init(rng_key, num_warmup, place)

    return jax.vmap(start)(jax.random.split(rng_key, len(lanes.loc)), states, lanes)


@partial(jax.jit, static_argnums=(2, 3, 5, 6, 7))
def _advance(states, lanes, num_steps, model, params, max_steps, num_warmup, depth):
    one = jax.tree.map(lambda array: array[0], lanes.trajectory)
    fitted, prior = with_networks_fixed(model, params, one, max_steps)
    to_support = biject_to(prior.support)

    def step(state, lane):
        kernel, _, place = _kernel(lane, fitted, to_support, depth)
        # A kernel cannot sample before it has been started; that state is nobody's.
        kernel.init(
            state.rng_key, num_warmup, ParamInfo(state.z, state.potential_energy, state.z_grad)
        )
        state = kernel.sample(state, (), {})
        read = {name: getattr(state, field) for field, name in STATISTICS.items()}
        return state, read | {"z0": place(state.z)}

    # Under vmap, the batches of one are one solve.
    return jax.lax.scan(lambda states, _: jax.vmap(step)(states, lanes), states, length=num_steps)


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

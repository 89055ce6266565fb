"""The exact posterior of z0 under trained networks, by NUTS on each trajectory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import arviz_base
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.infer import NUTS
from numpyro.infer.hmc import HMCState
from numpyro.infer.util import ParamInfo
from tqdm import tqdm
from xarray import DataTree

from np_latentode.data.checks import check_counts
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import posterior
from np_latentode.inference.density import (
    check_q,
    log_joint,
    whitening,
    with_networks_fixed,
)
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_data

__all__ = ["Exact", "draw_exact", "exact_posterior"]

STATISTICS = {
    "potential_energy": "lp",
    "energy": "energy",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
    "diverging": "diverging",
}
"""ArviZ's names of the sampler's statistics, by NumPyro's names."""

STEPS_AT_ONCE = 100
"""Steps between two updates of the progress bar."""

TARGET_ACCEPT = 0.9
"""On the narrow posteriors of spirals, 0.8 gives five times as many divergences."""

CONVERGED, NUM_REPEATS = 1.01, 2
"""The largest R-hat of converged chains (Vehtari et al. 2021); the largest number of extensions."""

NUM_CHAINS = 4

NUM_STARTS = 10
"""Candidates for the start of a chain, as many as in NumPyro's own initialisation."""


@dataclass(frozen=True)
class Exact:
    """Inference by `exact_posterior`, from the guide on: `forecast(..., inference=Exact())`.

    Args:
        num_warmup: warm-up steps of each of four chains.
        num_draws: draws of each chain, of which as many as asked for are taken, evenly spaced.
            There are more if that is needed.
    """

    num_warmup: int = 500
    num_draws: int = 500

    def __call__(
        self, rng_key: Array, fitted: Fitted, context: Trajectories, num_samples: int
    ) -> Array:
        q = posterior(fitted, context)
        lengths = dict(num_warmup=self.num_warmup, num_draws=self.num_draws)
        return jnp.asarray(draw_exact(rng_key, fitted, context, q, num_samples, **lengths))


def draw_exact(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    q: dist.Distribution,
    num_samples: int,
    *,
    num_warmup: int,
    num_draws: int,
) -> np.ndarray:
    """As many draws of z0, shape (draw, trajectory, latent), evenly spaced in four chains.

    Each chain takes `num_draws`, or more if that is needed.
    """
    tree = exact_posterior(
        rng_key,
        fitted,
        context,
        q=q,
        num_warmup=num_warmup,
        num_samples=max(num_draws, -(-num_samples // NUM_CHAINS)),
        num_chains=NUM_CHAINS,
        progress=False,
    )
    z0 = np.asarray(tree["posterior"]["z0"])
    z0 = z0.reshape(-1, *z0.shape[2:])
    return z0[np.arange(num_samples) * len(z0) // num_samples]


def exact_posterior(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    *,
    q: dist.Distribution | None = None,
    num_warmup: int = 500,
    num_samples: int = 1_000,
    num_chains: int = NUM_CHAINS,
    max_tree_depth: int = 3,
    progress: bool = True,
) -> DataTree:
    """Draws from p(z0 | context) under the trained networks, which a guide only approximates.

    p(z0 | x) = p(x, z0) / p(x),  z0 = T(loc + scale_tril w)

    T maps NumPyro's unconstrained space to the prior's support. The No-U-Turn sampler (Hoffman &
    Gelman 2014) moves w. Given the networks, trajectories are independent. So every chain of every
    trajectory adapts on its own, and all run side by side.

    If R-hat of a trajectory exceeds 1.01, its chains are extended, at most twice. Each time they
    are warmed up again, take twice as many steps and grow deeper trees. The first time every second
    draw is kept, the second time every fourth. The log density is minus infinity where the ODE
    cannot be solved.

    Args:
        rng_key: a key.
        fitted: the fit.
        context: the known observations of each trajectory.
        q: a distribution over z0, one per trajectory: `posterior(fitted, context)`, or
            `refine(...).q`. Its moments give loc and scale_tril, and chains start at its draws.
            Default: chains start at draws from the prior, with loc 0 and scale_tril the identity.
        num_warmup: warm-up steps per chain.
        num_samples: draws per chain.
        num_chains: chains per trajectory.
        max_tree_depth: a step takes fewer than 2 ** max_tree_depth gradients. In each step all
            chains wait for the slowest, and in units of the guide few gradients are enough.
        progress: whether to show a progress bar.

    Returns:
        The groups `posterior`, with z0 of dimensions (chain, draw, trajectory, latent), and
        `sample_stats`, of dimensions (chain, draw, trajectory); there `lp` is the log density of
        unconstrained z0. `convergence` says whether the chains agree.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    check_fitted(fitted)
    check_counts(
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        max_tree_depth=max_tree_depth,
    )
    context, _ = check_data(fitted.model, context)
    check_q(q, fitted.model, context)
    start_key, *again_keys = jax.random.split(rng_key, 1 + NUM_REPEATS)
    sampler = _Sampler(
        fitted.model.steps_to(context.times, context.offset), num_warmup, max_tree_depth
    )
    state, lanes = _start(start_key, fitted, context, q, num_chains, sampler)
    state, draws = _run(state, lanes, fitted, num_samples, sampler, progress=progress)
    for repeat, again_key in enumerate(again_keys, start=1):
        unsure = _unsure(draws["z0"], num_chains, len(context))
        if not len(unsure):
            break
        longer, some = 2**repeat, _at(unsure, lanes)
        sampler = sampler._replace(num_warmup=longer * num_warmup, depth=max_tree_depth + repeat)
        begun = _again(again_key, _at(unsure, state), some, fitted, sampler)
        count = longer * num_samples
        ended, more = _run(begun, some, fitted, count, sampler, progress=progress)
        state = _replaced(unsure, state, ended)
        for name, values in more.items():
            draws[name][:, unsure] = values[::longer]
    return _tree(draws, num_chains, context)


def _unsure(z0: np.ndarray, num_chains: int, num_trajectories: int) -> np.ndarray:
    """The lanes of trajectories whose chains disagree: all chains of a trajectory, or none."""
    from arviz_stats.base.array import array_stats  # a forecast by the guide does without

    chains = z0.reshape(len(z0), num_chains, num_trajectories, -1)
    rhats: Any = array_stats.rhat(chains, chain_axis=1, draw_axis=0)
    return np.flatnonzero(np.tile(rhats.max(-1) > CONVERGED, num_chains))


def _tree(draws: dict[str, np.ndarray], num_chains: int, context: Trajectories) -> DataTree:
    """The draws, of shape (draw, lane, ...), in ArviZ's form."""
    groups = {
        name: np.moveaxis(
            values.reshape(len(values), num_chains, len(context), *values.shape[2:]), 0, 1
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


class _Lane(NamedTuple):
    """One chain of one trajectory, a batch of one; or several chains along a first axis."""

    loc: Array
    scale_tril: Array
    trajectory: Trajectories


class _Sampler(NamedTuple):
    """The settings that are compiled into the programs."""

    max_steps: int
    """Of the ODE solver."""
    num_warmup: int
    depth: int
    """The largest depth of a tree."""


def _run(
    state: HMCState,
    lanes: _Lane,
    fitted: Fitted,
    num_samples: int,
    sampler: _Sampler,
    *,
    progress: bool,
) -> tuple[HMCState, dict[str, np.ndarray]]:
    """Warms up the lanes and samples: the last state, and draws of shape (draw, lane, ...)."""
    num_steps = sampler.num_warmup + num_samples
    at_once, parts = math.gcd(num_steps, STEPS_AT_ONCE), []
    name = f"NUTS, {len(lanes.loc)} chains"
    with tqdm(total=num_steps, disable=not progress, desc=name, unit="step") as bar:
        for _ in range(num_steps // at_once):
            state, some = _advance(state, lanes, fitted, at_once, sampler)
            parts.append(jax.device_get(some))
            bar.update(at_once)
    kept = slice(sampler.num_warmup, None)
    return state, {n: np.concatenate([p[n] for p in parts])[kept] for n in parts[0]}


class _Target(NamedTuple):
    """What lanes sample: the model with its networks fixed, and the map to the prior's support."""

    fixed: Callable[..., Any]
    to_support: Transform

    def place(self, lane: _Lane, w: Array) -> Array:
        """z0 at w."""
        return jnp.asarray(self.to_support(lane.loc + lane.scale_tril @ w))

    def potential(self, lane: _Lane, w: Array) -> Array:
        """-log density of w, up to a constant."""
        u = lane.loc + lane.scale_tril @ w
        z0 = jnp.asarray(self.to_support(u))
        log_density = log_joint(self.fixed, lane.trajectory, z0[None])[0]
        return -log_density - self.to_support.log_abs_det_jacobian(u, z0)

    def kernel(self, lane: _Lane, depth: int) -> NUTS:
        return NUTS(
            potential_fn=partial(self.potential, lane),
            dense_mass=True,
            max_tree_depth=depth,
            target_accept_prob=TARGET_ACCEPT,
        )


def _target(fitted: Fitted, lanes: _Lane, max_steps: int) -> _Target:
    one = jax.tree.map(lambda array: array[0], lanes.trajectory)
    fixed, prior = with_networks_fixed(fitted, one, max_steps)
    return _Target(fixed, biject_to(prior.support))


# Not `jax.jit`: a distribution of flowjax holds functions, which JAX cannot pass.
@eqx.filter_jit
def _start(
    rng_key: Array,
    fitted: Fitted,
    context: Trajectories,
    q: dist.Distribution | None,
    num_chains: int,
    sampler: _Sampler,
) -> tuple[HMCState, _Lane]:
    """The first states of all lanes, at points of finite density, and the lanes."""
    start_key, moments_key, run_key = jax.random.split(rng_key, 3)
    fixed, prior = with_networks_fixed(fitted, context, sampler.max_steps)
    target = _Target(fixed, biject_to(prior.support))
    if q is None:
        q, loc = prior, jnp.zeros(target.to_support.inverse_shape(prior.shape()))
        scale_tril = jnp.broadcast_to(jnp.eye(loc.shape[-1]), (*loc.shape, loc.shape[-1]))
    else:
        loc, scale_tril = whitening(moments_key, q, target.to_support)
    u = target.to_support.inv(q.sample(start_key, (num_chains, NUM_STARTS)))
    solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
    starts = jnp.vectorize(solve, signature="(i,i),(i)->(i)")(scale_tril, u - loc)
    starts = starts.swapaxes(1, 2).reshape(-1, NUM_STARTS, loc.shape[-1])
    lanes = _lanes(loc, scale_tril, context, num_chains)

    def start(rng_key: Array, starts: Array, lane: _Lane) -> HMCState:
        potential = partial(target.potential, lane)
        energies, gradients = jax.lax.map(jax.value_and_grad(potential), starts)
        # The first start with finite density and gradient. NUTS compiles no gradient of its own
        # if it is given this one.
        first = jnp.argmax(jnp.isfinite(energies) & jnp.isfinite(gradients).all(-1))
        place = ParamInfo(starts[first], energies[first], gradients[first])
        return target.kernel(lane, sampler.depth).init(rng_key, sampler.num_warmup, place)

    return jax.vmap(start)(jax.random.split(run_key, len(starts)), starts, lanes), lanes


def _lanes(loc: Array, scale_tril: Array, context: Trajectories, num_chains: int) -> _Lane:
    """The lanes along one axis, chain by chain: JAX would trace two axes twice."""
    one_each = jax.tree.map(lambda array: array[:, None], context)
    return jax.tree.map(
        lambda array: jnp.broadcast_to(array, (num_chains, *array.shape)).reshape(
            -1, *array.shape[1:]
        ),
        _Lane(loc, scale_tril, one_each),
    )


@partial(jax.jit, static_argnums=4)
def _again(
    rng_key: Array, states: HMCState, lanes: _Lane, fitted: Fitted, sampler: _Sampler
) -> HMCState:
    """States at the same points, to be warmed up again."""
    target = _target(fitted, lanes, sampler.max_steps)

    def start(rng_key: Array, state: HMCState, lane: _Lane) -> HMCState:
        place = ParamInfo(state.z, state.potential_energy, state.z_grad)
        return target.kernel(lane, sampler.depth).init(rng_key, sampler.num_warmup, place)

    return jax.vmap(start)(jax.random.split(rng_key, len(lanes.loc)), states, lanes)


@partial(jax.jit, static_argnums=(3, 4))
def _advance(
    states: HMCState, lanes: _Lane, fitted: Fitted, num_steps: int, sampler: _Sampler
) -> tuple[HMCState, dict[str, Array]]:
    """The states after `num_steps` steps, and z0 and the statistics after each step."""
    target = _target(fitted, lanes, sampler.max_steps)

    def step(state: HMCState, lane: _Lane) -> tuple[HMCState, dict[str, Array]]:
        kernel = target.kernel(lane, sampler.depth)
        # A kernel must be initialised before it can sample; the state it returns is not used.
        place = ParamInfo(state.z, state.potential_energy, state.z_grad)
        kernel.init(state.rng_key, sampler.num_warmup, place)
        state = kernel.sample(state, (), {})
        read = {name: getattr(state, field) for field, name in STATISTICS.items()}
        return state, read | {"z0": target.place(lane, state.z)}

    # vmap joins the batches of one to one solve.
    return jax.lax.scan(lambda states, _: jax.vmap(step)(states, lanes), states, length=num_steps)

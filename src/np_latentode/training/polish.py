"""Polishing: the model under a posterior of each trajectory's own, then the guide on simulations.

The amortized guide is a compromise between all trajectories, and between parts and wholes. The
model takes its errors for noise, which costs accuracy where trajectories are densely observed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.handlers as handlers
import optax
from jaxtyping import Array, Float
from numpyro.distributions.transforms import biject_to
from numpyro.infer import SVI
from tqdm import tqdm

from np_latentode.data.checks import check_counts
from np_latentode.data.conditioning import Conditioning, random_context
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import prior
from np_latentode.forecasts.densities import run_given
from np_latentode.inference.chunks import in_chunks
from np_latentode.inference.laplace import laplace
from np_latentode.inference.local import LocalNormals
from np_latentode.programs.elbo import OrderedELBO
from np_latentode.programs.fitted import Fitted, check_fitted
from np_latentode.programs.plate import check_call, check_data
from np_latentode.training.optimizer import optimizer
from np_latentode.training.steps import dispatches, steps_of
from np_latentode.training.validation import forecast_score

__all__ = ["polish"]

MODEL_RATE, LOCAL_RATE, GUIDE_RATE = 1e-3, 3e-2, 3e-3
"""The highest learning rates: of the model's networks, of the posteriors of trajectories in units
of their first ones, and of the guide's networks."""

ROWS_AT_ONCE = 256
"""Trajectories whose modes are sought at once, which bounds the memory."""

NUM_SCORED, NUM_DRAWS = 500, 400
"""Simulations by which the old and the new guide are compared, and draws for each. With few draws,
a wide posterior of precise observations would look worse than it is."""


def polish(
    rng_key: Array,
    fitted: Fitted,
    train: Trajectories,
    *,
    num_steps: int = 2_000,
    batch_size: int | None = None,
    conditioning: Conditioning | None = random_context,
    progress: bool = True,
) -> Fitted:
    """Trains a fit's model under exact posteriors, and then its guide to find them.

    1. max sum_i E_q_i(z0) [log p(x_i, z0) - log q_i(z0)]    over the model and all q_i
    2. max E log q(z0 | conditioning(x)),  i uniform, z0 ~ q_i, x ~ p(x | z0)    over the guide

    In the first, each trajectory has a posterior q_i of its own, a full-rank normal that starts at
    its `laplace` one (Hoffman et al. 2013; Kim et al. 2018). The learned noise then no longer
    includes the guide's errors. In the second, pairs (z0, x) are simulated, and the guide learns
    the posterior itself, by the forward KL divergence (the sleep phase of Hinton et al. 1995;
    Papamakarios & Murray 2016). There, codes of the training data take the place of the prior.

    The guide stays as it was if it then forecasts later halves of simulations better: if similar
    trajectories have codes far apart, no simple posterior covers what an early half leaves open.

    It is for many observations per trajectory. With few, the networks overfit the training data:
    compare held-out scores before and after. Short trajectories are padded to the longest.

    The simulations have values where `train` has limits: the guide then sees no stand-ins.

    Args:
        rng_key: a key.
        fitted: the fit.
        train: the training data.
        num_steps: steps of each of the two.
        batch_size: trajectories per step. Default: all.
        conditioning: picks what the guide sees of each simulation.
        progress: whether to show a progress bar.

    Returns:
        The fit with new parameters, and the history of the old one.

    Raises:
        ValueError: naming the argument, the rule and what came.
        FloatingPointError: if none of a hundred steps is finite.
    """
    check_fitted(fitted)
    check_counts(num_steps=num_steps)
    train, _ = check_data(fitted.model, train)
    check_call(train, None, batch_size=batch_size, kl_weight=1.0, scaling=fitted.model.scaling)
    codes_key, model_key, guide_key, score_key = jax.random.split(rng_key, 4)
    to_support = biject_to(prior(fitted).support)
    loc, scale_tril = _first_posteriors(codes_key, fitted, train)
    max_steps = fitted.model.steps_to(train.times, train.offset)
    solved = fitted.model.with_solver(throw=False, max_steps=max_steps)
    local = LocalNormals(loc, scale_tril, to_support)
    svi = SVI(solved, local, _optimizer(num_steps), OrderedELBO(), batch_size=batch_size)
    networks = {name: fitted.params[name] for name in fitted.model.trained}
    title = "model" if progress else None
    params = _run(model_key, svi, networks, num_steps, train, title)
    model = {name: params[name] for name in networks}
    asleep = _Asleep(
        fitted, solved, model, local.of(params), conditioning, batch_size or len(train)
    )
    optim = optimizer(num_steps, learning_rate=GUIDE_RATE)
    svi = SVI(asleep, lambda train: None, optim, OrderedELBO())
    guide = {name: fitted.params[name] for name in fitted.guide.trained}
    title = "guide" if progress else None
    asked = _run(guide_key, svi, guide, num_steps, train, title)
    both = [
        Fitted(fitted.model, fitted.guide, model | params, fitted.history)
        for params in (asked, guide)
    ]
    # Not by the training data, which the old guide has seen.
    data_key, draw_key = jax.random.split(score_key)
    rows = jnp.arange(min(len(train), NUM_SCORED))
    new = jax.jit(asleep.simulate)(data_key, train, rows)[1].split()

    def score(one: Fitted) -> float:
        silent = replace(one, model=solved.with_solver(max_steps=fitted.model.solver.max_steps))
        return forecast_score(draw_key, silent, *new, num_draws=NUM_DRAWS)

    return min(both, key=score)


def _first_posteriors(rng_key: Array, fitted: Fitted, train: Trajectories) -> tuple[Array, Array]:
    """Means and Cholesky factors of the highest mode of each trajectory, over unconstrained z0."""

    def find(key: Array, some: Trajectories) -> tuple[Array, Array]:
        return _highest(laplace(key, fitted, jax.tree.map(jnp.asarray, some)))

    size = min(ROWS_AT_ONCE, len(train))
    found = in_chunks(find, size, rng_key, np.arange(len(train)), (train,))
    return jax.tree.map(jnp.asarray, found)


def _highest(mixture: Any) -> tuple[Array, Array]:
    """The mean and Cholesky factor of the component with the highest weight."""
    modes = mixture.base_dist
    best = jnp.argmax(modes.mixing_distribution.probs, axis=1)[:, None, None]
    loc = jnp.take_along_axis(modes.component_distribution.loc, best, axis=1)
    tril = modes.component_distribution.scale_tril
    return loc[:, 0], jnp.take_along_axis(tril, best[..., None], axis=1)[:, 0]


class _Asleep:
    """The guide as a model of z0 given simulated data."""

    def __init__(
        self,
        fitted: Fitted,
        solved: Any,
        params: dict[str, Any],
        q: tuple[Array, Array],
        conditioning: Conditioning | None,
        batch_size: int,
    ):
        self.guide, self.model, self.params, self.q = fitted.guide, solved, params, q
        self.to_support = biject_to(prior(fitted).support)
        self.conditioning, self.batch_size = conditioning, batch_size

    def __call__(self, train: Trajectories) -> None:
        row_key, data_key, part_key = jax.random.split(jnp.asarray(numpyro.prng_key()), 3)
        rows = jax.random.choice(row_key, len(train), (self.batch_size,), replace=False)
        z0, seen = self.simulate(data_key, train, rows)
        if self.conditioning is not None:
            seen = self.conditioning(part_key, seen)
        with handlers.condition(data={"z0": z0}):
            self.guide(seen)

    def simulate(
        self, rng_key: Array, train: Trajectories, rows: Array
    ) -> tuple[Array, Trajectories]:
        """z0 from the posteriors of some trajectories, and new data at their times."""
        z0_key, x_key = jax.random.split(rng_key)
        some = jax.tree.map(lambda array: array[rows], train)
        loc, tril = (array[rows] for array in self.q)
        e = jax.random.normal(z0_key, loc.shape, loc.dtype)
        z0 = jnp.asarray(self.to_support(loc + jnp.einsum("nij,nj->ni", tril, e)))
        with handlers.block():
            x = run_given(self.model, self.params, 0, z0, some)["x"]["fn"].base_dist
            values = jnp.where(some.mask, x.sample(x_key), 0.0)
        return z0, some.replace_arrays(some.times, values, some.mask)


def _optimizer(num_steps: int) -> optax.GradientTransformation:
    def named(params: dict[str, Any]) -> dict[str, str]:
        return {name: "local" if name.startswith("local_") else "model" for name in params}

    rates = {"model": MODEL_RATE, "local": LOCAL_RATE}
    adams: dict[Any, Any] = {
        name: optax.adam(optax.cosine_decay_schedule(rate, num_steps))
        for name, rate in rates.items()
    }
    clip = optax.chain(optax.zero_nans(), optax.clip_by_global_norm(10.0))
    return optax.chain(clip, optax.multi_transform(adams, named))


def _run(
    rng_key: Array,
    svi: SVI,
    params: dict[str, Any],
    num_steps: int,
    train: Trajectories,
    title: str | None,
) -> dict[str, Float[Array, ...]]:
    """The parameters after these steps of SVI."""
    state = jax.jit(lambda train, params: svi.init(rng_key, train, init_params=params))(
        train, params
    )
    with tqdm(total=num_steps, desc=title, disable=title is None, unit="step") as bar:
        for done, losses in dispatches(steps_of(svi), state, num_steps, train):
            bar.update(len(losses))
            state = done
    return svi.get_params(state)

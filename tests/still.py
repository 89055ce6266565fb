"""A model whose posterior, evidence and forecasts are known in closed form.

z0 ~ N(0, I), x_k = z0 + noise e_k: a state that stands still, observed at some times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx

from np_latentode import (
    AmortizedGuide,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    Scaling,
    Trajectories,
)

NOISE, NUM, NUM_TIMES = 0.5, 300, 6
SCALING = Scaling.identity(2)


class Still(nnx.Module):
    def __call__(self, t, z):
        return jnp.zeros_like(z)


class Same(nnx.Module):
    def __call__(self, z):
        return z


class Summary(nnx.Module):
    """Precision-weighted mean and standard deviation of z0: sufficient, and exact."""

    def __call__(self, times, values, mask):
        precision = 1 + mask.sum(1) / NOISE**2
        loc = jnp.where(mask, values, 0.0).sum(1) / NOISE**2 / precision
        return jnp.concatenate([loc, 1 / jnp.sqrt(precision)], axis=-1)


class Posterior(nnx.Module):
    """The exact one, with its scale and its place off by given factors."""

    def __init__(self, scale=1.0, shift=0.0):
        self.scale, self.shift = scale, shift

    def __call__(self, features):
        loc, sd = jnp.split(features, 2, axis=-1)
        return dist.Normal(loc + self.shift * sd, self.scale * sd).to_event(1)


def make_model(noise=NOISE, prior_loc=0.0):
    def prior():
        return dist.Normal(jnp.full(2, prior_loc), 1.0).to_event(1)

    return LatentODE(
        Still(), Same(), prior=prior, scaling=SCALING, likelihood=GaussianLikelihood(noise)
    )


def make_guide(**off):
    return AmortizedGuide(Summary(), Posterior(**off), scaling=SCALING)


def make_fitted(**off):
    """The model with its exact guide, or one that is off; nothing has parameters to train."""
    return Fitted(MODEL, make_guide(**off), {})


def make_data():
    rng = np.random.default_rng(0)
    z0 = rng.normal(size=(NUM, 1, 2))
    values = z0 + NOISE * rng.normal(size=(NUM, NUM_TIMES, 2))
    values[rng.uniform(size=values.shape) < 0.2] = np.nan
    times = np.broadcast_to(np.arange(NUM_TIMES, dtype=float), (NUM, NUM_TIMES))
    return Trajectories(times, values)


MODEL, DATA, KEY = make_model(), make_data(), jax.random.key(0)
CONTEXT, TARGET = DATA.before(2.5), DATA.after(2.5)

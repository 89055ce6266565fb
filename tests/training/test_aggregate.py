"""A prior that is fitted to codes becomes their aggregate posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx

from np_latentode import (
    AmortizedGuide,
    CirclePrior,
    Fitted,
    LatentODE,
    MixturePrior,
    ProductPrior,
    Scaling,
    StandardNormal,
    Trajectories,
    fit_prior,
    optimizer,
)
from np_latentode.programs.params import initial_params


class First(nnx.Module):
    def __call__(self, times, values, mask):
        return values[:, 0]


class Around(nnx.Module):
    """z0 ~ N(the features, 0.5^2)."""

    def __init__(self):
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(0.5)))

    def __call__(self, features):
        return dist.Normal(features, jnp.exp(self.log_scale[...])).to_event(1)


X = np.random.default_rng(0).normal([1.0, -2.0], [2.0, 0.3], (400, 2))
DATA = Trajectories(np.zeros((len(X), 1)), X[:, None])
GUIDE = AmortizedGuide(First(), Around(), scaling=Scaling.identity(2))
MODEL = LatentODE(
    lambda: lambda t, z: 0 * z,
    lambda: lambda z: z,
    prior=MixturePrior(2, rngs=nnx.Rngs(1)),
    scaling=Scaling.identity(2),
)
FITTED = Fitted(MODEL, GUIDE, initial_params(MODEL, GUIDE))


def learned_normal():
    loc = numpyro.param("loc", jnp.zeros(2))
    scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    return dist.Normal(loc, scale).to_event(1)


NORMAL = {"loc": jnp.zeros(2), "scale": jnp.ones(2)}


def test_a_normal_finds_the_moments_of_the_codes():
    fitted = fit_prior(
        jax.random.key(0),
        learned_normal,
        FITTED,
        DATA,
        conditioning=lambda rng_key, trajectories: trajectories,
        num_steps=2_000,
        optim=optimizer(2_000, learning_rate=2e-2),
        progress=False,
    )
    np.testing.assert_allclose(fitted.params["loc"], X.mean(0), atol=0.02)
    np.testing.assert_allclose(fitted.params["scale"], np.sqrt(X.var(0) + 0.25), rtol=0.03)


def test_all_else_stays_as_it_was():
    fitted = fit_prior(
        jax.random.key(0),
        MixturePrior(2, num_components=2, rngs=nnx.Rngs(0)),
        FITTED,
        DATA,
        num_steps=3,
        progress=False,
    )
    assert set(fitted.params) == set(FITTED.params)
    assert len(fitted.params["prior$params"]["logits"]) == 2
    for name in ("posterior$params", "encoder$params", "noise_scale"):
        assert fitted.params[name] is FITTED.params[name]
    assert fitted.guide is GUIDE
    assert fitted.model.prior is not MODEL.prior
    for part in ("dynamics", "decoder", "likelihood", "scaling", "solver"):
        assert getattr(fitted.model, part) is getattr(MODEL, part)


@pytest.mark.parametrize(
    ("old", "params"),
    [
        (MixturePrior(2, rngs=nnx.Rngs(1)), FITTED.params),
        (StandardNormal(2), FITTED.params | {"prior$params": {}}),
        (learned_normal, {k: v for k, v in FITTED.params.items() if k != "prior$params"} | NORMAL),
    ],
    ids=["module", "module without parameters", "function"],
)
def test_the_old_prior_leaves_no_parameters(old, params):
    before = Fitted(MODEL.with_prior(old), GUIDE, params)
    new = MixturePrior(2, num_components=5, rngs=nnx.Rngs(0))
    after = fit_prior(jax.random.key(0), new, before, DATA, num_steps=1, progress=False)
    assert len(after.params["prior$params"]["logits"]) == 5
    assert not NORMAL.keys() & after.params.keys()


@pytest.mark.slow
def test_the_fit_is_better_than_the_start():
    def mean_log_density(params):
        q = dist.Normal(jnp.asarray(X), 0.5).to_event(1)
        z = q.sample(jax.random.key(1))
        prior = MixturePrior(2, num_components=4, rngs=nnx.Rngs(0))
        state = nnx.state(prior)
        nnx.replace_by_pure_dict(state, params)
        nnx.update(prior, state)
        return float(prior().log_prob(z).mean())

    prior = MixturePrior(2, num_components=4, rngs=nnx.Rngs(0))
    start = nnx.to_pure_dict(nnx.state(prior))
    fitted = fit_prior(jax.random.key(0), prior, FITTED, DATA, num_steps=500, progress=False)
    assert mean_log_density(fitted.params["prior$params"]) > mean_log_density(start) + 0.5


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (
            StandardNormal(3),
            r"prior must have the support of the guide's codes, R\^2; got one on R\^3",
        ),
        (ProductPrior(CirclePrior()), r"R\^2; got one on S\^1"),
        (3, "prior must be a callable"),
    ],
)
def test_a_prior_that_lives_elsewhere_is_refused(prior, message):
    with pytest.raises(ValueError, match=message):
        fit_prior(jax.random.key(0), prior, FITTED, DATA, num_steps=3)


def test_a_name_that_is_taken_is_refused_before_anything_is_fitted(capsys):
    def taken():
        scale = numpyro.param("noise_scale", jnp.ones(2), constraint=dist.constraints.positive)
        return dist.Normal(jnp.zeros(2), scale).to_event(1)

    with pytest.raises(
        ValueError, match=r"prior must give its parameters names.* got \['noise_scale'\]"
    ):
        fit_prior(jax.random.key(0), taken, FITTED, DATA, num_steps=3)
    assert capsys.readouterr().err == ""

"""A fit joins a model, its guide, and parameters that belong to both."""

import pickle
from dataclasses import FrozenInstanceError, replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from numpyro.infer import SVI, Predictive, Trace_ELBO

from np_latentode import (
    GRU,
    Fitted,
    FlowPosterior,
    FlowPrior,
    History,
    MLPDynamics,
    PathODE,
    Solver,
    StandardNormal,
    Trajectories,
    calibration,
    decode,
    elpd,
    exact_posterior,
    fit_prior,
    forecast,
    gaussianization,
    importance,
    latent_ode,
    log_likelihood,
    log_predictive,
    posterior,
    prior,
    prior_predictive,
    refine,
    save,
    simulation_ranks,
    to_datatree,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

TRAIN = Trajectories(np.tile(np.linspace(0, 1, 3), (4, 1)), np.ones((4, 3, 1)))


def make_pair(width=3, depth=1):
    rngs = nnx.Rngs(0)
    dynamics = MLPDynamics(2, width=width, depth=depth, rngs=rngs)
    solver = Solver(diffrax.Euler(), dt0=2.5)
    return latent_ode(TRAIN, latent_dim=2, dynamics=dynamics, solver=solver, rngs=rngs)


MODEL, GUIDE = make_pair()
PARAMS = initial_params(MODEL, GUIDE)


@pytest.fixture(scope="module")
def result():
    svi = SVI(MODEL, GUIDE, optax.adam(1e-2), Trace_ELBO())
    return svi.run(jax.random.key(0), 3, TRAIN, progress_bar=False)


@pytest.mark.slow
def test_the_result_of_svi_is_a_fit_and_forecasts_as_predictive_does(result):
    fitted = Fitted(MODEL, GUIDE, result.params)
    times = np.array([1.5, 2.0])
    ours = forecast(jax.random.key(1), fitted, TRAIN, times, num_samples=400)["x_mean"]
    predictive = Predictive(MODEL, guide=GUIDE, params=result.params, num_samples=400)
    theirs = jax.jit(lambda key: predictive(key, TRAIN, times))(jax.random.key(2))["x_mean"]
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 400)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * error).all()


@pytest.mark.parametrize("missing", sorted(PARAMS.keys() - {"prior$params"}))
def test_missing_parameters_are_refused_by_name(missing):
    rest = {name: value for name, value in PARAMS.items() if name != missing}
    with pytest.raises(ValueError, match=rf"params must be those .* got none of .*{missing[:7]}"):
        Fitted(MODEL, GUIDE, rest)


def test_unknown_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match=r"params must be those .* got \['stale'\] as well"):
        Fitted(MODEL, GUIDE, PARAMS | {"stale": jnp.ones(2)})


@pytest.mark.slow
def test_parameters_of_another_shape_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"params must be those .* shape \(1,\) .*\(2, 1\)"):
        Fitted(MODEL, GUIDE, PARAMS | {"noise_scale": jnp.ones((2, 1))})


@pytest.mark.parametrize("other", [dict(width=4), dict(depth=0), dict(depth=2)], ids=str)
def test_the_parameters_of_another_pair_are_refused(other):
    with pytest.raises(ValueError, match=r"params must be those .*dynamics\$params"):
        Fitted(*make_pair(**other), PARAMS)


def test_parameters_without_leaves_do_not_matter():
    rest = {name: value for name, value in PARAMS.items() if name != "prior$params"}
    assert Fitted(MODEL, GUIDE, rest | {"prior$params": {}}).params.keys() >= rest.keys()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((GUIDE, MODEL, PARAMS), "model must be a LatentODE; got AmortizedGuide"),
        ((MODEL, MODEL, PARAMS), "guide must be an AmortizedGuide; got LatentODE"),
        ((MODEL, GUIDE, [1.0]), "params must be those .*; got list"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Fitted(*arguments)


def test_a_fit_cannot_be_changed_but_replaced():
    fitted = Fitted(MODEL, GUIDE, PARAMS)
    with pytest.raises(FrozenInstanceError):
        fitted.params = {}
    other = replace(fitted, model=MODEL.with_solver(throw=False))
    assert not other.model.solver.throw
    assert other.params is fitted.params


def test_a_fit_is_a_pytree_of_its_parameters(result):
    fitted = Fitted(MODEL, GUIDE, result.params, History(losses=np.ones(3)))
    leaves = jax.tree.leaves(fitted)
    assert len(leaves) == len(jax.tree.leaves(result.params))
    again = jax.tree.map(lambda leaf: leaf, fitted)
    assert (again.model, again.guide) == (MODEL, GUIDE)
    assert len(again.history.losses) == 0
    eager, jitted = posterior(fitted, TRAIN), jax.jit(posterior)(fitted, TRAIN)
    np.testing.assert_allclose(eager.mean, jitted.mean, rtol=1e-4, atol=1e-5)


def test_other_parameters_compile_no_new_program(result):
    compiled = jax.jit(lambda fitted: posterior(fitted, TRAIN).mean)
    one = compiled(Fitted(MODEL, GUIDE, result.params))
    other = compiled(Fitted(MODEL, GUIDE, PARAMS))
    assert compiled._cache_size() == 1
    assert np.all(one != other)


KEY = jax.random.key(0)
TAKING_A_FIT = {
    "prior": lambda f: prior(f),
    "posterior": lambda f: posterior(f, TRAIN),
    "forecast": lambda f: forecast(KEY, f, TRAIN, [1.0]),
    "prior_predictive": lambda f: prior_predictive(KEY, f, [1.0]),
    "decode": lambda f: decode(KEY, f, jnp.zeros((1, len(TRAIN), 2)), [1.0]),
    "log_likelihood": lambda f: log_likelihood(f, jnp.zeros((1, len(TRAIN), 2)), TRAIN),
    "log_predictive": lambda f: log_predictive(f, jnp.zeros((1, len(TRAIN), 2)), TRAIN, TRAIN),
    "calibration": lambda f: calibration(KEY, f, TRAIN, TRAIN),
    "simulation_ranks": lambda f: simulation_ranks(KEY, f, TRAIN),
    "importance": lambda f: importance(KEY, f, TRAIN),
    "elpd": lambda f: elpd(KEY, f, TRAIN),
    "refine": lambda f: refine(KEY, f, TRAIN),
    "exact_posterior": lambda f: exact_posterior(KEY, f, TRAIN),
    "to_datatree": lambda f: to_datatree(KEY, f, TRAIN),
    "gaussianization": lambda f: gaussianization(KEY, f, TRAIN),
    "save": lambda f: save("nowhere", f),
    "fit_prior": lambda f: fit_prior(KEY, StandardNormal(2), f, TRAIN),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("call", TAKING_A_FIT.values(), ids=TAKING_A_FIT.keys())
def test_what_is_no_fit_is_refused_wherever_a_fit_is_taken(call):
    with pytest.raises(ValueError, match=r"^fitted must be a Fitted, .*; got dict"):
        call(PARAMS)


@pytest.mark.parametrize("name", ["defaults", "flows", "path ODE", "GRU"])
def test_model_guide_and_fit_can_be_pickled(name):
    """As multiprocessing, joblib and Ray do."""
    rngs, given = nnx.Rngs(0), {}
    if name == "flows":
        given = dict(
            prior=FlowPrior(2, num_layers=1, rngs=rngs),
            posterior=FlowPosterior(16, 2, num_layers=1, rngs=rngs),
        )
    elif name != "defaults":
        kind = {"path ODE": PathODE, "GRU": GRU}[name]
        given = dict(encoder=kind(TRAIN.num_features, rngs=rngs))
    model, guide = latent_ode(TRAIN, latent_dim=2, rngs=rngs, **given)
    fitted = Fitted(model, guide, initial_params(model, guide))
    again, train = pickle.loads(pickle.dumps((fitted, TRAIN)))
    q, p = posterior(fitted, TRAIN), posterior(again, train)
    np.testing.assert_array_equal(p.sample(KEY), q.sample(KEY))
    np.testing.assert_array_equal(train.given.times, TRAIN.given.times)

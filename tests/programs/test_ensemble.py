"""An ensemble mixes the forecasts of its members by their weights."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    BernoulliLikelihood,
    Ensemble,
    Fitted,
    GaussianLikelihood,
    MLPDynamics,
    Scaling,
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
    simulation_ranks,
    to_datatree,
)
from np_latentode.forecasts.mixture import join
from np_latentode.forecasts.prediction import draw_observed, forecast_observed
from np_latentode.programs.ensemble import kinds, shares, with_solver
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
TIMES = np.tile(np.linspace(0, 1, 5), (4, 1))
DATA = Trajectories(TIMES, np.sin(3 * TIMES + np.arange(4)[:, None])[..., None])
CONTEXT, TARGET = DATA.before(0.6), DATA.after(0.6)
LATER = [1.5, 2.0]


def untrained(seed, latent_dim=2, **given):
    rngs = nnx.Rngs(seed)
    dynamics = MLPDynamics(latent_dim, width=3, depth=1, rngs=rngs)
    solver = Solver(diffrax.Euler(), dt0=2.5)
    model, guide = latent_ode(
        DATA, latent_dim=latent_dim, dynamics=dynamics, solver=solver, rngs=rngs, **given
    )
    return Fitted(model, guide, initial_params(model, guide))


ONE = untrained(0)
# The programs of the first, with parameters of their own.
OTHER, THIRD = (replace(ONE, params=untrained(seed).params) for seed in (1, 2))
WIDER = untrained(3, latent_dim=3)
ENSEMBLE = Ensemble((ONE, OTHER, THIRD), [0.5, 0.0, 0.5])

FORECASTS = {
    "forecast": lambda f: forecast(KEY, f, CONTEXT, LATER, num_samples=6),
    "forecast_observed": lambda f: forecast_observed(KEY, f, CONTEXT, TARGET, num_samples=6),
    "prior_predictive": lambda f: prior_predictive(KEY, f, LATER, num_samples=6),
    "calibration": lambda f: vars(calibration(KEY, f, CONTEXT, TARGET, num_samples=6)),
}


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("call", FORECASTS.values(), ids=FORECASTS.keys())
@pytest.mark.parametrize("weights", [(1.0,), (0.0, 1.0)], ids=["alone", "beside one of weight 0"])
def test_the_only_member_that_draws_draws_as_its_fit(call, weights):
    members = (OTHER, ONE)[-len(weights) :]
    expected, found = call(ONE), call(Ensemble(members, weights))
    member = found.pop("member", None)
    assert member is None or set(member.tolist()) == {len(weights) - 1}
    same(expected, found)


def test_draws_are_those_of_the_members_one_after_the_other():
    draws = forecast(KEY, ENSEMBLE, CONTEXT, LATER, num_samples=7)
    assert draws["member"].tolist() == [0] * 4 + [2] * 3
    for k, count, rows in ((0, 4, slice(4)), (2, 3, slice(4, 7))):
        own = forecast(
            jax.random.fold_in(KEY, k), ENSEMBLE.members[k], CONTEXT, LATER, num_samples=count
        )
        same(own, {name: draws[name][rows] for name in own})


@pytest.mark.slow
def test_members_of_different_latent_dimensions_forecast_without_z0():
    mixed = Ensemble((ONE, WIDER))
    for name in ("forecast", "forecast_observed", "prior_predictive"):
        draws = FORECASTS[name](mixed)
        assert draws.keys() == {"x", "x_mean", "member"}
        assert len(draws["x"]) == len(draws["member"]) == 6
    assert np.isfinite(calibration(KEY, mixed, CONTEXT, TARGET, num_samples=6).crps).any()


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 200, 499])
@pytest.mark.parametrize(
    "weights", [[0.2] * 5, [1 / 3] * 3, [0.6, 0.3, 0.1], [0.0, 1.0], [1e-9, 1 - 1e-9, 0.0]], ids=str
)
def test_every_draw_is_allotted_and_none_to_weight_0(weights, num_samples):
    ensemble = Ensemble((ONE,) * len(weights), weights)
    counts = ensemble.allot(num_samples)
    assert counts.sum() == num_samples
    assert (np.abs(counts - np.array(weights) * num_samples) < 1).all()
    assert not counts[np.array(weights) == 0].any()


def test_the_largest_remainders_get_the_last_draws():
    assert Ensemble((ONE,) * 3, [0.5, 0.3, 0.2]).allot(7).tolist() == [4, 2, 1]
    assert Ensemble((ONE,) * 3).allot(4).tolist() == [2, 1, 1]


@pytest.mark.slow
def test_the_log_density_of_an_ensemble_is_that_of_the_mixture():
    num_samples, forecast_key = 10, jax.random.split(KEY)[0]
    found = calibration(KEY, ENSEMBLE, CONTEXT, TARGET, num_samples=num_samples)
    terms = []
    for k, count in ((0, 5), (2, 5)):
        member, key = ENSEMBLE.members[k], jax.random.fold_in(forecast_key, k)
        draws = forecast_observed(key, member, CONTEXT, TARGET, num_samples=count)
        # The density given each draw, by itself.
        for z0 in draws["z0"]:
            log_p = log_predictive(member, jnp.asarray(z0)[None], CONTEXT, TARGET)
            terms.append(np.asarray(log_p, float))
    assert len(terms) == num_samples
    expected = np.log(np.mean(np.exp(terms), axis=0))
    mask = np.asarray(TARGET.mask)
    np.testing.assert_allclose(-found.log_score[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_draws_in_double_precision_stay_there():
    """As of times and values far from 0, of which JAX sees differences only."""
    some = shares(KEY, ENSEMBLE, 4)
    x = np.full((2, 1), 1e9 + 1 / 3)
    assert join(some, [{"x": x}, {"x": x}])["x"].tolist() == np.tile(x, (2, 1)).tolist()


def test_each_member_is_inferred_by_itself():
    asked = []

    def inference(rng_key, fitted, context, num_samples):
        asked.append((fitted, num_samples))
        return jnp.zeros((num_samples, len(context), fitted.model.latent_dim))

    mixed = Ensemble((ONE, WIDER), [0.75, 0.25])
    forecast(KEY, mixed, CONTEXT, LATER, inference=inference, num_samples=4)
    assert asked == [(ONE, 3), (WIDER, 1)]
    asked.clear()
    some, draws = draw_observed(KEY, mixed, CONTEXT, TARGET, inference, 4)
    assert asked == [(ONE, 3), (WIDER, 1)]
    assert [one["z0"].shape[0] for one in draws] == [share.num_samples for share in some]


def test_members_that_share_a_model_share_it_after_another_solver():
    changed = with_solver(ENSEMBLE, throw=False)
    assert len({member.model for member in changed.members}) == 1
    assert not changed.members[0].model.solver.throw
    assert changed.weights.tolist() == ENSEMBLE.weights.tolist()
    assert not with_solver(ONE, throw=False).model.solver.throw


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, 0.4], r"sum to 1, one per member; got \[0.5, 0.4\]"),
        ([1.5, -0.5], r"weights must be 2 nonnegative numbers .*; got \[1.5, -0.5\]"),
        ([np.nan, 1.0], r"got \[nan, 1.0\]"),
        ([1.0], r"weights must be 2 .*; got shape \(1,\)"),
        ("even", "weights must be 2 .*; got 'even'"),
    ],
)
def test_weights_that_are_no_distribution_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        Ensemble((ONE, OTHER), weights)


def test_weights_are_normalised_where_they_were_rounded():
    rounded = np.array([0.3, 0.7], np.float32)
    assert Ensemble((ONE, OTHER), rounded).weights.sum() == pytest.approx(1, abs=1e-15)
    assert Ensemble((ONE, OTHER)).weights.tolist() == [0.5, 0.5]


@pytest.mark.usefixtures("untyped")
def test_members_that_are_no_fits_are_refused():
    with pytest.raises(ValueError, match="members must be a tuple of at least one Fitted; got non"):
        Ensemble(())
    with pytest.raises(ValueError, match=r"members must be a tuple .*; got Fitted"):
        Ensemble(ONE)
    with pytest.raises(ValueError, match=r"members\[1\] must be a Fitted.*; got dict"):
        Ensemble((ONE, ONE.params))


def test_members_in_other_units_are_refused():
    other = untrained(0, scaling=Scaling(np.zeros(1), np.full(1, 2.0)))
    with pytest.raises(ValueError, match=r"members must share their units.* model of members\[1\]"):
        Ensemble((ONE, other))


def test_threads_trace_one_after_the_other():
    """NumPyro's stack of handlers is one for all threads."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: initial_params(ONE.model, ONE.guide), range(80)))
    for params in found:
        same(params, ONE.params)


ABOUT_Z0 = {
    "prior": lambda f: prior(f),
    "posterior": lambda f: posterior(f, DATA),
    "decode": lambda f: decode(KEY, f, jnp.zeros((1, 4, 2)), [1.0]),
    "log_likelihood": lambda f: log_likelihood(f, jnp.zeros((1, 4, 2)), DATA),
    "log_predictive": lambda f: log_predictive(f, jnp.zeros((1, 4, 2)), CONTEXT, TARGET),
    "simulation_ranks": lambda f: simulation_ranks(KEY, f, DATA),
    "importance": lambda f: importance(KEY, f, DATA),
    "elpd": lambda f: elpd(KEY, f, DATA),
    "refine": lambda f: refine(KEY, f, DATA),
    "exact_posterior": lambda f: exact_posterior(KEY, f, DATA),
    "to_datatree": lambda f: to_datatree(KEY, f, DATA),
    "gaussianization": lambda f: gaussianization(KEY, f, DATA),
    "fit_prior": lambda f: fit_prior(KEY, StandardNormal(2), f, DATA),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("call", ABOUT_Z0.values(), ids=ABOUT_Z0.keys())
def test_functions_of_z0_ask_for_one_member(call):
    with pytest.raises(ValueError, match=r"one member of the ensemble, such as ensemble.members\["):
        call(ENSEMBLE)


def test_a_feature_has_the_kind_that_all_members_give_it():
    bits = Trajectories(TIMES, np.round(np.abs(DATA.given.values)))
    each = [
        Fitted(*pair, initial_params(*pair))
        for likelihood in (BernoulliLikelihood(), GaussianLikelihood())
        for pair in [latent_ode(bits, latent_dim=2, likelihood=likelihood, rngs=nnx.Rngs(0))]
    ]
    assert [kinds(one) for one in each] == [("bernoulli",), ("numbers",)]
    assert kinds(Ensemble((each[0], each[0]))) == ("bernoulli",)
    assert kinds(Ensemble(tuple(each))) == ("numbers",)

"""Inputs drive forecasts and densities of a model that reads them, whichever way it is asked."""

import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx
from jax import random
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO

from np_latentode import (
    ODERNN,
    DiagonalNormal,
    Fitted,
    GaussianLikelihood,
    InputEncoder,
    Inputs,
    LatentODE,
    LinearDecoder,
    LinearDynamics,
    LinearJump,
    MixedModel,
    OrnsteinUhlenbeckLikelihood,
    Scaling,
    Solver,
    StandardNormal,
    Trajectories,
    amortized,
    candidates,
    choose_degree,
    decode,
    forecast,
    importance,
    latent_ode,
    load,
    log_likelihood,
    log_predictive,
    posterior,
    prior_predictive,
    save,
    sharpen,
    to_datatree,
)
from np_latentode.app.held_out import _forecast_figure
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

TIMES = np.linspace(0.0, 4.0, 5)
NAN = np.nan
RATE, WEIGHT = -0.4, 1.7


def data(count=6, seed=0, static=None):
    """Noise, with two doses each; the last trajectory has none, and one is long."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, 5, (count, 2)), axis=1)
    amounts = rng.uniform(1, 3, (count, 2, 1))
    amounts[-1] = NAN
    x = rng.normal(size=(count, 5, 1))
    x[1:, 2:] = NAN
    times = np.tile(TIMES, (count, 1))
    return Trajectories(times, x, inputs=Inputs(at, amounts, "event"), static=static)


DATA = data()
SCALING = Scaling.fit(DATA, t0=0.0)


def fitted(likelihood=None, prior=None):
    """dz/dt = -0.4 z, z(t+) = z(t) + 1.7 amount, x = z, in scaled units."""
    rngs = nnx.Rngs(0)
    model = LatentODE(
        LinearDynamics(np.array([[RATE]]), np.zeros(1)),
        LinearDecoder(np.eye(1), np.zeros(1)),
        prior=prior or StandardNormal(1),
        scaling=SCALING,
        likelihood=likelihood or GaussianLikelihood(),
        solver=Solver(dt0=0.1),
        jump=LinearJump(np.array([[WEIGHT]])),
    )
    encoder = InputEncoder(ODERNN(3, hidden_dim=4, width=4, rngs=rngs), 2)
    guide = AmortizedGuide(encoder, DiagonalNormal(4, 1, rngs=rngs), scaling=SCALING)
    return Fitted(model, guide, initial_params(model, guide))


def path(z0, inputs, times=TIMES):
    """Its path in closed form; z0 (..., trajectory), times (time,)."""
    t = (np.asarray(times) - SCALING.t0) / SCALING.time_unit
    at = (inputs.given_times - SCALING.t0) / SCALING.time_unit
    amounts = WEIGHT * np.nan_to_num(inputs.given_values[..., 0]) / SCALING.inputs.scale[0]
    gaps = t[None, :, None] - at[:, None]
    given = np.where(gaps > 0, np.exp(RATE * np.maximum(gaps, 0)) * amounts[:, None], 0).sum(-1)
    z = np.asarray(z0)[..., None] * np.exp(RATE * t) + given
    return SCALING.loc + SCALING.scale * z


@pytest.fixture(scope="module")
def plain():
    return fitted()


def test_forecasts_and_decoded_paths_hold_the_doses_past_and_future(plain):
    draws = forecast(random.key(0), plain, DATA.before(1.0), TIMES, num_samples=3)
    expected = path(np.asarray(draws["z0"])[..., 0], DATA.inputs)
    np.testing.assert_allclose(draws["x_mean"][..., 0], expected, rtol=1e-4, atol=1e-4)
    z0 = jnp.ones((1, 6, 1))
    rows = np.tile(TIMES, (6, 1))
    draws = decode(random.key(0), plain, z0, rows, context=DATA)
    np.testing.assert_allclose(draws["x_mean"][0, ..., 0], path(np.ones(6), DATA.inputs), atol=1e-4)
    # Without a context, nothing is given.
    draws = decode(random.key(0), plain, z0, rows)
    none = DATA[np.full(6, 5)].inputs
    np.testing.assert_allclose(draws["x_mean"][0, ..., 0], path(np.ones(6), none), atol=1e-4)


def test_draws_of_the_prior_hold_what_is_given(plain):
    draws = prior_predictive(random.key(0), plain, TIMES, inputs=DATA.inputs[:1], num_samples=3)
    for z0, x in zip(np.asarray(draws["z0"]), draws["x_mean"], strict=True):
        np.testing.assert_allclose(x[:, 0], path(z0, DATA.inputs[:1])[0], atol=1e-4)
    with pytest.raises(ValueError, match="inputs must be of one trajectory, of the kinds of"):
        prior_predictive(random.key(0), plain, TIMES, inputs=DATA.inputs)


def test_densities_of_all_kinds_are_those_of_the_path(plain):
    z0 = jnp.asarray(random.normal(random.key(1), (2, 6, 1)))
    context, target = DATA.split()
    log_p = log_likelihood(plain, z0, target)
    mean = path(np.asarray(z0)[..., 0], DATA.inputs)
    sd = np.asarray(plain.params["noise_scale"])
    x = DATA.given.values[..., 0]
    expected = -0.5 * ((x - mean) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    expected = np.where(np.asarray(target.mask)[..., 0], expected, 0)
    np.testing.assert_allclose(log_p[..., 0], expected, rtol=1e-3, atol=1e-3)
    # By buckets, as the first trajectory is longer than the others.
    found = log_predictive(plain, z0, context, target)
    mixed = np.where(np.asarray(target.mask)[..., 0], np.logaddexp(*expected) - np.log(2), 0)
    np.testing.assert_allclose(found[..., 0], mixed, rtol=1e-3, atol=1e-3)
    assert np.isfinite(importance(random.key(0), plain, DATA, num_samples=25).elbo).all()


def test_under_a_residual_process_doses_count_as_well():
    remembering = fitted(OrnsteinUhlenbeckLikelihood())
    context, target = DATA.split()
    z0 = jnp.asarray(random.normal(random.key(1), (2, 6, 1)))
    other = Inputs(DATA.inputs.given_times, 2 * DATA.inputs.given_values, "event")
    found, changed = (
        log_predictive(remembering, z0, some.with_inputs(inputs), target)
        for some, inputs in ((context, DATA.inputs), (context, other))
    )
    seen = np.asarray(target.mask)[..., 0].any(1)
    assert np.isfinite(np.asarray(found)).all()
    different = np.abs(np.asarray(found - changed)).max((1, 2)) > 1e-4
    assert different[:-1][seen[:-1]].any()
    assert not different[-1]


def test_in_a_batch_each_trajectory_has_its_own_inputs(plain):
    with handlers.seed(rng_seed=3), handlers.trace() as sites:
        plain.model(DATA, batch_size=2)
    rows = np.asarray(sites["trajectory"]["value"])
    z0 = np.asarray(sites["z0"]["value"])[..., 0]
    found = np.asarray(sites["x_mean"]["value"])[..., 0]
    np.testing.assert_allclose(found, path(z0, DATA.inputs[rows]), rtol=1e-4, atol=1e-4)


def test_in_a_window_what_was_given_before_is_part_of_the_state(plain):
    windows = DATA[:1].windows(2.0)
    (start,) = windows.names.starts
    scaling = Scaling.fit(windows)
    model, guide = latent_ode(windows, latent_dim=2, scaling=scaling, rngs=nnx.Rngs(0))
    one = Fitted(model, guide, initial_params(model, guide))
    one.params["jump$params"] = jax.tree.map(lambda g: g + 1.0, one.params["jump$params"])
    inputs = windows.inputs
    assert start == 2
    assert (inputs.given_times < 0).any()
    later = np.where(inputs.given_times[..., None] < 0, NAN, inputs.given_values)
    z0, times = jnp.ones((1, 1, 2)), np.array([[0.5, 2.0]])
    whole, rest = (
        decode(random.key(0), one, z0, times, context=windows.with_inputs(some))["x_mean"]
        for some in (inputs, Inputs(inputs.given_times, later, "event"))
    )
    np.testing.assert_allclose(whole, rest, rtol=1e-5)


@pytest.mark.slow
def test_inference_reads_them(plain):
    other = Inputs(DATA.inputs.given_times, -2 * DATA.inputs.given_values, "event")
    changed = posterior(plain, DATA.with_inputs(other)).mean
    same = posterior(plain, DATA).mean
    moved = np.abs(np.asarray(same - changed))[:, 0] > 1e-6
    before = (DATA.inputs.given_times < np.where(np.arange(6) == 0, 4, 1)[:, None]).any(1)
    np.testing.assert_array_equal(moved, before & (np.arange(6) < 5))
    # The exact posterior is Gaussian: z0 given x less the doses.
    found = sharpen(random.key(0), plain, DATA, num_samples=200, exact=False)
    t = (TIMES - SCALING.t0) / SCALING.time_unit
    rest = (DATA.given.values[..., 0] - path(np.zeros(6), DATA.inputs)) / SCALING.scale
    design = np.where(np.asarray(DATA.mask)[..., 0], np.exp(RATE * t), 0)
    noise = float((np.asarray(plain.params["noise_scale"]) / SCALING.scale)[0])
    precision = 1 + (design**2).sum(1) / noise**2
    mean = (design * rest).sum(1) / noise**2 / precision
    error = (np.asarray(found.z0).mean(0)[:, 0] - mean) * np.sqrt(precision)
    assert np.abs(error).max() < 0.25


@pytest.mark.slow
def test_default_parts_learn_from_doses_and_come_back_from_disk(tmp_path):
    train = data(static=np.arange(6.0)[:, None])
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    assert isinstance(model.jump, LinearJump)
    svi = SVI(model, guide, optax.adam(1e-2), Trace_ELBO(), batch_size=3)
    result = svi.run(random.key(0), 5, train, progress_bar=False)
    assert np.isfinite(result.losses).all()
    # A jump that starts at 0 has a gradient.
    assert np.abs(jax.tree.leaves(result.params["jump$params"])[0]).min() > 0
    trained = Fitted(model, guide, result.params)
    save(tmp_path / "fit", trained)
    again = load(tmp_path / "fit")
    assert isinstance(again, Fitted)
    assert again.scaling.like(trained.scaling)
    one, other = (
        forecast(random.key(0), each, train, TIMES, num_samples=2)["x"] for each in (trained, again)
    )
    np.testing.assert_array_equal(one, other)
    predict = Predictive(model, guide=guide, params=result.params, num_samples=2)
    assert predict(random.key(1), train, TIMES)["x"].shape == (2, 6, 5, 1)
    tree = to_datatree(random.key(2), trained, train, num_samples=3)
    assert np.isfinite(tree["log_likelihood"]["x"].values).all()


@pytest.mark.slow
def test_both_candidates_read_them():
    inputs = Inputs([[0.5, 2.0]] * 6, np.arange(24.0).reshape(6, 2, 2), ("linear", "event"))
    train = Trajectories(DATA.given.times, DATA.given.values, inputs=inputs)
    for name, make in candidates(train).items():
        model, guide = make(train, nnx.Rngs(0))
        assert model.dynamics.num_inputs == 1, name
        assert guide.encoder.num_inputs == 3, name
        assert isinstance(model.jump, LinearJump), name


@pytest.mark.slow
def test_the_guide_of_a_backbone_reads_them_and_comes_back_from_disk(tmp_path):
    train = data(static=np.arange(6.0)[:, None])
    model, guide = candidates(train)["backbone"](train, nnx.Rngs(0))
    params = initial_params(model, guide)
    params = jax.tree.map(lambda a: a + 0.1, params)
    save(tmp_path / "fit", Fitted(model, guide, params))
    again = load(tmp_path / "fit")
    assert isinstance(again, Fitted)
    other = Inputs(train.inputs.given_times, 2 * train.inputs.given_values, "event")
    one, same, changed = (
        np.asarray(posterior(each, some).mean)
        for each, some in (
            (Fitted(model, guide, params), train),
            (again, train),
            (again, train.with_inputs(other)),
        )
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, changed)


@pytest.mark.parametrize("decay", [0.0, 5.0])
def test_a_backbone_starts_as_the_mixed_model_with_jumps_and_its_exact_posterior(decay):
    size = 3 if decay else 2
    root = np.array([[1.0, 0.0, 0.0], [-0.3, 0.8, 0.0], [0.2, 0.1, 0.5]])[:size, :size]
    jumps, mean = np.array([[0.8]]), np.array([0.5, -1.0, 0.3])[:size]
    effects = np.zeros((size, 0))
    mixed = MixedModel(mean, root @ root.T, np.array([0.2]), effects, jumps, decay)
    assert mixed.degree == 1
    rngs = nnx.Rngs(0)
    parts = mixed.parts(width=4, num_readings=2, rngs=rngs)
    parts["solver"] = Solver(diffrax.Tsit5(), dt0=0.02)
    model, guide = latent_ode(DATA, latent_dim=size, scaling=SCALING, rngs=rngs, **parts)
    one = Fitted(model, guide, initial_params(model, guide))
    draws = forecast(random.key(0), one, DATA, TIMES, num_samples=3)
    span = (TIMES - SCALING.t0) / (5 * SCALING.time_unit)
    powers = np.stack([np.ones(5), span, np.exp(-decay * span)][:size], axis=-1)
    at, amounts = DATA.inputs.given_times, np.nan_to_num(DATA.inputs.given_values[..., 0])
    age = (TIMES[:, None] - at[:, None]) / (5 * SCALING.time_unit)
    left = np.where(age > 0, np.exp(-decay * np.maximum(age, 0)) * amounts[:, None], 0.0).sum(-1)
    given = 0.8 * left / SCALING.inputs.scale[0]
    u = mean + np.asarray(draws["z0"]) @ root.T
    expected = SCALING.loc + SCALING.scale * (u @ powers.T + given)
    np.testing.assert_allclose(draws["x_mean"][..., 0], expected, rtol=1e-3, atol=1e-3)
    x = (DATA.given.values[..., 0] - SCALING.loc) / SCALING.scale - given
    known = np.asarray(DATA.mask)[..., 0]
    rows = powers @ root
    precision = np.eye(size) + np.einsum("nk,ka,kb->nab", known, rows, rows) / 0.2**2
    right = np.where(known, x - powers @ mean, 0) @ rows / 0.2**2
    expected = np.linalg.solve(precision, right[..., None])[..., 0]
    np.testing.assert_allclose(posterior(one, DATA).mean, expected, atol=0.02)


def test_the_jumps_of_a_mixed_model_are_found():
    rng, count = np.random.default_rng(0), 200
    times = np.sort(rng.uniform(0, 5, (count, 6)), axis=1)
    at, amounts = rng.uniform(0, 5, (count, 1)), rng.uniform(1, 3, (count, 1))
    u = rng.normal(size=(count, 2)) + np.array([0.5, -0.2])
    x = u[:, :1] + u[:, 1:] * times / 5 + 1.5 * amounts * (times > at)
    x += 0.1 * rng.normal(size=x.shape)
    train = Trajectories(times, x[..., None], inputs=Inputs(at, amounts[..., None], "event"))
    scaling = Scaling.fit(train, t0=0.0)
    found = MixedModel.fit(train, scaling, degree=1).jumps
    np.testing.assert_allclose(found * scaling.scale / scaling.inputs.scale, [[1.5]], rtol=0.03)


@pytest.mark.parametrize("decay", [0.0, 5.0])
def test_how_fast_what_is_given_decays_is_chosen_by_the_data(decay):
    """Two doses of each id; half of the ids get more of it."""
    rng, count = np.random.default_rng(0), 120
    times = np.sort(rng.uniform(0, 20, (count, 8)), axis=1)
    at = np.sort(rng.uniform(0, 15, (count, 2)), axis=1)
    amounts = rng.uniform(1, 3, (count, 2))
    age = times[:, :, None] - at[:, None]
    left = np.where(age > 0, np.exp(-decay / 20 * np.maximum(age, 0)) * amounts[:, None], 0).sum(-1)
    x = rng.normal(size=(count, 1)) + 1.5 * left + 0.1 * rng.normal(size=times.shape)
    train = Trajectories(times, x[..., None], inputs=Inputs(at, amounts[..., None], "event"))
    scaling = Scaling.fit(train, t0=0.0)
    found = choose_degree(train, scaling, most_coefficients=24)
    assert (found.degree, found.decay) == (1, decay)
    jump = found.jumps * scaling.scale / scaling.inputs.scale
    np.testing.assert_allclose(jump, [[1.5]], rtol=0.05)


@pytest.mark.slow
def test_a_forecast_beyond_the_last_row_holds_the_last_value_and_says_so():
    inputs = Inputs([[0.0, 2.0]] * 6, np.arange(12.0).reshape(6, 2, 1), "linear")
    train = Trajectories(DATA.given.times, DATA.given.values, inputs=inputs)
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    one = Fitted(model, guide, initial_params(model, guide))
    with pytest.warns(UserWarning, match=r"inputs \(u_0\) end before the forecast of 6 of 6 ids"):
        held = forecast(random.key(0), one, train, [3.0], num_samples=2)["x_mean"]
    longer = Inputs([[0.0, 2.0, 3.0]] * 6, inputs.given_values[:, [0, 1, 1]], "linear")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = forecast(random.key(0), one, train.with_inputs(longer), [3.0], num_samples=2)[
            "x_mean"
        ]
    np.testing.assert_allclose(held, known, atol=1e-5)


def test_an_input_that_an_id_never_gets_counts_as_the_average_and_the_forecast_says_so():
    values = np.where(np.arange(6)[:, None, None] == 4, NAN, np.arange(12.0).reshape(6, 2, 1))
    train = Trajectories(
        DATA.given.times, DATA.given.values, inputs=Inputs([[0.0, 4.0]] * 6, values, "constant")
    )
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    one = Fitted(model, guide, initial_params(model, guide))
    said = "input u_0 is never given to 1 of 6 ids, and counts as the average"
    with pytest.warns(UserWarning, match=said):
        forecast(random.key(0), one, train, [3.0], num_samples=2)


def test_the_figure_of_a_fit_says_nothing_of_inputs_that_end():
    inputs = Inputs([[0.0, 2.0]] * 6, np.arange(12.0).reshape(6, 2, 1), "linear")
    train = Trajectories(DATA.given.times, DATA.given.values, inputs=inputs)
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    one = Fitted(model, guide, initial_params(model, guide))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = _forecast_figure(random.key(0), one, *train.split(), 0.0, amortized)
    assert len(figure.axes) == 4


TABLE = pd.DataFrame(
    dict(id=["a", "a", "b", "b"], time=[0.0, 1, 0, 2], x=[1.0, 2, 3, 4], dose=[5, NAN, NAN, 6])
)
COLUMNS = dict(id="id", time="time", values="x", inputs={"dose": "event"})


def test_a_plan_adds_rows_and_other_inputs_replace_them(tmp_path):
    known = Trajectories.from_dataframe(TABLE, **COLUMNS)
    plan = pd.DataFrame(dict(id=["b", "b"], time=[3.0, -1.0], dose=[7.0, 8.0]))
    planned = known.with_plan(plan)
    np.testing.assert_array_equal(planned.inputs.times[1], [-1, 2, 3])
    np.testing.assert_array_equal(planned.inputs.values[1, :, 0], [8, 6, 7])
    np.testing.assert_array_equal(planned.inputs.values[0, :, 0], [5, NAN, NAN])
    np.testing.assert_array_equal(planned.values, known.values)
    plan.to_csv(tmp_path / "plan.csv", index=False)
    again = known.with_plan(tmp_path / "plan.csv")
    np.testing.assert_array_equal(again.inputs.values, planned.inputs.values)
    swapped = known[np.array([1, 0])].with_inputs(planned)
    np.testing.assert_array_equal(swapped.inputs.given_values[0], planned.inputs.given_values[1])
    dated = TABLE.assign(time=pd.Timestamp("2020-01-31") + pd.to_timedelta(TABLE["time"], "D"))
    own = Trajectories.from_dataframe(dated, **COLUMNS, since="first", unit="h")
    later = plan.assign(time=pd.to_datetime(["2020-02-03", "2020-02-01"]))
    np.testing.assert_array_equal(own.with_plan(later).inputs.times[1], [24, 48, 72])
    late = Trajectories.from_dataframe(
        dated.assign(time=dated["time"] + pd.Timedelta("1D")), **COLUMNS, since="first", unit="h"
    )
    np.testing.assert_array_equal(own.with_inputs(late).inputs.times[1], [72])


@pytest.mark.usefixtures("untyped")
def test_bad_plans_are_refused():
    known = Trajectories.from_dataframe(TABLE, **COLUMNS)
    plan = pd.DataFrame(dict(id=["b", "c"], time=[3.0, 1.0], dose=[7.0, 8.0]))
    for bad, rule in [
        (plan, "column 'id' must hold ids of the table that the plan is for; got 'c' in row 1"),
        (plan.drop(columns="dose"), r"id, time and inputs must name columns .*got \['dose'\]"),
        (plan.assign(id="b", dose=np.inf), "column 'dose' must be finite"),
        (plan.assign(id="b", time=[NAN, 1]), "column 'time' must hold a time in each row"),
        (
            plan.assign(id="b", time=pd.Timestamp("2020-01-31")),
            "plan must hold numbers in column 'time'",
        ),
    ]:
        with pytest.raises(ValueError, match=rule):
            known.with_plan(bad)
    with pytest.raises(ValueError, match="plan must be of inputs; got one, and the traject"):
        Trajectories.from_dataframe(TABLE, id="id", time="time", values="x").with_plan(plan)
    with pytest.raises(ValueError, match="plan must be for trajectories with different ids"):
        known[np.array([0, 0])].with_plan(plan)
    labelled = Trajectories.from_dataframe(TABLE, id="id", time="time", values="x")
    assert labelled.with_inputs(known.inputs).names.kinds == ("event",)
    with pytest.raises(ValueError, match=r"inputs must be a np_latentode\.Inputs, or .*; got None"):
        known.with_inputs(None)
    with pytest.raises(ValueError, match=r"inputs must be a np_latentode\.Inputs of 2 .*; got int"):
        known.with_inputs(5)
    with pytest.raises(ValueError, match="inputs must be of every id; got none of 'b'"):
        known.with_inputs(known[0])
    with pytest.raises(ValueError, match="inputs must be of the kinds event; got linear"):
        known.with_inputs(Inputs([[0.0]] * 2, [[[1.0]]] * 2, "linear"))


@pytest.mark.usefixtures("untyped")
def test_contexts_without_the_inputs_of_the_training_data_are_refused(plain):
    bare = Trajectories(DATA.given.times, DATA.given.values)
    with pytest.raises(ValueError, match=r"context must have the inputs of the training data, u_0"):
        forecast(random.key(0), plain, bare, TIMES)
    early = DATA.with_inputs(Inputs([[-1.0]] * 6, [[[1.0]]] * 6, "event"))
    with pytest.raises(ValueError, match="the events of context must not be earlier than t0 = 0"):
        forecast(random.key(0), plain, early, TIMES)

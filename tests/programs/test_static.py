"""Static covariates move z0, and are read by dynamics and encoders that ask for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import random
from numpyro.infer import SVI, Predictive, Trace_ELBO

from np_latentode import (
    ODERNN,
    CovariateEncoder,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    LinearDecoder,
    LinearDynamics,
    LinearShift,
    MixedModel,
    MLPDynamics,
    Scaling,
    StandardNormal,
    Trajectories,
    decode,
    forecast,
    latent_ode,
    load,
    posterior,
    prior_predictive,
    save,
    to_datatree,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

TIMES = np.linspace(0.0, 4.0, 5)


def data(count=6, seed=0):
    """Lines whose level and slope depend on two covariates; one entry is missing."""
    rng = np.random.default_rng(seed)
    s = rng.normal(size=(count, 2))
    s[1, 1] = np.nan
    effect = np.nan_to_num(s) @ np.array([[1.0, 0.0], [0.5, -1.0]])
    x = effect[:, :1] + effect[:, 1:] * TIMES + 0.1 * rng.normal(size=(count, 5))
    return Trajectories(np.tile(TIMES, (count, 1)), x[..., None], static=s)


DATA = data()
SCALING = Scaling.fit(DATA)
WEIGHT = np.array([[1.0, -2.0, 0.5], [0.3, 0.7, 0.0]])


def shifted(likelihood=None):
    """dz/dt = A z, x = z_1, z(t0) = z0 + W s: a level and a slope."""
    matrix = np.array([[0.0, 1.0], [0.0, 0.0]])
    return LatentODE(
        LinearDynamics(matrix, np.zeros(2)),
        LinearDecoder(np.array([[1.0, 0.0]]), np.zeros(1)),
        prior=StandardNormal(2),
        scaling=SCALING,
        likelihood=likelihood or GaussianLikelihood(),
        shift=LinearShift(WEIGHT),
    )


def path(z0, s, times=TIMES):
    """Its path in closed form."""
    start = z0 + s @ WEIGHT.T
    scaled = start[..., :1] + start[..., 1:] * (times - SCALING.t0) / SCALING.time_unit
    return SCALING.loc + SCALING.scale * scaled


def test_the_path_starts_at_z0_and_the_shift_of_the_covariates():
    model, guide = shifted(), latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))[1]
    fitted = Fitted(model, guide, initial_params(model, guide))
    s, z0 = np.asarray(SCALING.scale_static(DATA.static)), np.ones((1, 6, 2))
    draws = decode(random.key(0), fitted, jnp.asarray(z0), np.tile(TIMES, (6, 1)), context=DATA)
    np.testing.assert_allclose(draws["x_mean"][0, ..., 0], path(z0[0], s), rtol=1e-4, atol=1e-5)
    # Without a context, covariates are unknown, as if all were missing.
    unknown = np.asarray(SCALING.scale_static(jnp.full((6, 2), np.nan)))
    draws = decode(random.key(0), fitted, jnp.asarray(z0), np.tile(TIMES, (6, 1)))
    expected = path(z0[0], unknown)
    np.testing.assert_allclose(draws["x_mean"][0, ..., 0], expected, rtol=1e-4, atol=1e-5)


def test_draws_of_the_prior_are_of_the_covariates_that_are_asked_for():
    model, guide = shifted(), latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))[1]
    fitted = Fitted(model, guide, initial_params(model, guide))
    draws = prior_predictive(random.key(0), fitted, TIMES, static=[1.0, 2.0], num_samples=4)
    s = np.asarray(SCALING.scale_static(jnp.array([[1.0, 2.0]])))
    expected = path(np.asarray(draws["z0"]), s)
    np.testing.assert_allclose(draws["x_mean"][..., 0], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"static must have shape \(2,\).*got shape \(1,\)"):
        prior_predictive(random.key(0), fitted, TIMES, static=[1.0])


@pytest.mark.slow
def test_in_a_batch_each_trajectory_has_its_own_covariates():
    model, guide = shifted(), latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))[1]
    from numpyro import handlers

    with handlers.seed(rng_seed=3), handlers.trace() as sites:
        model(DATA, batch_size=2)
    rows = np.asarray(sites["trajectory"]["value"])
    s = np.asarray(SCALING.scale_static(DATA.static))[rows]
    found = np.asarray(sites["x_mean"]["value"])[..., 0]
    expected = path(np.asarray(sites["z0"]["value"]), s)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert guide.latent_dim == 2


def mixed_model():
    """A mixed model with effects of three entries on both coefficients."""
    root = np.array([[1.0, 0.0], [-0.3, 0.8]])
    effects = np.array([[0.5, -1.0, 0.2], [1.0, 0.3, 0.0]])
    return MixedModel(np.array([0.5, -1.0]), root @ root.T, np.array([0.2]), effects)


@pytest.fixture(scope="module")
def started():
    mixed, rngs = mixed_model(), nnx.Rngs(0)
    model, guide = latent_ode(
        DATA, latent_dim=2, scaling=SCALING, rngs=rngs, **mixed.parts(width=4, rngs=rngs)
    )
    return mixed, Fitted(model, guide, initial_params(model, guide))


def scaled_powers(times):
    span = (np.asarray(times) - SCALING.t0) / (5 * SCALING.time_unit)
    return np.stack([np.ones_like(span), span], axis=-1)


@pytest.mark.slow
def test_a_backbone_starts_as_the_mixed_model_with_its_effects(started):
    mixed, fitted = started
    s = np.asarray(SCALING.scale_static(DATA.static))
    draws = forecast(random.key(0), fitted, DATA, TIMES, num_samples=3)
    root = np.linalg.cholesky(mixed.covariance)
    u = mixed.mean + s @ mixed.effects.T + np.asarray(draws["z0"]) @ root.T
    expected = SCALING.loc + SCALING.scale * (u @ scaled_powers(TIMES).T)
    np.testing.assert_allclose(draws["x_mean"][..., 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_its_guide_is_the_exact_posterior_given_covariates_and_observations(started):
    mixed, fitted = started
    s, t = np.asarray(SCALING.scale_static(DATA.static)), scaled_powers(TIMES)
    x = (DATA.given.values[..., 0] - SCALING.loc) / SCALING.scale
    rows = t @ np.linalg.cholesky(mixed.covariance)
    precision = np.eye(2) + rows.T @ rows / mixed.noise**2
    mean = x - (mixed.mean + s @ mixed.effects.T) @ t.T
    expected = np.linalg.solve(precision, rows.T @ mean.T / mixed.noise**2).T
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose((posterior(fitted, DATA).mean - expected) / sd, 0, atol=0.05)


def test_the_effects_of_a_mixed_model_are_those_of_statsmodels():
    module = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    rng, count = np.random.default_rng(0), 400
    s = rng.normal(size=(count, 2))
    times = np.sort(rng.uniform(0, 5, (count, 6)), axis=1)
    u = (
        np.array([0.5, -0.2])
        + s @ np.array([[1.0, 0.3], [0.0, -0.5]])
        + rng.normal(size=(count, 2))
    )
    x = u[:, :1] + u[:, 1:] * times / 5 + 0.3 * rng.normal(size=times.shape)
    train = Trajectories(times, x[..., None], static=s)
    scaling = Scaling.fit(train, t0=0.0)
    found = MixedModel.fit(train, scaling, degree=1)
    e = np.asarray(scaling.scale_static(train.static), float)
    t = np.ravel(times - scaling.t0) / (5 * scaling.time_unit)
    powers = np.column_stack([np.ones_like(t), t])
    each = np.repeat(e, 6, axis=0)
    fixed = np.column_stack([powers, each, each * t[:, None]])
    y = ((x - scaling.loc) / scaling.scale).ravel()
    fit = module.MixedLM(y, fixed, np.repeat(np.arange(count), 6), exog_re=powers).fit()
    expected = np.reshape(fit.fe_params[2:], (2, 2))
    np.testing.assert_allclose(found.effects, expected, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"latent_dim": 3}])
def test_default_parts_read_covariates_and_come_back_from_disk(options, tmp_path):
    model, guide = latent_ode(DATA, rngs=nnx.Rngs(0), **options)
    assert isinstance(model.shift, LinearShift)
    params = initial_params(model, guide)
    params["shift$params"] = jax.tree.map(lambda w: w + 0.5, params["shift$params"])
    fitted = Fitted(model, guide, params)
    save(tmp_path / "fit", fitted)
    again = load(tmp_path / "fit")
    assert isinstance(again, Fitted)
    one, other = (
        forecast(random.key(0), each, DATA, TIMES, num_samples=2)["x"] for each in (fitted, again)
    )
    np.testing.assert_array_equal(one, other)
    others = Trajectories(DATA.given.times, DATA.given.values, static=DATA.given_static + 1.0)
    changed = forecast(random.key(0), fitted, others, TIMES, num_samples=2)["x"]
    assert not np.allclose(one, changed)


@pytest.mark.slow
def test_numpyro_trains_and_predicts_with_them():
    model, guide = latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))
    svi = SVI(model, guide, __import__("optax").adam(1e-2), Trace_ELBO(), batch_size=3)
    result = svi.run(random.key(0), 5, DATA, progress_bar=False)
    assert np.isfinite(result.losses).all()
    moved = jax.tree.leaves(result.params["shift$params"])[0]
    assert np.abs(moved).max() > 0
    predict = Predictive(model, guide=guide, params=result.params, num_samples=2)
    assert predict(random.key(1), DATA, TIMES)["x"].shape == (2, 6, 5, 1)
    tree = to_datatree(random.key(2), Fitted(model, guide, result.params), DATA, num_samples=3)
    assert np.isfinite(tree["log_likelihood"]["x"].values).all()


def test_data_without_the_covariates_of_the_training_data_are_refused():
    model, guide = latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0))
    fitted = Fitted(model, guide, initial_params(model, guide))
    bare = Trajectories(DATA.given.times, DATA.given.values)
    rule = "context must have the static covariates of the training data, s_0, s_1"
    with pytest.raises(ValueError, match=rule):
        forecast(random.key(0), fitted, bare, TIMES)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("part", "rule"),
    [
        (
            {"dynamics": MLPDynamics(2, num_covariates=2, rngs=nnx.Rngs(0))},
            r"dynamics must read as many covariates as the scaling has, 3 .*got 2",
        ),
        ({"shift": LinearShift(np.zeros((2, 1)))}, "shift must read as many covariates .*got 1"),
        (
            {"shift": LinearShift(np.zeros((3, 3)))},
            r"shift must return the shape of z0, \(trajectory, 2\); got \(1, 3\)",
        ),
        (
            {"encoder": CovariateEncoder(ODERNN(1, rngs=nnx.Rngs(0)), 4)},
            "encoder must read as many covariates .*got 4",
        ),
    ],
)
def test_parts_that_read_other_covariates_are_refused(part, rule):
    with pytest.raises(ValueError, match=rule):
        latent_ode(DATA, latent_dim=2, rngs=nnx.Rngs(0), **part)

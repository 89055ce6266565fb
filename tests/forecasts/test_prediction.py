import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from numpyro.infer import Predictive

from np_latentode import (
    ODERNN,
    DiagonalNormal,
    Fitted,
    MLPDecoder,
    MLPDynamics,
    Scaling,
    Solver,
    Trajectories,
    forecast,
    latent_ode,
    log_likelihood,
    log_predictive,
    posterior,
)
from np_latentode.forecasts.prediction import forecast_observed

pytestmark = pytest.mark.usefixtures("compile_quickly")

NUM, NUM_TIMES, NUM_FEATURES, LATENT_DIM = 3, 4, 2, 2
T0, UNIT = 1.0, 2.0
TIMES = T0 + UNIT * np.array([0.0, 0.4, 1.0, 3.0])
encoded = []


class NotedEncoder(ODERNN):
    """An encoder that records each of its runs, not only each trace."""

    def __call__(self, times, values, mask):
        features = super().__call__(times, values, mask)
        jax.debug.callback(lambda _: encoded.append(1), features)
        return features


@pytest.fixture(scope="module")
def context():
    rng = np.random.default_rng(0)
    times = T0 + np.sort(rng.uniform(0, UNIT, (NUM, NUM_TIMES)), axis=1)
    values = rng.normal(size=(NUM, NUM_TIMES, NUM_FEATURES))
    values[rng.uniform(size=values.shape) < 0.3] = np.nan
    return Trajectories(times, values)


@pytest.fixture(scope="module")
def fitted(context):
    """A fit whose parameters differ from the initial ones of its modules."""
    rngs = nnx.Rngs(0)
    model, guide = latent_ode(
        context,
        latent_dim=LATENT_DIM,
        dynamics=MLPDynamics(LATENT_DIM, width=8, depth=1, rngs=rngs),
        decoder=MLPDecoder(LATENT_DIM, NUM_FEATURES, width=8, rngs=rngs),
        encoder=NotedEncoder(NUM_FEATURES, hidden_dim=8, width=8, rngs=rngs),
        posterior=DiagonalNormal(8, LATENT_DIM, width=8, rngs=rngs),
        scaling=Scaling(np.array([3.0, -1.0]), np.array([2.0, 0.5]), T0, UNIT),
        solver=Solver(dt0=0.25),
        rngs=rngs,
    )
    params = {
        f"{name}$params": jax.tree.map(
            lambda p: 1.5 * p + 0.1, nnx.to_pure_dict(nnx.state(part, nnx.Param))
        )
        for name, part in (
            ("dynamics", model.dynamics),
            ("decoder", model.decoder),
            ("encoder", guide.encoder),
            ("posterior", guide.posterior),
        )
    }
    return Fitted(model, guide, params | {"noise_scale": jnp.array([0.4, 0.2])})


NUM_SAMPLES = 2_000


@pytest.fixture(scope="module")
def draws(fitted, context):
    encoded.clear()
    draws = forecast(
        jax.random.key(0), fitted, context, TIMES, num_samples=NUM_SAMPLES, draws_at_once=500
    )
    jax.effects_barrier()
    return {name: np.asarray(values, float) for name, values in draws.items()} | {
        "encoded": len(encoded)
    }


@pytest.mark.slow
def test_a_forecast_holds_z0_and_curves_without_and_with_noise(draws):
    shape = (NUM_SAMPLES, NUM, len(TIMES), NUM_FEATURES)
    assert draws["z0"].shape == (NUM_SAMPLES, NUM, LATENT_DIM)
    assert draws["x_mean"].shape == draws["x"].shape == shape


def test_a_forecast_encodes_once_for_all_draws(draws):
    assert draws["encoded"] == 1
    assert np.unique(draws["z0"], axis=0).shape == draws["z0"].shape


def test_z0_is_drawn_from_the_guide(fitted, context, draws):
    q = jax.jit(lambda: posterior(fitted, context).base_dist)()
    z = (draws["z0"] - np.asarray(q.loc)) / np.asarray(q.scale)
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(NUM_SAMPLES)
    assert np.abs((z**2).mean(0) - 1).max() < 5 * np.sqrt(2 / NUM_SAMPLES)


def test_noise_has_the_fitted_scale_and_is_independent(fitted, draws):
    eps = (draws["x"] - draws["x_mean"]) / np.asarray(fitted.params["noise_scale"])
    flat = eps.reshape(NUM_SAMPLES, -1)
    assert np.abs(flat.mean(0)).max() < 5 / np.sqrt(NUM_SAMPLES)
    error = np.cov(flat.T) - np.eye(flat.shape[1])
    assert np.abs(error).max() < 5 * np.sqrt(2 / NUM_SAMPLES)


def test_forecast_and_predictive_agree_in_distribution(fitted, context, draws):
    model, guide, params = fitted.model, fitted.guide, fitted.params
    predictive = Predictive(model, guide=guide, params=params, num_samples=NUM_SAMPLES)
    theirs = jax.jit(lambda key: predictive(key, context, TIMES))(jax.random.key(1))
    for name in ("x_mean", "x"):
        ours, other = draws[name], np.asarray(theirs[name], float)
        centre = ours.mean(0)
        for power in (1, 2):
            a, b = (ours - centre) ** power, (other - centre) ** power
            error = np.sqrt((a.var(0) + b.var(0)) / NUM_SAMPLES)
            assert (np.abs(a.mean(0) - b.mean(0)) / error).max() < 5


@pytest.fixture(scope="module")
def few(fitted, context):
    return forecast(jax.random.key(3), fitted, context, TIMES, num_samples=3)


@pytest.mark.slow
def test_draws_do_not_depend_on_how_many_are_solved_at_once(fitted, context, few):
    pairs = forecast(jax.random.key(3), fitted, context, TIMES, num_samples=3, draws_at_once=2)
    for name, values in few.items():
        np.testing.assert_allclose(pairs[name], values, rtol=1e-4, atol=1e-5)


def test_times_may_be_one_row_for_all_or_one_per_trajectory(fitted, context, few):
    rows = np.stack([TIMES, TIMES + 0.5, TIMES[::-1]])
    each = forecast(jax.random.key(3), fitted, context, rows, num_samples=3)
    np.testing.assert_array_equal(each["z0"], few["z0"])
    np.testing.assert_allclose(each["x_mean"][:, 0], few["x_mean"][:, 0], rtol=1e-4, atol=1e-5)
    reverse = each["x_mean"][:, 2, ::-1]
    np.testing.assert_allclose(reverse, few["x_mean"][:, 2], rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(each["x_mean"][:, 1] - few["x_mean"][:, 1]) > 1e-4)


@pytest.mark.slow
def test_asking_for_more_times_changes_no_curve(fitted, context, few):
    # Far later than any observation, and between the earlier times.
    more = np.sort(np.append(TIMES, [T0 + 0.1, T0 + 2.5 * UNIT, T0 + 5 * UNIT]))
    longer = forecast(jax.random.key(3), fitted, context, more, num_samples=3)
    at = np.searchsorted(more, TIMES)
    np.testing.assert_allclose(longer["x_mean"][:, :, at], few["x_mean"], rtol=1e-4, atol=1e-5)
    assert np.isfinite(longer["x"]).all()


def test_a_forecast_at_observed_times_samples_anew(fitted, context):
    draws = forecast(jax.random.key(4), fitted, context, context.times, num_samples=3)
    mask = np.asarray(context.mask)
    x = np.asarray(draws["x"])[:, mask]
    assert np.all(x != np.asarray(context.values)[mask])
    assert np.all(x[0] != x[1])


def test_a_forecast_from_nothing_is_finite_and_alike_for_all(fitted, context):
    nothing = context.before(T0 - 1)
    draws = forecast(
        jax.random.key(5), fitted, nothing, TIMES, num_samples=NUM_SAMPLES, draws_at_once=500
    )
    x_mean = np.asarray(draws["x_mean"], float)
    assert all(np.isfinite(values).all() for values in draws.values())
    error = np.sqrt(2 * x_mean.var(0).max(0) / NUM_SAMPLES)
    assert np.all(np.ptp(x_mean.mean(0), axis=0) < 5 * error)


def test_the_key_decides_the_draws(fitted, context, few):
    again = forecast(jax.random.key(3), fitted, context, TIMES, num_samples=3)
    other = forecast(jax.random.key(6), fitted, context, TIMES, num_samples=3)
    for name, values in few.items():
        np.testing.assert_array_equal(again[name], values)
        assert np.all(other[name] != values)


ONE = Trajectories(np.full((NUM, 1), 2.0), np.ones((NUM, 1, 1)))
BAD = {
    "no draws": ({"num_samples": 0}, "num_samples must be a positive integer"),
    "half a draw": ({"num_samples": 0.5}, "num_samples must be a positive integer"),
    "none at once": ({"draws_at_once": 0}, "draws_at_once must be a positive integer"),
    "trajectories as times": ({"times": ONE}, "times must be"),
    "a time is NaN": ({"times": np.array([2.0, np.nan])}, "times must"),
    "a time before t0": ({"times": np.array([0.5, 2.0])}, "times must"),
    "no times": ({"times": np.zeros(0)}, "times must"),
    "times are missing": ({"times": None}, "times must"),
    "times of other trajectories": ({"times": np.full((NUM + 1, 2), 2.0)}, "times must"),
    "context is an array": ({"context": np.zeros((NUM, 2))}, "context must be Trajectories"),
    "context of other features": (
        {"context": ONE},
        "context must have 2 features",
    ),
}


@pytest.mark.parametrize(("bad", "rule"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(fitted, context, bad, rule):
    arguments = {"context": context, "times": TIMES} | bad
    # Users have no type checker, which would raise its own error first.
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=f"^{rule}"):
            forecast(jax.random.key(0), fitted, **arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.slow
def test_draws_at_observed_times_are_those_of_the_forecast(fitted, context):
    key, at = jax.random.key(0), jnp.maximum(context.times, T0)
    draws = forecast(key, fitted, context, at, num_samples=12)
    observed = forecast_observed(key, fitted, context, context, num_samples=12)
    np.testing.assert_array_equal(observed["z0"], draws["z0"])
    for name in ("x_mean", "x"):
        np.testing.assert_allclose(
            observed[name], draws[name][:, context.observed], rtol=1e-4, atol=1e-4
        )


@pytest.fixture(scope="module")
def uneven():
    """Trajectories in two buckets, the long one in the middle."""
    rng = np.random.default_rng(1)
    pairs = [
        (T0 + np.sort(rng.uniform(0, UNIT, n)), rng.normal(size=(n, NUM_FEATURES)))
        for n in (3, 4, 60, 3)
    ]
    return Trajectories.from_ragged(pairs)


@pytest.mark.slow
def test_a_long_trajectory_changes_nothing_in_the_scores_of_short_ones(fitted, uneven):
    z0 = posterior(fitted, uneven).sample(jax.random.key(0), (23,))
    log_p = log_predictive(fitted, z0, uneven, uneven)
    terms = log_likelihood(fitted, z0, uneven)
    expected = jax.nn.logsumexp(terms, axis=0) - jnp.log(23)
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-4)
    assert not np.any(log_p[~uneven.mask])
    jitted = jax.jit(log_predictive)(fitted, z0, uneven, uneven)
    np.testing.assert_allclose(log_p, jitted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_draws_of_uneven_trajectories_are_each_at_their_own_times(fitted, uneven):
    draws = forecast_observed(jax.random.key(0), fitted, uneven, uneven, num_samples=15)
    assert draws["x"].shape == (15, 70, NUM_FEATURES)
    whole = forecast(jax.random.key(0), fitted, uneven, uneven.times, num_samples=15)
    np.testing.assert_array_equal(draws["z0"], whole["z0"])
    at = whole["x_mean"][:, uneven.observed]
    np.testing.assert_allclose(draws["x_mean"], at, rtol=1e-4, atol=1e-4)
    noise = (draws["x"] - draws["x_mean"]).std((0, 1))
    np.testing.assert_allclose(noise, (whole["x"] - whole["x_mean"]).std((0, 1, 2)), rtol=0.2)

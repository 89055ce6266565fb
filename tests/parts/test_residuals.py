"""Likelihoods with a residual process, against dense normal distributions.

The path is known: z(t) = exp(-t / 2) z0, and feature j is weight_j z. All references are built from
it and from dense covariance matrices, in NumPy and double precision.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.handlers as handlers
import pytest
from diffrax import Tsit5
from flax import nnx
from helpers import sites_of
from numpyro.infer import Predictive
from scipy.stats import multivariate_normal, norm

from np_latentode import (
    BernoulliLikelihood,
    BrownianLikelihood,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    OrnsteinUhlenbeckLikelihood,
    Scaling,
    Solver,
    Trajectories,
    calibration,
    decode,
    elpd,
    fit,
    forecast,
    importance,
    latent_ode,
    load,
    log_likelihood,
    log_predictive,
    refine,
    save,
    to_datatree,
)
from np_latentode.data.offset import Offset
from np_latentode.forecasts.prediction import forecast_observed
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
WEIGHT = np.array([1.0, -0.5])
NOISE, SCALE, TIMESCALE = np.array([0.3, 0.5]), np.array([0.8, 0.2]), np.array([2.0, 0.7])


def ou():
    """In the precision of the test."""
    return OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE)


def data(seed=0, *, shape=(4, 6, 2), holes=0.3):
    """Times with a tie; holes; a trajectory without observations, and a feature with one."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 5, shape[:2]), axis=1)
    times[0, 3] = times[0, 2]
    mask = rng.random(shape) > holes
    mask[2] = False
    mask[1, :, 0] = np.arange(shape[1]) == 3
    return Trajectories(times, rng.normal(size=shape), mask)


SEEN = data()


def fitted_with(likelihood, *, scaling=None, like=SEEN):
    """A fit whose path is known. In double precision only where JAX is."""
    model, guide = latent_ode(
        like,
        latent_dim=1,
        dynamics=lambda: lambda t, z: -0.5 * z,
        decoder=lambda: lambda z: z * jnp.asarray(WEIGHT, z.dtype),
        likelihood=likelihood,
        scaling=Scaling.identity(2) if scaling is None else scaling,
        solver=Solver(Tsit5(), dt0=1 / 16),
        rngs=nnx.Rngs(0),
    )
    return Fitted(model, guide, initial_params(model, guide))


def path(z0, times):
    """Shape (time, feature)."""
    return np.exp(-np.asarray(times, float) / 2)[:, None] * z0 * WEIGHT


def cov(s, t, j):
    return SCALE[j] ** 2 * np.exp(-np.abs(np.subtract.outer(s, t)) / TIMESCALE[j])


def dense(z0, trajectories, i, j):
    """Times, residuals and their dense covariance with noise, of what was observed."""
    seen = np.asarray(trajectories.mask)[i, :, j]
    times = trajectories.given.times[i][seen]
    residuals = trajectories.given.values[i, seen, j] - path(z0, times)[:, j]
    return times, residuals, cov(times, times, j) + NOISE[j] ** 2 * np.eye(len(times))


def dense_forecast(z0, context, i, j, times):
    """Mean and covariance, with noise, of x at the times given the context and z0."""
    known, residuals, k = dense(z0, context, i, j)
    gain = cov(times, known, j) @ np.linalg.inv(k)
    own = cov(times, times, j) + NOISE[j] ** 2 * np.eye(len(times))
    return path(z0, times)[:, j] + gain @ residuals, own - gain @ cov(known, times, j)


def log_density(z0, trajectories):
    """log p(x | z0), one per trajectory."""
    total = np.zeros(len(trajectories))
    for i, j in np.ndindex(len(trajectories), 2):
        _, residuals, k = dense(z0[i], trajectories, i, j)
        if len(residuals):
            total[i] += multivariate_normal(np.zeros(len(k)), k).logpdf(residuals)
    return total


def z0_draws(count=1, seed=1):
    draws = np.random.default_rng(seed).normal(size=(count, len(SEEN), 1))
    return jnp.asarray(draws, jnp.result_type(float))


@pytest.mark.parametrize("double", [False, True])
def test_the_log_density_is_the_dense_one(double):
    with jax.enable_x64(double):
        z0, like = z0_draws(3), data()
        terms = np.asarray(log_likelihood(fitted_with(ou(), like=like), z0, like), float)
        assert (terms[:, ~np.asarray(like.mask)] == 0).all()
        for draw, of_each in zip(np.asarray(z0, float), terms, strict=True):
            expected = log_density(draw[:, 0], like)
            rtol = 1e-8 if double else 2e-5
            np.testing.assert_allclose(of_each.sum((1, 2)), expected, rtol=rtol, atol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_the_dense_log_density(x64):
    like, z0 = data(), z0_draws()[0]
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(), like=like)
    own = {"noise_scale": NOISE, "residual_scale": SCALE, "residual_timescale": TIMESCALE}
    own = {name: jnp.asarray(value) for name, value in own.items()}

    def found(own, z0):
        with (
            handlers.seed(rng_seed=0),
            handlers.trace() as sites,
            handlers.substitute(data=fitted.params | own | {"z0": z0}),
        ):
            fitted.model(like)
        return sites["x"]["fn"].log_prob(sites["x"]["value"]).sum()

    def expected(own, z0):
        total, mask = 0.0, np.asarray(like.mask)
        for i, j in np.ndindex(len(like), 2):
            seen = mask[i, :, j]
            t = like.given.times[i][seen]
            mean = jnp.exp(-t / 2) * z0[i, 0] * WEIGHT[j]
            gap = jnp.abs(t[:, None] - t)
            k = own["residual_scale"][j] ** 2 * jnp.exp(-gap / own["residual_timescale"][j])
            k = k + own["noise_scale"][j] ** 2 * jnp.eye(len(t))
            if len(t):
                x = like.given.values[i, seen, j]
                total += jax.scipy.stats.multivariate_normal.logpdf(x, mean, k)
        return total

    ours, reference = (jax.grad(f, argnums=(0, 1))(own, z0) for f in (found, expected))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.slow
def test_without_a_residual_it_is_the_gaussian_likelihood():
    plain, ours = GaussianLikelihood(NOISE), OrnsteinUhlenbeckLikelihood(NOISE, 0.0, TIMESCALE)
    target = data(3)
    for score in (
        lambda f: log_likelihood(f, z0_draws(2), SEEN),
        lambda f: log_predictive(f, z0_draws(2), SEEN, target),
        lambda f: forecast(KEY, f, SEEN, [0.5, 6.0], num_samples=3)["x_mean"],
    ):
        a, b = score(fitted_with(plain)), score(fitted_with(ours))
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_a_vanishing_timescale_is_white_noise_and_an_infinite_one_a_random_intercept(x64):
    like, z0 = data(), z0_draws()
    # Without the tie: residuals at one time are the same for any timescale.
    like = like.keep(np.broadcast_to(np.arange(6) != 3, (4, 6)))
    white = fitted_with(GaussianLikelihood(np.hypot(NOISE, SCALE)), like=like)
    fast = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, 1e-9), like=like)
    a, b = (log_likelihood(f, z0, like) for f in (white, fast))
    np.testing.assert_allclose(a, b, rtol=1e-9)
    slow = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE, SCALE, 1e9), like=like)
    terms = np.asarray(log_likelihood(slow, z0, like))[0]
    for i, j in np.ndindex(len(like), 2):
        _, residuals, k = dense(float(z0[0, i, 0]), like, i, j)
        if n := len(k):
            intercept = SCALE[j] ** 2 * np.ones((n, n)) + NOISE[j] ** 2 * np.eye(n)
            expected = multivariate_normal(np.zeros(n), intercept).logpdf(residuals)
            np.testing.assert_allclose(terms[i, :, j].sum(), expected, rtol=1e-6)


@pytest.mark.slow
def test_brownian_is_the_limit_of_ou_in_its_forecast_from_one_point(x64):
    """Given x at one time with hardly any noise, both spread by the same variance per time."""
    one = Trajectories(np.array([[1.0]]), np.array([[[0.4, 0.2]]]))
    z0, times = jnp.zeros((4_000, 1, 1)), np.array([[1.0, 1.5, 3.0]])
    slow = OrnsteinUhlenbeckLikelihood(1e-3, np.sqrt(1e6 / 2), 1e6)
    for likelihood in (BrownianLikelihood(1e-3, 1.0), slow):
        draws = decode(KEY, fitted_with(likelihood, like=one), z0, times, context=one)
        np.testing.assert_allclose(draws["x_mean"][0, 0, :, 0], 0.4, atol=1e-3)
        np.testing.assert_allclose(draws["x"][:, 0, 1:, 0].var(0), [0.5, 2.0], rtol=0.1)


TIMES = np.array([4.0, 0.1, 7.0, 2.5, 2.5])
"""Out of order, with a tie; before, between and after what was seen."""


def test_forecasts_are_the_dense_conditionals(x64):
    context = data()
    z0 = jnp.repeat(z0_draws(), 8_000, axis=0)
    times = np.broadcast_to(TIMES, (4, 5))
    fitted = fitted_with(ou(), like=context)
    draws = decode(KEY, fitted, z0, times, context=context, draws_at_once=1_000)
    for i, j in np.ndindex(4, 2):
        mean, covariance = dense_forecast(float(z0[0, i, 0]), context, i, j, TIMES)
        np.testing.assert_allclose(draws["x_mean"][0, i, :, j], mean, atol=1e-5)
        size = np.sqrt(np.diag(covariance))
        found = np.cov(draws["x"][:, i, :, j].T)
        assert (np.abs(found - covariance) < 0.06 * np.outer(size, size)).all()


@pytest.mark.slow
def test_a_target_is_scored_given_the_context(x64):
    context, target, z0 = data(), data(5), z0_draws()
    fitted = fitted_with(ou(), like=context)
    with (
        handlers.seed(rng_seed=0),
        handlers.trace() as sites,
        handlers.substitute(data=fitted.params | {"z0": z0[0]}),
    ):
        fitted.model(context, target)
    joint = np.asarray(sites["x"]["fn"].log_prob(sites["x"]["value"]))
    alone = np.asarray(log_predictive(fitted, z0, context, target))[:, :, :]
    expected = np.zeros(4)
    for i, j in np.ndindex(4, 2):
        seen = np.asarray(target.mask)[i, :, j]
        x = target.given.values[i, seen, j]
        mean, covariance = dense_forecast(
            float(z0[0, i, 0]), context, i, j, target.given.times[i][seen]
        )
        if len(x):
            expected[i] += multivariate_normal(mean, covariance).logpdf(x)
        each = norm(mean, np.sqrt(np.diag(covariance))).logpdf(x)
        np.testing.assert_allclose(alone[i, seen, j], each, rtol=1e-5)
    np.testing.assert_allclose(joint, expected, rtol=1e-5)


def test_x_mean_leads_from_the_last_residual_to_the_path(x64):
    one = Trajectories(np.array([[1.0]]), np.array([[[3.0, np.nan]]]))
    gaps = np.array([0.0, 0.5, 1.0, 4.0, 10.0])
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(0.1, 0.8, 2.0), like=one)
    x = decode(KEY, fitted, jnp.zeros((1, 1, 1)), 1 + gaps[None], context=one)["x_mean"][0, 0]
    expected = 3.0 * 0.64 / 0.65 * np.exp(-gaps / 2)
    np.testing.assert_allclose(x[:, 0], expected, atol=1e-9)
    np.testing.assert_array_equal(x[:, 1], 0)


def test_numpyros_own_predictive_continues_the_context():
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(1e-3, 5.0, 1e3))
    draw = Predictive(fitted.model, guide=fitted.guide, params=fitted.params, num_samples=2)
    last = np.asarray(SEEN.times)[:, -1:]
    x = draw(KEY, SEEN, jnp.asarray(last))["x_mean"][:, :, 0]
    seen = np.asarray(SEEN.mask)[:, -1]
    values = np.broadcast_to(np.asarray(SEEN.values)[:, -1], x.shape)
    np.testing.assert_allclose(x[:, seen], values[:, seen], atol=5e-3)


def test_the_sites_are_those_of_every_latent_ode():
    sites = sites_of(fitted_with(OrnsteinUhlenbeckLikelihood()).model, SEEN)
    assert {"z0", "x", "x_mean", "noise_scale", "residual_scale", "residual_timescale"} <= {*sites}
    assert sites["x"]["fn"].batch_shape == (4,)
    assert sites["x_mean"]["value"].shape == (4, 6, 2)


@pytest.mark.slow
def test_a_minibatch_scores_its_trajectories_times_their_share():
    fitted = fitted_with(ou())
    with (
        handlers.seed(rng_seed=0),
        handlers.trace() as sites,
        handlers.substitute(data=fitted.params),
    ):
        fitted.model(SEEN, batch_size=2)
    rows = np.asarray(sites["trajectory"]["value"])
    found = sites["x"]["fn"].log_prob(sites["x"]["value"])
    z0 = jnp.asarray(sites["z0"]["value"])[None]
    expected = log_likelihood(fitted, z0, SEEN[rows])[0].sum((1, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert sites["x"]["scale"] == 2


def test_other_units_of_time_and_value_change_nothing_else(x64):
    like, z0, target = data(), z0_draws(2), data(5)
    hour, unit = 24.0, np.array([1e-6, 1e5])
    there = [
        Trajectories(t.given.times * hour, t.given.values * unit, t.mask) for t in (like, target)
    ]
    scaling = Scaling(np.zeros(2), unit, 0.0, hour)
    other = OrnsteinUhlenbeckLikelihood(NOISE * unit, SCALE * unit, TIMESCALE * hour)
    ours = fitted_with(ou(), like=like)
    theirs = fitted_with(other, scaling=scaling, like=there[0])
    a = log_predictive(ours, z0, like, target)
    b = log_predictive(theirs, z0, *there) + np.where(target.mask, np.log(unit), 0)
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
    times = np.broadcast_to(TIMES, (4, 5))
    x = decode(KEY, ours, z0, times, context=like)["x"]
    y = decode(KEY, theirs, z0, times * hour, context=there[0])["x"]
    np.testing.assert_allclose(x * unit, y, rtol=1e-8)


@pytest.mark.slow
def test_parameters_of_simulated_data_are_found():
    rng = np.random.default_rng(0)
    n, slots = 300, 12
    times = np.sort(rng.uniform(0, 10, (n, slots)), axis=1)
    values = np.empty((n, slots, 2))
    for i, j in np.ndindex(n, 2):
        k = cov(times[i], times[i], j) + NOISE[j] ** 2 * np.eye(slots)
        values[i, :, j] = np.linalg.cholesky(k) @ rng.normal(size=slots)
    train = Trajectories(times, values)
    model, guide = latent_ode(
        train,
        latent_dim=1,
        decoder=lambda: lambda z: jnp.zeros((*z.shape[:-1], 2), z.dtype),
        dynamics=lambda: lambda t, z: jnp.zeros_like(z),
        scaling=Scaling(np.zeros(2), np.ones(2), 0.0, 2.0),
        likelihood=OrnsteinUhlenbeckLikelihood(),
        rngs=nnx.Rngs(0),
    )
    params = fit(KEY, model, guide, train, num_steps=1_500, batch_size=100, progress=False).params
    np.testing.assert_allclose(params["noise_scale"], NOISE, rtol=0.12)
    np.testing.assert_allclose(params["residual_scale"][0], SCALE[0], rtol=0.1)
    np.testing.assert_allclose(params["residual_timescale"][0], TIMESCALE[0], rtol=0.2)


def test_features_may_have_likelihoods_of_their_own():
    rng = np.random.default_rng(0)
    mixed = Trajectories(
        np.asarray(SEEN.times),
        np.stack([np.asarray(SEEN.values)[..., 0], rng.integers(0, 2, (4, 6))], axis=-1),
        np.asarray(SEEN.mask),
    )
    first = OrnsteinUhlenbeckLikelihood(NOISE[0], SCALE[0], TIMESCALE[0])
    both = fitted_with(FeatureLikelihoods(first, BernoulliLikelihood()), like=mixed)
    terms = log_likelihood(both, z0_draws(), mixed)[0]
    alone = log_likelihood(fitted_with(ou()), z0_draws(), SEEN)[0]
    np.testing.assert_allclose(terms[..., 0], alone[..., 0], rtol=1e-5, atol=1e-6)
    logits = np.stack(
        [path(z, t)[:, 1] for z, t in zip(z0_draws()[0, :, 0], mixed.times, strict=True)]
    )
    p = 1 / (1 + np.exp(-logits))
    bits = np.where(np.asarray(mixed.values)[..., 1] == 1, np.log(p), np.log1p(-p))
    expected = np.where(np.asarray(mixed.mask)[..., 1], bits, 0)
    np.testing.assert_allclose(terms[..., 1], expected, rtol=1e-3, atol=1e-5)
    draws = forecast(KEY, both, mixed, [3.0, 6.0], num_samples=4)["x"]
    assert np.isin(draws[..., 1], (0, 1)).all()


@pytest.fixture(scope="module")
def evidence():
    """log p(x) and the posterior of z0, in closed form: x is Gaussian, and so is z0."""
    total, mean, sd = np.zeros(4), np.zeros(4), np.zeros(4)
    for i in range(4):
        precision, information = 1.0, 0.0
        for j in range(2):
            times, x, k = dense(0.0, SEEN, i, j)
            if len(x):
                h = path(1.0, times)[:, j]
                precision += h @ np.linalg.solve(k, h)
                information += h @ np.linalg.solve(k, x)
        total[i] = log_density(np.zeros(4), SEEN)[i] - 0.5 * np.log(precision)
        total[i] += 0.5 * information**2 / precision
        mean[i], sd[i] = information / precision, precision**-0.5
    return total, mean, sd


@pytest.mark.slow
def test_refinement_importance_and_elpd_know_the_residual(evidence):
    log_p, mean, sd = evidence
    fitted = fitted_with(ou())
    q = refine(KEY, fitted, SEEN, num_steps=200).q
    draws = np.asarray(q.sample(KEY, (4_000,)))[..., 0]
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.06)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)
    report = importance(KEY, fitted, SEEN, q=q, num_samples=500)
    np.testing.assert_allclose(report.bound, log_p, atol=0.02)
    found = elpd(KEY, fitted, SEEN, q=q, num_samples=500)
    np.testing.assert_allclose(found.elpd_i, log_p, atol=0.02)
    early, late = SEEN.split()
    before = elpd(KEY, fitted, early, num_samples=2_000)
    after = elpd(KEY, fitted, early, late, num_samples=2_000)
    np.testing.assert_allclose(before.elpd_i + after.elpd_i, log_p, atol=0.1)


def test_a_target_must_not_repeat_the_context():
    fitted, words = fitted_with(ou()), "target must hold no observations of the context"
    z0, key = z0_draws(), KEY
    times, values, *_ = SEEN.given
    shorter = Trajectories(times[:, :4], values[:, :4], np.asarray(SEEN.mask)[:, :4])
    for call in (
        lambda: calibration(key, fitted, SEEN, SEEN),
        lambda: log_predictive(fitted, z0, SEEN, shorter),
        lambda: handlers.seed(fitted.model, 0)(SEEN, SEEN),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_data_at_other_offsets_are_scored_as_the_same_data():
    """Under jit, numbers are not known, and only their offsets can be told apart."""
    far = 1e6
    early, late = SEEN.split()
    here = [Trajectories(a.given.times + far, a.given.values, a.mask) for a in (early, late)]
    there = [here[0], here[1].at_offset(Offset(far + 2.0))]
    assert there[0].offset != there[1].offset
    scaling = Scaling(np.zeros(2), np.ones(2), far, 1.0, offset=here[0].offset)
    fitted = fitted_with(ou(), scaling=scaling, like=here[0])
    expected = log_predictive(fitted, z0_draws(), *here)
    found = jax.jit(log_predictive)(fitted, z0_draws(), *there)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_hidden_slots_far_ahead_change_nothing():
    times = np.array([[0.0, 1.0, 1e5]])
    whole = Trajectories(times, np.ones((1, 3, 2)))
    cut = Trajectories(times[:, :2], np.ones((1, 2, 2)))
    target = Trajectories(np.array([[2.0]]), np.zeros((1, 1, 2)))
    fitted, z0 = fitted_with(ou(), like=cut), jnp.zeros((1, 1, 1))
    expected = log_predictive(fitted, z0, cut, target)
    np.testing.assert_allclose(log_predictive(fitted, z0, whole.before(1.0), target), expected)
    for context in (cut, whole.before(1.0)):
        with (
            handlers.seed(rng_seed=0),
            handlers.trace() as sites,
            handlers.substitute(data=fitted.params | {"z0": z0[0]}),
        ):
            fitted.model(context, jnp.array([2.0]))
        assert jnp.isfinite(sites["x_mean"]["value"]).all()


@pytest.mark.slow
def test_observed_times_are_forecast_as_any_times_and_rows_stay_together():
    early, late = SEEN.split()
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(0.01, 5.0, 50.0))
    slots = np.asarray(late.observed)
    found = forecast_observed(KEY, fitted, early, late, num_samples=4)["x_mean"]
    times = np.where(slots, late.times, 0.0)
    expected = forecast(KEY, fitted, early, times, num_samples=4)["x_mean"]
    np.testing.assert_allclose(found, expected[:, slots], rtol=1e-3, atol=1e-3)
    # In two buckets, with the long one first, each is scored given its own context.
    pairs = [(np.linspace(2, 5, n), np.full((n, 2), n / 10)) for n in (40, 3, 2)]
    target = Trajectories.from_ragged(pairs)
    context = Trajectories(np.ones((3, 1)), np.array([[[4.0] * 2], [[0.3] * 2], [[0.2] * 2]]))
    z0 = jnp.zeros((1, 3, 1))
    together = log_predictive(fitted, z0, context, target)
    for i in range(3):
        alone = log_predictive(fitted, z0[:, [i]], context[[i]], target[[i]])
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-5)


def test_a_density_of_draws_has_one_row_per_draw():
    with handlers.seed(rng_seed=0), handlers.trace():
        emission = ou()(Scaling.identity(2))
    x = emission.along(jnp.zeros((1, 3, 2)), jnp.arange(3.0)[None], jnp.ones((1, 3, 2), bool), None)
    draws = x.sample(KEY, (5,))
    expected = jnp.stack([x.log_prob(draw) for draw in draws])
    np.testing.assert_allclose(x.log_prob(draws), expected, rtol=1e-5)


@pytest.mark.slow
def test_a_fit_is_saved_and_a_tree_made(tmp_path):
    fitted = fitted_with(OrnsteinUhlenbeckLikelihood(NOISE))
    tree = to_datatree(KEY, fitted, SEEN, times=[1.0, 9.0], num_samples=5)
    terms = tree["log_likelihood"]["x"].values.reshape(5, -1)
    z0 = jnp.asarray(tree["posterior"]["z0"].values[0])
    expected = np.asarray(log_likelihood(fitted, z0, SEEN))[:, np.asarray(SEEN.mask)]
    np.testing.assert_allclose(terms, expected, rtol=1e-4, atol=1e-5)
    assert tree["constant_data"]["residual_timescale"].shape == (2,)
    model, guide = latent_ode(
        SEEN, latent_dim=1, likelihood=OrnsteinUhlenbeckLikelihood(NOISE), rngs=nnx.Rngs(0)
    )
    whole = Fitted(model, guide, initial_params(model, guide))
    save(tmp_path / "fit", whole)
    again = load(tmp_path / "fit")
    a, b = (log_likelihood(f, z0_draws(), SEEN) for f in (whole, again))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise_scale": 0.0}, "noise_scale must be positive and finite"),
        ({"residual_scale": -1.0}, "residual_scale must be positive or 0 and finite"),
        ({"timescale": np.inf}, "timescale must be positive and finite"),
        ({"timescale": np.ones((1, 1))}, "one number or one per feature"),
    ],
)
def test_numbers_that_are_not_positive_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        OrnsteinUhlenbeckLikelihood(**arguments)


def test_one_number_per_feature_is_needed():
    with pytest.raises(ValueError, match=r"residual_scale must .*shape \(2,\); got shape \(3,\)"):
        fitted_with(OrnsteinUhlenbeckLikelihood(residual_scale=np.ones(3)))

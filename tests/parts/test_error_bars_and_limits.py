"""Known standard errors and limits in the model, against dense normal distributions.

The path is known: z(t) = exp(-t / 2) z0, and feature j is weight_j z.
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from diffrax import Tsit5
from flax import nnx
from helpers import sites_of
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm, t

from np_latentode import (
    BernoulliLikelihood,
    BrownianLikelihood,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    Limits,
    NegativeBinomialLikelihood,
    OrnsteinUhlenbeckLikelihood,
    Scaling,
    Solver,
    StudentTLikelihood,
    Trajectories,
    calibration,
    fit,
    forecast,
    latent_ode,
    load,
    log_likelihood,
    log_predictive,
    save,
    sharpen,
    simulation_ranks,
    to_datatree,
)
from np_latentode.forecasts.densities import _log_likelihood, run_given
from np_latentode.forecasts.scores import of_calibration, score
from np_latentode.parts.emissions import measured
from np_latentode.parts.likelihoods import check_observed
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
WEIGHT, NOISE = np.array([1.0, -0.5]), np.array([0.3, 0.5])
SCALE, TIMESCALE = np.array([0.8, 0.2]), np.array([2.0, 0.7])
TIMES = np.array([[0.2, 1.0, 1.5, 3.0]])
VALUES = np.array([[[0.4, -0.3], [1.2, 0.8], [0.5, -0.7], [-0.9, 0.2]]])
ERROR = np.array([[[0.2, 0.0], [0.0, 0.7], [1.0, 0.1], [0.4, 0.4]]])
NONE = np.full(VALUES.shape, np.nan)


def limits_at(*places):
    """Limits of one cell each: (slot, feature, lower, upper)."""
    lower, upper = NONE.copy(), NONE.copy()
    for k, j, low, high in places:
        lower[0, k, j], upper[0, k, j] = low, high
    return Limits(lower, upper)


def ou():
    return OrnsteinUhlenbeckLikelihood(NOISE, SCALE, TIMESCALE)


def fitted_with(likelihood, like):
    model, guide = latent_ode(
        like,
        latent_dim=1,
        dynamics=lambda: lambda t, z: -0.5 * z,
        decoder=lambda: lambda z: z * jnp.asarray(WEIGHT, z.dtype),
        likelihood=likelihood,
        scaling=Scaling.identity(2),
        solver=Solver(Tsit5(), dt0=1 / 16),
        rngs=nnx.Rngs(0),
    )
    return Fitted(model, guide, initial_params(model, guide))


def path(z0, times):
    return np.exp(-np.asarray(times, float) / 2)[:, None] * z0 * WEIGHT


def cov(j, error=ERROR, times=TIMES):
    r = SCALE[j] ** 2 * np.exp(-np.abs(np.subtract.outer(times[0], times[0])) / TIMESCALE[j])
    return r + np.diag(NOISE[j] ** 2 + error[0, :, j] ** 2)


Z0 = jnp.full((1, 1, 1), 0.5)


def terms(likelihood, data):
    return np.asarray(log_likelihood(fitted_with(likelihood, data), Z0, data)[0, 0])


def test_a_known_error_adds_to_the_variance():
    data = Trajectories(TIMES, VALUES, error=ERROR)
    found = terms(GaussianLikelihood(NOISE), data)
    expected = norm.logpdf(VALUES[0], path(0.5, TIMES[0]), np.hypot(NOISE, ERROR[0]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-23, 0.3, 1e23])
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 0.5, 1.0, 3.0])
def test_scale_and_error_are_added_without_a_square_that_is_no_float(scale, ratio):
    def total(scale, error):
        return measured(dist.Normal(0.0, scale), error, None).scale

    scale, error = jnp.asarray(scale), jnp.asarray(ratio * scale)
    np.testing.assert_allclose(total(scale, error), scale * np.hypot(1, ratio), rtol=1e-6)
    slopes = jax.grad(total, (0, 1))(scale, error)
    expected = np.array([1, ratio]) / np.hypot(1, ratio)
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-8)
    curvature = jax.grad(jax.grad(total))(scale, error) * scale
    np.testing.assert_allclose(curvature, ratio**2 / np.hypot(1, ratio) ** 3, rtol=1e-4, atol=1e-6)


def test_with_a_residual_the_errors_are_on_the_diagonal_of_the_dense_covariance():
    data = Trajectories(TIMES, VALUES, error=ERROR)
    found = terms(ou(), data).sum(0)
    mean = path(0.5, TIMES[0])
    expected = [multivariate_normal(mean[:, j], cov(j)).logpdf(VALUES[0, :, j]) for j in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_what_was_seen_counts_by_its_own_errors():
    early = Trajectories(TIMES[:, :3], VALUES[:, :3], error=ERROR[:, :3])
    late = Trajectories(TIMES[:, 3:], VALUES[:, 3:], error=ERROR[:, 3:])
    found = log_predictive(fitted_with(ou(), early), Z0, early, late)[0, 0]
    mean = path(0.5, TIMES[0])
    for j in range(2):
        k = cov(j)
        gain = k[3, :3] @ np.linalg.inv(k[:3, :3])
        loc = mean[3, j] + gain @ (VALUES[0, :3, j] - mean[:3, j])
        variance = k[3, 3] - gain @ k[:3, 3]
        expected = norm.logpdf(VALUES[0, 3, j], loc, np.sqrt(variance))
        np.testing.assert_allclose(found[j], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("likelihood", [GaussianLikelihood(NOISE), StudentTLikelihood(4.0, NOISE)])
def test_a_limit_has_the_log_probability_of_its_interval(likelihood):
    cells = [(0, 0, -np.inf, 0.5), (1, 1, 0.1, np.inf), (2, 0, 0.2, 0.9)]
    data = Trajectories(TIMES, VALUES, limits=limits_at(*cells))
    found, mean = terms(likelihood, data), path(0.5, TIMES[0])
    known = norm if isinstance(likelihood, GaussianLikelihood) else t(4.0)
    expected = known.logpdf((VALUES[0] - mean) / NOISE) - np.log(NOISE)
    for k, j, low, high in cells:
        a, b = ((x - mean[k, j]) / NOISE[j] for x in (low, high))
        expected[k, j] = np.log(known.cdf(b) - known.cdf(a))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("slot", range(4))
def test_with_a_residual_one_limit_is_the_integral_of_the_dense_density(slot, x64):
    """Exact wherever it lies, also before other values."""
    low, high = -0.4, 0.6
    data = Trajectories(TIMES, VALUES, error=ERROR, limits=limits_at((slot, 0, low, high)))
    mean = path(0.5, TIMES[0])

    def density(x):
        values = np.where(np.arange(4) == slot, x, VALUES[0, :, 0])
        return multivariate_normal(mean[:, 0], cov(0)).pdf(values)

    expected = np.log(quad(density, low, high)[0])
    found = terms(ou(), data).sum(0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    plain = multivariate_normal(mean[:, 1], cov(1)).logpdf(VALUES[0, :, 1])
    np.testing.assert_allclose(found[1], plain, rtol=1e-5)


def test_a_forecast_after_one_limit_has_the_moments_of_the_truncated_density(x64):
    """Of x at a later time given one limit, mean and variance are exact."""
    data = Trajectories(TIMES[:, :1], VALUES[:, :1], limits=limits_at((0, 0, 0.9, np.inf))[:, :1])
    z0 = jnp.zeros((20_000, 1, 1))
    from np_latentode import decode

    x = decode(KEY, fitted_with(ou(), data), z0, np.array([[0.7]]), context=data)["x"][:, 0, 0, 0]
    total = SCALE[0] ** 2 + NOISE[0] ** 2
    a = 0.9 / np.sqrt(total)
    mean = np.sqrt(total) * norm.pdf(a) / norm.sf(a)
    variance = total * (1 + a * norm.pdf(a) / norm.sf(a)) - mean**2
    gain = SCALE[0] ** 2 * np.exp(-0.5 / TIMESCALE[0]) / total
    expected = total - gain**2 * total + gain**2 * variance
    np.testing.assert_allclose(x.mean(), gain * mean, atol=0.02)
    np.testing.assert_allclose(x.var(), expected, rtol=0.03)


def test_many_limits_are_close_to_the_dense_probability():
    limits = limits_at(*((k, 0, -np.inf, 0.3) for k in range(4)))
    data = Trajectories(TIMES, VALUES, limits=limits)
    mean = path(0.5, TIMES[0])[:, 0]
    expected = multivariate_normal(mean, cov(0, 0 * ERROR)).logcdf(np.full(4, 0.3))
    np.testing.assert_allclose(terms(ou(), data)[:, 0].sum(), expected, atol=0.05)


def test_features_of_several_likelihoods_have_errors_and_limits_of_their_own():
    values = VALUES.copy()
    values[..., 1] = [[0, 1, 1, 0]]
    error = ERROR * [1, 0]
    limits = limits_at((3, 0, -1.0, 0.0))
    data = Trajectories(TIMES, values, error=error, limits=limits)
    first = OrnsteinUhlenbeckLikelihood(NOISE[0], SCALE[0], TIMESCALE[0])
    found = terms(FeatureLikelihoods(first, BernoulliLikelihood()), data)
    both = Trajectories(TIMES, VALUES, error=ERROR, limits=limits)
    np.testing.assert_allclose(found[:, 0], terms(ou(), both)[:, 0], rtol=1e-4, atol=1e-5)
    p = 1 / (1 + np.exp(-path(0.5, TIMES[0])[:, 1]))
    bits = np.where(values[0, :, 1] == 1, np.log(p), np.log1p(-p))
    np.testing.assert_allclose(found[:, 1], bits, rtol=1e-3)


@pytest.mark.parametrize(
    "likelihood",
    [GaussianLikelihood(), ou(), BrownianLikelihood(), StudentTLikelihood()],
)
def test_without_errors_and_limits_nothing_changes(likelihood):
    """No erf, no incomplete beta function, no more arrays; and no errors are errors of 0."""
    data = Trajectories(TIMES, VALUES)
    assert len(jax.tree.leaves(data)) == 3
    fitted = fitted_with(likelihood, data)
    program = str(jax.make_jaxpr(lambda z0: _log_likelihood(fitted, z0, data, 1, 64))(Z0))
    assert not any(name in program for name in ("erf", "betainc", "regularized", "logistic"))
    plain = log_likelihood(fitted, Z0, data)
    nothing = Trajectories(TIMES, VALUES, limits=Limits(NONE, NONE))
    np.testing.assert_allclose(log_likelihood(fitted, Z0, nothing), plain, rtol=1e-5, atol=1e-6)
    if not isinstance(likelihood, StudentTLikelihood):
        zero = Trajectories(TIMES, VALUES, error=0 * ERROR)
        np.testing.assert_allclose(log_likelihood(fitted, Z0, zero), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("likelihood", "given", "words"),
    [
        (StudentTLikelihood(), {"error": ERROR}, "no standard errors .* under StudentT"),
        (BernoulliLikelihood(), {"error": ERROR}, "no standard errors .* under Bernoulli"),
        (
            NegativeBinomialLikelihood(),
            {"limits": limits_at((0, 0, -np.inf, 1.0))},
            "no limits, such as <0.5, in feature 'x_0' under NegativeBinomial",
        ),
    ],
)
def test_likelihoods_without_errors_or_limits_refuse_them(likelihood, given, words):
    bits = np.broadcast_to([[[0, 1]]], VALUES.shape).astype(float)
    plain, data = Trajectories(TIMES, bits), Trajectories(TIMES, bits, **given)
    fitted = fitted_with(likelihood, plain)
    with pytest.raises(ValueError, match=words):
        sites_of(fitted.model, data)


def laplace(scaling):
    return lambda decoded: dist.Laplace(decoded, 1.0)


@pytest.mark.parametrize(
    "given", [{"error": ERROR}, {"limits": limits_at((0, 0, -np.inf, 1.0))}], ids=[*"el"]
)
def test_a_likelihood_of_ones_own_that_is_not_normal_refuses_them(given):
    data, plain = Trajectories(TIMES, VALUES, **given), Trajectories(TIMES, VALUES)
    for likelihood in (laplace, FeatureLikelihoods(laplace, GaussianLikelihood(0.5))):
        with pytest.raises(
            ValueError, match=r"train must have no .* in feature 'x_0' under Laplace"
        ):
            fitted_with(likelihood, data)
        fitted = fitted_with(likelihood, plain)
        with pytest.raises(ValueError, match=r"context must have no .* under Laplace"):
            sites_of(fitted.model, data)


@pytest.mark.parametrize(
    "other",
    [laplace, StudentTLikelihood(4.0, 0.5), BernoulliLikelihood()],
    ids=["laplace", "t", "bernoulli"],
)
def test_a_feature_without_errors_and_limits_may_have_any_likelihood(other):
    """Beside one that has them, and with arrays that say nothing: zeros and NaN."""
    values = VALUES.copy()
    values[..., 1] = [[0, 1, 1, 0]]
    plain = Trajectories(TIMES, values)
    nothing = Trajectories(TIMES, values, error=0 * ERROR, limits=Limits(NONE, NONE))
    some = Trajectories(TIMES, values, error=ERROR * [1, 0], limits=limits_at((3, 0, -np.inf, 0.0)))
    both = FeatureLikelihoods(GaussianLikelihood(NOISE[0]), other)
    expected = terms(both, plain)
    np.testing.assert_allclose(terms(both, nothing), expected, rtol=1e-5, atol=1e-6)
    found = terms(both, some)
    np.testing.assert_allclose(found[:, 1], expected[:, 1], rtol=1e-5, atol=1e-6)
    assert (found[[0, 2, 3], 0] != expected[[0, 2, 3], 0]).all()
    if other is not laplace:
        bits = Trajectories(TIMES, values[..., [1, 1]])
        none = Trajectories(TIMES, values[..., [1, 1]], error=0 * ERROR, limits=Limits(NONE, NONE))
        np.testing.assert_allclose(terms(other, none), terms(other, bits), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "ou"])
def test_a_mean_is_recovered_where_half_of_the_values_are_limits(kind):
    rng = np.random.default_rng(0)
    n, slots, bound = 200, 5, 0.0
    z = rng.normal(0.0, 1.0, (n, 1))
    values = (z + 0.5 * rng.normal(size=(n, slots)))[..., None]
    below = values < bound
    upper = np.where(below, bound, np.nan)
    limits = Limits(np.where(below, -np.inf, np.nan), upper)
    times = np.tile(np.arange(slots, dtype=float), (n, 1))
    likelihoods = {"gaussian": GaussianLikelihood, "ou": OrnsteinUhlenbeckLikelihood}

    class Level(nnx.Module):
        def __init__(self):
            self.mean = nnx.Param(jnp.zeros(1))

        def __call__(self, z):
            return z + self.mean[...]

    def mean_of(data):
        model, guide = latent_ode(
            data,
            latent_dim=1,
            dynamics=lambda: lambda t, z: jnp.zeros_like(z),
            decoder=Level(),
            scaling=Scaling.identity(1),
            likelihood=likelihoods[kind](0.5) if kind == "gaussian" else ou_of_one(),
            rngs=nnx.Rngs(0),
        )
        fitted = fit(KEY, model, guide, data, num_steps=800, batch_size=100, progress=False)
        return float(jax.tree.leaves(fitted.params["decoder$params"])[0][0])

    def ou_of_one():
        return OrnsteinUhlenbeckLikelihood(0.5, 0.05, 1.0)

    with_limits = mean_of(Trajectories(times, values, limits=limits))
    stand_ins = mean_of(Trajectories(times, np.maximum(values, bound)))
    assert abs(with_limits - z.mean()) < 0.15
    assert stand_ins > z.mean() + 0.2


@pytest.fixture(scope="module")
def forecasts():
    """Context and target of 200 trajectories, of which the target has errors and limits."""
    rng = np.random.default_rng(1)
    times = np.tile([[0.0, 1.0, 2.0, 3.0]], (200, 1))
    error = np.broadcast_to(rng.uniform(0, 2, (200, 4, 1)), (200, 4, 2))
    z = rng.normal(size=(200, 1, 1)) * np.exp(-times / 2)[..., None] * WEIGHT
    values = z + np.hypot(NOISE, error) * rng.normal(size=(200, 4, 2))
    below = values < -0.2
    limits = Limits(np.where(below, -np.inf, np.nan), np.where(below, -0.2, np.nan))
    context, target = Trajectories(times, values, error=error, limits=limits).split()
    fitted = fitted_with(GaussianLikelihood(NOISE), context)
    return fitted, context, target


def exact(rng_key, fitted, context, num_samples):
    return sharpen(rng_key, fitted, context, num_samples=num_samples).z0


@pytest.mark.slow
def test_forecasts_of_what_has_errors_and_limits_are_calibrated(forecasts):
    fitted, context, target = forecasts
    found = calibration(KEY, fitted, context, target, inference=exact, num_samples=200)
    mask, limited = np.asarray(target.mask), target.limited
    assert limited.any()
    assert np.isfinite(found.pit[mask]).all()
    assert np.isfinite(found.log_score[mask]).all()
    for array in (found.error, found.crps):
        np.testing.assert_array_equal(np.isfinite(array), mask & ~limited)
    np.testing.assert_allclose(found.coverage, found.levels, atol=0.06)
    np.testing.assert_allclose(found.pit[mask].mean(), 0.5, atol=0.05)
    scores = score(target, np.ones(2), of_calibration(target, found))
    crps = np.nanmean(found.crps)
    np.testing.assert_allclose(scores["crps"], crps, rtol=1e-5)


def test_a_score_of_limits_alone_is_no_number(forecasts):
    fitted, context, target = forecasts
    only = target.keep(target.limited)
    found = calibration(KEY, fitted, context, only, num_samples=20)
    scores = score(only, np.ones(2), of_calibration(only, found))
    assert np.isnan(scores["rmse"])
    assert np.isnan(scores["crps"])
    assert np.isfinite(found.log_score[np.asarray(only.mask)]).all()
    count = int(only.mask.sum())
    assert f"coverage of {count} observations, {count} of them limits: " in str(found)
    assert "\nCRPS -, log score " in str(found)


def test_a_forecast_of_the_future_has_no_error_of_measurement(forecasts):
    fitted, context, _ = forecasts
    without = context.replace_arrays(context.times, context.values, context.mask, context.limits)
    draws = forecast(KEY, fitted, context, [2.5], num_samples=50)["x"]
    plain = without._replace(error=None)
    np.testing.assert_array_equal(draws, forecast(KEY, fitted, plain, [2.5], num_samples=50)["x"])


@pytest.mark.slow
def test_simulations_and_trees_have_the_errors_too(forecasts, tmp_path):
    fitted, context, _ = forecasts
    some = context[:6]
    ranks = simulation_ranks(KEY, fitted, some, num_samples=20).ranks
    assert np.isfinite(ranks).all()
    tree = to_datatree(KEY, fitted, some, num_samples=5)
    np.testing.assert_array_equal(tree["constant_data"]["error"], some.given.error)
    np.testing.assert_array_equal(tree["constant_data"]["upper"], some.given.limits.upper)
    assert np.isfinite(tree["log_likelihood"]["x"]).all()
    model, guide = latent_ode(some, latent_dim=1, likelihood=ou(), rngs=nnx.Rngs(0))
    whole = Fitted(model, guide, initial_params(model, guide))
    save(tmp_path / "fit", whole)
    a, b = (log_likelihood(f, jnp.zeros((1, 6, 1)), some) for f in (whole, load(tmp_path / "fit")))
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [GaussianLikelihood, OrnsteinUhlenbeckLikelihood])
def test_slopes_in_all_parameters_are_those_of_differences(likelihood, x64):
    cells = [(0, 0, -np.inf, 0.5), (1, 1, 0.1, np.inf), (2, 0, 0.2, 0.9), (3, 0, -3.0, np.inf)]
    mask = np.ones(VALUES.shape, bool)
    mask[0, 1, 0] = False
    data = Trajectories(TIMES, VALUES, mask, error=ERROR, limits=limits_at(*cells))
    fitted = fitted_with(likelihood(), data)
    names = [name for name in fitted.params if "scale" in name]

    @jax.jit
    def total(logs):
        params = fitted.params | {name: jnp.exp(log) for name, log in zip(names, logs, strict=True)}
        x = run_given(fitted.model, params, 0, Z0[0], data)["x"]
        return x["fn"].log_prob(x["value"]).sum()

    logs = [jnp.log(jnp.asarray(fitted.params[name], float)) for name in names]
    slopes = jax.grad(total)(logs)
    for k, slope in enumerate(slopes):
        for j in range(2):
            up, down = ([*logs] for _ in range(2))
            up[k], down[k] = logs[k].at[j].add(1e-5), logs[k].at[j].add(-1e-5)
            expected = (total(up) - total(down)) / 2e-5
            np.testing.assert_allclose(slope[j], expected, rtol=1e-4, atol=1e-7)


def test_checks_in_several_threads_do_not_disturb_each_other():
    """NumPyro has one stack of handlers for all threads, and a check runs a likelihood."""
    some = Trajectories(TIMES, VALUES, error=ERROR)
    likelihood = FeatureLikelihoods(OrnsteinUhlenbeckLikelihood(), GaussianLikelihood())

    def check(_):
        check_observed(likelihood, some, name="train")

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(check, range(40))] == [None] * 40

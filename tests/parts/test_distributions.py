import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.distributions.transforms import biject_to
from scipy import integrate, special, stats

from np_latentode import FullRankNormal
from np_latentode.parts.distributions import (
    ProductDistribution,
    ProjectedCircle,
    Ring,
    TriangularNormal,
)
from np_latentode.parts.supports import describe_support

CONCENTRATIONS = [(0.0, 0.0), (0.7, -0.2), (-3.0, 4.0), (20.0, 5.0), (0.0, 200.0)]


def on_circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def exact_log_prob(concentration, angles):
    """The log density in double precision, by Mills' ratio M."""
    u = on_circle(angles)
    t = u @ concentration
    across = concentration[0] * u[:, 1] - concentration[1] * u[:, 0]
    mills = np.sqrt(np.pi / 2) * special.erfcx(-t / np.sqrt(2))
    log_phi = stats.norm.logpdf(t)
    # For t < -30, the series 1 + t M = 1/t^2 - 3/t^4 + 15/t^6 - ... is more exact than the sum.
    series = 1 / t**2 - 3 / t**4 + 15 / t**6
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = np.where(t < -30, series, 1 + t * mills)
    along = np.where(t > 30, np.log(np.maximum(t, 1)), log_phi + np.log(ratio))
    return along - 0.5 * across**2 - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("concentration", CONCENTRATIONS, ids=str)
def test_the_density_on_the_circle_integrates_to_one(concentration):
    circle = ProjectedCircle(jnp.array(concentration))
    mode = np.arctan2(concentration[1], concentration[0])
    width = min(np.pi, 12 / max(np.hypot(*concentration), 1e-9))
    angles = mode + np.linspace(-width, width, 4001)
    density = np.exp(np.asarray(circle.log_prob(jnp.asarray(on_circle(angles))), float))
    np.testing.assert_allclose(integrate.simpson(density, x=angles), 1, rtol=2e-4)


@pytest.mark.parametrize("concentration", CONCENTRATIONS[1:4], ids=str)
def test_draws_on_the_circle_follow_the_density(concentration, getkey):
    draws = np.asarray(ProjectedCircle(jnp.array(concentration)).sample(getkey(), (20_000,)))
    np.testing.assert_allclose(np.linalg.norm(draws, axis=-1), 1, rtol=1e-5)
    mode = np.arctan2(concentration[1], concentration[0])
    angles = np.linspace(-np.pi, np.pi, 8001)
    density = np.exp(exact_log_prob(np.array(concentration), mode + angles))
    cdf = integrate.cumulative_simpson(density, x=angles, initial=0)
    turned = (np.arctan2(draws[:, 1], draws[:, 0]) - mode + np.pi) % (2 * np.pi) - np.pi
    assert stats.kstest(turned, lambda a: np.interp(a, angles, cdf)).pvalue > 1e-3


@pytest.mark.parametrize("concentration", CONCENTRATIONS[1:], ids=str)
def test_the_density_is_exact_all_around_the_circle(concentration, tolerance):
    angles = np.linspace(-np.pi, np.pi, 101)
    got = ProjectedCircle(jnp.array(concentration)).log_prob(jnp.asarray(on_circle(angles)))
    assert np.isfinite(got).all()
    exact = exact_log_prob(np.array(concentration), angles)
    # The error is relative to the largest term of the sum, half the squared concentration.
    size = 1 + np.square(concentration).sum()
    np.testing.assert_allclose(
        got, exact, rtol=tolerance(1e-5, 1e-9), atol=tolerance(3e-7, 1e-9) * size
    )


def test_numpyro_agrees_where_it_can():
    for angle in (0.0, 0.5, 1.5):
        concentration, u = jnp.array([1.5, 0.5]), jnp.asarray(on_circle(angle))
        expected = dist.ProjectedNormal(concentration).log_prob(u)
        np.testing.assert_allclose(ProjectedCircle(concentration).log_prob(u), expected, rtol=1e-5)


def test_numpyro_s_own_density_ends_on_the_far_side():
    # This is why ProjectedCircle exists. If this test fails, the class is no longer needed.
    far = dist.ProjectedNormal(jnp.array([30.0, 0.0])).log_prob(jnp.array([-1.0, 0.0]))
    assert not np.isfinite(far) or np.asarray(far).dtype == np.float64


@pytest.mark.parametrize("angle", [0.0, 2.0, np.pi])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 300.0])
def test_gradients_on_the_circle_are_finite_everywhere(angle, size):
    u = jnp.asarray(on_circle(angle))
    score = jax.grad(lambda c: ProjectedCircle(c).log_prob(u))
    assert np.isfinite(score(jnp.array([size, 0.0]))).all()
    path = jax.grad(lambda c: ProjectedCircle(c).sample(jax.random.key(0))[1])
    gradient = path(jnp.array([size, 0.0]))
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


def test_zero_concentration_is_uniform():
    angles = np.linspace(-3, 3, 7)
    got = ProjectedCircle(jnp.zeros(2)).log_prob(jnp.asarray(on_circle(angles)))
    np.testing.assert_allclose(got, -np.log(2 * np.pi), rtol=1e-5)


# Rings


@pytest.mark.parametrize(("radius", "scale"), [(1.0, 0.7), (2.0, 0.1), (0.01, 1.0)])
def test_a_ring_s_density_integrates_to_one_and_is_rice_s(radius, scale):
    ring = Ring(radius, scale)
    length = np.linspace(1e-4, radius + 9 * scale, 4001)
    points = jnp.asarray(np.stack([length * np.cos(0.3), length * np.sin(0.3)], -1))
    density = 2 * np.pi * length * np.exp(np.asarray(ring.log_prob(points), float))
    np.testing.assert_allclose(integrate.simpson(density, x=length), 1, rtol=1e-3)
    rice = stats.rice(radius / scale, scale=scale).pdf(length)
    np.testing.assert_allclose(density, rice, rtol=1e-3, atol=1e-5)


def test_a_ring_s_draws_follow_its_density(getkey):
    draws = np.asarray(Ring(1.5, 0.4).sample(getkey(), (20_000,)), float)
    rice = stats.rice(1.5 / 0.4, scale=0.4)
    assert stats.kstest(np.linalg.norm(draws, axis=-1), rice.cdf).pvalue > 1e-3
    angle = np.arctan2(draws[:, 1], draws[:, 0]) / (2 * np.pi) % 1
    assert stats.kstest(angle, "uniform").pvalue > 1e-3


def test_a_ring_starts_like_a_normal(getkey):
    draws = np.asarray(Ring(1.0, 0.7).sample(getkey(), (50_000,)), float)
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(2), atol=0.03)


@pytest.mark.parametrize("point", [(0.0, 0.0), (1.0, 0.0), (-300.0, 200.0)], ids=str)
def test_a_ring_s_gradients_are_finite_everywhere(point):
    score = jax.grad(lambda z, r, s: Ring(r, s).log_prob(z), argnums=(0, 1, 2))
    gradients = score(jnp.array(point), 1.0, 0.01)
    assert all(np.isfinite(g).all() for g in gradients)


# Triangular normals


@pytest.mark.parametrize("dim", [2, 4, 8])
@pytest.mark.parametrize("raw", [0.0, 30.0, 1e3, -1e3])
@pytest.mark.slow
def test_a_full_rank_normal_scores_its_own_draws_exactly(dim, raw):
    posterior = FullRankNormal(3, dim, rngs=nnx.Rngs(0))
    last = posterior.head.layers[-1]
    # The narrowest and most correlated posterior that the head can return.
    bias = jnp.full(last.bias.shape, raw).at[:dim].set(1.0).at[dim : 2 * dim].set(-4.0)
    last.bias[...], last.kernel[...] = bias, 0 * last.kernel[...]
    q = posterior(jnp.zeros((1, 3)))
    draws, remembered = q.sample_with_intermediates(jax.random.key(0), (2_000,))
    scales = jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1)
    entropy = jnp.log(scales).sum() + 0.5 * dim * np.log(2 * np.pi * np.e)
    found = q.log_prob(draws, remembered).mean()
    np.testing.assert_allclose(found, -entropy, atol=5 * np.sqrt(dim / 2 / 2_000))


def test_a_triangular_normal_is_numpyro_s(getkey):
    rng = np.random.default_rng(0)
    loc = jnp.asarray(rng.normal(size=(4, 3)))
    scale_tril = jnp.asarray(np.tril(rng.normal(size=(4, 3, 3)), -1) + np.eye(3))
    mine, numpyros = (
        TriangularNormal(loc, scale_tril),
        dist.MultivariateNormal(loc, scale_tril=scale_tril),
    )
    draws, remembered = mine.sample_with_intermediates(getkey(), (5_000,))
    np.testing.assert_allclose(mine.log_prob(draws), numpyros.log_prob(draws), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        mine.log_prob(draws, remembered), numpyros.log_prob(draws), rtol=1e-3, atol=1e-3
    )
    covariance = np.cov(np.asarray(draws)[:, 0].T)
    np.testing.assert_allclose(covariance, scale_tril[0] @ scale_tril[0].T, atol=0.3)


# Products

NORMAL = dist.Normal(jnp.array([1.0, -2.0]), 0.5).to_event(1)
CIRCLE = ProjectedCircle(jnp.array([2.0, 1.0]))
POSITIVE = dist.LogNormal(0.3, 0.4).expand([3]).to_event(1)
BATCHED = dist.MultivariateNormal(jnp.arange(8.0).reshape(4, 2), jnp.eye(2))
PRODUCTS = {
    "circle and normal": (CIRCLE, NORMAL),
    "two circles": (CIRCLE, ProjectedCircle(jnp.zeros(2))),
    "normal, circle, positive": (NORMAL, CIRCLE, POSITIVE),
    "one batch of four": (CIRCLE, BATCHED),
}


@pytest.fixture(params=PRODUCTS.values(), ids=PRODUCTS.keys())
def factors(request):
    return request.param


@pytest.mark.slow
def test_a_product_scores_the_sum_of_its_factors(factors, getkey):
    product = ProductDistribution(*factors)
    draws = product.sample(getkey(), (5,))
    assert draws.shape == (5, *product.batch_shape, *product.event_shape)
    ends = list(itertools.accumulate(f.event_shape[0] for f in factors))
    pieces = np.split(np.asarray(draws), ends[:-1], axis=-1)
    expected = sum(f.log_prob(jnp.asarray(p)) for f, p in zip(factors, pieces, strict=True))
    np.testing.assert_allclose(product.log_prob(draws), expected, rtol=1e-5)


def test_factors_are_drawn_independently(getkey):
    twins = ProductDistribution(dist.Normal(jnp.zeros(1), 1).to_event(1), *(NORMAL,) * 2)
    draws = np.asarray(twins.sample(getkey(), (4_000,)))
    correlation = np.corrcoef(draws.T) - np.eye(5)
    assert np.abs(correlation).max() < 0.07


def test_a_product_knows_its_support(factors, getkey):
    product = ProductDistribution(*factors)
    draws = product.sample(getkey(), (5,))
    assert product.support(draws).all()
    assert product.support(draws).shape == (5, *product.batch_shape)
    if describe_support(product) != "R^2":
        assert not product.support(2 * draws - 9).any()


def test_the_unconstrained_space_of_a_product_has_an_angle_for_a_circle(factors, getkey):
    product = ProductDistribution(*factors)
    transform = biject_to(product.support)
    draws = product.sample(getkey(), (5,))
    angles = transform.inv(draws)
    circles = sum(isinstance(f, ProjectedCircle) for f in factors)
    assert angles.shape == (*draws.shape[:-1], draws.shape[-1] - circles)
    assert transform.inverse_shape(draws.shape) == angles.shape
    assert transform.forward_shape(angles.shape) == draws.shape
    np.testing.assert_allclose(transform(angles), draws, rtol=1e-5, atol=1e-6)


def test_the_density_over_unconstrained_numbers_integrates_to_one():
    product = ProductDistribution(CIRCLE, dist.LogNormal(jnp.array([0.2]), 0.5).to_event(1))
    transform = biject_to(product.support)
    angle, log = np.linspace(-np.pi, np.pi, 301), np.linspace(-3, 3.4, 301)
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(angle), jnp.asarray(log), indexing="ij"), -1)
    z = transform(grid)
    density = jnp.exp(product.log_prob(z) + transform.log_abs_det_jacobian(grid, z))
    total = integrate.simpson(integrate.simpson(np.asarray(density, float), x=log), x=angle)
    np.testing.assert_allclose(total, 1, rtol=1e-4)


@pytest.mark.slow
def test_a_product_expands_like_any_distribution(factors, getkey):
    product = ProductDistribution(*factors)
    wide = product.expand((3, *product.batch_shape))
    draws = wide.sample(getkey())
    assert draws.shape == (3, *product.batch_shape, *product.event_shape)
    assert np.ptp(np.asarray(draws), axis=0).min() > 0
    np.testing.assert_allclose(wide.log_prob(draws), product.log_prob(draws), rtol=1e-6)


@pytest.mark.slow
def test_a_product_passes_through_jit(factors, getkey):
    product = ProductDistribution(*factors)
    draws = product.sample(getkey())
    score = jax.jit(lambda p, z: p.log_prob(z))
    np.testing.assert_allclose(score(product, draws), product.log_prob(draws), rtol=1e-5)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (NORMAL, "R^2"),
        (BATCHED, "R^2"),
        (CIRCLE, "S^1"),
        (ProductDistribution(NORMAL, BATCHED), "R^4"),
        (ProductDistribution(CIRCLE, NORMAL, BATCHED), "S^1 x R^4"),
        (ProductDistribution(NORMAL, CIRCLE), "R^2 x S^1"),
    ],
)
def test_supports_are_described_alike_where_they_agree(distribution, expected):
    assert describe_support(distribution) == expected


def test_another_support_is_described_as_another():
    assert describe_support(POSITIVE) != describe_support(dist.Normal(jnp.zeros(3), 1).to_event(1))

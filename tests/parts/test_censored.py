"""Intervals against SciPy, in both precisions: probabilities, moments and slopes, far out too."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm, t, truncnorm

from np_latentode import Limits
from np_latentode.parts.censored import Censored, truncated_normal

INTERVALS = np.array(
    [
        *[(-np.inf, x) for x in (-30.0, -6.0, -5.0, -0.5, 0.0, 2.0, 7.0)],
        *[(x, np.inf) for x in (-7.0, -2.0, 0.0, 0.5, 5.0, 6.0, 30.0)],
        *[(-1.0, 1.0), (-3.0, -2.0), (1.0, 1.1), (8.0, 9.0), (-20.0, -19.99), (-40.0, 40.0)],
        *[(0.1, 0.101), (-0.25, 0.25), (4.9, 5.3), (-5.3, -4.9), (-30.0, 29.0)],
        *[(6.0, 6.1), (10.0, 10.1), (50.0, 50.2), (-50.2, -50.0), (20.0, 26.0)],
    ]
)
LOC, SCALE, DF = 0.7, 1.7, 4.0
BASES = {"normal": dist.Normal, "student": lambda loc, scale: dist.StudentT(DF, loc, scale)}


def expected_log_p(kind, loc=LOC):
    """In double precision: by the tail in which SciPy loses no digits."""
    known = norm(loc, SCALE) if kind == "normal" else t(DF, loc, SCALE)
    lower, upper = INTERVALS.T
    below = lower + upper < 2 * loc
    p = np.where(below, known.cdf(upper) - known.cdf(lower), known.sf(lower) - known.sf(upper))
    tails = np.where(np.isinf(lower), known.logcdf(upper), known.logsf(lower))
    with np.errstate(divide="ignore"):
        return np.where(np.isinf(INTERVALS).any(1), tails, np.log(p))


def of_intervals(kind, loc, scale):
    lower, upper = INTERVALS.T
    ones = jnp.ones(len(lower))
    censored = Censored(BASES[kind](loc * ones, scale * ones), Limits(lower, upper))
    return censored.log_prob(0 * ones)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("double", [False, True])
def test_a_limit_has_the_probability_of_its_interval(kind, double):
    with jax.enable_x64(double):
        found = of_intervals(kind, LOC, SCALE)
        np.testing.assert_allclose(
            found, expected_log_p(kind), rtol=1e-8 if double else 3e-5, atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASES)
def test_slopes_are_those_of_the_probability_and_finite_far_out(kind):
    def total(loc, scale):
        return of_intervals(kind, loc, scale)

    for argument in (0, 1):
        slopes = jax.jacfwd(total, argument)(jnp.asarray(LOC), jnp.asarray(SCALE))
        back = jax.jacrev(total, argument)(jnp.asarray(LOC), jnp.asarray(SCALE))
        np.testing.assert_allclose(slopes, back, rtol=1e-3, atol=1e-6)
        curvature = jax.jacfwd(jax.jacfwd(total, argument), argument)
        assert np.isfinite(curvature(jnp.asarray(LOC), jnp.asarray(SCALE))).all()
    step = 1e-5
    numeric = (expected_log_p(kind, LOC + step) - expected_log_p(kind, LOC - step)) / (2 * step)
    found = jax.jacfwd(total, 0)(jnp.asarray(LOC), jnp.asarray(SCALE))
    np.testing.assert_allclose(found, numeric, rtol=2e-3, atol=1e-4)
    far = jax.grad(lambda loc: total(loc, jnp.asarray(0.01)).sum())(jnp.asarray(LOC))
    assert jnp.isfinite(far)


def test_moments_of_what_lies_in_an_interval_are_scipys():
    lower, upper = INTERVALS.T
    found = truncated_normal(jnp.asarray(lower), jnp.asarray(upper))
    # SciPy's own moments lose digits far out; there the mean is the bound, nearly.
    near = (np.abs(np.where(np.isinf(lower), upper, lower)) < 10) & (lower != -40.0)
    mean, variance = truncnorm.stats(lower[near], upper[near], moments="mv")
    np.testing.assert_allclose(np.asarray(found.mean)[near], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.asarray(found.variance)[near], variance, rtol=1e-2, atol=1e-6)
    assert np.isfinite(found.mean).all()
    assert ((found.mean >= lower) & (found.mean <= upper)).all()


def test_values_beside_limits_keep_their_density():
    base = dist.Normal(jnp.zeros(3), jnp.ones(3))
    limits = Limits([np.nan, -np.inf, np.nan], [np.nan, 0.5, np.nan])
    values = jnp.array([0.3, 0.5, -2.0])
    found = Censored(base, limits).log_prob(values)
    expected = [norm.logpdf(0.3), norm.logcdf(0.5), norm.logpdf(-2)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    slope = jax.grad(
        lambda loc: Censored(dist.Normal(loc, jnp.ones(3)), limits).log_prob(values).sum()
    )(jnp.zeros(3))
    np.testing.assert_allclose(
        slope, [0.3, -norm.pdf(0.5) / norm.cdf(0.5), -2.0], rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("df", [0.05, 0.5, 1.0, 2.5, 30.0, 300.0])
@pytest.mark.parametrize("double", [False, True])
def test_a_limit_under_a_student_t_is_right_for_few_and_many_degrees_of_freedom(df, double):
    middle, width = np.meshgrid([0.0, 0.3, 2.0, 6.0, 10.0, 50.0, 300.0], [0.01, 0.1, 0.2, 1.0, 3.0])
    lower, upper = (middle - width / 2).ravel(), (middle + width / 2).ravel()
    expected = student_log_p(df, lower, upper)
    with jax.enable_x64(double):
        ones = jnp.ones(len(lower))
        base = dist.StudentT(df, 0 * ones, ones)
        found = np.asarray(Censored(base, Limits(lower, upper)).log_prob(0 * ones))
    # Single precision rounds the bounds themselves.
    tolerance = 1e-6 if double else 2e-3
    np.testing.assert_allclose(found, expected, rtol=1e-8 if double else 2e-5, atol=tolerance)


def student_log_p(df, lower, upper):
    """By the logarithm of the density, in many nodes: no probability underflows."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    half = ((upper - lower) / 2)[:, None]
    terms = t.logpdf(((upper + lower) / 2)[:, None] + half * nodes, df) + np.log(weights * half)
    return np.logaddexp.reduce(terms, axis=1)


@pytest.mark.parametrize("df", [0.5, 4.0, 30.0, 300.0, 3000.0])
def test_one_sided_limits_far_out_have_their_probability_and_slope(df):
    """Where the distribution function underflows, and before."""
    x = np.array([5.0, 8.0, 12.0, 20.0, 40.0, 100.0, 1e3, 1e5])
    limits = Limits(x, np.full(len(x), np.inf))

    def found(loc):
        base = dist.StudentT(df, loc, jnp.ones(len(x)))
        return Censored(base, limits).log_prob(jnp.zeros(len(x)))

    # f(y) dy falls at least as fast as exp(-rate v), with y = x e^v.
    nodes, weights = np.polynomial.legendre.leggauss(400)
    end = 40 / ((df + 1) * x**2 / (df + x**2) - 1)[:, None]
    v = end * (nodes + 1) / 2
    y = x[:, None] * np.exp(v)
    terms = t.logpdf(y, df) + np.log(y) + np.log(weights * end / 2)
    expected = np.logaddexp.reduce(terms, axis=1)
    np.testing.assert_allclose(found(jnp.zeros(len(x))), expected, rtol=2e-5, atol=2e-4)
    slope = jax.grad(lambda loc: found(loc).sum())(jnp.zeros(len(x)))
    np.testing.assert_allclose(slope, np.exp(t.logpdf(x, df) - expected), rtol=2e-3)

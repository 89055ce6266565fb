import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from np_latentode import Trajectories, datasets

OTHER = dict(
    end=2.0, num_dense=11, num_observed=6, noise_scale=0.3, radius=1.2, growth=-0.1, speed=3.0
)


@pytest.fixture(scope="module")
def many():
    return datasets.spirals(jax.random.key(0), 2_000)


@pytest.fixture(scope="module")
def others():
    return datasets.spirals(jax.random.key(1), 400, **OTHER)


def exact_curve(family, phase, direction, times):
    """The recipe in NumPy, in double precision."""
    times = np.asarray(times, np.float64)
    r = family.radius + family.growth * times
    angle = direction * family.speed * times + phase
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=-1)


def noiseless(x):
    phase, direction = np.asarray(x.phase, np.float64)[:, None], np.asarray(x.direction)[:, None]
    return exact_curve(x.family, phase, direction, x.times)


@pytest.mark.slow
def test_the_default_recipe_is_that_of_the_paper(many):
    assert many.values.shape == (2_000, 30, 2)
    assert many.mask.all()
    np.testing.assert_allclose(many.dense_times, np.linspace(0, 5, 100), rtol=1e-6)
    assert len(jax.eval_shape(datasets.spirals, jax.random.key(0))) == 250
    start, end = np.asarray(many.curves[:, 0]), np.asarray(many.curves[:, -1])
    np.testing.assert_allclose(np.hypot(*start.T), 0.5, rtol=1e-5)
    np.testing.assert_allclose(np.hypot(*end.T), 0.4 * 5 + 0.5, rtol=1e-5)
    turned = np.angle((end @ [1, 1j]) / (start @ [1, 1j]) * np.exp(-7.5j * many.direction))
    np.testing.assert_allclose(turned, 0, atol=1e-4)


@pytest.mark.parametrize("name", ["many", "others"])
def test_curves_are_those_of_phase_and_direction(request, name):
    x = request.getfixturevalue(name)
    phase, direction = np.asarray(x.phase)[:, None], np.asarray(x.direction)[:, None]
    np.testing.assert_allclose(
        x.curves, exact_curve(x.family, phase, direction, x.dense_times), atol=1e-5
    )


@pytest.mark.parametrize("name", ["many", "others"])
def test_observed_times_are_distinct_and_sorted_and_on_the_grid(request, name):
    x = request.getfixturevalue(name)
    assert (np.diff(x.times) > 0).all()
    assert np.isin(x.times, x.dense_times).all()


@pytest.mark.parametrize("name", ["many", "others"])
def test_every_grid_time_is_observed_as_often(request, name):
    x = request.getfixturevalue(name)
    share = x.family.num_observed / x.family.num_dense
    _, counts = np.unique(x.times, return_counts=True)
    assert len(counts) == x.family.num_dense
    sd = np.sqrt(share * (1 - share) / len(x))
    np.testing.assert_allclose(counts / len(x), share, atol=4.5 * sd)


@pytest.mark.parametrize("name", ["many", "others"])
def test_noise_is_normal_with_the_scale_of_the_family(request, name):
    x = request.getfixturevalue(name)
    noise = np.ravel(x.values - noiseless(x)) / x.family.noise_scale
    np.testing.assert_allclose(noise.mean(), 0, atol=4 / np.sqrt(noise.size))
    np.testing.assert_allclose(noise.std(), 1, atol=4 / np.sqrt(2 * noise.size))
    assert stats.kstest(noise, "norm").pvalue > 1e-3


def test_phases_are_uniform_and_both_directions_as_frequent(many):
    assert stats.kstest(many.phase, stats.uniform(0, 2 * np.pi).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(np.unique(many.direction), [-1, 1])
    np.testing.assert_allclose(np.mean(many.direction), 0, atol=4 / np.sqrt(2_000))


def test_every_number_of_the_recipe_is_a_parameter(others):
    assert others.family == datasets.SpiralFamily(**OTHER)
    assert others.values.shape == (400, 6, 2)
    assert others.curves.shape == (400, 11, 2)
    np.testing.assert_allclose(others.dense_times, np.linspace(0, 2, 11), rtol=1e-6)


def test_a_key_fixes_the_spirals(others):
    again = datasets.spirals(jax.random.key(1), 400, **OTHER)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (datasets.spirals(jax.random.key(2), 400, **OTHER).phase != others.phase).all()


BAD_NUMBERS = {
    "end": [0.0, -1.0, np.nan, np.inf],
    "noise_scale": [0.0, -0.05, np.nan, np.inf],
    "num_observed": [0, 101, 2.5],
    "num_dense": [0, 29, 30.5],
    "radius": [np.nan, np.inf],
    "growth": [np.nan, np.inf],
    "speed": [np.nan, np.inf],
    "num_trajectories": [0, -3, 2.5],
}


@pytest.mark.parametrize(
    ("name", "number"), [(name, n) for name, bad in BAD_NUMBERS.items() for n in bad]
)
def test_bad_numbers_are_refused(untyped, name, number):
    with pytest.raises(ValueError, match=name):
        datasets.spirals(jax.random.key(0), **({"num_trajectories": 3} | {name: number}))


def brute_force(family, context, times, *, num_phases=4_096):
    """Bayes' rule on a grid of phases in both directions: log evidence, and the first two moments
    of the curve at `times`."""
    phase = 2 * np.pi * np.arange(num_phases)[:, None] / num_phases
    direction = np.array([-1.0, 1.0])[:, None, None]
    curves = exact_curve(family, phase, direction, times)
    evidence, means, squares = [], [], []
    arrays = (context.times, context.values, context.mask)
    for seen_at, x, mask in zip(*map(np.asarray, arrays), strict=True):
        mean = exact_curve(family, phase, direction, seen_at)
        log_likelihood = stats.norm.logpdf(x, mean, family.noise_scale).sum((-1, -2), where=mask)
        evidence.append(logsumexp(log_likelihood) - np.log(log_likelihood.size))
        weight = np.exp(log_likelihood - logsumexp(log_likelihood))
        means.append(np.einsum("dp,dptx->tx", weight, curves))
        squares.append(np.einsum("dp,dptx->tx", weight, curves**2))
    return np.array(evidence), np.array(means), np.array(squares)


def some_contexts(x):
    """Whole, a prefix, one point, nothing, and some points."""
    keep = np.zeros((5, x.times.shape[1]), bool)
    keep[0] = keep[1, :3] = keep[2, 4] = keep[4, ::2] = True
    return x[:5].keep(keep)


@pytest.mark.parametrize("name", ["many", "others"])
@pytest.mark.slow
def test_the_oracle_is_bayes_rule(request, name, tolerance):
    x = request.getfixturevalue(name)
    context, times = some_contexts(x), np.linspace(0, 1.5 * x.family.end, 7)
    evidence, mean, _ = brute_force(x.family, context, times)
    oracle = x.family.posterior(context)
    np.testing.assert_allclose(oracle.mean(jnp.asarray(times)), mean, atol=tolerance(1e-4, 1e-8))
    # In single precision, the log likelihood loses digits to terms of |x|^2 / noise_scale^2.
    size = float(jnp.max(jnp.sum(context.values**2, (1, 2)))) / x.family.noise_scale**2
    np.testing.assert_allclose(
        oracle.log_evidence, evidence, atol=tolerance(1e-5 + 1e-6 * size, 1e-7)
    )


@pytest.mark.parametrize("name", ["many", "others"])
@pytest.mark.slow
def test_draws_of_the_oracle_have_its_moments(request, name, getkey):
    x = request.getfixturevalue(name)
    context, times = some_contexts(x), np.array([0.0, 1.0, 3.0])
    sample = jax.jit(x.family.posterior(context).sample, static_argnums=2)
    draws = np.asarray(sample(getkey(), jnp.asarray(times), 4_000))
    assert draws.shape == (4_000, 5, 3, 2)
    _, mean, square = brute_force(x.family, context, times)
    sd = np.sqrt(square - mean**2 + x.family.noise_scale**2)
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / sd, 0, atol=4 / np.sqrt(4_000))
    np.testing.assert_allclose(draws.std(axis=0), sd, rtol=0.06)


def test_with_nothing_observed_the_oracle_is_the_prior(others, tolerance):
    oracle = others.family.posterior(others[:5].before(-1.0))
    np.testing.assert_allclose(oracle.mean(jnp.arange(7.0)), 0, atol=1e-7)
    np.testing.assert_array_equal(oracle.weight, np.full((5, 2), 0.5))
    np.testing.assert_allclose(oracle.log_evidence, 0, atol=tolerance(1e-6, 1e-14))


def test_the_oracle_is_a_pytree_of_arrays(others):
    oracle = others.family.posterior(others[:5])
    times = jnp.arange(7.0)
    under_jit = jax.jit(lambda oracle: oracle.mean(times))(oracle)
    np.testing.assert_allclose(under_jit, oracle.mean(times), atol=1e-5)


def test_a_point_seen_in_one_coordinate_is_refused():
    mask = np.ones((1, 4, 2), bool)
    mask[0, 2, 1] = False
    context = Trajectories(np.arange(4.0)[None], np.ones((1, 4, 2)), mask)
    with pytest.raises(ValueError, match="context must observe both coordinates"):
        datasets.SpiralFamily().posterior(context)


@pytest.mark.parametrize(
    ("cut", "limit"), [(None, 1e-4), (2.5, 5e-4)], ids=["reconstruction", "extrapolation"]
)
@pytest.mark.slow
def test_the_error_of_the_oracle_is_that_of_its_fisher_information(many, cut, limit):
    """The variance of the phase is noise^2 / sum_k r(t_k)^2, and it moves the curve by r(t)."""
    x, family, times = many[:500], many.family, np.asarray(many.dense_times)
    context, scored = (x, times > -1) if cut is None else (x.before(cut), times > cut)

    def r(t):
        return family.radius + family.growth * np.asarray(t)

    seen = np.sum(r(context.times) ** 2, axis=1, where=np.asarray(context.observed))
    expected = np.mean(r(times[scored]) ** 2) / 2 * np.mean(family.noise_scale**2 / seen)
    error = np.asarray(family.posterior(context).mean(x.dense_times) - x.curves)[:, scored]
    # Squared errors have one degree of freedom per spiral, so the standard error is near 7%.
    np.testing.assert_allclose(np.mean(error**2), expected, rtol=0.25)
    assert np.mean(error**2) < limit

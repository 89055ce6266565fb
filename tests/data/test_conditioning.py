import functools

import jax
import numpy as np
import pytest
from scipy import stats

from np_latentode import Trajectories, random_context, random_points, random_prefix

SCHEMES = [random_prefix, random_points, random_context]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.__name__)


@pytest.fixture
def trajectories():
    """Trajectories with missing values, one with a single observation, and one with none."""
    rng = np.random.default_rng(0)
    times, values = np.sort(rng.uniform(2, 9, (6, 20)), axis=1), rng.normal(size=(6, 20, 2))
    mask = rng.uniform(size=values.shape) < 0.6
    mask[4] = mask[5] = False
    mask[4, 7, 1] = True
    return Trajectories(times, values, mask)


@pytest.fixture(scope="module")
def dense():
    """2,000 trajectories observed at 401 regular times from 3 to 5."""
    times = np.linspace(3.0, 5.0, 401)[None].repeat(2_000, axis=0)
    return Trajectories(times, np.ones((2_000, 401, 1)))


@every_scheme
def test_conditioning_only_hides(scheme, trajectories, getkey):
    for _ in range(5):
        context = scheme(getkey(), trajectories)
        assert type(context) is Trajectories
        np.testing.assert_array_equal(context.times, trajectories.times)
        assert not (context.mask & ~trajectories.mask).any()
        np.testing.assert_array_equal(
            context.values, np.where(context.mask, trajectories.values, 0)
        )


@every_scheme
def test_an_empty_trajectory_stays_empty_and_finite(scheme, trajectories, getkey):
    context = scheme(getkey(), trajectories)
    assert not context.mask[5].any()
    for array in (context.times, context.values):
        assert np.isfinite(array).all()


@every_scheme
def test_conditioning_does_the_same_under_jit(scheme, trajectories, getkey):
    key = getkey()
    compiled, plain = jax.jit(scheme)(key, trajectories), scheme(key, trajectories)
    for a, b in zip(jax.tree.leaves(compiled), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@every_scheme
def test_another_key_hides_other_observations(scheme, trajectories, getkey):
    first, second = getkey(), getkey()
    once = scheme(first, trajectories).mask
    np.testing.assert_array_equal(scheme(first, trajectories).mask, once)
    assert (scheme(second, trajectories).mask != once).any()


@every_scheme
def test_each_trajectory_is_hidden_on_its_own(scheme, dense, getkey):
    masks = scheme(getkey(), dense[:50]).mask
    # random_context keeps about half of the trajectories whole, and these have the same mask.
    assert len({mask.tobytes() for mask in np.asarray(masks)}) > 12


def test_a_prefix_hides_an_end_and_never_the_start(trajectories, getkey):
    times, mask = np.asarray(trajectories.times), np.asarray(trajectories.mask)
    for _ in range(5):
        kept = np.asarray(random_prefix(getkey(), trajectories).mask)
        for i in range(5):
            last = times[i][kept[i].any(-1)].max()
            np.testing.assert_array_equal(kept[i], mask[i] & (times[i] <= last)[:, None])


@pytest.mark.parametrize("min_share", [None, 0.0, 0.8])
def test_the_share_of_a_prefix_is_uniform(dense, getkey, min_share):
    scheme = random_prefix
    if min_share is not None:
        scheme = functools.partial(random_prefix, min_share=min_share)
    low = 0.25 if min_share is None else min_share
    shares = np.asarray(scheme(getkey(), dense).observed.sum(axis=1) - 1) / 400
    # One step of the grid less, as shares are rounded down to the grid.
    assert low - 1 / 400 <= shares.min()
    assert shares.max() <= 1
    distance = stats.kstest(shares + 0.5 / 400, stats.uniform(low, 1 - low).cdf).statistic
    assert distance < 0.04


@pytest.mark.parametrize("min_share", [None, 0.0, 0.8])
def test_the_share_of_points_is_uniform(dense, getkey, min_share):
    scheme = random_points
    if min_share is not None:
        scheme = functools.partial(random_points, min_share=min_share)
    low = 0.4 if min_share is None else min_share
    shares = np.asarray(scheme(getkey(), dense).observed.mean(axis=1))
    # The observed share is uniform plus binomial noise with a standard deviation below 0.025.
    assert low - 0.1 < shares.min()
    uniform, binomial = (1 - low) ** 2 / 12, (1 - (1 + low + low**2) / 3 - (1 - low) / 2) / 401
    np.testing.assert_allclose(shares.mean(), (1 + low) / 2, atol=0.02)
    np.testing.assert_allclose(shares.std(), np.sqrt(uniform + binomial), rtol=0.06)


def test_points_are_hidden_anywhere(dense, getkey):
    kept = random_points(getkey(), dense).observed.mean(axis=0)
    np.testing.assert_allclose(kept, 0.7, atol=0.05)


def test_a_random_context_is_whole_or_a_prefix_with_gaps(dense, getkey):
    observed = np.asarray(random_context(getkey(), dense).observed)
    whole = observed.all(axis=1)
    np.testing.assert_allclose(whole.mean(), 0.5, atol=0.08)
    part = observed[~whole]
    np.testing.assert_allclose(part.mean(), 0.625 * 0.7, atol=0.03)
    at_first, at_last = part[:, 0].mean(), part[:, -20:].mean()
    np.testing.assert_allclose(at_first, 0.7, atol=0.08)
    assert at_last < 0.05


def test_the_share_of_whole_trajectories_is_the_users(dense, getkey):
    always = random_context(getkey(), dense, whole_share=1.0).observed
    never = random_context(getkey(), dense, whole_share=0.0).observed
    assert always.all()
    assert not never.all(axis=1).any()

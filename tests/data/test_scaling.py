import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode import Scaling, Trajectories


def make(times=None, values=None, mask=None):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(2.0, 7.0, (4, 6))) if times is None else times
    values = rng.normal([3.0, -20.0], [0.5, 40.0], (4, 6, 2)) if values is None else values
    mask = rng.uniform(size=values.shape) < 0.7 if mask is None else mask
    return Trajectories(times, values, mask)


@pytest.fixture
def train():
    return make()


def test_unscaling_undoes_scaling(train, getkey, tolerance):
    scaling = Scaling.fit(train)
    values = 100 * jax.random.normal(getkey(), (5, 2))
    there_and_back = scaling.unscale_values(scaling.scale_values(values))
    np.testing.assert_allclose(there_and_back, values, rtol=0, atol=tolerance(1e-4, 1e-12))


def test_fit_standardizes_what_was_observed(train, tolerance):
    scaled = np.asarray(Scaling.fit(train).scale_values(train.values))
    for d in range(2):
        seen = scaled[..., d][np.asarray(train.mask[..., d])]
        assert 0 < len(seen) < 24
        np.testing.assert_allclose(seen.mean(), 0, atol=tolerance(1e-5, 1e-12))
        np.testing.assert_allclose(seen.std(), 1, atol=tolerance(1e-5, 1e-12))


def test_observed_times_span_five_units(tolerance):
    mask = np.ones((4, 6, 2), bool)
    mask[:, 0] = mask[:, -1] = False
    train = make(mask=mask)
    scaled = Scaling.fit(train).scale_times(train.times)[:, 1:-1]
    np.testing.assert_allclose([scaled.min(), scaled.max()], [0, 5], atol=tolerance(1e-5, 1e-14))


@pytest.mark.parametrize("constant", [0.0, 3.0, -1e6, 0.1, 1e-9])
def test_a_constant_feature_is_measured_by_its_own_size(constant, tolerance):
    values = np.array(make().values)
    values[..., 1] = constant
    train = make(values=values, mask=np.ones(values.shape, bool))
    scaling = Scaling.fit(train)
    np.testing.assert_allclose(scaling.scale[1], abs(constant) or 1.0, rtol=1e-6)
    scaled = scaling.scale_values(train.values)[..., 1]
    np.testing.assert_allclose(scaled, 0, atol=tolerance(1e-5, 1e-12))


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e6])
def test_a_feature_of_mean_zero_is_measured_by_its_deviation(size):
    train = Trajectories(np.array([[0.0, 1.0]]), size * np.array([[[1.0], [-1.0]]]))
    np.testing.assert_allclose(Scaling.fit(train).scale, [size], rtol=1e-6)


def test_a_feature_that_was_never_observed_is_refused_by_its_name():
    mask = np.ones((4, 6, 2), bool)
    mask[..., 1] = False
    with pytest.raises(ValueError, match=r"train must hold .* got none of x_1"):
        Scaling.fit(make(mask=mask))


def test_t0_is_the_earliest_observed_time():
    mask = np.ones((4, 6, 2), bool)
    mask[:, 0] = False
    train = make(mask=mask)
    assert Scaling.fit(train).t0 == train.times[:, 1:].min()


def test_time_counts_from_an_explicit_t0(train, tolerance):
    scaling = Scaling.fit(train, t0=-3.0)
    last = np.asarray(train.times)[np.asarray(train.observed)].max()
    assert scaling.t0 == -3.0
    np.testing.assert_allclose(
        scaling.scale_times(train.times),
        5 * (np.asarray(train.times) + 3) / (last + 3),
        atol=tolerance(5e-6, 1e-14),
    )


@pytest.mark.parametrize("t0", [4.0, 6.99, 50.0])
def test_observations_before_t0_are_refused(train, t0):
    with pytest.raises(ValueError, match=f"train must not be earlier than t0 = {t0:g}"):
        Scaling.fit(train, t0=t0)


def test_one_time_for_all_leaves_the_unit_of_time():
    train = make(times=np.full((4, 6), 5.0))
    scaling = Scaling.fit(train)
    assert (scaling.t0, scaling.time_unit) == (5.0, 1 / 5)


def test_identity_leaves_every_number(train):
    scaling = Scaling.identity(2)
    np.testing.assert_array_equal(scaling.scale_values(train.values), train.values)
    np.testing.assert_array_equal(scaling.unscale_values(train.values), train.values)
    np.testing.assert_array_equal(scaling.scale_times(train.times), train.times)
    np.testing.assert_array_equal(
        Scaling.identity(2, t0=1.5).scale_times(train.times), train.times - 1.5
    )


@pytest.mark.parametrize("value_unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("time_unit", [1e-9, 1.0, 1e9])
def test_scaled_numbers_do_not_depend_on_the_units(train, value_unit, time_unit, tolerance):
    other = make(
        times=time_unit * np.asarray(train.times),
        values=value_unit * np.asarray(train.values),
        mask=np.asarray(train.mask),
    )
    expected, scaling = Scaling.fit(train), Scaling.fit(other)
    close = dict(rtol=0, atol=tolerance(1e-5, 1e-12))
    np.testing.assert_allclose(
        np.where(train.mask, scaling.scale_values(other.values), 0),
        np.where(train.mask, expected.scale_values(train.values), 0),
        **close,
    )
    np.testing.assert_allclose(
        scaling.scale_times(other.times), expected.scale_times(train.times), **close
    )


def test_scaled_numbers_do_not_depend_on_the_origin(train, tolerance):
    other = make(
        times=np.asarray(train.times) - 11.0,
        values=np.asarray(train.values) + 5.0,
        mask=np.asarray(train.mask),
    )
    np.testing.assert_allclose(
        np.where(train.mask, Scaling.fit(other).scale_values(other.values), 0),
        np.where(train.mask, Scaling.fit(train).scale_values(train.values), 0),
        atol=tolerance(1e-5, 1e-12),
    )
    np.testing.assert_allclose(
        Scaling.fit(other).scale_times(other.times),
        Scaling.fit(train).scale_times(train.times),
        atol=tolerance(1e-5, 1e-12),
    )


def test_known_data_may_be_checked_inside_jit(train):
    scaling = Scaling.fit(train)

    @jax.jit
    def checked(x):
        scaling.check(train, name="context")
        scaling.check_times(train.times, name="target")
        return x

    assert checked(jnp.ones(())) == 1


def test_known_data_is_refused_inside_jit_too(train):
    scaling = Scaling.fit(train, t0=1.0)
    early = make(times=np.asarray(train.times) - 5.0)

    @jax.jit
    def checked(x):
        scaling.check(early, name="context")
        return x

    with pytest.raises(ValueError, match="context must not be earlier than t0 = 1"):
        checked(jnp.ones(()))


def test_traced_data_is_checked_for_what_is_known_of_it(train):
    def check(scaling):
        jax.jit(lambda x: (scaling.check(x, name="context"), x)[1])(train)

    check(Scaling.identity(2, t0=100.0))
    with pytest.raises(ValueError, match=r"context must have 3 features.*got 2"):
        check(Scaling.identity(3))


def test_only_observed_times_must_follow_t0(train):
    scaling = Scaling.identity(2, t0=4.0)
    scaling.check(train.after(4.0), name="context")
    with pytest.raises(ValueError, match="context must not be earlier than t0 = 4"):
        scaling.check(train, name="context")


def test_t0_itself_is_no_earlier_than_t0_in_either_precision():
    t0 = 0.1 + 1e-9
    scaling = Scaling.identity(1, t0=t0)
    scaling.check(Trajectories(np.full((1, 1), t0), np.ones((1, 1, 1))), name="context")
    scaling.check_times(jnp.full((1,), t0, jnp.float32), name="target")


@pytest.mark.parametrize(
    ("time", "match"), [(np.nan, "target must be finite"), (-1.0, "target.*earlier than t0 = 0")]
)
def test_times_of_a_prediction_are_checked(time, match):
    with pytest.raises(ValueError, match=match):
        Scaling.identity(1).check_times(jnp.array([1.0, time]), name="target")


TWO = np.ones(2)
BAD_UNITS = {
    "shapes": ("loc and scale", dict(loc=TWO, scale=np.ones(3))),
    "axes": ("loc and scale", dict(loc=TWO[None], scale=TWO[None])),
    "NaN origin": ("loc must be finite", dict(loc=TWO * np.nan, scale=TWO)),
    "zero scale": ("scale must be positive", dict(loc=TWO, scale=np.array([1.0, 0.0]))),
    "infinite scale": ("scale must be positive and finite", dict(loc=TWO, scale=TWO * np.inf)),
    "NaN t0": ("t0 must be finite", dict(loc=TWO, scale=TWO, t0=np.nan)),
    "no time unit": ("time_unit must be positive", dict(loc=TWO, scale=TWO, time_unit=0.0)),
    "negative time unit": ("time_unit must be positive", dict(loc=TWO, scale=TWO, time_unit=-1.0)),
}


@pytest.mark.parametrize(("match", "arguments"), BAD_UNITS.values(), ids=BAD_UNITS)
def test_bad_units_are_refused(match, arguments):
    with pytest.raises(ValueError, match=match):
        Scaling(**arguments)

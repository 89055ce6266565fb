"""Numbers far from zero: JAX gets them less an offset, and users get them back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings, strategies as st
from numpyro.infer import Trace_ELBO

from np_latentode import (
    Fitted,
    PoissonLikelihood,
    Scaling,
    Trajectories,
    calibration,
    decode,
    forecast,
    latent_ode,
    load,
    prior_predictive,
    save,
)
from np_latentode.data.offset import Offset
from np_latentode.forecasts import baselines
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
TIMES = np.sort(RNG.uniform(0, 10, (6, 5)), axis=1)
VALUES = np.sin(TIMES)[..., None] + RNG.normal(0, 0.2, (6, 5, 2))
MASK = RNG.uniform(size=VALUES.shape) < 0.8
ASKED = np.linspace(1.0, 14.0, 4)


def moved(*, start=0.0, unit=1.0, level=0.0, spread=1.0):
    return Trajectories(start + unit * TIMES, level + spread * VALUES, MASK)


def untrained(train):
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    return Fitted(model, guide, initial_params(model, guide))


far = dict(start=2_459_000.5, unit=1e-3, level=1e6, spread=0.8)


@given(
    start=st.sampled_from([0.0, -1e9, 1e-9, 44_197.3, 2_459_000.5, 1.7e9]),
    level=st.sampled_from([0.0, -1e9, 1e-9, 1e3, 1e6, 1e9]),
    unit=st.sampled_from([1e-2, 1.0, 86_400.0, 1e9]),
    spread=st.sampled_from([1e-2, 1.0, 1e3, 1e9]),
)
@settings(deadline=None)
def test_in_scaled_units_any_origin_and_unit_are_the_same_numbers(start, level, unit, spread):
    scaled = []
    for data in (moved(), moved(start=start, level=level, unit=unit, spread=spread)):
        scaling = Scaling.fit(data).less(data.offset)
        times, values = scaling.scale_times(data.times), scaling.scale_values(data.values)
        scaled.append([np.asarray(times), np.where(MASK, values, 0.0)])
    # Single precision, where a level of a thousand spreads has no offset.
    for ours, plain in zip(scaled[1], scaled[0], strict=True):
        np.testing.assert_allclose(ours, plain, atol=5e-4)


@pytest.mark.slow
def test_forecasts_scores_and_loss_move_with_the_origin():
    plain, other = moved(), moved(**far)
    asked = far["start"] + far["unit"] * ASKED
    here, there = untrained(plain), untrained(other)
    draws, expected = forecast(KEY, there, other, asked), forecast(KEY, here, plain, ASKED)
    np.testing.assert_allclose(draws["z0"], expected["z0"], atol=1e-4)
    for name in ("x_mean", "x"):
        back = (draws[name] - far["level"]) / far["spread"]
        np.testing.assert_allclose(back, expected[name], atol=1e-3)
    ours, theirs = prior_predictive(KEY, there, asked), prior_predictive(KEY, here, ASKED)
    np.testing.assert_allclose((ours["x"] - 1e6) / 0.8, theirs["x"], atol=1e-3)
    z0 = jnp.ones((1, 6, 2))
    at, then = (np.broadcast_to(t, (6, 4)) for t in (asked, ASKED))
    x = decode(KEY, there, z0, at)["x"]
    np.testing.assert_allclose((x - 1e6) / 0.8, decode(KEY, here, z0, then)["x"], atol=1e-3)
    scores = calibration(KEY, there, *other.split()), calibration(KEY, here, *plain.split())
    np.testing.assert_allclose(scores[0].crps / 0.8, scores[1].crps, atol=1e-3)
    np.testing.assert_allclose(scores[0].log_score - np.log(0.8), scores[1].log_score, atol=2e-3)


def test_the_elbo_moves_by_the_log_of_the_unit_only():
    losses = []
    for data in (moved(), moved(**far)):
        fitted = untrained(data)
        loss = Trace_ELBO().loss
        losses.append(loss(KEY, fitted.params, fitted.model, fitted.guide, data))
    shift = MASK.sum() * np.log(far["spread"])
    np.testing.assert_allclose(losses[1], losses[0] + shift, rtol=1e-4)


def test_baselines_move_with_the_origin():
    plain, other = moved(), moved(**far)
    asked = far["start"] + far["unit"] * ASKED
    for predict in (baselines.constant, baselines.last_value, baselines.pchip):
        ours = (predict(other, other, asked) - far["level"]) / far["spread"]
        np.testing.assert_allclose(ours, predict(plain, plain, ASKED), atol=1e-5)
    for ours, theirs in zip(
        baselines.mixed_model(other, other, asked),
        baselines.mixed_model(plain, plain, ASKED),
        strict=True,
    ):
        np.testing.assert_allclose(
            (ours - np.median(ours)) / 0.8, theirs - np.median(theirs), atol=2e-3
        )


def test_cuts_are_in_the_units_of_the_user():
    plain, other = moved(), moved(**far)
    for cut in (0.0, 3.0, float(TIMES[2, 3]), 11.0):
        at = far["start"] + far["unit"] * cut
        np.testing.assert_array_equal(other.before(at).mask, plain.before(cut).mask)
        np.testing.assert_array_equal(other.after(at).mask, plain.after(cut).mask)
        inside = jax.jit(lambda data, at=at: data.before(at))(other)
        np.testing.assert_array_equal(inside.mask, plain.before(cut).mask)
    for ours, theirs in zip(other.split(), plain.split(), strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
@settings(deadline=None, max_examples=50)
def test_what_was_given_comes_back_to_the_last_bit(level, spread):
    data = moved(level=level, spread=spread, start=level, unit=spread)
    rows = data.to_dataframe()
    seen = MASK.any(-1)
    np.testing.assert_array_equal(rows["time"], (level + spread * TIMES)[seen])
    own = np.where(MASK, level + spread * VALUES, np.nan)[seen]
    np.testing.assert_array_equal(rows[["x_0", "x_1"]], own)
    np.testing.assert_array_equal(data[2:4].given.times, (level + spread * TIMES)[2:4])


def test_numbers_that_single_precision_holds_have_no_offset():
    assert moved().offset == Offset()
    years = np.broadcast_to(np.arange(1990.0, 2020.0, 6), (6, 5))
    assert Trajectories(years, 20 + VALUES, MASK).offset == Offset()
    ones = Trajectories(TIMES, np.full_like(VALUES, 1e6), MASK)
    assert ones.offset == Offset()


def test_counts_that_hardly_differ_are_no_poisson_counts():
    counts = np.round(1e6 + 10 * VALUES)
    data = Trajectories(TIMES, counts)
    with pytest.raises(ValueError, match=r"train must vary by more than .* PoissonLikelihood"):
        latent_ode(data, latent_dim=2, likelihood=PoissonLikelihood(), rngs=nnx.Rngs(0))


def test_a_saved_fit_forecasts_a_table_of_another_offset(tmp_path):
    train = moved(**far)
    fitted = untrained(train)
    save(tmp_path / "fit", fitted)
    again, few = load(tmp_path / "fit"), train[:2]
    assert few.offset == train.offset
    new = Trajectories(few.given.times, few.given.values, np.asarray(few.mask))
    assert new.offset != train.offset
    asked = far["start"] + far["unit"] * ASKED
    ours, theirs = (forecast(KEY, f, c, asked) for f, c in ((again, new), (fitted, few)))
    np.testing.assert_allclose(ours["x"], theirs["x"], atol=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_a_fit_of_one_precision_is_used_in_the_other(tmp_path, first):
    with jax.enable_x64(first):
        save(tmp_path / "fit", untrained(moved(**far)))
    with jax.enable_x64(not first):
        draws = forecast(KEY, load(tmp_path / "fit"), moved(**far), [far["start"] + 0.012])
        assert np.isfinite(draws["x"]).all()


def test_inside_of_jit_forecasts_are_in_the_units_of_the_table_too():
    frame = moved(level=50.0).to_dataframe()
    train = Trajectories.from_dataframe(
        frame, id="id", time="time", values=["x_0", "x_1"], log=["x_1"]
    )
    fitted = untrained(train)
    eager = forecast(KEY, fitted, train, ASKED)
    jitted = jax.jit(lambda f, c: forecast(KEY, f, c, ASKED))(fitted, train)
    np.testing.assert_allclose(jitted["x"], eager["x"], rtol=1e-3)
    assert eager["x"][..., 1].mean() > 30
    logs = decode(KEY, fitted, jnp.zeros((3, len(train), 2)), np.tile(ASKED, (len(train), 1)))
    assert 30 < np.median(logs["x"][..., 1]) < 70


def test_a_context_of_its_own_offset_is_read_less_that_of_the_fit():
    """One observation alone would have no offset, and lose its digits."""
    train = moved(start=1.7e9, unit=300.0, level=1e7, spread=1.0)
    fitted = untrained(train)
    mask = np.zeros(MASK[:1].shape, bool)
    mask[0, 2] = True
    cut = train[:1].keep(mask)
    alone = Trajectories(
        train.given.times[:1, 2:3], train.given.values[:1, 2:3], np.asarray(cut.mask)[:, 2:3]
    )
    asked = 1.7e9 + 300.0 * ASKED
    ours, theirs = (forecast(KEY, fitted, context, asked) for context in (alone, cut))
    np.testing.assert_allclose(ours["x"], theirs["x"], atol=1e-3)
    assert np.ptp(ours["x_mean"][0, 0, :, 0]) > 0.01


def test_the_prior_predictive_of_counts_has_their_offset():
    counts = np.round(5e6 + 10_000 * VALUES)
    data = Trajectories(TIMES, counts)
    model, guide = latent_ode(data, latent_dim=2, likelihood=PoissonLikelihood(), rngs=nnx.Rngs(0))
    fitted = Fitted(model, guide, initial_params(model, guide))
    ahead = forecast(KEY, fitted, data, ASKED)["x_mean"]
    before = prior_predictive(KEY, fitted, ASKED)["x_mean"]
    np.testing.assert_allclose(np.log(np.median(before)), np.log(np.median(ahead)), atol=1.5)


def test_hidden_values_are_hidden_in_double_precision_too():
    early = moved().before(3.0)
    np.testing.assert_array_equal(early.given.values[~np.asarray(early.mask)], 0)
    np.testing.assert_allclose(early.given.values, early.values, atol=1e-6)


def test_slots_are_taken_in_both_precisions():
    data = moved(**far)
    slots = np.array([[0, 2]] * 6)
    some = data.at_slots(slots)
    np.testing.assert_array_equal(some.given.times, data.given.times[:, [0, 2]])
    np.testing.assert_array_equal(some.mask, np.asarray(data.mask)[:, [0, 2]])
    inside = jax.jit(lambda data, slots: data.at_slots(slots))(data, slots)
    np.testing.assert_array_equal(inside.times, some.times)


def test_slots_that_are_left_out_are_gone():
    data = moved()
    gone = np.asarray(data.times) > 6
    left = data.without(gone)
    assert left.given.times.max() <= 6
    np.testing.assert_array_equal(left.mask.sum((1, 2)), data.keep(~gone).mask.sum((1, 2)))
    rows, expected = left.to_dataframe(), data.keep(~gone).to_dataframe()
    np.testing.assert_array_equal(rows, expected)

"""Bands stretch forecasts about their median, by what held-out forecasts have missed."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from still import CONTEXT, KEY, NOISE, TARGET, Summary, make_fitted

from np_latentode import Bands, Ensemble, calibration, forecast
from np_latentode.forecasts.prediction import forecast_observed

pytestmark = pytest.mark.usefixtures("compile_quickly")

PLAIN = Ensemble((make_fitted(),))
WIDTHS = np.array([2.0, 0.5])
WIDENED = replace(PLAIN, bands=Bands(WIDTHS))


def draws_and_truth(num_trajectories, factor, seed=0, num_times=2):
    """Draws whose spread is that of the truth times a factor, for each of two features."""
    rng = np.random.default_rng(seed)
    shape = (num_trajectories, num_times, 2)
    place = rng.normal(size=shape)
    draws = place + np.asarray(factor) * rng.normal(size=(400, *shape))
    return draws, place + rng.normal(size=shape), np.ones(shape, bool)


@pytest.mark.slow
def test_widths_of_one_change_nothing():
    draws, *_ = draws_and_truth(3, 1.0)
    np.testing.assert_allclose(Bands(np.ones(2)).widen(draws), draws, rtol=1e-12)
    ones = replace(PLAIN, bands=Bands([1.0, 1.0]))
    made, same = (
        forecast(KEY, ensemble, CONTEXT, [4.0, 5.0], num_samples=5) for ensemble in (PLAIN, ones)
    )
    np.testing.assert_allclose(made["x"], same["x"], rtol=1e-6, atol=1e-6)
    before, after = (
        calibration(KEY, ensemble, CONTEXT, TARGET, num_samples=5) for ensemble in (PLAIN, ones)
    )
    np.testing.assert_allclose(before.log_score, after.log_score, rtol=1e-5, atol=1e-5)


def test_draws_are_stretched_about_their_median():
    draws, *_ = draws_and_truth(3, 1.0)
    found = Bands(WIDTHS).widen(draws)
    median = np.median(draws, axis=0)
    np.testing.assert_allclose(np.median(found, axis=0), median, rtol=1e-9)
    np.testing.assert_allclose(found - median, WIDTHS * (draws - median), rtol=1e-9)
    np.testing.assert_allclose(Bands(WIDTHS).narrow(found, median), draws, rtol=1e-9)
    # Order is kept, so that quantiles of the draws are stretched as well.
    assert (np.argsort(found, axis=0) == np.argsort(draws, axis=0)).all()


def test_many_trajectories_find_the_width_of_each_feature():
    found = Bands.fit(*draws_and_truth(4_000, [0.5, 1.0]))
    np.testing.assert_allclose(found.widths, [2.0, 1.0], rtol=0.05)


def test_few_trajectories_change_bands_less():
    widths = [Bands.fit(*draws_and_truth(n, 0.5)).widths for n in (10, 40, 4_000)]
    assert (np.diff(widths, axis=0) > 0).all()
    assert (np.array(widths) > 1).all()
    # By 40 trajectories half of the way, in logarithms.
    draws, x, _ = draws_and_truth(40, 0.5)
    low, median, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    ratio = np.abs(x - median) / np.where(x > median, high - median, median - low)
    for j in range(2):
        # With 81 in place of 80, as of split conformal prediction.
        place = np.sort(ratio[..., j].ravel())[int(np.ceil(81 * 0.9)) - 1]
        assert widths[1][j] == pytest.approx(np.sqrt(place), rel=1e-9)


def test_wide_draws_are_narrowed():
    found = Bands.fit(*draws_and_truth(2_000, 2.0))
    np.testing.assert_allclose(found.widths, 0.5, rtol=0.06)


def test_what_was_not_observed_says_nothing():
    draws, x, mask = draws_and_truth(50, 0.5)
    mask[10:, :, 0], mask[..., 1] = False, False
    found = Bands.fit(draws, np.where(mask, x, 1e6), mask)
    assert found.widths[1] == 1
    rows = slice(10)
    assert found.widths[0] == Bands.fit(draws[:, rows], x[rows], mask[rows]).widths[0]


def test_a_forecast_that_is_not_finite_costs_no_band():
    draws, x, mask = draws_and_truth(50, 0.5)
    draws[:, 3] = np.nan
    assert np.isfinite(Bands.fit(draws, x, mask).widths).all()


@pytest.mark.parametrize("call", [forecast, forecast_observed])
def test_forecasts_are_widened_and_the_path_is_not(call):
    at = [4.0, 5.0] if call is forecast else TARGET
    plain, wide = (call(KEY, some, CONTEXT, at, num_samples=7) for some in (PLAIN, WIDENED))
    np.testing.assert_allclose(wide["x"], WIDENED.bands.widen(plain["x"]), rtol=1e-6)
    np.testing.assert_array_equal(wide["x_mean"], plain["x_mean"])
    assert np.abs(wide["x"] - plain["x"]).max() > 0.1


@pytest.mark.slow
def test_the_log_score_is_the_density_of_the_widened_gaussian():
    found = calibration(KEY, WIDENED, CONTEXT, TARGET, num_samples=500)
    features = Summary()(CONTEXT.times, CONTEXT.values, CONTEXT.mask)
    loc, sd = np.split(np.asarray(features), 2, axis=-1)
    scale = WIDTHS * np.sqrt(sd**2 + NOISE**2)[:, None]
    x, mask = np.asarray(TARGET.values), np.asarray(TARGET.mask)
    expected = -stats.norm.logpdf(x, loc[:, None], scale)
    np.testing.assert_allclose(found.log_score[mask].mean(), expected[mask].mean(), rtol=0.02)
    near = mask & (np.abs(x - loc[:, None]) < 1.5 * scale)
    np.testing.assert_allclose(found.log_score[near], expected[near], atol=0.5)
    assert (np.isnan(found.log_score) == ~mask).all()
    np.testing.assert_allclose(
        found.pit[mask], stats.norm.cdf(x, loc[:, None], scale)[mask], atol=0.12
    )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("widths", [[0.0, 1.0], [1.0, np.nan], [-1.0], [np.inf], 1.0, [[1.0]]])
def test_widths_that_are_not_positive_numbers_one_per_feature_are_refused(widths):
    with pytest.raises(ValueError, match="widths must be positive and finite, one per feature"):
        Bands(widths)


@pytest.mark.usefixtures("untyped")
def test_bands_of_other_features_are_refused():
    with pytest.raises(ValueError, match="bands must be Bands of 2 features; got 3"):
        replace(PLAIN, bands=Bands(np.ones(3)))
    with pytest.raises(ValueError, match="bands must be Bands of 2 features; got list"):
        replace(PLAIN, bands=[1.0, 1.0])

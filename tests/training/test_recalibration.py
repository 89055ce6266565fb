"""Bands that were too narrow for what members left out are widened, and hold elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from still import DATA, KEY, SCALING, make_guide, make_model

from np_latentode import (
    CrossFit,
    Ensemble,
    Fitted,
    LatentODE,
    PoissonLikelihood,
    StandardNormal,
    Trajectories,
    calibration,
    recalibrated,
)
from np_latentode.forecasts.codes import amortized

pytestmark = pytest.mark.usefixtures("compile_quickly")

TRAIN, TEST = DATA[:200], DATA[200:]
LEFT_OUT = (np.arange(0, 100), np.arange(100, 200))


def crossed(noise):
    """Two members with the exact guide of noise 0.5, and a likelihood of another noise."""
    fitted = Fitted(make_model(noise=noise), make_guide(), {})
    ensemble = Ensemble((fitted, replace(fitted)))
    return CrossFit(ensemble, LEFT_OUT, {"one": 0.0}, {"one": 1.0}, {"one": 1.0}, 200, 1.0)


def coverage(ensemble):
    return calibration(KEY, ensemble, *TEST.split(), levels=(0.9,), num_samples=200).coverage[0]


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "sign"), [(0.15, 1), (2.0, -1)])
def test_bands_that_are_off_hold_more_nearly_once_recalibrated(noise, sign):
    cross = crossed(noise)
    found = recalibrated(KEY, cross, TRAIN)
    assert (sign * np.log(found.bands.widths) > 0.2).all()
    before, after = coverage(cross.ensemble), coverage(found)
    assert sign * (0.9 - before) > 0.08
    assert abs(after - 0.9) < 0.5 * abs(before - 0.9)
    # Nothing else has changed.
    assert found.members == cross.ensemble.members
    assert cross.ensemble.bands is None


@pytest.mark.slow
def test_bands_that_hold_stay_as_they_are():
    np.testing.assert_allclose(recalibrated(KEY, crossed(0.5), TRAIN).bands.widths, 1, atol=0.12)


@pytest.mark.slow
def test_counts_keep_their_bands():
    counts = Trajectories(TRAIN.times, np.where(TRAIN.mask, np.round(2 + TRAIN.values), np.nan))
    counts = counts.keep(np.asarray(counts.mask) & np.asarray(counts.values >= 0))
    model = LatentODE(
        make_model().dynamics,
        make_model().decoder,
        prior=StandardNormal(2),
        scaling=SCALING,
        likelihood={"x_1": PoissonLikelihood()},
    )
    fitted = Fitted(model, make_guide(), {"x_0.noise_scale": np.array([0.1])})
    cross = crossed(0.5)._replace(ensemble=Ensemble((fitted, replace(fitted))))
    first, second = recalibrated(KEY, cross, counts).bands.widths
    assert first > 1.2
    assert second == 1


def test_each_fold_is_forecast_by_the_member_that_left_it_out():
    model, asked = make_model(), []
    members = tuple(Fitted(model, make_guide(shift=shift), {}) for shift in (0.0, 0.1))

    def spy(rng_key, fitted, context, num_samples):
        asked.append((fitted.guide, np.asarray(context.values)))
        return amortized(rng_key, fitted, context, num_samples)

    recalibrated(KEY, crossed(0.5)._replace(ensemble=Ensemble(members)), TRAIN, inference=spy)
    for member, rows, (guide, values) in zip(members, LEFT_OUT, asked, strict=True):
        assert guide is member.guide
        np.testing.assert_array_equal(values, TRAIN[rows].split()[0].values)


@pytest.mark.usefixtures("untyped")
def test_a_number_of_draws_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="num_samples must be a positive integer; got 0"):
        recalibrated(KEY, crossed(0.5), TRAIN, num_samples=0)


def test_other_trajectories_than_those_of_the_folds_are_refused():
    with pytest.raises(ValueError, match="trajectories must be the 200 that cross_fit was given"):
        recalibrated(KEY, crossed(0.5), TEST)

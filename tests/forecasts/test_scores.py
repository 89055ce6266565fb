"""Scores of a column are those that fit its kind."""

import numpy as np
import pytest

from np_latentode import Trajectories
from np_latentode.forecasts.scores import Forecasts, score, score_features

NAN = np.nan
KINDS = ("numbers", "bernoulli", "counts")
VALUES = np.array([[[1.0, 0.0, 3.0], [2.0, 1.0, NAN], [3.0, 1.0, 0.0]]])
TARGET = Trajectories(np.array([[0.0, 1.0, 2.0]]), VALUES)
MEAN = np.array([[[1.5, 0.2, 2.0], [2.0, 0.7, 9.0], [2.0, 1.4, 1.0]]])
INSIDE = np.array([[[True, False, True], [True, False, True], [False, False, False]]])
LOG_SCORE = np.array([[[9.0, 0.2, 2.0], [9.0, 0.3, 9.0], [9.0, 0.4, 1.0]]])
UNIT = np.array([1.0, 0.5, 2.0])
FORECASTS = Forecasts(MEAN, inside=INSIDE, log_score=LOG_SCORE)


def test_zeros_and_ones_have_a_brier_score_and_no_coverage():
    found = score_features(TARGET, UNIT, FORECASTS, KINDS)["x_1"]
    # A mean of 1.4 counts as a probability of 1.
    assert found["brier"] == pytest.approx((0.2**2 + 0.3**2 + 0) / 3)
    assert found["log_score"] == pytest.approx(0.3)
    assert found["rmse"] == pytest.approx(np.sqrt((0.2**2 + 0.3**2 + 0.4**2) / 3) / 0.5)
    assert "coverage_90" not in found


def test_counts_have_a_log_score_and_coverage_and_numbers_have_no_further_score():
    found = score_features(TARGET, UNIT, FORECASTS, KINDS)
    assert found["x_2"]["log_score"] == pytest.approx(1.5)
    assert found["x_2"]["coverage_90"] == 0.5
    assert {*found["x_0"]} == {"rmse", "crps", "coverage_90"}
    assert found["x_0"] == score_features(TARGET, UNIT, FORECASTS)["x_0"]


def test_the_coverage_of_all_is_that_of_all_but_zeros_and_ones():
    assert score(TARGET, UNIT, FORECASTS, KINDS)["coverage_90"] == pytest.approx(3 / 5)
    assert score(TARGET, UNIT, FORECASTS)["coverage_90"] == pytest.approx(3 / 8)
    assert "coverage_90" not in score(TARGET, UNIT, FORECASTS, ["bernoulli"] * 3)


def test_a_baseline_has_a_brier_score_and_no_log_score():
    found = score_features(TARGET, UNIT, Forecasts(MEAN), KINDS)
    assert {*found["x_1"]} == {"rmse", "crps", "brier"}
    assert {*found["x_2"]} == {"rmse", "crps"}

"""Predictions without learning do what their names say."""

import numpy as np
import pytest

from np_latentode import Trajectories, baselines

NAN = np.nan
TRAIN = Trajectories.from_ragged([([0.0, 1.0], [[1.0, 10.0], [3.0, NAN]]), ([0.5], [[5.0, 20.0]])])
CONTEXT = Trajectories.from_ragged(
    [([0.0, 1.0, 2.0], [[0.0, 7.0], [2.0, NAN], [4.0, 9.0]]), ([], []), ([1.0], [[NAN, 3.0]])]
)
TIMES = np.array([-1.0, 0.5, 1.0, 3.0])


def test_constant_is_the_mean_of_the_training_data():
    predicted = baselines.constant(TRAIN, CONTEXT, TIMES)
    assert predicted.shape == (3, 4, 2)
    np.testing.assert_allclose(predicted, np.broadcast_to([3.0, 15.0], (3, 4, 2)), rtol=1e-6)


@pytest.mark.parametrize(
    ("predict", "first", "second"),
    [
        (baselines.last_value, [0.0, 0.0, 2.0, 4.0], [7.0, 7.0, 7.0, 9.0]),
        (baselines.linear, [0.0, 1.0, 2.0, 4.0], [7.0, 7.5, 8.0, 9.0]),
    ],
)
def test_each_feature_is_predicted_from_its_own_observations(predict, first, second):
    predicted = predict(TRAIN, CONTEXT, TIMES)
    np.testing.assert_allclose(predicted[0], np.stack([first, second], 1), rtol=1e-6)
    np.testing.assert_allclose(predicted[2, :, 1], 3.0)


@pytest.mark.parametrize("predict", [baselines.last_value, baselines.linear])
def test_what_was_never_observed_is_predicted_by_the_training_mean(predict):
    predicted = predict(TRAIN, CONTEXT, TIMES)
    np.testing.assert_allclose(predicted[1], np.broadcast_to([3.0, 15.0], (4, 2)), rtol=1e-6)
    np.testing.assert_allclose(predicted[2, :, 0], 3.0, rtol=1e-6)

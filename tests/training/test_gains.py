"""What may be chance is kept in part only."""

import numpy as np
import pytest

from np_latentode.training.gains import share_kept


def kept(gain, ids=None):
    gain = np.asarray(gain, float)
    return share_kept(gain, np.arange(len(gain)) if ids is None else np.asarray(ids))


def test_a_sure_gain_is_kept_as_a_whole():
    assert kept([2.0, 1.9, 2.1]) == 1


def test_of_a_gain_that_may_be_chance_only_a_part_is_kept():
    gain = np.array([2.0, 0.1, 1.2])
    t = gain.mean() / (gain.std(ddof=1) / np.sqrt(3))
    assert 1 < t < 2.92
    np.testing.assert_allclose(kept(gain), 1 - 1 / t**2)


@pytest.mark.parametrize("gain", [[-1.0, -2.0], [1.0, -0.9], [0.0, 0.0]])
def test_of_what_is_no_gain_nothing_is_kept(gain):
    assert kept(gain) == 0


@pytest.mark.parametrize(("gain", "ids"), [([-0.1], None), ([1.0, -3.0], ["a", "a"]), ([], None)])
def test_with_one_id_there_is_no_test(gain, ids):
    assert kept(gain, ids) == 1


def test_windows_of_an_id_are_one_case():
    gain = np.tile([0.5, 0.3, 0.1, -0.1], 50)
    assert kept(gain) == 1
    assert kept(gain, np.repeat(["a", "b"], 100)) == kept(np.array([20.0, 20.0]))
    assert kept(gain, np.tile(["a", "b", "c", "d"], 50)) < 1


@pytest.mark.parametrize("most", [1e3, 1e9])
def test_one_id_does_not_hide_what_all_others_gain(most):
    """A mean over ids would be that of one, and its error as large."""
    gain = np.array([most, *[3.0, 2.5, 3.5, 2.0, 3.0, 2.8]])
    assert gain.mean() < 1.1 * gain.std(ddof=1) / np.sqrt(7)
    assert kept(gain) == 1


@pytest.mark.parametrize("others", [[0.1, 0.2], [-1.0, -2.0]])
def test_what_can_be_scored_now_is_a_sure_gain(others):
    assert kept([np.inf, *others]) == 1
    assert kept([-np.inf, *others]) == 0


def test_what_nobody_can_score_says_nothing():
    gain = [2.0, 0.1, 1.2]
    assert kept([*gain, np.nan]) == kept(gain)


def test_a_change_that_brings_nothing_is_rarely_kept_as_a_whole():
    gains = np.random.default_rng(0).normal(size=(4_000, 5))
    shares = np.array([kept(gain) for gain in gains])
    assert np.mean(shares == 1) == pytest.approx(0.05, abs=0.01)
    assert np.mean(shares == 0) > 0.75

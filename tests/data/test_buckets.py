"""Trajectories in buckets of similar length."""

import numpy as np
import pytest

from np_latentode import Trajectories
from np_latentode.data.buckets import batches, buckets, trimmed


def of_lengths(lengths):
    """Trajectories of one feature, whose values tell them apart."""
    pairs = [(np.arange(n), 1.0 + i + np.arange(n)[:, None] / 100) for i, n in enumerate(lengths)]
    return Trajectories.from_ragged(pairs, num_features=1)


LENGTHS = {
    "one long": [*range(4, 13)] * 10 + [1_000],
    "first the long": [1_000, 5, 4, 6, 5],
    "log-normal": np.random.default_rng(0).lognormal(3, 1.5, 200).astype(int),
    "doublings": 2 ** np.arange(10),
    "some empty": [0, 0, 0, 7, 30, 0, 200],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_padding_in_a_bucket_is_at_most_twofold(lengths):
    found = buckets(of_lengths(lengths))
    used = np.maximum(lengths, 1)
    assert len(found) > 1
    for rows, some in found:
        assert some.times.size <= 2 * used[rows].sum()
        assert some.times.shape == some.mask.shape[:2] == (len(rows), used[rows].max())
    # Each doubling of the length adds a bucket at most, as each is a part of the program.
    assert len(found) <= 2 + np.log2(used.max() / used.min())


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_each_trajectory_is_in_one_bucket_with_all_of_its_observations(lengths):
    data = of_lengths(lengths)
    found = buckets(data)
    assert sorted(np.concatenate([rows for rows, _ in found])) == [*range(len(data))]
    for rows, some in found:
        whole = data[rows]
        assert some.mask.sum() == whole.mask.sum()
        np.testing.assert_array_equal(some.values[some.mask], whole.values[whole.mask])
        np.testing.assert_array_equal(some.times[some.observed], whole.times[whole.observed])


@pytest.mark.parametrize("cut", [buckets, batches], ids=["buckets", "batches"])
def test_trajectories_of_similar_length_stay_as_they_are(cut):
    data = of_lengths([*range(4, 13)] * 10)
    ((rows, same),) = cut(data)
    assert same is data
    assert rows.tolist() == [*range(90)]


def test_slots_after_the_last_observation_do_not_count():
    data = of_lengths([10] * 20 + [400])
    early, late = data.before(9.0), data.after(9.0)
    assert [len(some) for _, some in buckets(early)] == [21]
    assert [some.times.shape for _, some in buckets(late)] == [(20, 1), (1, 400)]


@pytest.mark.parametrize(("latest", "slots"), [(1, 8), (8, 8), (9, 16), (17, 20), (20, 20)])
def test_what_is_trimmed_has_a_multiple_of_eight_slots_or_all(latest, slots):
    data = of_lengths([20, 3])
    few = data.before(latest - 0.5)
    found = trimmed(few)
    assert found.mask.shape == (2, slots, 1)
    assert found.mask.sum() == few.mask.sum()
    np.testing.assert_array_equal(found.values[found.mask], few.values[few.mask])
    np.testing.assert_array_equal(found.times[found.observed], few.times[few.observed])


def test_without_observations_eight_slots_are_left():
    assert trimmed(of_lengths([20, 3]).before(-1.0)).mask.shape == (2, 8, 1)


@pytest.mark.parametrize("count", [150, 700])
def test_batches_hold_each_trajectory_in_few_shapes(count):
    data = of_lengths(np.random.default_rng(0).lognormal(2.5, 1.0, count).astype(int))
    found = batches(data)
    assert sorted({*np.concatenate([rows for rows, _ in found]).tolist()}) == [*range(count)]
    for rows, some in found:
        assert len(rows) in (16, 32, 64, 128)
        slots = some.times.shape[1]
        assert slots == data.times.shape[1] or slots // 8 & (slots // 8 - 1) == 0
        whole = data[rows]
        np.testing.assert_array_equal(some.values[some.mask], whole.values[whole.mask])

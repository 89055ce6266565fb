"""Windows: parts of long trajectories on one clock; tables get their own times back."""

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from np_latentode import Scaling, Trajectories, tidy_forecast
from np_latentode.data.labels import Labels
from np_latentode.storage.descriptions import build, describe

NAN = np.nan
RNG = np.random.default_rng(0)


def series(count, *, start=0.0, num_features=2, seed=0):
    """Trajectories of up to `count` times; some values, and some times, are not observed."""
    rng = np.random.default_rng(seed)
    pairs = []
    for n in (count, count // 2, 3):
        values = rng.normal(size=(n, num_features))
        values[rng.uniform(size=values.shape) < 0.3] = NAN
        pairs.append((start + np.cumsum(rng.exponential(size=n)), values))
    return Trajectories.from_ragged(pairs)


def contents(data):
    """Times, values with NaN, and table times of the observed slots of each trajectory."""
    whole, mask = data.given, np.asarray(data.mask)
    own = data.names.calendar(whole.times)
    values = np.where(mask, whole.values, NAN)
    return [
        (whole.times[i][s], values[i][s], own[i][s])
        for i, s in enumerate(np.asarray(data.observed))
    ]


def even(count, spacing=1.0, start=0.0):
    return Trajectories(start + spacing * np.arange(count)[None], np.ones((1, count, 1)))


def test_windows_of_an_even_series_begin_every_step_and_end_at_its_last_time():
    data = Trajectories(np.arange(10.0)[None], np.arange(10.0)[None, :, None])
    windows = data.windows(4.0, 2.0)
    assert windows.names.starts == (-1.0, 1.0, 3.0, 5.0)
    assert [v[:, 0].tolist() for _, v, _ in contents(windows)] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
    ]
    assert [t.tolist() for t, _, _ in contents(windows)] == [[1, 2, 3, 4]] * 4


LENGTHS = st.sampled_from([0.7, 3.0, 7.5, 25.0, 400.0])


@given(span=LENGTHS, share=st.sampled_from([0.3, 0.5, 1.0]), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=30)
@pytest.mark.filterwarnings("ignore:.* left out")
def test_each_window_holds_what_lies_in_it(span, share, seed):
    data, step = series(60, seed=seed), share * span
    windows = data.windows(span, step)
    starts = np.array(windows.names.starts)
    for i, start, (times, values, _) in zip(
        windows.names.ids, starts, contents(windows), strict=True
    ):
        whole, numbers, _ = contents(data)[i]
        held = (start < whole) & (whole <= start + span + 1e-9)
        np.testing.assert_allclose(times, whole[held] - start, atol=1e-9)
        np.testing.assert_array_equal(values, numbers[held])
        back = (whole[-1] - span - start) / step
        assert abs(back - round(back)) < 1e-6
    for i in {*windows.names.ids}:
        mine = starts[np.array(windows.names.ids) == i]
        assert (np.diff(mine) > 0).all()


@given(span=LENGTHS, seed=st.integers(0, 3))
@settings(deadline=None, max_examples=20)
def test_the_last_window_holds_the_last_span_and_ends_there(span, seed):
    data = series(60, seed=seed)
    last = data.windows(span)
    assert last.names.ids == data.names.ids
    for (times, values, _), (whole, numbers, _) in zip(contents(last), contents(data), strict=True):
        held = whole > whole[-1] - span
        np.testing.assert_array_equal(values, numbers[held])
        assert times[-1] == span
        assert times[0] > 0


def test_without_a_step_the_windows_are_the_last_ones_of_those_with_a_step():
    data = series(200)
    all_of_them, last = data.windows(30.0, 10.0), data.windows(30.0)
    ids = np.array(all_of_them.names.ids)
    ends = [int(np.flatnonzero(ids == i)[-1]) for i in data.names.ids]
    picked = all_of_them[np.array(ends)]
    assert picked.names == last.names
    for ours, theirs in zip(contents(picked), contents(last), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


@given(
    spacing=st.sampled_from([0.1, 0.3, 1 / 7, 1.0]),
    start=st.sampled_from([0.0, -3.3, 2_459_000.5, 1.7e9]),
    count=st.integers(5, 200),
    per_window=st.integers(2, 12),
)
@settings(deadline=None, max_examples=40)
@pytest.mark.filterwarnings("ignore:.* left out")
def test_rounding_decides_nothing_on_an_even_grid(spacing, start, count, per_window):
    data = even(count, spacing, start)
    windows = data.windows(per_window * spacing, per_window * spacing)
    counts = [len(times) for times, _, _ in contents(windows)]
    rest = count % per_window
    assert counts == [rest] * (rest > 1) + [per_window] * (count // per_window)


def test_windows_that_tile_hold_each_observation_once():
    data = series(300)
    table = data.windows(5.0, 5.0).to_dataframe()
    assert not table.duplicated(["id", "time"]).any()
    whole = data.to_dataframe()
    # Those in windows with one observation are left out.
    assert 0.98 * len(whole) < len(table) <= len(whole)


def test_every_observation_lies_in_as_many_windows_as_overlap():
    data = even(100)
    table = data.windows(12.0, 3.0).to_dataframe()
    counts = table.groupby("time").size().to_numpy()
    assert len(counts) == 100
    # Both ends lie in fewer: no window ends later, and none is before the one that holds the first.
    assert counts[:7].tolist() == [1] + [2] * 3 + [3] * 3
    assert (counts[7:-9] == 4).all()
    assert counts[-9:].tolist() == [3] * 3 + [2] * 3 + [1] * 3


@pytest.mark.parametrize("start", [2.0**20, -(2.0**20), 2.0**30])
def test_windows_of_a_shifted_table_are_the_same(start):
    times = RNG.integers(0, 2**13, (3, 60)).cumsum(1) / 2**10
    values = RNG.normal(size=(3, 60, 1))
    here, there = (Trajectories(s + times, values).windows(20.0, 5.0) for s in (0.0, start))
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    np.testing.assert_array_equal(here.given.times, there.given.times)
    np.testing.assert_array_equal(np.add(here.names.starts, start), there.names.starts)
    assert here.offset == there.offset


def test_unix_seconds_and_large_levels_lose_nothing():
    times = 1.7e9 + np.cumsum(RNG.uniform(0.01, 2.0, (2, 500)), axis=1)
    values = 1e6 + RNG.normal(0, 0.8, (2, 500, 1))
    data = Trajectories(times, values)
    windows = data.windows(100.0, 50.0)
    table = windows.to_dataframe()
    assert set(zip(table.time, table.x_0, strict=True)) == set(
        zip(times.flat, values.flat, strict=True)
    )
    # As JAX gets them: less the offset, in single precision.
    back = np.asarray(windows.times, float) + windows.offset.time
    np.testing.assert_allclose(back, windows.given.times, atol=1e-5)
    back = np.asarray(windows.values, float) + windows.offset.row
    np.testing.assert_allclose(back[windows.mask], windows.given.values[windows.mask], atol=1e-6)
    own = np.concatenate([own for *_, own in contents(windows)])
    np.testing.assert_allclose(own, table.time, rtol=4e-16)


COLUMNS = dict(id="who", time="when", values=["x", "y"], log=["y"])


def dates(zone=None):
    when = pd.Timestamp("2020-01-05") + pd.to_timedelta(
        np.cumsum(RNG.integers(1, 3 * 86_400 * 10**6, 80)), unit="us"
    )
    table = pd.DataFrame({"who": ["a"] * 50 + ["b"] * 30, "when": when.tz_localize(zone)})
    return table.assign(x=RNG.normal(size=80), y=RNG.lognormal(size=80))


@pytest.mark.parametrize("since", [None, "first"])
@pytest.mark.parametrize("zone", [None, "UTC"])
@pytest.mark.parametrize("unit", ["D", "s"])
def test_tables_get_their_own_dates_and_values_back(since, zone, unit):
    table = dates(zone)
    day = {"D": 1.0, "s": 86_400.0}[unit]
    data = Trajectories.from_dataframe(table, **COLUMNS, since=since, unit=unit)
    windows = data.windows(20 * day, 5 * day)
    back = windows.to_dataframe().drop_duplicates(["who", "when"])
    back = back.sort_values(["who", "when"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    # A forecast has no times of a table to take, only the clock of its window.
    last = data.windows(20 * day)
    ends = last.names.calendar(np.full((2, 1), 20 * day))[:, 0]
    expected = table.groupby("who").when.max().dt.tz_localize(None).to_numpy()
    assert (abs(ends - expected) <= np.timedelta64(1, "us")).all()
    ahead = last.names.counted(table.when.max() + pd.Timedelta("2D"))
    np.testing.assert_allclose(ahead[1], 22 * day)
    assert ahead.shape == (2,)


def test_a_forecast_from_the_last_windows_has_the_ids_and_times_of_the_table():
    data = Trajectories.from_dataframe(dates(), **COLUMNS)
    last = data.windows(10.0)
    draws = {"x": np.zeros((5, 2, 1, 2))}
    table = tidy_forecast(draws, np.array([10.0 + 1.0]), last.names)
    assert table.who.unique().tolist() == ["a", "b"]
    ends = data.to_dataframe().groupby("who").when.max() + pd.Timedelta("1D")
    late = table.groupby("who").when.first() - ends
    assert (abs(late) <= pd.Timedelta("1us")).all()


def test_a_short_trajectory_gives_one_window_that_ends_at_its_last_observation():
    data = Trajectories([[3.0, 4.0, 6.0]], np.ones((1, 3, 1)))
    for windows in (data.windows(10.0, 1.0), data.windows(10.0)):
        assert [t.tolist() for t, _, _ in contents(windows)] == [[7, 8, 10]]
        assert windows.names.starts == (-4.0,)


def test_times_that_are_far_from_the_start_of_a_long_window_are_kept_apart():
    data = Trajectories(np.arange(5)[None] * 1e-4, np.ones((1, 5, 1)))
    windows = data.windows(1e4)
    assert windows.offset.time
    assert len(np.unique(windows.times)) == 5


def test_a_span_that_makes_times_equal_in_single_precision_is_refused():
    # The other trajectory keeps the times from being less a common offset.
    pairs = [(np.arange(5) * 1e-4, np.ones(5)), (np.arange(2e4), np.ones(20_000))]
    data = Trajectories.from_ragged(pairs)
    with pytest.raises(ValueError, match=r"span must be so short .* got 10000.0, .* id 0 become"):
        data.windows(1e4)


def test_windows_with_fewer_than_two_times_are_left_out():
    times = [[1.0, 2.0, 21.0, 22.0, 50.0, 50.0]]
    windows = Trajectories(times, np.ones((1, 6, 1))).windows(5.0, 5.0)
    assert [t.tolist() for *_, t in contents(windows)] == [[1, 2], [21, 22]]


def test_a_warning_counts_the_trajectories_that_are_left_out():
    pairs = [(np.arange(9.0), np.ones(9)), ([5.0], [1.0]), ([0.0, 9.0], [1.0, 1.0]), ([], [])]
    data = Trajectories.from_ragged(pairs)
    with pytest.warns(UserWarning, match="3 of 4 trajectories have no window .* id 1 for one"):
        assert {*data.windows(4.0, 4.0).names.ids} == {0}
    with pytest.warns(UserWarning, match="1 of 4 trajectories have no observation .* id 3 for"):
        last = data.windows(4.0)
    assert last.names.ids == (0, 1, 2)
    assert [len(t) for t, *_ in contents(last)] == [4, 1, 1]


def test_hidden_observations_are_in_no_window():
    data = even(20).before(11.5)
    last = data.windows(3.0)
    assert last.times.tolist() == [[1, 2, 3]]
    assert last.names.starts == (8.0,)


def test_windows_of_windows_know_the_clock_of_the_table():
    data = series(200, start=1e6)
    again = data.windows(60.0, 20.0).windows(30.0, 10.0)
    assert again.names.span == 30.0
    for own, i in zip(contents(again), again.names.ids, strict=True):
        assert np.isclose(contents(data)[i][0][:, None], own[2], rtol=1e-14).any(0).all()


def test_windows_are_compared_by_their_span_and_not_by_their_origin():
    table = dates()
    one, other = (
        Trajectories.from_dataframe(table, **COLUMNS, origin=o)
        for o in ("2020-01-01", "2021-01-01")
    )
    assert not one.names.like(other.names)
    ours, theirs = one.windows(30.0, 10.0).names, other.windows(30.0).names
    assert ours.like(theirs)
    assert not ours.like(other.windows(31.0).names)
    assert not ours.like(one.names)
    assert "times in D in windows of 30" in str(ours)


def test_labels_of_windows_are_described_with_their_span():
    labels = Labels((), ("x",), span=30.5)
    assert build(describe(labels)) == labels


def test_scaling_of_windows_counts_from_their_start():
    data = series(500, start=50.0)
    scaling = Scaling.fit(data.windows(40.0, 10.0))
    assert scaling.t0 == 0.0
    assert scaling.time_unit == 40.0 / 5
    scaling.check(series(500, seed=1, start=-70.0).windows(40.0), name="others")
    with pytest.raises(ValueError, match="others must have the features, units and origin"):
        scaling.check(series(50).windows(20.0), name="others")


def test_many_rows_take_little_time():
    times = np.cumsum(RNG.exponential(size=(5, 10_000)), axis=1)
    data = Trajectories(times, RNG.normal(size=(5, 10_000, 2)))
    begin = time.perf_counter()
    windows = data.windows(100.0, 20.0)
    assert time.perf_counter() - begin < 5.0
    assert len(windows) > 2_400


BAD = {
    "no number": ("week", None, "span must be positive and finite.*'week'"),
    "zero": (0.0, None, "span must be positive and finite.*got 0.0"),
    "NaN": (NAN, 1.0, "span must be positive and finite.*got nan"),
    "infinite": (np.inf, 1.0, "span must be positive and finite.*got inf"),
    "negative step": (3.0, -1.0, "step must be positive and finite.*got -1.0"),
    "a step of days": (3.0, np.timedelta64(1, "D"), "step must be positive and finite"),
    "gaps": (3.0, 4.0, "step must be at most span, 3.0; got 4.0"),
    "short": (0.5, 0.5, "span must be so long that a window holds two observed times; got 0.5"),
}


@pytest.mark.parametrize(("span", "step", "match"), BAD.values(), ids=BAD)
def test_bad_lengths_are_refused(untyped, span, step, match):
    with pytest.raises(ValueError, match=match):
        even(10).windows(span, step)


def test_nothing_has_no_windows():
    with pytest.raises(ValueError, match="windows must be of trajectories with an observation"):
        even(10).before(-1.0).windows(3.0)

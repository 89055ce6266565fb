import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode import Trajectories
from np_latentode.studies.datasets import SpiralFamily, Spirals

TIMES = np.array([[0.0, 1.0, 2.0, 3.0], [0.5, 0.5, 1.5, 4.0], [1.0, 2.0, 3.0, 4.0]])
VALUES = np.arange(1.0, 25.0).reshape(3, 4, 2)
NAN, INF = np.nan, np.inf


@pytest.fixture
def trajectories():
    values = VALUES.copy()
    values[0, 1, 0] = values[1, 2] = values[2, 3, 1] = NAN
    return Trajectories(TIMES, values)


@pytest.fixture
def some_spirals():
    return Spirals(
        TIMES,
        VALUES,
        family=SpiralFamily(num_dense=7, num_observed=4),
        curves=jnp.arange(42.0).reshape(3, 7, 2),
        phase=jnp.array([0.1, 0.2, 0.3]),
        direction=jnp.array([1.0, -1.0, 1.0]),
    )


def same(a, b):
    assert type(a) is type(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_nan_is_missing_and_stored_as_zero(trajectories):
    missing = np.zeros(VALUES.shape, bool)
    missing[0, 1, 0] = missing[1, 2] = missing[2, 3, 1] = True
    np.testing.assert_array_equal(trajectories.mask, ~missing)
    np.testing.assert_array_equal(trajectories.values, np.where(missing, 0, VALUES))


def test_mask_and_nan_are_combined():
    values, mask = VALUES.copy(), np.ones(VALUES.shape, bool)
    values[0, 0, 0] = NAN
    mask[0, 0, 1] = False
    trajectories = Trajectories(TIMES, values, mask)
    expected = np.ones(VALUES.shape, bool)
    expected[0, 0] = False
    np.testing.assert_array_equal(trajectories.mask, expected)
    np.testing.assert_array_equal(trajectories.values, np.where(expected, VALUES, 0))


def test_what_the_mask_hides_is_never_read():
    values, mask = VALUES.copy(), np.ones(VALUES.shape, bool)
    values[1, 1, 0], mask[1, 1, 0] = INF, False
    assert Trajectories(TIMES, values, mask).values[1, 1, 0] == 0


def test_observed_is_true_where_any_feature_is(trajectories):
    expected = np.ones(TIMES.shape, bool)
    expected[1, 2] = False
    np.testing.assert_array_equal(trajectories.observed, expected)


def test_ragged_sequences_keep_their_observations_and_nothing_else():
    rng = np.random.default_rng(0)
    pairs = [
        (np.sort(rng.uniform(size=n)), np.round(rng.normal(size=(n, 2)), 3)) for n in (3, 0, 1, 6)
    ]
    pairs[0][1][1, 0] = NAN
    trajectories = Trajectories.from_ragged(pairs)
    assert trajectories.values.shape == (4, 6, 2)
    arrays = (trajectories.times, trajectories.values, trajectories.mask)
    all_times, all_values, mask = (np.asarray(array) for array in arrays)
    for i, (times, values) in enumerate(pairs):
        n = len(times)
        np.testing.assert_allclose(all_times[i, :n], times, rtol=1e-6)
        np.testing.assert_allclose(all_values[i, :n], np.nan_to_num(values), rtol=1e-6)
        np.testing.assert_array_equal(mask[i, :n], ~np.isnan(values))
        assert not mask[i, n:].any()
        assert not all_values[i, n:].any()


def test_padding_repeats_the_last_time():
    pairs = [(np.array([2.0, 5.0]), np.ones(2)), (np.array([3.0, 4.0, 6.0, 7.0]), np.ones(4))]
    times = Trajectories.from_ragged(pairs).times
    np.testing.assert_array_equal(times, [[2, 5, 5, 5], [3, 4, 6, 7]])


def test_an_empty_sequence_lies_at_the_earliest_time():
    pairs = [(np.array([]), np.array([])), (np.array([3.0, 4.0]), np.ones(2))]
    trajectories = Trajectories.from_ragged(pairs)
    np.testing.assert_array_equal(trajectories.times, [[3, 3], [3, 4]])
    np.testing.assert_array_equal(trajectories.observed, [[False, False], [True, True]])


def test_ragged_values_without_an_axis_are_one_feature():
    times, values = np.array([0.0, 1.0]), np.array([5.0, 6.0])
    same(
        Trajectories.from_ragged([(times, values)]),
        Trajectories.from_ragged([(times, values[:, None])]),
    )


def test_sequences_may_all_be_empty_if_the_number_of_features_is_given():
    empty = (np.array([]), np.array([]))
    trajectories = Trajectories.from_ragged([empty, empty], num_features=3)
    assert len(trajectories) == 2
    assert trajectories.num_features == 3
    assert not trajectories.mask.any()


@pytest.mark.parametrize("cut", [-1.0, 0.5, 1.7, 2.0, 9.0, np.array([-1.0, 0.5, 3.5])], ids=str)
def test_before_and_after_partition_the_observations(trajectories, cut):
    before, after = trajectories.before(cut), trajectories.after(cut)
    per_row = np.broadcast_to(cut, (3,))[:, None, None]
    np.testing.assert_array_equal(before.mask, trajectories.mask & (TIMES[..., None] <= per_row))
    np.testing.assert_array_equal(after.mask, trajectories.mask & (TIMES[..., None] > per_row))
    np.testing.assert_array_equal(before.values + after.values, trajectories.values)
    for part in (before, after):
        np.testing.assert_array_equal(part.times, trajectories.times)
        assert not np.where(part.mask, 0, part.values).any()


def test_split_partitions_the_observed_times_and_tears_none_apart():
    nan = np.nan
    times = [[0, 1, 2, 3, 3], [0, 1, 1, 1, 2], [5, 5, 5, 5, 5]]
    values = [[1, nan, 1, 1, nan], [1, 1, 1, 1, 1], [nan, 1, nan, nan, nan]]
    data = Trajectories(times, np.array(values)[..., None])
    early, late = data.split()
    expected = [[1, 0, 1, 0, 0], [1, 1, 1, 1, 0], [0, 1, 0, 0, 0]]
    np.testing.assert_array_equal(early.observed, expected)
    np.testing.assert_array_equal(early.mask | late.mask, data.mask)
    assert not (early.mask & late.mask).any()
    tenth, _ = Trajectories(np.arange(10.0)[None], np.ones((1, 10, 1))).split(0.1)
    assert int(tenth.observed.sum()) == 1
    with pytest.raises(ValueError, match="share must lie between 0 and 1; got 1"):
        data.split(1.0)


def test_keep_takes_a_mask_of_times_or_of_values(trajectories):
    times = np.array([True, False, True, True])[None].repeat(3, axis=0)
    same(trajectories.keep(times), trajectories.keep(times[..., None].repeat(2, axis=-1)))
    same(trajectories.keep(np.ones_like(times)), trajectories)
    assert not trajectories.keep(times).mask[:, 1].any()


def test_hiding_leaves_the_original_as_it_was(trajectories):
    mask = np.asarray(trajectories.mask).copy()
    trajectories.before(-1.0)
    np.testing.assert_array_equal(trajectories.mask, mask)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (np.array([2, 0, 2]), [2, 0, 2]),
        (np.array([-1]), [2]),
        (np.array([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_an_index_selects_whole_trajectories(trajectories, index, rows):
    selected = trajectories[index]
    assert len(selected) == len(rows)
    for name in ("times", "values", "mask"):
        np.testing.assert_array_equal(
            getattr(selected, name), np.asarray(getattr(trajectories, name))[rows]
        )


def test_iterating_gives_each_trajectory_once(trajectories):
    parts = list(trajectories)
    assert len(parts) == len(trajectories) == 3
    same(jax.tree.map(lambda *rows: jnp.concatenate(rows), *parts), trajectories)


@pytest.mark.parametrize(
    "index",
    [3, -4, slice(3, None), np.array([], int), np.zeros(3, bool), np.array([True]), None],
    ids=str,
)
def test_an_index_that_selects_nothing_is_refused(trajectories, index):
    with pytest.raises((ValueError, IndexError), match="index"):
        trajectories[index]


def test_an_index_array_out_of_range_is_refused(trajectories):
    with pytest.raises(IndexError, match="index"):
        trajectories[np.array([0, 7])]


@pytest.mark.parametrize(
    "index", [(slice(None), slice(2)), (..., slice(1))], ids=["times", "ellipsis"]
)
def test_an_index_into_times_or_features_is_refused(trajectories, index):
    with pytest.raises((ValueError, IndexError, TypeError), match="index"):
        trajectories[index]


def test_trajectories_survive_jit_and_tree_map(trajectories):
    same(jax.jit(lambda x: x)(trajectories), trajectories)
    same(jax.tree.map(lambda x: x, trajectories), trajectories)
    same(jax.jit(lambda x: x.before(1.5)[1:])(trajectories), trajectories.before(1.5)[1:])


def test_an_index_array_may_be_traced(trajectories):
    rows = jnp.array([2, 0])
    same(jax.jit(lambda x, rows: x[rows])(trajectories, rows), trajectories[rows])


def test_trajectories_may_be_built_under_jit(trajectories):
    values = np.where(trajectories.mask, trajectories.values, NAN)
    same(jax.jit(Trajectories)(TIMES, values), trajectories)


def test_vmap_runs_over_cuts_and_over_trajectories(trajectories):
    cuts = jnp.array([0.0, 1.5, 5.0])
    many = jax.vmap(trajectories.before)(cuts)
    for i, cut in enumerate(cuts):
        same(jax.tree.map(lambda x, i=i: x[i], many), trajectories.before(cut))
    counts = jax.vmap(lambda one: one.mask.sum())(trajectories)
    np.testing.assert_array_equal(counts, trajectories.mask.sum((1, 2)))


def test_leaves_are_named(trajectories):
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(trajectories)]
    assert paths == [".times", ".values", ".mask"]


def test_repr_shows_the_sizes(trajectories):
    assert repr(trajectories) == (
        "Trajectories(3 of up to 4 times, 2 features, 20 observed values)"
    )


def test_sliced_spirals_keep_their_truth(some_spirals):
    sliced = some_spirals[1:3]
    assert isinstance(sliced, Spirals)
    assert sliced.family == some_spirals.family
    for name in ("times", "values", "mask", "curves", "phase", "direction"):
        np.testing.assert_array_equal(getattr(sliced, name), getattr(some_spirals, name)[1:3])


def test_spirals_keep_their_type_and_truth_where_observations_are_hidden(some_spirals):
    cut = some_spirals.before(2.5)
    assert isinstance(cut, Spirals)
    np.testing.assert_array_equal(cut.curves, some_spirals.curves)
    np.testing.assert_array_equal(cut.observed, some_spirals.times <= 2.5)


def test_spirals_survive_jit(some_spirals):
    same(jax.jit(lambda x: x.after(2.5))(some_spirals), some_spirals.after(2.5))


def with_entry(array, index, entry):
    array = np.array(array)
    array[index] = entry
    return array


FULL = np.ones(VALUES.shape, bool)
BAD_ARRAYS = {
    "one axis too few": ("times.*shape", TIMES[0], VALUES),
    "values without features": (r"values.*\(3, 4\) and \(3, 4\)", TIMES, VALUES[..., 0]),
    "numbers of trajectories": ("times.*values", TIMES[:2], VALUES),
    "numbers of times": ("times.*values", TIMES[:, :3], VALUES),
    "decreasing times": (
        r"times must not decrease.*\[1, 2:4\]",
        with_entry(TIMES, (1, 3), 1.0),
        VALUES,
    ),
    "NaN time": (r"times.*nan.*\[2, 0\]", with_entry(TIMES, (2, 0), NAN), VALUES),
    "infinite time": (r"times.*inf.*\[2, 3\]", with_entry(TIMES, (2, 3), INF), VALUES),
    "infinite value": (r"values.*inf.*\[0, 1, 1\]", TIMES, with_entry(VALUES, (0, 1, 1), -INF)),
    "integer mask": ("mask.*booleans.*int", TIMES, VALUES, FULL.astype(int)),
    "mask of times": (r"mask.*\(3, 4\)", TIMES, VALUES, FULL[..., 0]),
    "no trajectory": ("values.*at least one trajectory", TIMES[:0], VALUES[:0]),
    "no time": ("values.*at least one.*time", TIMES[:, :0], VALUES[:, :0]),
    "no feature": ("values.*at least one.*feature", TIMES, VALUES[..., :0]),
    "words for values": ("values.*numbers", TIMES, VALUES.astype(str)[:, :, :1] + "x"),
    "words for times": ("times.*numbers", np.full(TIMES.shape, "soon"), VALUES),
    "ragged times": ("times.*numbers", np.array([[0.0], [1.0, 2.0]], dtype=object), VALUES),
}


@pytest.mark.parametrize(
    ("match", "arguments"), [(m, a) for m, *a in BAD_ARRAYS.values()], ids=BAD_ARRAYS
)
def test_bad_arrays_are_refused(untyped, match, arguments):
    with pytest.raises(ValueError, match=match):
        Trajectories(*arguments)


ONES = np.ones(2)
GOOD = (np.arange(2.0), np.ones((2, 2)))
BAD_SEQUENCES = {
    "none": ("sequences.*at least one", []),
    "lengths": (r"sequences\[1\].*\(3,\).*\(2, 2\)", [GOOD, (np.arange(3.0), GOOD[1])]),
    "times of two axes": (r"sequences\[1\].*times", [GOOD, (np.ones((2, 1)), GOOD[1])]),
    "values of three axes": (r"sequences\[1\].*values", [GOOD, (GOOD[0], np.ones((2, 2, 1)))]),
    "decreasing": (r"sequences\[1\].*decrease", [GOOD, (np.array([1.0, 0.0]), GOOD[1])]),
    "NaN time": (r"sequences\[1\].*finite", [GOOD, (np.array([1.0, NAN]), GOOD[1])]),
    "infinite time": (r"sequences\[0\].*finite", [(np.array([1.0, INF]), GOOD[1]), GOOD]),
    "infinite value": (r"values.*\[1, 0, 0\]", [GOOD, (GOOD[0], with_entry(GOOD[1], (0, 0), INF))]),
    "words": (r"sequences\[1\].*numbers", [GOOD, (GOOD[0], np.full((2, 2), "much"))]),
    "features": (r"sequences.*features.*\[1, 2\]", [GOOD, (GOOD[0], ONES)]),
    "all empty": ("sequences.*num_features", [(ONES[:0], ONES[:0])]),
    "a triple": (r"sequences\[1\]", [GOOD, (*GOOD, ONES)]),
    "a number": (r"sequences\[1\]", [GOOD, 3.0]),
}


@pytest.mark.parametrize(("match", "sequences"), BAD_SEQUENCES.values(), ids=BAD_SEQUENCES)
def test_bad_sequences_are_refused_by_their_index(untyped, match, sequences):
    with pytest.raises(ValueError, match=match):
        Trajectories.from_ragged(sequences)


def test_a_wrong_number_of_features_is_refused():
    with pytest.raises(ValueError, match=r"features.*\[2, 3\]"):
        Trajectories.from_ragged([GOOD], num_features=3)


@pytest.mark.parametrize("cut", [np.zeros(2), np.zeros((3, 1))], ids=["two", "column"])
@pytest.mark.parametrize("part", ["before", "after"])
def test_cuts_of_a_wrong_shape_are_refused(trajectories, part, cut):
    with pytest.raises(ValueError, match="time must be"):
        getattr(trajectories, part)(cut)


@pytest.mark.parametrize(
    "mask",
    [np.ones((3, 4)), np.ones((4, 3), bool), np.ones((3, 4, 1), bool)],
    ids=["float", "turned", "flat"],
)
def test_keep_refuses_masks_of_a_wrong_kind(trajectories, mask):
    with pytest.raises(ValueError, match="mask must hold booleans"):
        trajectories.keep(mask)

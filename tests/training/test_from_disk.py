"""Training from disk takes the steps of SVI on chunks that are random, without bias, the same."""

from itertools import chain

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from helpers import interrupted_at
from test_fit import same, small_pair

from np_latentode import (
    BernoulliLikelihood,
    PoissonLikelihood,
    Scaling,
    StoredTrajectories,
    cross_fit,
    fit,
    latent_ode,
)
from np_latentode.data import stored as stored_module
from np_latentode.data.offset import Offset
from np_latentode.training import plan, progress, steps
from np_latentode.training.chunks import Chunks
from np_latentode.training.recalibration import recalibrated
from np_latentode.training.split import split

pytest.importorskip("pyarrow")
pytest.importorskip("grain")

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    for module in (steps, progress, plan):
        monkeypatch.setattr(module, "STEPS_AT_ONCE", 5)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """40 waves of 3 to 9 times, whose level tells them apart, and 8 of 60."""
    path, parts = tmp_path_factory.mktemp("stored") / "table.parquet", []
    rng = np.random.default_rng(0)
    for i, rows in enumerate([*rng.integers(3, 10, 40), *[60] * 8]):
        day = np.sort(rng.uniform(0, 10, rows))
        a, b = i + 0.1 * np.sin(day), np.cos(day)
        parts.append(pd.DataFrame({"who": i, "day": day, "a": a, "b": b}))
    pd.concat(parts).to_parquet(path)
    return StoredTrajectories.from_parquet(path, id="who", time="day", values=["a", "b"])


def chunks_of(stored, key=KEY, batch_size=4, steps=3):
    return Chunks(stored, key, batch_size=batch_size, steps=steps, offset=Offset())


def who(trajectories):
    return np.round(np.asarray(trajectories.values)[:, 0, 0]).astype(int).tolist()


def test_chunks_have_a_fixed_shape_and_each_round_holds_each_trajectory_at_most_once(stored):
    chunks = chunks_of(stored)
    assert [part.times.shape for part in chunks.at(0)] == [(9, 9), (3, 60)]
    assert chunks.weights == (40 / 9, 8 / 3)
    for k in range(2):
        first = [chunks.at(4 * k + j)[0] for j in range(4)]
        assert {part.times.shape for part in first} == {(9, 9)}
        seen = [*chain.from_iterable(map(who, first))]
        assert len(set(seen)) == len(seen) == 36
        assert set(seen) < {*range(40)}
    assert who(chunks.at(0)[0]) != who(chunks.at(4)[0])


def test_chunks_depend_on_the_key_and_their_number_only(stored):
    chunks, again = chunks_of(stored), chunks_of(stored)
    for k in (7, 2, 5):
        same(chunks.at(k), again.at(k))
    other = chunks_of(stored, jax.random.key(4))
    assert who(other.at(0)[0]) != who(chunks.at(0)[0])


def test_sums_over_chunks_are_without_bias(stored):
    chunks = chunks_of(stored)
    sums = [
        sum(w * sum(who(part)) for w, part in zip(chunks.weights, chunks.at(k), strict=True))
        for k in range(400)
    ]
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - sum(range(48))) < 4 * error


def test_a_chunk_of_all_is_all(stored):
    chunks = chunks_of(stored, batch_size=48, steps=100)
    assert chunks.weights == (1.0, 1.0)
    assert [*chain.from_iterable(map(who, chunks.at(3)))] == [*range(48)]


@pytest.mark.slow
def test_an_interrupted_training_from_disk_ends_where_it_would_have_ended(
    stored, tmp_path, monkeypatch
):
    held_out, train = stored[:6], stored.without(slice(6))
    pair = small_pair(stored)
    arguments = (KEY, *pair, train, held_out)
    options = dict(num_steps=22, batch_size=6, progress=False)
    whole = fit(*arguments, **options)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.0)
    calls = interrupted_at(monkeypatch, 3)
    options |= dict(checkpoint_dir=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        fit(*arguments, **options)
    resumed = fit(*arguments, **options)
    assert len(calls) == 3 + 3
    same(whole.params, resumed.params)
    same(whole.history[:3], resumed.history[:3])
    with pytest.raises(ValueError, match="differs in train"):
        fit(*arguments[:3], train.without([0]), held_out, **options)


@pytest.mark.slow
def test_one_program_takes_all_dispatches(stored, monkeypatch):
    traced, chosen = [], plan.steps_of

    def spy(svi, **options):
        take = chosen(svi, **options)
        traced.append(take)
        return take

    monkeypatch.setattr(plan, "steps_of", spy)
    fit(KEY, *small_pair(stored), stored, num_steps=20, batch_size=6, progress=False)
    assert [take._cache_size() for take in traced] == [1]


def test_a_batch_size_is_needed(stored):
    pair = small_pair(stored)
    for size in (None, 0, 49):
        with pytest.raises(ValueError, match="batch_size must be an integer from 1 to the number"):
            fit(KEY, *pair, stored, num_steps=2, batch_size=size, progress=False)


@pytest.mark.slow
def test_programs_are_built_of_trajectories_on_disk(stored):
    for options in (dict(latent_dim=2), {}):
        model, guide = latent_ode(stored, rngs=nnx.Rngs(0), **options)
        expected = Scaling.fit(stored)
        assert model.scaling.like(expected)
        assert guide.scaling is model.scaling


def of_zeros_and_ones(folder, **other):
    """40 trajectories of 3 times and one of 60; of some, one value is another one."""
    parts = []
    for i, rows in enumerate([*[3] * 40, 60]):
        seen = np.where(np.arange(rows) % 3 == 1, np.nan, np.arange(rows) % 2.0)
        seen[-1] = other.get(f"at_{i}", 1.0)
        parts.append(pd.DataFrame({"who": i, "day": np.arange(rows) / 10, "x": seen, "y": 1.0}))
    folder.mkdir()
    pd.concat(parts).to_parquet(folder / "table.parquet")
    return StoredTrajectories.from_parquet(
        folder / "table.parquet", id="who", time="day", values=["x", "y"]
    )


@pytest.mark.parametrize("at", [0, 17, 39, 40])
@pytest.mark.parametrize(
    ("likelihood", "value", "rule"),
    [
        (BernoulliLikelihood(), 2.0, "must be 0 or 1 under Bernoulli"),
        (PoissonLikelihood(), 1.5, "must .* under Poisson"),
    ],
)
def test_an_impossible_observation_anywhere_on_disk_is_refused(
    tmp_path, monkeypatch, at, likelihood, value, rule
):
    monkeypatch.setattr(stored_module, "ROWS_AT_ONCE", 50)
    stored = of_zeros_and_ones(tmp_path / "bad", **{f"at_{at}": value})
    good = of_zeros_and_ones(tmp_path / "good")
    pair = latent_ode(good, latent_dim=2, likelihood=likelihood, rngs=nnx.Rngs(0))
    slot = 59 if at == 40 else 2
    place = rf"train\[{at}\] {rule} .* got {value} at values\[0, {slot}, 0\]"
    with pytest.raises(ValueError, match=place):
        fit(KEY, *pair, stored, num_steps=2, batch_size=2, progress=False)
    assert stored[at].given.values[0, slot, 0] == value


@pytest.mark.slow
def test_candidates_are_cross_fitted_from_disk(stored):
    """No member is trained on what any fold leaves out; each reads in an order of its own."""
    made = []

    def build(train, rngs):
        made.append(train)
        return small_pair(stored)

    options = dict(num_folds=2, num_steps=20, batch_size=6, progress=False)
    cross = cross_fit(KEY, {"one": build}, stored, **options)
    left_out = np.concatenate(cross.left_out)
    assert len({*left_out.tolist()}) == len(left_out) == 2 * (48 // 14)
    for train in made:
        assert {*train.names.ids} == {*range(48)} - {*left_out.tolist()}
    a, b = cross.ensemble.members
    assert np.isfinite(a.history.losses).all()
    assert (a.history.losses != b.history.losses).all()
    again = cross_fit(KEY, {"one": build}, stored, **options)
    same(a.params, again.ensemble.members[0].params)
    bands = recalibrated(KEY, cross, stored, num_samples=20).bands
    assert bands.widths.shape == (2,)


def test_folds_of_few_on_disk_leave_some_to_train_on(stored):
    few = stored.without(slice(5, None))
    with pytest.raises(ValueError, match="trajectories must hold more than num_folds=5 ids; got 5"):
        split(few, 5)
    assert len(split(few, 4).train[0]) == 1
    with pytest.raises(ValueError, match="batch_size must be given for trajectories on disk"):
        cross_fit(KEY, {"one": lambda *_: None}, stored)

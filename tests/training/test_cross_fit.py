"""Each member is trained without its fold, which judges it; candidates are weighed by that."""

from dataclasses import replace
from types import SimpleNamespace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import interrupted_at

from np_latentode import (
    Ensemble,
    GaussianLikelihood,
    History,
    Scaling,
    Solver,
    Trajectories,
    cross_fit,
    datasets,
    latent_ode,
    log_predictive,
    posterior,
)
from np_latentode.training import cross_fit as module, progress, steps
from np_latentode.training.gains import share_kept
from np_latentode.training.split import split
from np_latentode.training.stacking import stacking_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")

DATA = datasets.spirals(jax.random.key(0), num_trajectories=14)
SCALING = Scaling.fit(DATA)
KEY = jax.random.key(5)


class Field(nnx.Linear):
    def __call__(self, t, z):
        return super().__call__(z)


class MeanEncoder(nnx.Linear):
    def __call__(self, times, values, mask):
        return super().__call__(values.sum(1) / (1 + mask.sum(1)))


def network(train, rngs, **options):
    """A pair that compiles in a second or two."""
    return latent_ode(
        train,
        latent_dim=2,
        dynamics=Field(2, 2, rngs=rngs),
        encoder=MeanEncoder(2, 4, rngs=rngs),
        solver=Solver(diffrax.Euler(), dt0=1.25, adjoint=diffrax.DirectAdjoint()),
        scaling=SCALING,
        rngs=rngs,
        **options,
    )


def hopeless(train, rngs):
    """It is sure of the wrong."""
    return network(train, rngs, likelihood=GaussianLikelihood(1e-2))


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(steps, "STEPS_AT_ONCE", 5)


OPTIONS = dict(num_folds=2, num_steps=20, max_workers=1, progress=False)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def ids(trajectories):
    """The first value of each trajectory, by which spirals are told apart."""
    return np.asarray(trajectories.values)[:, 0, 0].tolist()


@pytest.fixture(scope="module")
def crossed():
    """Two candidates, one of them hopeless, and what each was built of."""
    built = []

    def spy(train, rngs):
        built.append(train)
        return network(train, rngs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "STEPS_AT_ONCE", 5)
        candidates = {"good": spy, "hopeless": hopeless}
        return cross_fit(KEY, candidates, DATA, **OPTIONS), built


@pytest.mark.slow
def test_each_trajectory_is_left_out_once_and_builds_the_other_members(crossed):
    cross, built = crossed
    assert sorted(np.concatenate(cross.left_out).tolist()) == [*range(14)]
    assert [len(rows) for rows in cross.left_out] == [7, 7]
    for rows, train in zip(cross.left_out, built, strict=True):
        assert ids(train) == ids(DATA[np.setdiff1d(np.arange(14), rows)])


def losses_of_first_round(data):
    made = cross_fit(KEY, {"one": network}, data, **OPTIONS)
    return [member.history.losses[:5] for member in made.ensemble.members], made.left_out


@pytest.mark.slow
def test_no_step_depends_on_what_was_left_out():
    before, left_out = losses_of_first_round(DATA)
    values = np.array(DATA.values)
    values[left_out[0]] *= 3
    other = Trajectories(np.asarray(DATA.times), values, np.asarray(DATA.mask))
    after, same_rows = losses_of_first_round(other)
    same(left_out, same_rows)
    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).all()


@pytest.mark.slow
def test_a_hopeless_candidate_has_no_weight_and_no_member(crossed):
    cross, _ = crossed
    assert cross.weights == {"good": 1.0, "hopeless": 0.0}
    assert cross.scores["hopeless"] < cross.scores["good"] - 10
    assert cross.of("hopeless") == ()
    assert cross.of("good") == cross.ensemble.members
    assert cross.ensemble.weights.tolist() == [0.5, 0.5]
    assert cross.seconds > 0


@pytest.mark.slow
def test_scores_are_the_log_densities_of_what_was_left_out(crossed):
    cross, _ = crossed
    key, total, count = jax.random.fold_in(KEY, 0), 0.0, 0
    for member, rows in zip(cross.of("good"), cross.left_out, strict=True):
        context, target = DATA[rows].split()
        keys, q = jax.random.split(key, module.REPEATS), posterior(member, context)
        z0 = jnp.concatenate([q.sample(one, (module.NUM_DRAWS,)) for one in keys])
        total += float(log_predictive(member, z0, context, target).sum())
        count += int(target.mask.sum())
    assert cross.scores["good"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.slow
def test_the_first_evaluation_is_of_the_start(crossed):
    for member in crossed[0].of("good"):
        assert member.history.evaluated[0] == 0
        assert member.history.validation.min() <= member.history.validation[0]


def test_weights_of_candidates_are_those_of_stacking_and_sum_to_one():
    rng = np.random.default_rng(0)
    # Each of two is much better for a half: their mixture is surely better than the first alone.
    log_p = rng.normal(size=(3, 14)) - np.array([[0.0], [0.0], [30.0]])
    log_p[:2] += 3 * np.eye(2).repeat(7, axis=1)
    pair = network(DATA, nnx.Rngs(0))
    one = module.starting_alike([pair], name="candidates")[0]
    divided = split(DATA, 2)
    made = {name: [replace(one), replace(one)] for name in "abc"}
    cross = module._joined(made, dict.fromkeys(made, 1.0), log_p, divided, 1.0)
    weights = stacking_weights(log_p)
    assert sum(cross.weights.values()) == pytest.approx(1)
    assert cross.weights["c"] == 0
    np.testing.assert_allclose([cross.weights[name] for name in "ab"], weights[:2], atol=0.01)
    for name in "ab":
        assert cross.of(name) == tuple(made[name])
    # The members of a candidate count alike; those of a fold are one of each.
    np.testing.assert_allclose(
        cross.ensemble.weights, np.repeat([cross.weights["a"], cross.weights["b"]], 2) / 2
    )
    for k in range(2):
        fold = cross.fold(k)
        assert isinstance(fold, Ensemble)
        assert fold.members == (made["a"][k], made["b"][k])
        np.testing.assert_allclose(fold.weights, [cross.weights["a"], cross.weights["b"]])


def test_weights_leave_the_first_candidate_only_as_far_as_others_are_surely_better():
    rng = np.random.default_rng(0)
    first = rng.normal(size=12)
    ids = np.arange(12)
    surely, maybe = first + 1 + 0.1 * rng.normal(size=12), first + 3 * rng.normal(size=12)
    assert module._weights(np.stack([first, surely]), ids)[1] == pytest.approx(1, abs=1e-3)
    stacked = stacking_weights(np.stack([first, maybe]))
    weights = module._weights(np.stack([first, maybe]), ids)
    gain = np.log(stacked @ np.exp([first, maybe])) - first
    assert stacked[1] > 0.1
    expected = share_kept(gain, ids) * stacked[1]
    np.testing.assert_allclose(weights[1], expected, atol=1e-6)
    assert weights[1] < 0.9 * stacked[1]
    assert weights.sum() == pytest.approx(1)


def test_windows_of_an_id_are_one_case():
    """As many windows of the same two ids make nothing surer."""
    rng = np.random.default_rng(1)
    first, gain = rng.normal(size=40), np.repeat([2.0, -0.5], 20)
    log_p, ids = np.stack([first, first + gain]), np.repeat(["a", "b"], 20)
    assert stacking_weights(log_p)[1] > 0.9
    assert module._weights(log_p, np.arange(40))[1] > 0.9
    assert module._weights(log_p, ids)[1] < 0.5


def test_a_first_candidate_that_cannot_be_scored_has_no_claim():
    log_p = np.stack([np.array([-np.inf, 1.0, 1.0]), np.zeros(3)])
    np.testing.assert_allclose(module._weights(log_p, np.arange(3)), stacking_weights(log_p))


@pytest.mark.slow
def test_with_one_fold_a_seventh_is_left_out_once():
    cross = cross_fit(KEY, {"one": network}, DATA, **OPTIONS | dict(num_folds=1, num_steps=1))
    assert [len(rows) for rows in cross.left_out] == [2]
    assert len(cross.ensemble.members) == 1


def test_each_fold_takes_as_many_of_each_length_and_none_that_cannot_be_forecast():
    lengths = [1, *[4] * 12, *[60] * 6]
    pairs = [(np.arange(n), np.ones((n, 1))) for n in lengths]
    divided = split(Trajectories.from_ragged(pairs, num_features=1), 3)
    for rows, parts in zip(divided.left_out, divided.kept, strict=True):
        left_out = np.array(lengths)[rows]
        assert [(left_out == n).sum() for n in (1, 4, 60)] == [0, 4, 2]
        assert [len(part) for part in parts] == [9, 4]
    assert not set(divided.left_out[0]) & set(divided.left_out[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "taken"),
    [([3.0, 2.0, 1.0, 0.9, 0.8, 0.7], 20), ([1.0, 2.0, 3.0], 5)],
    ids=["better to the end", "worse from the start on"],
)
def test_more_steps_follow_where_the_first_were_too_few(scores, taken, monkeypatch):
    given = iter(scores)
    monkeypatch.setattr(progress, "forecast_score", lambda *_: next(given))
    options = OPTIONS | dict(num_folds=1)
    [member] = cross_fit(KEY, {"one": network}, DATA, **options).ensemble.members
    assert len(member.history.losses) == taken
    best = int(np.argmin(member.history.validation))
    assert member.history.best_step == member.history.evaluated[best]
    assert member.history.best_step == (20 if taken == 20 else 0)


def test_patience_lasts_as_long_a_part_of_the_second_round_as_of_the_first(monkeypatch):
    """Else training would end while the learning rate of the second round is high."""
    given = iter([3.0, 2.0, 2.0, 2.6, 2.5, 1.0])
    monkeypatch.setattr(progress, "forecast_score", lambda *_: next(given))
    options = OPTIONS | dict(num_folds=1, patience=5)
    [member] = cross_fit(KEY, {"one": network}, DATA, **options).ensemble.members
    assert len(member.history.losses) == member.history.best_step == 20


def history(*scores, others=None):
    """A history whose step is chosen by the others' scores."""
    steps = np.arange(len(scores))
    return History(steps[1:] * 1.0, steps, np.array(scores), others=np.array(others or scores))


@pytest.mark.parametrize(
    ("after", "between", "share"),
    [
        (2.0 + np.eye(8)[0], -9.0, 1.0),
        (np.eye(8)[0] - 1.0, -9.0, 0.0),
        (np.linspace(-1.0, 2.1, 8), 0.1, 0.55),
        # Between the two it is worse than at the start: no half of the way.
        (np.linspace(-1.0, 2.1, 8), -9.0, 1.0),
    ],
    ids=["sure", "a loss", "may be chance", "a ridge between"],
)
def test_what_is_kept_of_training_is_the_start_the_end_or_what_lies_between(after, between, share):
    pair = network(DATA, nnx.Rngs(0))
    start = module.starting_alike([pair], name="candidates")[0]
    end = replace(start, params=jax.tree.map(lambda x: x + 1.0, start.params))
    seen = []

    def scores(members):
        [one] = members
        seen.append(one)
        is_end = one is end
        return np.asarray(after if is_end else np.full(8, 0.0 if one is start else between))

    [kept], found, log_p = module._kept([start], [end], scores, np.arange(8))
    assert found == pytest.approx(share, abs=0.05)
    expected = jax.tree.map(lambda x: x + found, start.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), kept.params, expected)
    # The scores are those of what is kept.
    middle = 0.0 if share == 0 else between
    np.testing.assert_array_equal(log_p, after if found == 1 else np.full(8, middle))


def test_a_second_round_goes_on_from_the_step_that_the_first_kept():
    """Its start was scored for each member at the step that it kept, not all at one."""
    pair = network(DATA, nnx.Rngs(0))
    one = module.starting_alike([pair], name="candidates")[0]
    past = history(3.0, 2.0, 2.5, others=[3.0, 1.0, 2.0])
    before = replace(one, history=past)
    better = history(2.0, 1.9, others=[0.8, 0.7])
    worse = history(2.0, 1.9, others=[0.8, 0.9])
    for new, best in ((better, 3), (worse, 1)):
        done = progress.Progress(one.params, None, new)
        joined = module._continued(before, done).history
        assert joined.evaluated.tolist() == [0, 1, 2, 3]
        assert joined.best_step == best


@pytest.mark.slow
def test_the_others_choose_the_step_of_each_member_and_all_take_as_many(monkeypatch):
    # In turns: of three members at their starts, then after each dispatch.
    scores = np.array([[3.0, 1.0, 2.0, 0.0], [3.0, 2.0, 1.0, 9.0], [3.0, 2.5, 0.5, 9.0]])
    given = iter(scores.T.ravel().tolist())
    monkeypatch.setattr(progress, "forecast_score", lambda *_: next(given))
    monkeypatch.setattr(module, "_rounds", lambda _: [15])
    options = OPTIONS | dict(num_folds=3, patience=10)
    done = cross_fit(KEY, {"one": network}, DATA, **options).ensemble.members
    for k, one in enumerate(done):
        others = np.delete(scores, k, axis=0).mean(0)
        np.testing.assert_allclose(one.history.others, others)
        assert one.history.best_step == 5 * others.argmin()
        assert len(one.history.losses) == 15
    assert [one.history.best_step for one in done] == [10, 10, 5]


def test_a_member_that_cannot_be_scored_has_no_say():
    def done(*each):
        some = (History(validation=np.array(one), evaluated=np.arange(3)) for one in each)
        return [progress.Progress({}, None, one) for one in some]

    members = done([3.0, 2.0, 1.0], [np.inf] * 3, [2.0, 1.0, np.inf])
    judged = [progress._judged(k, members).history.others for k in range(3)]
    np.testing.assert_array_equal(judged, [[2, 1, np.inf], [2.5, 1.5, np.inf], [3, 2, np.inf]])


def test_kept_parts_are_between_the_parameters_of_start_and_end(monkeypatch):
    shares = iter([1.0, 0.25, 0.0, 0.0])
    monkeypatch.setattr(module, "share_kept", lambda *_: next(shares))
    monkeypatch.setattr(module, "_weights", lambda log_p, _: np.ones(1))
    whole, part, none = (cross_fit(KEY, {"one": network}, DATA, **OPTIONS) for _ in range(3))
    assert (whole.shares_kept, part.shares_kept) == ({"one": 1.0}, {"one": 0.25})
    for a, b, c in zip(*(one.ensemble.members for one in (none, part, whole)), strict=True):
        expected = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, a.params, c.params)
        for path, leaf in jax.tree.leaves_with_path(b.params):
            want = dict(jax.tree.leaves_with_path(expected))[path]
            np.testing.assert_allclose(leaf, want, atol=1e-6)
    assert part.scores != whole.scores


@pytest.mark.slow
def test_what_training_does_not_improve_stays_at_its_start(monkeypatch):
    given = iter([1.0, 2.0])
    monkeypatch.setattr(progress, "forecast_score", lambda *_: next(given))
    starts = []

    def spy(train, rngs):
        starts.append(network(train, rngs))
        return starts[-1]

    [member] = cross_fit(KEY, {"one": spy}, DATA, **OPTIONS | dict(num_folds=1)).ensemble.members
    [start] = module.starting_alike(starts, name="candidates")
    same(member.params, start.params)


@pytest.mark.slow
def test_interrupted_it_ends_bit_for_bit_where_it_would_have_ended(tmp_path, monkeypatch):
    candidates = {"one": network, "other": lambda train, rngs: network(train, nnx.Rngs(9))}
    whole = cross_fit(KEY, candidates, DATA, **OPTIONS)
    calls = interrupted_at(monkeypatch, 4)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.0)
    options = OPTIONS | dict(checkpoint_dir=tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        cross_fit(KEY, candidates, DATA, **options)
    resumed = cross_fit(KEY, candidates, DATA, **options)
    done = len(calls)
    again = cross_fit(KEY, candidates, DATA, **options)
    assert len(calls) == done
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"one", "other"}
    for other in (resumed, again):
        assert other.weights == whole.weights
        assert other.scores == whole.scores
        for a, b in zip(whole.ensemble.members, other.ensemble.members, strict=True):
            same(a.params, b.params)
            same(a.history._replace(seconds=0), b.history._replace(seconds=0))


@pytest.mark.slow
def test_folds_with_checkpoints_of_other_steps_end_where_they_would_have_ended(
    tmp_path, monkeypatch
):
    """A process that is killed while it saves leaves a later checkpoint of some folds."""
    options = OPTIONS | dict(num_folds=3)
    whole = cross_fit(KEY, {"one": network}, DATA, **options)
    saved, original = [], progress._save

    def killed(plans, done):
        saved.append(len(done))
        if len(saved) < 3:
            original(plans, done)
        else:
            original(plans[:1], done[:1])
            raise KeyboardInterrupt

    options |= dict(checkpoint_dir=tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "SECONDS_BETWEEN", 0.0)
        patch.setattr(progress, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            cross_fit(KEY, {"one": network}, DATA, **options)
    resumed = cross_fit(KEY, {"one": network}, DATA, **options)
    for a, b in zip(whole.ensemble.members, resumed.ensemble.members, strict=True):
        same(a.params, b.params)
        same(a.history.others, b.history.others)


def test_members_of_other_steps_are_judged_by_what_all_have(monkeypatch):
    def done(*each):
        some = (History(validation=np.array(one), evaluated=np.arange(len(one))) for one in each)
        return [progress.Progress({}, None, one) for one in some]

    members = done([3.0], [2.0, 1.0], [4.0, 5.0])
    np.testing.assert_array_equal(progress._judged(0, members).history.others, [3.0])


@pytest.mark.usefixtures("untyped")
def test_what_diverges_is_scored_as_impossible(monkeypatch):
    one = module.starting_alike([network(DATA, nnx.Rngs(0))], name="candidates")[0]
    divided = split(DATA, 2)
    failed = jnp.full(divided.judged[0][1].mask.shape, -1.0).at[2].set(jnp.nan)
    monkeypatch.setattr(module, "log_predictive", lambda *_: failed)
    monkeypatch.setattr(module, "amortized", lambda *_: None)
    plans = [SimpleNamespace(programs=SimpleNamespace(fitted=lambda params: None))] * 2
    scores = module._left_out_scores(KEY, [one, one], plans=plans, split=divided)
    assert np.isneginf(scores[[2, 9]]).all()
    assert np.isfinite(np.delete(scores, [2, 9])).all()


@pytest.mark.slow
def test_candidates_side_by_side_are_those_one_after_the_other():
    candidates = {"one": network, "other": lambda train, rngs: network(train, nnx.Rngs(9))}
    options = OPTIONS | dict(num_steps=1)
    alone, together = (
        cross_fit(KEY, candidates, DATA, **options | dict(max_workers=count)) for count in (1, 4)
    )
    assert alone.weights == together.weights
    for a, b in zip(alone.ensemble.members, together.ensemble.members, strict=True):
        same(a.params, b.params)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_folds": 0}, "num_folds must be a positive integer; got 0"),
        ({"num_folds": 15}, "trajectories must hold 15 ids .* for num_folds=15; got 14"),
        ({"num_steps": 0}, "num_steps must be a positive integer; got 0"),
        ({"max_workers": 0}, "max_workers must be a positive integer; got 0"),
        ({"patience": 0}, "patience must be a positive integer; got 0"),
        ({"candidates": {}}, "candidates must hold at least one function; got none"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed, message):
    arguments = dict(candidates={"one": network}, **OPTIONS) | changed
    with pytest.raises(ValueError, match=message):
        cross_fit(KEY, arguments.pop("candidates"), DATA, **arguments)


def test_a_candidate_that_differs_between_folds_is_refused():
    units = iter([1.0, 2.0])

    def other_units(train, rngs):
        scaling = Scaling(np.zeros(2), np.full(2, next(units)))
        return latent_ode(train, latent_dim=2, scaling=scaling, rngs=rngs)

    message = "candidates must return the same parts in every call, .* other units for member 1"
    with pytest.raises(ValueError, match=message):
        cross_fit(KEY, {"one": other_units}, DATA, **OPTIONS)


@pytest.mark.slow
def test_a_candidate_that_diverges_ends_the_training():
    def torn(train, rngs):
        model, guide = network(train, rngs)
        model.decoder = type("Torn", (nnx.Module,), {"__call__": lambda _, z: z * jnp.nan})()
        return model, guide

    with pytest.raises(FloatingPointError, match="None of the steps 1 to 5 was finite"):
        cross_fit(KEY, {"torn": torn}, DATA, **OPTIONS)


def test_folds_of_many_leave_out_random_ones_and_train_on_all_others(monkeypatch):
    monkeypatch.setattr("np_latentode.training.split.MOST_LEFT_OUT", 3)
    divided = split(DATA, 2)
    assert [len(rows) for rows in divided.left_out] == [3, 3]
    assert not {*divided.left_out[0].tolist()} & {*divided.left_out[1].tolist()}
    for rows, (kept,) in zip(divided.left_out, divided.kept, strict=True):
        assert ids(kept) == ids(DATA[np.setdiff1d(np.arange(14), rows)])

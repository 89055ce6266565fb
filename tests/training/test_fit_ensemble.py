"""The members of an ensemble are fits: trained side by side, by one program, and then stacked."""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import interrupted_at

from np_latentode import (
    Ensemble,
    Fitted,
    Scaling,
    Solver,
    datasets,
    fit,
    fit_ensemble,
    latent_ode,
)
from np_latentode.programs.params import initial_params
from np_latentode.training import progress, stacking, steps
from np_latentode.training.stacking import stack, stacking_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")

SPIRALS = datasets.spirals(jax.random.key(0), num_trajectories=22)
TRAIN, HELD_OUT = SPIRALS[:14], SPIRALS[14:]
KEY = jax.random.key(5)


class CountingDynamics(nnx.Linear):
    """A vector field that counts how often it is traced."""

    calls = 0

    def __call__(self, t, z):
        CountingDynamics.calls += 1
        return super().__call__(z)


class MeanEncoder(nnx.Linear):
    def __call__(self, times, values, mask):
        return super().__call__(values.sum(1) / (1 + mask.sum(1)))


def build(rngs, latent_dim=2):
    return latent_ode(
        TRAIN,
        latent_dim=latent_dim,
        dynamics=CountingDynamics(latent_dim, latent_dim, rngs=rngs),
        encoder=MeanEncoder(2, 4, rngs=rngs),
        solver=Solver(diffrax.Euler(), dt0=1.25, adjoint=diffrax.DirectAdjoint()),
        rngs=rngs,
    )


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    monkeypatch.setattr(steps, "STEPS_AT_ONCE", 5)
    monkeypatch.setattr(stacking, "NUM_DRAWS", 20)


OPTIONS = dict(num_steps=15, batch_size=4, progress=False)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def start_of(k, key=KEY):
    start_key, train_key, _ = jax.random.split(key, 3)
    pair = build(nnx.Rngs(jax.random.fold_in(start_key, k)))
    return jax.random.fold_in(train_key, k), initial_params(*pair)


@pytest.mark.slow
@pytest.mark.parametrize("max_workers", [1, 2])
def test_members_are_bit_for_bit_what_fit_makes_of_each_start(max_workers):
    made = fit_ensemble(
        KEY, build, TRAIN, HELD_OUT, num_members=2, max_workers=max_workers, **OPTIONS
    )
    model, guide = made.members[0].model, made.members[0].guide
    for k, member in enumerate(made.members):
        key, params = start_of(k)
        start = Fitted(model, guide, params)
        alone = fit(key, model, guide, TRAIN, HELD_OUT, start=start, **OPTIONS)
        same(alone.params, member.params)
        same(alone.history[:3], member.history[:3])
        same(alone.state.optim_state, member.state.optim_state)
    one, other = (member.params["dynamics$params"]["kernel"] for member in made.members)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_more_members_compile_nothing_more():
    def traces(num_members):
        jax.clear_caches()
        before = CountingDynamics.calls
        # Traced anew for each new model: here of one build in each run, to take off what it takes.
        made = fit_ensemble(KEY, build, TRAIN, HELD_OUT, num_members=num_members, **OPTIONS)
        assert len({member.model for member in made.members}) == 1
        return CountingDynamics.calls - before

    built = CountingDynamics.calls
    build(nnx.Rngs(0))
    built = CountingDynamics.calls - built
    two, four = traces(2), traces(4)
    assert four - two == 2 * built


@pytest.mark.slow
def test_the_precision_of_the_caller_is_that_of_the_threads(x64):
    spirals = datasets.spirals(jax.random.key(0), num_trajectories=22)
    train, held_out = spirals[:14], spirals[14:]
    made = fit_ensemble(KEY, build, train, held_out, num_members=2, max_workers=2, **OPTIONS)
    for member in made.members:
        assert member.params["noise_scale"].dtype == np.dtype(float)


@pytest.mark.slow
def test_an_interrupted_ensemble_ends_where_it_would_have_ended(tmp_path, monkeypatch):
    options = dict(num_members=2, max_workers=2, **OPTIONS)
    whole = fit_ensemble(KEY, build, TRAIN, HELD_OUT, **options)
    calls = interrupted_at(monkeypatch, 4)
    options["checkpoint_dir"] = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        fit_ensemble(KEY, build, TRAIN, HELD_OUT, **options)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"member-0", "member-1"}
    resumed = fit_ensemble(KEY, build, TRAIN, HELD_OUT, **options)
    assert len(calls) < 4 + 6
    for one, other in zip(whole.members, resumed.members, strict=True):
        same(one.params, other.params)
        same(one.history[:3], other.history[:3])
    same(whole.weights, resumed.weights)


@pytest.mark.slow
def test_patience_ends_each_member_by_itself(monkeypatch):
    # The first two are of the starts.
    scores = iter([9.0, 8.0, 1.0, 2.0, 3.0, 1.0, 4.0, 0.5, 0.25])
    monkeypatch.setattr(progress, "forecast_score", lambda *_: next(scores))
    options = OPTIONS | dict(num_steps=20)
    made = fit_ensemble(
        KEY, build, TRAIN, HELD_OUT, num_members=2, max_workers=1, patience=10, **options
    )
    first, second = (member.history.validation.tolist() for member in made.members)
    assert first == [9.0, 1.0, 3.0, 4.0]
    assert second == [8.0, 2.0, 1.0, 0.5, 0.25]


@pytest.mark.slow
def test_one_bar_shows_the_steps_of_all_members(capsys):
    fit_ensemble(KEY, build, TRAIN, num_members=2, **OPTIONS | dict(progress=True))
    assert "30/30" in capsys.readouterr().err


@pytest.mark.slow
def test_a_member_that_diverges_ends_the_training(tmp_path):
    def diverging(rngs):
        model, guide = build(rngs)
        model.decoder = type("Torn", (nnx.Module,), {"__call__": lambda _, z: z * jnp.nan})()
        return model, guide

    with pytest.raises(FloatingPointError, match="None of the steps 1 to 5 was finite"):
        fit_ensemble(KEY, diverging, TRAIN, num_members=2, **OPTIONS)


@pytest.mark.slow
def test_a_torn_member_weighs_nothing():
    good = fit_ensemble(KEY, build, TRAIN, HELD_OUT, num_members=2, **OPTIONS).members
    rng = np.random.default_rng(0)
    scrambled = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), good[0].params
    )
    scrambled["noise_scale"] = jnp.full(2, 1e-2)
    endless = jax.tree.map(lambda leaf: leaf * jnp.nan, good[0].params)
    torn = [replace(good[0], params=params) for params in (scrambled, endless)]
    weights = stack(KEY, [torn[0], *good, torn[1]], *HELD_OUT.split())
    assert weights.sum() == pytest.approx(1)
    assert weights[[0, 3]].max() < 0.01


@pytest.mark.slow
def test_without_validation_members_weigh_the_same():
    made = fit_ensemble(KEY, build, TRAIN, num_members=2, **OPTIONS)
    assert isinstance(made, Ensemble)
    assert made.weights.tolist() == [0.5, 0.5]
    assert len(made.members[0].history.losses) == 15


@pytest.mark.slow
def test_a_single_member_has_all_the_weight():
    made = fit_ensemble(KEY, build, TRAIN, HELD_OUT, num_members=1, **OPTIONS)
    assert made.weights.tolist() == [1.0]


def test_weights_maximise_the_log_score_of_the_mixture():
    rng = np.random.default_rng(0)
    log_p = rng.normal(size=(3, 200)) - np.array([[0.0], [0.3], [9.0]])
    # However low all scores are, as of long trajectories.
    weights = stacking_weights(log_p - 5_000)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] < 0.01

    def score(weights):
        return np.log(weights @ np.exp(log_p)).sum()

    for other in rng.dirichlet(np.ones(3), size=500):
        assert score(other) <= score(weights) + 1e-3


def test_scores_that_are_not_finite_cost_weight_and_no_more():
    log_p = np.array([[-1.0, -1.0, np.nan], [-1.0, -np.inf, np.nan], [-1.0, np.nan, -np.inf]])
    weights = stacking_weights(log_p)
    assert weights[0] > 0.99
    assert stacking_weights(np.full((2, 3), np.nan)).tolist() == [0.5, 0.5]


def test_equal_members_have_equal_weights():
    np.testing.assert_allclose(stacking_weights(np.full((12, 4), -2.0)), 1 / 12)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_members": 0}, "num_members must be a positive integer; got 0"),
        ({"max_workers": 0}, "max_workers must be a positive integer; got 0"),
        ({"build": build(nnx.Rngs(0))}, r"build must be a function rngs -> .*; got tuple"),
        ({"build": lambda rngs: build(rngs)[0]}, "got one that returns LatentODE"),
        ({"build": lambda rngs: build(rngs)[::-1]}, "returns AmortizedGuide, LatentODE"),
        ({"patience": 5}, "patience must come with validation"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed, message):
    arguments = dict(build=build, num_members=2, **OPTIONS) | changed
    with pytest.raises(ValueError, match=message):
        fit_ensemble(KEY, arguments.pop("build"), TRAIN, **arguments)


def test_parts_that_differ_between_calls_are_refused():
    dims, units = iter([2, 3]), iter([1.0, 2.0])

    def other_units(rngs):
        scaling = Scaling(np.zeros(2), np.full(2, next(units)))
        return latent_ode(TRAIN, latent_dim=2, scaling=scaling, rngs=rngs)

    with pytest.raises(ValueError, match=r"build must return the same parts .* for member 1, par"):
        fit_ensemble(KEY, lambda rngs: build(rngs, next(dims)), TRAIN, num_members=2)
    with pytest.raises(ValueError, match=r"same parts .*; got other units for member 1"):
        fit_ensemble(KEY, other_units, TRAIN, num_members=2)

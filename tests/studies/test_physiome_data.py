"""Sets of Physiome-ODE follow the benchmark's protocol."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from np_latentode.studies.datasets.physiome import divide, physiome, solutions
from np_latentode.studies.datasets.physiome_systems import SYSTEMS, system

# The function of this name hides the module from `import ... as`.
module = importlib.import_module("np_latentode.studies.datasets.physiome")


@pytest.fixture
def decay(monkeypatch):
    """A system whose solution is known: x' = -k x."""
    monkeypatch.setattr(module, "SYSTEMS", found := {**SYSTEMS})
    monkeypatch.setattr("np_latentode.studies.datasets.physiome_systems.SYSTEMS", found)

    @system(
        "DECAY",
        states={"x": 2.0},
        constants={"k": 0.1},
        end=20.0,
        jitter_states=0.5,
        jitter_constants=0.2,
    )
    def rates(t, states, c):
        (x,) = states
        return [-c.k * x]

    return rates


def test_an_instance_starts_where_the_legacy_generator_draws_it(decay):
    for number, window in enumerate(solutions("DECAY", instances=4)):
        rng = np.random.RandomState(number)
        x, k = rng.uniform(1.0, 3.0), rng.uniform(0.08, 0.12)
        times = np.linspace(0.0, 20.0, 200)[rng.randint(0, 100) :][:100]
        np.testing.assert_allclose(window[:, 0], x * np.exp(-k * times), rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "HOD01"])
def test_solutions_are_those_of_another_solver(name):
    system, rng = SYSTEMS[name], np.random.RandomState(0)
    start = [rng.uniform(x * (1 - (d := system.jitter_states)), x * (1 + d))
             for x in system.states.values()]  # fmt: skip
    d = system.jitter_constants
    drawn = {key: rng.uniform(x * (1 - d), x * (1 + d)) for key, x in system.constants.items()}
    first = rng.randint(0, 100)
    times = np.linspace(0.0, system.end, 200)[first : first + 100]
    one = solve_ivp(
        lambda t, x: system.rates(t, x.tolist(), SimpleNamespace(**drawn)),
        (0.0, times[-1]),
        start,
        t_eval=times,
        method="Radau",
        rtol=1e-8,
        atol=1e-8,
        max_step=0.5,
    )
    (window,) = solutions(name, instances=1)
    np.testing.assert_allclose(window, one.y.T, atol=2e-3 * np.ptp(one.y, axis=1).max())


@pytest.mark.slow
def test_as_many_instances_are_dropped_as_in_the_benchmark():
    fold = divide(solutions("GUP01"), fold=0)
    assert len(fold.train) + len(fold.target) == 2_000 - 133


def test_an_instance_that_cannot_be_solved_is_drawn_again(decay, monkeypatch):
    def failing(t, states, c):
        (x,) = states
        # Instance 0 starts at 2.1; with the seed 2000, x starts elsewhere.
        return [np.inf if abs(c.k - drawn) < 1e-12 else -c.k * x]

    rng = np.random.RandomState(0)
    _, drawn = rng.uniform(1.0, 3.0), rng.uniform(0.08, 0.12)
    monkeypatch.setitem(module.SYSTEMS, "DECAY", module.SYSTEMS["DECAY"]._replace(rates=failing))
    again = np.random.RandomState(2_000)
    x, k = again.uniform(1.0, 3.0), again.uniform(0.08, 0.12)
    times = np.linspace(0.0, 20.0, 200)[again.randint(0, 100) :][:100]
    with pytest.warns(UserWarning, match="lsoda"):
        (window,) = solutions("DECAY", instances=1)
    np.testing.assert_allclose(window[:, 0], x * np.exp(-k * times), rtol=1e-4)


@pytest.fixture(scope="module")
def states():
    """Random states of 500 instances, one of them with a number far outside."""
    x = 3.0 + 2.0 * np.random.default_rng(1).normal(size=(500, 100, 3))
    x[7, 4, 1] = 1_000.0
    return x


def test_values_are_standardised_over_all_instances_with_noise_of_a_twentieth(states):
    whole = divide(np.broadcast_to(states[:, :1], states.shape), fold=3).train
    x = np.where(whole.mask, whole.given.values, np.nan)
    # Each instance is constant in time, so what varies in it is the noise.
    noise = np.nanstd(x, axis=1, ddof=1)
    np.testing.assert_allclose(np.sqrt(np.nanmean(noise**2)), 0.05, rtol=0.03)
    far = divide(states, fold=3).train
    np.testing.assert_allclose(
        np.nanmean(np.where(far.mask, far.given.values, np.nan)), 0, atol=0.1
    )


def test_an_instance_far_outside_is_left_out(states):
    fold = divide(states, fold=0)
    assert [len(part) for part in fold] == [449, 50, 50]


def test_only_times_with_an_odd_number_of_values_are_seen(states):
    fold = divide(states, fold=0)
    for part, slots in ((fold.train, 99), (fold.context, 50), (fold.target, 49)):
        count = np.asarray(part.mask).sum(-1)[np.asarray(part.observed)]
        assert set(count.tolist()) == {1, 3}
        # Of three values, each kept with 0.2: one is kept in 0.384, all in 0.008 of the times.
        share = len(count) / (slots * len(part))
        assert abs(share - 0.392) < 0.02


def test_the_second_half_is_asked_and_the_last_state_never(states):
    _, context, target = divide(states, fold=0)
    given, asked = (np.asarray(x.given.times)[np.asarray(x.observed)] for x in (context, target))
    assert set(np.round(given * 99).astype(int)) == {*range(50)}
    assert set(np.round(asked * 99).astype(int)) == {*range(50, 99)}


def test_folds_are_divisions_of_the_same_instances():
    names = [np.sort(np.concatenate([np.asarray(x.given.values).max((1, 2)) for x in f[::2]]))
             for f in (divide(_numbered(), fold=k) for k in (0, 1))]  # fmt: skip
    np.testing.assert_allclose(names[0], names[1], atol=0.5)
    again = divide(_numbered(), fold=1).train
    np.testing.assert_array_equal(again.values, divide(_numbered(), fold=1).train.values)


def _numbered():
    """Instances that differ by their levels only."""
    return np.broadcast_to(np.arange(40.0)[:, None, None], (40, 100, 3))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: solutions("WOD02"), "name must be one of WOD01, LEN01.*got 'WOD02'"),
        (lambda: solutions("WOD01", instances=0), "instances must be .*got 0"),
        (lambda: divide(_numbered()[:4], fold=0), "states must hold ten instances"),
        (lambda: divide(_numbered(), fold=-1), "fold must be an integer from 0 .*got -1"),
        (lambda: physiome("WOD01", fold=-2, instances=12), "fold must be .*got -2"),
        (lambda: _registered(name="WOD01"), "name must be new; got 'WOD01'"),
        (lambda: _registered(states={}), "states must name at least one state"),
        (lambda: _registered(end=-1.0), "end must be positive and finite; got -1.0"),
        (lambda: _registered(jitter_states=2.0), "jitter_states must be from 0 to 1; got 2.0"),
        (lambda: _registered(jitter_constants=-1.0), "jitter_constants must be .*got -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def _registered(**changed):
    given = dict(name="NEW", states={"x": 1.0}, constants={}, end=1.0)
    given |= dict(jitter_states=0.1, jitter_constants=0.1) | changed
    return system(given.pop("name"), **given)

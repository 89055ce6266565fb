"""The hopper's data and scores follow the paper's protocol, and its cache is safe."""

import importlib
import json
import sys

import jax
import numpy as np
import pytest

from np_latentode import Trajectories, datasets
from np_latentode.studies import hopper as experiment
from np_latentode.studies.datasets.hopper import windows

# The function of this name hides the module from `import ... as`.
module = importlib.import_module("np_latentode.studies.datasets.hopper")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MUJOCO_GL", "disable")
    return tmp_path / "np_latentode"


@pytest.fixture
def few():
    """Three trajectories as simulated, before they are scaled."""
    pytest.importorskip("dm_control", reason="the extra `hopper` is not installed")
    return module._simulate(3)


@pytest.fixture
def counted(monkeypatch):
    """Random states instead of simulated ones, and a list of the calls."""
    asked = []
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "3.0.0")

    def simulate(count):
        asked.append(count)
        return np.random.default_rng(count).normal(size=(count, 200, 14)).astype(np.float32)

    monkeypatch.setattr(module, "_simulate", simulate)
    return asked


def test_trajectories_start_from_the_papers_draws(few):
    rng = np.random.RandomState(123)
    for start in few[:, 0]:
        drawn = rng.uniform(0, 0.5, 2), rng.uniform(-2, 2, 5), rng.uniform(-5, 5, 7)
        np.testing.assert_array_equal(start, np.concatenate(drawn).astype(np.float32))


def test_velocities_are_the_slopes_of_positions_at_steps_of_five_milliseconds(few):
    positions, velocities = few[..., :7], few[..., 7:]
    # MuJoCo moves positions by the velocities after the step, also at contacts with the ground.
    np.testing.assert_allclose(np.diff(positions, axis=1) / 0.005, velocities[:, 1:], atol=2e-3)


def test_trajectories_are_those_of_mujoco_itself(few):
    mujoco = importlib.import_module("mujoco")
    suite = importlib.import_module("dm_control.suite")
    model = suite.load("hopper", "stand").physics.model.ptr
    assert model.opt.timestep == 0.005
    for trajectory in few:
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = trajectory[0, :7], trajectory[0, 7:]
        states = []
        for _ in trajectory:
            states.append(np.concatenate([data.qpos, data.qvel]))
            mujoco.mj_step(model, data)
        # The start is rounded to single precision, so paths differ after contact with the ground.
        np.testing.assert_allclose(trajectory[:40], states[:40], atol=1e-3)


def test_values_are_scaled_by_minimum_and_maximum_over_all_points(counted):
    values = np.asarray(datasets.hopper(4).values)
    states = np.random.default_rng(4).normal(size=(4, 200, 14)).astype(np.float32)
    low, high = states.min((0, 1)), states.max((0, 1))
    np.testing.assert_allclose(values, (states - low) / high, rtol=1e-6)


def test_times_are_fractions_of_the_whole(counted):
    hopper = datasets.hopper(2)
    assert hopper.values.shape == (2, 200, 14)
    assert bool(hopper.mask.all())
    np.testing.assert_allclose(hopper.times[1], np.arange(200) / 200, rtol=1e-6)


def test_windows_are_the_originals(counted):
    hopper = datasets.hopper(5)
    cut = windows(hopper)
    np.random.seed(1991)  # noqa: NPY002 (what the original does)
    for i, start in enumerate(np.random.randint(0, 101, size=5)):  # noqa: NPY002
        np.testing.assert_array_equal(cut.values[i], hopper.values[i, start : start + 100])
        np.testing.assert_array_equal(cut.times[i], hopper.times[i, :100])


def test_a_second_call_simulates_nothing(counted, cache):
    first, second = datasets.hopper(2), datasets.hopper(2)
    assert counted == [2]
    np.testing.assert_array_equal(first.values, second.values)
    assert [path.name for path in cache.iterdir()] == ["hopper-2-mujoco-3.0.0.bin"]


def test_another_version_of_mujoco_simulates_anew(counted, monkeypatch):
    datasets.hopper(2)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "3.0.1")
    datasets.hopper(2)
    assert counted == [2, 2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: b"",
        lambda content: b"something else entirely",
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
    ids=["torn", "empty", "foreign", "flipped bit"],
)
def test_a_damaged_cache_is_replaced(counted, cache, spoil):
    first = datasets.hopper(2)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    np.testing.assert_array_equal(datasets.hopper(2).values, first.values)
    assert counted == [2, 2]
    assert path.read_bytes() == whole


def test_a_failed_write_leaves_nothing_behind(counted, cache, monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(module.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        datasets.hopper(2)
    assert list(cache.iterdir()) == []


def test_dm_control_is_imported_only_where_it_simulates():
    assert not {"dm_control", "mujoco", "suite"} & set(vars(module))


def test_without_dm_control_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "dm_control", None)
    with pytest.raises(ImportError, match=r"pip install 'np-latentode\[hopper\]'"):
        module._simulate(1)


def test_without_mujoco_an_error_says_what_to_install(monkeypatch):
    def absent(name):
        raise module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.importlib.metadata, "version", absent)
    with pytest.raises(ImportError, match=r"pip install 'np-latentode\[hopper\]'"):
        datasets.hopper(1)


@pytest.mark.parametrize("count", [0, -1, 2.0])
def test_a_number_of_trajectories_that_makes_no_sense_is_refused(count, untyped):
    with pytest.raises(ValueError, match="num_trajectories must be a positive integer"):
        datasets.hopper(count)


def test_windows_of_other_trajectories_are_refused():
    with pytest.raises(ValueError, match="trajectories must have 200 times"):
        windows(Trajectories(np.zeros((1, 3)), np.zeros((1, 3, 14))))


@pytest.mark.parametrize(("count", "context"), [(10, 100), (33, 66), (1, 1)])
def test_so_many_of_the_first_states_are_seen_and_no_others(counted, count, context):
    hopper = datasets.hopper(4)
    seen = experiment.see(jax.random.key(0), hopper, count=count, context=context)
    assert seen.values.shape == (4, count, 14)
    assert bool(seen.mask.all())
    for i in range(4):
        slots = np.rint(np.asarray(seen.times[i]) * 200).astype(int)
        assert (np.diff(slots) > 0).all()
        assert slots.max() < context
        np.testing.assert_array_equal(seen.values[i], hopper.values[i, slots])
    if count < context:
        assert len(np.unique(seen.times, axis=0)) == 4


@pytest.mark.parametrize("cell", experiment.TASKS.values())
def test_the_last_fifth_is_held_out(counted, cell):
    train, test = experiment.load(cell, 10)
    assert (len(train), len(test)) == (8, 2)
    whole = datasets.hopper(10)
    expected = whole if cell.whole else windows(whole)
    np.testing.assert_array_equal(test.values, expected.values[8:])


@pytest.mark.parametrize("cell", experiment.TASKS.values())
def test_what_is_seen_is_exactly_what_was_there(counted, cell):
    """In double precision: baselines and figures compare times."""
    _, test = experiment.load(cell, 10)
    seen = experiment.see(jax.random.key(0), test, count=7, context=50)
    for i in range(len(test)):
        assert {*seen.given.times[i]} <= {*test.given.times[i]}


@pytest.mark.parametrize("cell", experiment.TASKS.values())
def test_others_are_exact_where_everything_scored_is_seen(counted, cell):
    train, test = experiment.load(cell, 10)
    errors = experiment.score_others(train, test, test, cell.scored_from)
    assert errors["constant"] > 0.01
    for name in ("last value", "linear interpolation", "pchip interpolation"):
        assert errors[name] < 1e-10


def test_published_errors_are_those_of_the_share():
    assert experiment.published("interpolation", 0.2)["latent ODE, ODE-RNN encoder"] == 0.00295
    assert experiment.published("extrapolation", 0.5)["GRU-D"] == 0.05833
    assert experiment.published("extrapolation", 0.4) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "imputation"}, "task must be one of interpolation, extrapolation; got"),
        ({"protocol": "mine"}, "protocol must be paper or released; got 'mine'"),
        ({"observed": 0.0}, "observed must be a share of 100 states"),
        ({"observed": 1.1}, "observed must be a share of 100 states"),
        ({"num_trajectories": 4}, "num_trajectories must be an integer of at least 5"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(counted, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(tmp_path / "out", **options)
    assert counted == []


@pytest.mark.slow
def test_a_run_scores_and_draws(counted, tmp_path, capsys, compile_quickly):
    out = tmp_path / "out"
    metrics = experiment.run(out, task="extrapolation", num_trajectories=10, steps=2)
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "trajectories.png",
        "training.png",
    }
    assert 0 < metrics["mse_of_mean"] < metrics["mse"]
    printed = capsys.readouterr().out
    assert f"{100 * metrics['mse']:.3f}" in printed
    assert "latent ODE, ODE-RNN encoder, as published" in printed

"""Training on 8 devices and by 2 processes is training on one, and goes on when one is killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from np_latentode import Fitted, Sharpened, Trajectories, fit, fit_ensemble, forecast, latent_ode
from np_latentode.programs.params import initial_params

SCRIPT = Path(__file__).parent / "on_devices.py"
SECONDS = 900


def start(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(process):
    out, errors = process.communicate(timeout=SECONDS)
    assert not process.returncode, errors
    return json.loads(out.splitlines()[-1])


def processes(count, checkpoints="", stop=0):
    """So many processes, each with one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(1, number, count, port, checkpoints, stop) for number in range(count)]


def assert_alike(one, other):
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=2e-4)
    np.testing.assert_allclose(one["params"], other["params"], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_eight_devices_train_and_forecast_as_one():
    found = printed(start(8))
    assert_alike(found["one"], found["eight"])
    assert_alike(*found["whole"])
    np.testing.assert_allclose(*found["draws"], atol=1e-3)
    assert "The ODE solve of 5 trajectories failed, first of trajectory 0" in found["failure"]
    for one, other in zip(*found["ensembles"], strict=True):
        assert_alike(one, other)


@pytest.mark.slow
def test_two_processes_train_and_forecast_as_one():
    (alone,) = map(printed, processes(1))
    first, second = map(printed, processes(2))
    for name in ("losses", "params", "draws"):
        np.testing.assert_array_equal(first[name], second[name])
    assert first["members"] == second["members"]
    assert_alike(alone, first)
    np.testing.assert_allclose(alone["draws"], first["draws"], atol=1e-3)
    for one, other in zip(alone["members"], first["members"], strict=True):
        assert_alike(one, other)


@pytest.mark.slow
def test_one_process_goes_on_when_another_was_killed(tmp_path):
    directory = tmp_path / "run"
    left, killed = processes(2, directory, stop=2)
    assert "error" in printed(left)
    killed.communicate(timeout=SECONDS)
    assert killed.returncode < 0
    # The step of which two processes had written: the latest that both had finished, or that
    # before it, if the first was still waiting.
    (name,) = os.listdir(directory)
    assert 100 <= int(name) <= 200
    (resumed,) = map(printed, processes(1, directory))
    (whole,) = map(printed, processes(1, tmp_path / "whole"))
    assert len(resumed["losses"]) == 310
    assert_alike(whole, resumed)


def a_training():
    times = np.tile(np.arange(4.0), (3, 1))
    train = Trajectories(times, np.sin(times)[..., None])
    return train, *latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))


def mesh_of(*axes):
    return jax.make_mesh((1,) * len(axes), axes, devices=jax.devices()[:1])


class EightDevices:
    """What a plan asks of a mesh, as tests have one device."""

    devices = np.zeros(8)


def test_more_devices_than_trajectories_are_refused(monkeypatch, untyped):
    train, model, guide = a_training()
    monkeypatch.setattr("np_latentode.training.fit.check_mesh", lambda *_: EightDevices())
    with pytest.raises(ValueError, match="as many devices as train has trajectories, 3; got 8"):
        fit(jax.random.key(0), model, guide, train, mesh=mesh_of("trajectory"))


def test_a_mesh_without_the_axis_is_refused():
    train, model, guide = a_training()
    with pytest.raises(ValueError, match="and no other; got the axes"):
        fit(jax.random.key(0), model, guide, train, mesh=mesh_of("data"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_workers=2), "max_workers must be left out with a mesh; got 2"),
        (dict(mesh="eight"), "such as jax.make_mesh"),
    ],
)
def test_an_ensemble_refuses_what_does_not_go_with_a_mesh(options, message, untyped):
    train, *pair = a_training()
    options = dict(mesh=mesh_of("member")) | options
    with pytest.raises(ValueError, match=message):
        fit_ensemble(jax.random.key(0), lambda rngs: tuple(pair), train, **options)


def test_forecasts_on_a_mesh_refuse_other_inference():
    train, model, guide = a_training()
    fitted = Fitted(model, guide, initial_params(model, guide))
    options = dict(mesh=mesh_of("trajectory"), inference=Sharpened())
    with pytest.raises(ValueError, match="inference must be amortized with a mesh"):
        forecast(jax.random.key(1), fitted, train, [5.0], **options)


@pytest.mark.slow
def test_a_mesh_of_one_device_changes_nothing():
    train, model, guide = a_training()
    options = dict(num_steps=3, progress=False)
    one = fit(jax.random.key(0), model, guide, train, **options)
    same = fit(jax.random.key(0), model, guide, train, mesh=mesh_of("trajectory"), **options)
    np.testing.assert_array_equal(one.history.losses, same.history.losses)

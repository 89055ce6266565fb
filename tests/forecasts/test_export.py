"""A program that was exported forecasts as the fit does, wherever JAX runs."""

import json
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from np_latentode import (
    Bands,
    Ensemble,
    Fitted,
    Trajectories,
    export_forecast,
    forecast,
    latent_ode,
)
from np_latentode.programs.params import initial_params

pytest.importorskip("flatbuffers")
pytestmark = pytest.mark.usefixtures("compile_quickly")

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    {
        "id": np.repeat(np.arange(5), 4),
        "day": np.tile([0.0, 1.0, 2.5, 4.0], 5),
        "bili": np.exp(RNG.normal(size=20)),
        "age": np.repeat(RNG.normal(50, 10, 5), 4),
        "arm": np.repeat(["drug", "placebo", "drug", "placebo", "drug"], 4),
    }
)
RUN = """
import sys, numpy as np
from jax import export
given = np.load(sys.argv[2])
program = export.deserialize(open(sys.argv[1], "rb").read())
draws = program.call(*(given[name] for name in given.files))
assert "np_latentode" not in sys.modules and "numpyro" not in sys.modules
np.savez(sys.argv[3], **draws)
"""


def fit(train):
    model, guide = latent_ode(train, rngs=nnx.Rngs(0))
    return Fitted(model, guide, initial_params(model, guide))


def arguments(trajectories, asked, seed=0):
    key = jax.random.key_data(jax.random.key(seed))
    given = dict(seed=key, times=trajectories.times, values=trajectories.values)
    given |= dict(mask=trajectories.mask, asked=np.asarray(asked, np.float32))
    if trajectories.static is not None:
        given["static"] = trajectories.static
    return {name: np.asarray(array) for name, array in given.items()}


def run(tmp_path, given):
    np.savez(tmp_path / "given.npz", **given)
    files = [tmp_path / name for name in ("forecast.stablehlo", "given.npz", "draws.npz")]
    subprocess.run([sys.executable, "-c", RUN, *map(str, files)], check=True, cwd=tmp_path)
    return np.load(tmp_path / "draws.npz")


@pytest.mark.slow
def test_it_runs_without_this_package_for_any_number_of_trajectories(tmp_path):
    train = Trajectories.from_dataframe(
        TABLE, id="id", time="day", values="bili", log=["bili"], static=["age", "arm"]
    )
    one = fit(train)
    fitted = Ensemble((one, one), bands=Bands([1.5]))
    export_forecast(
        tmp_path / "forecast.stablehlo",
        fitted,
        num_seen=4,
        num_times=2,
        latest=6.0,
        num_samples=6,
    )
    asked = np.array([[4.5, 6.0]])
    for some in (train, train[:2]):
        draws = run(tmp_path, arguments(some, np.repeat(asked, len(some), 0)))
        assert draws["x"].shape == (len(some), 6, 2, 1)
        for i in range(len(some)):
            key = jax.random.fold_in(jax.random.key(0), i)
            own = forecast(key, fitted, some[i : i + 1], asked, num_samples=6)
            for name in ("x", "x_mean"):
                np.testing.assert_allclose(draws[name][i], own[name][:, 0], rtol=2e-3)
    said = json.loads((tmp_path / "forecast.stablehlo.json").read_text())
    assert said["features"] == said["logarithms"] == ["bili"]
    assert said["static"] == {"age": "number", "arm": ["drug", "placebo"]}
    assert said["clock"] == {"unit": None, "origin": None, "since": None, "span": None}
    assert said["arguments"]["times"] == ["(n, 4)", "float32"]


@pytest.mark.slow
def test_numbers_far_from_zero_are_less_an_offset(tmp_path):
    times, values = (
        738_000.3 + np.tile(1.1 * np.arange(4), (3, 1)),
        1e6 + RNG.normal(size=(3, 4, 1)),
    )
    train = Trajectories(times, values)
    fitted, asked = fit(train), np.array([[738_005.0]])
    options = dict(num_seen=4, num_times=1, latest=738_006.0, num_samples=3)
    export_forecast(tmp_path / "forecast.stablehlo", fitted, **options)
    offset = json.loads((tmp_path / "forecast.stablehlo.json").read_text())["offset"]
    assert offset["times"] > 7e5
    less = np.repeat(asked - offset["times"], 3, 0)
    draws = run(tmp_path, arguments(train.at_offset(fitted.scaling.offset), less))
    own = forecast(
        jax.random.fold_in(jax.random.key(0), 2), fitted, train[2:], asked, num_samples=3
    )
    np.testing.assert_allclose(draws["x"][2], own["x"][:, 0], rtol=1e-6)


def test_times_beyond_reach_and_wrong_numbers_are_refused(tmp_path):
    fitted = fit(Trajectories.from_dataframe(TABLE, id="id", time="day", values="bili"))
    path, options = tmp_path / "f", dict(num_seen=4, num_times=1)
    with pytest.raises(ValueError, match="times must be within reach of the solver"):
        export_forecast(path, fitted, latest=1e6, **options)
    with pytest.raises(ValueError, match="latest must be a finite time; got nan"):
        export_forecast(path, fitted, latest=float("nan"), **options)
    with_sd = Trajectories.from_dataframe(
        TABLE.assign(sd=0.1), id="id", time="day", values="bili", error={"bili": "sd"}
    )
    with pytest.raises(ValueError, match=r"fitted must read no standard errors, .* a fit with sd"):
        export_forecast(path, fit(with_sd), latest=5.0, **options)
    doses = Trajectories.from_dataframe(
        TABLE.assign(dose=1.0), id="id", time="day", values="bili", inputs={"dose": "event"}
    )
    with pytest.raises(ValueError, match=r"fitted must read no inputs, .* a fit with dose"):
        export_forecast(path, fit(doses), latest=5.0, **options)
    with pytest.raises(ValueError, match="num_seen"):
        export_forecast(path, fitted, latest=5.0, **options | {"num_seen": 0})
    assert not [*tmp_path.iterdir()]

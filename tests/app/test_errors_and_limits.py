"""The commands read known standard errors and limits, count them, and say so."""

import json

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from still import make_fitted
from typer.testing import CliRunner

from np_latentode import Ensemble, Fitted, Limits, Trajectories, load
from np_latentode.app import fit_table
from np_latentode.app.cli import app
from np_latentode.app.column_names import named_errors
from np_latentode.app.data_summary import trajectories_table
from np_latentode.app.held_out import score_held_out
from np_latentode.app.origins import Origins
from np_latentode.app.summaries import coverage_table, horizons_table, scores_table, verdicts
from np_latentode.forecasts.scores import Forecasts
from np_latentode.programs.params import initial_params
from np_latentode.training.cross_fit import CrossFit

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = ["--id", "who", "--time", "day", "--values", "y,x", "--error", "y=sd"]


def make_table(count=24):
    """Two columns of some patients: one with known errors and limits, one plain."""
    rng, rows = np.random.default_rng(0), []
    for who in range(count):
        u, n = rng.normal(), rng.integers(4, 7)
        days, sd = np.sort(rng.uniform(0, 10, n)), rng.uniform(0.1, 1.0, n).round(2)
        y = (u + np.sin(days / 3) + np.hypot(0.1, sd) * rng.normal(size=n)).round(3)
        cells = [f"<{-0.3}" if value < -0.3 else f"{value}" for value in y]
        x = (0.5 * u + 0.2 * rng.normal(size=n)).round(3)
        rows.append(pd.DataFrame({"who": who, "day": days, "y": cells, "sd": sd, "x": x}))
    return pd.concat(rows, ignore_index=True)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_was_read_counts_limits_and_errors():
    table = make_table()
    names = dict(id="who", time="day", values=["y", "x"], error={"y": "sd"})
    said = trajectories_table(Trajectories.from_dataframe(table, **names))
    count = int(table["y"].str.startswith("<").sum())
    assert f"y: {count} of {len(table)} values are limits (<-0.3)\n" in f"{said}\n"
    assert "y: standard errors in sd, 0.1" in said
    assert "positive" not in said


def test_a_positive_column_with_limits_is_advised_to_be_fitted_by_its_logarithm():
    cells = pd.to_numeric(make_table()["x"]).add(5).round(2)
    table = make_table().assign(y=[f"<{x}" if x < 4.5 else f"{x}" for x in cells])
    for log in ([], ["y"]):
        read = Trajectories.from_dataframe(table, id="who", time="day", values=["y"], log=log)
        said = trajectories_table(read)
        assert ("forecasts may be negative; with --log y they are positive" in said) == (not log)


def make_series(columns=(0, 1), count=12):
    """Series with known errors whose later values are limits, in these columns of two."""
    rng = np.random.default_rng(2)
    times, values = np.tile(np.arange(4.0), (count, 1)), rng.normal(size=(count, 4, 2))
    below = np.zeros(values.shape, bool)
    below[:, 2:, list(columns)] = True
    limits = Limits(np.where(below, -np.inf, np.nan), np.where(below, 0.3, np.nan))
    return Trajectories(times, values, error=np.full(values.shape, 0.2), limits=limits)


@pytest.mark.parametrize("columns", [(0,), (0, 1)])
def test_held_out_values_that_are_all_limits_have_no_sd_and_no_rmse(columns):
    test = make_series(columns)
    keys = jax.random.key(0), jax.random.key(1)
    found = score_held_out(keys, make_fitted(), make_series(()), test, 0.0, num_origins=2)
    # What JSON cannot say is refused.
    metrics = json.loads(json.dumps(found.metrics, allow_nan=False))
    # The first origin forecasts three visits, of which one is exact; the second only limits.
    for one in metrics["origins"][1:]:
        assert (one["methods"]["latent ODE"]["crps"] is None) == (columns == (0, 1))
        assert 0 <= one["methods"]["latent ODE"]["coverage_90"] <= 1
    alone = score_held_out(keys, make_fitted(), make_series(()), test, 0.0).metrics
    assert json.dumps(alone, allow_nan=False)
    assert alone["observed_sd"]["x_0"] is None
    assert alone["methods"]["constant"]["columns"]["x_0"]["rmse"] is None
    for said in (scores_table, coverage_table, horizons_table, verdicts):
        assert "nan" not in str(said(alone | {"time_unit": None}))
    lines = [line.split() for line in scores_table(alone).splitlines()]
    assert ["x_0", "-"] in lines


def test_an_origin_of_limits_alone_has_no_scores():
    test = make_series()
    origins = Origins.of(test, 3)
    made = {"constant": Forecasts(np.zeros(origins.target.mask.shape))}
    found = origins.scored(made, np.ones(2), ["numbers"] * 2)
    assert found[-1]["methods"]["constant"] == {"rmse": None, "crps": None}


def untrained(rng_key, found, train, **options):
    """In place of `cross_fit`: the first candidate as it starts."""
    candidate = next(iter(found.values()))
    model, guide = candidate(train, nnx.Rngs(0))
    member = Fitted(model, guide, initial_params(model, guide))
    left_out = (np.arange(4), np.arange(4, len(train)))
    ensemble = Ensemble((member, member))
    return CrossFit(
        ensemble, left_out, {"network": -1.0}, {"network": 1.0}, {"network": 1.0}, len(train), 0.0
    )


def test_fit_reads_errors_and_limits_and_saves_them(tmp_path, monkeypatch):
    """All of `fit` but the training: from the options to files that `forecast` reads."""
    monkeypatch.setattr(fit_table, "cross_fit", untrained)
    monkeypatch.setattr(fit_table, "_draw", lambda *_: None)
    make_table(10).to_csv(tmp_path / "visits.csv", index=False)
    options = ["--latent-dim", 1, "--residual", "none", "--inference", "guide", "--no-recalibrate"]
    options += ["--output-dir", tmp_path / "run"]
    outcome = run("fit", tmp_path / "visits.csv", *COLUMNS, *options)
    assert outcome.exit_code == 0, outcome.output
    assert "values are limits (<-0.3)" in outcome.output
    assert "y: standard errors in sd" in outcome.output
    text = (tmp_path / "run" / "metrics.json").read_text()
    assert "NaN" not in text
    metrics = json.loads(text)
    assert metrics["settings"]["error"] == {"y": "sd"}
    held_out = pd.read_csv(tmp_path / "run" / "heldout.csv", dtype=str)
    assert metrics["limits"] == {"y": int((held_out["observed"] == "<-0.3").sum())}
    assert load(tmp_path / "run").scaling.labels.errors == {"y": "sd"}


@pytest.mark.slow
def test_fit_and_forecast_read_errors_and_limits(tmp_path):
    table = make_table()
    table.to_csv(tmp_path / "visits.csv", index=False)
    options = ["--members", 2, "--steps", 40, "--output-dir", tmp_path / "run"]
    outcome = run("fit", tmp_path / "visits.csv", *COLUMNS, *options)
    assert outcome.exit_code == 0, outcome.output
    assert "values are limits (<-0.3)" in outcome.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["error"] == {"y": "sd"}
    held_out = pd.read_csv(tmp_path / "run" / "heldout.csv", dtype=str)
    limits = held_out["observed"].str.startswith("<")
    assert metrics["limits"] == {"y": int(limits.sum())}
    assert f"leave out values that are limits: {limits.sum()} of y" in outcome.output
    assert held_out["observed"][limits].eq("<-0.3").all()
    ours = metrics["methods"]["latent ODE"]["columns"]["y"]
    assert 0 < ours["crps"] < 3
    assert 0 < ours["coverage_90"] <= 1
    assert load(tmp_path / "run").scaling.labels.errors == {"y": "sd"}
    output = tmp_path / "out.csv"
    asked = ["--ahead", 3, "--points", 2, "--draws", 20, "-o", output]
    outcome = run("forecast", tmp_path / "run", tmp_path / "visits.csv", *asked)
    assert outcome.exit_code == 0, outcome.output
    assert np.isfinite(pd.read_csv(output)["mean"]).all()
    table.drop(columns="sd").to_csv(tmp_path / "without.csv", index=False)
    outcome = run("forecast", tmp_path / "run", tmp_path / "without.csv", *asked, "--overwrite")
    assert outcome.exit_code == 2
    assert "got none of ['sd']" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--error", "y"], "error must be column=column of its errors, separated by commas"),
        (["--error", "y=sd,y=x"], "error must name each column once; got 'y' twice"),
        (["--error", "z=sd"], "error must name columns among values, ['y', 'x']; got ['z']"),
        (["--error", "y=se"], "got none of ['se']"),
        (
            ["--kind", "y=counts"],
            "data must hold neither limits, such as <0.5, nor standard errors",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, arguments, words):
    make_table(4).to_csv(tmp_path / "visits.csv", index=False)
    options = [*COLUMNS[:6], *arguments, "--output-dir", tmp_path / "run"]
    outcome = run("fit", tmp_path / "visits.csv", *options)
    assert outcome.exit_code == 2
    assert words in outcome.output


def test_pairs_of_columns_are_split_at_commas():
    assert named_errors(["a=b,c=d", '"e,f"=g']) == {"a": "b", "c": "d", "e,f": "g"}

"""`fit --static` reads covariates, `forecast` needs them, and `effect` compares their entries."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from np_latentode.app.cli import app

pytestmark = pytest.mark.usefixtures("compile_quickly")

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def patients():
    rng, rows = np.random.default_rng(0), []
    for i in range(14):
        arm, age = ["placebo", "drug"][i % 2], rng.uniform(30, 70)
        for t in range(5):
            x = 3 + 0.02 * age + 0.5 * (arm == "drug") * t + 0.1 * rng.normal()
            rows.append((f"p{i}", float(t), x, arm, age if i else None, "day, night"))
    return pd.DataFrame(rows, columns=["who", "day", "x", "arm", "age", "a,b"])


def call(*arguments):
    return RUNNER.invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def run(patients, tmp_path_factory):
    directory = tmp_path_factory.mktemp("static")
    patients.to_csv(directory / "trial.csv", index=False)
    options = "--id who --time day --values x --members 2 --steps 40 --latent-dim 2"
    done = call(
        "fit", directory / "trial.csv", *options.split(), "--static", "arm,age",
        "--output-dir", directory / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return directory, done.output


def test_fit_says_what_it_read_and_keeps_the_names(run):
    directory, said = run
    assert "static arm, by id: drug 7, placebo 7" in said
    assert "missing 1" in next(line for line in said.splitlines() if "static age" in line)
    settings = json.loads((directory / "run" / "metrics.json").read_text())["settings"]
    assert settings["static"] == {"arm": None, "age": None}


def test_forecasts_depend_on_covariates(run, patients):
    directory, _ = run
    tables = []
    for arm in ("drug", "placebo"):
        path = directory / f"{arm}.csv"
        patients.assign(arm=arm).to_csv(path, index=False)
        out = directory / f"{arm}-forecast.csv"
        done = call("forecast", directory / "run", path, "--ahead", 2, "-o", out, "--draws", 50)
        assert done.exit_code == 0, done.output
        tables.append(pd.read_csv(out)["mean"])
    assert not np.allclose(*tables)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"arm": "other"}, "column 'arm' must hold one of ['drug', 'placebo'], the categories"),
        ({"age": "old"}, "column 'age' must hold finite numbers, as the table fitted does"),
        (
            {"arm": lambda df: np.where(df["day"] > 2, "drug", "placebo")},
            "must hold the same entry",
        ),
    ],
)
def test_other_entries_than_those_of_the_fit_are_refused(run, patients, change, rule):
    directory, _ = run
    patients.assign(**change).to_csv(directory / "other.csv", index=False)
    done = call("forecast", directory / "run", directory / "other.csv", "--ahead", 2)
    assert done.exit_code == 2
    assert rule in done.output


def test_a_table_without_them_is_refused(run, patients):
    directory, _ = run
    patients.drop(columns="arm").to_csv(directory / "none.csv", index=False)
    done = call("forecast", directory / "run", directory / "none.csv", "--ahead", 2)
    assert done.exit_code == 2
    assert "got none of ['arm']" in done.output


def test_effect_writes_a_table_and_a_figure_and_says_what_it_is(run):
    directory, _ = run
    out = directory / "effect.csv"
    given = ["effect", directory / "run", directory / "trial.csv", "--of", "arm", "-o", out]
    done = call(*given, "--points", 4, "--plot")
    assert done.exit_code == 0, done.output
    table = pd.read_csv(out)
    assert [*table] == ["day", "feature", "scale", "effect", "se", "low0.9", "high0.9"]
    assert table["day"].tolist() == [1, 2, 3, 4]
    assert (table["low0.9"] <= table["effect"]).all()
    assert (directory / "effect.png").exists()
    assert "effect of arm placebo compared with drug, at day 4:" in done.output
    assert "otherwise it is an association" in done.output
    assert "the band is Student's t with" in done.output
    again = call(*given)
    assert again.exit_code == 2
    assert "output must be new" in again.output
    turned = call(*given, "--between", "placebo,drug", "--points", 4, "--overwrite")
    assert turned.exit_code == 0
    np.testing.assert_allclose(pd.read_csv(out)["effect"], -table["effect"], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (["--of", "weight"], "column must name a static covariate of the fit; got 'weight', and"),
        (["--of", "arm", "--between", "drug"], "between must be two categories of 'arm'"),
        (["--of", "arm", "--until", "-1"], "until must be later than 0, where the fit begins"),
        (["--of", "arm", "--until", "soon"], "until must be a number, as 'day' is; got 'soon'"),
        (["--of", "arm", "--level", "2"], "level must lie between 0 and 1; got 2"),
        (["--of", "arm", "--until", "1e6"], "until must not lead further than the solver reaches"),
    ],
)
def test_an_effect_that_cannot_be_is_refused(run, options, rule):
    directory, _ = run
    out = directory / "never.csv"
    done = call("effect", directory / "run", directory / "trial.csv", "-o", out, *options)
    assert done.exit_code == 2
    assert rule in done.output
    assert not out.exists()


def test_names_with_commas_are_split_as_the_table_has_them(patients, tmp_path):
    patients.to_csv(tmp_path / "trial.csv", index=False)
    given = ["fit", tmp_path / "trial.csv", "--id", "who", "--time", "day", "--values", "x"]
    done = call(*given, "--static", "arm,a,b,height", "--output-dir", tmp_path / "run")
    assert done.exit_code == 2
    assert "height" in done.output
    done = call(*given, "--static", "x", "--output-dir", tmp_path / "run")
    assert done.exit_code == 2
    assert "static and values must name different columns" in done.output

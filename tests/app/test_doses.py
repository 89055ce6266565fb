"""`fit --inputs` reads doses, and `forecast` reads them and plans of more."""

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
        dose, level = rng.uniform(1, 2), rng.normal()
        rows.append((f"p{i}", -0.5, None, dose, None, 36.0))
        rows.append((f"p{i}", 2.5, None, dose, None, None))
        for t in range(5):
            x = level + dose * (np.exp(-t - 0.5) + (t > 2) * np.exp(2.5 - t)) + 0.1 * rng.normal()
            rows.append((f"p{i}", float(t), x, None, i % 2, 36 + rng.uniform()))
    return pd.DataFrame(rows, columns=["who", "day", "x", "dose", "treated", "temp,c"])


def call(*arguments):
    return RUNNER.invoke(app, [*map(str, arguments)])


def fit(directory, *inputs):
    options = "--id who --time day --values x --members 2 --steps 40 --latent-dim 2"
    return call(
        "fit", directory / "trial.csv", *options.split(), *inputs,
        "--output-dir", directory / "run",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(patients, tmp_path_factory):
    directory = tmp_path_factory.mktemp("doses")
    patients.to_csv(directory / "trial.csv", index=False)
    done = fit(directory, "--inputs", "dose=event,temp,c=linear,treated")
    assert done.exit_code == 0, done.output
    return directory, done.output


@pytest.mark.slow
def test_fit_says_what_is_given_and_keeps_the_kinds(run):
    directory, said = run
    assert "input dose (event): 1." in said
    assert "in 28 rows of 14 ids" in said
    settings = json.loads((directory / "run" / "metrics.json").read_text())["settings"]
    assert settings["inputs"] == {"dose": "event", "temp,c": "linear", "treated": "constant"}


@pytest.mark.slow
def test_forecasts_depend_on_a_plan(run, patients):
    directory, _ = run
    known = patients[patients["day"] <= 2]
    known.to_csv(directory / "known.csv", index=False)
    tables = []
    for amount in (1.0, 5.0):
        rows = [(f"p{i}", 2.5, amount, i % 2, 36.5) for i in range(3)]
        rows += [(f"p{i}", 4.0, None, i % 2, 36.5) for i in range(14)]
        plan = pd.DataFrame(rows, columns=["who", "day", "dose", "treated", "temp,c"])
        plan.to_csv(directory / "plan.csv", index=False)
        done = call(
            "forecast", directory / "run", directory / "known.csv", "--ahead", 2, "--draws", 50,
            "--plan", directory / "plan.csv", "-o", directory / f"{amount}.csv",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "end before the forecast" not in done.output
        tables.append(pd.read_csv(directory / f"{amount}.csv"))
    one, other = tables
    differ = ~np.isclose(one["mean"], other["mean"])
    planned = one["who"].isin(["p0", "p1", "p2"])
    np.testing.assert_array_equal(differ, planned & (one["day"] > 2.5))


@pytest.mark.slow
def test_inputs_that_end_before_the_horizon_are_held_with_a_warning(run):
    directory, _ = run
    done = call(
        "forecast", directory / "run", directory / "trial.csv", "--ahead", 2, "--draws", 20,
        "-o", directory / "held.csv",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "inputs (temp,c, treated) end before the forecast of 14 of 14 ids" in done.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"who": "p99"}, "column 'who' must hold ids of the table that the plan is for; got 'p99'"),
        ({"dose": "much"}, "column 'dose' must hold numbers; got 'much' in line 2"),
        ({"dose": "inf"}, "column 'dose' must be finite, or empty where nothing new is given"),
        ({"day": ""}, "column 'day' must hold a time in each row"),
        ({"day": "2020-01-31"}, "plan must hold numbers in column 'day', as the table does"),
        (
            {"day": "-9"},
            "bad.csv must not go back before -0.5, where the table fitted begins; got who p1 at -9",
        ),
    ],
)
def test_bad_plans_are_refused(run, change, rule):
    directory, _ = run
    plan = pd.DataFrame(
        [("p1", 3.0, 1.0, 1, 36.0)], columns=["who", "day", "dose", "treated", "temp,c"]
    )
    plan.assign(**change).to_csv(directory / "bad.csv", index=False)
    done = call(
        "forecast", directory / "run", directory / "trial.csv", "--ahead", 2,
        "--plan", directory / "bad.csv", "-o", directory / "bad-forecast.csv",
    )  # fmt: skip
    assert done.exit_code == 2
    assert rule in done.output


@pytest.mark.parametrize(
    ("inputs", "rule"),
    [
        ("dose=bolus", "inputs must be of the kinds constant, linear, event; got 'bolus'"),
        ("doze=event", "got none of ['doze']"),
        ("x", "inputs and values must name different columns"),
        ("dose=event,,treated", "inputs must be names separated by commas"),
    ],
)
def test_bad_inputs_are_refused(patients, tmp_path, inputs, rule):
    patients.to_csv(tmp_path / "trial.csv", index=False)
    done = fit(tmp_path, "--inputs", inputs)
    assert done.exit_code == 2
    assert rule in done.output


@pytest.mark.slow
def test_a_table_without_them_is_refused(run, patients):
    directory, _ = run
    patients.drop(columns="dose").to_csv(directory / "none.csv", index=False)
    done = call("forecast", directory / "run", directory / "none.csv", "--ahead", 2)
    assert done.exit_code == 2
    assert "got none of ['dose']" in done.output


@pytest.mark.slow
def test_a_dose_before_the_table_fitted_is_refused_with_its_id_and_time(run, patients):
    directory, _ = run
    patients.replace({"day": {-0.5: -9.5}}).iloc[7:14].to_csv(directory / "early.csv", index=False)
    done = call("forecast", directory / "run", directory / "early.csv", "--ahead", 2)
    assert done.exit_code == 2
    said = "early.csv must not go back before -0.5, where the table fitted begins; got who p1 at"
    assert f"{said} -9.5. Remove that row, or fit" in done.output

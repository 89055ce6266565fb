"""From a table to a forecast by the command line, and what it refuses on the way."""

import json
import subprocess
import sys
import warnings
from importlib.metadata import version

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from typer.testing import CliRunner

from np_latentode import (
    Ensemble,
    GaussianLikelihood,
    OrnsteinUhlenbeckLikelihood,
    Trajectories,
    load,
    save,
)
from np_latentode.app import fit_table, forecast_table, held_out
from np_latentode.app.cli import _reported, app
from np_latentode.app.summaries import candidates_table, coverage_table
from np_latentode.data.files import read_table
from np_latentode.forecasts.prediction import draw_forecast

pytestmark = pytest.mark.usefixtures("compile_quickly")


def make_table(count=30, start="2020-01-01"):
    """Two labs of some patients, one positive, one often missing, on dates of their own."""
    rng = np.random.default_rng(0)
    patients = []
    for patient in range(count):
        level, days = rng.normal(), np.sort(rng.uniform(0, 300, rng.integers(1, 8)))
        bili = np.exp(level + days / 300 + 0.1 * rng.normal(size=len(days)))
        albumin = np.sin(days / 60 + level)
        albumin[rng.uniform(size=len(days)) < 0.4] = np.nan
        dates = np.datetime64(start, "s") + (86_400 * days).astype("timedelta64[s]")
        columns = {"patient": f"{patient:03d}", "day": dates, "bili": bili, "albumin": albumin}
        patients.append(pd.DataFrame(columns))
    return pd.concat(patients, ignore_index=True)


COLUMNS = ["--id", "patient", "--time", "day", "--values", "bili,albumin", "--log", "bili"]


SMALL = ["--latent-dim", 3, "--members", 2, "--steps", 200]
"""A fit of one candidate, a network, that takes seconds."""


LONG = ["--id", "patient", "--time", "day", "--feature", "test", "--value", "result"]


def make_long(**options):
    """The same table with a row for each measurement, as labs export it."""
    long = make_table(**options).melt(["patient", "day"], var_name="test", value_name="result")
    return long.dropna().sort_values(["patient", "day"], kind="stable")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    """A directory with a table."""
    home = tmp_path_factory.mktemp("home")
    make_table().to_csv(home / "labs.csv", index=False)
    return home


@pytest.fixture(scope="module")
def home(labs):
    """The directory with the table, a fit of it, and what that printed."""
    home = labs
    outcome = run("fit", home / "labs.csv", *COLUMNS, *SMALL, "--output-dir", home / "run")
    assert outcome.exit_code == 0, outcome.output
    (home / "printed").write_text(outcome.output)
    return home


@pytest.mark.slow
def test_a_fit_writes_and_prints_what_it_promises(home):
    assert {path.name for path in home.iterdir()} >= {"labs.csv", "run"}
    assert {path.name for path in (home / "run").iterdir()} == {
        "fit",
        "metrics.json",
        "heldout.csv",
        "training.png",
        "forecasts.png",
        "calibration.png",
    }
    metrics = json.loads((home / "run" / "metrics.json").read_text())
    assert metrics["trained_on"] + metrics["held_out"] == 30
    assert metrics["held_out"] == 6
    [(name, found)] = metrics["candidates"].items()
    assert (name, found["weight"], found["latent_dim"]) == ("network", 1.0, 3)
    # A first round of 50 steps, and one more of 150 if that was too short.
    assert len(found["best_steps"]) == 2
    assert set(found["best_steps"]) <= {0, 50, 150, 200}
    assert metrics["steps_taken"] in (2 * 50, 2 * 200)
    assert np.isfinite(found["log_score"])
    printed = (home / "printed").read_text()
    assert candidates_table(metrics) in printed
    assert coverage_table(metrics) in printed
    for name, scores in metrics["methods"].items():
        assert name in printed
        assert f"{scores['rmse']:.3f}" in printed
    assert 0 < metrics["methods"]["latent ODE"]["coverage_90"] <= 1
    fitted = load(home / "run" / "fit")
    assert isinstance(fitted, Ensemble)
    assert fitted.weights.tolist() == [0.5, 0.5]
    assert fitted.scaling.labels.log == ("bili",)
    widths = dict(zip(("bili", "albumin"), fitted.bands.widths, strict=True))
    assert metrics["bands"] == widths
    for name, width in widths.items():
        assert f"{name} by {width:.2f}" in printed
    fitted = fitted.members[0]  # the first of those of equal weight
    assert isinstance(fitted.model.likelihood, OrnsteinUhlenbeckLikelihood)
    names = ("noise_scale", "residual_scale", "residual_timescale")
    numbers = {name: np.asarray(fitted.params[name]) for name in names}
    for j, name in enumerate(("bili", "albumin")):
        found = metrics["variance"][name]
        assert sum(found[part] for part in ("path", "residual", "noise")) == pytest.approx(1)
        ratio = numbers["residual_scale"][j] / numbers["noise_scale"][j]
        assert found["residual"] / found["noise"] == pytest.approx(ratio**2, rel=1e-4)
        half_life = numbers["residual_timescale"][j] * np.log(2)
        assert found["half_life"] == pytest.approx(half_life, rel=1e-4)
    assert metrics["time_unit"] == "D"


def test_a_split_holds_the_same_ids_out_whatever_the_seed(labs, monkeypatch):
    trained = []

    def stop(key, candidates, train, **options):
        trained.append([*train.names.ids])
        raise FloatingPointError("enough")

    monkeypatch.chdir(labs)
    monkeypatch.setattr(fit_table, "cross_fit", stop)
    for seeds in (["--seed", "1"], ["--seed", "2"], ["--seed", "2", "--split", "1"]):
        run("fit", "labs.csv", *COLUMNS, *seeds, "--output-dir", "split")
    of_one, of_two, of_split = trained
    assert of_split == of_one != of_two


@pytest.mark.slow
def test_what_was_held_out_is_written_beside_its_forecasts_in_its_own_units(home):
    table = pd.read_csv(home / "run" / "heldout.csv", dtype={"patient": str})
    original = make_table().set_index("patient")
    metrics = json.loads((home / "run" / "metrics.json").read_text())
    assert table["patient"].nunique() == metrics["held_out"]
    for patient, rows in table.groupby("patient"):
        expected = original.loc[[patient]]
        later = expected.iloc[-(len(expected) // 2) :]
        bili = rows[rows["feature"] == "bili"]
        np.testing.assert_allclose(bili["observed"], later["bili"], rtol=1e-5)
        assert (bili["q0.05"] > 0).all()
        assert rows[rows["feature"] == "albumin"].shape[0] == later["albumin"].notna().sum()
    assert (table["q0.05"] < table["q0.95"]).all()


@pytest.mark.slow
def test_the_same_fit_is_not_done_again(home, monkeypatch):
    monkeypatch.setattr(fit_table, "cross_fit", None)
    arguments = ["fit", home / "labs.csv", *COLUMNS, *SMALL, "--output-dir", home / "run"]
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    assert "holds this fit already" in outcome.output
    for other, name in (
        (["--steps", 201], "steps"),
        (["--residual", "none"], "residual"),
        (["--members", 3], "members"),
        (["--no-recalibrate"], "recalibrate"),
    ):
        outcome = run(*arguments, *other)
        assert outcome.exit_code == 2
        assert "output-dir must be new" in outcome.output
        assert f"Its settings differ in {name}." in outcome.output


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_and_cleans_up(home, monkeypatch):
    target = home / "again"
    arguments = ["fit", home / "labs.csv", *COLUMNS, *SMALL, "--output-dir", target]
    monkeypatch.setattr(
        held_out, "calibration", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    outcome = run(*arguments)
    assert outcome.exit_code == 130
    assert "interrupted" in outcome.output
    left = {path.name for path in home.iterdir() if path.name.startswith(".again")}
    assert len(left) == 1
    assert not target.exists()
    monkeypatch.undo()
    # What was trained is not trained again.
    monkeypatch.setattr("np_latentode.training.progress.dispatches", lambda *_, **__: iter(()))
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    assert not [path for path in home.iterdir() if path.name.startswith(".again")]
    one, other = (json.loads((home / d / "metrics.json").read_text()) for d in ("run", "again"))
    for name in ("methods", "candidates", "bands", "coverage"):
        assert one[name] == other[name]


@pytest.fixture(scope="module")
def drawn_once():
    """`draw_forecast`, called once: endings differ in the file alone."""
    made = []

    def once(*arguments, **options):
        if not made:
            made.append(draw_forecast(*arguments, **options))
        return made[0]

    return once


@pytest.mark.parametrize("ending", ["csv", "nc", "parquet"])
@pytest.mark.slow
def test_every_id_is_forecast_at_every_time(home, ending, tmp_path, drawn_once, monkeypatch):
    monkeypatch.setattr(forecast_table, "draw_forecast", drawn_once)
    known = make_table(count=5)
    known.to_csv(tmp_path / "new.csv", index=False)
    output = tmp_path / f"out.{ending}"
    options = ["--until", "2020-12-31", "--points", 3, "--quantiles", "0.1,0.5,0.9", "--plot"]
    outcome = run("forecast", home / "run", tmp_path / "new.csv", *options, "-o", output)
    assert outcome.exit_code == 0, outcome.output
    assert "30 forecasts in" in outcome.output
    columns = dict(id="patient", time="day", values=["mean", "sd", "q0.1", "q0.5", "q0.9"])
    table, _ = read_table(output, **columns)
    assert len(table) == 5 * 3 * 2
    assert [*table["patient"].unique()] == [*known["patient"].unique()]
    assert np.isfinite(table[columns["values"]].to_numpy(float)).all()
    when = pd.to_datetime(table["day"])
    assert when.max() == pd.Timestamp("2020-12-31")
    assert (when.groupby(table["patient"]).min() > known.groupby("patient")["day"].max()).all()
    assert (tmp_path / "out.png").stat().st_size > 10_000
    again = run("forecast", home / "run", tmp_path / "new.csv", *options, "-o", output)
    assert again.exit_code == 2
    assert "output must be new" in again.output


@pytest.mark.slow
def test_ahead_is_counted_from_each_last_visit(home, tmp_path):
    output = tmp_path / "out.csv"
    options = ["--ahead", 30, "--points", 2, "-o", output]
    outcome = run("forecast", home / "run", home / "labs.csv", *options)
    assert outcome.exit_code == 0, outcome.output
    table = pd.read_csv(output, dtype={"patient": str}, parse_dates=["day"])
    last = make_table().groupby("patient")["day"].max()
    beyond = (table.groupby("patient")["day"].max() - last) / pd.Timedelta(days=1)
    np.testing.assert_allclose(beyond, 30, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.csv", *COLUMNS], "nowhere.csv cannot be read"),
        (["labs.txt", *COLUMNS], "path must end in one of .csv"),
        (["labs.csv", *COLUMNS[:4], "--values", "bilirubin"], "none of ['bilirubin']"),
        (["labs.csv", *COLUMNS, "--log", "albumin"], "'albumin' must be positive"),
        (["labs.csv", *COLUMNS, "--log", "day"], "log must name columns among values"),
        (["labs.csv", *COLUMNS, "--unit", "fortnight"], "unit must be one of W, D, h, m, s"),
        (["labs.csv", *COLUMNS, "--holdout", "1.5"], "holdout must be a share"),
        (["labs.csv", *COLUMNS, "--holdout", "0.95"], "data must hold 34 ids or more"),
        (["labs.csv", *COLUMNS, "--residual", "ar"], "residual must be one of none, ou; got 'ar'."),
        (
            ["labs.csv", *COLUMNS, "--inference", "mcmc"],
            "inference must be one of auto, guide, sharpened, exact; got 'mcmc'.",
        ),
        (["labs.csv", *COLUMNS, "--steps", "0"], "--steps"),
        (["labs.csv", *COLUMNS, "--seed", "-1"], "seed must be an integer from 0 to"),
        (["labs.csv", *COLUMNS, "--seed", str(2**70)], "seed must be an integer from 0 to"),
        (["labs.csv", *COLUMNS, "--split", "-1"], "split must be an integer from 0 to"),
        (["named.csv", "--id", "mean", *COLUMNS[2:]], "id and time must not be called"),
        (["labs.csv", "--id", "patient"], "Missing option"),
        (["labs.csv", *COLUMNS[:4]], "and values at least one; got ['patient', 'day']."),
        (["labs.csv", *COLUMNS[:4], "--values", "bili,"], "values must be names separated by"),
        (["labs.csv", *COLUMNS, "--feature", "bili"], "feature and value must be given together"),
        (["long.csv", *LONG, "--values", "flu"], "values must be entries of column 'test'"),
        (["twice.csv", *COLUMNS], "must name different columns in its first row; got ['bili']"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_before_anything_is_computed(
    labs, arguments, message, monkeypatch
):
    monkeypatch.chdir(labs)
    monkeypatch.setattr(fit_table, "cross_fit", None)
    make_table().rename(columns={"patient": "mean"}).to_csv("named.csv", index=False)
    make_table().assign(z=1).rename(columns={"z": "bili"}).to_csv("twice.csv", index=False)
    make_long().to_csv("long.csv", index=False)
    outcome = run("fit", *arguments, "--output-dir", "refused")
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.output.split())
    assert not (labs / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "labs.csv"], "until or ahead must be given"),
        (["run", "labs.csv", "--until", "2021-01-01", "--ahead", "3"], "and not both"),
        (["run", "labs.csv", "--until", "soon"], "until must be a date such as 2020-01-31"),
        (["run", "labs.csv", "--until", "today"], "until must be a date such as 2020-01-31"),
        (["run", "numbers.csv", "--ahead", "3"], "must hold dates in column 'day'"),
        (["run", "labs.csv", "--ahead", "3", "--quantiles", "0.5,0.5"], "quantiles must differ"),
        (["run", "labs.csv", "--until", "2020-01-02"], "until must be later than what is known"),
        (["run", "labs.csv", "--until", "9999-01-01"], "must not lead further than the"),
        (["run", "labs.csv", "--ahead", "-3"], "ahead must be positive"),
        (["run", "labs.csv", "--ahead", "3", "--quantiles", "0.1;0.9"], "separated by commas"),
        (["run", "labs.csv", "--ahead", "3", "--quantiles", "5"], "between 0 and 1"),
        (["run", "early.csv", "--ahead", "3"], "must not go back before 2020-"),
        (["run", "other.csv", "--ahead", "3"], "none of ['albumin']"),
        (["run", "bad.csv", "--ahead", "3"], "'bili' must hold numbers; got 'high' in line 3"),
        (["nowhere", "labs.csv", "--ahead", "3"], "there is none"),
        (["run", "labs.csv", "--ahead", "3", "-o", "out.txt"], "path must end in one of .csv"),
    ],
)
@pytest.mark.slow
def test_a_forecast_that_cannot_be_is_refused(home, arguments, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(home / "run")
    labs = make_table()
    labs.to_csv("labs.csv", index=False)
    labs.assign(day=range(len(labs))).to_csv("numbers.csv", index=False)
    labs.drop(columns="albumin").to_csv("other.csv", index=False)
    labs.astype({"bili": object}).replace(labs["bili"][1], "high").to_csv("bad.csv", index=False)
    make_table(start="2019-01-01").to_csv("early.csv", index=False)
    outcome = run("forecast", *arguments, *([] if "-o" in arguments else ["-o", "out.csv"]))
    assert outcome.exit_code == 2, outcome.output
    assert message in " ".join(outcome.output.split())
    assert not [*tmp_path.glob("out*")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "kind"), [("none", GaussianLikelihood), ("ou", OrnsteinUhlenbeckLikelihood)]
)
def test_the_residual_decides_the_likelihood(labs, word, kind, monkeypatch):
    def noted(rng_key, found, train, **_):
        pairs = [build(train, nnx.Rngs(0)) for build in found.values()]
        assert len(pairs) == 2
        [name] = {type(model.likelihood).__name__ for model, _ in pairs}
        raise OSError(name)

    monkeypatch.setattr(fit_table, "cross_fit", noted)
    options = [*COLUMNS, "--residual", word, "--output-dir", labs / "never"]
    outcome = run("fit", labs / "labs.csv", *options)
    assert outcome.stderr == f"np-latentode fit: {kind.__name__}\n"


def test_a_fit_of_too_few_is_refused(tmp_path):
    make_table(count=2).to_csv(tmp_path / "few.csv", index=False)
    outcome = run("fit", tmp_path / "few.csv", *COLUMNS, "--output-dir", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "data must hold 8 ids or more" in " ".join(outcome.output.split())


def test_a_disk_that_cannot_be_written_is_another_exit_code(labs, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fit_table, "cross_fit", full)
    options = [*COLUMNS, "--output-dir", labs / "full"]
    outcome = run("fit", labs / "labs.csv", *options)
    assert outcome.exit_code == 1
    assert "No space left" in outcome.output


@pytest.mark.slow
def test_dynamics_that_diverge_are_reported_in_a_sentence(home, monkeypatch, tmp_path):
    def diverging(rng_key, fitted, context, times, *, num_samples, **_):
        assert not any(member.model.solver.throw for member in fitted.members)
        x = np.zeros((num_samples, *times.shape, 2))
        x[0, 3, -1] = np.nan
        return {"x": x}

    monkeypatch.setattr(forecast_table, "draw_forecast", diverging)
    output = tmp_path / "out.csv"
    outcome = run("forecast", home / "run", home / "labs.csv", "--ahead", 30, "-o", output)
    assert outcome.exit_code == 2
    assert "those of 1 of 30, patient 003 for one, diverge before" in outcome.output
    assert not output.exists()


@pytest.mark.slow
def test_ids_that_are_forecast_some_at_a_time_have_the_same_rows(home, monkeypatch, tmp_path):
    asked = []

    def drawn(rng_key, fitted, context, times, *, num_samples, **_):
        asked.append(len(context))
        level = context.given.values.sum((1, 2))[:, None, None] + times[..., None]
        noise = np.linspace(-1, 1, num_samples)[:, None, None, None]
        x = level + noise * np.array([1.0, 2.0])
        return {"x": x, "x_mean": x, "signal": x}

    monkeypatch.setattr(forecast_table, "draw_forecast", drawn)
    options = ("--ahead", 30, "--points", 5, "--draws", 10, "--threshold", "bili > 2", "--plot")
    outputs = ("out.csv", "out.crossing.csv", "out.first_crossing.csv")
    texts = []
    for name, at_once in (("whole", forecast_table.AT_ONCE), ("some", 10 * 5 * 2 * 7)):
        monkeypatch.setattr(forecast_table, "AT_ONCE", at_once)
        (tmp_path / name).mkdir()
        call = ("forecast", home / "run", home / "labs.csv", "-o", tmp_path / name / "out.csv")
        outcome = run(*call, *options)
        assert outcome.exit_code == 0, outcome.output
        assert "300 forecasts in" in outcome.output
        texts.append([(tmp_path / name / output).read_text() for output in outputs])
        assert (tmp_path / name / "out.crossing.png").exists()
    assert asked == [30] + [7] * 5
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_forecasts_use_the_inference_that_fit_has_chosen(home, tmp_path):
    found = json.loads((home / "run" / "metrics.json").read_text())["inference"]
    scores = found["log_scores"]
    assert set(scores) == {"guide", "sharpened"}
    assert found["name"] == max(scores, key=scores.get)
    tables = {}
    for name in (None, "guide", "sharpened"):
        output = tmp_path / f"{name}.csv"
        options = ["--ahead", 30, "--draws", 50, "-o", output]
        options += ["--inference", name] if name else []
        outcome = run("forecast", home / "run", home / "labs.csv", *options)
        assert outcome.exit_code == 0, outcome.output
        tables[name] = output.read_text()
    assert tables["guide"] != tables["sharpened"]
    assert tables[None] == tables[found["name"]]
    outcome = run("forecast", home / "run", home / "labs.csv", "--ahead", 30, "--inference", "all")
    assert outcome.exit_code == 2
    assert "inference must be one of guide, sharpened, exact; got 'all'." in outcome.output


@pytest.mark.slow
def test_an_ensemble_is_scored_and_forecasts_tables_as_a_fit(home, tmp_path):
    fitted, data = load(home / "run").members[0], make_table()
    ensemble = Ensemble((fitted, fitted), [1.0, 0.0])
    tables = []
    for name, some in (("fit", fitted), ("ensemble", ensemble)):
        run_dir = tmp_path / name
        run_dir.mkdir()
        save(run_dir / "fit", some)
        output = tmp_path / f"{len(tables)}.csv"
        options = ["--ahead", 30, "--inference", "guide", "-o", output]
        outcome = run("forecast", run_dir, home / "labs.csv", *options)
        assert outcome.exit_code == 0, outcome.output
        tables.append(output.read_text())
    assert tables[0] == tables[1]
    options = dict(id="patient", time="day", values=["bili", "albumin"], log=["bili"])
    train = Trajectories.from_dataframe(data, **options)
    test = train[np.flatnonzero(np.asarray(train.observed).sum(1) > 1)]
    keys = tuple(jax.random.split(jax.random.key(0)))
    one, other = (
        held_out.score_held_out(keys, some, train, test, 0.0) for some in (fitted, ensemble)
    )
    assert one.metrics == other.metrics
    assert one.held_out.equals(other.held_out)
    assert one.figures.keys() == other.figures.keys() == {"training", "forecasts", "calibration"}


@pytest.mark.parametrize("command", ["fit", "forecast", "spirals", "clinical", "hopper"])
def test_help_has_an_example(command):
    outcome = run(command, "--help")
    assert outcome.exit_code == 0
    assert "Example" in outcome.output


@pytest.mark.slow
def test_a_unit_given_for_numeric_times_is_said_to_be_ignored(labs, monkeypatch):
    monkeypatch.setattr(
        fit_table, "cross_fit", lambda *_, **__: (_ for _ in ()).throw(OSError("stop"))
    )
    table = make_table()
    table.assign(day=range(len(table))).to_csv(labs / "counted.csv", index=False)
    said = "unit W is ignored, as the times in column 'day' are numbers"
    for name, ignored in (("counted.csv", True), ("labs.csv", False)):
        options = ["--unit", "W", "--output-dir", labs / "never"]
        outcome = run("fit", labs / name, *COLUMNS, *options)
        assert outcome.exit_code == 1
        assert (said in outcome.output) == ignored


HEAVY = ("jax", "numpy", "pandas", "numpyro", "flax", "diffrax", "matplotlib", "arviz", "xarray")
SCRIPT = """
import resource, sys
from np_latentode.app.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(end.code, used.ru_utime + used.ru_stime, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["--version"], 0), (["fit", "--help"], 0), (["fit", "labs.csv"], 2)],
    ids=["help", "version", "help of fit", "usage error"],
)
def test_what_computes_nothing_imports_nothing_heavy_and_takes_half_a_second(arguments, code):
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ended, seconds, *modules = done.stderr.splitlines()[-1].split()
    assert int(ended) == code
    assert not {module for module in modules if module.split(".")[0] in HEAVY}
    assert float(seconds) < 0.5


def test_the_version_is_that_of_the_package():
    assert run("--version").output == f"np-latentode {version('np-latentode')}\n"


@pytest.fixture(scope="module")
def of_long(home):
    """A fit of the long table, which remembers how it was read."""
    make_long().to_csv(home / "long.csv.gz", index=False)
    options = ["--values", "bili,albumin", "--log", "bili", *SMALL]
    outcome = run("fit", home / "long.csv.gz", *LONG, *options, "--output-dir", home / "of_long")
    assert outcome.exit_code == 0, outcome.output
    assert "np-latentode fit:" not in outcome.stderr
    return home / "of_long"


@pytest.mark.slow
def test_a_long_table_is_fitted_as_the_wide_one(home, of_long):
    ours, theirs = (json.loads((d / "metrics.json").read_text()) for d in (of_long, home / "run"))
    for name, scores in theirs["methods"].items():
        for column, expected in {"all": scores, **scores["columns"]}.items():
            found = ours["methods"][name]
            found = found if column == "all" else found["columns"][column]
            # A program that was compiled again may round in another way.
            for key in ("rmse", "crps"):
                assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert ours["settings"]["feature"] == "test"
    assert "feature" not in theirs["settings"]


@pytest.mark.slow
def test_a_forecast_reads_a_new_table_as_the_fit_did(home, of_long, tmp_path):
    known = make_table(count=4)
    known.to_csv(tmp_path / "wide.csv", index=False)
    # The test that was never ordered for these patients is not missed.
    others = pd.DataFrame({"patient": "9", "day": "?", "test": "flu", "result": "negative"}, [0])
    long = pd.concat([make_long(count=4), others])
    long.to_excel(tmp_path / "long.xlsx", index=False)
    long[long.test != "albumin"].to_csv(tmp_path / "bili.csv", index=False)
    options = ["--until", "2020-12-31", "--points", 2]
    tables = []
    for fitted, new in (
        (home / "run", "wide.csv"), (of_long, "long.xlsx"), (of_long, "bili.csv"),
    ):  # fmt: skip
        outcome = run("forecast", fitted, tmp_path / new, *options, "-o", tmp_path / f"{new}.tsv")
        assert outcome.exit_code == 0, outcome.output
        tables.append(pd.read_csv(tmp_path / f"{new}.tsv", dtype={"patient": str}, sep="\t"))
    wide, of_all, of_bili = tables
    assert of_all.patient.unique().tolist() == [*wide.patient.unique(), "9"]
    both = wide.merge(of_all, on=["patient", "day", "feature"])
    assert len(both) == len(wide)
    np.testing.assert_allclose(both["q0.5_x"], both["q0.5_y"], rtol=0.3, atol=0.3)
    assert len(of_bili) == len(of_all)


def test_a_command_says_each_warning_once(capsys):
    with _reported("fit"):
        for text in ("one\nsentence", "one sentence", "another"):
            warnings.warn(text, UserWarning, stacklevel=1)
    said = capsys.readouterr().err
    assert said == "np-latentode fit: one sentence\nnp-latentode fit: another\n"


@pytest.mark.slow
def test_a_mixture_of_tests_is_warned_of_in_one_line(home, monkeypatch):
    monkeypatch.setattr(
        fit_table, "cross_fit", lambda *_, **__: (_ for _ in ()).throw(OSError("stop"))
    )
    make_table().fillna({"albumin": 0}).melt(
        ["patient", "day"], var_name="test", value_name="result"
    ).to_csv(home / "mixed.csv", index=False)
    options = [*LONG[:4], "--values", "result", "--output-dir", home / "never"]
    outcome = run("fit", home / "mixed.csv", *options)
    [warned, stopped] = outcome.stderr.splitlines()
    assert warned.startswith("np-latentode fit: feature and value (--feature, --value) must name")
    assert "'result'" in warned
    assert stopped == "np-latentode fit: stop"


@pytest.mark.slow
def test_a_picture_beside_a_compressed_table_has_its_name(home, tmp_path):
    (tmp_path / "out.png").touch()
    outcome = run(
        "forecast", home / "run", home / "labs.csv", "--ahead", 30, "--plot",
        "-o", tmp_path / "out.csv.gz",
    )  # fmt: skip
    assert outcome.exit_code == 2
    assert f"output must be new; got {tmp_path / 'out.png'}" in outcome.output

"""The command models zeros and ones, and counts, as what they are, and says so."""

import json

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from typer.testing import CliRunner

from np_latentode import load
from np_latentode.app import fit_table
from np_latentode.app.cli import app
from np_latentode.app.data_summary import kinds_said
from np_latentode.app.summaries import coverage_table, scores_table, verdicts

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = ["--id", "who", "--time", "day", "--values", "y,edema,seizures"]
KINDS = {"y": "numbers", "edema": "bernoulli", "seizures": "counts"}
SAID = "kinds: edema bernoulli; seizures counts; all others numbers. To change one: --kind edema="


def make_table(count=30):
    """A number, zeros and ones, which are often missing, and counts, of some patients."""
    rng, rows = np.random.default_rng(0), []
    for who in range(count):
        u, v, n = rng.normal(), rng.normal(), rng.integers(4, 7)
        days = np.sort(rng.uniform(0, 10, n))
        edema = (rng.uniform(size=n) < 1 / (1 + np.exp(-2 * v))).astype(float)
        edema[rng.uniform(size=n) < 0.2] = np.nan
        seizures = rng.poisson(np.exp(0.5 * v) * rng.gamma(2, 0.5, n))
        y = u + np.sin(days / 3) + 0.2 * rng.normal(size=n)
        columns = {"who": who, "day": days, "y": y, "edema": edema, "seizures": seizures}
        rows.append(pd.DataFrame(columns))
    return pd.concat(rows, ignore_index=True)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a table, a fit of it, and what that printed."""
    home = tmp_path_factory.mktemp("home")
    make_table().to_csv(home / "visits.csv", index=False)
    options = ["--members", 2, "--steps", 40, "--output-dir", home / "run"]
    outcome = run("fit", home / "visits.csv", *COLUMNS, *options)
    assert outcome.exit_code == 0, outcome.output
    (home / "printed").write_text(outcome.output)
    return home


def load_metrics(home):
    return json.loads((home / "run" / "metrics.json").read_text())


@pytest.mark.slow
def test_the_guess_is_said_kept_and_modelled(home):
    assert SAID in (home / "printed").read_text()
    assert load_metrics(home)["settings"]["kind"] == KINDS
    for member in load(home / "run").members:
        names = [type(one).__name__ for one in member.model.likelihood.likelihoods]
        assert names == [
            "OrnsteinUhlenbeckLikelihood",
            "BernoulliLikelihood",
            "NegativeBinomialLikelihood",
        ]
        assert {"x_0.residual_scale", "x_2.concentration"} < {*member.params}


@pytest.mark.slow
def test_each_column_has_the_scores_of_its_kind(home):
    metrics, printed = load_metrics(home), (home / "printed").read_text()
    methods = metrics["methods"]
    ours = methods["latent ODE"]["columns"]
    assert {*ours["y"]} == {"rmse", "crps", "coverage_90"}
    assert {*ours["edema"]} == {"rmse", "crps", "brier", "log_score"}
    assert {*ours["seizures"]} == {"rmse", "crps", "coverage_90", "log_score"}
    assert 0 < ours["edema"]["brier"] < 0.4
    for name in ("constant", "last value", "mixed model"):
        assert 0 < methods[name]["columns"]["edema"]["brier"] < 1
    for table in (scores_table(metrics), coverage_table(metrics)):
        assert table in printed
    assert "brier" in scores_table(metrics).splitlines()[0]
    for shares in metrics["coverage"].values():
        assert [*shares["columns"]] == ["y", "seizures"]
    assert metrics["bands"]["edema"] == metrics["bands"]["seizures"] == 1
    assert metrics["bands"]["y"] != 1
    assert {*metrics["variance"]} == {"y"}
    assert "(edema, seizures: no numbers, so their variance is not split.)" in printed


@pytest.mark.slow
def test_held_out_values_and_forecasts_are_of_their_kind(home, tmp_path):
    output = tmp_path / "out.csv"
    options = ["--ahead", 3, "--points", 2, "--draws", 50, "--plot", "-o", output]
    outcome = run("forecast", home / "run", home / "visits.csv", *options)
    assert outcome.exit_code == 0, outcome.output
    for table in (pd.read_csv(output), pd.read_csv(home / "run" / "heldout.csv")):
        edema, seizures = (table[table.feature == name] for name in ("edema", "seizures"))
        assert edema["mean"].between(0, 1, inclusive="neither").all()
        # A probability, and no share of 50 or 500 draws.
        assert (np.abs(edema["mean"] * 500 % 1) > 1e-6).any()
        assert edema[["q0.05", "q0.5", "q0.95"]].isin([0, 1]).to_numpy().all()
        assert (seizures["q0.95"] == np.round(seizures["q0.95"])).all()
        assert (seizures["q0.95"] >= 0).all()


@pytest.mark.slow
def test_a_new_table_that_the_fit_cannot_hold_is_refused(home, tmp_path):
    table = make_table(4)
    table.loc[1, "edema"] = 2
    table.to_csv(tmp_path / "new.csv", index=False)
    output = tmp_path / "out.csv"
    outcome = run("forecast", home / "run", tmp_path / "new.csv", "--ahead", 1, "-o", output)
    assert outcome.exit_code == 2
    said = "new.csv must be 0 or 1 in column 'edema', as its kind is bernoulli; got 2 for who 0."
    assert said in " ".join(outcome.output.split())


@pytest.mark.slow
def test_other_kinds_are_another_fit(home):
    options = ["--members", 2, "--steps", 40, "--output-dir", home / "run"]
    arguments = ["fit", home / "visits.csv", *COLUMNS, *options]
    outcome = run(*arguments, "--kind", "edema=bernoulli")
    assert outcome.exit_code == 0
    assert "holds this fit already" in outcome.output
    outcome = run(*arguments, "--kind", "edema=numbers")
    assert outcome.exit_code == 2
    assert "Its settings differ in kind." in outcome.output


@pytest.fixture
def stopped(monkeypatch):
    """What would be trained: the models of the candidates, in a list."""
    made = []

    def noted(rng_key, found, train, **_):
        made.extend(build(train, nnx.Rngs(0))[0] for build in found.values())
        raise OSError("stop")

    monkeypatch.setattr(fit_table, "cross_fit", noted)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--kind", "edema=numbers"], ["OrnsteinUhlenbeck", "NegativeBinomial"]),
        (["--kind", "edema=numbers,seizures=numbers"], None),
        (["--kind", "y=numbers", "--residual", "none"],
         ["Gaussian", "Bernoulli", "NegativeBinomial"]),
        (["--kind", "edema=counts", "--kind", "seizures=counts"],
         ["OrnsteinUhlenbeck", "NegativeBinomial", "NegativeBinomial"]),
    ],
)  # fmt: skip
def test_a_kind_that_is_given_decides_the_likelihood(options, names, stopped, tmp_path):
    make_table().to_csv(tmp_path / "visits.csv", index=False)
    arguments = [tmp_path / "visits.csv", *COLUMNS, *options, "--output-dir", tmp_path / "run"]
    assert run("fit", *arguments).exit_code == 1
    assert len(stopped) == 2
    for model in stopped:
        if names is None:
            assert type(model.likelihood).__name__ == "OrnsteinUhlenbeckLikelihood"
        else:
            found = [type(one).__name__ for one in model.likelihood.likelihoods]
            assert found == [f"{name}Likelihood" for name in names]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("edema", "kind must be column=kind, separated by commas, as in edema=bernoulli; got"),
        (
            "edema=binary",
            "kind must be one of bernoulli, counts, numbers; got 'binary' for 'edema'",
        ),
        ("flu=counts", "kind must name columns among values, ['y', 'edema', 'seizures']; got"),
        ("seizures=bernoulli", "data must be 0 or 1 in column 'seizures', as its kind is"),
        ("y=counts", "data must be counts, 0, 1, 2, ... in column 'y', as its kind is counts"),
        ("edema=counts,edema=numbers", "kind must name each column once; got 'edema' twice."),
    ],
)
def test_a_kind_that_cannot_be_is_refused_before_anything_is_computed(
    kind, message, stopped, tmp_path
):
    make_table().to_csv(tmp_path / "visits.csv", index=False)
    arguments = [tmp_path / "visits.csv", *COLUMNS, "--kind", kind]
    outcome = run("fit", *arguments, "--output-dir", tmp_path / "run")
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.output.split())
    assert not stopped
    assert not (tmp_path / "run").exists()


def test_of_numbers_alone_no_kinds_are_said():
    assert kinds_said({"y": "numbers", "z": "numbers"}) == ""
    assert kinds_said({"a": "bernoulli", "b": "bernoulli"}) == (
        "kinds: a, b bernoulli. To change one: --kind a=numbers"
    )


def metrics_of(columns):
    """The metrics of one method and a baseline, of which only these columns have scores."""
    of_all = {"rmse": 0.5, "crps": 0.4}
    baseline = {name: scores | {"brier": 0.1} for name, scores in columns.items()}
    return {
        "methods": {
            "latent ODE": {**of_all, "columns": columns},
            "constant": {**of_all, "columns": baseline},
        },
        "held_out": 3,
        "observed_sd": dict.fromkeys(columns, 0.5),
        "observed_count": dict.fromkeys(columns, 10),
        "coverage": {"forecast": {"all": None, "columns": {}, "thirds": [None] * 3}},
    }


def test_a_table_of_zeros_and_ones_alone_has_scores_and_no_bands():
    bits = {"rmse": 0.5, "crps": 0.4, "brier": 0.2, "log_score": 0.6}
    for columns in ({"a": bits}, {"a": bits, "b": bits}):
        metrics = metrics_of(columns)
        title, first, *_ = scores_table(metrics).splitlines()
        assert title.split()[-5:] == ["rmse", "crps", "coverage_90", "brier", "log_score"]
        shown = ["0.200", "0.600"] if len(columns) == 1 else ["-", "-"]
        assert first.split()[-3:] == ["-", *shown]
        assert coverage_table(metrics) == ""
        [said] = verdicts(metrics)
        assert "constant for a (brier 0.100 against 0.200)" in said

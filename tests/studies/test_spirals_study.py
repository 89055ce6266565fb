"""The study of spirals at a reduced size: it runs, and its scores are good."""

import json

import jax
import numpy as np
import pytest
import xarray
from typer.testing import CliRunner

from np_latentode.app.cli import app
from np_latentode.studies import spirals as experiment

FILES = {
    "metrics.json",
    "posterior.nc",
    "data.png",
    "training.png",
    "reconstructions.png",
    "extrapolations.png",
    "latent.png",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "spirals"
    outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(path), "--steps", "3000"])
    assert outcome.exit_code == 0, outcome.output
    return path, outcome.output, json.loads((path / "metrics.json").read_text())


@pytest.mark.slow
def test_a_quarter_of_the_steps_beats_trivial_baselines(finished):
    _, _, metrics = finished
    others = metrics["others"]
    assert metrics["reconstruction_mse"] < 0.5 * others["last value"]["reconstruction_mse"]
    assert metrics["extrapolation_mse"] < 0.05 * others["constant"]["extrapolation_mse"]
    assert metrics["fresh_extrapolation_mse"] < 0.05 * others["constant"]["extrapolation_mse"]
    assert 0.75 < metrics["coverage_90"] < 0.99
    assert metrics["exact_loss"] < metrics["loss"] < 0


@pytest.mark.slow
def test_the_exact_answer_is_the_limit(finished):
    _, _, metrics = finished
    oracle = metrics["others"]["exact Bayes oracle"]
    assert oracle["reconstruction_mse"] < 1e-4 < metrics["reconstruction_mse"]
    assert oracle["extrapolation_mse"] < 5e-4 < metrics["extrapolation_mse"]
    assert 0.87 < oracle["coverage_90"] < 0.93


@pytest.mark.slow
def test_everything_promised_is_written_and_printed(finished):
    path, output, metrics = finished
    assert {p.name for p in path.iterdir()} == FILES
    assert all((path / name).stat().st_size > 10_000 for name in FILES if name.endswith("png"))
    with xarray.open_datatree(path / "posterior.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == {
            "posterior",
            "prior",
            "posterior_predictive",
            "prior_predictive",
            "log_likelihood",
            "observed_data",
            "constant_data",
        }
        assert tree.posterior["z0"].shape == (1, 200, 50, 4)
    assert metrics["kl_marginal_n"] == 20_000
    split = metrics["mutual_information"] + metrics["kl_marginal"]
    assert split == pytest.approx(metrics["kl"], abs=1e-3)
    assert all(np.isfinite(metrics[key]) for key in ("ms_per_step", "seconds_to_first_step"))
    for text in ("exact Bayes oracle", "linear interpolation", "seed notebook", str(path)):
        assert text in output


@pytest.mark.slow
def test_results_in_the_way_are_refused_before_anything_is_computed(finished, monkeypatch):
    path, _, _ = finished
    monkeypatch.setattr(experiment, "train", None)
    outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(path)])
    assert outcome.exit_code == 2
    assert "output-dir must be new" in outcome.output
    assert {p.name for p in path.iterdir()} == FILES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps"),
        (["--batch-size", "201"], "batch-size"),
        (["--latent-dim", "0"], "latent-dim"),
        (["--steps", "many"], "integer"),
        (["--nonsense"], "nonsense"),
        (["--prior", "gaussian"], "prior must be one of normal, mixture, flow"),
        (["--prior", "circle", "--latent-dim", "2"], "latent_dim must be at least 3"),
    ],
)
def test_bad_options_are_named(arguments, message, tmp_path):
    outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(tmp_path / "r"), *arguments])
    assert outcome.exit_code == 2
    assert message in outcome.output
    assert not (tmp_path / "r").exists()


def test_help_says_what_it_does():
    outcome = CliRunner().invoke(app, ["spirals", "--help"])
    assert outcome.exit_code == 0
    for text in (
        "--output-dir",
        "--steps",
        "--seed",
        "--latent-dim",
        "--batch-size",
        "--prior",
        "--diagnose",
        "Example",
    ):
        assert text in outcome.output


@pytest.fixture
def fewer(monkeypatch):
    """Fewer spirals to score codes and forecasts, the same ones for all fits."""
    for name, seed, count in (("fresh", 1_000, 100), ("many", 2_000, 2_000)):
        spirals = experiment.SpiralFamily().sample(jax.random.key(seed), count)
        monkeypatch.setattr(experiment._Data, name, spirals)


@pytest.mark.slow
@pytest.mark.usefixtures("fewer", "compile_quickly")
def test_priors_are_compared(tmp_path):
    path = tmp_path / "run"
    arguments = ["--steps", "200", "--prior", "mixture"]
    outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(path), *arguments])
    assert outcome.exit_code == 0, outcome.output
    metrics = json.loads((path / "metrics.json").read_text())
    assert list(metrics["priors"]) == ["normal", "mixture", "mixture on codes"]
    normal, codes = metrics["priors"]["normal"], metrics["priors"]["mixture on codes"]
    # The guide is the same, and so are its reconstructions; the prior is nearer to its codes.
    assert codes["mutual_information"] == pytest.approx(normal["mutual_information"], abs=1e-3)
    assert codes["reconstruction_mse"] == pytest.approx(normal["reconstruction_mse"], rel=1e-5)
    assert codes["kl_marginal"] < normal["kl_marginal"] - 0.3
    assert codes["elbo"] > normal["elbo"]
    assert {p.name for p in path.iterdir()} == FILES | {"priors.png"}
    for text in ("KL(q||p)", "mixture on codes", "share"):
        assert text in outcome.output

"""The study of spirals at a reduced size: it runs, and its scores are good."""

import json
from types import SimpleNamespace

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


NUM_CODES, STEPS = 2_000, 3_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run for all tests: its directory, output and metrics, and what it had before priors."""
    path, before = tmp_path_factory.mktemp("runs") / "spirals", {}
    train, compare = experiment.train, experiment._compare_priors

    def train_shorter(name, *arguments, steps, **options):
        # Of the fit under another prior, only its place in the results is tested.
        return train(name, *arguments, steps=steps if name == "normal" else 100, **options)

    def compare_priors(found, *arguments, **options):
        before.update(figures=set(found.figures), metrics=set(found.metrics))
        compare(found, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        # Fewer spirals to score codes and forecasts, the same ones for all fits.
        for name, seed, count in (("fresh", 1_000, 100), ("many", 2_000, NUM_CODES)):
            spirals = experiment.SpiralFamily().sample(jax.random.key(seed), count)
            patch.setattr(experiment._Data, name, spirals)
        patch.setattr(experiment, "train", train_shorter)
        patch.setattr(experiment, "_compare_priors", compare_priors)
        options = ["--steps", str(STEPS), "--prior", "mixture"]
        outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(path), *options])
    assert outcome.exit_code == 0, outcome.output
    return path, outcome.output, json.loads((path / "metrics.json").read_text()), before


@pytest.mark.slow
def test_a_quarter_of_the_steps_beats_trivial_baselines(finished):
    _, _, metrics, _ = finished
    others = metrics["others"]
    assert metrics["reconstruction_mse"] < 0.5 * others["last value"]["reconstruction_mse"]
    assert metrics["extrapolation_mse"] < 0.05 * others["constant"]["extrapolation_mse"]
    assert metrics["fresh_extrapolation_mse"] < 0.05 * others["constant"]["extrapolation_mse"]
    assert 0.75 < metrics["coverage_90"] < 0.99
    assert metrics["exact_loss"] < metrics["loss"] < 0


@pytest.mark.slow
def test_the_exact_answer_is_the_limit(finished):
    _, _, metrics, _ = finished
    oracle = metrics["others"]["exact Bayes oracle"]
    assert oracle["reconstruction_mse"] < 1e-4 < metrics["reconstruction_mse"]
    assert oracle["extrapolation_mse"] < 5e-4 < metrics["extrapolation_mse"]
    assert 0.87 < oracle["coverage_90"] < 0.93


@pytest.mark.slow
def test_everything_promised_is_written_and_printed(finished):
    path, output, metrics, _ = finished
    assert {p.name for p in path.iterdir()} == FILES | {"priors.png"}
    assert all(p.stat().st_size > 10_000 for p in path.glob("*.png"))
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
    assert metrics["kl_marginal_n"] == NUM_CODES
    split = metrics["mutual_information"] + metrics["kl_marginal"]
    assert split == pytest.approx(metrics["kl"], abs=1e-3)
    assert all(np.isfinite(metrics[key]) for key in ("ms_per_step", "seconds_to_first_step"))
    for text in ("exact Bayes oracle", "linear interpolation", "seed notebook", str(path)):
        assert text in output


@pytest.mark.slow
def test_results_in_the_way_are_refused_before_anything_is_computed(finished, monkeypatch):
    path, *_ = finished
    monkeypatch.setattr(experiment, "train", None)
    outcome = CliRunner().invoke(app, ["spirals", "--output-dir", str(path)])
    assert outcome.exit_code == 2
    assert "output-dir must be new" in outcome.output
    assert {p.name for p in path.iterdir()} == FILES | {"priors.png"}


def test_forecasts_are_scored_on_500_and_codes_on_20_000_new_spirals():
    data, counts = experiment._Data(), []
    data.family = SimpleNamespace(sample=lambda _, count: counts.append(count) or data.test)
    assert data.fresh is data.many is data.test
    assert counts == [500, 20_000]


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


@pytest.mark.slow
def test_priors_are_compared(finished):
    _, output, metrics, _ = finished
    assert list(metrics["priors"]) == ["normal", "mixture", "mixture on codes"]
    normal, codes = metrics["priors"]["normal"], metrics["priors"]["mixture on codes"]
    # The guide is the same, and so are its reconstructions; the prior is nearer to its codes.
    assert codes["mutual_information"] == pytest.approx(normal["mutual_information"], abs=1e-3)
    assert codes["reconstruction_mse"] == pytest.approx(normal["reconstruction_mse"], rel=1e-5)
    assert codes["kl_marginal"] < normal["kl_marginal"] - 0.3
    assert codes["elbo"] > normal["elbo"]
    for text in ("KL(q||p)", "mixture on codes", "share"):
        assert text in output


@pytest.mark.slow
def test_without_priors_to_compare_there_is_no_figure_of_them(finished):
    *_, before = finished
    assert {f"{name}.png" for name in before["figures"]} == {n for n in FILES if n.endswith("png")}
    assert "priors" not in before["metrics"]

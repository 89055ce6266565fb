"""The study of Physiome-ODE scores what it says, and says what it cannot do."""

import json

import numpy as np
import pytest

from np_latentode.studies import physiome as study
from np_latentode.studies.physiome_published import PUBLISHED, published


@pytest.fixture(scope="module")
def few():
    """Solutions of forty instances of a system that is quickly solved: sines of random phases."""
    phase = np.random.default_rng(0).uniform(0, 6, (40, 1, 3))
    return np.sin(0.1 * np.arange(100)[:, None] + phase)


@pytest.mark.slow
def test_metrics_hold_a_score_for_each_fold_beside_the_published_ones(few, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "solutions", lambda name: few)
    metrics = study.run(tmp_path / "run", "WOD01", folds=2, steps=20, progress=False)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == metrics
    assert metrics["published"] == published("WOD01")
    assert {*metrics["methods"]} == {"latent ODE", "constant", "last value"}
    for scores in metrics["methods"].values():
        assert all(len(scores[key]) == 2 for key in study.SCORES)
    mse = metrics["methods"]["constant"]["mse"]
    # Standardised states have a variance of 1, and noise adds 0.0025.
    np.testing.assert_allclose(mse, 1.0, atol=0.5)
    assert {one.name for one in (tmp_path / "run").iterdir()} == {
        "metrics.json",
        "forecasts.png",
        "calibration.png",
    }


def test_the_score_is_the_mean_squared_error_over_all_values_asked(few):
    fold = study.divide(few, fold=0)
    seen = np.asarray(fold.target.mask)
    # Another error for each state and instance: neither a mean of states nor of instances is it.
    error = np.array([0.1, 0.5, 2.0]) * np.arange(1, 5)[:, None, None]
    own = study._score(fold, study.Forecasts(fold.target.given.values + error * seen))
    every = np.broadcast_to(error, seen.shape)[seen]
    np.testing.assert_allclose(own["mse"], np.mean(every**2), rtol=1e-5)
    np.testing.assert_allclose(own["crps"], np.mean(every), rtol=1e-5)


def test_published_rows_are_those_of_the_paper():
    for name, row in PUBLISHED.items():
        assert [*published(name).values()] == [*row]
    assert published("LEN01")["LinODEnet"] == min(published("LEN01").values()) == 0.387
    assert published("NEW") == {}


def test_the_summary_has_means_and_deviations_over_folds(tmp_path):
    scores = {"mse": [0.1, 0.3], "crps": [0.2, 0.2], "coverage_90": [0.9, 0.9]}
    constant = {"mse": [1.0, 1.0], "crps": [0.5, 0.5], "coverage_90": [None, None]}
    methods = {"latent ODE": scores, "constant": constant}
    metrics = dict(set="LI01", folds=2, seconds=[1.0, 2.0], methods=methods)
    said = study._summary({**metrics, "published": published("LI01")}, tmp_path)
    assert "0.200 +- 0.141" in said
    assert "LinODEnet, published" in said
    assert said.count(" -\n") == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "NONE"}, "name must be one of WOD01, .*got 'NONE'"),
        ({"folds": 0}, "folds must be .*got 0"),
        ({"steps": 0}, "steps must be .*got 0"),
        ({"members": 0}, "members must be .*got 0"),
    ],
)
def test_what_is_out_of_range_is_refused(changed, said, tmp_path):
    given = dict(name="WOD01", progress=False) | changed
    with pytest.raises(ValueError, match=said):
        study.run(tmp_path / "run", given.pop("name"), **given)

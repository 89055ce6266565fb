"""`fit --on-disk` leaves a table in Parquet on disk, and says what it read of it."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from np_latentode import load
from np_latentode.app import division
from np_latentode.app.cli import app
from np_latentode.app.fit_table import fit_table
from np_latentode.app.read_table import read_table
from np_latentode.data import trajectories
from np_latentode.data.stored import StoredTrajectories

pytest.importorskip("pyarrow")
pytest.importorskip("grain")

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = dict(id="who", time="day", values=["level"])
OPTIONS = dict(latent_dim=2, members=2, steps=20, batch_size=8, inference="guide")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "levels.parquet"
    rng = np.random.default_rng(0)
    who, day = np.repeat(np.arange(60), 8), np.tile(np.arange(8.0), 60)
    level = rng.normal(size=60)[who] + 0.1 * day + 0.1 * rng.normal(size=480)
    pd.DataFrame({"who": who, "day": day, "level": level, "dose": 0.0}).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def fitted(path, tmp_path_factory):
    """Fitted, where reading the table into memory fails; 12 of 60 ids would be held out."""
    out = tmp_path_factory.mktemp("fitted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories.Trajectories, "from_file", None)
        patch.setattr(division, "MOST_HELD_OUT", 10)
        patch.setattr(division, "SAMPLE", 20)
        metrics = fit_table(path, out, **COLUMNS, **OPTIONS, on_disk=True, progress=False)
    return out, metrics


@pytest.mark.slow
def test_a_table_on_disk_is_fitted_without_reading_it_into_memory(fitted, path):
    out, metrics = fitted
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert (metrics["trained_on"], metrics["held_out"]) == (50, 10)
    assert metrics["settings"]["on_disk"] is True
    stored = StoredTrajectories.from_parquet(path, **COLUMNS)
    held_out = pd.read_csv(out / "heldout.csv")
    assert held_out["who"].nunique() == 10
    # The later half of the eight times of each.
    assert len(held_out) == 40
    scale = load(out / "fit").scaling.scale
    np.testing.assert_allclose(scale, stored.moments().sd, rtol=0.2)
    assert {"latent ODE", "mixed model", "last value"} <= {*metrics["methods"]}


@pytest.mark.slow
def test_a_fit_from_disk_forecasts_a_table_in_memory(fitted, path, tmp_path):
    arguments = [str(fitted[0]), str(path), "--ahead", "2", "--points", "2", "-o"]
    done = CliRunner().invoke(app, ["forecast", *arguments, str(tmp_path / "f.csv")])
    assert done.exit_code == 0, done.output
    assert pd.read_csv(tmp_path / "f.csv")["who"].nunique() == 60


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--window", "4"], "window must be left out for a table on disk; got 4.0"),
        (["--inputs", "dose=event"], "inputs must be left out for a table on disk; got"),
        (["--error", "level=dose"], "error must be left out for a table on disk; got"),
    ],
)
def test_what_is_not_read_from_disk_is_refused_before_reading(more, said, path, tmp_path):
    out = tmp_path / "run"
    arguments = [str(path), "--id", "who", "--time", "day", "--values", "level", "--on-disk"]
    done = CliRunner().invoke(app, ["fit", *arguments, "--output-dir", str(out), *more])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not out.exists()


def test_a_table_that_is_not_in_parquet_is_refused(tmp_path):
    path = tmp_path / "levels.csv"
    path.write_text("who,day,level\n1,0,2\n")
    with pytest.raises(ValueError, match=r"path must end in \.parquet; got"):
        fit_table(path, tmp_path / "run", **COLUMNS, on_disk=True, progress=False)


# Reading warns of them as well.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ids_with_times_far_outside_are_left_out_and_it_is_said(path, tmp_path):
    table = pd.read_parquet(path)
    table.loc[table.index[8], "day"] = -40_000.0
    table.to_parquet(tmp_path / "far.parquet")
    rule = "1 of 60 ids have a time far outside, and are left out"
    with pytest.warns(UserWarning, match=rule):
        found = read_table(tmp_path / "far.parquet", COLUMNS, on_disk=True, window=None)
    assert len(found) == 59
    assert 1 not in found[:].names.ids
    parts = division.divide(found, 0.2, 0)
    assert parts.t0 == 0


def test_ids_that_a_csv_file_would_lose_are_refused(path, tmp_path):
    table = pd.read_parquet(path)
    table["who"] = [" 7" if who == 7 else str(who) for who in table["who"]]
    table.to_parquet(tmp_path / "blanks.parquet")
    found = read_table(tmp_path / "blanks.parquet", COLUMNS, on_disk=True, window=None)
    with pytest.raises(ValueError, match="column 'who' must hold ids that can be written to a CSV"):
        division.divide(found, 0.9, 0)

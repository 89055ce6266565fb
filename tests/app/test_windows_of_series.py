"""`fit --window` trains on windows of long series, and `forecast` begins with the last ones."""

import json

import jax
import numpy as np
import pandas as pd
import pytest

from np_latentode import Trajectories, candidates, cross_fit, load
from np_latentode.app.fit_table import fit_table
from np_latentode.app.forecast_table import forecast_table

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = dict(id="machine", time="time", values=["load"])


@pytest.fixture(scope="module")
def readings():
    random = np.random.default_rng(0)
    rows = []
    for k in range(10):
        times = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(60 + k), "h")
        load = 5 + np.sin(0.3 * np.arange(60 + k) + k) + random.normal(0, 0.1, 60 + k)
        rows.append(pd.DataFrame({"machine": f"m{k}", "time": times, "load": load}))
    return pd.concat(rows)


@pytest.fixture(scope="module")
def run(readings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("windows")
    readings.to_csv(directory / "readings.csv", index=False)
    options = dict(unit="h", window=20.0, latent_dim=2, members=2, steps=40, progress=False)
    fit_table(directory / "readings.csv", directory / "run", **COLUMNS, **options)
    return directory


@pytest.mark.slow
def test_held_out_windows_are_of_machines_that_were_not_trained_on(run, readings):
    metrics = json.loads((run / "run" / "metrics.json").read_text())
    # Two machines are held out, cut every 20 hours; the others are cut every 10.
    assert metrics["held_out"] == 2 * 4
    assert 8 * 5 < metrics["trained_on"] <= 8 * 7
    held_out = pd.read_csv(run / "run" / "heldout.csv", parse_dates=["time"])
    assert held_out["machine"].nunique() == 2
    joined = held_out.merge(readings, on=["machine", "time"], how="left")
    np.testing.assert_array_equal(joined["observed"], joined["load"])


@pytest.mark.slow
def test_forecasts_begin_after_the_last_reading_in_the_clock_of_the_table(run, readings):
    count = forecast_table(
        run / "run", run / "readings.csv", run / "forecast.csv", ahead=5.0, points=5
    )
    table = pd.read_csv(run / "forecast.csv")
    assert len(table) == count
    last = readings.groupby("machine")["time"].max()
    first = table.groupby("machine")["time"].min()
    assert (pd.to_datetime(first) - last == pd.Timedelta("1h")).all()
    assert set(table["machine"]) == set(readings["machine"])


@pytest.mark.slow
def test_readings_before_the_last_window_change_no_forecast(run, readings):
    recent = readings.groupby("machine").tail(20)
    recent.to_csv(run / "recent.csv", index=False)
    options = dict(ahead=5.0, points=5, draws=20)
    forecast_table(run / "run", run / "readings.csv", run / "whole.csv", **options)
    forecast_table(run / "run", run / "recent.csv", run / "part.csv", **options)
    assert (run / "whole.csv").read_text() == (run / "part.csv").read_text()


@pytest.mark.slow
def test_dates_are_asked_of_the_last_window_and_none_before_it(run):
    options = dict(draws=4, overwrite=True)
    date = "2024-01-03T12:00"
    forecast_table(run / "run", run / "readings.csv", run / "on.csv", on=[date], **options)
    table = pd.read_csv(run / "on.csv")
    assert (pd.to_datetime(table["time"]) == pd.Timestamp(date)).all()
    with pytest.raises(ValueError, match="on must not be before the last window of each id"):
        forecast_table(
            run / "run", run / "readings.csv", run / "on.csv", on=["2024-01-01T05:00"], **options
        )
    (run / "at.csv").write_text(f"time,machine\n{date},m3\n2024-01-01T05:00,m3\n")
    with pytest.raises(ValueError, match=r"before the last window of each id; got .* in line 3"):
        forecast_table(
            run / "run", run / "readings.csv", run / "on.csv", at=run / "at.csv", **options
        )


@pytest.mark.slow
def test_windows_of_one_trajectory_are_left_out_together(readings):
    windows = Trajectories.from_dataframe(readings, **COLUMNS, unit="h").windows(20.0, 10.0)
    seen = []

    def build(train, rngs):
        seen.append(set(train.names.ids))
        return candidates(windows)["network"](train, rngs)

    cross = cross_fit(
        jax.random.key(0), {"own": build}, windows, num_folds=2, num_steps=4, progress=False
    )
    for rows, kept in zip(cross.left_out, seen, strict=True):
        assert rows.size
        assert not set(np.asarray(windows.names.ids)[rows]) & kept


@pytest.mark.slow
@pytest.mark.parametrize("window", [0.0, -1.0, float("inf")])
def test_a_window_without_length_is_refused(run, tmp_path, window):
    with pytest.raises(ValueError, match="window must be positive and finite"):
        fit_table(run / "readings.csv", tmp_path / "run", **COLUMNS, window=window)


@pytest.mark.slow
def test_windows_are_proposed_for_long_series(tmp_path, capsys):
    rows = [dict(machine=k, time=t, load=np.sin(t + k)) for k in range(8) for t in range(200)]
    pd.DataFrame(rows).to_csv(tmp_path / "long.csv", index=False)
    options = dict(latent_dim=1, members=1, steps=2, holdout=0.0, recalibrate=False)
    fit_table(tmp_path / "long.csv", tmp_path / "run", **COLUMNS, **options)
    assert "--window 60" in capsys.readouterr().out
    assert load(tmp_path / "run").bands is None

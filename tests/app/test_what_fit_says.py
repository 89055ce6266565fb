"""What the command says of a table and of its forecasts, and what may not cost a fit."""

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from np_latentode import Trajectories, load
from np_latentode.app import fit_table
from np_latentode.app.cli import app
from np_latentode.app.data_summary import samples_said, trajectories_table
from np_latentode.app.summaries import (
    candidates_table,
    coverage_table,
    scores_table,
    variance_table,
    verdicts,
)
from np_latentode.report import fans, plots

pytestmark = pytest.mark.usefixtures("compile_quickly")

COLUMNS = ["--id", "who", "--time", "day", "--values", "a,b"]


def make_table(count=30):
    """Patients who enter over ten years, with visits on dates of a time zone."""
    rng, rows = np.random.default_rng(0), []
    for who in range(count):
        entry = pd.Timestamp("2010-01-01T06:30+02:00") + pd.Timedelta(days=int(rng.integers(3650)))
        days = np.sort(rng.choice(100, 5, replace=False))
        x = np.cos(days / 15 + rng.normal(0, 0.2))
        rows.append(
            pd.DataFrame({"who": who, "day": entry + pd.to_timedelta(days, unit="D"), "a": x})
        )
    table = pd.concat(rows, ignore_index=True)
    table["b"] = np.where(
        rng.uniform(size=len(table)) < 0.25, np.nan, 1e6 + rng.normal(size=len(table))
    )
    return table


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


shown = []


def note_and_plot(plot, context, draws, times, **options):
    shown.append((context, times))
    return plot(context, draws, times, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with a table and a fit of it, of which one figure could not be drawn.

    The context and the times of the figure of forecasts are kept as well.
    """
    home = tmp_path_factory.mktemp("home")
    make_table().to_csv(home / "labs.csv", index=False)
    arguments = [home / "labs.csv", *COLUMNS, "--since", "first", "--output-dir", home / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "plot_calibration", lambda found: 1 / 0)
        patch.setattr(fans, "plot_forecasts", partial(note_and_plot, fans.plot_forecasts))
        outcome = run("fit", *arguments, "--steps", 40, "--members", 2)
    assert outcome.exit_code == 0, outcome.output
    (home / "printed").write_text(outcome.output)
    return home


def load_metrics(home):
    return json.loads((home / "run" / "metrics.json").read_text())


@pytest.mark.slow
def test_no_figure_costs_a_fit(home):
    fitted, same = load(home / "run"), load(home / "run" / "fit")
    assert fitted.scaling.labels.since == "first"
    assert len(fitted.members) == len(same.members)
    for one, other in zip(fitted.members, same.members, strict=True):
        assert one.params.keys() == other.params.keys()
    assert (home / "run" / "forecasts.png").exists()
    said = (home / "printed").read_text()
    assert "fit: The figure calibration.png could not be drawn: division by zero." in said


@pytest.mark.slow
def test_forecasts_are_shown_at_each_last_observation_and_soon_after(home):
    [(context, times)] = shown
    assert len(times) == len(context) == 4
    seen = np.asarray(context.observed)
    last = np.max(context.given.times, axis=1, where=seen, initial=-np.inf)
    for end, shown_at in zip(last, times, strict=True):
        assert end in shown_at
        soon = (shown_at > end) & (shown_at < end + (times.max() - times.min()) / 100)
        assert soon.sum() >= 3
    assert times.max() == times[:, 99].max()


@pytest.mark.slow
def test_what_is_held_out_joins_the_table_by_id_and_time(home):
    table, held = (pd.read_csv(home / name) for name in ("labs.csv", "run/heldout.csv"))
    assert held.day.str.endswith("Z").all()
    table, held = (df.assign(day=pd.to_datetime(df.day, utc=True)) for df in (table, held))
    joined = held.merge(table, on=["who", "day"], how="left", validate="many_to_one")
    own = np.where(joined.feature == "a", joined.a, joined.b)
    np.testing.assert_array_equal(joined.observed, own)


@pytest.mark.slow
def test_scores_stand_by_column_beside_the_observed_spread(home):
    metrics = load_metrics(home)
    assert {"latent ODE", "last value", "constant", "mixed model"} <= {*metrics["methods"]}
    for scores in metrics["methods"].values():
        assert {*scores["columns"]} == {"a", "b"}
    # Readings of 1,000,000 +- 1 are no constant, and no forecast of them is perfect.
    assert 0.5 < metrics["observed_sd"]["b"] < 2
    assert metrics["methods"]["latent ODE"]["columns"]["b"]["rmse"] > 0.5
    printed = (home / "printed").read_text()
    _, after = printed.split(scores_table(metrics))
    assert coverage_table(metrics) in after
    assert variance_table(metrics) in after


@pytest.mark.slow
def test_candidates_are_weighed_by_their_scores_of_what_they_left_out(home):
    metrics, fitted = load_metrics(home), load(home / "run")
    found, printed = metrics["candidates"], (home / "printed").read_text()
    assert {*found} == {"backbone", "network"}
    assert sum(one["weight"] for one in found.values()) == pytest.approx(1)
    # A network says little after so few steps; a backbone starts as a mixed model.
    assert found["backbone"]["log_score"] > found["network"]["log_score"]
    assert found["backbone"]["weight"] > 0.5
    for one in found.values():
        assert (one["latent_dim"] is None) == (not one["weight"])
        assert len(one["best_steps"]) == (2 if one["weight"] else 0)
    weights = [one["weight"] / 2 for one in found.values() if one["weight"] for _ in range(2)]
    np.testing.assert_allclose(fitted.weights, weights)
    assert candidates_table(metrics) in printed


@pytest.mark.slow
def test_where_backbones_weigh_most_forecasts_use_the_guide(home):
    chosen = load_metrics(home)["inference"]
    assert chosen == {"name": "guide", "log_scores": {}}
    assert "forecasts use the guide alone\n" in (home / "printed").read_text()


@pytest.mark.slow
def test_coverage_is_of_all_values_by_column_and_by_thirds_of_the_gap(home):
    metrics, held = load_metrics(home), pd.read_csv(home / "run" / "heldout.csv")
    inside = (held["q0.05"] <= held.observed) & (held.observed <= held["q0.95"])
    assert {*metrics["bands"]} == {"a", "b"}
    for shares in metrics["coverage"].values():
        assert [*shares["columns"]] == ["a", "b"]
        count = metrics["observed_count"]
        both = sum(count[name] * shares["columns"][name] for name in "ab") / sum(count.values())
        assert shares["all"] == pytest.approx(both)
        thirds = [len(part) for part in np.array_split(np.arange(sum(count.values())), 3)]
        parts = np.dot(thirds, shares["thirds"])
        assert shares["all"] == pytest.approx(parts / sum(thirds))
    assert {*metrics["coverage"]} == {"forecast", "before recalibration"}
    # Those of heldout.csv are other draws of the same bands.
    assert metrics["coverage"]["forecast"]["all"] == pytest.approx(inside.mean(), abs=0.1)


@pytest.mark.slow
def test_a_forecast_reads_the_clock_of_the_fit_and_answers_in_the_table_s_times(home, tmp_path):
    table = pd.read_csv(home / "labs.csv", dtype={"who": str})
    few = table[table.who.isin(["3", "4"])]
    few.to_csv(tmp_path / "few.csv", index=False)
    last = pd.to_datetime(few.day, utc=True).groupby(few.who).max()
    until = (last.max() + pd.Timedelta("2D")).strftime("%Y-%m-%dT%H:%M+00:00")
    made = tmp_path / "made.csv"
    arguments = [home / "run", tmp_path / "few.csv", "--points", 2, "-o", made, "--draws", 20]
    assert run("forecast", *arguments, "--ahead", 10).exit_code == 0
    found = pd.read_csv(made, dtype={"who": str})
    assert found.day.str.endswith("Z").all()
    when = pd.to_datetime(found.day, utc=True).groupby(found.who).max()
    assert (when - last == pd.Timedelta("10D")).all()
    assert run("forecast", *arguments, "--until", until, "--overwrite").exit_code == 0
    found = pd.read_csv(made, dtype={"who": str})
    when = pd.to_datetime(found.day, utc=True).groupby(found.who).max()
    assert (when == pd.Timestamp(until)).all()
    naive = run("forecast", *arguments, "--until", until[:10], "--overwrite")
    assert naive.exit_code == 2
    assert "until must be a date such as 2020-01-31T12:00Z, as 'day' is" in naive.output


@pytest.mark.slow
def test_a_table_without_zones_is_refused_by_a_fit_with_zones(home, tmp_path):
    table = pd.read_csv(home / "labs.csv")
    table["day"] = table.day.str[:10]
    table.to_csv(tmp_path / "naive.csv", index=False)
    outcome = run("forecast", home / "run", tmp_path / "naive.csv", "--ahead", 1)
    assert outcome.exit_code == 2
    assert "must hold dates with a time zone in column 'day'" in outcome.output


@pytest.mark.parametrize("count", [1, 3, 7])
def test_too_few_ids_are_refused_before_training_with_the_numbers_needed(count, tmp_path):
    make_table(count).to_csv(tmp_path / "labs.csv", index=False)
    outcome = run("fit", tmp_path / "labs.csv", *COLUMNS, "--output-dir", tmp_path / "run")
    assert outcome.exit_code == 2
    assert "8 ids or more" in outcome.output
    assert f"got {count} of {count}" in outcome.output


def test_an_interrupted_fit_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_table, "fit_table", interrupted)
    make_table(8).to_csv(tmp_path / "labs.csv", index=False)
    outcome = run("fit", tmp_path / "labs.csv", *COLUMNS, "--output-dir", tmp_path / "run")
    assert outcome.exit_code == 130
    assert (
        "interrupted. The same command goes on from its last checkpoint, if there is one."
        in outcome.output
    )


def test_what_was_read_is_said():
    frame = make_table(4).assign(day=lambda df: df.day.dt.tz_localize(None))
    data = Trajectories.from_dataframe(frame, id="who", time="day", values=["a", "b"])
    said = trajectories_table(data)
    assert f"read 4 ids and 20 rows, from {frame.day.min():%Y-%m-%dT%H:%M}" in said
    gap = pd.Series(np.concatenate([np.diff(d.day) for _, d in frame.groupby("who")])).median()
    assert f"median gap {gap / pd.Timedelta('1D'):.3g} D" in said
    missing = frame.b.isna().mean()
    assert any(
        line.split()[:3] == ["b", str(frame.b.count()), f"{missing:.0%}"]
        for line in said.splitlines()
    )


def methods(ours, other, covered):
    def scores(crps, **more):
        return {"rmse": crps, "crps": crps, **more}

    return {
        "latent ODE": {
            **scores(0.5, coverage_90=covered),
            "columns": {"a": scores(ours, coverage_90=covered), "b": scores(0.1, coverage_90=0.9)},
        },
        "last value": {**scores(0.6), "columns": {"a": scores(other), "b": scores(0.2)}},
    }


@pytest.mark.parametrize(
    ("ours", "other", "covered", "words"),
    [
        (0.3, 0.4, 0.9, []),
        (0.4, 0.3, 0.9, ["last value for a (crps 0.300 against 0.400)"]),
        (None, 0.3, 0.9, ["last value for a (crps 0.300 against -)"]),
        (None, None, 0.9, []),
        (
            0.3,
            0.4,
            0.7,
            ["hold 70% of all columns, 70% of a (50 values in all): they are too narrow"],
        ),
        (0.3, 0.4, 0.99, ["hold 99% of all columns, 99% of a (50 values in all): they are wider"]),
    ],
)
def test_a_baseline_that_wins_and_bands_that_do_not_hold_are_named(ours, other, covered, words):
    found = {"methods": methods(ours, other, covered), "observed_sd": {"a": 1.0, "b": 2.0}}
    found["observed_count"] = {"a": 30, "b": 20}
    said = verdicts(found)
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))


def said_of(half_life, unit="D", residual=0.25):
    found = {"path": 0.7, "residual": residual, "noise": 0.3 - residual, "half_life": half_life}
    metrics = {"variance": {"a": found}, "time_unit": unit, "settings": {"time": "age"}}
    return variance_table(metrics).splitlines()[1]


@pytest.mark.parametrize(
    ("half_life", "unit", "words"),
    [
        (0.1, "D", "2.4 hours"),
        (3.0, "D", "3 days"),
        (59.0, "D", "59 days"),
        (390.0, "D", "13 months"),
        (1_000.0, "D", "2.7 years"),
        (1e5, "D", "274 years"),
        (9.0, "W", "2.1 months"),
        (0.5, "s", "0.5 seconds"),
        (12.34, None, "12.3 (in units of 'age')"),
        (4_321.0, None, "4321 (in units of 'age')"),
    ],
)
def test_how_long_a_residual_is_remembered_is_said_in_a_readable_unit(half_life, unit, words):
    said = said_of(half_life, unit)
    assert said.split()[:4] == ["a", "70%", "25%", "5%"]
    assert said.endswith(f"  half of the residual is gone after {words}")


@pytest.mark.parametrize(("residual", "shown"), [(0.0, "0%"), (0.004, "<1%"), (0.009, "1%")])
def test_a_residual_without_a_share_is_said_to_be_none(residual, shown):
    said = said_of(None if residual == 0 else 3.0, residual=residual)
    assert said.split()[2] == shown
    assert said.endswith("  no residual: white noise only")


def test_shares_that_are_not_finite_are_left_out():
    nothing = dict.fromkeys(("path", "residual", "noise", "half_life"))
    metrics = {"variance": {"a": nothing}, "time_unit": "D", "settings": {"time": "age"}}
    assert variance_table(metrics).splitlines()[1].split() == ["a", "-", "-", "-"]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["2200-01-01T00:00Z"])
def test_a_fit_does_without_rows_far_outside_in_time(wrong, tmp_path):
    table = make_table()
    start = table.groupby("who").day.transform("min")
    table["day"] = (pd.Timestamp("2020-01-01T00:00Z") + (table.day - start)).astype(str)
    table.loc[7, "day"] = wrong
    table.to_csv(tmp_path / "labs.csv", index=False)
    arguments = [tmp_path / "labs.csv", *COLUMNS, "--output-dir", tmp_path / "run"]
    small = ["--steps", 20, "--batch-size", 10, "--members", 2, "--latent-dim", 3]
    outcome = run("fit", *arguments, *small, "--inference", "guide")
    assert outcome.exit_code == 0, outcome.output
    assert f"column 'day' holds {wrong[:10]} in line 9, far from all others" in outcome.output
    scaling = load(tmp_path / "run").scaling
    assert 15 < scaling.time_unit < 25


@pytest.mark.parametrize(
    ("count", "num_folds", "said"),
    [
        (2_000, 5, ""),
        (2_500, 5, "a backbone starts from 2000 random ones of 2500"),
        (501, 1, ""),
        (
            9_000,
            5,
            "of 9000 for training, 5 times 500 random ones judge what was trained without them, "
            "and a backbone starts from 2000 random ones",
        ),
        (1_600, 3, "of 1600 for training, 3 times 500 random ones judge what was trained without"),
    ],
)
def test_what_only_a_sample_decides_is_said(count, num_folds, said):
    found = samples_said(count, num_folds, start=2_000, fold=500)
    assert found.startswith(said) if said else not found

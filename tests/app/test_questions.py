"""What `np-latentode forecast` answers: at which times, and when a threshold is crossed."""

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx
from typer.testing import CliRunner

from np_latentode import (
    Fitted,
    OrnsteinUhlenbeckLikelihood,
    Scaling,
    Trajectories,
    crossing,
    forecast as draw,
    latent_ode,
    load,
    save,
    tidy_forecast,
)
from np_latentode.app.cli import app
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

DAY = pd.Timedelta("1D")


def make_table(zone=None):
    """Visits of five patients on dates; their last ones are on days 40, 55, 70, 85 and 100."""
    rng, rows = np.random.default_rng(0), []
    for k in range(5):
        days = np.append(np.sort(rng.choice(np.arange(1, 40), 3, replace=False)), 40 + 15 * k)
        when = pd.Timestamp("2024-01-01", tz=zone) + pd.to_timedelta(days, "D")
        bili = np.exp(rng.normal(size=4))
        rows.append(pd.DataFrame({"patient": f"{k}", "day": when, "total bili": bili, "b": bili}))
    return pd.concat(rows, ignore_index=True)


COLUMNS = dict(id="patient", time="day", values=["total bili", "b"], log=["total bili"])


def save_fit(directory, table, **options):
    """A fit as it is before training, which needs no time."""
    train = Trajectories.from_dataframe(table, **COLUMNS, **options)
    likelihood = OrnsteinUhlenbeckLikelihood(0.2, 0.5, 20.0)
    build = dict(likelihood=likelihood, scaling=Scaling.fit(train), rngs=nnx.Rngs(0))
    model, guide = latent_ode(train, latent_dim=2, **build)
    directory.mkdir()
    save(directory / "fit", Fitted(model, guide, initial_params(model, guide)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    table = make_table()
    table.to_csv(home / "labs.csv", index=False)
    save_fit(home / "run", table)
    save_fit(home / "first", table, since="first")
    counted = table.assign(day=(table["day"] - pd.Timestamp("2024-01-01")) / DAY)
    counted.to_csv(home / "counted.csv", index=False)
    save_fit(home / "counted", counted)
    zoned = make_table("UTC")
    zoned.assign(day=zoned["day"].astype(str)).to_csv(home / "zoned.csv", index=False)
    save_fit(home / "zoned", zoned)
    return home


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("forecast", *arguments)])


def times_of(output, column="day"):
    """The times of each id in a table of forecasts, of each feature the same."""
    table = pd.read_csv(output, dtype={"patient": str})
    assert np.isfinite(table["mean"]).all()
    found = {}
    for patient, rows in table.groupby("patient", sort=False):
        one, other = (part[column].tolist() for _, part in rows.groupby("feature"))
        assert one == other
        found[patient] = one
    return found


def forecast(home, output, *arguments, fit="run", data="labs.csv", draws=4):
    outcome = run(home / fit, home / data, *arguments, "--draws", draws, "-o", output)
    assert outcome.exit_code == 0, outcome.output
    return outcome


@pytest.mark.slow
def test_every_makes_a_time_at_each_step_after_the_last_visit(home, tmp_path):
    output = tmp_path / "out.csv"
    outcome = forecast(home, output, "--until", "2024-04-30", "--every", 15)
    assert outcome.stderr == ""
    # Day 120: the last visits are on days 40, 55, 70, 85 and 100.
    assert [len(times) for times in times_of(output).values()] == [5, 4, 3, 2, 1]
    assert times_of(output)["3"] == ["2024-04-10", "2024-04-25"]
    forecast(home, output, "--ahead", 30, "--every", 15, "--overwrite", "--plot")
    assert times_of(output)["4"] == ["2024-04-25", "2024-05-10"]
    assert (tmp_path / "out.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_id_that_is_shorter_than_a_step_is_left_out_with_a_warning(home, tmp_path):
    output = tmp_path / "out.csv"
    outcome = forecast(home, output, "--until", "2024-04-30", "--every", 50)
    assert [*times_of(output)] == ["0", "1", "2"]
    assert outcome.stderr == (
        "np-latentode forecast: 2 of 5 are not forecast, patient 3 for one: their last "
        "measurements are less than 50 before the end.\n"
    )


def read(home, name="labs.csv"):
    fitted = load(home / "run")
    origin = fitted.scaling.labels.origin
    return fitted, Trajectories.from_file(home / name, **COLUMNS, origin=origin)


@pytest.mark.slow
def test_what_pads_the_times_of_an_id_changes_no_forecast(home, tmp_path):
    forecast(home, tmp_path / "out.csv", "--until", "2024-04-30", "--every", 15)
    found = pd.read_csv(tmp_path / "out.csv", dtype={"patient": str})
    fitted, context = read(home)
    last = context.given.times[:, -1:]
    # Five times of each id, of which those after the end are not asked for.
    times = last + 15 * np.arange(1, 6)
    draws = draw(jax.random.key(0), fitted, context, times, num_samples=4)
    table = tidy_forecast(draws, times, context.names)
    expected = table[table["day"] <= "2024-04-30"].reset_index(drop=True)
    assert found["patient"].tolist() == expected["patient"].tolist()
    for name in ("mean", "sd", "q0.5"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3)


@pytest.mark.slow
def test_on_is_the_same_time_for_every_id_also_between_visits(home, tmp_path):
    output = tmp_path / "out.csv"
    forecast(home, output, "--on", "2024-06-30, 2024-03-01", "--on", "2024-06-30")
    assert times_of(output) == {key: ["2024-03-01", "2024-06-30"] for key in "01234"}
    forecast(home, output, "--on", "80.5,10", "--overwrite", fit="counted", data="counted.csv")
    assert times_of(output) == {key: [10.0, 80.5] for key in "01234"}
    forecast(home, output, "--on", "2024-05-01", "--overwrite", fit="first")
    assert times_of(output) == {key: ["2024-05-01"] for key in "01234"}
    zoned = ["--on", "2024-05-01T02:00+02:00", "--overwrite"]
    forecast(home, output, *zoned, fit="zoned", data="zoned.csv")
    assert times_of(output) == {key: ["2024-05-01T00:00Z"] for key in "01234"}


AT = pd.DataFrame(
    {
        "note": ["a", "b", "c", "d", "e"],
        "patient": ["3", "0", "3", "3", "1"],
        "day": ["2024-06-30", "2024-05-01", "2024-02-20", "2024-06-30", "2025-01-01"],
    }
)


@pytest.mark.slow
def test_at_asks_for_other_times_of_each_id(home, tmp_path):
    output = tmp_path / "out.csv"
    AT.to_csv(tmp_path / "times.csv", index=False)
    expected = {"0": ["2024-05-01"], "1": ["2025-01-01"], "3": ["2024-02-20", "2024-06-30"]}
    forecast(home, output, "--at", tmp_path / "times.csv")
    assert times_of(output) == expected
    # Counted from each first visit, the times of the table are the same.
    forecast(home, output, "--at", tmp_path / "times.csv", "--overwrite", fit="first")
    assert times_of(output) == expected
    days = pd.to_datetime(AT["day"])
    AT.assign(day=days, patient=AT["patient"].astype(int)).to_parquet(tmp_path / "times.parquet")
    forecast(home, output, "--at", tmp_path / "times.parquet", "--overwrite")
    assert times_of(output) == expected
    counted = AT.assign(day=(days - pd.Timestamp("2024-01-01")) / DAY)
    counted.to_csv(tmp_path / "counted.csv", index=False)
    options = ["--at", tmp_path / "counted.csv", "--overwrite"]
    forecast(home, output, *options, fit="counted", data="counted.csv")
    assert times_of(output) == {"0": [121.0], "1": [366.0], "3": [50.0, 181.0]}


@pytest.mark.slow
def test_a_table_of_times_alone_asks_them_of_all(home, tmp_path):
    output = tmp_path / "out.csv"
    AT[["day"]].to_csv(tmp_path / "times.csv", index=False)
    forecast(home, output, "--at", tmp_path / "times.csv")
    each = ["2024-02-20", "2024-05-01", "2024-06-30", "2025-01-01"]
    assert times_of(output) == dict.fromkeys("01234", each)
    forecast(home, output, "--at", tmp_path / "times.csv", "--overwrite", fit="first")
    assert times_of(output) == dict.fromkeys("01234", each)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "until or ahead must be given, or on or at in their place, and not both; got none"),
        (
            ["--ahead", 3, "--on", "2024-05-01,2024-06-01"],
            "and not both; got ahead 3.0 and on 2024-05-01,2024-06-01.",
        ),
        (["--at", "t.csv", "--until", "2025-01-01"], "and not both; got until 2025-01-01 and at"),
        (
            ["--on", "2024-05-01", "--every", 3],
            "points and every must be left out where on or at name the times; got every 3.0.",
        ),
        (["--at", "t.csv", "--points", 3], "where on or at name the times; got points 3."),
        (
            ["--ahead", 30, "--every", 3, "--points", 3],
            "points or every must be given, and not both; got points 3 and every 3.0.",
        ),
        (["--ahead", 30, "--every", 0], "every must be positive and finite; got 0.0."),
        (["--ahead", 30, "--every", "nan"], "every must be positive and finite; got nan."),
        (
            ["--ahead", 30, "--every", 40],
            "every must be no longer than the forecast; got 40.0, and patient 0 is forecast for 30",
        ),
        (
            ["--ahead", 30, "--every", 1e-9],
            "every must make at most 10000 times of each patient; got 1e-09, which makes 30000000",
        ),
        (["--on", "soon"], "on must be a date such as 2020-01-31, as 'day' is; got 'soon'."),
        (["--on", "2024-05-01,"], "on must be a date such as 2020-01-31, as 'day' is; got ''."),
        (["--on", "2023-05-01"], "on must not be before the times of the table fitted; got 2023"),
        (["--on", "9999-05-01"], "on must not lead further than the solver reaches; got 9999-05"),
        (["--at", "none.csv"], "none.csv cannot be read"),
        (["--at", "who.csv"], "who.csv must have the columns 'patient' and 'day', or 'day' alone"),
        (
            ["--at", "unknown.csv"],
            "unknown.csv: 2 rows cannot be read: column 'patient' must hold ids of the table to "
            "forecast; got '77' in line 3; column 'day' must hold numbers, ISO 8601 dates, or such "
            "dates with a zone, of one kind; got 'soon' in line 5.",
        ),
        (
            ["--at", "early.csv"],
            "early.csv: column 'day' must not hold times before those of the table fitted; got "
            "2023-05-01 in line 3.",
        ),
        (
            ["--at", "late.csv"],
            "must not hold times further than the solver reaches; got 9999-05-01 in line 2.",
        ),
        (["--at", "numbers.csv"], "must hold dates without a time zone in column 'day', as the"),
        (["--at", "zones.csv"], "as the table fitted; got dates with a time zone."),
        (["--at", "empty.csv"], "must hold at least one row below its header; got none."),
        (["--ahead", 3, "--threshold", "bili ~ 2"], "threshold must be a column, one of >, >=,"),
        (
            ["--ahead", 3, "--threshold", "bili > 2"],
            "threshold must name one of the columns ['total bili', 'b']; got 'bili' in 'bili > 2'.",
        ),
        (["--ahead", 3, "--threshold", "b > high"], "and a number, as in 'bili > 2'; got 'b > hig"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(
    home, arguments, message, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    AT.to_csv("t.csv", index=False)
    AT[["patient"]].to_csv("who.csv", index=False)
    wrong = AT.assign(patient=["3", "77", "3", "3", "1"])
    wrong.assign(day=[*AT["day"][:3], "soon", "2025-01-01"]).to_csv("unknown.csv", index=False)
    AT.assign(day=["2024-06-30", "2023-05-01", *AT["day"][2:]]).to_csv("early.csv", index=False)
    AT.assign(day=["9999-05-01", *AT["day"][1:]]).to_csv("late.csv", index=False)
    AT.assign(day=range(5)).to_csv("numbers.csv", index=False)
    AT.assign(day=AT["day"] + "T12:00Z").to_csv("zones.csv", index=False)
    AT[:0].to_csv("empty.csv", index=False)
    outcome = run(home / "run", home / "labs.csv", *arguments, "-o", "out.csv")
    assert outcome.exit_code == 2, outcome.output
    assert message in " ".join(outcome.output.split())
    assert not [*tmp_path.glob("out*")]


def test_a_date_before_an_id_s_own_start_is_refused(home, tmp_path):
    outcome = run(home / "first", home / "labs.csv", "--on", "2024-01-05", "-o", tmp_path / "o.csv")
    assert outcome.exit_code == 2
    assert "on must not be before the times of the table fitted; got 2024-01-05" in outcome.output
    table = pd.read_csv(home / "labs.csv", parse_dates=["day"], dtype={"patient": str})
    first = table.groupby("patient")["day"].min()
    late = first.index[first > "2024-01-05"][0]
    assert f"{first[late]:%Y-%m-%d} is the earliest time of patient {late}." in outcome.output


THRESHOLDS = ["--threshold", "total bili>1.5", "--threshold", "b <= 0.2"]


@pytest.mark.slow
def test_thresholds_are_answered_in_two_tables(home, tmp_path):
    output = tmp_path / "out.csv"
    options = ["--until", "2024-04-30", "--every", 5, *THRESHOLDS, "--plot"]
    outcome = forecast(home, output, *options, draws=200)
    crossings, first = tmp_path / "out.crossing.csv", tmp_path / "out.first_crossing.csv"
    assert outcome.output.splitlines()[1] == (
        f"probabilities of total bili>1.5, b <= 0.2 in {crossings}, first times in {first}"
    )
    rows, made = pd.read_csv(crossings, dtype={"patient": str}), pd.read_csv(output)
    expected = ["patient", "day", "feature", "threshold", "probability", "probability_by_then"]
    assert [*rows.columns] == expected
    assert rows.groupby("feature")["threshold"].unique().map(list).to_dict() == {
        "total bili": ["> 1.5"], "b": ["<= 0.2"],
    }  # fmt: skip
    bili = rows[rows["feature"] == "total bili"]
    assert len(bili) == (made["feature"] == "b").sum() == 16 + 13 + 10 + 7 + 4
    assert (rows["probability"] <= rows["probability_by_then"]).all()
    by_then = bili.groupby("patient")["probability_by_then"]
    assert by_then.apply(lambda p: p.is_monotonic_increasing).all()
    once = pd.read_csv(first, dtype={"patient": str})
    assert [*once.columns] == [
        "patient", "feature", "threshold", "q0.05", "q0.5", "q0.95", "probability",
    ]  # fmt: skip
    ever = once[once["feature"] == "total bili"].set_index("patient")
    np.testing.assert_allclose(ever["probability"], by_then.max(), atol=1e-12)
    for patient, row in ever.iterrows():
        for level in (0.05, 0.5, 0.95):
            when = row[f"q{level:g}"]
            assert pd.isna(when) == (row["probability"] < level)
            if not pd.isna(when):
                reached = bili[(bili["patient"] == patient) & (bili["day"] == when)]
                assert reached["probability_by_then"].item() >= level
    assert ever["q0.95"].isna().sum() > 0
    assert (tmp_path / "out.crossing.png").stat().st_size > 10_000
    for missing in (output, tmp_path / "out.png", crossings):
        missing.unlink()
    again = run(home / "run", home / "labs.csv", *options, "-o", output)
    assert again.exit_code == 2
    assert f"output must be new; got {first}, which exists (--overwrite)." in again.output


@pytest.mark.slow
def test_a_crossing_is_that_of_python(home, tmp_path):
    output = tmp_path / "out.tsv.gz"
    forecast(home, output, "--on", "2024-05-01,2024-06-01", *THRESHOLDS[:2], draws=300)
    rows = pd.read_csv(tmp_path / "out.crossing.tsv.gz", sep="\t")
    fitted, context = read(home)
    times = context.names.counted(["2024-05-01", "2024-06-01"])
    found = crossing(jax.random.key(0), fitted, context, times, "total bili > 1.5", num_samples=300)
    np.testing.assert_allclose(rows["probability"], found.probability.ravel(), atol=0.01)
    np.testing.assert_allclose(rows["probability_by_then"], found.by_then.ravel(), atol=0.01)
    assert rows["day"].tolist() == ["2024-05-01", "2024-06-01"] * 5


@pytest.mark.slow
def test_thresholds_change_no_forecast(home, tmp_path):
    options = ["--ahead", 30, "--points", 3]
    forecast(home, tmp_path / "with.csv", *options, *THRESHOLDS)
    forecast(home, tmp_path / "without.csv", *options)
    one, other = (pd.read_csv(tmp_path / name) for name in ("with.csv", "without.csv"))
    assert one.iloc[:, :3].equals(other.iloc[:, :3])
    np.testing.assert_allclose(one["mean"], other["mean"], rtol=1e-5)


def test_an_id_or_time_that_crossings_cannot_name_is_refused(tmp_path):
    table = make_table().rename(columns={"day": "probability"})
    table.to_csv(tmp_path / "labs.csv", index=False)
    names = COLUMNS | dict(time="probability")
    train = Trajectories.from_dataframe(table, **names)
    model, guide = latent_ode(train, latent_dim=2, scaling=Scaling.fit(train), rngs=nnx.Rngs(0))
    (tmp_path / "run").mkdir()
    save(tmp_path / "run" / "fit", Fitted(model, guide, initial_params(model, guide)))
    options = ["--ahead", 3, *THRESHOLDS, "-o", tmp_path / "out.csv"]
    outcome = run(tmp_path / "run", tmp_path / "labs.csv", *options)
    assert outcome.exit_code == 2
    assert "id and time must not be called feature, threshold, probability" in outcome.output

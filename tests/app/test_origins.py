"""Held-out forecasts from several origins, and their scores near and far from what was known."""

import json
from functools import partial

import jax
import numpy as np
import pandas as pd
import pytest
from still import NOISE, make_fitted
from typer.testing import CliRunner

from np_latentode import Trajectories
from np_latentode.app.cli import app
from np_latentode.app.held_out import score_held_out
from np_latentode.app.horizons import gaps, scored_by_thirds, thirds
from np_latentode.app.origins import Origins
from np_latentode.app.summaries import horizons_table, scores_table
from np_latentode.forecasts.scores import Forecasts, score

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEYS = tuple(jax.random.split(jax.random.key(0)))


def make_test(counts=(2, 3, 6, 12), seed=0):
    """Series of the model that stands still, each with its own number of times."""
    rng = np.random.default_rng(seed)
    series = []
    for n in counts:
        values = rng.normal(size=(1, 2)) + NOISE * rng.normal(size=(n, 2))
        series.append((np.sort(rng.uniform(0, 10, n)), values))
    return Trajectories.from_ragged(series)


def known(origins, i):
    """How many times are known at each origin of a trajectory, by the number of the origin."""
    test = make_test()
    who = [int(np.argmax((test.given.times == t).all(1))) for t in origins.context.given.times]
    rows = np.flatnonzero(np.array(who) == i)
    counts = np.asarray(origins.context.observed).sum(1)[rows]
    return dict(zip(origins.number[rows].tolist(), counts.tolist(), strict=True))


def test_one_origin_is_the_split_at_half():
    test = make_test()
    one, (context, target) = Origins.of(test, 1), test.split()
    np.testing.assert_array_equal(one.context.mask, context.mask)
    np.testing.assert_array_equal(one.target.values, target.values)
    assert one.shares == (0.5,)


def test_origins_roll_along_each_trajectory_and_count_once():
    origins = Origins.of(make_test(), 5)
    assert origins.shares == pytest.approx((1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6))
    # Of two visits, only the first can be known; of three, the first or the first two.
    assert known(origins, 0) == {1: 1}
    assert known(origins, 1) == {1: 1, 3: 2}
    assert known(origins, 2) == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert known(origins, 3) == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}
    both = np.asarray(origins.context.mask) & np.asarray(origins.target.mask)
    assert not both.any()
    assert (np.asarray(origins.target.observed).any(1)).all()


def test_the_middle_origin_has_each_id_once():
    context, target = Origins.of(make_test((6, 6, 12)), 3).middle()
    half, later = make_test((6, 6, 12)).split()
    np.testing.assert_array_equal(context.mask, half.mask)
    np.testing.assert_array_equal(target.mask, later.mask)


@pytest.fixture(scope="module")
def scored():
    """The scores from five origins, and those of each by itself."""
    fitted, train, test = make_fitted(), make_test((5,) * 20, seed=1), make_test((6, 6, 8, 12))
    put = partial(score_held_out, KEYS, fitted, train, test, 0.0)
    return put(), put(num_origins=5), test


@pytest.mark.slow
def test_scores_of_one_origin_are_those_of_the_split(scored):
    one, _, test = scored
    assert "origins" not in one.metrics
    assert "origin" not in one.held_out
    assert len(one.held_out) == np.asarray(test.split()[1].mask).sum()


@pytest.mark.slow
def test_pooled_scores_are_those_of_all_origins_together(scored):
    _, five, test = scored
    metrics = five.metrics
    assert metrics["held_out"] == len(test)
    each = metrics["origins"]
    assert [one["share"] for one in each] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    counts = np.array([one["values"] for one in each])
    assert counts.sum() == len(five.held_out) == sum(metrics["observed_count"].values())
    assert five.held_out["origin"].value_counts().sort_index().tolist() == counts.tolist()
    for name, pooled in metrics["methods"].items():
        crps = [one["methods"][name]["crps"] for one in each]
        rmse = [one["methods"][name]["rmse"] for one in each]
        assert np.average(crps, weights=counts) == pytest.approx(pooled["crps"])
        assert np.average(np.square(rmse), weights=counts) == pytest.approx(pooled["rmse"] ** 2)
    # More is known at later origins.
    ours = [one["methods"]["latent ODE"]["crps"] for one in each]
    assert ours[-1] < ours[0]


@pytest.mark.slow
def test_thirds_of_the_gap_have_the_scores_of_their_values(scored):
    for found in scored[:2]:
        metrics = found.metrics
        horizons = metrics["horizons"]
        assert horizons["longest_gap"] == sorted(horizons["longest_gap"])
        count = sum(metrics["observed_count"].values())
        weights = [len(part) for part in np.array_split(np.arange(count), 3)]
        for name, pooled in metrics["methods"].items():
            of_thirds = horizons["methods"][name]
            mean = np.average(of_thirds["crps"], weights=weights)
            assert mean == pytest.approx(pooled["crps"], rel=1e-5)
            mean = np.average(np.square(of_thirds["rmse"]), weights=weights)
            assert mean == pytest.approx(pooled["rmse"] ** 2, rel=1e-5)


def test_the_first_third_has_the_shortest_gaps():
    context, target = make_test().split()
    every, mask = gaps(context, target), np.asarray(target.mask)
    unit, rng = np.ones(2), np.random.default_rng(0)
    made = {"a": Forecasts(target.given.values + rng.normal(size=mask.shape))}
    found = scored_by_thirds(made, context, target, unit)
    longest = 0.0
    for k, third in enumerate(thirds(context, target)):
        assert longest <= every[third].min()
        longest = every[third].max()
        assert found["longest_gap"][k] == longest
        kept = np.zeros(mask.shape, bool)
        kept[tuple(index[third] for index in np.nonzero(mask))] = True
        assert found["methods"]["a"]["rmse"][k] == score(target.keep(kept), unit, made["a"])["rmse"]


def test_a_third_without_values_has_no_score():
    context, target = make_test((2,)).split()
    target = target.keep(np.broadcast_to(np.arange(2) == 0, target.mask.shape))
    made = {"latent ODE": Forecasts(target.given.values)}
    found = scored_by_thirds(made, context, target, np.ones(2))
    assert found["methods"]["latent ODE"]["crps"] == [0.0, None, None]
    assert found["longest_gap"][1:] == [None, None]
    metrics = {"horizons": found, "methods": {"latent ODE": {"crps": 0.0}}, "time_unit": None}
    assert horizons_table(metrics).splitlines()[3].split() == [
        "latent",
        "ODE,",
        "crps",
        "0.000",
        "-",
        "-",
    ]


def test_the_best_baseline_stands_beside_the_fit():
    scores = {"latent ODE": 0.3, "constant": 0.5, "last value": 0.4}
    thirds = {name: {"crps": [s, 2 * s, 3 * s], "rmse": [s] * 3} for name, s in scores.items()}
    metrics = {
        "horizons": {"longest_gap": [1.0, 20.0, 300.25], "methods": thirds},
        "methods": {name: {"crps": s} for name, s in scores.items()},
        "time_unit": "D",
    }
    head, gap, *rows = horizons_table(metrics).splitlines()[1:]
    assert head.split()[-3:] == ["near", "middle", "far"]
    assert gap.split() == ["up", "to", "(D)", "1", "20", "300"]
    assert [row.split("  ")[0] for row in rows] == [
        "latent ODE, crps", "last value, crps", "latent ODE, rmse", "last value, rmse",
    ]  # fmt: skip
    assert rows[1].split()[-3:] == ["0.400", "0.800", "1.200"]


def make_table(time="day"):
    rng, rows = np.random.default_rng(0), []
    for who in range(12):
        days = np.sort(rng.choice(100, 7, replace=False)).astype(float)
        x = rng.normal() + np.cos(days / 15)
        rows.append(pd.DataFrame({"who": who, time: days, "a": x}))
    return pd.concat(rows, ignore_index=True)


SMALL = ["--latent-dim", 2, "--members", 1, "--steps", 20, "--inference", "guide"]


def fit(home, *arguments, time="day"):
    make_table(time).to_csv(home / "labs.csv", index=False)
    columns = ["--id", "who", "--time", time, "--values", "a"]
    given = ["fit", home / "labs.csv", *columns, *SMALL, *arguments, "--output-dir", home / "run"]
    return CliRunner().invoke(app, [str(argument) for argument in given])


@pytest.mark.slow
def test_fit_scores_forecasts_from_as_many_origins_as_are_asked_for(tmp_path):
    outcome = fit(tmp_path, "--origins", 3)
    assert outcome.exit_code == 0, outcome.output
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["origins"] == 3
    # Of seven visits, 2, 4 and 6 are known.
    assert [one["values"] for one in metrics["origins"]] == [2 * 5, 2 * 3, 2 * 1]
    assert scores_table(metrics) in outcome.output
    assert "(Of forecasts from 3 origins, all together. rmse" in outcome.output
    assert horizons_table(metrics) in outcome.output
    held_out = pd.read_csv(tmp_path / "run" / "heldout.csv")
    assert held_out["origin"].value_counts().to_dict() == {1: 10, 2: 6, 3: 2}
    again = fit(tmp_path)
    assert again.exit_code == 2
    assert "Its settings differ in origins." in again.output


@pytest.mark.parametrize(
    ("arguments", "time", "message"),
    [
        (["--origins", 0], "day", "Invalid value for '--origins'"),
        (
            ["--origins", 2],
            "origin",
            "id and time must not be called origin, where several origins",
        ),
        (
            ["--origins", 2, "--holdout", 0],
            "day",
            "origins must be 1 where nothing is held out; got 2",
        ),
    ],
)
def test_origins_that_cannot_be_are_refused(tmp_path, arguments, time, message):
    outcome = fit(tmp_path, *arguments, time=time)
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.output.split())
    assert not (tmp_path / "run").exists()

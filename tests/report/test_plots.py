"""Figures show the data, draws and names that they are given."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.dates import date2num
from matplotlib.image import imread
from matplotlib.lines import Line2D

from np_latentode import (
    History,
    Limits,
    Trajectories,
    plot_forecasts,
    plot_latent,
    plot_training,
)
from np_latentode.report.panels import DATA, MODEL, TRUTH

RNG = np.random.default_rng(0)
TIMES = np.linspace(0.0, 4.0, 9)
WHEN = np.sort(RNG.uniform(0, 4, (3, 6)), axis=1)
VALUES = RNG.normal(size=(3, 6, 2))
VALUES[0, 1, 0] = np.nan
ALL = Trajectories(WHEN, VALUES)
DRAWS = {"x": RNG.normal(size=(200, 3, 9, 2)), "x_mean": np.zeros((200, 3, 9, 2))}


def curve(axis, label):
    (line,) = (line for line in axis.get_lines() if line.get_label() == label)
    assert isinstance(line, Line2D)
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def points(axis, label):
    return np.column_stack(curve(axis, label))


def test_a_fan_has_the_quantiles_of_the_draws():
    axis = plot_forecasts(ALL, DRAWS, TIMES, levels=[0.5, 0.9]).axes[0]
    np.testing.assert_allclose(points(axis, "median")[:, 1], np.median(DRAWS["x"][:, 0, :, 0], 0))
    for band, level in zip(axis.collections, (0.9, 0.5), strict=True):
        corners = band.get_paths()[0].vertices
        low, high = np.quantile(DRAWS["x"][:, 0, :, 0], [(1 - level) / 2, (1 + level) / 2], axis=0)
        for time, bottom, top in zip(TIMES, low, high, strict=True):
            heights = corners[corners[:, 0] == time, 1]
            assert {bottom, top} <= set(heights)


def test_times_in_any_order_draw_the_same_fan():
    order = RNG.permutation(len(TIMES))
    shuffled = {name: draws[:, :, order] for name, draws in DRAWS.items()}
    figure, other = plot_forecasts(ALL, DRAWS, TIMES), plot_forecasts(ALL, shuffled, TIMES[order])
    np.testing.assert_array_equal(points(figure.axes[0], "median"), points(other.axes[0], "median"))


def test_at_a_single_time_the_fan_is_a_bar_and_a_dot():
    once = {name: x[:, :, :1] for name, x in DRAWS.items()}
    # Where another trajectory is asked for at several times, the single one is repeated.
    single, repeated = (once, TIMES[:1], 6, "o"), (DRAWS, np.full(9, 4.0), 6, "o")
    for draws, times, width, marker in (single, repeated, (DRAWS, TIMES, 0, "")):
        axis = plot_forecasts(ALL, draws, times).axes[0]
        assert {float(band.get_linewidth()[0]) for band in axis.collections} == {width}
        (median,) = [line for line in axis.get_lines() if line.get_label() == "median"]
        assert median.get_marker() == marker


def test_context_and_target_are_distinguished_and_missing_values_are_left_out():
    axes = plot_forecasts(ALL.before(2.0), DRAWS, TIMES, target=ALL.after(2.0), count=3).axes
    for (j, i), axis in zip(np.ndindex(2, 3), axes, strict=True):
        for label, early in (("seen", True), ("not seen", False)):
            expected = ~np.isnan(VALUES[i, :, j]) & ((WHEN[i] <= 2.0) == early)
            shown = points(axis, label)
            np.testing.assert_allclose(shown[:, 0], WHEN[i, expected], rtol=1e-6)
            np.testing.assert_allclose(shown[:, 1], VALUES[i, expected, j], rtol=1e-6)


def test_limits_and_errors_are_told_from_values_that_are_known():
    lower, upper = np.full((2, 3, 6, 2), np.nan)
    lower[0, 0, 0], upper[0, 0, 0] = -np.inf, 0.5
    lower[0, 2, 0], upper[0, 2, 0] = 2.0, np.inf
    lower[0, 3, 0], upper[0, 3, 0] = 1.0, 2.0
    some = Trajectories(
        WHEN, VALUES, error=np.full(VALUES.shape, 0.25), limits=Limits(lower, upper)
    )
    axis = plot_forecasts(some, DRAWS, TIMES).axes[0]
    for k, (kind, marker, x) in enumerate((("below", "v", 0.5), ("above", "^", 2.0))):
        (line,) = [line for line in axis.get_lines() if line.get_label() == f"seen, {kind}"]
        assert line.get_marker() == marker
        np.testing.assert_allclose(line.get_xydata(), [[WHEN[0, 2 * k], x]])
    np.testing.assert_allclose(points(axis, "seen, between"), [[WHEN[0, 3], 1.5]])
    np.testing.assert_allclose(points(axis, "seen")[:, 0], WHEN[0, [4, 5]])
    (bars,) = axis.collections[-1:]
    heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
    np.testing.assert_allclose(heights, 0.5)


def test_panels_have_the_given_names():
    figure = plot_forecasts(
        ALL, DRAWS, TIMES, feature_names=["pulse", "pressure"], trajectory_names=["Ann", "Bo", "Cy"]
    )
    assert [axis.get_title() for axis in figure.axes[:3]] == ["Ann", "Bo", "Cy"]
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["pulse", "pressure"]


def test_of_zeros_and_ones_the_probability_is_shown():
    p = RNG.uniform(size=(200, 3, 9, 2))
    bits = DRAWS["x"].copy()
    bits[..., 1] = RNG.uniform(size=p.shape[:-1]) < p[..., 1]
    data = Trajectories(WHEN, np.stack([VALUES[..., 0], VALUES[..., 1] > 0], axis=-1))
    figure = plot_forecasts(data, {"x": bits, "x_mean": p}, TIMES, count=3, levels=[0.9])
    number, probability = figure.axes[0], figure.axes[3]
    np.testing.assert_allclose(points(number, "median")[:, 1], np.median(bits[:, 0, :, 0], 0))
    np.testing.assert_allclose(points(probability, "probability")[:, 1], p[:, 0, :, 1].mean(0))
    corners = probability.collections[0].get_paths()[0].vertices
    bounds = np.quantile(p[:, 0, :, 1], [(1 - 0.9) / 2, (1 + 0.9) / 2], axis=0)
    assert {*bounds.ravel()} <= {*corners[:, 1]}
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [
        "90% of new values", "median", "seen", "90% of draws of the probability", "probability",
    ]  # fmt: skip


def visits(**options):
    df = pd.DataFrame(
        {
            "who": ["a", "a", "b"],
            "day": pd.to_datetime(["2020-01-01", "2020-03-01", "2020-02-01"]),
            "bili": [1.0, 100.0, 10.0],
            "chol": [-1.0, 1.0, 0.0],
        }
    )
    names = dict(id="who", time="day", values=["bili", "chol"])
    return Trajectories.from_dataframe(df, **names, **options)


@pytest.mark.slow
def test_logarithms_and_dates_are_shown_as_the_table_had_them():
    context, times = visits(log=["bili"]), np.arange(90.0)
    x = np.exp(RNG.normal(size=(200, 2, 90, 2)))
    figure = plot_forecasts(context.before(31), {"x": x}, times, target=context.after(31))
    assert [axis.get_yscale() for axis in figure.axes[:4]] == ["log", "log", "linear", "linear"]
    first = figure.axes[0]
    days, median = curve(first, "median")
    assert (days - np.datetime64("2020-01-01")).tolist() == [dt.timedelta(t) for t in range(90)]
    np.testing.assert_allclose(median, np.median(x[:, 0, :, 0], axis=0))
    for label, when, value in (("seen", "2020-01-01", 1.0), ("not seen", "2020-03-01", 100.0)):
        days, values = curve(first, label)
        assert days.tolist() == [pd.Timestamp(when)]
        np.testing.assert_allclose(values, [value], rtol=1e-6)
    ends = [line.get_xdata() for line in first.get_lines() if line.get_linestyle() == ":"]
    assert np.asarray(ends, "datetime64[us]").tolist() == [[pd.Timestamp("2020-01-01")] * 2]
    figure.canvas.draw()
    assert {"Feb", "Mar"} < {text.get_text() for text in first.get_xticklabels()}
    assert len(first.get_xticklabels()) < 9


@pytest.mark.parametrize("years", [0.1, 1.0, 2.4, 3.6, 10.0])
def test_dates_have_a_few_ticks_however_long_they_last(years):
    times = np.linspace(0, 365.25 * years, 5)
    figure = plot_forecasts(visits().before(0), {"x": RNG.normal(size=(9, 2, 5, 2))}, times)
    figure.canvas.draw()
    low, high = figure.axes[0].get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in figure.axes[0].get_xticks()) <= 6


@pytest.mark.parametrize("width", [1e-3, 0.1, 1.0, 10.0, 100.0])
def test_a_log_scale_has_a_few_plain_numbers_however_wide_it_is(width):
    x = np.exp(RNG.normal(0.3, width, size=(200, 2, 5, 2)))
    figure = plot_forecasts(visits(log="bili")[:1].after(1e9), {"x": x[:, :1]}, np.arange(5.0))
    axis = figure.axes[0]
    figure.canvas.draw()
    low, high = axis.get_ylim()
    # Figures write a minus sign, which float does not read, instead of a hyphen.
    labels = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in axis.get_yticklabels()]
    shown = [float(label) for label in labels if label]
    assert 2 <= sum(low <= value <= high for value in shown) <= 9


def test_codes_are_compared_with_the_quantiles_of_any_prior():
    z0 = RNG.gamma(2.0, size=(4_000, 2))
    figure = plot_latent(z0, RNG.gamma(2.0, size=(4_000, 2)))
    for qq in figure.axes[2:]:
        line = qq.get_lines()[-1]
        ours, expected = np.asarray(line.get_ydata()), np.asarray(line.get_xdata())
        np.testing.assert_allclose(ours[:-5], expected[:-5], rtol=0.15, atol=0.1)


def test_colors_differ_in_grey():
    greys = sorted(float(np.dot(to_rgb(c), (0.299, 0.587, 0.114))) for c in (TRUTH, MODEL, DATA))
    assert np.diff([*greys, 1.0]).min() > 0.2


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot_forecasts(ALL[:2], DRAWS, TIMES), "draws must be of as many .* 2; got 3"),
        (
            lambda: plot_forecasts(ALL, DRAWS, TIMES, target=ALL[:2]),
            "target must be of as many trajectories as the context, 3; got 2",
        ),
        (
            lambda: plot_forecasts(
                visits(), {"x": DRAWS["x"][:, :2]}, TIMES, target=visits(unit="W")
            ),
            "target must be read as the context was, .* times in D .* got .* times in W",
        ),
        (lambda: plot_latent(np.zeros((5, 2)), np.zeros((5, 3))), r"z0 and prior must be .*\(5, 3"),
    ],
)
def test_arguments_that_do_not_match_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_step_that_was_kept_is_marked():
    scores = np.array([3.0, 1.0, 2.0])
    history = History(np.linspace(9, 1, 300), np.array([100, 200, 300]), scores, np.arange(3.0))
    upper, lower = plot_training(history.losses, num_trajectories=10, history=history).axes
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), scores)
    assert lower.lines[1].get_xdata()[0] == 200
    assert upper.get_xlim() == lower.get_xlim()


@pytest.mark.parametrize(
    ("first", "last"), [(800, -55), (5, 1.2), (1e6, 30), (60, 40), (-10, -300), (1e20, -2), (0, 0)]
)
def test_three_to_nine_plain_numbers_stand_beside_the_loss(first, last):
    losses = last + (first - last) * np.exp(-np.arange(300) / 20)
    axis = plot_training(losses, num_trajectories=1).axes[0]
    low, high = axis.get_ylim()
    shown = [tick for tick in axis.get_yticks() if low <= tick <= high]
    assert 3 <= len(shown) <= 9


def test_a_figure_is_a_picture(tmp_path):
    figure = plot_training(np.linspace(100, -50, 300), num_trajectories=10, best=-6.0)
    figure.savefig(tmp_path / "training.png")
    assert imread(tmp_path / "training.png").std() > 0.02


def test_events_are_marked_at_the_bottom_by_the_names_of_their_inputs():
    rows = [("a", 0.0, 1.0, None), ("a", 2.0, 2.0, None), ("b", 0.0, 1.0, None)]
    rows += [("b", 1.5, None, 3.0), ("b", 2.0, 2.0, 0.0), ("b", 99.0, None, 1.0)]
    table = pd.DataFrame(rows, columns=["who", "day", "x", "dose"])
    columns = dict(id="who", time="day", values="x", inputs={"dose": "event"})
    draws = {"x": RNG.normal(size=(20, 2, 9, 1))}
    dated = table.assign(day=pd.Timestamp("2020-01-31") + pd.to_timedelta(table["day"], "D"))
    for frame, at in ((table, 1.5), (dated, date2num(dt.datetime(2020, 2, 1, 12)))):
        data = Trajectories.from_dataframe(frame, **columns)
        figure = plot_forecasts(data, draws, TIMES)
        assert not len(points(figure.axes[0], "dose"))
        np.testing.assert_allclose(points(figure.axes[1], "dose"), [[at, 0.03]])
        assert "dose" in [text.get_text() for text in figure.legends[0].get_texts()]
    plain = Trajectories.from_dataframe(table.assign(dose=np.nan), **columns)
    figure = plot_forecasts(plain, draws, TIMES)
    assert "dose" not in [text.get_text() for text in figure.legends[0].get_texts()]

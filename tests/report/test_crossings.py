"""Figures of crossings show the probabilities that they are given."""

import numpy as np
import pytest
from matplotlib.dates import ConciseDateFormatter

from np_latentode import Crossing, Labels, plot_crossings

RNG = np.random.default_rng(0)
TIMES = RNG.uniform(0, 9, (5, 6))
DRAWS = {"signal": RNG.normal(size=(40, 5, 6, 2))}


def made(text, ids="abcde", **options):
    return Crossing.of(DRAWS, TIMES, text, Labels(tuple(ids), ("bili", "b"), **options))


def test_each_panel_has_both_probabilities_in_the_order_of_time():
    several = [made("bili > 1"), made("b <= -0.5")]
    figure = plot_crossings(several, count=3)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["id a", "id b", "id c"]
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["P(bili > 1)", "P(b <= -0.5)"]
    for (j, i), axis in zip(np.ndindex(2, 3), figure.axes, strict=True):
        order = np.argsort(TIMES[i])
        for line, name in zip(axis.get_lines(), ("by_then", "probability"), strict=True):
            np.testing.assert_array_equal(line.get_xdata(), TIMES[i, order])
            expected = getattr(several[j], name)[i, order]
            np.testing.assert_array_equal(line.get_ydata(), expected)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["by then", "at the time"]


def test_times_are_those_of_the_table():
    origin = dict(origin=np.datetime64("2024-01-01", "us"), unit="D", time="day", zone=True)
    axis = plot_crossings([made("b > 0", **origin)]).axes[0]
    assert axis.get_xlabel() == "day (UTC)"
    assert isinstance(axis.xaxis.get_major_formatter(), ConciseDateFormatter)


def test_probabilities_at_a_single_time_are_dots():
    draws = {"signal": DRAWS["signal"][:, :, :1]}
    labels = Labels(tuple("abcde"), ("bili", "b"))
    once = plot_crossings([Crossing.of(draws, TIMES[:, :1], "b > 0", labels)]).axes[0]
    often = plot_crossings([made("b > 0")]).axes[0]
    assert [line.get_marker() for line in once.get_lines()] == ["o", "o"]
    assert {line.get_marker() for line in often.get_lines()} == {""}


def test_crossings_of_different_trajectories_are_refused():
    for several in ([], [made("b > 0"), made("b > 1", ids="vwxyz")]):
        with pytest.raises(ValueError, match="crossings must be at least one, all of the same tra"):
            plot_crossings(several)

"""Figures show what they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from matplotlib.lines import Line2D

from np_latentode import Trajectories
from np_latentode.plots import DATA, MODEL, TRUTH, plot_forecasts, plot_latent, plot_training

RNG = np.random.default_rng(0)
TIMES = np.linspace(0.0, 4.0, 9)
WHEN = np.sort(RNG.uniform(0, 4, (3, 6)), axis=1)
VALUES = RNG.normal(size=(3, 6, 2))
VALUES[0, 1, 0] = np.nan
ALL = Trajectories(WHEN, VALUES)
DRAWS = {"x": RNG.normal(size=(200, 3, 9, 2)), "x_mean": np.zeros((200, 3, 9, 2))}


def points(axis, label):
    (line,) = (line for line in axis.get_lines() if line.get_label() == label)
    assert isinstance(line, Line2D)
    return np.column_stack([np.asarray(line.get_xdata()), np.asarray(line.get_ydata())])


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


def test_what_was_seen_and_what_was_not_are_told_apart_and_holes_are_left_out():
    axes = plot_forecasts(ALL.before(2.0), DRAWS, TIMES, target=ALL.after(2.0), count=3).axes
    for (j, i), axis in zip(np.ndindex(2, 3), axes, strict=True):
        for label, early in (("seen", True), ("not seen", False)):
            expected = ~np.isnan(VALUES[i, :, j]) & ((WHEN[i] <= 2.0) == early)
            shown = points(axis, label)
            np.testing.assert_allclose(shown[:, 0], WHEN[i, expected], rtol=1e-6)
            np.testing.assert_allclose(shown[:, 1], VALUES[i, expected, j], rtol=1e-6)


def test_names_are_those_that_were_given():
    figure = plot_forecasts(
        ALL, DRAWS, TIMES, feature_names=["pulse", "pressure"], trajectory_names=["Ann", "Bo", "Cy"]
    )
    assert [axis.get_title() for axis in figure.axes[:3]] == ["Ann", "Bo", "Cy"]
    assert [figure.axes[k].get_ylabel() for k in (0, 3)] == ["pulse", "pressure"]


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
            "target must have as many trajectories as the context, 3; got 2",
        ),
        (lambda: plot_latent(np.zeros((5, 2)), np.zeros((5, 3))), r"z0 and prior must be .*\(5, 3"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_figure_is_a_picture(tmp_path):
    figure = plot_training(np.linspace(100, -50, 300), num_trajectories=10, best=-6.0)
    figure.savefig(tmp_path / "training.png")
    assert imread(tmp_path / "training.png").std() > 0.02

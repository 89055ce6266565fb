"""Public names are one flat list, and every room says in a line what lives there."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import np_latentode

PACKAGE = Path(np_latentode.__file__).parent
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("name", np_latentode.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(np_latentode, name).__doc__


def test_the_list_is_that_of_the_stub():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    listed = [alias.name for node in stub.body for alias in node.names]
    assert sorted(listed) == sorted(np_latentode.__all__)


def test_a_name_that_does_not_exist_is_no_attribute():
    with pytest.raises(AttributeError):
        np_latentode.forecasting  # noqa: B018


@pytest.mark.parametrize(
    ("imported", "without"),
    [
        ("np_latentode import Trajectories, fit, forecast, latent_ode", {"pandas", "xarray"}),
        ("np_latentode.app.forecast_table import forecast_table", set()),
    ],
    ids=["names", "forecast"],
)
def test_model_fit_and_forecast_import_no_figures_or_tests_of_significance(imported, without):
    """Each of these takes a fifth of the time in which all else is imported, or more."""
    script = f"import sys\nfrom {imported}\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = without | {"matplotlib", "arviz", "arviz_stats", "orbax", "scipy.stats"}
    assert not heavy & {*done.stdout.split()}


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_every_room_says_in_a_line_what_lives_there(room):
    doc = importlib.import_module(f"np_latentode.{room.name}").__doc__
    assert doc
    assert len(doc.splitlines()) == 1


def test_every_room_has_a_room_of_tests():
    tests = Path(__file__).parent
    assert {room.name for room in ROOMS} <= {path.name for path in tests.iterdir()}

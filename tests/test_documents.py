"""The Python in README and docs/ runs, block after block, as a reader would paste it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from np_latentode import Fitted, LatentODE, Trajectories
from np_latentode.inference import nuts

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def make_table():
    """Labs of some patients, at days of their own, not always measured."""
    rng = np.random.default_rng(0)
    patients = []
    for patient in range(12):
        days = np.sort(rng.uniform(0, 365, rng.integers(3, 9)))
        labs = np.stack([np.sin(days / 50), np.cos(days / 80)], axis=-1)
        labs[rng.uniform(size=labs.shape) < 0.2] = np.nan
        columns = {"patient": patient, "day": days, "bili": labs[:, 0], "albumin": labs[:, 1]}
        patients.append(pd.DataFrame(columns))
    return pd.concat(patients)


def pasted(document):
    """What is defined once the blocks of a document were run, with 20 steps in the place of 5,000.

    `df` and `others` are what the text speaks of without saying where they come from.
    """
    columns = dict(id="patient", time="day", values=["bili", "albumin"])
    df = make_table()
    names = {"df": df, "others": Trajectories.from_dataframe(df[df["patient"] < 6], **columns)}
    for block in BLOCK.findall(document.read_text()):
        exec(compile(block.replace("5_000", "20"), document.name, "exec"), names)
    return names


def check_readme(names, path):
    assert names["low"].shape == names["high"].shape == (12, 100, 2)
    assert jnp.all(names["low"] <= names["high"])
    assert isinstance(names["fitted"], Fitted)
    assert np.isfinite(names["draws"]["x"]).all()


def check_tables(names, path):
    assert {"patient", "day", "feature", "mean", "sd"} < set(names["table"].columns)
    assert (path / "forecasts.png").stat().st_size > 0
    assert jax.tree.leaves(names["fitted"].params)


def check_numpyro(names, path):
    assert np.isfinite([names["whole"].elpd, names["ahead"].elpd]).all()
    assert names["tree"].posterior["z0"].shape[1:] == (1000, 3, 4)
    assert (path / "fit.nc").stat().st_size > 0


def check_parts(names, path):
    assert isinstance(names["model"], LatentODE)
    assert {"frequency", "damping"} < names["model"].trained


CHECKS = {
    "README.md": check_readme,
    "tables.md": check_tables,
    "numpyro.md": check_numpyro,
    "parts.md": check_parts,
}


# Twenty steps make no good model, and ArviZ says so.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_every_block_runs(name, tmp_path, monkeypatch, compile_quickly):
    monkeypatch.chdir(tmp_path)
    # Chains that are extended are compiled anew, twice.
    monkeypatch.setattr(nuts, "NUM_REPEATS", 0)
    (document,) = (path for path in DOCUMENTS if path.name == name)
    CHECKS[name](pasted(document), tmp_path)
    plt.close("all")


def test_every_document_with_python_is_run():
    assert {path.name for path in DOCUMENTS if BLOCK.search(path.read_text())} == set(CHECKS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), link


def test_the_readme_fits_on_two_screens():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 130

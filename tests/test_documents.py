"""What README and docs/ say holds: their Python runs block after block, as a reader would paste it.

Commands, links and lists lead to what is there.
"""

import re
import tomllib
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from typer.main import get_command

import np_latentode
from np_latentode import Fitted, LatentODE, Trajectories, exact_posterior
from np_latentode.app.cli import app
from np_latentode.inference import nuts

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [
    *DOCUMENTS,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
]
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
        columns["age"] = 40 + patient
        patients.append(pd.DataFrame(columns))
    return pd.concat(patients)


def pasted(document):
    """The names that the blocks of a document define, with 20 training steps in place of 5,000."""
    return after(*BLOCK.findall(document.read_text()))


@cache
def after(*blocks):
    """The names that the blocks define; those with which two documents begin are run once.

    `df` and `others` are used in the texts, but not defined there.
    """
    if not blocks:
        columns = dict(id="patient", time="day", values=["bili", "albumin"])
        df = make_table()
        return {"df": df, "others": Trajectories.from_dataframe(df[df["patient"] < 6], **columns)}
    names = dict(after(*blocks[:-1]))
    exec(compile(blocks[-1].replace("5_000", "20"), f"block {len(blocks)}", "exec"), names)
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
    assert names["tree"].posterior["z0"].shape == (4, 200, 3, 4)
    assert (path / "fit.nc").stat().st_size > 0
    assert len(names["ensemble"].members) == 3
    assert len(names["mixed"]["member"]) == len(names["mixed"]["x"]) == 200


def check_parts(names, path):
    assert isinstance(names["model"], LatentODE)
    assert {"frequency", "damping"} < names["model"].trained


def check_devices(names, path):
    assert np.isfinite(names["draws"]["x"]).all()
    assert len(names["ensemble"].members) == 3


def check_physiome(names, path):
    assert [len(names[part]) for part in ("train", "context", "target")] == [90, 10, 10]
    assert len(names["fitted"].members) >= 1


CHECKS = {
    "README.md": check_readme,
    "tables.md": check_tables,
    "numpyro.md": check_numpyro,
    "parts.md": check_parts,
    "devices.md": check_devices,
    "physiome.md": check_physiome,
}


# Twenty steps make no good model, and ArviZ says so.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_every_block_runs(name, tmp_path, monkeypatch, compile_quickly):
    monkeypatch.chdir(tmp_path)
    # Chains that are extended are compiled anew, twice.
    monkeypatch.setattr(nuts, "NUM_REPEATS", 0)
    few = partial(exact_posterior, num_warmup=200, num_samples=200)
    monkeypatch.setattr(np_latentode, "exact_posterior", few)
    (document,) = (path for path in DOCUMENTS if path.name == name)
    CHECKS[name](pasted(document), tmp_path)
    plt.close("all")


def test_every_document_with_python_is_run():
    assert {path.name for path in DOCUMENTS if BLOCK.search(path.read_text())} == set(CHECKS)


@pytest.mark.parametrize("document", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target.read_text()), link


def anchors(text):
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", TEXTS, ids=lambda path: path.name)
def test_commands_have_the_options_that_are_shown(document):
    commands = get_command(app).commands
    text = document.read_text().replace("\\\n", " ")
    for name, rest in re.findall(r"(?:\$ |`)np-latentode (\w+)([^`\n]*)", text):
        options = {option for param in commands[name].params for option in param.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", rest)) <= options


def test_the_table_of_parts_is_complete():
    rows = re.findall(
        r"^\| `\w+` \|.*\|(.*)\|$", (ROOT / "docs/parts.md").read_text(), re.MULTILINE
    )
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    public = {name: getattr(np_latentode, name) for name in np_latentode.__all__}
    parts = {
        name
        for name, value in public.items()
        if getattr(value, "__module__", "").startswith("np_latentode.parts.")
    }
    assert sorted(listed) == sorted(parts - {"MixedModel", "Solver", "choose_degree"})


def test_the_tree_of_rooms_is_that_of_the_import_contract():
    rooms = re.findall(r"^[├└]── (\w+)/", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    assert rooms == contract["layers"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("document", TEXTS, ids=lambda path: path.name)
def test_paragraphs_are_wrapped(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "!"))]
    assert max(map(len, lines)) <= 110

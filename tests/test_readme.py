"""The Python in the README runs, block after block, as a reader would paste it."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from np_latentode import ODERNN, DiagonalNormal, MLPDecoder, MLPDynamics, Scaling, Trajectories
from np_latentode.inference import nuts as exact

README = Path(__file__).parents[1] / "README.md"


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


# Twenty steps make no good model, and ArviZ says so.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
@pytest.mark.slow
def test_every_block_runs(tmp_path, monkeypatch, compile_quickly):
    monkeypatch.chdir(tmp_path)
    # Chains that go on are compiled anew, twice.
    monkeypatch.setattr(exact, "NUM_REPEATS", 0)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    rngs = nnx.Rngs(0)
    # What the text speaks of without saying how it came about.
    names = {
        "df": make_table(),
        "others": Trajectories.from_dataframe(
            make_table().query("patient < 6"),
            id="patient",
            time="day",
            values=["bili", "albumin"],
        ),
        "MyField": lambda *_: MLPDynamics(4, rngs=rngs),
        "MyEncoder": lambda *_: ODERNN(2, rngs=rngs),
        "dynamics": MLPDynamics(4, rngs=rngs),
        "decoder": MLPDecoder(4, 2, rngs=rngs),
        "encoder": ODERNN(2, rngs=rngs),
        "posterior": DiagonalNormal(16, 4, rngs=rngs),
        "scaling": Scaling.identity(2),
    }
    for block in blocks:
        shorter = block.replace("5_000", "20")
        exec(compile(shorter, "README.md", "exec"), names)
    assert np.isfinite(names["draws"]["x"]).all()
    assert isinstance(names["patients"], Trajectories)
    assert names["low"].shape == names["high"].shape
    assert jnp.all(names["low"] <= names["high"])
    assert jax.tree.leaves(names["result"].params)
    assert np.isfinite([names["whole"].elpd, names["future"].elpd]).all()
    assert (tmp_path / "fit.nc").stat().st_size > 0
    plt.close("all")

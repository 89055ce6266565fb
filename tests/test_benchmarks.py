"""Benchmarks are scripts of the repository: they follow the package that they measure."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NEEDS_TORCH = "rubanova"
SCRIPTS = sorted(
    path
    for path in (*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("peer/*.py"))
    if path.stem != NEEDS_TORCH
)


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    for folder in (BENCHMARKS, BENCHMARKS / "peer"):
        monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_finds_what_it_imports(path):
    assert importlib.import_module(path.stem).__doc__


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours", "example", "notebook"])
def test_a_peer_trains_in_parts_and_draws_curves(name):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 3, (6, 8)), axis=1).astype(np.float32)
    values = np.stack([np.sin(times), np.cos(times)], axis=-1)
    sizes = dict(batch_size=4, latent_dim=2, num_steps=300, seed=0)
    peer = importlib.import_module(name).Peer(times, values, **sizes)
    curves = []
    for count in (1, 100, 5):
        peer.train(count)
        curves.append(peer.curves(times, values, np.ones(times.shape, bool), times))
    for curve in curves:
        assert curve.shape == values.shape
        assert np.isfinite(curve).all()
    errors = [np.square(curve - values).mean() for curve in curves]
    assert errors[1] != errors[0]
    assert errors[2] != errors[1]

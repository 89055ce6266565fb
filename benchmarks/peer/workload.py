"""Writes the workload of benchmarks/peers.py to a file that every peer can read.

    python benchmarks/peer/workload.py FILE.npz

200 noisy spirals to train on, those of the demo, and 200 fresh ones with their noiseless curves.
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from np_latentode import datasets
from np_latentode.studies.spirals_scores import CUT


def main(path: str) -> None:
    family = datasets.SpiralFamily()
    train = family.sample(jax.random.key(0), 250)[:200]
    fresh = family.sample(jax.random.key(1_000), 500)[:200]
    arrays = {"dense": family.dense_times, "curves": fresh.curves, "cut": CUT}
    for name, spirals in (("train", train), ("fresh", fresh)):
        arrays |= {f"{name}_times": spirals.times, f"{name}_values": spirals.values}
    np.savez(path, **{name: np.asarray(array, np.float32) for name, array in arrays.items()})


if __name__ == "__main__":
    main(sys.argv[1])

"""The process of one peer: it trains and scores when benchmarks/peers.py asks for it.

It reads one JSON object a line from the standard input, {"call": NAME, ...}, and answers in one.
Every answer has the seconds that the process has computed so far, of all its threads.

A peer is a module with

    Peer(times, values, *, batch_size, latent_dim, num_steps, seed)  NumPy arrays, float32
    peer.train(count)                                                takes steps, and waits for them
    peer.curves(times, values, seen, at)                             decodes the posterior's mean

`times` (trajectory, slot) and `values` (trajectory, slot, 2) are observations, `seen`
(trajectory, slot) says which of them may be read, always the first ones of a trajectory, and `at`
(trajectory, query) are the times of the curves. No query is before the first observation.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from typing import Any

import numpy as np

BATCH_SIZE, LATENT_DIM = 50, 4


class Worker:
    """What can be called."""

    def __init__(self, module: Any, path: str):
        self.module, self.data = module, dict(np.load(path))

    def start(self, num_steps: int, seed: int) -> dict[str, Any]:
        """Builds the peer, and takes the first step, which compiles."""
        times, values = self.data["train_times"], self.data["train_values"]
        sizes = dict(batch_size=BATCH_SIZE, latent_dim=LATENT_DIM)
        self.peer = self.module.Peer(times, values, **sizes, num_steps=num_steps, seed=seed)
        self.peer.train(1)
        return {}

    def train(self, count: int) -> dict[str, Any]:
        before = time.process_time(), time.perf_counter()
        self.peer.train(count)
        after = time.process_time(), time.perf_counter()
        return {"seconds": after[0] - before[0], "wall": after[1] - before[1]}

    def score(self) -> dict[str, Any]:
        """Mean squared errors of curves of fresh spirals, from their first observation on."""
        times, values, dense = (self.data[k] for k in ("fresh_times", "fresh_values", "dense"))
        at = np.maximum(dense, times[:, :1])
        scores = {}
        for task, seen, scored in (
            ("reconstruction", np.ones(times.shape, bool), dense >= times[:, :1]),
            ("extrapolation", times <= self.data["cut"], dense > self.data["cut"] + 0 * at),
        ):
            error = np.asarray(self.peer.curves(times, values, seen, at)) - self.data["curves"]
            scores[task] = float(np.mean(error[scored] ** 2))
        return scores


def peak_mib() -> float:
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def answer(**found: Any) -> None:
    print(json.dumps({**found, "computed": time.process_time(), "peak_mib": peak_mib()}))
    sys.stdout.flush()


def main(name: str, path: str) -> None:
    try:
        worker = Worker(importlib.import_module(name), path)
    except ModuleNotFoundError as error:
        return answer(missing=error.name)
    answer()
    for line in sys.stdin:
        request = json.loads(line)
        answer(**getattr(worker, request.pop("call"))(**request))


if __name__ == "__main__":
    main(*sys.argv[1:])

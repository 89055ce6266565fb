"""Does one long trajectory cost what it holds? Peak memory and seconds of `np-latentode fit`.

Each table has short trajectories of 4 to 12 rows, and one long one. A row of the printed table is a
fit of it in a process of its own, with training, scores and figures:

    .venv/bin/python benchmarks/memory.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

CASES = {
    "none": (40, 0, 0),
    "of 3,000, trained on": (40, 3_000, 0),
    "of 3,000, held out": (40, 3_000, 3),
    "of 3,000, to validate": (40, 3_000, 4),
    "of 10,000, trained on": (100, 10_000, 2),
    "of 10,000, held out": (100, 10_000, 0),
    "of 10,000, to validate": (100, 10_000, 1),
}
"""The number of short trajectories; the rows of the long one; and the seed, which decides what the
long one is for."""
STEPS = 200


def table(num_short: int, num_rows: int) -> pd.DataFrame:
    """Damped oscillations in two columns, on 100 days."""
    rng, parts = np.random.default_rng(0), []
    for i in range(num_short + (num_rows > 0)):
        days = rng.uniform(0, 100, num_rows if i == num_short else rng.integers(4, 13))
        days, phase = np.sort(days), rng.uniform(0, 2 * np.pi)
        size = np.exp(-days / 100)
        a, b = size * np.cos(0.06 * days + phase), size * np.sin(0.06 * days + phase)
        parts.append(pd.DataFrame({"who": f"p{i:03d}", "day": days, "a": a, "b": b}))
    return pd.concat(parts).round(4)


def fit(path: Path, seed: int) -> None:
    """Fits a table, and prints what that took."""
    from np_latentode.app.fit_table import fit_table

    started = time.perf_counter()
    found = fit_table(
        path,
        path.parent / f"fit-{seed}",
        id="who",
        time="day",
        values=["a", "b"],
        steps=STEPS,
        seed=seed,
        progress=False,
    )
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rmse = found["methods"]["latent ODE"]["rmse"]
    print(f"{found['seconds']:12.0f}{seconds:12.0f}{peak:12.2f}{rmse:12.3f}", flush=True)


def main() -> None:
    columns = ("short", "training s", "in all s", "peak GiB", "RMSE")
    print(f"{'long one':24s}" + "".join(f"{name:>12s}" for name in columns), flush=True)
    for name, (num_short, num_rows, seed) in CASES.items():
        print(f"{name:24s}{num_short:12d}", end="", flush=True)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "table.csv"
            table(num_short, num_rows).to_csv(path, index=False)
            subprocess.run([sys.executable, __file__, str(path), str(seed)], check=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        fit(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()

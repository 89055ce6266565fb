"""Does training from disk need memory for its ids? Peak memory and seconds for 10^4 and 10^6 ids.

Each table has 20 rows an id and two columns. It is written to a folder for temporary files, which
takes up to 1 GB there; a process of its own then reads it and trains:

    .venv/bin/python benchmarks/from_disk.py

Seconds are those of all cores together (CPU time). Peaks are of the process up to that stage, with
the imports, the programs and the compiler.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

IDS = (10_000, 1_000_000)
ROWS, STEPS, BATCH = 20, 300, 50


def write(path: Path, count: int) -> None:
    """Noisy waves on 100 days, some ids at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, writer = np.random.default_rng(0), None
    for first in range(0, count, 50_000):
        ids = np.arange(first, min(first + 50_000, count))
        # Rounded, as different times must stay different in single precision.
        day = np.sort(rng.uniform(0, 100, (len(ids), ROWS)).round(2), axis=1)
        phase = rng.uniform(0, 6, (len(ids), 1))
        columns = {"who": np.repeat(ids, ROWS), "day": day.ravel()}
        for name, shift in (("a", 0.0), ("b", 1.5)):
            noise = 0.1 * rng.normal(size=day.shape)
            columns[name] = (np.sin(0.06 * day + phase + shift) + noise).ravel()
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def train(path: Path) -> None:
    """Reads and trains, and prints what each took."""
    import jax
    from flax import nnx

    from np_latentode import Scaling, StoredTrajectories, fit, latent_ode

    started = time.process_time()

    def said(what: str) -> None:
        nonlocal started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"  {what:20s}{time.process_time() - started:12.1f}{peak:12.2f}", flush=True)
        started = time.process_time()

    jax.numpy.zeros(1).block_until_ready()
    said("imports")
    stored = StoredTrajectories.from_parquet(path, id="who", time="day", values=["a", "b"])
    said("one pass")
    held_out, many = stored[:500], stored.without(slice(500))
    scaling = Scaling.fit(stored)
    said("units")
    model, guide = latent_ode(many, latent_dim=4, scaling=scaling, rngs=nnx.Rngs(0))
    options: Any = dict(num_steps=STEPS, batch_size=BATCH, progress=False)
    fitted = fit(jax.random.key(0), model, guide, many, held_out, **options)
    said(f"{STEPS} steps")
    scores = ", ".join(f"{score:.3f}" for score in fitted.history.validation)
    print(f"  validation after each 100 steps: {scores}", flush=True)


def main() -> None:
    for count in IDS:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "table.parquet"
            write(path, count)
            size = path.stat().st_size / 2**30
            print(f"{count} ids, {ROWS * count} rows, a file of {size:.3f} GiB", flush=True)
            print(f"  {'':20s}{'CPU s':>12s}{'peak GiB':>12s}", flush=True)
            subprocess.run([sys.executable, __file__, str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]))
    else:
        main()

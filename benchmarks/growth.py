"""How do time and memory grow with the data? Slopes of 1 on log-log axes are straight lines.

A table is read, a network takes training steps, and forecasts are drawn, each in a process of its
own. One of ids, times of each id, columns, batch, horizon and draws grows at a time, while the
others stay at `BASE`; but there are 20 ids where times, horizon or draws grow, and 1,000 where the
batch grows. Seconds are those of all cores together (CPU time), without compiling, so that other
work on the machine hardly changes them. Peak memory is beyond that of imports.

    .venv/bin/python benchmarks/growth.py growth.png

A slope is that of the last tenfold of growth. It is below 1 where something constant still weighs
most, and above 1 where something grows faster than the data. A run of more than `LIMIT` CPU
seconds, or more than `MEMORY` GiB, is ended and printed as such.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

BASE = dict(ids=300, times=20, columns=2, batch=50, horizon=50, draws=100)
"""The horizon is the number of times to forecast."""
GROWTH = {
    "ids": [100, 1_000, 10_000, 100_000, 1_000_000],
    "times": [10, 100, 1_000, 10_000],
    "columns": [1, 3, 10, 30],
    "batch": [10, 30, 100, 300],
    "horizon": [10, 100, 1_000, 10_000],
    "draws": [10, 100, 1_000, 10_000],
}
MATTERS = {
    "read": ("ids", "times", "columns"),
    "step": ("ids", "times", "columns", "batch"),
    "forecast": ("ids", "times", "columns", "horizon", "draws"),
}
"""What each of the three can depend on."""
WORDS = {
    "ids": "ids",
    "times": "times of each id",
    "columns": "columns",
    "batch": "batch",
    "horizon": "times to forecast",
    "draws": "draws",
}
LIMIT, MEMORY = 150, 12
LATENT_DIM = 4


def table(ids: int, times: int, columns: int) -> pd.DataFrame:
    """Noisy waves on 100 days."""
    rng = np.random.default_rng(0)
    # Rounded, as different times must stay different in single precision.
    day = np.sort(rng.uniform(0, 100, (ids, times)).round(3), axis=1).ravel()
    found = {"who": np.repeat(np.arange(ids), times), "day": day}
    for j in range(columns):
        phase = np.repeat(rng.uniform(0, 6, ids), times)
        found[f"x{j}"] = np.sin(0.06 * day + phase) + 0.1 * rng.normal(size=ids * times)
    return pd.DataFrame(found)


def read(path: Path, size: dict[str, int]) -> float:
    from np_latentode import Trajectories

    columns = [f"x{j}" for j in range(size["columns"])]
    # Libraries are imported, and JAX is started, by a table of two rows.
    small = path.with_name("small.parquet")
    table(1, 2, size["columns"]).to_parquet(small)
    Trajectories.from_file(small, id="who", time="day", values=columns)
    mark()
    started = time.process_time()
    Trajectories.from_file(path, id="who", time="day", values=columns)
    return time.process_time() - started


def made(size: dict[str, int]) -> tuple[Any, Any, Any]:
    """Trajectories and programs."""
    from flax import nnx

    from np_latentode import Trajectories, latent_ode

    df = table(size["ids"], size["times"], size["columns"])
    shape = (size["ids"], size["times"], -1)
    times = df["day"].to_numpy().reshape(shape[:2])
    data = Trajectories(times, df.drop(columns=["who", "day"]).to_numpy().reshape(shape))
    mark()
    return data, *latent_ode(data, latent_dim=LATENT_DIM, rngs=nnx.Rngs(0))


def step(path: Path, size: dict[str, int]) -> float:
    """The seconds of one step, once it is compiled."""
    import jax
    from numpyro.infer import SVI, Trace_ELBO

    from np_latentode import optimizer, random_context

    data, model, guide = made(size)
    options: Any = dict(batch_size=min(size["batch"], size["ids"]), conditioning=random_context)
    svi = SVI(model.with_solver(throw=False), guide, optimizer(1_000), Trace_ELBO(), **options)
    update = jax.jit(svi.update)
    state, _ = update(svi.init(jax.random.key(0), data), data)
    started = time.process_time()
    for _ in range(20):
        state, loss = update(state, data)
    loss.block_until_ready()
    return (time.process_time() - started) / 20


def forecast(path: Path, size: dict[str, int]) -> float:
    import jax

    from np_latentode import fit, forecast

    data, model, guide = made(size)
    fitted = fit(jax.random.key(0), model, guide, data[:10], num_steps=1, progress=False)
    times = np.linspace(100, 120, size["horizon"])
    for _ in range(2):
        started = time.process_time()
        forecast(jax.random.key(1), fitted, data, times, num_samples=size["draws"])
        seconds = time.process_time() - started
    return seconds


PEAK_BEFORE = 0


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def mark() -> None:
    """Notes the peak of memory before the work that is measured."""
    global PEAK_BEFORE
    PEAK_BEFORE = peak()


def one(what: str, path: Path, size: dict[str, int]) -> None:
    """Runs one of the three in this process, and prints what it took as JSON."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 5))
    seconds = {"read": read, "step": step, "forecast": forecast}[what](path, size)
    print(json.dumps([seconds, (peak() - PEAK_BEFORE) / 2**20]))


def run(what: str, size: dict[str, int]) -> tuple[float, float] | str:
    """Seconds and GiB of one of the three in a process of its own, or why there are none."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "table.parquet"
        if what == "read":
            table(*(size[name] for name in ("ids", "times", "columns"))).to_parquet(path)
        call = [sys.executable, __file__, what, str(path), json.dumps(size)]
        done = subprocess.run(call, capture_output=True, text=True)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return f"more than {LIMIT} CPU s"
        if done.returncode:
            said = [*done.stderr.strip().splitlines(), "no message"][-1 if done.stderr else 0]
            return f"ended: {said[:80]}"
        seconds, memory = json.loads(done.stdout.splitlines()[-1])
        return seconds, memory


def slope(sizes: list[int], numbers: list[float]) -> float:
    """That of the last tenfold, on log-log axes."""
    kept = [k for k, size in enumerate(sizes) if size >= sizes[-1] / 11]
    if len(kept) < 2:
        return float("nan")
    x, y = np.log([sizes[k] for k in kept]), np.log([numbers[k] for k in kept])
    return float(np.polyfit(x, y, 1)[0])


def figure(found: dict[tuple[str, str], list[tuple[int, float, float]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, len(GROWTH), figsize=(17, 6.5), sharey="row", layout="constrained")
    styles = {"read": ("C0", "o"), "step": ("C1", "s"), "forecast": ("C2", "^")}
    words = {"read": "read the table", "step": "one training step", "forecast": "forecast all ids"}
    for c, axis in enumerate(GROWTH):
        for (what, grown), rows in found.items():
            if grown == axis and rows:
                color, marker = styles[what]
                sizes, *numbers = zip(*rows, strict=True)
                for ax, y in zip(axes[:, c], numbers, strict=True):
                    ax.loglog(sizes, y, color=color, marker=marker, label=words[what])
        for ax in axes[:, c]:
            ax.axline((GROWTH[axis][0], 3e-3), slope=1, color="0.75", ls=":", zorder=0)
            ax.grid(color="0.92")
        axes[1, c].set_xlabel(WORDS[axis])
    axes[0, 0].set_ylabel("CPU seconds")
    axes[1, 0].set_ylabel("peak memory beyond imports, GiB")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    rest = "; ".join(f"{WORDS[name]} {number}" for name, number in BASE.items())
    title = f"Growth along one axis, the others at {rest}. Dotted: a straight line, slope 1"
    fig.suptitle(title, fontsize=11)
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    fig.savefig(path, dpi=110)


def main(path: Path) -> None:
    print(f"{'':10s}{'grown':10s}{'size':>10s}{'seconds':>12s}{'GiB':>8s}", flush=True)
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for what, grown in MATTERS.items():
        for axis in grown:
            rows = found.setdefault((what, axis), [])
            for number in GROWTH[axis]:
                size = BASE | {axis: number} | ({"ids": 1_000} if axis == "batch" else {})
                size |= {"ids": 20} if axis in ("times", "horizon", "draws") else {}
                came = run(what, size)
                head = f"{what:10s}{axis:10s}{number:10d}"
                if isinstance(came, str):
                    print(f"{head}  {came}", flush=True)
                    break
                print(f"{head}{came[0]:12.4f}{came[1]:8.3f}", flush=True)
                rows.append((number, *came))
            sizes = [row[0] for row in rows]
            slopes = [slope(sizes, [max(row[k], 1e-4) for row in rows]) for k in (1, 2)]
            print(
                f"{what:10s}{axis:10s}{'slope':>10s}{slopes[0]:12.2f}{slopes[1]:8.2f}", flush=True
            )
    figure(found, path)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        one(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "growth.png"))

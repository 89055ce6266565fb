"""Peers side by side on the spirals of the demo: step, cold start, time to quality, memory.

    make bench
    .venv/bin/python benchmarks/peers.py --output peers.json

Four latent ODEs are trained on the same 200 spirals of 30 points, in float32, in batches of 50,
with 4 latent dimensions, each in a process of its own on the same core:

- ours: what `fit` does with the networks of `latent_ode`;
- notebook: the design of the seed notebook;
- example: the design of the latent ODE among diffrax's examples;
- torch: the latent ODE of Rubanova et al. (2019) in PyTorch and torchdiffeq.

The first lines of the files in benchmarks/peer/ say what each design is, and what was chosen here.
A peer whose packages are missing is skipped. `pip install '.[bench]'` brings them; or name another
interpreter that has them: `--torch-python /path/to/python`.

Seconds are CPU seconds of the process, so that other work on the machine counts little. Steps are
timed in rounds in which all peers take turns. A score is the mean squared error of curves of 200
fresh spirals, decoded from the posterior's mean: given all points (reconstruction), or those of the
first half only (extrapolation). Curves start at a spiral's first observation, as z0 of the notebook
and of the example is the state there. Trust ratios and orders: seconds are those of one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# No JAX and no NumPy here: a process begins with the peak memory of the one that started it.

HERE = Path(__file__).parent / "peer"
PEERS = {"ours": "ours", "notebook": "notebook", "example": "example", "torch": "rubanova"}
"""The module of each peer."""
SHARES = (0.125, 0.25, 0.5, 1.0)
"""The shares of the steps after which a training is scored."""
SECONDS_A_TURN = 0.4


class Process:
    """A peer in a process of its own, which answers one request at a time."""

    def __init__(self, name: str, python: str, data: Path):
        command = [python, str(HERE / "process.py"), PEERS[name], str(data)]
        # What another run compiled would hide the cold start.
        skipped = ("JAX_COMPILATION_CACHE_DIR",)
        environment = {k: v for k, v in os.environ.items() if k not in skipped}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.name, self.running = name, subprocess.Popen(command, **pipes)
        self.imported, self.started = self._answer(), {}

    def ask(self, call: str, **options: Any) -> dict[str, Any]:
        print(json.dumps({"call": call, **options}), file=self.running.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.running.stdin.close()
        self.running.wait()

    def _answer(self) -> dict[str, Any]:
        if not (line := self.running.stdout.readline()):
            raise SystemExit(f"the process of the peer {self.name} has failed; see above.")
        return json.loads(line)


def one_core() -> None:
    """Keeps this process, and all that it starts, on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def begin(pythons: dict[str, str], data: Path, num_steps: int) -> dict[str, Process]:
    """Starts the peers one after the other, up to the first step; skips those that cannot run."""
    processes = {}
    for name, python in pythons.items():
        process = Process(name, python, data)
        if missing := process.imported.get("missing"):
            print(f"{name} is skipped, as the package {missing} is not installed.", flush=True)
            process.close()
            continue
        process.started = process.ask("start", num_steps=num_steps, seed=0)
        print(f"{name}: first step after {process.started['computed']:.1f} s", flush=True)
        processes[name] = process
    return processes


def time_steps(processes: dict[str, Process], rounds: int) -> dict[str, list[float]]:
    """Seconds for a step of each peer, in each round."""
    counts, seconds = {}, {name: [] for name in processes}
    for name, process in processes.items():
        process.ask("train", count=5)  # the second call may compile once more
        counts[name] = max(
            1, round(10 * SECONDS_A_TURN / process.ask("train", count=10)["seconds"])
        )
    for _ in range(rounds):
        for name, process in processes.items():
            took = process.ask("train", count=counts[name])["seconds"]
            seconds[name].append(took / counts[name])
    return seconds


def time_to_quality(process: Process, num_steps: int, seed: int) -> list[dict[str, float]]:
    """Scores of a training, after some of its steps; its compilation is not counted."""
    process.ask("start", num_steps=num_steps, seed=seed)
    rows, taken, seconds = [], 1, 0.0
    for share in SHARES:
        count = max(1, round(share * num_steps) - taken)
        seconds += process.ask("train", count=count)["seconds"]
        taken += count
        scores = process.ask("score")
        kept = {task: scores[task] for task in ("reconstruction", "extrapolation")}
        rows.append({"steps": taken, "seconds": seconds, **kept})
    return rows


def measure(processes: dict[str, Process], rounds: int, budget: float, seeds: int) -> Any:
    """All that is measured of each peer."""
    steps, found = time_steps(processes, rounds), {}
    for name, process in processes.items():
        ratios = [a / b for a, b in zip(steps[name], steps["ours"], strict=True)]
        found[name] = {
            "step_seconds": statistics.median(steps[name]),
            "step_seconds_of_rounds": steps[name],
            "step_over_ours": [statistics.median(ratios), min(ratios), max(ratios)],
            "import_seconds": process.imported["computed"],
            "first_step_seconds": process.started["computed"],
            "import_mib": process.imported["peak_mib"],
            "peak_mib": process.ask("train", count=1)["peak_mib"],
        }
    for name, process in processes.items():
        num_steps = max(20, round(budget / found[name]["step_seconds"]))
        found[name]["quality"] = []
        for seed in range(seeds):
            found[name]["quality"].append(time_to_quality(process, num_steps, seed))
            print(f"{name}: trained {num_steps} steps with seed {seed}", flush=True)
    return found


def print_steps(found: dict[str, Any]) -> None:
    print(
        "\n| peer | step ms | over ours (lowest, highest) | imports s | first step s | peak MiB |"
    )
    print("|---|---|---|---|---|---|")
    for name, row in found.items():
        middle, low, high = row["step_over_ours"]
        cells = [
            f"{1e3 * row['step_seconds']:.2f}",
            f"{middle:.2f} ({low:.2f}, {high:.2f})",
            f"{row['import_seconds']:.1f}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['peak_mib']:.0f}, of imports {row['import_mib']:.0f}",
        ]
        print(f"| {name} | " + " | ".join(cells) + " |")


def print_quality(found: dict[str, Any]) -> None:
    print("\n| peer | seconds | steps | reconstruction MSE | extrapolation MSE |")
    print("|---|---|---|---|---|")
    for name, row in found.items():
        for rows in zip(*row["quality"], strict=True):
            middle = {key: statistics.median(one[key] for one in rows) for key in rows[0]}
            print(
                f"| {name} | {middle['seconds']:.1f} | {middle['steps']:.0f} "
                f"| {middle['reconstruction']:.5f} | {middle['extrapolation']:.5f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of a scored training")
    parser.add_argument("--seeds", type=int, default=1, help="scored trainings of each peer")
    parser.add_argument("--torch-python", default=sys.executable, help="that has torchdiffeq")
    arguments = parser.parse_args()
    one_core()
    pythons = dict.fromkeys(PEERS, sys.executable) | {"torch": arguments.torch_python}
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory) / "spirals.npz"
        subprocess.run([sys.executable, str(HERE / "workload.py"), str(data)], check=True)
        processes = begin(pythons, data, num_steps=1_000)
        if "ours" not in processes:
            raise SystemExit("np_latentode must be installed: there is nothing to compare with.")
        found = measure(processes, arguments.rounds, arguments.budget, arguments.seeds)
        for process in processes.values():
            process.close()
    print_steps(found)
    print_quality(found)
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

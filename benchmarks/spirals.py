"""The table of the README: the main job with five model seeds, median and worst.

    python benchmarks/spirals.py --seeds 5

Run it twice: only the second time are the compiled programs on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

KEYS = (
    "reconstruction_mse",
    "extrapolation_mse",
    "coverage_90",
    "fresh_reconstruction_mse",
    "fresh_extrapolation_mse",
    "fresh_coverage_90",
    "kl",
    "mutual_information",
    "kl_marginal",
    "ms_per_step",
    "seconds_to_first_step",
    "seconds_total",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(arguments.seeds):
            output = Path(directory) / str(seed)
            command = Path(sys.executable).with_name("np-latentode")
            # A process each, as a user would run it.
            subprocess.run(
                [command, "spirals", "--seed", str(seed), "--output-dir", output],
                check=True,
                capture_output=True,
            )
            rows.append(json.loads((output / "metrics.json").read_text()))
            print(seed, {key: round(rows[-1][key], 5) for key in KEYS}, flush=True)
    print(f"| {'':26s} | median | lowest | highest |")
    print(f"|{'-' * 28}|---|---|---|")
    for key in KEYS:
        values = [row[key] for row in rows]
        cells = (np.median(values), min(values), max(values))
        print(f"| {key:26s} | " + " | ".join(f"{value:.5g}" for value in cells) + " |")


if __name__ == "__main__":
    main()

"""The table of docs/measured.md: the study of spirals with five model seeds, median and worst.

    python benchmarks/spirals.py --seeds 5
    python benchmarks/spirals.py --seeds 5 --diagnose

Run it twice: only the second time are the compiled programs on disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from summary import print_summary

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

DIAGNOSED = (
    "shift_median_guide",
    "shift_worst_guide",
    "shift_median_sharpened",
    "shift_worst_sharpened",
    "rhat_worst",
    "ess_least",
    "crps_guide",
    "crps_sharpened",
    "crps_exact",
    "sd_ratio_median_guide",
    "sd_ratio_median_sharpened",
    "divergences",
    "pareto_k_median",
    "elbo_gap_median",
    "coverage_50_forecasts",
    "coverage_80_forecasts",
    "coverage_90_forecasts",
    "coverage_95_forecasts",
    "elpd",
    "elpd_forecasts",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--diagnose", action="store_true", help="check the guide as well")
    arguments = parser.parse_args()
    keys, rows = KEYS + DIAGNOSED * arguments.diagnose, []
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(arguments.seeds):
            output = Path(directory) / str(seed)
            command = Path(sys.executable).with_name("np-latentode")
            # One process per seed, as a user would run it.
            options = ["--seed", str(seed), "--output-dir", output]
            options += ["--diagnose"] * arguments.diagnose
            subprocess.run([command, "spirals", *options], check=True, capture_output=True)
            rows.append(json.loads((output / "metrics.json").read_text()))
            print(seed, {key: round(rows[-1][key], 5) for key in keys}, flush=True)
    print_summary("", rows, keys)


if __name__ == "__main__":
    main()

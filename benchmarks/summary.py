"""The table that several benchmarks end with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def print_summary(label: str, rows: Sequence[dict[str, float]], keys: Sequence[str]) -> None:
    """Median, lowest and highest of each key over the rows, one row per seed."""
    print(f"| {label:26s} | median | lowest | highest |")
    print(f"|{'-' * 28}|---|---|---|")
    for key in keys:
        values = [row[key] for row in rows]
        cells = (np.median(values), min(values), max(values))
        print(f"| {key:26s} | " + " | ".join(f"{value:.5g}" for value in cells) + " |")

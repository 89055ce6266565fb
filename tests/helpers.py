"""What several test files need."""

import os
import subprocess
import sys

import jax
import numpyro.handlers as handlers

from np_latentode.training import progress


def sites_of(program, *args, **kwargs):
    """The sites of a program that is run on abstract values, so that nothing is compiled.

    Shapes, scales and plates are those of a real run; values are abstract.
    """
    sites = {}

    def run():
        with handlers.seed(rng_seed=0), handlers.trace() as trace:
            program(*args, **kwargs)
        sites.update(trace)

    jax.eval_shape(run)
    return sites


def interrupted_at(monkeypatch, number):
    """Interrupts training once, after so many dispatches; returns a list that grows by each."""
    append, calls = progress._append, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return append(*args)

    monkeypatch.setattr(progress, "_append", interrupted)
    return calls


def printed_by_processes(script, count=4):
    """What a script prints in processes that differ by their hash seeds, as a set.

    Python orders sets of names by a hash that has a seed of its own in each process.
    """
    found = set()
    for seed in range(count):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout)
    return found

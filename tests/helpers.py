"""What several test files need."""

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

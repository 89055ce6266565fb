"""What several test files need."""

import jax
import numpyro.handlers as handlers


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

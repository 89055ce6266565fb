"""What several test files need."""

import jax
import numpyro.handlers as handlers


def sites_of(program, *args, **kwargs):
    """The sites of a program run on abstract values, so that nothing is compiled: shapes, scales
    and plates are real, numbers are not."""
    sites = {}

    def run():
        with handlers.seed(rng_seed=0), handlers.trace() as trace:
            program(*args, **kwargs)
        sites.update(trace)

    jax.eval_shape(run)
    return sites

import itertools
import os

import jax
import jax.numpy as jnp
import jaxtyping
import pytest


def pytest_configure(config):
    """Keeps compiled programs, as most of the time of the tests is compilation.

    A program that two tests compile is compiled once, and in the next run not at all.
    """
    worker = getattr(config, "workerinput", None)
    directory = os.environ["TEST_PROGRAMS"] if worker else str(config.cache.mkdir("xla"))
    os.environ["TEST_PROGRAMS"] = directory
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture
def getkey():
    """New keys, the same ones in every run of a test."""
    seeds = itertools.count()
    return lambda: jax.random.key(next(seeds))


@pytest.fixture
def x64():
    """Double precision, whatever the default is."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def tolerance():
    """Picks a tolerance by the precision that a test runs in."""
    return lambda single, double: double if jnp.result_type(float) == jnp.float64 else single


@pytest.fixture
def untyped():
    """What users meet, to whom no type checker says first what is wrong."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def compile_quickly():
    """Programs that run for a second would be optimized for several."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

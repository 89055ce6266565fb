import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import pytest


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

import itertools
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpyro
import pytest


@pytest.fixture(autouse=True)
def whole_numpyro():
    """While types are checked, this attribute gets lost, which `numpyro.factor` looks up.

    Only under pytest, and we do not know to whom: without the hook the same calls keep it.
    """
    numpyro.distributions.distribution = sys.modules["numpyro.distributions.distribution"]


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
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)

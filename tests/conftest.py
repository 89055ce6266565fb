import gc
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import pytest


def pytest_configure(config):
    """Keeps compiled programs, as most of the time of the tests is compilation.

    A program that two tests compile is compiled once, and in the next run not at all.
    """
    cache = getattr(config, "cache", None)  # none with -p no:cacheprovider
    if cache and not hasattr(config, "workerinput"):
        os.environ["TEST_PROGRAMS"] = str(cache.mkdir("xla"))
    # The workers of xdist inherit it.
    if directory := os.environ.get("TEST_PROGRAMS"):
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


LONGEST = (
    "test_parts",
    "test_notebooks",
    "test_spirals_study",
    "test_nuts",
    "test_fit",
    "test_documents",
    "test_whatever_comes_in",
)
"""The files of tests that take longest."""


def pytest_collection_modifyitems(items):
    """Runs the longest files first, so that no worker is left alone with one at the end."""
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
    """Collects garbage less often: that took a fifth of the time in which JAX traces."""
    gc.collect()
    gc.freeze()  # what the imports made stays to the end
    gc.set_threshold(50_000, 20, 100)


MOST_MAPPINGS = 30_000
"""Linux allows a process 65,530 memory mappings. Compiled programs take them, and XLA crashes
when there are no more."""


TESTS_BETWEEN = itertools.count(1)


@pytest.fixture(autouse=True)
def free_programs():
    """Frees the compiled programs once they are many. Looking takes time: every tenth test does."""
    yield
    mappings = Path("/proc/self/maps")
    if next(TESTS_BETWEEN) % 10 or not mappings.exists():
        return
    if len(mappings.read_text().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def getkey():
    """A function that returns a new key per call, the same keys in every run of a test."""
    seeds = itertools.count()
    return lambda: jax.random.key(next(seeds))


@pytest.fixture
def x64():
    """Double precision, whatever the default is."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def tolerance():
    """A function that picks the tolerance of the precision in which a test runs."""
    return lambda single, double: double if jnp.result_type(float) == jnp.float64 else single


@pytest.fixture
def untyped():
    """Turns jaxtyping's checks off, as for users, so that the library's own errors are seen."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def compile_quickly():
    """Turns most optimizations off: they take longer than the small programs of these tests run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)

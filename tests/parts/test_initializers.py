"""How the weights of networks start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import kstest, truncnorm, uniform

from np_latentode.parts.initializers import lecun_normal, orthogonal, zeros
from np_latentode.parts.modules import gru_cell, mlp


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (64, 64), (7, 300)])
def test_kernels_are_distributed_as_those_of_flax(shape):
    keys = jax.random.split(jax.random.key(0), 1 + 4_000 // (shape[0] * shape[1]))
    ours = np.ravel([lecun_normal(key, shape) for key in keys])
    flax = np.ravel([nnx.initializers.lecun_normal()(key, shape) for key in keys[:1]])
    scale = np.sqrt(truncnorm(-2, 2).var() * shape[0])
    assert kstest(ours * scale, truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert np.abs(flax * scale).max() <= 2.0001
    assert np.abs(ours * scale).max() <= 2.0001


@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (8, 3), (16, 16)])
def test_columns_or_rows_of_recurrent_kernels_are_orthonormal(shape):
    w = np.asarray(orthogonal(jax.random.key(0), shape), float)
    square = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(square, np.eye(min(shape)), atol=1e-6)


def test_recurrent_kernels_have_no_preferred_direction():
    """An entry of a uniform orthogonal 3 x 3 matrix is uniform (Archimedes)."""
    keys = jax.random.split(jax.random.key(0), 1_000)
    entries = np.array([orthogonal(key, (3, 3)) for key in keys])
    for i, j in np.ndindex(3, 3):
        assert kstest(entries[:, i, j], uniform(-1, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("initializer", [lecun_normal, orthogonal, zeros])
def test_weights_are_the_same_inside_of_a_program(initializer):
    keys = jax.random.split(jax.random.key(3))
    each = np.stack([initializer(key, (5, 7)) for key in keys])
    compiled = jax.jit(lambda key: initializer(key, (5, 7)))(keys[0])
    np.testing.assert_array_equal(compiled, each[0])
    np.testing.assert_array_equal(jax.vmap(lambda key: initializer(key, (5, 7)))(keys), each)


@pytest.mark.parametrize("initializer", [lecun_normal, orthogonal, zeros])
def test_weights_have_the_precision_that_is_asked_for(x64, initializer):
    wide, narrow = (
        initializer(jax.random.key(0), (2, 3), dtype) for dtype in (jnp.float64, jnp.float32)
    )
    assert (wide.dtype, narrow.dtype) == (jnp.float64, jnp.float32)
    np.testing.assert_allclose(wide, narrow, rtol=1e-6)


def test_networks_start_without_compiling_for_each_shape():
    programs = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: programs.append(name) if "backend_compile" in name else None
    )
    try:
        rngs = nnx.Rngs(0)
        mlp((2, 3), rngs=rngs)  # what compiles once: keys
        programs.clear()
        mlp((3, 17, 5), from_zero=True, rngs=rngs)
        gru_cell(11, 13, rngs=rngs)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not programs

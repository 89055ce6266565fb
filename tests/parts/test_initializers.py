"""How the weights of networks start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import kstest, truncnorm

from np_latentode.parts.initializers import lecun_normal


@pytest.mark.parametrize("shape", [(1, 1), (3, 100), (64, 64), (7, 300)])
def test_weights_are_distributed_as_those_of_flax(shape):
    keys = jax.random.split(jax.random.key(0), 1 + 4_000 // (shape[0] * shape[1]))
    ours = np.ravel([lecun_normal(key, shape) for key in keys])
    flax = np.ravel([nnx.initializers.lecun_normal()(key, shape) for key in keys[:1]])
    scale = np.sqrt(truncnorm(-2, 2).var() * shape[0])
    assert kstest(ours * scale, truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert np.abs(flax * scale).max() <= 2.0001
    assert np.abs(ours * scale).max() <= 2.0001


def test_weights_are_the_same_inside_of_a_program():
    key = jax.random.key(3)
    compiled = jax.jit(lambda key: lecun_normal(key, (5, 7)))(key)
    np.testing.assert_allclose(compiled, lecun_normal(key, (5, 7)), rtol=1e-6)


def test_weights_have_the_precision_that_is_asked_for(x64):
    assert lecun_normal(jax.random.key(0), (2, 3), jnp.float64).dtype == jnp.float64
    assert lecun_normal(jax.random.key(0), (2, 3), jnp.float32).dtype == jnp.float32

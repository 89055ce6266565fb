"""The default optimizer's steps: their length, their decay, and their end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode import optimizer


def updates(transformation, gradients, params, *, steps):
    state = transformation.init(params)
    for _ in range(steps):
        update, state = transformation.update(gradients, state, params)
    return update


def test_the_step_does_not_depend_on_the_scale_of_the_elbo():
    params = {"net$params": jnp.ones(3), "noise_scale": jnp.ones(())}
    gradients = {"net$params": jnp.array([1e3, -2e3, 5e2]), "noise_scale": jnp.array(100.0)}
    step = updates(optimizer(100), gradients, params, steps=5)
    many = jax.tree.map(lambda g: 1e4 * g, gradients)
    for name, expected in updates(optimizer(100), many, params, steps=5).items():
        np.testing.assert_allclose(step[name], expected, rtol=1e-4)


def test_only_modules_decay():
    params = {"net$params": jnp.ones(3), "noise_scale": jnp.ones(())}
    step = updates(optimizer(100), jax.tree.map(jnp.zeros_like, params), params, steps=10)
    assert (step["net$params"] < 0).all()
    assert step["noise_scale"] == 0


def test_the_learning_rate_ends_at_zero():
    params = {"net$params": jnp.ones(3)}
    gradients = {"net$params": jnp.ones(3)}
    first = updates(optimizer(50), gradients, params, steps=3)
    last = updates(optimizer(50), gradients, params, steps=51)
    assert (jnp.abs(last["net$params"]) < 1e-3 * jnp.abs(first["net$params"])).all()


def test_an_optimizer_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps must be positive; got 0"):
        optimizer(0)

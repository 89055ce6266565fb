"""Training is SVI's own, and the optimizer does what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import optimizer
from np_latentode.training import run


def model(data):
    loc = numpyro.sample("loc", dist.Normal(0, 10))
    with numpyro.plate("data", len(data)):
        numpyro.sample("x", dist.Normal(loc, 1), obs=data)


def guide(data):
    center = numpyro.param("center", jnp.zeros(()))
    numpyro.sample("loc", dist.Normal(center, 0.1))


DATA = jnp.arange(5.0)


@pytest.mark.parametrize(("num_steps", "steps_at_once"), [(7, 3), (6, 3), (2, 100), (1, 1)])
def test_run_is_svi_run_step_for_step(num_steps, steps_at_once):
    svi = SVI(model, guide, optimizer(20), Trace_ELBO())
    key = jax.random.key(3)
    exact = svi.run(key, num_steps, DATA, progress_bar=False)
    result, _ = run(svi, key, num_steps, DATA, progress=False, steps_at_once=steps_at_once)
    np.testing.assert_allclose(result.losses, exact.losses, rtol=1e-6)
    np.testing.assert_allclose(result.params["center"], exact.params["center"], rtol=1e-6)


def test_run_reports_the_loss_while_it_runs(capsys):
    svi = SVI(model, guide, optimizer(20), Trace_ELBO())
    result, _ = run(svi, jax.random.key(0), 4, DATA, steps_at_once=2)
    assert f"loss {float(result.losses[-2:].mean()):.1f}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("num_steps", "steps_at_once", "name"), [(0, 1, "num_steps"), (3, 0, "steps_at_once")]
)
def test_no_steps_are_refused(num_steps, steps_at_once, name):
    svi = SVI(model, guide, optimizer(20), Trace_ELBO())
    with pytest.raises(ValueError, match=f"{name} must be positive; got 0"):
        run(svi, jax.random.key(0), num_steps, DATA, steps_at_once=steps_at_once)


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

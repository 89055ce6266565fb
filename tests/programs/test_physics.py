"""A field from physics: its constants are NumPyro parameters, which are learned and substituted."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.handlers as handlers
import optax
import pytest
from flax import nnx
from helpers import sites_of
from numpyro.contrib.module import nnx_module
from numpyro.infer import SVI, Trace_ELBO

from np_latentode import (
    Fitted,
    GaussianLikelihood,
    Scaling,
    Solver,
    Trajectories,
    forecast,
    latent_ode,
)

FREQUENCY, DAMPING, NOISE = 2.0, 0.15, 0.05


def damped_oscillator():
    """d2x/dt2 = -frequency^2 x - damping dx/dt, as a field of z = (x, dx/dt)."""
    positive = dist.constraints.positive
    frequency = numpyro.param("frequency", 1.5, constraint=positive)
    damping = numpyro.param("damping", 0.05, constraint=positive)

    def field(t, z):
        x, velocity = z[..., 0], z[..., 1]
        return jnp.stack([velocity, -(frequency**2) * x - damping * velocity], axis=-1)

    return field


def read_position():
    return lambda z: z[..., :1]


def exact(times, z0):
    rate = np.sqrt(FREQUENCY**2 - DAMPING**2 / 4)
    x0, v0 = z0[:, :1], z0[:, 1:]
    wave = x0 * np.cos(rate * times) + (v0 + DAMPING / 2 * x0) / rate * np.sin(rate * times)
    return np.exp(-DAMPING / 2 * times) * wave


def make_data(num=60):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 5, (num, 12)), axis=1)
    z0 = rng.normal(size=(num, 2))
    values = exact(times, z0) + rng.normal(0, NOISE, times.shape)
    return z0, Trajectories(times, values[..., None])


def make_pair(train, **parts):
    return latent_ode(
        train,
        latent_dim=2,
        dynamics=parts.pop("dynamics", damped_oscillator),
        decoder=read_position,
        likelihood=GaussianLikelihood(NOISE),
        scaling=Scaling.identity(1),
        solver=Solver(diffrax.Tsit5(), dt0=0.25),
        rngs=nnx.Rngs(0),
        **parts,
    )


@pytest.fixture(scope="module")
def fit():
    z0, train = make_data()
    model, guide = make_pair(train)
    steps = 1_500
    rate = optax.cosine_decay_schedule(2e-2, steps)
    svi = SVI(
        model, guide, optax.chain(optax.clip_by_global_norm(10.0), optax.adam(rate)), Trace_ELBO()
    )
    result = jax.jit(lambda: svi.run(jax.random.key(0), steps, train, progress_bar=False))()
    return z0, train, model, guide, result.params


@pytest.mark.slow
def test_the_constants_of_the_field_are_learned(fit):
    params = fit[-1]
    np.testing.assert_allclose(params["frequency"], FREQUENCY, rtol=0.01)
    np.testing.assert_allclose(params["damping"], DAMPING, rtol=0.25)


@pytest.mark.slow
def test_forecasts_follow_the_physics_far_beyond_the_data(fit):
    z0, train, model, guide, params = fit
    times = np.linspace(5, 10, 20)
    draws = forecast(jax.random.key(1), Fitted(model, guide, params), train, times, num_samples=50)
    error = np.asarray(draws["x_mean"]).mean(0)[..., 0] - exact(times[None], z0)
    assert np.sqrt(np.mean(error**2)) < 2 * NOISE


def test_the_parameters_are_sites_of_the_model_outside_of_its_plate():
    _, train = make_data(3)
    model, _ = make_pair(train)
    sites = sites_of(model, train)
    for name in ("frequency", "damping"):
        assert sites[name]["type"] == "param"
        assert sites[name]["cond_indep_stack"] == []
    assert {"frequency", "damping"} <= model.trained
    assert not any(name.startswith(("dynamics", "decoder")) for name in sites)


@pytest.mark.slow
def test_the_parameters_can_be_substituted_and_have_gradients():
    z0, train = make_data(3)
    model, _ = make_pair(train)
    known = {"z0": jnp.asarray(z0, train.values.dtype)}

    @jax.jit
    def error(frequency):
        data = known | {"frequency": frequency, "damping": jnp.asarray(DAMPING)}
        with handlers.seed(rng_seed=0), handlers.substitute(data=data), handlers.trace() as sites:
            model(train, train.times)
        return jnp.mean(
            (sites["x_mean"]["value"] - exact(np.asarray(train.times), z0)[..., None]) ** 2
        )

    assert error(FREQUENCY) < 1e-6
    slope = jax.grad(error)(2.1)
    numerical = (error(2.1 + 1e-2) - error(2.1 - 1e-2)) / 2e-2
    np.testing.assert_allclose(slope, numerical, rtol=0.02)
    assert abs(slope) > 0.1


def test_physics_and_a_network_can_share_a_field():
    _, train = make_data(3)

    def corrected():
        oscillator = damped_oscillator()
        correction = nnx_module("correction", nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        return lambda t, z: oscillator(t, z) + correction(z)

    model, _ = make_pair(train, dynamics=corrected)
    assert {"correction$params", "frequency", "damping"} <= model.trained


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        (lambda t, z: z, "dynamics must be a callable flax nnx.Module, called as"),
        (lambda: 3, "dynamics must accept inputs of shapes"),
        (lambda: lambda t: t, "dynamics must accept inputs of shapes"),
        (lambda: lambda t, z: z[..., :1], "dynamics must return dz/dt of the shape of z"),
    ],
    ids=["not made", "a number", "of time alone", "of another shape"],
)
def test_a_function_that_returns_no_field_is_refused(dynamics, message):
    _, train = make_data(3)
    with pytest.raises(ValueError, match=message):
        make_pair(train, dynamics=dynamics)

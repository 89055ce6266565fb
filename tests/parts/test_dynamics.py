import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    BoundedDynamics,
    LatentODE,
    MLPDecoder,
    MLPDynamics,
    Scaling,
    Solver,
    StandardNormal,
    TimeMLPDynamics,
)
from np_latentode.parts.solve import solve

LATENT, SPEED = 3, 2.0
FIELDS = {
    "autonomous": lambda: MLPDynamics(LATENT, width=8, rngs=nnx.Rngs(0)),
    "of time": lambda: TimeMLPDynamics(LATENT, width=8, rngs=nnx.Rngs(0)),
    "bounded": lambda: BoundedDynamics(FIELDS["autonomous"](), SPEED),
    "bounded of time": lambda: BoundedDynamics(FIELDS["of time"](), SPEED),
}
OF_TIME = {"of time", "bounded of time"}


def scaled_up(dynamics, factor):
    """The same field, with its weights multiplied by a factor."""
    nnx.update(dynamics, jax.tree.map(lambda leaf: factor * leaf, nnx.state(dynamics)))
    return dynamics


@pytest.fixture(params=FIELDS)
def name(request):
    return request.param


@pytest.fixture
def dynamics(name):
    return FIELDS[name]()


@pytest.fixture
def z():
    return jnp.asarray(np.random.default_rng(1).normal(size=(5, LATENT)), float)


def test_only_a_field_of_time_changes_with_time(name, dynamics, z):
    change = np.abs(dynamics(jnp.asarray(1.7), z) - dynamics(jnp.asarray(0.2), z)).max()
    assert change > 1e-2 if name in OF_TIME else change == 0


def test_time_and_state_enter_a_field_of_time_as_inputs_alike(z, tolerance):
    dynamics = FIELDS["of time"]()
    (first, last) = (dynamics.field.layers[i] for i in (0, 2))
    inputs = np.concatenate([z, np.full((5, 1), 1.7)], axis=1, dtype=z.dtype)
    hidden = inputs @ np.asarray(first.kernel[...]) + np.asarray(first.bias[...])
    by_hand = hidden / (1 + np.exp(-hidden)) @ np.asarray(last.kernel[...])
    np.testing.assert_allclose(dynamics(jnp.asarray(1.7), z), by_hand, atol=tolerance(1e-5, 1e-12))


def test_each_row_has_its_own_slope(dynamics, z, tolerance):
    t = jnp.asarray(0.4)
    for i in range(len(z)):
        np.testing.assert_allclose(
            dynamics(t, z)[i], dynamics(t, z[i : i + 1])[0], atol=tolerance(1e-6, 1e-14)
        )


def test_gradients_reach_every_parameter(dynamics, z):
    graph, state = nnx.split(dynamics)
    gradients = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(jnp.asarray(0.4), z) ** 2))(state)
    for gradient in jax.tree.leaves(gradients):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 1e-4


def test_parameters_are_all_that_a_field_holds(dynamics):
    assert not jax.tree.leaves(nnx.state(dynamics, nnx.Not(nnx.Param)))


def test_a_model_takes_every_field(dynamics):
    decoder = MLPDecoder(LATENT, 2, rngs=nnx.Rngs(1))
    model = LatentODE(dynamics, decoder, prior=StandardNormal(LATENT), scaling=Scaling.identity(2))
    assert model.trained == {"dynamics$params", "decoder$params", "noise_scale"}


@pytest.mark.parametrize("factor", [1.0, 30.0])
def test_a_bounded_field_is_the_tanh_of_its_own_over_the_speed(z, factor, tolerance):
    field = scaled_up(FIELDS["of time"](), factor)
    slope = np.asarray(field(jnp.asarray(0.4), z), np.float64)
    np.testing.assert_allclose(
        BoundedDynamics(field, SPEED)(jnp.asarray(0.4), z),
        SPEED * np.tanh(slope / SPEED),
        atol=tolerance(1e-6, 1e-13),
    )


def test_a_bound_that_is_never_met_changes_nothing(z, tolerance):
    field = FIELDS["of time"]()
    t = jnp.asarray(0.4)
    np.testing.assert_allclose(
        BoundedDynamics(field, 1e4)(t, z), field(t, z), rtol=tolerance(1e-5, 1e-7)
    )


def test_no_slope_exceeds_the_speed(z):
    field = scaled_up(FIELDS["autonomous"](), 100.0)
    t = jnp.asarray(0.4)
    assert np.abs(field(t, z)).max() > 100 * SPEED
    assert np.abs(BoundedDynamics(field, SPEED)(t, z)).max() <= SPEED


class Explosive(nnx.Module):
    """dz/dt = z^3, which reaches infinity in finite time."""

    def __call__(self, t, z):
        return z**3


@pytest.fixture(scope="module")
def run():
    # The structure is static and the weights are an argument, so that each type of field is
    # compiled once.
    @functools.partial(jax.jit, static_argnums=0)
    def run(graph, state, z0, times):
        return solve(nnx.merge(graph, state), z0, times, solver=Solver())

    return lambda dynamics, *arrays: np.asarray(run(*nnx.split(dynamics), *arrays))


TIMES = jnp.linspace(0, 10, 5) * jnp.ones((5, 1))


@pytest.mark.parametrize("factor", [1.0, 30.0, 1000.0])
def test_a_solve_of_wild_weights_stays_within_speed_times_time(run, z, factor):
    dynamics = scaled_up(FIELDS["bounded"](), factor)
    moved = np.abs(run(dynamics, z, TIMES.astype(z.dtype)) - z[:, None])
    assert (moved <= SPEED * TIMES[..., None] + 1e-4).all()
    assert moved.max() > 0.1


@pytest.mark.slow
def test_a_solve_that_blows_up_stays_finite_when_bounded(run, z):
    times = TIMES.astype(z.dtype)
    with pytest.raises(Exception, match="The ODE solve diverged: row"):
        run(Explosive(), 3 * z, times)
    moved = np.abs(run(BoundedDynamics(Explosive(), SPEED), 3 * z, times) - 3 * z[:, None])
    assert (moved <= SPEED * TIMES[..., None] + 1e-4).all()


@pytest.mark.parametrize("speed", [0.0, -1.5, float("nan"), float("inf")])
def test_a_speed_that_is_not_positive_and_finite_is_refused(untyped, speed):
    with pytest.raises(ValueError, match=f"speed must be positive and finite; got {speed}"):
        BoundedDynamics(FIELDS["autonomous"](), speed)


def test_a_field_that_cannot_be_called_is_refused(untyped):
    with pytest.raises(ValueError, match=r"dynamics must be callable as .* got 3\."):
        BoundedDynamics(3, SPEED)

"""Solves with inputs agree with closed forms, one trajectory at a time."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode import (
    Inputs,
    LatentODE,
    LinearDecoder,
    LinearJump,
    MLPDynamics,
    Scaling,
    Solver,
    StandardNormal,
)
from np_latentode.parts.driven import Drive, solve_driven
from np_latentode.parts.solve import solve

pytestmark = pytest.mark.usefixtures("compile_quickly")

K, B = 0.7, 1.3
FINE = Solver(diffrax.Tsit5(), dt0=0.1)
TIMES = jnp.array([[0.0, 0.3, 1.0, 1.7, 2.9, 3.95], [0.05, 0.51, 2.0, 2.1, 2.2, 3.0]])
NAN = jnp.nan
DOSES = Inputs(
    [[0.0, 0.3, 0.3, 2.77], [1.03, 2.0, 2.0, 2.0]],
    np.array([[2.0, 1.0, 3.0, 1.5], [4.0, NAN, NAN, NAN]])[..., None],
    "event",
)


def decay(t, z):
    return -K * z


def controlled(t, z, u):
    return -K * z + B * u


def doses(times, i, k=K):
    """The sum of exponentials of trajectory i; at its own time, a dose is not in yet."""
    at, amounts = np.asarray(DOSES.times[i]), np.nan_to_num(DOSES.values[i, :, 0])
    times = np.asarray(times)[:, None]
    given = np.where(times > at, amounts * np.exp(-k * np.maximum(times - at, 0)), 0)
    return np.exp(-k * times[:, 0]) + given.sum(1)


def solved(field, jump, inputs, *, times=TIMES, solver=FINE, z0=None, s=None, controlled=True):
    z0 = jnp.ones((len(times), 1)) if z0 is None else z0
    drive = Drive(inputs, s, controlled)
    return np.asarray(solve_driven(field, jump, z0, times, drive, solver=solver))


def test_a_compartment_with_doses_is_the_sum_of_exponentials():
    z = solved(decay, lambda amounts: amounts, DOSES)[..., 0]
    np.testing.assert_allclose(z, [doses(TIMES[i], i) for i in (0, 1)], rtol=2e-5)


def test_a_dose_between_two_steps_costs_no_order():
    def error(dt0):
        z = solved(decay, lambda a: a, DOSES, solver=Solver(diffrax.Bosh3(), dt0=dt0))[..., 0]
        return np.abs(z - [doses(TIMES[i], i) for i in (0, 1)]).max()

    # Of third order: half the step has an eighth of the error.
    assert error(0.8) / error(0.4) > 6


def test_at_its_own_time_a_dose_is_not_in_yet_and_then_it_is():
    at = jnp.array([[1.03, 1.0301], [1.03, 1.0301]])
    z = solved(lambda t, z: 0 * z, lambda a: a, DOSES[jnp.array([1, 1])], times=at)[..., 0]
    np.testing.assert_allclose(z, [[1.0, 5.0]] * 2, atol=1e-5)


def test_a_step_of_a_constant_input_has_its_closed_form():
    # Before its first row, the first number holds; NaN is nothing new.
    steps = Inputs([[0.6, 1.25, 2.2]] * 2, np.array([[[1.0], [np.nan], [-2.0]]] * 2), "constant")
    z = solved(controlled, None, steps)[..., 0]
    t = np.asarray(TIMES)

    def risen(t):
        return np.exp(-K * t) + B / K * (1 - np.exp(-K * t))

    late = np.maximum(t - 2.2, 0)
    expected = np.where(
        t <= 2.2, risen(t), risen(2.2) * np.exp(-K * late) - 2 * B / K * (1 - np.exp(-K * late))
    )
    np.testing.assert_allclose(z, expected, rtol=2e-5)


def test_a_ramp_of_a_linear_input_has_its_closed_form():
    ramp = Inputs([[0.5, 2.5]] * 2, np.array([[[0.0], [4.0]]] * 2), "linear")
    z = solved(controlled, None, ramp)[..., 0]

    def integral(t):  # of exp(-K (t - s)) u(s), with u(s) = 2 s on the ramp
        return 2 * (t / K - (1 - np.exp(-K * t)) / K**2)

    t = np.asarray(TIMES)
    on, after = np.clip(t - 0.5, 0, 2), np.maximum(t - 2.5, 0)
    expected = np.exp(-K * t) + B * (
        integral(on) * np.exp(-K * after) + 4 * (1 - np.exp(-K * after)) / K
    )
    np.testing.assert_allclose(z, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_all_kinds_together_are_solves_of_pieces_by_diffrax():
    inputs = Inputs(
        [[0.0, 0.37, 1.11, 3.0]],
        np.array([[[0.5, np.nan, 1.0], [np.nan, 2.0, -1.0], [1.5, np.nan, 0.0], [0, 0, 2.0]]]),
        ("constant", "event", "linear"),
    )
    weight, z0 = jnp.array([[1.0], [-0.5]]), jnp.array([[1.0, 0.2]])
    times = jnp.array([[0.2, 0.9, 1.11, 1.9]])

    def field(t, z, u):
        return jnp.sin(z[:, ::-1] + t) + u[:, :1] - z * u[:, 1:]

    z = solved(field, lambda a: a @ weight.T, inputs, times=times, z0=z0)[0]

    def piece(z, start, end, constant):
        def slope(t, z, _):
            linear = jnp.interp(t, jnp.array([0.0, 0.37, 1.11, 3.0]), jnp.array([1.0, -1, 0, 2]))
            return field(t, z[None], jnp.array([[constant, linear]]))[0]

        return diffrax.diffeqsolve(
            diffrax.ODETerm(slope), diffrax.Tsit5(), start, end, (end - start) / 20, z
        ).ys[-1]

    first = piece(z0[0], 0.0, 0.37, 0.5)
    dosed = first + 2.0 * weight[:, 0]
    second = piece(dosed, 0.37, 1.11, 0.5)
    expected = [
        piece(z0[0], 0.0, 0.2, 0.5),
        piece(dosed, 0.37, 0.9, 0.5),
        second,
        piece(second, 1.11, 1.9, 1.5),
    ]
    np.testing.assert_allclose(z, np.stack(expected), atol=2e-5)


def test_padding_and_batch_mates_change_nothing():
    whole = solved(decay, lambda a: a, DOSES)
    for i in (0, 1):
        alone = solved(decay, lambda a: a, DOSES[i : i + 1], times=TIMES[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-6)
    padded = Inputs(
        np.pad(DOSES.times, ((0, 0), (0, 3)), mode="edge"),
        np.pad(DOSES.values, ((0, 0), (0, 3), (0, 0)), constant_values=np.nan),
        "event",
    )
    np.testing.assert_allclose(solved(decay, lambda a: a, padded), whole, rtol=1e-6)
    # Nor does what is given after the last time, or before time 0, where z0 lives.
    far = Inputs(
        np.concatenate([np.full((2, 1), -1.0), DOSES.times, np.full((2, 1), 50.0)], axis=1),
        np.pad(DOSES.values, ((0, 0), (1, 1), (0, 0)), constant_values=9.0),
        "event",
    )
    np.testing.assert_allclose(solved(decay, lambda a: a, far), whole, rtol=1e-6)


def test_where_nothing_is_given_it_is_the_solve_without_inputs():
    nothing = Inputs.none(2, ("event", "constant"), jnp.float32)
    z0 = jnp.ones((2, 1))
    z = solved(decay, lambda a: a + 1.0, nothing, controlled=False, z0=z0)
    np.testing.assert_allclose(z, solve(decay, z0, TIMES, solver=FINE), rtol=1e-6)


def test_static_covariates_come_after_the_inputs():
    s = jnp.array([[2.0], [-1.0]])
    still = Inputs([[0.0]] * 2, np.full((2, 1, 1), 3.0), "constant")
    z = solved(lambda t, z, u: u[:, :1] + 10 * u[:, 1:], None, still, s=s)[..., 0]
    np.testing.assert_allclose(z, 1 + np.asarray(TIMES) * (3 + 10 * np.asarray(s)), rtol=1e-5)


def test_each_trajectory_has_its_own_time():
    z = solved(lambda t, z: jnp.full_like(z, 2 * t), lambda a: a, DOSES)[..., 0]
    given = [doses(TIMES[i], i, k=0.0) for i in (0, 1)]
    np.testing.assert_allclose(z, given + np.asarray(TIMES) ** 2, rtol=1e-5)


def test_gradients_are_those_of_finite_differences(x64):
    inputs = Inputs(DOSES.given_times, DOSES.given_values, "event")

    def total(parameters):
        k, g = parameters
        z = solve_driven(
            lambda t, z: -k * z,
            lambda a: a * g,
            jnp.ones((2, 1)),
            jnp.asarray(TIMES, float),
            Drive(inputs),
            solver=FINE,
        )
        return (z**2).sum()

    at = jnp.array([K, 1.4])
    gradient = jax.jit(jax.grad(total))(at)
    steps = 1e-5 * jnp.eye(2)
    differences = [(total(at + e) - total(at - e)) / 2e-5 for e in steps]
    assert gradient.dtype == jnp.float64
    np.testing.assert_allclose(gradient, differences, rtol=1e-6)
    # Also where no dose has an effect yet.
    assert jnp.isfinite(jax.grad(total)(jnp.array([K, 0.0]))).all()
    assert jax.grad(total)(jnp.array([K, 0.0]))[1] != 0


def model(solver=None, dynamics=None, jump=None, kinds=("event", "constant")):
    from np_latentode import Trajectories

    inputs = Inputs([[0.5]], np.ones((1, 1, len(kinds))), kinds)
    train = Trajectories([[0.0, 1.0]], [[[1.0], [2.0]]], inputs=inputs)
    return LatentODE(
        dynamics or MLPDynamics(2, rngs=rngs()),
        LinearDecoder(np.ones((1, 2)), np.zeros(1)),
        prior=StandardNormal(2),
        scaling=Scaling.fit(train),
        solver=solver,
        jump=jump,
    )


def rngs():
    from flax import nnx

    return nnx.Rngs(0)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (
            lambda: dict(
                jump=LinearJump.zeros(1, 2),
                solver=Solver(controller=diffrax.PIDController(rtol=1e-3, atol=1e-3)),
            ),
            "solver must take constant steps of an explicit .* got Bosh3 with PIDController",
        ),
        (
            lambda: dict(
                dynamics=MLPDynamics(2, num_inputs=1, rngs=rngs()),
                solver=Solver(diffrax.Kvaerno3()),
            ),
            "solver must take constant steps of an explicit .* got Kvaerno3",
        ),
        (
            lambda: dict(dynamics=MLPDynamics(2, num_inputs=2, rngs=rngs())),
            "dynamics must read as many constant and linear inputs as the scaling has, 1; got 2",
        ),
        (
            lambda: dict(jump=LinearJump.zeros(1, 3)),
            r"jump must return the shape of z, \(trajectory, 2\); got \(1, 3\)",
        ),
        (
            lambda: dict(jump=LinearJump.zeros(2, 2)),
            r"jump must accept inputs of shapes \(1, 1\)",
        ),
        (
            lambda: dict(jump=LinearJump.zeros(1, 2), kinds=("linear",)),
            "jump must be left out where no input is an event",
        ),
    ],
)
def test_parts_that_do_not_fit_the_inputs_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        model(**arguments())


def test_a_solve_to_its_last_step_has_not_run_out_of_steps():
    # In double precision, 0.1 * 9 is less than 0.9 in single precision.
    nine = Solver(diffrax.Tsit5(), dt0=0.1, max_steps=9)
    times = jnp.array([[0.9], [0.5]])
    z = solved(decay, lambda amounts: amounts, DOSES, times=times, solver=nine)[..., 0]
    np.testing.assert_allclose(z, [doses(times[i], i) for i in (0, 1)], rtol=2e-5)

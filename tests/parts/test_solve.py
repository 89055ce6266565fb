import functools
import os
import subprocess
import sys
from dataclasses import replace
from types import MappingProxyType

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from np_latentode import Solver
from np_latentode.parts.solve import LONGEST_SCAN, _can_scan, solve

pytestmark = pytest.mark.usefixtures("compile_quickly")

DT0, MAX_STEPS = 1 / 8, 64
ORDERS = {
    diffrax.Euler(): 1,
    diffrax.Heun(): 2,
    diffrax.Bosh3(): 3,
    diffrax.Tsit5(): 5,
}
SOLVERS = {
    type(method).__name__: Solver(method, dt0=DT0, max_steps=MAX_STEPS) for method in ORDERS
} | {
    "direct": Solver(
        diffrax.Tsit5(), dt0=DT0, max_steps=MAX_STEPS, adjoint=diffrax.DirectAdjoint()
    ),
    "constant": Solver(dt0=1 / 12),
    "short": Solver(dt0=1 / 12, max_steps=32),
    "silent": Solver(dt0=1 / 12, max_steps=32, throw=False),
    "silent diffrax": Solver(
        dt0=1 / 12, max_steps=32, throw=False, adjoint=diffrax.DirectAdjoint()
    ),
    "short diffrax": Solver(dt0=1 / 12, max_steps=32, adjoint=diffrax.DirectAdjoint()),
    "adaptive": Solver(diffrax.Tsit5(), diffrax.PIDController(rtol=1e-6, atol=1e-7), dt0=None),
}
SCANNED = ("Midpoint", "Heun", "Bosh3", "Tsit5", "Dopri5")
for name in SCANNED:
    SOLVERS[f"{name} by scan"] = Solver(getattr(diffrax, name)(), dt0=DT0, max_steps=32)
    SOLVERS[f"{name} by diffrax"] = replace(
        SOLVERS[f"{name} by scan"], adjoint=diffrax.DirectAdjoint()
    )
Z0 = np.array([[1.0, 0.5], [-0.3, 2.0]])
# With fixed shapes, and fields that differ by numbers only, each solver is compiled once.
WEIGHTS = np.random.default_rng(0).normal(size=(2, 8, 2))
MIXED = MappingProxyType(dict(turn=1.3, decay=0.4, drive=0.7, cube=-0.2))


def field(numbers, t, z):
    turn, decay, drive, cube = numbers
    rotated = jnp.stack([-z[:, 1], z[:, 0]], axis=-1)
    return turn * rotated - decay * z + drive * jnp.cos(t) + cube * z**3


def numbers(*, turn=0.0, decay=0.0, drive=0.0, cube=0.0):
    return jnp.array([turn, decay, drive, cube], dtype=float)


def curves(*, times, z0=Z0, turn=0.0, decay=0.0, drive=0.0):
    """The closed form of a rotation that decays, or of the drive alone."""
    t = np.asarray(times, np.float64)[..., None]
    x, y = np.split(np.asarray(z0, np.float64)[:, None], 2, axis=-1)
    cos, sin = np.cos(turn * t), np.sin(turn * t)
    rotated = np.concatenate([cos * x - sin * y, sin * x + cos * y], axis=-1)
    return np.exp(-decay * t) * rotated + drive * np.sin(t)


def rows(first, second=None):
    return np.stack([first, first if second is None else second])


@functools.cache
def run_jitted(name):
    return jax.jit(
        lambda numbers, z0, times: solve(
            functools.partial(field, numbers), z0, times, solver=SOLVERS[name]
        )
    )


def run(name, numbers, times, z0=Z0):
    return run_jitted(name)(numbers, jnp.asarray(z0, float), jnp.asarray(times, float))


@functools.cache
def gradient_jitted(name):
    def loss(numbers, z0, times):
        z = solve(functools.partial(field, numbers), z0, times, solver=SOLVERS[name])
        return jnp.sum(WEIGHTS * z)

    # With the value: for the gradient alone, JAX may remove the checks of the states.
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def gradient(name, numbers, times, z0=Z0):
    run = gradient_jitted(name)
    return run(numbers, jnp.asarray(z0, float), jnp.asarray(times, float))[1]


@pytest.mark.parametrize(
    "one",
    [dict(turn=7.5), dict(decay=2.0), dict(drive=1.0)],
    ids=["rotation", "decay", "time-dependent"],
)
def test_closed_forms_are_met_at_irregular_times(one):
    times = rows(
        [0.0, 0.01, 0.2, 0.33, 0.5, 0.77, 0.9, 1.0], [0.1, 0.11, 0.2, 0.3, 0.4, 0.5, 0.5, 0.6]
    )
    z = run("adaptive", numbers(**one), times)
    np.testing.assert_allclose(z, curves(times=times, **one), atol=2e-4)


@pytest.mark.parametrize("one", [dict(turn=1.0), dict(decay=0.3), dict(drive=1.0)], ids=str)
@pytest.mark.parametrize("name", ["adaptive", "constant"])
def test_horizons_ten_times_as_long_are_solved_without_a_new_compile(name, one):
    run(name, numbers(**one), rows(np.linspace(0, 1, 8)))
    compiled = run_jitted(name)._cache_size()
    times = rows(np.linspace(0, 10, 8), np.linspace(0, 7, 8))
    z = run(name, numbers(**one), times)
    np.testing.assert_allclose(z, curves(times=times, **one), atol=1e-3)
    assert run_jitted(name)._cache_size() == compiled


@pytest.mark.parametrize("name", ["adaptive", "constant"])
def test_the_state_at_time_zero_is_z0(name, tolerance):
    at_zero = run(name, numbers(**MIXED), rows(np.linspace(0, 3, 8)))[:, 0]
    np.testing.assert_allclose(at_zero, Z0, rtol=tolerance(1e-7, 1e-15))
    nothing_later = run(name, numbers(**MIXED), rows(np.zeros(8)))
    np.testing.assert_allclose(
        nothing_later, Z0[:, None].repeat(8, axis=1), rtol=tolerance(1e-7, 1e-15)
    )


@pytest.mark.parametrize("name", ["adaptive", "constant"])
def test_the_latest_time_is_met_wherever_it_lies(name):
    steps = np.arange(1, 100) / 12
    for end in np.concatenate([steps, np.linspace(1e-3, 8.3, 50)]):
        times = rows(np.linspace(0, end, 8))
        z = run(name, numbers(drive=1.0), times)
        np.testing.assert_allclose(
            z[:, -1], curves(times=times, drive=1.0)[:, -1], atol=2e-5, err_msg=f"end={end}"
        )


def test_the_latest_time_may_be_the_end_of_the_last_step_allowed(x64):
    times = rows(np.linspace(0, MAX_STEPS * DT0, 8))
    z = run("Tsit5", numbers(drive=1.0), times)
    np.testing.assert_allclose(z, curves(times=times, drive=1.0), atol=1e-6)
    with pytest.raises(Exception, match=f"max_steps={MAX_STEPS}"):
        run("Tsit5", numbers(drive=1.0), times * 1.001)


def test_times_may_come_in_any_order():
    times = rows(np.linspace(0, 2, 8), np.linspace(0.3, 1, 8))
    order = np.array([3, 7, 0, 2, 6, 1, 5, 4])
    z = run("constant", numbers(**MIXED), times)
    np.testing.assert_array_equal(run("constant", numbers(**MIXED), times[:, order]), z[:, order])


def test_times_before_zero_count_as_zero(tolerance):
    z = run("constant", numbers(**MIXED), rows(np.linspace(-1, 2, 8)))
    np.testing.assert_allclose(z[:, 0], Z0, rtol=tolerance(1e-7, 1e-15))


@pytest.mark.parametrize("longer", [1.01, 2.0, 9.3])
def test_a_longer_companion_changes_nothing_with_constant_steps(longer, tolerance):
    own, fields = np.linspace(0, 0.97, 8), numbers(**MIXED)
    alone = run("constant", fields, rows(own), z0=rows(Z0[0]))[0]
    together = run("constant", fields, rows(own, longer * own), z0=Z0)[0]
    np.testing.assert_allclose(together, alone, atol=tolerance(2e-6, 1e-13))


def test_the_order_of_trajectories_changes_nothing(tolerance):
    times = rows(np.linspace(0, 2, 8), np.linspace(0.3, 1, 8))
    z = run("constant", numbers(**MIXED), times)
    swapped = run("constant", numbers(**MIXED), times[::-1], z0=Z0[::-1])
    np.testing.assert_allclose(swapped[::-1], z, atol=tolerance(1e-6, 1e-14))


def errors_at_and_between_steps(name, num_steps):
    """Errors of a turn by 1.5 radians in num_steps steps: at steps, and in the middle of steps."""
    end = num_steps * DT0
    times = np.arange(1, 9) * end / 8
    times = rows(times, times - DT0 / 2)
    z0, turn = rows(Z0[0]), 1.5 / end
    z = run(name, numbers(turn=turn), times, z0=z0)
    return np.abs(z - curves(times=times, z0=z0, turn=turn)).max(axis=(1, 2))


@pytest.mark.parametrize(
    ("name", "order"), [(type(method).__name__, order) for method, order in ORDERS.items()]
)
@pytest.mark.slow
def test_errors_shrink_with_the_order_of_the_method(x64, name, order):
    coarse, fine = (errors_at_and_between_steps(name, n) for n in (24, 48))
    np.testing.assert_allclose(np.log2(coarse / fine)[0], order, atol=0.15)


def test_reading_off_between_the_steps_is_of_fourth_order(x64):
    coarse, fine = (errors_at_and_between_steps("Tsit5", n) for n in (24, 48))
    np.testing.assert_allclose(np.log2(coarse / fine)[1], 4, atol=0.15)
    assert fine[1] > 10 * fine[0]


def test_gradients_are_those_of_finite_differences(x64):
    times, fields = rows(np.linspace(0, 2, 8), np.linspace(0.3, 1.9, 8)), numbers(**MIXED)

    def loss(flat):
        return np.sum(WEIGHTS * run("Tsit5", flat[:4], times, z0=flat[4:].reshape(2, 2)))

    flat = np.concatenate([fields, Z0.ravel()])
    nudges = 1e-5 * np.eye(8)
    differences = [(loss(flat + nudge) - loss(flat - nudge)) / 2e-5 for nudge in nudges]
    by_numbers, by_z0 = gradient("Tsit5", fields, times)
    np.testing.assert_allclose(
        np.concatenate([by_numbers, by_z0.ravel()]), differences, rtol=1e-7, atol=1e-8
    )


@pytest.mark.slow
def test_gradients_and_states_are_those_of_a_much_finer_solve(x64):
    times, fields = np.linspace(0, 2, 8), numbers(**MIXED)

    def finer(fields, z0):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, fields: field(fields, t, z)),
            diffrax.Dopri8(),
            t0=0.0,
            t1=2.0,
            dt0=None,
            y0=z0,
            args=fields,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-11),
        )
        z = solution.ys.swapaxes(0, 1)
        return jnp.sum(WEIGHTS * z), z

    reference, z = jax.jit(jax.grad(finer, argnums=(0, 1), has_aux=True))(fields, Z0)
    np.testing.assert_allclose(run("Tsit5", fields, rows(times)), z, atol=2e-5)
    for got, expected in zip(gradient("Tsit5", fields, rows(times)), reference, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_direct_and_checkpointed_adjoints_give_the_same_gradients(x64):
    times = rows(np.linspace(0, 2, 8), np.linspace(0.3, 1.9, 8))
    direct = gradient("direct", numbers(**MIXED), times)
    for a, b in zip(direct, gradient("Tsit5", numbers(**MIXED), times), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANNED)
def test_a_scan_gives_the_states_and_gradients_of_diffrax(x64, name):
    # Of 32 steps, 18 are taken.
    times = rows(np.linspace(0, 2.2, 8), np.linspace(0.3, 1.9, 8))
    ways = [f"{name} by {way}" for way in ("scan", "diffrax")]
    one, other = (run(way, numbers(**MIXED), times) for way in ways)
    np.testing.assert_allclose(one, other, rtol=1e-11)
    one, other = (gradient(way, numbers(**MIXED), times) for way in ways)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_few_explicit_constant_steps_with_the_default_adjoint_are_scanned():
    adaptive = diffrax.PIDController(rtol=1e-3, atol=1e-3)
    others = [
        *(Solver(method()) for method in (diffrax.Euler, diffrax.Kvaerno3, diffrax.KenCarp3)),
        Solver(controller=adaptive),
        Solver(adjoint=diffrax.DirectAdjoint()),
        Solver(max_steps=LONGEST_SCAN + 1),
    ]
    assert not any(_can_scan(solver) for solver in others)
    assert all(_can_scan(SOLVERS[f"{name} by scan"]) for name in SCANNED)
    assert _can_scan(Solver())


@pytest.mark.slow
def test_a_field_that_ends_with_the_solve_has_finite_gradients(x64):
    def loss(z0, end):
        def field(z0, t, z):
            return z0 * jnp.sqrt(end + DT0 / 2 - t)  # NaN one step after the end

        times = jnp.linspace(0, end, 4)[None]
        bound = functools.partial(field, z0)
        return solve(bound, z0, times, solver=SOLVERS["Bosh3 by scan"]).sum()

    z0, ends = jnp.ones((1, 2)), jnp.array([2, 7, 32]) * DT0
    values, slopes = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(z0, ends)
    assert np.isfinite(values).all()
    assert np.isfinite(slopes).all()


@pytest.mark.slow
def test_solves_of_several_lengths_can_be_mapped(x64):
    def loss(numbers, times):
        z = solve(
            functools.partial(field, numbers), jnp.asarray(Z0), times, solver=SOLVERS["short"]
        )
        return (z**2).sum()

    times = jnp.stack([rows(np.linspace(0, end, 8)) for end in (0.1, 0.9, 2.0)])
    slope = jax.grad(loss)
    together = jax.vmap(slope, in_axes=(None, 0))(numbers(**MIXED), times)
    alone = jnp.stack([slope(numbers(**MIXED), one) for one in times])
    np.testing.assert_allclose(together, alone, rtol=1e-11)


def test_forward_and_reverse_derivatives_agree(x64):
    def final(numbers):
        times = jnp.asarray(rows(np.linspace(0, 1, 8)))
        z0 = jnp.asarray(Z0)
        return solve(functools.partial(field, numbers), z0, times, solver=SOLVERS["short"])[:, -1]

    forward, reverse = (of(final)(numbers(**MIXED)) for of in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(forward, reverse, rtol=1e-11)


def test_gradients_at_time_zero_are_those_of_z0(x64):
    by_numbers, by_z0 = gradient("Tsit5", numbers(**MIXED), rows(np.zeros(8)))
    np.testing.assert_allclose(by_z0, WEIGHTS.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(by_numbers, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "turn", "end", "max_steps"),
    [
        ("constant", 1.0, 30.0, 256),
        ("short", 1.0, 3.0, 32),
        ("short diffrax", 1.0, 3.0, 32),
        ("adaptive", 50.0, 10.0, 256),
    ],
)
def test_running_out_of_steps_is_an_error_that_names_max_steps(name, turn, end, max_steps):
    with pytest.raises(Exception, match=rf"ran out of steps.*max_steps={max_steps}"):
        run(name, numbers(turn=turn), rows(np.linspace(0, end, 8)))


@pytest.mark.parametrize("name", ["constant", "short diffrax"])
@pytest.mark.parametrize("row", [0, 1])
def test_a_diverging_field_is_an_error_that_names_the_row(row, name):
    z0 = np.full((2, 2), 0.1)
    z0[row] = 100.0
    with pytest.raises(Exception, match=f"diverged: row {row} "):
        run(name, numbers(cube=1.0), rows(np.linspace(0, 1, 8)), z0=z0)


def test_a_field_that_is_nan_is_an_error():
    with pytest.raises(Exception, match="diverged: row 0 "):
        run("constant", numbers(drive=np.nan), rows(np.linspace(0, 1, 8)))


@pytest.mark.parametrize("name", ["silent", "silent diffrax"])
@pytest.mark.parametrize("row", [0, 1])
def test_without_throw_a_row_that_diverges_is_nan_and_the_other_as_ever(row, name, tolerance):
    z0 = np.full((2, 2), 0.1)
    calm = run(name, numbers(cube=1.0), rows(np.linspace(0, 1, 8)), z0=z0)
    z0[row] = 100.0
    z = run(name, numbers(cube=1.0), rows(np.linspace(0, 1, 8)), z0=z0)
    assert np.isnan(z[row]).all()
    np.testing.assert_allclose(z[1 - row], calm[1 - row], rtol=tolerance(1e-6, 1e-14))


@pytest.mark.parametrize("name", ["silent", "silent diffrax"])
def test_without_throw_all_rows_are_nan_where_the_steps_run_out(name):
    z = run(name, numbers(turn=1.0), rows(np.linspace(0, 3, 8)))
    assert np.isnan(z).all()


def test_without_throw_a_solve_that_succeeds_is_the_same():
    times = rows(np.linspace(0, 1, 8))
    z = run("silent", numbers(**MIXED), times)
    np.testing.assert_array_equal(z, run("short", numbers(**MIXED), times))


def test_a_row_that_diverges_after_its_own_last_time_is_named_too(x64):
    """Its states after that time are not returned, but would make every gradient NaN."""
    times = rows(np.linspace(0, 3, 8), np.linspace(0, 0.05, 8))
    with pytest.raises(Exception, match="diverged: row 1 "):
        gradient("Tsit5", numbers(cube=1.0), times, z0=rows([0.1, 0.1], [2.0, 2.0]))


SCRIPT = """
import jax, jax.numpy as jnp
from np_latentode import Solver
from np_latentode.parts.solve import solve

run = jax.jit(lambda z0, times: solve(lambda t, z: z**3, z0, times, solver=Solver(dt0=1 / 12)))
for z0, end in ((0.1, 1.0), (100.0, 1.0), (0.1, 30.0)):
    try:
        z = run(jnp.array([[0.1], [z0]]), jnp.array([[0.5, end]] * 2))
        print(f"{float(z[1, 1, 0]):.4f}")
    except Exception as error:
        (line,) = [line for line in str(error).splitlines() if "The ODE solve" in line]
        print(line)
"""


@pytest.mark.slow
def test_an_executable_from_the_compilation_cache_raises_its_errors(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    for process in ("compiles", "loads"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{process}: {done.stderr[-2000:]}"
        solved, diverged, ran_out = done.stdout.splitlines()
        assert solved == "0.1010", process
        assert "diverged: row 1 " in diverged, process
        assert "max_steps=256" in ran_out, process


BAD_SOLVERS = {
    "method by name": ("method must be a diffrax.AbstractSolver", dict(method="Tsit5")),
    "method by class": ("method must be a diffrax.AbstractSolver", dict(method=diffrax.Tsit5)),
    "no method": ("method must be a diffrax.AbstractSolver", dict(method=None)),
    "controller": ("controller must be a diffrax.AbstractStepSize", dict(controller=1e-3)),
    "adjoint": ("adjoint must be a diffrax.AbstractAdjoint", dict(adjoint="backsolve")),
    "backsolve": ("adjoint.*BacksolveAdjoint", dict(adjoint=diffrax.BacksolveAdjoint())),
    "implicit": ("adjoint.*ImplicitAdjoint", dict(adjoint=diffrax.ImplicitAdjoint())),
    "constant steps of no size": ("dt0.*ConstantStepSize.*None", dict(dt0=None)),
    "zero dt0": ("dt0 must be positive.*0", dict(dt0=0.0)),
    "negative dt0": ("dt0 must be positive.*-1", dict(dt0=-1.0)),
    "NaN dt0": ("dt0 must be positive.*nan", dict(dt0=np.nan)),
    "infinite dt0": ("dt0 must be.*finite.*inf", dict(dt0=np.inf)),
    "no steps": ("max_steps must be a positive integer; got 0", dict(max_steps=0)),
    "half a step": ("max_steps must be a positive integer; got 2.5", dict(max_steps=2.5)),
    "unbounded steps": ("max_steps must be a positive integer; got None", dict(max_steps=None)),
    "a word for throw": ("throw must be True or False; got .no.", dict(throw="no")),
}


@pytest.mark.parametrize(("match", "arguments"), BAD_SOLVERS.values(), ids=BAD_SOLVERS)
def test_bad_solvers_are_refused(untyped, match, arguments):
    with pytest.raises(ValueError, match=match):
        Solver(**arguments)


@pytest.mark.slow
def test_neither_max_steps_nor_the_number_of_times_changes_what_is_read():
    times = jnp.sort(jax.random.uniform(jax.random.key(0), (3, 60), maxval=4.0), axis=1)
    z0 = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]])

    def field(t, z):
        return jnp.stack([z[:, 1], -z[:, 0]], axis=-1)

    def squared(z0, solver):
        z = solve(field, z0, times, solver=solver)
        return (z**3).sum(), z

    tight, loose = (Solver(dt0=0.5, max_steps=n) for n in (8, 64))
    (_, one), of_one = jax.value_and_grad(squared, has_aux=True)(z0, tight)
    (_, other), of_other = jax.value_and_grad(squared, has_aux=True)(z0, loose)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(of_one, of_other, rtol=1e-4, atol=1e-3)
    # Few times per solve, with the same solver.
    few = jnp.concatenate([solve(field, z0, t, solver=tight) for t in jnp.split(times, 6, 1)], 1)
    np.testing.assert_allclose(one, few, atol=1e-4)


@pytest.mark.slow
def test_memory_of_a_solve_does_not_grow_with_max_steps_at_each_time():
    def needed(num_times, max_steps):
        def squared(z0, times):
            solver = Solver(diffrax.Euler(), max_steps=max_steps)
            return (solve(lambda t, z: -z, z0, times, solver=solver) ** 2).sum()

        shapes = (jax.ShapeDtypeStruct((3, *more), jnp.float32) for more in [(2,), (num_times,)])
        compiled = jax.jit(jax.grad(squared)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    of_few, of_many = (needed(10, max_steps) for max_steps in (16, 256))
    assert needed(2_000, 256) - of_many < 1.1 * (needed(2_000, 16) - of_few)
    # As weights for each time and step, 257 numbers for each of 6,000 times would be 6 MiB.
    assert needed(2_000, 256) < 2**20


def test_a_solver_knows_the_steps_to_a_time():
    solver = Solver(dt0=0.5, max_steps=64)
    assert [solver.steps_to(end) for end in (-1.0, 0.0, 0.4, 3.4, 3.6, 1e6)] == [1, 1, 2, 8, 16, 64]
    adaptive = Solver(controller=diffrax.PIDController(rtol=1e-3, atol=1e-3), max_steps=64)
    assert adaptive.steps_to(3.4) == 64
    times = rows([0.0, 3.5])
    needed = Solver(dt0=1 / 12, max_steps=Solver(dt0=1 / 12).steps_to(3.5))
    assert needed.max_steps < Solver().max_steps
    for one in (needed, Solver(dt0=1 / 12)):
        z = solve(lambda t, z: -z, jnp.asarray(Z0), jnp.asarray(times), solver=one)
        np.testing.assert_allclose(z[:, 1], np.exp(-3.5) * Z0, rtol=1e-3)

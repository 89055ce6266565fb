import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.integrate import solve_ivp

from np_latentode import GRU, ODERNN, PathODE, Solver, Trajectories

pytestmark = pytest.mark.usefixtures("compile_quickly")

HIDDEN = 5
METHODS = [diffrax.Euler(), diffrax.Midpoint(), diffrax.Tsit5()]
SHORT_STEPS = Solver(diffrax.Midpoint(), dt0=1 / 8)
ENCODERS = {
    "ODERNN": lambda method=None: ODERNN(
        2, hidden_dim=HIDDEN, width=6, method=method, rngs=nnx.Rngs(0)
    ),
    "PathODE": lambda solver=SHORT_STEPS: PathODE(
        2, hidden_dim=HIDDEN, width=6, solver=solver, rngs=nnx.Rngs(0)
    ),
    "GRU": lambda: GRU(2, hidden_dim=HIDDEN, rngs=nnx.Rngs(0)),
}


def make_encoder(name, *arguments):
    encoder = ENCODERS[name](*arguments)

    def off_zero(leaf):
        return leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    # Not zero: with biases of zero, evolution and update would leave a state of zero unchanged.
    nnx.update(encoder, jax.tree.map(off_zero, nnx.state(encoder)))
    return encoder


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request):
    return make_encoder(request.param)


@pytest.fixture(scope="module")
def run(encoder):
    graph, _ = nnx.split(encoder)
    run = jax.jit(lambda state, *arrays: nnx.merge(graph, state)(*arrays))
    return lambda state, x: np.asarray(run(state, x.times, x.values, x.mask))


@pytest.fixture(scope="module")
def encode(run, encoder):
    return lambda x: run(nnx.state(encoder), x)


@pytest.fixture
def trajectories():
    """Rows with a repeated time, missing values, a single observation, and no observation."""
    rng = np.random.default_rng(1)
    times, values = np.sort(rng.uniform(0, 1, (4, 6)), axis=1), rng.normal(size=(4, 6, 2))
    times[0, 3] = times[0, 2]
    mask = rng.uniform(size=values.shape) < 0.7
    mask[0] = True
    mask[2] = mask[3] = False
    mask[2, 3, 0] = True
    return Trajectories(times, values, mask)


@pytest.fixture
def close(tolerance):
    def assert_close(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(1e-6, 1e-13))

    return assert_close


def padded(times, values, mask, padding):
    widths = ((0, 0), (0, padding))
    return Trajectories(
        np.pad(times, widths, mode="edge"),
        np.pad(values, (*widths, (0, 0))),
        np.pad(mask, (*widths, (0, 0))),
    )


@pytest.mark.slow
def test_padding_changes_nothing(encode, trajectories, close):
    x = trajectories
    close(encode(padded(x.times, x.values, x.mask, 3)), encode(x))


@pytest.mark.parametrize("slots", [(0,), (2,), (5,), (0, 2, 3), (3, 4, 5)], ids=str)
def test_masking_times_is_deleting_them(encode, trajectories, close, slots):
    x, seen = trajectories, ~np.isin(np.arange(6), slots)
    # Padded to the former length, which saves a compilation.
    deleted = padded(x.times[:, seen], x.values[:, seen], x.mask[:, seen], len(slots))
    close(encode(x.keep(seen[None].repeat(4, axis=0))), encode(deleted))


def test_hiding_the_end_is_never_having_seen_it(encode, trajectories, close):
    """The times of hidden observations are not read either."""
    cut = trajectories.before(trajectories.times[:, 2] - 1e-3)
    times = np.asarray(cut.times).copy()
    times[:, 2:] = 1.5
    close(encode(cut), encode(Trajectories(times, cut.values, cut.mask)))


def test_the_order_of_trajectories_changes_nothing(encode, trajectories, close):
    order = np.array([2, 0, 3, 1])
    close(encode(trajectories[order]), encode(trajectories)[order])


def test_the_rest_of_the_batch_changes_nothing(encode, trajectories, close):
    for i in range(len(trajectories)):
        alone = encode(trajectories[np.full(4, i)])
        close(alone[0], encode(trajectories)[i])
        longer = np.arange(4) != i
        stretched = trajectories.times * np.where(longer, 7.0, 1.0)[:, None]
        others = Trajectories(stretched, trajectories.values, trajectories.mask)
        close(encode(others)[i], alone[0])


def test_an_empty_context_has_the_features_zero(encode, trajectories):
    np.testing.assert_array_equal(encode(trajectories)[3], np.zeros(HIDDEN))


@pytest.fixture(scope="module")
def gradient(encoder):
    graph, state = nnx.split(encoder)

    def loss(state, values, times, mask):
        return jnp.sum(nnx.merge(graph, state)(times, values, mask)[0] ** 2)

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return lambda x: jax.tree.leaves(run(state, x.values, x.times, x.mask))


@pytest.mark.parametrize("row", range(4), ids=["full", "missing", "single", "empty"])
@pytest.mark.slow
def test_gradients_are_finite(gradient, trajectories, row):
    gradients = [np.asarray(g) for g in gradient(trajectories[[row, 0]])]
    assert all(np.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients) == bool(trajectories.mask[row].any())
    if row == 0:
        assert all(np.abs(g).max() > 1e-6 for g in gradients)


@pytest.mark.parametrize("row", [0, 2], ids=["observed before", "never observed else"])
def test_a_value_of_zero_differs_from_a_missing_one(encode, trajectories, row):
    mask = np.asarray(trajectories.mask).copy()
    values = np.asarray(trajectories.values).copy()
    values[row, 3, 1] = 0.0
    mask[row, 3, 1] = True
    seen = Trajectories(trajectories.times, values, mask)
    mask[row, 3, 1] = False
    missing = Trajectories(trajectories.times, values, mask)
    np.testing.assert_array_equal(seen.values, missing.values)
    assert np.abs(encode(seen) - encode(missing))[row].max() > 1e-3


def test_features_belong_to_time_zero(encode, trajectories):
    later = Trajectories(trajectories.times + 0.5, trajectories.values, trajectories.mask)
    change = np.abs(encode(later) - encode(trajectories)).max(axis=1)
    assert (change[:3] > 1e-2).all()
    assert change[3] == 0


def test_wild_weights_leave_features_within_the_time_passed(run, encoder, trajectories):
    """Features of a GRU are within 1. Those of an ODE-RNN are not bounded."""
    wild = jax.tree.map(lambda leaf: 100 * leaf, nnx.state(encoder))
    features = np.abs(run(wild, trajectories))
    assert np.isfinite(features).all()
    if not isinstance(encoder, ODERNN):
        last = np.max(trajectories.times, axis=1, where=trajectories.observed, initial=0.0)
        bound = last if isinstance(encoder, PathODE) else np.sign(last)
        assert (features <= bound[:, None] + 1e-5).all()
        assert features.max() > 0.5


def test_parameters_are_all_that_an_encoder_holds(encoder):
    assert not jax.tree.leaves(nnx.state(encoder, nnx.Not(nnx.Param)))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_without_a_field_it_is_a_gru_that_reads_backwards(trajectories, close, method):
    encoder = make_encoder("ODERNN", method)
    nnx.update(encoder.field, jax.tree.map(jnp.zeros_like, nnx.state(encoder.field)))
    features = encoder(trajectories.times, trajectories.values, trajectories.mask)
    for i in range(len(trajectories)):
        h = jnp.zeros(HIDDEN, trajectories.values.dtype)
        for k in reversed(range(6)):
            if trajectories.observed[i, k]:
                x = jnp.concatenate([trajectories.values[i, k], trajectories.mask[i, k]])
                h, _ = encoder.cell(h, x)
        close(features[i], h)


def test_each_gap_is_one_step_of_the_method(x64):
    """For one observation at time t, the features have the error of one step of size t."""
    encoder = make_encoder("ODERNN")
    after_update, _ = encoder.cell(jnp.zeros((1, HIDDEN)), jnp.ones((1, 4)))

    @jax.jit
    def exact(t):
        dt, f = t / 50, encoder.field

        def runge_kutta(_, h):
            k1 = f(h)
            k2 = f(h + dt / 2 * k1)
            k3 = f(h + dt / 2 * k2)
            k4 = f(h + dt * k3)
            return h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        return jax.lax.fori_loop(0, 50, runge_kutta, after_update)

    def error(encode, t):
        values = jnp.ones((1, 1, 2))
        return np.abs(encode(jnp.full((1, 1), t), values, values > 0) - exact(t)).max()

    for method, local_order in zip(METHODS, (2, 3, None), strict=True):
        encode = jax.jit(make_encoder("ODERNN", method).__call__)
        large, small = error(encode, 0.2), error(encode, 0.1)
        if local_order is None:
            assert large < 1e-6
        else:
            np.testing.assert_allclose(np.log2(large / small), local_order, atol=0.3)


@pytest.mark.parametrize("method", ["Euler", diffrax.Euler, 3], ids=str)
def test_a_method_that_is_not_a_diffrax_solver_is_refused(untyped, method):
    with pytest.raises(ValueError, match=r"method must be a diffrax\.AbstractSolver; got"):
        make_encoder("ODERNN", method)


def test_a_gru_reads_backwards_and_then_the_gap_to_time_zero(trajectories, close):
    encoder = make_encoder("GRU")
    features = encoder(trajectories.times, trajectories.values, trajectories.mask)
    for i in range(3):
        h, later = jnp.zeros(HIDDEN, trajectories.values.dtype), None
        for k in reversed(np.flatnonzero(trajectories.observed[i])):
            time = trajectories.times[i, k]
            gap = 0.0 if later is None else later - time
            x = jnp.array([*trajectories.values[i, k], *trajectories.mask[i, k], gap])
            h, later = encoder.cell(h, x)[0], time
        h, _ = encoder.cell(h, jnp.array([0.0, 0.0, 0.0, 0.0, later]))
        close(features[i], h)


def path_by_hand(times, values, mask):
    """t -> [x(t), log(1 + number of observations from t on)], one feature after the other."""

    def path(t):
        path = []
        for value, seen in zip(values.T, mask.T, strict=True):
            known = times[seen], value[seen]
            left = np.log1p(np.arange(seen.sum(), 0, -1))
            path += [np.interp(t, *known), np.interp(t, known[0], left)] if seen.any() else [0, 0]
        return np.array(path)

    return path


def features_by_hand(encoder, times, values, mask):
    first, last = (encoder.field.layers[i] for i in (0, 2))
    weights = [np.asarray(a[...]) for a in (first.kernel, first.bias, last.kernel, last.bias)]
    path = path_by_hand(times, values, mask)

    def slope(t, h):
        hidden = np.concatenate([h, path(t), [t]]) @ weights[0] + weights[1]
        return -np.tanh(hidden / (1 + np.exp(-hidden)) @ weights[2] + weights[3])

    h = np.zeros(HIDDEN)
    # Solved piecewise between the kinks of the path, where the field is smooth.
    knots = np.unique([0.0, *times[mask.any(-1)]])[::-1]
    for start, end in itertools.pairwise(knots):
        h = solve_ivp(slope, (start, end), h, rtol=1e-9, atol=1e-11).y[:, -1]
    return h


@pytest.mark.slow
def test_features_of_a_path_converge_to_those_of_a_dense_solve(x64, trajectories):
    # Without the row that has a repeated time: there the path jumps.
    rows = [np.asarray(a)[1:] for a in (trajectories.times, trajectories.values, trajectories.mask)]
    encoder = make_encoder("PathODE")
    exact = np.array([features_by_hand(encoder, *row) for row in zip(*rows, strict=True)])

    def error(steps_a_unit):
        solver = Solver(diffrax.Midpoint(), dt0=1 / steps_a_unit, max_steps=steps_a_unit)
        encode = jax.jit(make_encoder("PathODE", solver).__call__)
        return np.abs(encode(*(jnp.asarray(a) for a in rows)) - exact).max()

    coarse, fine = error(8), error(256)
    assert fine < 3e-5
    assert coarse > 100 * fine


@pytest.mark.parametrize("solver", [diffrax.Midpoint(), 0.1], ids=["a method", "a step"])
def test_a_solver_of_another_type_is_refused(untyped, solver):
    with pytest.raises(ValueError, match=r"solver must be a np_latentode\.Solver; got"):
        make_encoder("PathODE", solver)

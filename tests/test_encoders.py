import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from np_latentode import ODERNN, Trajectories

HIDDEN = 5
METHODS = [diffrax.Euler(), diffrax.Midpoint(), diffrax.Tsit5()]


def make_encoder(method=None):
    encoder = ODERNN(2, hidden_dim=HIDDEN, width=6, method=method, rngs=nnx.Rngs(0))

    def off_zero(leaf):
        return leaf + 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    # Biases of zero would hide what an evolution or an update does to a state of zero.
    nnx.update(encoder, jax.tree.map(off_zero, nnx.state(encoder)))
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


@pytest.fixture(scope="module")
def encode(encoder):
    graph, state = nnx.split(encoder)
    run = jax.jit(lambda state, *arrays: nnx.merge(graph, state)(*arrays))
    return lambda x: np.asarray(run(state, x.times, x.values, x.mask))


@pytest.fixture
def trajectories():
    """Missing values, a trajectory with one observation, and one with none."""
    rng = np.random.default_rng(1)
    times, values = np.sort(rng.uniform(0, 1, (4, 6)), axis=1), rng.normal(size=(4, 6, 2))
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


@pytest.mark.parametrize("padding", [1, 7])
def test_padding_changes_nothing(encode, trajectories, close, padding):
    widths = ((0, 0), (0, padding))
    padded = Trajectories(
        np.pad(trajectories.times, widths, mode="edge"),
        np.pad(trajectories.values, (*widths, (0, 0))),
        np.pad(trajectories.mask, (*widths, (0, 0))),
    )
    close(encode(padded), encode(trajectories))


@pytest.mark.parametrize("slot", [0, 2, 5])
def test_masking_a_time_is_deleting_it(encode, trajectories, close, slot):
    seen = np.arange(6) != slot
    deleted = Trajectories(
        trajectories.times[:, seen], trajectories.values[:, seen], trajectories.mask[:, seen]
    )
    close(encode(trajectories.keep(seen[None].repeat(4, axis=0))), encode(deleted))


def test_hiding_the_end_is_never_having_seen_it(encode, trajectories, close):
    known = trajectories.times[0, 2]
    cut = trajectories[:1].before(known)
    short = Trajectories(cut.times[:, :3], cut.values[:, :3], cut.mask[:, :3])
    close(encode(cut), encode(short))


def test_the_order_of_trajectories_changes_nothing(encode, trajectories, close):
    order = np.array([2, 0, 3, 1])
    close(encode(trajectories[order]), encode(trajectories)[order])


def test_the_rest_of_the_batch_changes_nothing(encode, trajectories, close):
    for i in range(len(trajectories)):
        close(encode(trajectories[i]), encode(trajectories)[i : i + 1])


def test_an_empty_context_has_the_features_zero(encode, trajectories):
    np.testing.assert_array_equal(encode(trajectories[3]), np.zeros((1, HIDDEN)))


@pytest.fixture(scope="module")
def gradient(encoder):
    graph, state = nnx.split(encoder)

    def loss(state_and_values, times, mask):
        state, values = state_and_values
        return jnp.sum(nnx.merge(graph, state)(times, values, mask) ** 2)

    run = jax.jit(jax.grad(loss))
    return lambda x: jax.tree.leaves(run((state, x.values), x.times, x.mask))


@pytest.mark.parametrize("row", [0, 2, 3], ids=["full", "single", "empty"])
def test_gradients_are_finite(gradient, trajectories, row):
    gradients = [np.asarray(g) for g in gradient(trajectories[row])]
    assert all(np.isfinite(g).all() for g in gradients)
    assert any(g.any() for g in gradients) == bool(trajectories.mask[row].any())


def test_a_value_of_zero_differs_from_a_missing_one(encode):
    times, values = np.array([[0.3, 0.8]]), np.array([[[1.0, 0.0], [2.0, -1.0]]])
    mask = np.ones(values.shape, bool)
    mask[0, 0, 1] = False
    seen, missing = Trajectories(times, values), Trajectories(times, values, mask)
    np.testing.assert_array_equal(seen.values, missing.values)
    assert np.abs(encode(seen) - encode(missing)).max() > 1e-3


def test_features_belong_to_time_zero(encode, trajectories):
    x = trajectories[2]
    later = Trajectories(x.times + 0.5, x.values, x.mask)
    assert np.abs(encode(later) - encode(x)).max() > 1e-3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_without_a_field_it_is_a_gru_that_reads_backwards(trajectories, close, method):
    encoder = make_encoder(method)
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
    """From one observation at time t, the features are one step of size t off the exact flow."""
    encoder = make_encoder()
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
        encode = jax.jit(make_encoder(method).__call__)
        large, small = error(encode, 0.2), error(encode, 0.1)
        if local_order is None:
            assert large < 1e-6
        else:
            np.testing.assert_allclose(np.log2(large / small), local_order, atol=0.3)


@pytest.mark.parametrize("method", ["Euler", diffrax.Euler, 3], ids=str)
def test_a_method_that_is_none_is_refused(untyped, method):
    with pytest.raises(ValueError, match=r"method must be a diffrax\.AbstractSolver; got"):
        make_encoder(method)

import contextlib

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers as handlers
import pytest
from flax import nnx
from helpers import sites_of
from numpyro.infer import Predictive, log_likelihood

from np_latentode import (
    ODERNN,
    DiagonalNormal,
    Fitted,
    GaussianLikelihood,
    MLPDecoder,
    MLPDynamics,
    Scaling,
    Solver,
    StandardNormal,
    Trajectories,
    latent_ode,
    posterior,
)
from np_latentode.data.offset import Offset
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

NUM, NUM_TIMES, NUM_FEATURES, LATENT_DIM = 5, 4, 2, 2
T0 = 1.0


def untrained(program, context):
    """The initial parameters of a program."""
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        program(context)
    return {name: site["value"] for name, site in sites.items() if site["type"] == "param"}


def make_trajectories(seed=0, *, num_features=NUM_FEATURES, start=T0, num=NUM):
    rng = np.random.default_rng(seed)
    times = start + np.sort(rng.uniform(0, 2, (num, NUM_TIMES)), axis=1)
    values = 5 + 2 * np.sin(times[..., None] + np.arange(num_features))
    values += rng.normal(0, 0.3, values.shape)
    values[rng.uniform(size=values.shape) < 0.2] = np.nan
    return Trajectories(times, values)


def make_parts(seed=0):
    rngs = nnx.Rngs(seed)
    return {
        "dynamics": MLPDynamics(LATENT_DIM, width=8, depth=1, rngs=rngs),
        "decoder": MLPDecoder(LATENT_DIM, NUM_FEATURES, width=8, rngs=rngs),
        "encoder": ODERNN(NUM_FEATURES, hidden_dim=8, width=8, rngs=rngs),
        "posterior": DiagonalNormal(8, LATENT_DIM, width=8, rngs=rngs),
    }


def make_pair(scaling, **options):
    return latent_ode(
        make_trajectories(),
        latent_dim=LATENT_DIM,
        scaling=scaling,
        # Steps are so long that a dependence on the times of other trajectories would be seen.
        solver=Solver(dt0=1.0),
        rngs=nnx.Rngs(0),
        **make_parts() | options,
    )


SCALING = Scaling(np.array([4.0, 6.0]), np.array([2.0, 0.5]), t0=T0, time_unit=2.0)


@pytest.fixture(scope="module")
def train():
    return make_trajectories()


@pytest.fixture(scope="module")
def pair():
    return make_pair(SCALING)


@contextlib.contextmanager
def compilations():
    """Lists the functions that XLA compiles."""
    compiled = []

    def listen(event, duration, fun_name="", **_):
        # JAX compiles these to convert NumPy arrays of a new shape.
        intake = fun_name in ("jit(stage)", "jit(convert_element_type)")
        if event == "/jax/core/compile/backend_compile_duration" and not intake:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


# Bad input

TRAIN = make_trajectories()
BAD_CALLS = {
    "context is an array": ((np.zeros((NUM, NUM_TIMES)),), {}, "context must be Trajectories"),
    "context has other features": (
        (make_trajectories(num_features=3),),
        {},
        "context must have 2 features",
    ),
    "context before t0": ((make_trajectories(start=0.5),), {}, "context must not be earlier than"),
    "target is longer": (
        (TRAIN, make_trajectories(num=NUM + 1)),
        {},
        "target must have as many trajectories",
    ),
    "target has other features": (
        (TRAIN, make_trajectories(num_features=1)),
        {},
        "target must have 2 features",
    ),
    "target before t0": ((TRAIN, make_trajectories(start=0.5)), {}, "target must not be earlier"),
    "one time": ((TRAIN, 2.0), {}, "target must be Trajectories or times of shape"),
    "no times": ((TRAIN, np.zeros(0)), {}, "target must be Trajectories or times of shape"),
    "times of too few trajectories": (
        (TRAIN, np.full((NUM - 1, 3), 2.0)),
        {},
        "target must be Trajectories or times of shape",
    ),
    "times with a third axis": (
        (TRAIN, np.full((NUM, 3, 1), 2.0)),
        {},
        "target must be Trajectories or times of shape",
    ),
    "ragged times": ((TRAIN, [[2.0, 3.0], [2.0]]), {}, "target must"),
    "times as text": ((TRAIN, "tomorrow"), {}, "target must"),
    "time is NaN": ((TRAIN, np.array([2.0, np.nan])), {}, "target must be finite"),
    "time is infinite": ((TRAIN, np.array([2.0, np.inf])), {}, "target must be finite"),
    "time before t0": ((TRAIN, np.array([0.5, 2.0])), {}, "target must not be earlier than"),
    "batch of none": ((TRAIN,), {"batch_size": 0}, "batch_size must"),
    "batch of more than all": ((TRAIN,), {"batch_size": NUM + 1}, "batch_size must"),
    "batch of a half": ((TRAIN,), {"batch_size": 2.5}, "batch_size must"),
    "batch of predictions": ((TRAIN, TRAIN.times), {"batch_size": 2}, "batch_size must be None"),
    "kl_weight zero": ((TRAIN,), {"kl_weight": 0.0}, "kl_weight must be positive"),
    "kl_weight negative": ((TRAIN,), {"kl_weight": -1.0}, "kl_weight must be positive"),
    "kl_weight NaN": ((TRAIN,), {"kl_weight": np.nan}, "kl_weight must be positive"),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("args", "kwargs", "rule"), BAD_CALLS.values(), ids=BAD_CALLS.keys())
@pytest.mark.parametrize("which", [0, 1], ids=["model", "guide"])
def test_a_bad_call_is_refused_before_anything_compiles(pair, which, args, kwargs, rule):
    program = handlers.seed(pair[which], rng_seed=0)
    with compilations() as compiled, pytest.raises(ValueError, match=f"^{rule}"):
        program(*args, **kwargs)
    assert compiled == []


def test_compilations_are_noted():
    def successor(x):
        return x + 1

    with compilations() as compiled:
        jax.jit(successor)(np.float32(1))
    assert compiled == ["jit(successor)"]


class NotCallable(nnx.Module):
    pass


class Constant(nnx.Module):
    """Returns the same for all inputs."""

    def __init__(self, make):
        self.make = make

    def __call__(self, *inputs):
        return self.make()


BAD_PARTS = {
    "dynamics is a function": ({"dynamics": lambda t, z: z}, "dynamics must be a callable"),
    "decoder cannot be called": ({"decoder": NotCallable()}, "decoder must be a callable"),
    "prior is a distribution": ({"prior": dist.Normal(0.0, 1.0)}, "prior must be a callable"),
    "prior returns an array": ({"prior": Constant(lambda: jnp.zeros(2))}, "prior must"),
    "prior over numbers": (
        {"prior": Constant(lambda: dist.Normal(0.0, 1.0).expand([LATENT_DIM]))},
        "prior must",
    ),
    "encoder is a function": ({"encoder": lambda *inputs: 0.0}, "encoder must accept"),
    "posterior cannot be called": ({"posterior": NotCallable()}, "posterior must be a callable"),
    "posterior of another dimension": (
        {"posterior": DiagonalNormal(8, LATENT_DIM + 1, width=8, rngs=nnx.Rngs(0))},
        "posterior must",
    ),
    "dynamics of more dimensions": (
        {"dynamics": nnx.Linear(LATENT_DIM, LATENT_DIM, rngs=nnx.Rngs(0))},
        "dynamics must accept",
    ),
    "dynamics returns too much": (
        {"dynamics": Constant(lambda: jnp.zeros((1, LATENT_DIM + 1)))},
        "dynamics must return",
    ),
    "dynamics returns one row": (
        {"dynamics": Constant(lambda: jnp.zeros(LATENT_DIM))},
        "dynamics must return",
    ),
    "decoder of another input": (
        {"decoder": MLPDecoder(LATENT_DIM + 1, NUM_FEATURES, rngs=nnx.Rngs(0))},
        "decoder must accept",
    ),
    "decoder of other features": (
        {"decoder": MLPDecoder(LATENT_DIM, NUM_FEATURES + 1, rngs=nnx.Rngs(0))},
        "decoder must return",
    ),
    "solver is diffrax's": ({"solver": diffrax.Tsit5()}, "solver must be a np_latentode.Solver"),
    "scaling is a pair": ({"scaling": (0.0, 1.0)}, "scaling must be"),
    "noise of other features": (
        {"likelihood": GaussianLikelihood(np.ones(3))},
        "noise_scale must be",
    ),
    "likelihood is a class": ({"likelihood": GaussianLikelihood}, "likelihood must be callable"),
    "likelihood is a number": ({"likelihood": 0.1}, "likelihood must be callable"),
    "latent_dim zero": ({"latent_dim": 0}, "latent_dim must be a positive integer"),
    "latent_dim negative": ({"latent_dim": -2}, "latent_dim must be a positive integer"),
    "latent_dim a fraction": ({"latent_dim": 2.5}, "latent_dim must be a positive integer"),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("bad", "rule"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_part_is_refused_when_it_is_put_in(bad, rule):
    options = {"latent_dim": LATENT_DIM, "rngs": nnx.Rngs(0)} | make_parts() | bad
    with pytest.raises(ValueError, match=f"^{rule}"):
        latent_ode(TRAIN, **options)


@pytest.mark.usefixtures("untyped")
def test_only_trajectories_can_be_trained_on():
    with pytest.raises(ValueError, match=r"^train must be Trajectories; got ndarray"):
        latent_ode(np.zeros((3, 4)), latent_dim=2, rngs=nnx.Rngs(0))


# Sites and parameters


def test_sites_and_shapes_are_as_documented(pair, train):
    model, guide = pair
    num_queries = 3
    per_trajectory = np.full((NUM, num_queries), 2.0)
    for target, length in (
        (None, NUM_TIMES),
        (per_trajectory[0], num_queries),
        (per_trajectory, num_queries),
    ):
        sites = sites_of(model, train, target)
        assert sites["z0"]["fn"].event_dim == 1
        assert sites["z0"]["value"].shape == (NUM, LATENT_DIM)
        assert sites["x"]["value"].shape == (NUM, length, NUM_FEATURES)
        assert sites["x"]["fn"].batch_shape == (NUM,)
        assert sites["x"]["is_observed"] == (target is None)
        assert sites["x_mean"]["type"] == "deterministic"
        assert sites["x_mean"]["value"].shape == (NUM, length, NUM_FEATURES)
        assert sites_of(guide, train, target)["z0"]["value"].shape == (NUM, LATENT_DIM)


def test_noise_is_learned_for_each_feature_from_half_its_unit_on(pair, train):
    site = sites_of(pair[0], train)["noise_scale"]
    assert site["type"] == "param"
    assert site["kwargs"]["constraint"] is dist.constraints.positive

    @jax.jit
    def start():
        with handlers.seed(rng_seed=0), handlers.trace() as sites:
            pair[0](train)
        return sites["noise_scale"]["value"]

    np.testing.assert_allclose(start(), 0.5 * SCALING.scale, rtol=1e-6)


@pytest.mark.parametrize("noise_scale", [0.3, np.array([0.3, 0.7])], ids=["one", "per feature"])
def test_fixed_noise_is_no_parameter(train, noise_scale):
    model, _ = make_pair(SCALING, likelihood=GaussianLikelihood(noise_scale))
    assert "noise_scale" not in sites_of(model, train)
    x = model.likelihood(SCALING)(jnp.zeros((1, 1, 2)))
    np.testing.assert_allclose(
        jnp.broadcast_to(x.scale, (1, 1, 2))[0, 0], np.broadcast_to(noise_scale, 2), rtol=1e-6
    )


def test_every_part_can_be_replaced(train):
    parts = make_parts() | {"prior": StandardNormal(LATENT_DIM)}
    solver = Solver(method=diffrax.Tsit5(), dt0=0.5)
    model, guide = latent_ode(
        train, latent_dim=LATENT_DIM, scaling=SCALING, solver=solver, rngs=nnx.Rngs(0), **parts
    )
    assert {n: getattr(model, n) for n in ("dynamics", "decoder", "prior")}.items() <= parts.items()
    assert {n: getattr(guide, n) for n in ("encoder", "posterior")}.items() <= parts.items()
    assert model.solver is solver
    assert model.scaling is guide.scaling is SCALING


def test_the_same_rngs_give_the_same_networks_and_others_do_not(train):
    def weights(seed):
        model, guide = latent_ode(train, latent_dim=3, rngs=nnx.Rngs(seed))
        assert model.latent_dim == 3
        parts = (model.dynamics, model.decoder, guide.encoder, guide.posterior)
        return [np.asarray(leaf) for part in parts for leaf in jax.tree.leaves(nnx.state(part))]

    first, again, other = weights(0), weights(0), weights(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    # Biases start at zero whatever the seed.
    assert all(np.any(a != b) for a, b in zip(first, other, strict=True) if np.any(a))


def test_model_and_guide_of_one_call_share_their_units_with_the_data(train):
    model, guide = latent_ode(train, latent_dim=2, rngs=nnx.Rngs(0))
    fitted = Scaling.fit(train)
    assert model.scaling is guide.scaling
    np.testing.assert_array_equal(model.scaling.loc, fitted.loc)
    np.testing.assert_array_equal(model.scaling.scale, fitted.scale)
    assert (model.scaling.t0, model.scaling.time_unit) == (fitted.t0, fitted.time_unit)


# The density of a trajectory


@pytest.fixture(scope="module")
def densities(pair):
    """log q(z0 | context) and log p(target | z0) per trajectory, with untrained parameters."""
    model, guide = pair
    fitted = Fitted(model, guide, initial_params(model, guide))

    @jax.jit
    def run(context, target, z0):
        log_q = posterior(fitted, context).log_prob(z0)
        log_lik = log_likelihood(model, {"z0": z0}, context, target, batch_ndims=0)["x"]
        return log_q, log_lik

    return run


@pytest.fixture(scope="module")
def z0():
    return jnp.asarray(np.random.default_rng(1).normal(size=(NUM, LATENT_DIM)))


def assert_close(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_unobserved_times_change_nothing_wherever_they_are(train, z0, densities):
    expected = densities(train, train, z0)
    rng = np.random.default_rng(2)
    times, values = np.asarray(train.times), np.where(train.mask, train.values, np.nan)
    nothing = np.full((NUM, 3, NUM_FEATURES), np.nan)
    for extra in (np.repeat(times[:, -1:], 3, axis=1), rng.uniform(T0, T0 + 2, (NUM, 3))):
        longer = np.concatenate([times, extra], axis=1)
        order = np.argsort(longer, axis=1, kind="stable")
        padded = Trajectories(
            np.take_along_axis(longer, order, 1),
            np.take_along_axis(np.concatenate([values, nothing], 1), order[..., None], 1),
        )
        assert padded.mask.sum() == train.mask.sum()
        assert_close(densities(padded, padded, z0), expected)


def test_order_of_trajectories_changes_nothing(train, z0, densities):
    order = np.array([3, 0, 4, 1, 2])
    shuffled = densities(train[order], train[order], z0[order])
    assert_close(shuffled, [density[order] for density in densities(train, train, z0)])


def test_the_rest_of_the_batch_changes_nothing(train, z0, densities):
    expected = [density[1:3] for density in densities(train, train, z0)]
    assert_close(densities(train[1:3], train[1:3], z0[1:3]), expected)
    # Longer trajectories beside them make the joint solve longer.
    others = np.array([0, 3, 4])
    times = np.asarray(train.times).copy()
    times[others] = T0 + 5 * (times[others] - T0)
    mixed = Trajectories(times, np.where(train.mask, train.values, np.nan))
    together = densities(mixed, mixed, z0)
    assert_close([density[1:3] for density in together], expected)
    assert np.all(np.abs(together[1] - densities(train, train, z0)[1])[others] > 1e-3)


def test_the_target_is_scored_and_the_context_is_read(train, z0, densities):
    half = train.before(T0 + 1.0)
    log_q, log_lik = densities(train, train, z0)
    half_q, same_lik = densities(half, train, z0)
    same_q, half_lik = densities(train, half, z0)
    np.testing.assert_array_equal(same_q, log_q)
    np.testing.assert_array_equal(same_lik, log_lik)
    cut = np.asarray((half.mask != train.mask).any((1, 2)))
    assert cut.sum() >= 3
    assert np.all(np.abs(half_q - log_q)[cut] > 1e-4)
    assert np.all(np.abs(half_lik - log_lik)[cut] > 1e-4)


def test_given_z0_past_and_future_are_independent(train, z0, densities):
    _, past = densities(train, train.before(T0 + 1.0), z0)
    _, future = densities(train, train.after(T0 + 1.0), z0)
    _, whole = densities(train, train, z0)
    np.testing.assert_allclose(past + future, whole, rtol=1e-5)


# Units


def predict(model, context, z0, times, params):
    """x_mean and a draw of x at given times."""
    fitted = Predictive(model, {"z0": z0[None]}, params=params)
    draws = jax.jit(lambda: fitted(jax.random.key(0), context, times))()
    return np.asarray(draws["x_mean"][0]), np.asarray(draws["x"][0])


TIMES = T0 + np.array([0.0, 0.3, 1.7, 4.0])


@pytest.fixture(scope="module")
def predicted(pair, train, z0):
    return predict(pair[0], train, z0, TIMES, {})


def test_predictions_are_in_the_units_of_the_values(train, z0, predicted):
    # Floating point numbers are multiplied by powers of two without rounding.
    factor = np.array([4.0, 0.5])
    scaling = Scaling(SCALING.loc * factor, SCALING.scale * factor, T0, SCALING.time_unit)
    x_mean, x = predict(make_pair(scaling)[0], train, z0, TIMES, {})
    np.testing.assert_array_equal(x_mean, predicted[0] * factor)
    np.testing.assert_array_equal(x, predicted[1] * factor)


def test_predictions_do_not_depend_on_the_unit_of_time(z0, predicted):
    scaling = Scaling(SCALING.loc, SCALING.scale, 4 * T0, 4 * SCALING.time_unit)
    later = make_trajectories(start=4 * T0)
    x_mean, x = predict(make_pair(scaling)[0], later, z0, 4 * TIMES, {})
    np.testing.assert_array_equal(x_mean, predicted[0])
    np.testing.assert_array_equal(x, predicted[1])


def test_the_guide_reads_values_in_their_units(train, z0):
    scalings = (SCALING, Scaling(4 * SCALING.loc, 4 * SCALING.scale, T0, SCALING.time_unit))
    contexts = (train, Trajectories(train.times, 4 * train.values, train.mask))
    log_q = []
    for scaling, context in zip(scalings, contexts, strict=True):
        model, guide = make_pair(scaling)
        fitted = Fitted(model, guide, initial_params(model, guide))
        log_q.append(jax.jit(lambda *args: posterior(*args).log_prob(z0))(fitted, context))
    np.testing.assert_array_equal(*log_q)


def test_z0_is_the_state_at_t0(pair, z0, predicted):
    expected = SCALING.loc + SCALING.scale * np.asarray(pair[0].decoder(z0[:, None]))[:, 0]
    np.testing.assert_allclose(predicted[0][:, 0], expected, rtol=1e-5)


def test_models_that_differ_in_nothing_are_one_so_that_programs_are_compiled_once():
    model, _ = make_pair(SCALING)
    silent = model.with_solver(throw=False)
    assert silent is not model
    assert not silent.solver.throw
    assert model.solver.throw
    assert model.with_solver(throw=False) is silent
    assert silent.with_solver(throw=True) is model
    assert silent.with_solver(max_steps=8) is model.with_solver(max_steps=8, throw=False)
    # Another model, for all that its solvers are equal.
    shifted = model.less(Offset(1.0, (0.0,) * NUM_FEATURES))
    assert shifted.with_solver(throw=False).scaling is shifted.scaling

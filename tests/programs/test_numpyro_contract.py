"""The rules of NumPyro for a model and its guide. Most are broken without an error."""

import inspect

import arviz_base
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.handlers as handlers
import optax
import pytest
from flax import nnx
from helpers import sites_of
from numpyro.distributions import Normal, kl_divergence
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.inspect import get_model_relations
from scipy import stats

from np_latentode import (
    ODERNN,
    DiagonalNormal,
    Fitted,
    MLPDecoder,
    MLPDynamics,
    Solver,
    StandardNormal,
    Trajectories,
    latent_ode,
    posterior,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

NUM, NUM_TIMES, NUM_FEATURES, LATENT_DIM, BATCH = 6, 5, 2, 2, 2
SLOTS = ("dynamics", "decoder", "prior", "encoder", "posterior")


def make_train(seed=0):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 2, (NUM, NUM_TIMES)), axis=1)
    values = 3 * np.stack([np.sin(2 * times), np.cos(times)], axis=-1) + 1
    values += rng.normal(0, 0.1, values.shape)
    values[rng.uniform(size=values.shape) < 0.2] = np.nan
    return Trajectories(times, values)


def make_parts():
    rngs = nnx.Rngs(0)
    return {
        "dynamics": MLPDynamics(LATENT_DIM, width=8, depth=1, rngs=rngs),
        "decoder": MLPDecoder(LATENT_DIM, NUM_FEATURES, width=8, rngs=rngs),
        "prior": StandardNormal(LATENT_DIM),
        "encoder": ODERNN(NUM_FEATURES, hidden_dim=8, width=8, rngs=rngs),
        "posterior": DiagonalNormal(8, LATENT_DIM, width=8, rngs=rngs),
    }


def of_type(sites, kind):
    return {name: site for name, site in sites.items() if site["type"] == kind}


@pytest.fixture(scope="module")
def train():
    return make_train()


@pytest.fixture(scope="module")
def pair(train):
    return latent_ode(
        train, latent_dim=LATENT_DIM, solver=Solver(dt0=0.25), rngs=nnx.Rngs(0), **make_parts()
    )


@pytest.fixture(scope="module")
def svi(pair):
    return SVI(*pair, optax.adam(1e-2), Trace_ELBO(), batch_size=BATCH)


@pytest.fixture(scope="module")
def init(svi):
    return jax.jit(svi.init)


@pytest.fixture(scope="module")
def untrained(svi, init, train):
    return svi.get_params(init(jax.random.key(0), train))


@pytest.fixture(scope="module")
def fit(svi, init, train):
    start = init(jax.random.key(0), train)
    return svi.run(jax.random.key(1), 5, train, init_state=start, progress_bar=False)


@pytest.fixture(scope="module")
def params(fit):
    return fit.params


@pytest.fixture(scope="module")
def loss_at(pair):
    """The loss of the whole data with given z0, so that nothing is random."""
    model, guide = pair

    @jax.jit
    def loss(params, context, target, z0, kl_weight):
        at_z0 = handlers.substitute(guide, data={"z0": z0})
        return Trace_ELBO().loss(
            jax.random.key(0), params, model, at_z0, context, target, kl_weight=kl_weight
        )

    return loss


@pytest.fixture(scope="module")
def sampled_gradient(pair):
    """The loss and its gradient with z0 drawn from the guide."""
    model, guide = pair

    @jax.jit
    @jax.value_and_grad
    def loss(params, context, target):
        return Trace_ELBO().loss(jax.random.key(3), params, model, guide, context, target)

    return loss


@pytest.fixture(scope="module")
def explain(pair, train):
    """x_mean and the log likelihood for given parameters and z0."""
    model, _ = pair

    @jax.jit
    def run(params, z0):
        fitted = handlers.substitute(model, data=params)
        x_mean = Predictive(fitted, {"z0": z0}, return_sites=["x_mean"])(jax.random.key(0), train)
        return x_mean["x_mean"], log_likelihood(fitted, {"z0": z0}, train)["x"]

    return run


@pytest.fixture(scope="module")
def draws():
    return jnp.asarray(np.random.default_rng(1).normal(size=(4, NUM, LATENT_DIM)))


# SVI and Predictive pass the same arguments to model and guide.


def test_model_and_guide_have_the_same_signature(pair):
    model, guide = pair
    assert inspect.signature(model.__call__) == inspect.signature(guide.__call__)


# Parameters of the same name are merged, and the guide's values are used.


def test_model_and_guide_share_no_parameter(pair, train):
    model, guide = (set(of_type(sites_of(program, train), "param")) for program in pair)
    assert model == {"dynamics$params", "decoder$params", "prior$params", "noise_scale"}
    assert guide == {"encoder$params", "posterior$params"}


# A parameter inside of a plate would be per trajectory. State other than parameters leaks tracers.


@pytest.mark.parametrize("which", [0, 1], ids=["model", "guide"])
def test_parameters_belong_to_no_plate(pair, train, which):
    params = of_type(sites_of(pair[which], train, batch_size=BATCH), "param")
    assert params
    assert [name for name, site in params.items() if site["cond_indep_stack"]] == []


@pytest.mark.parametrize("which", [0, 1], ids=["model", "guide"])
def test_nothing_is_mutable(pair, train, which):
    assert not of_type(sites_of(pair[which], train), "mutable")


class Holder(nnx.Module):
    """A module with a leaf that is not a parameter."""

    def __init__(self, held):
        self.scale = nnx.Param(jnp.ones(()))
        self.held = held

    def __call__(self, *inputs):
        return inputs[-1]


STATEFUL = {
    "dropout": lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)),
    "batch norm": lambda: nnx.BatchNorm(2, rngs=nnx.Rngs(0)),
    "rngs": lambda: nnx.Rngs(0),
    "jax array": lambda: jnp.ones(2),
}


@pytest.mark.parametrize("held", STATEFUL.values(), ids=STATEFUL.keys())
@pytest.mark.parametrize("slot", SLOTS)
def test_state_that_is_no_parameter_is_refused_by_name(slot, held):
    parts = make_parts() | {slot: Holder(held())}
    with pytest.raises(ValueError, match=rf"^{slot} must hold nnx.Param.* held\b"):
        latent_ode(make_train(), latent_dim=LATENT_DIM, rngs=nnx.Rngs(0), **parts)


# Without the same plate in both, log densities are not scaled by N / B, or only those of one.


def test_model_and_guide_draw_from_the_same_plate_and_scale_it_up(pair, train):
    model, guide = (sites_of(program, train, batch_size=BATCH) for program in pair)
    for sites in (model, guide):
        assert sites["trajectory"]["args"] == (NUM, BATCH)
        (frame,) = sites["z0"]["cond_indep_stack"]
        assert (frame.name, frame.dim, frame.size) == ("trajectory", -1, BATCH)
        assert sites["z0"]["value"].shape == (BATCH, LATENT_DIM)
        assert sites["z0"]["scale"] == NUM / BATCH
    assert model["x"]["value"].shape == (BATCH, NUM_TIMES, NUM_FEATURES)
    assert model["x"]["scale"] == NUM / BATCH


@pytest.mark.slow
def test_minibatch_elbo_is_unbiased(pair, train, params, draws, loss_at):
    model, guide = pair
    z0 = draws[0]

    @jax.jit
    def loss(indices):
        # Only the guide is given the indices, and the model has to use the same.
        drawn = handlers.substitute(guide, data={"trajectory": indices, "z0": z0[indices]})
        return Trace_ELBO().loss(jax.random.key(0), params, model, drawn, train, batch_size=BATCH)

    batches = [float(loss(jnp.asarray(part))) for part in ([4, 1], [0, 5], [2, 3])]
    assert np.ptp(batches) > 1
    whole = loss_at(params, train, train, z0, 1.0)
    np.testing.assert_allclose(np.mean(batches), whole, rtol=1e-5)


# Leave-one-out scores need one term per trajectory.


@pytest.mark.slow
def test_log_likelihood_has_one_masked_term_per_trajectory(train, params, draws, explain):
    x_mean, log_lik = explain(params, draws)
    noise = stats.norm(np.asarray(x_mean, float), np.asarray(params["noise_scale"], float))
    terms = np.where(train.mask, noise.logpdf(np.asarray(train.values, float)), 0.0)
    assert log_lik.shape == (len(draws), NUM)
    np.testing.assert_allclose(log_lik, terms.sum((-2, -1)), rtol=1e-5)


# Given observed data, Predictive returns them as if they were a forecast.


@pytest.mark.slow
def test_predictive_returns_observed_data_and_samples_at_times_anew(pair, train, params):
    model, guide = pair
    predictive = Predictive(model, guide=guide, params=params, num_samples=2)
    seen, sampled = jax.jit(
        lambda key: (predictive(key, train)["x"], predictive(key, train, train.times)["x"])
    )(jax.random.key(0))
    np.testing.assert_array_equal(seen, np.broadcast_to(train.values, seen.shape))
    assert sampled.shape == seen.shape
    assert np.all(sampled != seen)
    assert np.all(sampled[0] != sampled[1])


@pytest.mark.parametrize("which", [0, 1], ids=["model", "guide"])
def test_prediction_in_batches_is_refused(pair, train, which):
    with pytest.raises(ValueError, match=r"^batch_size must be None if target is an array"):
        sites_of(pair[which], train, train.times, batch_size=BATCH)


# Without substituted parameters, NumPyro uses the untrained networks.


@pytest.mark.slow
def test_log_likelihood_is_of_untrained_networks_unless_params_are_substituted(
    pair, train, params, untrained, draws, explain
):
    model, _ = pair
    silent = log_likelihood(model, {"z0": draws}, train)["x"]
    np.testing.assert_allclose(silent, explain(untrained, draws)[1], rtol=1e-4)
    assert np.all(np.abs(silent - explain(params, draws)[1]) > 1e-3)


@pytest.mark.slow
def test_nuts_draws_from_the_posterior_of_substituted_params(pair, train, params, explain):
    kernel = NUTS(handlers.substitute(pair[0], data=params), max_tree_depth=4)

    @jax.jit
    def run(rng_key):
        mcmc = MCMC(kernel, num_warmup=50, num_samples=4, progress_bar=False)
        mcmc.run(rng_key, train, extra_fields=("potential_energy",))
        return mcmc.get_samples()["z0"], mcmc.get_extra_fields()["potential_energy"]

    z0, potential = run(jax.random.key(0))
    assert z0.shape == (4, NUM, LATENT_DIM)
    assert np.ptp(z0, axis=0).min() > 0
    log_lik = explain(params, z0)[1].sum(-1)
    log_joint = log_lik + stats.norm.logpdf(np.asarray(z0, float)).sum((-2, -1))
    np.testing.assert_allclose(potential, -log_joint, rtol=1e-4)


@pytest.mark.slow
def test_arviz_converts_a_fit_once_params_are_substituted(pair, svi, fit, train, explain):
    model, guide = pair
    fitted = SVI(handlers.substitute(model, data=fit.params), guide, svi.optim, svi.loss)
    tree = arviz_base.from_numpyro_svi(
        fitted, svi_result=fit, model_args=(train,), num_samples=4, log_likelihood=True
    )
    z0 = tree["posterior"]["z0"].transpose("sample", "trajectory", ...)
    assert z0.shape == (4, NUM, LATENT_DIM)
    assert dict(tree["log_likelihood"].sizes) == {"sample": 4, "trajectory": NUM}
    log_lik = tree["log_likelihood"]["x"].transpose("sample", "trajectory")
    np.testing.assert_allclose(log_lik, explain(fit.params, z0.values)[1], rtol=1e-4)
    np.testing.assert_array_equal(tree["observed_data"]["x"], train.values)


# nnx modules are initialised when they are made.


def test_the_key_of_svi_does_not_change_initial_weights(svi, init, untrained, train):
    other = svi.get_params(init(jax.random.key(7), train))
    jax.tree.map(np.testing.assert_array_equal, other, untrained)


# Static arguments are keywords of SVI, and data can be arguments of `jax.jit`.


def test_z0_of_other_trajectories_than_those_drawn_are_refused(pair, train):
    """Predictive keeps z0 of the guide's batch, and the model would draw another batch."""
    rows = jnp.zeros((BATCH, 2))
    given = handlers.substitute(pair[0], data={"z0": rows})
    with pytest.raises(ValueError, match=r"batch_size must be left out .* of other traj"):
        sites_of(given, train, batch_size=BATCH)
    picked = handlers.substitute(given, data={"trajectory": jnp.arange(BATCH)})
    assert sites_of(picked, train, batch_size=BATCH)["z0"]["value"].shape == rows.shape


def test_svi_runs_with_a_static_batch_size_and_trains_every_parameter(fit, untrained):
    assert np.isfinite(fit.losses).all()
    still = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(fit.params),
            jax.tree.leaves(untrained),
            strict=True,
        )
        if np.array_equal(new, old)
    ]
    assert still == []


@pytest.mark.slow
def test_a_jitted_update_takes_data_as_arguments(svi, init, fit, train):
    traced = 0

    @jax.jit
    def update(state, data):
        nonlocal traced
        traced += 1
        return svi.update(state, data)

    state = start = init(jax.random.key(0), train)
    losses = []
    for _ in fit.losses:
        state, loss = update(state, train)
        losses.append(loss)
    np.testing.assert_allclose(losses, fit.losses, rtol=1e-4)
    _, other_loss = update(start, make_train(seed=1))
    assert traced == 1
    assert np.isfinite(other_loss)
    assert abs(other_loss - losses[0]) > 1e-2


# If a conversion stops a gradient, the network behind it is never trained.


@pytest.mark.slow
def test_every_parameter_has_a_gradient(sampled_gradient, params, train):
    _, gradient = sampled_gradient(params, train, train)
    leaves = jax.tree_util.tree_leaves_with_path(gradient)
    assert len(leaves) > 10
    assert [jax.tree_util.keystr(path) for path, leaf in leaves if not np.any(leaf)] == []


def test_the_gradient_is_that_of_the_loss(sampled_gradient, params, train):
    rng = np.random.default_rng(2)
    params = jax.tree.map(np.asarray, params)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(p.dtype), params)

    def along(step):
        moved = jax.tree.map(lambda p, d: (p + step * d).astype(p.dtype), params, direction)
        return float(sampled_gradient(moved, train, train)[0])

    _, gradient = sampled_gradient(params, train, train)
    slope = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
    np.testing.assert_allclose((along(1e-3) - along(-1e-3)) / 2e-3, slope, rtol=1e-2)


# A KL weight has to scale both densities. Some adjoints cannot be used.


def test_kl_weight_weighs_the_closed_form_kl(pair, train, params, loss_at):
    q = jax.jit(posterior)(Fitted(*pair, params), train).base_dist
    # The difference of two Gaussian log densities is quadratic in z0. Its mean over these points is
    # exact, as they have the mean and variance of q.
    step = np.sqrt(LATENT_DIM) * np.asarray(q.scale)
    points = [q.loc + s * step * np.eye(LATENT_DIM)[d] for d in range(LATENT_DIM) for s in (-1, 1)]

    def mean_loss(kl_weight):
        return np.mean([loss_at(params, train, train, z0, kl_weight) for z0 in points])

    kl = float(kl_divergence(q, Normal(0.0, 1.0)).sum())
    assert kl > 0.1
    for kl_weight in (0.25, 3.0):
        expected = mean_loss(1.0) + (kl_weight - 1) * kl
        np.testing.assert_allclose(mean_loss(kl_weight), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "adjoint",
    [diffrax.BacksolveAdjoint(), diffrax.ImplicitAdjoint()],
    ids=["backsolve", "implicit"],
)
def test_an_adjoint_that_saves_no_steps_is_refused(adjoint):
    with pytest.raises(ValueError, match=rf"^adjoint must .* got {type(adjoint).__name__}"):
        Solver(adjoint=adjoint)


# Trajectories without observations are valid.


@pytest.mark.parametrize("until", [-1.0, 0.5, 5.0], ids=["nothing", "little", "everything"])
def test_any_context_has_a_finite_loss_and_gradient(sampled_gradient, params, train, until):
    loss, gradient = sampled_gradient(params, train.before(until), train)
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_an_empty_target_leaves_only_the_kl(params, train, draws, loss_at):
    nothing = train.before(-1.0)
    heavy, light = (loss_at(params, train, nothing, draws[0], w) for w in (2.0, 1.0))
    np.testing.assert_allclose(heavy, 2 * light, rtol=1e-5)


# ArviZ would read an attribute `model` of the guide as the model of the SVI.


def test_the_guide_has_no_attribute_model(pair):
    assert not hasattr(pair[1], "model")


# NumPyro's tools see the structure of the model.


def test_numpyro_sees_that_x_depends_on_z0_in_the_plate(pair, train):
    relations = get_model_relations(pair[0], model_args=(train,))
    assert relations["sample_sample"]["z0"] == []
    assert "z0" in relations["sample_sample"]["x"]
    assert relations["observed"] == ["x"]
    assert relations["plate_sample"] == {"trajectory": ["z0", "x_mean", "x"]}


def test_conditioning_reaches_the_encoder_alone(pair, train, params, draws, loss_at):
    model, guide = pair
    at_z0 = handlers.substitute(guide, data={"z0": draws[0]})
    hidden = jax.jit(
        lambda: Trace_ELBO().loss(
            jax.random.key(0), params, model, at_z0, train, conditioning=lambda _, t: t.before(0.7)
        )
    )()
    expected = loss_at(params, train.before(0.7), train, draws[0], 1.0)
    whole = loss_at(params, train, train, draws[0], 1.0)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5)
    assert abs(hidden - whole) > 1e-2


def test_conditioning_is_given_the_minibatch_and_a_key(pair, train):
    calls = []

    def conditioning(rng_key, trajectories):
        calls.append((jnp.shape(jax.random.key_data(rng_key)), trajectories.values.shape))
        return trajectories

    sites_of(pair[1], train, conditioning=conditioning, batch_size=BATCH)
    assert calls == [((2,), (BATCH, NUM_TIMES, NUM_FEATURES))]
    sites_of(pair[0], train, conditioning=conditioning, batch_size=BATCH)
    assert len(calls) == 1

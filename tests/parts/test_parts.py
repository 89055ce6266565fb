"""Every valid pairing of parts is tested with the functions of NumPyro that use model and guide."""

import arviz_base
import diffrax
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.handlers as handlers
import optax
import pytest
import xarray
from flax import nnx
from flowjax.bijections import RationalQuadraticSpline
from numpyro.distributions.transforms import biject_to
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.inspect import get_model_relations
from scipy import integrate

from np_latentode import (
    GRU,
    ODERNN,
    CirclePosterior,
    CirclePrior,
    DiagonalNormal,
    Fitted,
    FlowjaxPosterior,
    FlowjaxPrior,
    FlowPosterior,
    FlowPrior,
    FullRankNormal,
    MixturePrior,
    MLPDecoder,
    MLPDynamics,
    PathODE,
    ProductPosterior,
    ProductPrior,
    RingPrior,
    Solver,
    StandardNormal,
    Trajectories,
    importance,
    latent_ode,
    posterior,
    prior,
    to_datatree,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

NUM, NUM_TIMES, NUM_FEATURES, BATCH, HIDDEN, WIDTH = 4, 3, 2, 2, 5, 6
KEY = jax.random.key(0)


def coupling_flow():
    """Rational-quadratic spline coupling (Durkan et al. 2019)."""
    return flowjax.flows.coupling_flow(
        KEY,
        base_dist=flowjax.distributions.Normal(jnp.zeros(2)),
        transformer=RationalQuadraticSpline(knots=3, interval=3),
        flow_layers=1,
        nn_width=WIDTH,
    )


def conditional_flow():
    return flowjax.flows.masked_autoregressive_flow(
        KEY,
        base_dist=flowjax.distributions.Normal(jnp.zeros(2)),
        cond_dim=HIDDEN,
        flow_layers=1,
        nn_width=WIDTH,
        invert=False,
    )


FLAT_PRIORS = {
    "normal": lambda rngs: StandardNormal(2),
    "mixture": lambda rngs: MixturePrior(2, num_components=3, rngs=rngs),
    "flow": lambda rngs: FlowPrior(2, num_layers=2, width=WIDTH, rngs=rngs),
    "flowjax": lambda rngs: FlowjaxPrior(coupling_flow()),
}
FLAT_POSTERIORS = {
    "diagonal": lambda rngs: DiagonalNormal(HIDDEN, 2, width=WIDTH, rngs=rngs),
    "full rank": lambda rngs: FullRankNormal(HIDDEN, 2, width=WIDTH, rngs=rngs),
    "flow": lambda rngs: FlowPosterior(HIDDEN, 2, num_layers=2, width=WIDTH, rngs=rngs),
    "flowjax": lambda rngs: FlowjaxPosterior(HIDDEN, conditional_flow()),
}


def times_circle(parts, circle, product):
    return {
        f"circle x {name}": lambda rngs, make=make: product(circle(rngs), make(rngs))
        for name, make in parts.items()
    }


ROUND_PRIORS = times_circle(FLAT_PRIORS, lambda rngs: CirclePrior(), ProductPrior)
ROUND_POSTERIORS = times_circle(
    FLAT_POSTERIORS,
    lambda rngs: CirclePosterior(HIDDEN, width=WIDTH, rngs=rngs),
    ProductPosterior,
)
RINGS = {
    "ring x mixture": lambda rngs: ProductPrior(
        RingPrior(), MixturePrior(2, num_components=2, rngs=rngs)
    ),
    "flow over ring x mixture": lambda rngs: FlowPrior(
        4, base=RINGS["ring x mixture"](rngs), num_layers=2, width=WIDTH, rngs=rngs
    ),
}
PRIORS, POSTERIORS = RINGS | FLAT_PRIORS | ROUND_PRIORS, FLAT_POSTERIORS | ROUND_POSTERIORS
ENCODERS = {
    "ODE-RNN": lambda rngs: ODERNN(NUM_FEATURES, hidden_dim=HIDDEN, width=WIDTH, rngs=rngs),
    "path ODE": lambda rngs: PathODE(NUM_FEATURES, hidden_dim=HIDDEN, width=WIDTH, rngs=rngs),
    "GRU": lambda rngs: GRU(NUM_FEATURES, hidden_dim=HIDDEN, rngs=rngs),
}
WIDE = {"full rank 4": lambda rngs: FullRankNormal(HIDDEN, 4, width=WIDTH, rngs=rngs)}


MATCHING = {q: "circle x normal" if q in ROUND_POSTERIORS else "normal" for q in POSTERIORS}


def make_train():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 2, (NUM, NUM_TIMES)), axis=1)
    values = np.stack([np.sin(2 * times), np.cos(times)], axis=-1)
    values[0, 1, 0] = np.nan
    return Trajectories(times, values + rng.normal(0, 0.1, values.shape))


TRAIN = make_train()
TIMES = jnp.linspace(0.5, 3.0, 2)


def assemble(prior, posterior="diagonal", encoder="ODE-RNN"):
    rngs = nnx.Rngs(0)
    latent_dim = 2 if prior in FLAT_PRIORS else 4
    return latent_ode(
        TRAIN,
        latent_dim=latent_dim,
        dynamics=MLPDynamics(latent_dim, width=WIDTH, rngs=rngs),
        decoder=MLPDecoder(latent_dim, NUM_FEATURES, width=WIDTH, rngs=rngs),
        prior=PRIORS[prior](rngs),
        posterior=(POSTERIORS | WIDE)[posterior](rngs),
        encoder=ENCODERS[encoder](rngs),
        # One step is enough to test how the parts fit together.
        solver=Solver(method=diffrax.Euler(), dt0=8.0, max_steps=2),
        rngs=rngs,
    )


def leaves_at_zero(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) for path, leaf in leaves if leaf.size and not np.any(leaf)]


# Prior, posterior and encoder only share z0 and the features. So each of them in one row tests as
# much as all combinations would.
ROWS = [
    ("normal", "diagonal", "ODE-RNN"),
    ("mixture", "full rank", "path ODE"),
    ("flow", "flow", "ODE-RNN"),
    ("flowjax", "flowjax", "ODE-RNN"),
    ("circle x normal", "circle x diagonal", "GRU"),
    ("circle x mixture", "circle x full rank", "ODE-RNN"),
    ("circle x flow", "circle x flow", "ODE-RNN"),
    ("circle x flowjax", "circle x flowjax", "ODE-RNN"),
    *((p, "full rank 4", "ODE-RNN") for p in RINGS),
]


@pytest.mark.parametrize(("prior_name", "posterior_name", "encoder"), ROWS)
@pytest.mark.slow
def test_a_pairing_trains_in_batches(prior_name, posterior_name, encoder):
    """Everything is traced with abstract values; compiling all pairings would take an hour."""
    model, guide = assemble(prior_name, posterior_name, encoder)
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO(), batch_size=BATCH)
    result = jax.eval_shape(lambda key: svi.run(key, 2, TRAIN, progress_bar=False), KEY)
    assert result.losses.shape == (2,)
    assert set(result.params) >= model.trained | guide.trained


def test_every_part_trains_in_batches():
    for k, parts in enumerate((PRIORS, POSTERIORS | WIDE, ENCODERS)):
        assert {row[k] for row in ROWS} == set(parts)


@pytest.mark.parametrize(
    ("posterior_name", "encoder"),
    [(q, "ODE-RNN") for q in ("full rank", "flow", "flowjax", "circle x flowjax")]
    + [("diagonal", e) for e in ENCODERS if e != "ODE-RNN"],
)
@pytest.mark.slow
def test_every_posterior_trains_its_encoder(posterior_name, encoder):
    model, guide = assemble(MATCHING[posterior_name], posterior_name, encoder)
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    params = svi.get_params(jax.jit(svi.init)(KEY, TRAIN))
    assert set(params) >= model.trained | guide.trained

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        return Trace_ELBO().loss(KEY, params, model, guide, TRAIN)

    value, gradient = loss(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    # flowjax's own conversion to NumPyro would stop this gradient silently.
    assert leaves_at_zero(gradient["encoder$params"]) == []
    assert any(np.any(g) for g in jax.tree.leaves(gradient["posterior$params"]))


@pytest.mark.parametrize("posterior_name", ["flow", "flowjax", "circle x flowjax"])
@pytest.mark.slow
def test_predictive_draws_from_a_flow_at_new_times(posterior_name):
    model, guide = assemble(MATCHING[posterior_name], posterior_name)
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    params = svi.get_params(jax.jit(svi.init)(KEY, TRAIN))
    predict = Predictive(model, guide=guide, params=params, num_samples=2)
    draws = jax.jit(predict)(jax.random.PRNGKey(0), TRAIN, TIMES)
    assert draws["x"].shape == (2, NUM, len(TIMES), NUM_FEATURES)
    assert np.all(draws["x"][0] != draws["x"][1])


# Of the products, one is enough: each factor is also tested by itself. The first covers `normal`,
# and the flow over the ring covers the ring.
@pytest.fixture(
    scope="module",
    params=["circle x normal", "mixture", "flow", "flowjax", "flow over ring x mixture"],
)
def fit(request):
    """A model of each prior, with parameters after a few steps of training."""
    default = "circle x diagonal" if request.param in ROUND_PRIORS else "diagonal"
    default = "full rank 4" if request.param in RINGS else default
    model, guide = assemble(request.param, default)
    svi = SVI(model, guide, optax.adam(3e-2), Trace_ELBO())
    result = jax.jit(lambda: svi.run(KEY, 5, TRAIN, progress_bar=False))()
    return model, guide, result


@pytest.mark.slow
def test_every_prior_trains_on_the_whole_data(fit):
    model, guide, result = fit
    assert result.losses.shape == (5,)
    assert np.isfinite(result.losses).all()
    assert set(result.params) >= model.trained | guide.trained


# One prior of each kind of density: on a circle and in closed form, learned, a flow.
@pytest.mark.parametrize("fit", ["circle x normal", "mixture", "flow"], indirect=True)
@pytest.mark.slow
def test_every_prior_scores_nuts_and_conditions(fit):
    model, guide, (params, *_) = fit
    trained = handlers.substitute(model, data=params)
    fitted = Fitted(model, guide, params)
    z0 = posterior(fitted, TRAIN).sample(KEY, (3,))

    @jax.jit
    def run(key):
        mcmc = MCMC(
            NUTS(trained, max_tree_depth=3), num_warmup=10, num_samples=4, progress_bar=False
        )
        mcmc.run(key, TRAIN, extra_fields=("potential_energy",))
        draws = mcmc.get_samples()["z0"]
        potential = mcmc.get_extra_fields()["potential_energy"]
        p = prior(fitted)
        in_angles = biject_to(p.support)
        u = in_angles.inv(draws)
        log_prior = p.log_prob(draws) + in_angles.log_abs_det_jacobian(u, draws)
        log_joint = log_likelihood(trained, {"z0": draws}, TRAIN)["x"] + log_prior
        conditioned = handlers.condition(trained, data={"z0": z0[0]})
        with handlers.seed(rng_seed=0), handlers.trace() as sites:
            conditioned(TRAIN)
        return draws, potential, log_joint, sites["z0"]["value"]

    draws, potential, log_joint, conditioned = run(KEY)
    assert draws.shape == (4, NUM, model.latent_dim)
    assert prior(fitted).support(draws).all()
    assert np.ptp(draws, axis=0).min() > 0
    np.testing.assert_allclose(potential, -log_joint.sum(-1), rtol=1e-4)
    np.testing.assert_array_equal(conditioned, z0[0])


@pytest.mark.parametrize("name", ["diagonal", "flowjax"])
@pytest.mark.slow
def test_diagnostics_take_every_kind_of_posterior(name):
    """A distribution of flowjax holds functions, which are not data of JAX."""
    model, guide = assemble("normal", name)
    fitted = Fitted(model, guide, initial_params(model, guide))
    report = importance(KEY, fitted, TRAIN, num_samples=25)
    assert np.isfinite(report.elbo).all()


@pytest.mark.slow
def test_every_prior_is_rendered(fit):
    model, _, (params, *_) = fit
    relations = get_model_relations(handlers.substitute(model, data=params), model_args=(TRAIN,))
    assert relations["sample_sample"]["x"] == ["z0"]
    assert set(relations["plate_sample"]["trajectory"]) >= {"z0", "x"}


@pytest.mark.slow
def test_every_prior_goes_to_arviz_and_back(fit, tmp_path):
    model, guide, (params, *_) = fit
    tree = to_datatree(KEY, Fitted(model, guide, params), TRAIN, num_samples=3)
    tree.to_netcdf(tmp_path / "fit.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "fit.nc", engine="h5netcdf") as again:
        assert again["posterior"]["z0"].shape == (1, 3, NUM, model.latent_dim)
        for group in tree.groups[1:]:
            xarray.testing.assert_equal(tree[group].to_dataset(), again[group].to_dataset().load())
    assert arviz_base.extract(tree).sizes["sample"] == 3


# Densities


@pytest.fixture(scope="module", params=FLAT_PRIORS)
def flat(request):
    """A distribution over the plane, with parameters far from their initial values."""
    model, *_ = assemble(request.param)
    rng = np.random.default_rng(0)
    part = model.prior
    state = nnx.state(part, nnx.Param)
    moved = jax.tree.map(lambda p: p + 0.3 * jnp.asarray(rng.normal(size=p.shape), p.dtype), state)
    nnx.update(part, moved)
    return part()


def test_a_prior_s_density_integrates_to_one(flat):
    axis = np.linspace(-12, 12, 481)
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(axis), jnp.asarray(axis), indexing="ij"), -1)
    density = np.exp(np.asarray(jax.jit(flat.log_prob)(grid), float))
    total = integrate.simpson(integrate.simpson(density, x=axis), x=axis)
    np.testing.assert_allclose(total, 1, rtol=5e-3)


def test_a_prior_s_draws_follow_its_density(flat):
    """Compares E[f] over draws with the integral of f times the density, for some f."""
    axis = np.linspace(-12, 12, 481)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    density = np.exp(np.asarray(jax.jit(flat.log_prob)(jnp.asarray(grid)), float))
    draws = np.asarray(jax.jit(lambda key: flat.sample(key, (20_000,)))(KEY), float)
    for f in (
        lambda z: np.tanh(z[..., 0]),
        lambda z: np.tanh(z[..., 1]),
        lambda z: np.cos(z[..., 0] * z[..., 1]),
        lambda z: np.exp(-np.sum(z**2, axis=-1)),
    ):
        exact = integrate.simpson(integrate.simpson(density * f(grid), x=axis), x=axis)
        error = (f(draws).mean() - exact) / (f(draws).std() / np.sqrt(len(draws)))
        assert abs(error) < 5


@pytest.mark.parametrize("name", [n for n in POSTERIORS if "flow" in n])
def test_a_flow_s_draws_keep_their_density(name):
    part = POSTERIORS[name](nnx.Rngs(0))
    q = part(jax.random.normal(KEY, (3, HIDDEN)))

    @jax.jit
    def both(key):
        draws, remembered = q.sample_with_intermediates(key, (5,))
        return q.log_prob(draws, remembered), q.log_prob(draws)

    # Without intermediates, the flow has to be inverted, and must give the same density.
    np.testing.assert_allclose(*both(KEY), rtol=1e-3, atol=1e-4)


def test_flows_start_close_to_the_normal():
    z = jax.random.normal(KEY, (100, 2))
    p = FLAT_PRIORS["flow"](nnx.Rngs(0))()
    np.testing.assert_allclose(p.log_prob(z), StandardNormal(2)().log_prob(z), atol=0.3)


@pytest.mark.parametrize("name", ["flow", "circle x flow"])
def test_a_conditional_flow_depends_on_the_features_in_every_layer(name):
    part = POSTERIORS[name](nnx.Rngs(0))
    flow = part if name == "flow" else part.factors[1]
    features = jax.random.normal(KEY, (2, HIDDEN))
    transforms = flow(features).transforms
    x = jnp.broadcast_to(jax.random.normal(KEY, (2,)), (2, 2))
    for transform in transforms:
        a, b = transform(x)
        assert np.all(a != b)


# Parts that do not fit

MISMATCHES = {
    "a circle under a plane": (
        dict(prior=StandardNormal(4)),
        dict(posterior="circle x diagonal"),
        r"^posterior must have the support of the prior, R\^4; got S\^1 x R\^2",
    ),
    "a plane under a circle": (
        dict(prior=ROUND_PRIORS["circle x normal"](None)),
        dict(posterior="diagonal 4"),
        r"^posterior must have the support of the prior, S\^1 x R\^2; got R\^4",
    ),
    "a circle at the end under one at the start": (
        dict(prior=ProductPrior(StandardNormal(2), CirclePrior())),
        dict(posterior="circle x diagonal"),
        r"^posterior must have the support of the prior, R\^2 x S\^1; got S\^1 x R\^2",
    ),
    "too few dimensions": (
        dict(prior=StandardNormal(4)),
        dict(posterior="diagonal"),
        r"^posterior must be over vectors of latent_dim 4; got 2",
    ),
    "a prior of too few dimensions": (
        dict(prior=StandardNormal(2)),
        dict(posterior="diagonal 4"),
        r"^prior must be over vectors of latent_dim 4; got 2",
    ),
}


@pytest.mark.parametrize(("part", "name", "message"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_mismatched_pairing_is_refused_by_name(part, name, message):
    rngs = nnx.Rngs(0)
    posteriors = POSTERIORS | {
        "diagonal 4": lambda rngs: DiagonalNormal(HIDDEN, 4, width=WIDTH, rngs=rngs)
    }
    with pytest.raises(ValueError, match=message):
        latent_ode(
            TRAIN,
            latent_dim=4,
            encoder=ENCODERS["ODE-RNN"](rngs),
            posterior=posteriors[name["posterior"]](rngs),
            rngs=rngs,
            **part,
        )


@pytest.mark.parametrize("prior_name", PRIORS)
def test_the_default_posterior_has_the_support_of_the_prior(prior_name):
    latent_dim = 2 if prior_name in FLAT_PRIORS else 4
    rngs = nnx.Rngs(0)
    model, guide = latent_ode(
        TRAIN, latent_dim=latent_dim, prior=PRIORS[prior_name](rngs), rngs=rngs
    )
    expected = "S^1 x R^2" if prior_name in ROUND_PRIORS else f"R^{latent_dim}"
    assert guide.support == model.support == expected


def test_model_and_guide_that_name_one_parameter_twice_are_refused():
    def my_prior():
        return dist.Normal(jnp.zeros(2), numpyro.param("width", 1.0)).to_event(1)

    def my_posterior():
        width = numpyro.param("width", 1.0)
        return lambda features: dist.Normal(features[:, :2], width).to_event(1)

    with pytest.raises(ValueError, match=r"different parameters.*got \['width'\] in both"):
        latent_ode(TRAIN, latent_dim=2, prior=my_prior, posterior=my_posterior, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowjaxPrior(3), "distribution must be a flowjax distribution over vectors"),
        (
            lambda: FlowjaxPrior(conditional_flow()),
            r"distribution must have cond_shape None; got \(5,\)",
        ),
        (
            lambda: FlowjaxPosterior(HIDDEN + 1, conditional_flow()),
            r"distribution must have cond_shape \(6,\); got \(5,\)",
        ),
        (lambda: ProductPrior(StandardNormal(2), 3), r"factors\[1\] must be a callable"),
        (lambda: ProductPrior(), "factors must hold at least one module; got none"),
        (lambda: FlowPrior(4, num_layers=0, rngs=nnx.Rngs(0)), "num_layers must be a positive"),
        (
            lambda: MixturePrior(4, num_components=0, rngs=nnx.Rngs(0)),
            "num_components must be a positive integer; got 0",
        ),
        (lambda: ProductPosterior(lambda: 3), r"factors\[0\] must be a callable flax nnx.Module"),
        (lambda: ProductPosterior(nnx.BatchNorm(2, rngs=nnx.Rngs(0))), "nnx.Param leaves only"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_a_bad_factor_or_flow_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SLOTS = {
    "dynamics": lambda: MLPDynamics(2, rngs=nnx.Rngs(0)),
    "decoder": lambda: MLPDecoder(2, NUM_FEATURES, rngs=nnx.Rngs(0)),
    "prior": lambda: StandardNormal(2),
    "encoder": lambda: ODERNN(NUM_FEATURES, rngs=nnx.Rngs(0)),
    "posterior": lambda: DiagonalNormal(16, 2, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("slot", SLOTS)
def test_a_function_that_returns_a_module_is_refused_as_nothing_would_train_it(slot):
    rngs = nnx.Rngs(0)
    for made in (SLOTS[slot], lambda: (rngs.params(), SLOTS[slot]())[1]):
        with pytest.raises(ValueError, match=rf"^{slot} must be given as the module itself"):
            latent_ode(TRAIN, latent_dim=2, rngs=nnx.Rngs(0), **{slot: made})


class WithoutEvent(nnx.Module):
    def __call__(self):
        return dist.Normal(jnp.zeros(2), 1.0)


def test_a_factor_over_numbers_is_refused_by_name():
    prior = ProductPrior(CirclePrior(), WithoutEvent())
    with pytest.raises(ValueError, match=r"factors\[1\] must be a distribution over vectors"):
        latent_ode(TRAIN, latent_dim=4, prior=prior, rngs=nnx.Rngs(0))

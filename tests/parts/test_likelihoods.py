import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.handlers as handlers
import pytest
from flax import nnx
from helpers import sites_of
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from scipy import stats

from np_latentode import (
    BernoulliLikelihood,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    PoissonLikelihood,
    Scaling,
    StudentTLikelihood,
    Trajectories,
    forecast,
    latent_ode,
    optimizer,
)

SCALING = Scaling(np.array([2.0, 5.0]), np.array([0.5, 3.0]))
DECODED = np.random.default_rng(0).normal(size=(3, 4, 2))
IN_UNITS = DECODED * SCALING.scale + SCALING.loc
NOISE = np.array([0.3, 0.7])
COUNTS = np.random.default_rng(1).poisson(3, DECODED.shape)
BITS = COUNTS % 2

REFERENCES = {
    "Gaussian": (
        GaussianLikelihood(NOISE),
        IN_UNITS + 0.1,
        stats.norm(IN_UNITS, NOISE).logpdf,
        IN_UNITS,
    ),
    "Student-t": (
        StudentTLikelihood(3.0, NOISE),
        IN_UNITS + 0.1,
        stats.t(3.0, IN_UNITS, NOISE).logpdf,
        IN_UNITS,
    ),
    "Bernoulli": (
        BernoulliLikelihood(),
        BITS,
        stats.bernoulli(1 / (1 + np.exp(-DECODED))).logpmf,
        1 / (1 + np.exp(-DECODED)),
    ),
    "Poisson": (
        PoissonLikelihood(),
        COUNTS,
        stats.poisson(SCALING.loc * np.exp(DECODED)).logpmf,
        SCALING.loc * np.exp(DECODED),
    ),
}


@pytest.fixture(params=REFERENCES.values(), ids=REFERENCES.keys())
def reference(request):
    return request.param


@pytest.mark.slow
def test_the_density_is_the_field_s(reference):
    likelihood, x, log_density, mean = reference
    got = likelihood(SCALING)(jnp.asarray(DECODED))
    assert got.batch_shape == DECODED.shape
    np.testing.assert_allclose(
        got.log_prob(jnp.asarray(x, jnp.result_type(float))), log_density(x), rtol=2e-4, atol=1e-5
    )
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5)


@pytest.mark.slow
def test_draws_have_the_mean(reference, getkey):
    likelihood, _, _, mean = reference
    got = likelihood(SCALING)(jnp.asarray(DECODED))
    draws = np.asarray(got.sample(getkey(), (4_000,)), float)
    error = (draws.mean(0) - mean) / (draws.std(0) / np.sqrt(len(draws)))
    assert np.abs(error).max() < 5


@pytest.mark.slow
def test_features_keep_their_own_likelihoods(getkey):
    mixed = FeatureLikelihoods(StudentTLikelihood(3.0, 0.3), PoissonLikelihood())(SCALING)
    got = mixed(jnp.asarray(DECODED))
    x = np.stack([IN_UNITS[..., 0] + 0.1, COUNTS[..., 1]], axis=-1)
    expected = np.stack(
        [
            stats.t(3.0, IN_UNITS[..., 0], 0.3).logpdf(x[..., 0]),
            stats.poisson(5.0 * np.exp(DECODED[..., 1])).logpmf(x[..., 1]),
        ],
        axis=-1,
    )
    np.testing.assert_allclose(got.log_prob(jnp.asarray(x)), expected, rtol=2e-4, atol=1e-5)
    draws = np.asarray(got.sample(getkey(), (50,)))
    assert draws.shape == (50, *DECODED.shape)
    assert (draws[..., 1] == np.round(draws[..., 1])).all()
    assert not (draws[..., 0] == np.round(draws[..., 0])).all()


def make_train():
    """A continuous, a binary and a count feature, with missing values."""
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 3, (6, 5)), axis=1)
    wave = np.sin(times + rng.uniform(0, 6, (6, 1)))
    values = np.stack([wave, wave > 0, rng.poisson(np.exp(wave))], axis=-1)
    values[rng.uniform(size=values.shape) < 0.2] = np.nan
    return Trajectories(times, values)


MIXED = FeatureLikelihoods(GaussianLikelihood(), BernoulliLikelihood(), PoissonLikelihood())


@pytest.fixture(scope="module")
def fit():
    train = make_train()
    model, guide = latent_ode(train, latent_dim=2, likelihood=MIXED, rngs=nnx.Rngs(0))
    svi = SVI(model, guide, optimizer(3), Trace_ELBO(), batch_size=3)
    result = jax.jit(lambda: svi.run(jax.random.key(0), 3, train, progress_bar=False))()
    return train, model, guide, result


@pytest.mark.slow
def test_each_feature_learns_parameters_of_its_own(fit):
    *_, result = fit
    assert np.isfinite(result.losses).all()
    assert "x_0.noise_scale" in result.params
    assert not any(name.startswith(("x_1", "x_2")) for name in result.params)


@pytest.mark.slow
def test_missing_values_do_not_count(fit):
    train, model, _, result = fit
    garbage = jnp.where(train.mask, train.values, 1.0)
    other = Trajectories.tree_unflatten({}, (train.times, garbage, train.mask))
    fitted = handlers.substitute(model, data=result.params)
    z0 = {"z0": jnp.zeros((1, 6, 2))}
    terms = [log_likelihood(fitted, z0, x)["x"] for x in (train, other)]
    assert terms[0].shape == (1, 6)
    np.testing.assert_array_equal(*terms)


def log_normal_likelihood(scaling):
    return lambda decoded: dist.LogNormal(decoded, 1.0)


@pytest.mark.slow
def test_holes_keep_gradients_finite_where_zero_has_no_density():
    train = make_train()
    train = Trajectories(train.times, jnp.where(train.mask, jnp.abs(train.values) + 0.1, jnp.nan))
    mixed = FeatureLikelihoods(log_normal_likelihood, GaussianLikelihood(), GaussianLikelihood())
    model, guide = latent_ode(train, latent_dim=2, likelihood=mixed, rngs=nnx.Rngs(0))
    svi = SVI(model, guide, optimizer(2), Trace_ELBO())
    result = jax.jit(lambda: svi.run(jax.random.key(0), 2, train, progress_bar=False))()
    assert not train.mask.all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


BAD_LIKELIHOODS = {
    "an event axis": lambda scaling: lambda d: dist.Normal(d, 1.0).to_event(1),
    "one column": lambda scaling: lambda d: dist.Normal(d[..., :1], 1.0),
    "an array": lambda scaling: lambda d: d,
    "called at once": lambda decoded: dist.Normal(0.0, 1.0),
    "of nothing": lambda: 3,
}


@pytest.mark.parametrize("likelihood", BAD_LIKELIHOODS.values(), ids=BAD_LIKELIHOODS.keys())
def test_a_likelihood_of_another_kind_is_refused_at_assembly(likelihood):
    with pytest.raises(ValueError, match=r"^likelihood must"):
        latent_ode(make_train(), latent_dim=2, likelihood=likelihood, rngs=nnx.Rngs(0))


def test_a_distribution_is_no_likelihood():
    with pytest.raises(ValueError, match=r"^likelihood must be callable as likelihood\(scaling\)"):
        latent_ode(make_train(), latent_dim=2, likelihood=dist.Normal(0.0, 1.0), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_forecasts_are_of_the_feature_s_kind(fit):
    train, model, guide, result = fit
    draws = forecast(
        jax.random.key(0),
        Fitted(model, guide, result.params),
        train,
        np.array([1.0, 2.0]),
        num_samples=20,
    )
    x, mean = np.asarray(draws["x"]), np.asarray(draws["x_mean"])
    assert np.isin(x[..., 1], (0, 1)).all()
    assert (x[..., 2] >= 0).all()
    assert (x[..., 2] == np.round(x[..., 2])).all()
    assert ((mean[..., 1] > 0) & (mean[..., 1] < 1)).all()
    through_numpyro = Predictive(
        model, guide=guide, params=result.params, num_samples=2, return_sites=["x"]
    )(jax.random.key(1), train, np.array([1.0, 2.0]))
    assert through_numpyro["x"].shape == (2, 6, 2, 3)


BAD_OBSERVATIONS = {
    "a half under Bernoulli": (
        FeatureLikelihoods(GaussianLikelihood(), BernoulliLikelihood()),
        [[1.5, 0.0], [0.0, 0.5]],
        r"train must be 0 or 1 under Bernoulli in feature 1; got 0.5 at values\[0, 1, 1\]",
    ),
    "minus one under Poisson": (
        PoissonLikelihood(),
        [[1.0, 0.0], [0.0, -1.0]],
        r"train must be counts, 0, 1, 2, ..., under Poisson in feature 1; got -1.0",
    ),
    "a fraction under Poisson": (PoissonLikelihood(), [[1.0, 0.0], [0.3, 1.0]], "got 0.3"),
}


@pytest.mark.parametrize(
    ("likelihood", "values", "message"), BAD_OBSERVATIONS.values(), ids=BAD_OBSERVATIONS.keys()
)
def test_observations_that_have_no_probability_are_refused(likelihood, values, message):
    train = Trajectories(np.array([[0.0, 1.0]]), np.array([values]))
    with pytest.raises(ValueError, match=message):
        latent_ode(train, latent_dim=2, likelihood=likelihood, rngs=nnx.Rngs(0))


def test_a_target_that_has_no_probability_is_refused(fit):
    train, model, *_ = fit
    bad = Trajectories(train.times, jnp.where(train.mask, 0.5, jnp.nan))
    with pytest.raises(ValueError, match=r"^target must be 0 or 1 under Bernoulli"):
        sites_of(model, train, bad)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("scale", [0.0, [0.1, -0.1], np.nan, np.inf, np.ones((2, 2))], ids=str)
@pytest.mark.parametrize("make", [GaussianLikelihood, lambda s: StudentTLikelihood(3.0, s)])
def test_a_bad_noise_scale_is_refused(make, scale):
    with pytest.raises(ValueError, match=r"^noise_scale must be positive and finite"):
        make(scale)


@pytest.mark.parametrize("df", [1.0, 0.0, -2.0, np.nan, np.inf])
def test_degrees_of_freedom_without_a_mean_are_refused(df):
    with pytest.raises(ValueError, match=r"^df must be greater than 1, so that there is a mean"):
        StudentTLikelihood(df)


def test_features_and_likelihoods_are_counted():
    train = Trajectories(np.array([[0.0, 1.0]]), np.ones((1, 2, 3)))
    with pytest.raises(ValueError, match="one likelihood for each of 3 features; got 2"):
        latent_ode(
            train,
            latent_dim=2,
            likelihood=FeatureLikelihoods(GaussianLikelihood(), GaussianLikelihood()),
            rngs=nnx.Rngs(0),
        )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("bad", [0.3, GaussianLikelihood, "normal"], ids=str)
def test_objects_that_are_not_likelihoods_are_refused(bad):
    with pytest.raises(ValueError, match=r"^likelihoods\[0\] must be callable"):
        FeatureLikelihoods(bad)


def test_a_likelihood_may_be_a_function_that_names_parameters():
    def laplace_likelihood(scaling):
        import numpyro

        width = numpyro.param("width", jnp.ones(3), constraint=dist.constraints.positive)
        return lambda decoded: dist.Laplace(scaling.unscale_values(decoded), width)

    train = make_train()
    model, _ = latent_ode(train, latent_dim=2, likelihood=laplace_likelihood, rngs=nnx.Rngs(0))
    sites = sites_of(model, train)
    assert sites["width"]["type"] == "param"
    assert sites["width"]["cond_indep_stack"] == []
    assert "width" in model.trained
    assert isinstance(sites["x"]["fn"].base_dist.base_dist, dist.Laplace)

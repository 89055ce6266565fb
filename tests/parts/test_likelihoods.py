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
    NegativeBinomialLikelihood,
    OrnsteinUhlenbeckLikelihood,
    PoissonLikelihood,
    Scaling,
    StudentTLikelihood,
    Trajectories,
    forecast,
    latent_ode,
    optimizer,
)
from np_latentode.parts.distributions import NegativeBinomial
from np_latentode.parts.likelihoods import kinds_of, linked

SCALING = Scaling(np.array([2.0, 5.0]), np.array([0.5, 3.0]))
DECODED = np.random.default_rng(0).normal(size=(3, 4, 2))
IN_UNITS = DECODED * SCALING.scale + SCALING.loc
NOISE = np.array([0.3, 0.7])
COUNTS = np.random.default_rng(1).poisson(3, DECODED.shape)
BITS = COUNTS % 2
SIZE = np.array([0.7, 30.0])

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
    "NegativeBinomial": (
        NegativeBinomialLikelihood(SIZE),
        COUNTS,
        stats.nbinom(SIZE, SIZE / (SIZE + SCALING.loc * np.exp(DECODED))).logpmf,
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
@pytest.mark.parametrize("size", [0.01, 0.7, 9.9, 10.1, 1e3, 1e6, 1e12])
def test_negative_binomial_counts_go_on_to_poisson_counts(size):
    x = np.arange(60.0)
    mean = np.array([[0.01], [3.7], [40.0]])
    got = NegativeBinomial(jnp.asarray(mean), jnp.asarray(size))
    expected = stats.nbinom(size, size / (size + mean)).logpmf(x)
    # scipy itself loses the digits of far larger sizes.
    expected = stats.poisson(mean).logpmf(x) if size > 1e9 else expected
    np.testing.assert_allclose(got.log_prob(jnp.asarray(x)), expected, rtol=3e-5, atol=1e-4)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(got.variance, mean + mean**2 / size, rtol=1e-4)
    slope = jax.grad(lambda r: NegativeBinomial(jnp.asarray(mean), r).log_prob(x).sum())(size)
    assert np.isfinite(slope)


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
    other = train.replace_arrays(train.times, garbage, train.mask)
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
    "a fraction under a negative binomial distribution": (
        {"x_1": NegativeBinomialLikelihood()},
        [[1.0, 0.0], [0.3, 1.5]],
        r"train must be counts, 0, 1, 2, ..., under NegativeBinomial in feature 1; got 1.5",
    ),
}


@pytest.mark.parametrize(
    ("likelihood", "values", "message"), BAD_OBSERVATIONS.values(), ids=BAD_OBSERVATIONS.keys()
)
def test_observations_that_have_no_probability_are_refused(likelihood, values, message):
    train = Trajectories(np.array([[0.0, 1.0]]), np.array([values]))
    with pytest.raises(ValueError, match=message):
        latent_ode(train, latent_dim=2, likelihood=likelihood, rngs=nnx.Rngs(0))


@pytest.mark.slow
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


DEFAULT = {"x_1": BernoulliLikelihood(), "x_2": NegativeBinomialLikelihood()}


@pytest.mark.slow
def test_likelihoods_by_name_are_those_by_position():
    """The others have the default, and their parameters their own name."""
    train, decoded = make_train(), jnp.asarray(np.random.default_rng(2).normal(size=(6, 5, 3)))
    scaling = Scaling.fit(train)
    each = FeatureLikelihoods(
        GaussianLikelihood(), BernoulliLikelihood(), NegativeBinomialLikelihood()
    )
    models = [latent_ode(train, latent_dim=2, likelihood=one, rngs=nnx.Rngs(0))[0]
              for one in (DEFAULT, each)]  # fmt: skip
    assert models[0].trained == models[1].trained > {"x_0.noise_scale", "x_2.concentration"}
    found = []
    for model in models:
        with handlers.seed(rng_seed=0), handlers.trace():
            made = model.likelihood(scaling)(decoded)
        found.append((made.log_prob(train.values), made.sample(jax.random.key(0)), made.mean))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_all_others_share_one_likelihood_whatever_their_places():
    train, noise = make_train(), np.array([0.3, 0.7])
    scaling = Scaling.fit(train)

    def default(start=None):
        return OrnsteinUhlenbeckLikelihood(noise, np.array([0.5, 0.2]), 2.0)

    named = FeatureLikelihoods.by_name({"x_1": BernoulliLikelihood()}, scaling, default)
    assert named.groups == ((0, 2), (1,))
    alone = FeatureLikelihoods(
        OrnsteinUhlenbeckLikelihood(noise[:1], np.array([0.5]), 2.0),
        BernoulliLikelihood(),
        OrnsteinUhlenbeckLikelihood(noise[1:], np.array([0.2]), 2.0),
    )
    decoded = jnp.asarray(np.random.default_rng(2).normal(size=(6, 5, 3)))
    known = (decoded, train.times, train.mask, None)
    one, other = (likelihood(scaling).along(*known) for likelihood in (named, alone))
    np.testing.assert_allclose(one.log_prob(train.values), other.log_prob(train.values), rtol=1e-5)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-6)
    np.testing.assert_allclose(one.variance, other.variance, rtol=1e-6)
    assert one.sample(jax.random.key(0), (3,)).shape == (3, 6, 5, 3)
    assert np.isin(one.sample(jax.random.key(0))[..., 1], (0, 1)).all()
    # What is masked is replaced by a number that is possible in its place.
    filled = one.support.feasible_like(jnp.full((6, 5, 3), 0.3))
    assert one.support(filled).all()
    assert one.support.is_discrete


def test_without_names_the_default_is_all_there_is():
    scaling = Scaling.fit(make_train())
    found = FeatureLikelihoods.by_name({}, scaling, GaussianLikelihood)
    assert isinstance(found, GaussianLikelihood)
    every = {f"x_{j}": PoissonLikelihood() for j in range(3)}
    assert FeatureLikelihoods.by_name(every, scaling, GaussianLikelihood).groups == (
        (0,),
        (1,),
        (2,),
    )


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"edema": BernoulliLikelihood()},
            r"^likelihood must name features of the training data, \['x_0', 'x_1', 'x_2'\]; got "
            r"\['edema'\]\.$",
        ),
        ({"x_1": BernoulliLikelihood}, r"^likelihood\['x_1'\] must be callable as likelihood"),
    ],
)
@pytest.mark.parametrize("latent_dim", [None, 2])
def test_a_name_that_is_no_feature_is_refused(named, message, latent_dim):
    with pytest.raises(ValueError, match=message):
        latent_ode(make_train(), latent_dim=latent_dim, likelihood=named, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "groups", [[[0]], [[0], [0]], [[0], [2]], [[0, 1], []], [[1, 0], [2]]], ids=str
)
def test_groups_that_are_no_partition_are_refused(groups):
    with pytest.raises(
        ValueError, match=r"^groups must have the features of each of 2 likelihoods"
    ):
        FeatureLikelihoods(GaussianLikelihood(), PoissonLikelihood(), groups=groups)


def test_kinds_are_those_of_the_likelihoods():
    mixed = FeatureLikelihoods(
        GaussianLikelihood(), PoissonLikelihood(), BernoulliLikelihood(), groups=[[1], [0, 3], [2]]
    )
    assert kinds_of(mixed, 4) == ["counts", "numbers", "bernoulli", "counts"]
    assert kinds_of(NegativeBinomialLikelihood(), 2) == ["counts", "counts"]
    assert kinds_of(lambda scaling: None, 2) == ["numbers", "numbers"]


P, MEAN = 0.3, 4.0
LINKED = Scaling(np.array([1.0, P, MEAN]), np.array([2.0, np.sqrt(P * (1 - P)), 3.0]))


def link_of(noise):
    mixed = FeatureLikelihoods(
        GaussianLikelihood(), BernoulliLikelihood(), NegativeBinomialLikelihood()
    )
    return linked(mixed, LINKED, np.full(3, noise))


def test_where_the_path_varies_little_the_link_is_the_tangent_at_the_mean():
    start, slope = link_of(0.9999)
    np.testing.assert_allclose(start, [0.0, np.log(P / (1 - P)), 0.0], atol=0.01)
    # d logit(x) / dx = 1 / (p (1 - p)), d log(x / loc) / dx = 1 / loc, in units of the scale.
    expected = LINKED.scale * [1 / LINKED.scale[0], 1 / (P * (1 - P)), 1 / MEAN]
    np.testing.assert_allclose(slope, expected, rtol=0.01)


@pytest.mark.parametrize("noise", [0.9, 0.5])
def test_the_mean_of_counts_has_mean_and_spread_of_the_path(noise):
    start, slope = link_of(noise)
    spread = np.sqrt(1 - noise**2)
    draws = MEAN * np.exp(
        start[2] + slope[2] * spread * stats.norm.ppf((np.arange(1e6) + 0.5) / 1e6)
    )
    assert draws.mean() == pytest.approx(MEAN, rel=1e-3)
    assert draws.std() == pytest.approx(3.0 * spread, rel=0.02)


@pytest.mark.parametrize(("noise", "error"), [(0.98, 0.015), (0.8, 0.04), (0.5, 0.06)])
def test_probabilities_are_near_those_of_the_linear_model(noise, error):
    start, slope = link_of(noise)
    e = np.sqrt(1 - noise**2) * np.linspace(-2, 2, 41)
    ours = 1 / (1 + np.exp(-(start[1] + slope[1] * e)))
    linear = np.clip(P + np.sqrt(P * (1 - P)) * e, 0.01, 0.99)
    assert np.abs(ours - linear).max() < 2 * error
    assert np.abs(ours - linear).mean() < error


@pytest.mark.parametrize("share", [0.0, 1e-9, 1.0])
@pytest.mark.parametrize("noise", [1.0, 0.5, 1e-3])
def test_what_hardly_ever_or_always_happens_has_a_finite_link(share, noise):
    scaling = Scaling(np.array([share]), np.ones(1))
    for likelihood in (BernoulliLikelihood(), PoissonLikelihood()):
        assert np.isfinite(linked(likelihood, scaling, np.array([noise]))).all()


@pytest.mark.parametrize("likelihood", [PoissonLikelihood(), NegativeBinomialLikelihood(5.0)])
def test_counts_of_paths_that_run_away_have_finite_densities_and_slopes(likelihood):
    far = jnp.array([-300.0, -5.0, 0.0, 5.0, 300.0])
    scaling = Scaling(np.array([8.0]), np.array([12.0]))

    def log_p(decoded, x):
        return likelihood(scaling)(decoded[:, None, None]).log_prob(x).sum()

    for x in (0.0, 3.0, 100.0):
        value, slope = jax.value_and_grad(log_p)(far, x)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
    # Beyond 5 the mean grows by e^5 for each unit, and falls to its reciprocal below -5.
    mean = likelihood(scaling)(far[:, None, None]).mean.ravel()
    expected = 8.0 * np.exp([-5.0, -5.0, 0.0, 5.0, 5.0]) * [1 / 296, 1, 1, 1, 296]
    np.testing.assert_allclose(mean, expected, rtol=1e-5)

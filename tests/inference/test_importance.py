"""Importance weights and elpd against a model whose evidence is known in closed form."""

import arviz as az
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO
from scipy import stats
from still import (
    CONTEXT,
    DATA,
    KEY,
    MODEL,
    NOISE,
    NUM,
    SCALING,
    TARGET,
    Posterior,
    Same,
    Still,
    Summary,
    make_fitted,
    make_guide,
    make_model,
)

from np_latentode import (
    CirclePrior,
    Fitted,
    GaussianLikelihood,
    Trajectories,
    elpd,
    exact_posterior,
    importance,
    latent_ode,
    refine,
)
from np_latentode.inference.pareto import smooth


def evidence(values, mask):
    """log p(x) of each trajectory: given z0 observations are independent, so x is normal."""
    total = np.zeros(len(values))
    for i, (x, seen) in enumerate(zip(np.asarray(values), np.asarray(mask), strict=True)):
        for d in range(2):
            y = x[seen[:, d], d]
            if y.size:
                covariance = NOISE**2 * np.eye(len(y)) + 1
                total[i] += stats.multivariate_normal(np.zeros(len(y)), covariance).logpdf(y)
    return total


LOG_EVIDENCE = evidence(DATA.values, DATA.mask)


@pytest.fixture(scope="module")
def exact_report():
    return importance(KEY, make_fitted(), DATA, num_samples=100)


@pytest.mark.slow
def test_an_exact_guide_loses_nothing(exact_report):
    np.testing.assert_allclose(exact_report.elbo, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(exact_report.bound, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    assert np.abs(exact_report.gap).max() < 1e-3


def hidden_later(data):
    """The early part of each trajectory, with slots for the later part still there."""
    return data.before(1.0), data.split(0.3)[0]


@pytest.mark.parametrize("k", [0, 1], ids=["before", "split"])
def test_a_context_whose_later_observations_are_hidden_has_its_own_evidence(k):
    context = hidden_later(DATA)[k]
    exact = evidence(context.values, context.mask)
    report = importance(KEY, make_fitted(), context, num_samples=100)
    np.testing.assert_allclose(report.bound, exact, rtol=1e-3, atol=1e-3)
    assert np.isfinite(report.pareto_k).all()
    np.testing.assert_allclose(elpd(KEY, make_fitted(), context).elpd_i, exact, atol=0.1)


@pytest.mark.slow
def test_a_context_whose_later_observations_are_hidden_can_be_sampled_and_refined():
    context = hidden_later(DATA)[0][:5]
    features = Summary()(context.times, context.values, context.mask)
    loc, sd = np.split(np.asarray(features), 2, axis=-1)
    refined = refine(KEY, make_fitted(scale=0.5), context).q.sample(KEY, (4_000,))
    tree = exact_posterior(KEY, make_fitted(), context, progress=False)
    exact = np.asarray(tree["posterior"]["z0"]).reshape(-1, 5, 2)
    for draws in (np.asarray(refined), exact):
        np.testing.assert_allclose(draws.mean(0), loc, atol=0.1)
        np.testing.assert_allclose(draws.std(0), sd, rtol=0.1)


@pytest.mark.parametrize("scale", [0.6, 1.5])
@pytest.mark.slow
def test_the_gap_is_the_kl_to_the_posterior(scale):
    report = importance(KEY, make_fitted(scale=scale), DATA, num_samples=2_000)
    kl = 2 * (0.5 * (scale**2 - 1) - np.log(scale))
    loss = LOG_EVIDENCE - report.elbo
    np.testing.assert_allclose(loss.mean(), kl, rtol=0.03)
    # It is a bound only on average, as the mean of 2,000 weights has a standard error.
    assert np.mean(report.bound - LOG_EVIDENCE) < 0.01
    # The bound closes most of it.
    assert np.abs(report.bound - LOG_EVIDENCE).mean() < 0.3 * kl


@pytest.mark.slow
def test_pareto_k_finds_a_guide_that_is_too_narrow_and_none_that_is_too_wide():
    narrow = importance(KEY, make_fitted(scale=0.5), DATA, num_samples=1_000)
    wide = importance(KEY, make_fitted(scale=1.3), DATA, num_samples=1_000)
    assert np.median(narrow.pareto_k) > 0.7
    assert np.median(wide.pareto_k) < 0.3
    assert "Pareto k median" in str(narrow)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("forecast", [False, True], ids=["evidence", "forecast"])
@pytest.mark.slow
def test_elpd_is_the_closed_form_whatever_the_guide(scale, forecast):
    context, target = (CONTEXT, TARGET) if forecast else (DATA, None)
    score = elpd(KEY, make_fitted(scale=scale), context, target, num_samples=2_000)
    exact = LOG_EVIDENCE - (evidence(CONTEXT.values, CONTEXT.mask) if forecast else 0)
    assert score.elpd_i is not None
    assert score.pareto_k is not None
    np.testing.assert_allclose(score.elpd_i, exact, atol=0.35)
    np.testing.assert_allclose(score.elpd / NUM, exact.mean(), atol=0.02)
    np.testing.assert_allclose(score.se, np.sqrt(NUM) * exact.std(), rtol=0.02)
    # A guide that is too wide for the context is even wider for context and target.
    assert (score.pareto_k <= score.good_k).mean() > 0.99


def test_the_effective_number_of_parameters_is_the_closed_form():
    exact = -LOG_EVIDENCE
    loc, sd = np.split(np.asarray(Summary()(DATA.times, DATA.values, DATA.mask), float), 2, axis=-1)
    for i, d in np.ndindex(NUM, 2):
        y = np.asarray(DATA.values)[i, np.asarray(DATA.mask)[i, :, d], d]
        covariance = NOISE**2 * np.eye(len(y)) + sd[i, d] ** 2
        exact[i] += stats.multivariate_normal(np.full(len(y), loc[i, d]), covariance).logpdf(y)
    score = elpd(KEY, make_fitted(), DATA)
    np.testing.assert_allclose(score.p, exact.sum(), rtol=0.02)


def test_draws_from_another_distribution_are_weighed_by_its_density():
    features = Summary()(DATA.times, DATA.values, DATA.mask)
    narrow, exact = make_fitted(scale=0.3), Posterior()(features)
    report = importance(KEY, narrow, DATA, q=exact, num_samples=100)
    np.testing.assert_allclose(report.bound, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    assert report.pareto_k.max() < 0.7 < np.median(importance(KEY, narrow, DATA).pareto_k)
    score = elpd(KEY, narrow, DATA, q=exact, num_samples=100)
    np.testing.assert_allclose(np.asarray(score.elpd_i), LOG_EVIDENCE, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_on_a_circle_the_cut_of_the_angle_does_not_matter():
    angles = np.array([np.pi - 0.02, -np.pi + 0.02, 0.5])
    x = 1.1 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    data = Trajectories(np.zeros((3, 1)), x[:, None])
    model, guide = latent_ode(
        data,
        latent_dim=2,
        dynamics=Still(),
        decoder=Same(),
        prior=CirclePrior(),
        scaling=SCALING,
        likelihood=GaussianLikelihood(0.3),
        rngs=nnx.Rngs(0),
    )
    svi = SVI(model, guide, optax.adam(1e-3), Trace_ELBO())
    params = svi.get_params(jax.jit(svi.init)(KEY, data))
    turn = np.linspace(-np.pi, np.pi, 4_000, endpoint=False)
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    exact = np.log(stats.norm.pdf(x[:, None], circle, 0.3).prod(-1).mean(1))
    fitted = Fitted(model, guide, params)
    refined = refine(KEY, fitted, data)
    report = importance(KEY, fitted, data, q=refined.q)
    np.testing.assert_allclose(report.bound, exact, atol=0.02)
    np.testing.assert_allclose(report.elbo, refined.elbo_after, atol=0.05)


@pytest.mark.slow
def test_arviz_compares_models_and_prefers_the_true_one():
    models = {"true": MODEL, "noisy": make_model(noise=1.5), "shifted": make_model(prior_loc=1.0)}
    scores = {
        name: elpd(KEY, Fitted(model, make_guide(), {}), DATA) for name, model in models.items()
    }
    table = az.compare(scores)
    assert table.index[0] == "true"
    assert (table["elpd_diff"].to_numpy(float)[1:] < -5 * table["dse"].to_numpy(float)[1:]).all()
    az.plot_compare(table)
    az.plot_khat(scores["noisy"])
    plt.close("all")


def test_a_trajectory_without_observations_has_an_elpd_of_zero():
    nothing = DATA.before(-1.0)
    assert not nothing.mask.any()
    # The guide is not exact, so that the weights differ.
    score = elpd(KEY, make_fitted(scale=1.1), nothing)
    np.testing.assert_allclose(np.asarray(score.elpd_i), 0, atol=0.1)


def test_columns_with_zero_weights_are_distinguished_from_perfect_ones():
    rng = np.random.default_rng(0)
    few, some = np.full((2, 1_000), -np.inf)
    few[:50], some[:990] = rng.normal(size=50), 0.5
    columns = np.stack([np.full(1_000, -np.inf), few, some, np.zeros(1_000)], axis=1)
    smoothed, pareto_k, log_mean = smooth(columns)
    np.testing.assert_array_equal(pareto_k, [np.inf, np.inf, 0, 0])
    exact = [-np.inf, np.log(np.exp(few).mean()), 0.5 + np.log(0.99), 0]
    np.testing.assert_allclose(log_mean, exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.exp(smoothed[:, 1:]).sum(0), 1)


BAD = {
    "few weights": (
        lambda: importance(KEY, make_fitted(), DATA, num_samples=10),
        "num_samples must be at least 25; got 10",
    ),
    "another q": (
        lambda: elpd(KEY, make_fitted(), DATA, q=dist.Normal(0.0, 1.0)),
        r"q must be over z0, one per trajectory, shape \(300, 2\); got \(\)",
    ),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

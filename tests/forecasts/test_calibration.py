"""Diagnostics against a model whose posterior, evidence and forecasts are known in closed form.

z0 ~ N(0, I), x_k = z0 + noise e_k: a state that stands still, observed at some times.
"""

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from arviz_stats import loo_pit
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO
from scipy import stats

from np_latentode import (
    AmortizedGuide,
    BernoulliLikelihood,
    CirclePrior,
    GaussianLikelihood,
    LatentODE,
    PoissonLikelihood,
    Scaling,
    StandardNormal,
    Trajectories,
    latent_ode,
)
from np_latentode.calibration import calibration, simulation_ranks
from np_latentode.diagnostics import to_datatree
from np_latentode.importance import _smooth, elpd, importance
from np_latentode.plots import plot_calibration
from np_latentode.refinement import refine

NOISE, NUM, NUM_TIMES = 0.5, 300, 6
SCALING = Scaling.identity(2)


class Still(nnx.Module):
    def __call__(self, t, z):
        return jnp.zeros_like(z)


class Same(nnx.Module):
    def __call__(self, z):
        return z


class Summary(nnx.Module):
    """Precision-weighted mean and standard deviation of z0: sufficient, and exact."""

    def __call__(self, times, values, mask):
        precision = 1 + mask.sum(1) / NOISE**2
        loc = jnp.where(mask, values, 0.0).sum(1) / NOISE**2 / precision
        return jnp.concatenate([loc, 1 / jnp.sqrt(precision)], axis=-1)


class Posterior(nnx.Module):
    """The exact one, with its scale and its place off by given factors."""

    def __init__(self, scale=1.0, shift=0.0):
        self.scale, self.shift = scale, shift

    def __call__(self, features):
        loc, sd = jnp.split(features, 2, axis=-1)
        return dist.Normal(loc + self.shift * sd, self.scale * sd).to_event(1)


def make_model(noise=NOISE, prior_loc=0.0):
    def prior():
        return dist.Normal(jnp.full(2, prior_loc), 1.0).to_event(1)

    return LatentODE(
        Still(), Same(), prior=prior, scaling=SCALING, likelihood=GaussianLikelihood(noise)
    )


def make_guide(**off):
    return AmortizedGuide(Summary(), Posterior(**off), scaling=SCALING)


def make_data():
    rng = np.random.default_rng(0)
    z0 = rng.normal(size=(NUM, 1, 2))
    values = z0 + NOISE * rng.normal(size=(NUM, NUM_TIMES, 2))
    values[rng.uniform(size=values.shape) < 0.2] = np.nan
    times = np.broadcast_to(np.arange(NUM_TIMES, dtype=float), (NUM, NUM_TIMES))
    return Trajectories(times, values)


MODEL, DATA, KEY = make_model(), make_data(), jax.random.key(0)
CONTEXT, TARGET = DATA.before(2.5), DATA.after(2.5)


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
    return importance(KEY, MODEL, make_guide(), {}, DATA, num_samples=100)


def test_an_exact_guide_loses_nothing(exact_report):
    np.testing.assert_allclose(exact_report.elbo, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(exact_report.bound, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    assert np.abs(exact_report.gap).max() < 1e-3


@pytest.mark.parametrize("scale", [0.6, 1.5])
def test_the_gap_is_the_kl_to_the_posterior(scale):
    report = importance(KEY, MODEL, make_guide(scale=scale), {}, DATA, num_samples=2_000)
    kl = 2 * (0.5 * (scale**2 - 1) - np.log(scale))
    loss = LOG_EVIDENCE - report.elbo
    np.testing.assert_allclose(loss.mean(), kl, rtol=0.03)
    # A bound on average: of 2,000 weights the mean is off by the deviation of one / sqrt(2,000).
    assert np.mean(report.bound - LOG_EVIDENCE) < 0.01
    # The bound closes most of it.
    assert np.abs(report.bound - LOG_EVIDENCE).mean() < 0.3 * kl


def test_pareto_k_finds_a_guide_that_is_too_narrow_and_none_that_is_too_wide():
    narrow = importance(KEY, MODEL, make_guide(scale=0.5), {}, DATA, num_samples=1_000)
    wide = importance(KEY, MODEL, make_guide(scale=1.3), {}, DATA, num_samples=1_000)
    assert np.median(narrow.pareto_k) > 0.7
    assert np.median(wide.pareto_k) < 0.3
    assert "Pareto k median" in str(narrow)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("forecast", [False, True], ids=["evidence", "forecast"])
def test_elpd_is_the_closed_form_whatever_the_guide(scale, forecast):
    context, target = (CONTEXT, TARGET) if forecast else (DATA, None)
    score = elpd(KEY, MODEL, make_guide(scale=scale), {}, context, target, num_samples=2_000)
    exact = LOG_EVIDENCE - (evidence(CONTEXT.values, CONTEXT.mask) if forecast else 0)
    assert score.elpd_i is not None
    assert score.pareto_k is not None
    np.testing.assert_allclose(score.elpd_i, exact, atol=0.35)
    np.testing.assert_allclose(score.elpd / NUM, exact.mean(), atol=0.02)
    np.testing.assert_allclose(score.se, np.sqrt(NUM) * exact.std(), rtol=0.02)
    # A guide that is too wide for the context is the more so for context and target.
    assert (score.pareto_k <= score.good_k).mean() > 0.99


def test_the_effective_number_of_parameters_is_what_the_data_teach():
    exact = -LOG_EVIDENCE
    loc, sd = np.split(np.asarray(Summary()(DATA.times, DATA.values, DATA.mask), float), 2, axis=-1)
    for i, d in np.ndindex(NUM, 2):
        y = np.asarray(DATA.values)[i, np.asarray(DATA.mask)[i, :, d], d]
        covariance = NOISE**2 * np.eye(len(y)) + sd[i, d] ** 2
        exact[i] += stats.multivariate_normal(np.full(len(y), loc[i, d]), covariance).logpdf(y)
    score = elpd(KEY, MODEL, make_guide(), {}, DATA)
    np.testing.assert_allclose(score.p, exact.sum(), rtol=0.02)


def test_what_is_drawn_from_another_distribution_has_its_weights():
    features = Summary()(DATA.times, DATA.values, DATA.mask)
    narrow, exact = make_guide(scale=0.3), Posterior()(features)
    report = importance(KEY, MODEL, narrow, {}, DATA, q=exact, num_samples=100)
    np.testing.assert_allclose(report.bound, LOG_EVIDENCE, rtol=1e-3, atol=1e-3)
    assert (
        report.pareto_k.max() < 0.7 < np.median(importance(KEY, MODEL, narrow, {}, DATA).pareto_k)
    )
    score = elpd(KEY, MODEL, narrow, {}, DATA, q=exact, num_samples=100)
    np.testing.assert_allclose(np.asarray(score.elpd_i), LOG_EVIDENCE, rtol=1e-3, atol=1e-3)


def test_on_a_circle_the_cut_of_its_angle_is_nowhere():
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
    refined = refine(KEY, model, guide, params, data)
    report = importance(KEY, model, guide, params, data, q=refined.q)
    np.testing.assert_allclose(report.bound, exact, atol=0.02)
    np.testing.assert_allclose(report.elbo, refined.elbo_after, atol=0.05)


def test_arviz_compares_models_and_prefers_the_true_one():
    models = {"true": MODEL, "noisy": make_model(noise=1.5), "shifted": make_model(prior_loc=1.0)}
    scores = {name: elpd(KEY, model, make_guide(), {}, DATA) for name, model in models.items()}
    table = az.compare(scores)
    assert table.index[0] == "true"
    assert (table["elpd_diff"].to_numpy(float)[1:] < -5 * table["dse"].to_numpy(float)[1:]).all()
    az.plot_compare(table)
    az.plot_khat(scores["noisy"])
    plt.close("all")


def test_a_trajectory_of_which_nothing_is_known_is_no_surprise():
    nothing = DATA.before(-1.0)
    assert not nothing.mask.any()
    # Away from what is exact, the weights of a prior against another do differ.
    score = elpd(KEY, MODEL, make_guide(scale=1.1), {}, nothing)
    np.testing.assert_allclose(np.asarray(score.elpd_i), 0, atol=0.1)


def test_weights_of_which_some_are_nothing_are_told_from_perfect_ones():
    rng = np.random.default_rng(0)
    few, some = np.full((2, 1_000), -np.inf)
    few[:50], some[:990] = rng.normal(size=50), 0.5
    columns = np.stack([np.full(1_000, -np.inf), few, some, np.zeros(1_000)], axis=1)
    smoothed, pareto_k, log_mean = _smooth(columns)
    np.testing.assert_array_equal(pareto_k, [np.inf, np.inf, 0, 0])
    exact = [-np.inf, np.log(np.exp(few).mean()), 0.5 + np.log(0.99), 0]
    np.testing.assert_allclose(log_mean, exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.exp(smoothed[:, 1:]).sum(0), 1)


@pytest.fixture(scope="module")
def leave_one_out():
    """az.loo of draws from an exact guide, and the closed form for each observation."""
    tree = to_datatree(KEY, MODEL, make_guide(), {}, DATA, num_samples=1_000)
    log_density, pit = [], []
    for x, seen in zip(np.asarray(DATA.values), np.asarray(DATA.mask), strict=True):
        found = np.full((2, *x.shape), np.nan)
        for d in range(2):
            y = x[seen[:, d], d]
            precision = np.linalg.inv(NOISE**2 * np.eye(len(y)) + 1)
            # Of a normal, all but one observed: Rasmussen & Williams (2006), (5.10) to (5.12).
            sd = 1 / np.sqrt(np.diag(precision))
            gap = precision @ y * sd**2
            found[:, seen[:, d], d] = stats.norm.logpdf(gap, 0, sd), stats.norm.cdf(gap / sd)
        log_density.append(found[0][seen])
        pit.append(found[1][seen])
    return tree, np.concatenate(log_density), np.concatenate(pit)


# Where all that is known of a trajectory is one observation, nothing is like the posterior
# without it, and ArviZ says so.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_leave_one_out_is_the_closed_form(leave_one_out):
    tree, exact, _ = leave_one_out
    loo = az.loo(tree, pointwise=True)
    assert loo.n_data_points == len(exact) == int(DATA.mask.sum())
    trusted = np.asarray(loo.pareto_k) <= loo.good_k
    error = (np.asarray(loo.elpd_i) - exact)[trusted]
    assert trusted.mean() > 0.98
    assert np.sqrt(np.mean(error**2)) < 0.06
    assert abs(error.mean()) < 5e-3


def test_the_leave_one_out_pit_is_the_closed_form(leave_one_out):
    tree, _, exact = leave_one_out
    pit = loo_pit(tree)["x"]
    np.testing.assert_allclose(pit, exact, atol=0.12)
    az.plot_loo_pit(tree)
    az.plot_ppc_dist(tree, num_samples=5)
    plt.close("all")


@pytest.fixture(scope="module")
def calibrated():
    return calibration(KEY, MODEL, make_guide(), {}, CONTEXT, TARGET)


def test_exact_forecasts_cover_what_they_say(calibrated):
    count = int(TARGET.mask.sum())
    for level, share in zip(calibrated.levels, calibrated.coverage, strict=True):
        # Errors of one trajectory and feature are correlated: some 3 observations count as one.
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / (count / 3))


def test_scores_are_those_of_the_exact_forecast(calibrated):
    features = Summary()(CONTEXT.times, CONTEXT.values, CONTEXT.mask)
    loc, sd = np.split(np.asarray(features), 2, axis=-1)
    scale = np.sqrt(sd**2 + NOISE**2)[:, None]
    x, mask = np.asarray(TARGET.values), np.asarray(TARGET.mask)
    u = (x - loc[:, None]) / scale
    crps = scale * (u * (2 * stats.norm.cdf(u) - 1) + 2 * stats.norm.pdf(u) - 1 / np.sqrt(np.pi))
    np.testing.assert_allclose(np.nanmean(calibrated.crps), crps[mask].mean(), rtol=0.01)
    log_scores = -stats.norm.logpdf(x, loc[:, None], scale)[mask]
    # Of 500 draws the mean density is off by some percent, and its log never too large.
    np.testing.assert_allclose(np.nanmean(calibrated.log_score), log_scores.mean(), rtol=0.01)
    np.testing.assert_allclose(calibrated.log_score[mask], log_scores, atol=0.5)
    assert (np.isnan(calibrated.pit) == ~mask).all()
    np.testing.assert_allclose(calibrated.pit[mask], stats.norm.cdf(u)[mask], atol=0.12)


@pytest.mark.parametrize(
    ("model", "guide", "sign"),
    [
        (MODEL, make_guide(scale=0.2), -1),
        (make_model(noise=0.2), make_guide(), -1),
        (make_model(noise=1.5), make_guide(), 1),
    ],
    ids=["narrow guide", "noise too small", "noise too large"],
)
def test_wrong_bands_are_found(model, guide, sign):
    found = calibration(KEY, model, guide, {}, CONTEXT.before(0.5), TARGET)
    off = found.coverage - np.array(found.levels)
    assert np.all(sign * off[:3] > 0.04)


def test_exact_guides_rank_uniformly():
    ranks = simulation_ranks(KEY, MODEL, make_guide(), {}, DATA)
    assert ranks.ranks.shape == (NUM, 2)
    assert ranks.p_value.min() > 0.01
    np.testing.assert_allclose(ranks.ranks.mean(0), 0.5, atol=0.07)


@pytest.mark.parametrize(
    "off", [{"scale": 1.5}, {"scale": 1 / 1.5}, {"shift": 0.7}], ids=["wide", "narrow", "biased"]
)
def test_a_guide_that_is_off_does_not_rank_uniformly(off):
    assert simulation_ranks(KEY, MODEL, make_guide(**off), {}, DATA).p_value.max() < 1e-3


def test_a_guide_for_another_prior_does_not_rank_uniformly():
    # It is exact for a prior around 0.
    ranks = simulation_ranks(KEY, make_model(prior_loc=3.0), make_guide(), {}, DATA)
    assert ranks.p_value.max() < 1e-3


def flags(likelihood, decoded):
    """A model whose forecasts are the same whatever z0 is, and its guide."""

    def constant():
        return lambda z: jnp.full((*z.shape[:-1], 1), decoded)

    def encoder():
        return lambda times, values, mask: jnp.zeros((len(times), 2))

    def posterior():
        return lambda features: dist.Normal(0 * features, 1.0).to_event(1)

    scaling = Scaling.identity(1)
    model = LatentODE(
        Still(), constant, prior=StandardNormal(2), scaling=scaling, likelihood=likelihood
    )
    return model, AmortizedGuide(encoder, posterior, scaling=scaling)


@pytest.mark.parametrize(
    ("likelihood", "decoded", "exact"),
    [
        (BernoulliLikelihood(), -0.5, stats.bernoulli(1 / (1 + np.exp(0.5)))),
        (PoissonLikelihood(), -1.2, stats.poisson(np.exp(-1.2))),
    ],
    ids=["bits", "counts"],
)
def test_bits_and_counts_have_scores_and_bands_too(likelihood, decoded, exact):
    model, guide = flags(likelihood, decoded)
    x = exact.rvs((200, 4, 1), random_state=0).astype(float)
    data = Trajectories(np.tile(np.arange(4.0), (200, 1)), x)
    found = calibration(KEY, model, guide, {}, data, data)
    np.testing.assert_allclose(found.log_score, -exact.logpmf(x), rtol=1e-4)
    for level, share in zip(found.levels, found.coverage, strict=True):
        assert abs(share - level) < 5 * np.sqrt(level * (1 - level) / x.size)
    report = importance(KEY, model, guide, {}, data, num_samples=30)
    np.testing.assert_allclose(report.bound, exact.logpmf(x).sum((1, 2)), rtol=1e-3)
    with pytest.raises(ValueError, match=r"context must be .* got 2.5"):
        importance(KEY, model, guide, {}, Trajectories(data.times, x + 2.5))


@pytest.mark.parametrize(("scale", "inside"), [(1.0, True), (0.3, False)])
def test_the_ecdf_stays_within_its_bands_if_and_only_if_forecasts_are_right(scale, inside):
    model = make_model(noise=NOISE * scale)
    figure = plot_calibration(calibration(KEY, model, make_guide(scale=scale), {}, CONTEXT, TARGET))
    axis = figure.axes[1]
    ecdf = np.asarray(axis.get_lines()[0].get_xydata())
    corners = axis.collections[0].get_paths()[0].vertices
    above, below = (edge(corners[:, 1]) for edge in (np.max, np.min))
    assert (np.abs(ecdf[:, 1]).max() < min(above, -below)) == inside
    shares = [float(height) for height in axis.figure.axes[2].get_lines()[1].get_ydata()]
    assert (abs(shares[2] - 0.9) < 0.05) == inside


BAD = {
    "no levels": (
        lambda: calibration(KEY, MODEL, make_guide(), {}, DATA, DATA, levels=()),
        "levels",
    ),
    "a level of 1": (
        lambda: calibration(KEY, MODEL, make_guide(), {}, DATA, DATA, levels=[1.0]),
        "levels must be numbers between 0 and 1",
    ),
    "one draw": (
        lambda: calibration(KEY, MODEL, make_guide(), {}, DATA, DATA, num_samples=1),
        "num_samples must be an integer of at least 2",
    ),
    "another target": (
        lambda: calibration(KEY, MODEL, make_guide(), {}, DATA, DATA[:3]),
        "target must have as many trajectories as the context, 300; got 3",
    ),
    "nothing to forecast": (
        lambda: calibration(KEY, MODEL, make_guide(), {}, DATA, DATA.before(-1.0)),
        "target must hold at least one observation; got none",
    ),
    "a list": (
        lambda: simulation_ranks(KEY, MODEL, make_guide(), {}, [1.0]),
        "like must be Trajectories; got list",
    ),
    "few weights": (
        lambda: importance(KEY, MODEL, make_guide(), {}, DATA, num_samples=10),
        "num_samples must be at least 25; got 10",
    ),
    "another q": (
        lambda: elpd(KEY, MODEL, make_guide(), {}, DATA, q=dist.Normal(0.0, 1.0)),
        r"q must be over z0, one a trajectory, shape \(300, 2\); got \(\)",
    ),
    "no ranks": (
        lambda: simulation_ranks(KEY, MODEL, make_guide(), {}, DATA, num_samples=0),
        "num_samples must be a positive integer; got 0",
    ),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

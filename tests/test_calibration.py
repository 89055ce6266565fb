"""Diagnostics against a model whose posterior, evidence and forecasts are known in closed form.

z0 ~ N(0, I), x_k = z0 + noise e_k: a state that stands still, observed at some times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from scipy import stats

from np_latentode import AmortizedGuide, GaussianLikelihood, LatentODE, Scaling, Trajectories
from np_latentode.calibration import calibration, simulation_ranks
from np_latentode.importance import importance, log_score

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
    assert np.all(report.bound <= LOG_EVIDENCE + 0.4)
    # The bound closes most of it.
    assert np.abs(report.bound - LOG_EVIDENCE).mean() < 0.3 * kl


def test_pareto_k_finds_a_guide_that_is_too_narrow_and_none_that_is_too_wide():
    narrow = importance(KEY, MODEL, make_guide(scale=0.5), {}, DATA, num_samples=1_000)
    wide = importance(KEY, MODEL, make_guide(scale=1.3), {}, DATA, num_samples=1_000)
    assert np.median(narrow.pareto_k) > 0.7
    assert np.median(wide.pareto_k) < 0.3
    assert "Pareto k median" in str(narrow)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_the_log_score_is_the_closed_form_whatever_the_guide(scale):
    score = log_score(KEY, MODEL, make_guide(scale=scale), {}, CONTEXT, TARGET, num_samples=4_000)
    exact = LOG_EVIDENCE - evidence(CONTEXT.values, CONTEXT.mask)
    np.testing.assert_allclose(score, exact, atol=0.35)
    np.testing.assert_allclose(score.mean(), exact.mean(), atol=0.02)


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
    np.testing.assert_allclose(np.nanmean(calibrated.log_score), log_scores.mean(), rtol=0.05)
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


def test_a_misplaced_prior_does_not_rank_uniformly():
    # The guide is exact for a prior around 0.
    ranks = simulation_ranks(KEY, make_model(prior_loc=3.0), make_guide(), {}, DATA)
    assert ranks.p_value.max() < 1e-3


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
        "target must be Trajectories, as many as",
    ),
    "few weights": (
        lambda: importance(KEY, MODEL, make_guide(), {}, DATA, num_samples=10),
        "num_samples must be at least 25; got 10",
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

"""Calibration of forecasts against a model whose forecasts are known in closed form."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from still import (
    CONTEXT,
    DATA,
    KEY,
    MODEL,
    NOISE,
    NUM,
    TARGET,
    Still,
    Summary,
    make_fitted,
    make_guide,
    make_model,
)

from np_latentode import (
    AmortizedGuide,
    BernoulliLikelihood,
    Fitted,
    LatentODE,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    Scaling,
    StandardNormal,
    Trajectories,
    calibration,
    importance,
    plot_calibration,
    simulation_ranks,
)


@pytest.fixture(scope="module")
def calibrated():
    return calibration(KEY, make_fitted(), CONTEXT, TARGET)


@pytest.mark.slow
def test_exact_forecasts_cover_what_they_say(calibrated):
    count = int(TARGET.mask.sum())
    for level, share in zip(calibrated.levels, calibrated.coverage, strict=True):
        # Errors of one trajectory and feature are correlated: some 3 observations count as one.
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / (count / 3))


@pytest.mark.slow
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
@pytest.mark.slow
def test_wrong_bands_are_found(model, guide, sign):
    found = calibration(KEY, Fitted(model, guide, {}), CONTEXT.before(0.5), TARGET)
    off = found.coverage - np.array(found.levels)
    assert np.all(sign * off[:3] > 0.04)


@pytest.mark.slow
def test_exact_guides_rank_uniformly():
    ranks = simulation_ranks(KEY, make_fitted(), DATA)
    assert ranks.ranks.shape == (NUM, 2)
    assert ranks.p_value.min() > 0.01
    np.testing.assert_allclose(ranks.ranks.mean(0), 0.5, atol=0.07)


@pytest.mark.parametrize(
    "off", [{"scale": 1.5}, {"scale": 1 / 1.5}, {"shift": 0.7}], ids=["wide", "narrow", "biased"]
)
@pytest.mark.slow
def test_a_guide_that_is_off_does_not_rank_uniformly(off):
    assert simulation_ranks(KEY, make_fitted(**off), DATA).p_value.max() < 1e-3


def test_a_guide_for_another_prior_does_not_rank_uniformly():
    # It is exact for a prior around 0.
    ranks = simulation_ranks(KEY, Fitted(make_model(prior_loc=3.0), make_guide(), {}), DATA)
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
@pytest.mark.slow
def test_bits_and_counts_have_scores_and_bands_too(likelihood, decoded, exact):
    model, guide = flags(likelihood, decoded)
    x = exact.rvs((200, 4, 1), random_state=0).astype(float)
    data = Trajectories(np.tile(np.arange(4.0), (200, 1)), x)
    found = calibration(KEY, Fitted(model, guide, {}), data, data)
    np.testing.assert_allclose(found.log_score, -exact.logpmf(x), rtol=1e-4)
    for level, share in zip(found.levels, found.coverage, strict=True):
        assert abs(share - level) < 5 * np.sqrt(level * (1 - level) / x.size)
    report = importance(KEY, Fitted(model, guide, {}), data, num_samples=30)
    np.testing.assert_allclose(report.bound, exact.logpmf(x).sum((1, 2)), rtol=1e-3)
    with pytest.raises(ValueError, match=r"context must be .* got 2.5"):
        importance(KEY, Fitted(model, guide, {}), Trajectories(data.times, x + 2.5))


SIZE, COUNT_MEAN = 0.8, 2.0


@pytest.mark.parametrize(
    ("likelihood", "decoded", "exact"),
    [
        (BernoulliLikelihood(), -0.5, stats.bernoulli(1 / (1 + np.exp(0.5)))),
        (
            NegativeBinomialLikelihood(SIZE),
            np.log(COUNT_MEAN),
            stats.nbinom(SIZE, SIZE / (SIZE + COUNT_MEAN)),
        ),
    ],
    ids=["bits", "counts"],
)
@pytest.mark.slow
def test_the_pit_of_few_different_values_is_uniform_if_and_only_if_forecasts_are_right(
    likelihood, decoded, exact
):
    model, guide = flags(likelihood, decoded)
    times = np.tile(np.arange(4.0), (300, 1))
    right = exact.rvs((300, 4, 1), random_state=0).astype(float)
    wrong = np.where(np.random.default_rng(1).uniform(size=right.shape) < 0.3, 0, right)
    p_values = []
    for x in (right, wrong):
        data = Trajectories(times, x)
        one, same = (calibration(KEY, Fitted(model, guide, {}), data, data) for _ in range(2))
        np.testing.assert_array_equal(one.pit, same.pit)
        np.testing.assert_allclose(one.log_score, -exact.logpmf(x), rtol=1e-3)
        p_values.append(stats.kstest(one.pit.ravel(), "uniform").pvalue)
    assert p_values[0] > 0.01
    assert p_values[1] < 1e-4
    if isinstance(likelihood, BernoulliLikelihood):
        # The CRPS of a probability is its Brier score.
        np.testing.assert_allclose(one.crps.mean(), np.mean((exact.mean() - wrong) ** 2), rtol=0.05)


@pytest.mark.parametrize(("scale", "inside"), [(1.0, True), (0.3, False)])
@pytest.mark.slow
def test_the_ecdf_stays_within_its_bands_if_and_only_if_forecasts_are_right(scale, inside):
    model = make_model(noise=NOISE * scale)
    figure = plot_calibration(
        calibration(KEY, Fitted(model, make_guide(scale=scale), {}), CONTEXT, TARGET)
    )
    axis = figure.axes[1]
    ecdf = np.asarray(axis.get_lines()[0].get_xydata())
    corners = axis.collections[0].get_paths()[0].vertices
    above, below = (edge(corners[:, 1]) for edge in (np.max, np.min))
    assert (np.abs(ecdf[:, 1]).max() < min(above, -below)) == inside
    shares = [float(height) for height in axis.figure.axes[2].get_lines()[1].get_ydata()]
    assert (abs(shares[2] - 0.9) < 0.05) == inside


BAD = {
    "no levels": (
        lambda: calibration(KEY, make_fitted(), DATA, DATA, levels=()),
        "levels",
    ),
    "a level of 1": (
        lambda: calibration(KEY, make_fitted(), DATA, DATA, levels=[1.0]),
        "levels must be numbers between 0 and 1",
    ),
    "one draw": (
        lambda: calibration(KEY, make_fitted(), DATA, DATA, num_samples=1),
        "num_samples must be an integer of at least 2",
    ),
    "another target": (
        lambda: calibration(KEY, make_fitted(), DATA, DATA[:3]),
        "target must have as many trajectories as the context, 300; got 3",
    ),
    "nothing to forecast": (
        lambda: calibration(KEY, make_fitted(), DATA, DATA.before(-1.0)),
        "target must hold at least one observation; got none",
    ),
    "a list": (
        lambda: simulation_ranks(KEY, make_fitted(), [1.0]),
        "like must be Trajectories; got list",
    ),
    "no ranks": (
        lambda: simulation_ranks(KEY, make_fitted(), DATA, num_samples=0),
        "num_samples must be a positive integer; got 0",
    ),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""When one more visit arrives, a forecast from the longer context is the update: nothing is fitted.

p(x | context, visit) is p(x | context), conditioned on the visit by the rule of Bayes.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from still import NOISE, make_fitted

from np_latentode import (
    Ensemble,
    LatentODE,
    OrnsteinUhlenbeckLikelihood,
    Trajectories,
    decode,
    forecast,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY, COUNT = jax.random.key(0), 20_000
BEFORE = Trajectories.from_ragged([([0.0, 1.0], [[0.4, -0.3], [0.9, np.nan]])])
VISIT = (2.0, np.array([1.6, 0.4]))
LONGER = Trajectories.from_ragged([([0.0, 1.0, 2.0], [[0.4, -0.3], [0.9, np.nan], VISIT[1]])])
TIMES = np.array([1.5, 2.0, 4.0])


def moments(context, fitted):
    draws = forecast(KEY, fitted, context, TIMES, num_samples=COUNT, draws_at_once=2_000)
    return draws["z0"][:, 0], np.asarray(draws["x"], float)[:, 0]


@pytest.mark.parametrize("wrap", [lambda fitted: fitted, lambda fitted: Ensemble((fitted,))])
def test_a_forecast_after_one_more_visit_is_that_before_conditioned_on_it(wrap):
    fitted = wrap(make_fitted())
    z0, x = moments(BEFORE, fitted)
    # Bayes: the draws from before, weighted by the density of the visit.
    weight = norm(np.asarray(z0, float), NOISE).pdf(VISIT[1]).prod(1)
    weight /= weight.sum()
    mean = np.einsum("d,dtf->tf", weight, x)
    sd = np.sqrt(np.einsum("d,dtf->tf", weight, (x - mean) ** 2))
    _, after = moments(LONGER, fitted)
    error = 5 * after.std(0) / np.sqrt(1 / (weight**2).sum())
    assert (np.abs(after.mean(0) - mean) < error).all()
    np.testing.assert_allclose(after.std(0), sd, rtol=0.05)


def test_bands_narrow_at_the_time_of_a_visit():
    (_, before), (_, after) = (moments(context, make_fitted()) for context in (BEFORE, LONGER))
    (low, high), (lower, higher) = (np.quantile(x, [0.05, 0.95], axis=0) for x in (before, after))
    assert (higher - lower < high - low).all()


@pytest.mark.slow
def test_a_residual_goes_on_from_the_visit():
    """Given z0, only the residual process remembers: near the visit the bands are its noise."""
    fitted, likelihood = make_fitted(), OrnsteinUhlenbeckLikelihood(0.1, 1.0, 2.0)
    parts = dict(prior=fitted.model.prior, scaling=fitted.model.scaling, likelihood=likelihood)
    model = LatentODE(fitted.model.dynamics, fitted.model.decoder, **parts)
    fitted, z0 = replace(fitted, model=model), jnp.zeros((4_000, 1, 2))
    at = np.array([[2.0, 2.5, 12.0]])
    one, other = (
        decode(KEY, fitted, z0, at, context=context)["x"][:, 0, :, 0]
        for context in (BEFORE, LONGER)
    )
    assert other[:, 0].std() == pytest.approx(0.1 * np.sqrt(2), rel=0.05)
    assert other[:, 0].mean() == pytest.approx(VISIT[1][0], abs=0.03)
    assert (other.std(0)[:2] < 0.8 * one.std(0)[:2]).all()
    # Long after it, all is as if there had been none.
    assert other[:, 2].std() == pytest.approx(one[:, 2].std(), rel=0.05)

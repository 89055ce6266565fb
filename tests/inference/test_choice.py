"""The choice of the inference by held-out data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_nuts import Problem

from np_latentode import amortized, choose_inference, log_predictive

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def problem():
    return Problem()


def split(problem):
    middle = float(np.median(problem.data.times))
    return problem.data.before(middle), problem.data.after(middle)


@pytest.mark.slow
def test_sharpened_posteriors_are_chosen_where_the_guide_is_wrong(problem):
    choice = choose_inference(jax.random.key(0), problem.with_guide("displaced"), *split(problem))
    assert choice.name == "sharpened"
    assert choice.scores["sharpened"] > choice.scores["guide"] + 0.5


@pytest.mark.slow
def test_scores_are_log_densities_of_the_target_per_observation(problem):
    context, target = split(problem)
    candidates = {"ours": amortized}
    key = jax.random.key(0)
    choice = choose_inference(key, problem.fitted, context, target, candidates=candidates)
    z0 = amortized(key, problem.fitted, context, 200)
    log_p = log_predictive(problem.fitted, z0, context, target).sum() / target.mask.sum()
    assert choice.scores == {"ours": pytest.approx(float(log_p))}
    assert choice.inference is amortized


def test_the_first_of_equals_wins_and_a_score_that_is_not_finite_never(problem):
    def broken(rng_key, fitted, context, num_samples):
        return jnp.full((num_samples, len(context), 2), jnp.nan)

    candidates = {"broken": broken, "first": amortized, "second": amortized}
    pair = split(problem)
    choice = choose_inference(jax.random.key(0), problem.fitted, *pair, candidates=candidates)
    assert choice.name == "first"


def test_no_candidates_are_refused(problem):
    with pytest.raises(ValueError, match="candidates must hold at least one"):
        choose_inference(jax.random.key(0), problem.fitted, *split(problem), candidates={})

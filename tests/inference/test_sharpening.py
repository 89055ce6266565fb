"""Laplace's approximation and sharpening against closed forms, and against sums over grids."""

import warnings
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from test_linear_gaussian import LATENT_DIM, MASKS, NUM, SCALINGS, make_problem
from test_nuts import Problem

from np_latentode import (
    AmortizedGuide,
    BernoulliLikelihood,
    CirclePosterior,
    CirclePrior,
    DiagonalNormal,
    Exact,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    OrnsteinUhlenbeckLikelihood,
    PoissonLikelihood,
    Scaling,
    Sharpened,
    StandardNormal,
    StudentTLikelihood,
    SummaryEncoder,
    Trajectories,
    amortized,
    forecast,
    laplace,
    sharpen,
)
from np_latentode.inference import sharpening
from np_latentode.inference.density import log_joint, with_networks_fixed
from np_latentode.inference.mixtures import Mixture, of_modes
from np_latentode.inference.modes import Place, find_modes
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def problem():
    """A linear Gaussian model, and guides that are exact, displaced and narrow."""
    return Problem()


def moments(sharpened):
    z0 = np.asarray(sharpened.z0, float)
    return z0.mean(0), z0.std(0)


# Laplace's approximation.


@pytest.fixture(scope="module")
def closed_form():
    """A linear Gaussian model that is solved accurately."""
    truth, data, model, guide = make_problem(SCALINGS["other units"])
    return truth, data, Fitted(model, guide, initial_params(model, guide))


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_laplace_is_exact_for_a_linear_gaussian_model(closed_form, mask):
    truth, data, fitted = closed_form
    q = laplace(jax.random.key(0), fitted, data.keep(mask)).base_dist
    best = np.argmax(q.mixing_distribution.probs, -1)[:, None]
    np.testing.assert_allclose(np.take_along_axis(q.mixing_distribution.probs, best, 1), 1.0)
    mean, covariance = truth.posterior(data.keep(mask))
    parts = q.component_distribution
    loc = np.take_along_axis(np.asarray(parts.loc), best[..., None], 1)[:, 0]
    spread = np.take_along_axis(np.asarray(parts.covariance_matrix), best[..., None, None], 1)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    np.testing.assert_allclose((loc - mean) / sd, 0.0, atol=1e-3)
    np.testing.assert_allclose(spread[:, 0], covariance, atol=1e-4)


class Still(nnx.Module):
    def __call__(self, t, z):
        return jnp.zeros_like(z)


class Square(nnx.Module):
    def __call__(self, z):
        return z**2


class Same(nnx.Module):
    def __call__(self, z):
        return z


def still_model(decoder, *, prior, latent_dim=1, num_features=1, noise_scale=0.3, posterior=None):
    """x = decoder(z0) + noise at all times, and an untrained guide."""
    scaling = Scaling.identity(num_features)
    likelihood = GaussianLikelihood(noise_scale)
    model = LatentODE(Still(), decoder, prior=prior, scaling=scaling, likelihood=likelihood)
    rngs = nnx.Rngs(0)
    encoder = SummaryEncoder(num_features, rngs=rngs)
    posterior = DiagonalNormal(32, latent_dim, rngs=rngs) if posterior is None else posterior
    guide = AmortizedGuide(encoder, posterior, scaling=scaling)
    return Fitted(model, guide, initial_params(model, guide))


def leaning():
    return dist.Normal(0.2, 1.0).expand([1]).to_event(1)


SQUARES = np.array([1.0, 0.5, 2.0])


@pytest.fixture(scope="module")
def squares():
    """x = z0^2 + noise, whose posterior has a mode on each side of 0, and P(z0 > 0) on a grid."""
    fitted = still_model(Square(), prior=leaning, noise_scale=0.1)
    data = Trajectories(np.zeros((3, 1)), SQUARES[:, None, None])
    z = np.linspace(-4, 4, 40_001)[:, None]
    log_p = -0.5 * ((SQUARES - z**2) / 0.1) ** 2 - 0.5 * (z - 0.2) ** 2
    p = np.exp(log_p - log_p.max(0))
    return fitted, data, (p * (z > 0)).sum(0) / p.sum(0)


def test_laplace_finds_both_modes_and_their_odds(squares):
    fitted, data, positive = squares
    q = laplace(jax.random.key(0), fitted, data)
    z0 = np.asarray(q.sample(jax.random.key(1), (20_000,)))
    np.testing.assert_allclose((z0[..., 0] > 0).mean(0), positive, atol=0.03)


def test_sharpening_keeps_both_modes_and_their_odds(squares):
    fitted, data, positive = squares
    found = sharpen(jax.random.key(0), fitted, data, num_samples=2_000)
    np.testing.assert_allclose((found.z0[..., 0] > 0).mean(0), positive, atol=0.05)
    sizes = np.sqrt(SQUARES)
    np.testing.assert_allclose(np.abs(found.z0[..., 0]).mean(0), sizes, rtol=0.03)


LIKELIHOODS = {
    "gaussian": (GaussianLikelihood(0.3), "normal"),
    "ornstein-uhlenbeck": (OrnsteinUhlenbeckLikelihood(0.3, 0.2, 1.0), "normal"),
    "student-t": (StudentTLikelihood(4.0, noise_scale=0.3), "normal"),
    "bernoulli": (BernoulliLikelihood(), "bits"),
    "poisson": (PoissonLikelihood(), "counts"),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.slow
def test_slopes_and_curvatures_are_those_of_the_density_where_the_path_is_linear(name, x64):
    likelihood, kind = LIKELIHOODS[name]
    rng = np.random.default_rng(0)
    shape = (3, 6, 2)
    values = {
        "normal": rng.normal(size=shape),
        "bits": rng.integers(0, 2, shape),
        "counts": rng.poisson(2, shape),
    }[kind]
    times = np.sort(rng.uniform(0, 2, shape[:2]), axis=1)
    data = Trajectories(times, values.astype(float), rng.uniform(size=shape) < 0.8)
    model = LatentODE(
        Still(), Same(), prior=StandardNormal(2), scaling=Scaling.identity(2), likelihood=likelihood
    )
    rngs = nnx.Rngs(0)
    parts = SummaryEncoder(2, rngs=rngs), DiagonalNormal(32, 2, rngs=rngs)
    guide = AmortizedGuide(*parts, scaling=model.scaling)
    fitted = Fitted(model, guide, initial_params(model, guide))
    u = jnp.asarray(rng.normal(size=(1, 3, 2)))
    place = find_modes(fitted, data, u, max_steps=8, num_steps=0)
    # Of another method: reverse derivatives through the solver's own steps.
    direct = replace(fitted, model=model.with_solver(adjoint=diffrax.DirectAdjoint()))
    fixed, _ = with_networks_fixed(direct, data, 8)

    def total(z0):
        return log_joint(fixed, data, z0).sum()

    np.testing.assert_allclose(place.log_p[0], log_joint(fixed, data, u[0]))
    np.testing.assert_allclose(place.slope[0], jax.grad(total)(u[0]), rtol=1e-6, atol=1e-8)
    if name == "poisson":
        # Its rate is no linear function of the path, so that the curvature is approximate.
        assert (np.linalg.eigvalsh(place.precision[0]) >= 1).all()
        return
    curvature = np.asarray(jax.hessian(total)(u[0]))
    own = np.stack([curvature[i, :, i] for i in range(3)])
    np.testing.assert_allclose(place.precision[0], -own, rtol=1e-6, atol=1e-8)


# Sharpening.


@pytest.mark.parametrize("name", ["exact", "displaced", "narrow"])
def test_sharpened_draws_and_evidence_are_those_of_the_closed_form_whatever_the_guide(
    problem, name
):
    found = sharpen(jax.random.key(0), problem.with_guide(name), problem.data, num_samples=2_000)
    mean, covariance = problem.truth.posterior(problem.data)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    loc, spread = moments(found)
    np.testing.assert_array_less(np.abs(loc - mean) / sd, 0.1)
    np.testing.assert_allclose(spread / sd, 1.0, atol=0.1)
    expected = problem.truth.log_evidence(problem.data)
    np.testing.assert_allclose(found.log_evidence, expected, atol=0.1)
    assert (found.pareto_k <= 0.7).all()
    assert set(found.ended) == ({"guide"} if name == "exact" else {"laplace"})


def test_where_nothing_is_observed_sharpening_gives_the_prior(problem):
    nothing = problem.data.keep(np.zeros(problem.data.mask.shape, bool))
    found = sharpen(jax.random.key(0), problem.with_guide("displaced"), nothing, num_samples=2_000)
    loc, spread = moments(found)
    np.testing.assert_allclose(loc, np.zeros((NUM, LATENT_DIM)), atol=0.1)
    np.testing.assert_allclose(spread, np.ones((NUM, LATENT_DIM)), atol=0.1)
    np.testing.assert_allclose(found.log_evidence, 0.0, atol=0.05)


def test_the_same_key_gives_the_same_draws_and_another_key_others(problem):
    fitted = problem.with_guide("narrow")
    draws = [
        np.asarray(Sharpened()(jax.random.key(seed), fitted, problem.data, 2_000))
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.isclose(draws[0], draws[2]).any()


def test_hidden_slots_change_nothing(problem):
    fitted, middle = problem.with_guide("narrow"), float(np.median(problem.data.times))
    seen = problem.data.before(middle)
    far = jnp.where(seen.observed, seen.times, seen.times + 1.0)
    moved = seen.replace_arrays(far, seen.values, seen.mask)
    draws = [
        np.asarray(sharpen(jax.random.key(0), fitted, context, num_samples=2_000).z0)
        for context in (seen, moved)
    ]
    np.testing.assert_array_equal(*draws)


@pytest.mark.slow
def test_nuts_ends_the_chain_where_no_weights_can_be_trusted(problem, monkeypatch):
    monkeypatch.setattr(sharpening, "GUIDE_TRUSTED", -np.inf)
    monkeypatch.setattr(sharpening, "most_trusted", lambda num_draws: -np.inf)
    monkeypatch.setattr(sharpening, "NUM_ROUNDS", 0)
    monkeypatch.setattr(sharpening, "NUM_EXACT", 500)
    fitted = problem.with_guide("narrow")
    found = sharpen(jax.random.key(0), fitted, problem.data, num_samples=2_000)
    assert set(found.ended) == {"exact"}
    mean, covariance = problem.truth.posterior(problem.data)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    exact = Exact(num_warmup=300)(jax.random.key(1), fitted, problem.data, 2_000)
    for z0 in (found.z0, exact):
        np.testing.assert_array_less(np.abs(z0.mean(0) - mean) / sd, 0.2)
        np.testing.assert_allclose(z0.std(0) / sd, 1.0, atol=0.15)


@pytest.mark.slow
def test_without_nuts_draws_that_cannot_be_trusted_are_warned_of(problem, monkeypatch):
    fitted = problem.with_guide("narrow")
    given = (jax.random.key(0), fitted, problem.data, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trusted = Sharpened(exact=False)(*given)
    monkeypatch.setattr(sharpening, "GUIDE_TRUSTED", -np.inf)
    monkeypatch.setattr(sharpening, "most_trusted", lambda num_draws: -np.inf)
    monkeypatch.setattr(sharpening, "NUM_ROUNDS", 0)
    with pytest.warns(UserWarning, match="bands may be too narrow"):
        again = Sharpened(exact=False)(*given)
    assert again.shape == trusted.shape
    assert not sharpen(*given[:3], num_samples=50, exact=False).sure.any()


@pytest.mark.slow
def test_an_angle_beside_the_end_of_its_range_is_no_problem():
    posterior = CirclePosterior(32, rngs=nnx.Rngs(0))
    fitted = still_model(
        Same(), prior=CirclePrior(), latent_dim=2, num_features=2, posterior=posterior
    )
    angles = np.array([np.pi, 3.0, -3.1, 0.0])
    x = np.stack([np.cos(angles), np.sin(angles)], -1)[:, None]
    found = sharpen(jax.random.key(0), fitted, Trajectories(np.zeros((4, 1)), x), num_samples=2_000)
    z0 = np.asarray(found.z0, float)
    gaps = np.angle(np.exp(1j * (np.arctan2(z0[..., 1], z0[..., 0]) - angles)))
    # Given |x| = 1, the angle has a von Mises distribution of concentration 1 / 0.3^2.
    grid = np.linspace(-np.pi, np.pi, 20_001)
    p = np.exp(np.cos(grid) / 0.3**2)
    sd = np.sqrt((p * grid**2).sum() / p.sum())
    np.testing.assert_allclose(gaps.mean(0), 0.0, atol=0.1 * sd)
    np.testing.assert_allclose(gaps.std(0), sd, rtol=0.1)


def test_a_mixture_adapts_to_the_moments_of_weighted_draws():
    eye = jnp.eye(2)
    old = Mixture(jnp.zeros((1, 1)), jnp.zeros((1, 1, 2)), eye[None, None], (float("inf"),) * 2)
    u, log_q = old.draw(jax.random.key(0), 40_000)
    covariance = np.array([[0.5, 0.3], [0.3, 0.4]])
    target = dist.MultivariateNormal(jnp.array([0.5, -0.2]), jnp.asarray(covariance))
    new = old.adapted(u, jax.nn.softmax(target.log_prob(u) - log_q, axis=0))
    np.testing.assert_allclose(new.loc[0, 0], target.mean, atol=0.02)
    found = new.scale_tril[0, 0] @ new.scale_tril[0, 0].T
    np.testing.assert_allclose(found, covariance, atol=0.02)


@pytest.mark.slow
def test_sharpening_passes_in_double_precision(x64):
    own = Problem()
    found = sharpen(jax.random.key(0), own.with_guide("narrow"), own.data, num_samples=2_000)
    assert found.z0.dtype == jnp.float64
    mean, _ = own.truth.posterior(own.data)
    np.testing.assert_allclose(moments(found)[0], mean, atol=0.2)


class Exploding(nnx.Module):
    """dz/dt = z^3, which is infinite before t = 1 unless |z0| < 0.7."""

    def __call__(self, t, z):
        return z**3


@pytest.mark.slow
def test_starts_whose_solve_fails_cost_nothing():
    scaling = Scaling.identity(1)
    likelihood = GaussianLikelihood(0.1)
    prior = StandardNormal(1)
    model = LatentODE(Exploding(), Same(), prior=prior, scaling=scaling, likelihood=likelihood)
    parts = SummaryEncoder(1, rngs=nnx.Rngs(0)), DiagonalNormal(32, 1, rngs=nnx.Rngs(0))
    guide = AmortizedGuide(*parts, scaling=scaling)
    fitted = Fitted(model, guide, initial_params(model, guide))
    x = np.array([0.1, -0.3, 0.4])
    data = Trajectories(np.tile([0.0, 5.0], (3, 1)), np.stack([x, x], 1)[..., None])
    grid = np.linspace(-0.6, 0.6, 1_201)
    at = jnp.broadcast_to(jnp.asarray(grid)[:, None, None], (len(grid), 3, 1))

    @jax.jit
    def explain(at):
        fixed, _ = with_networks_fixed(fitted, data, 64)
        return jax.vmap(lambda z0: log_joint(fixed, data, z0))(at)

    log_p = np.asarray(explain(at), float)
    p = np.exp(log_p - log_p.max(0))
    mean = (p * grid[:, None]).sum(0) / p.sum(0)
    q = laplace(jax.random.key(0), fitted, data)
    assert np.isfinite(q.log_prob(jnp.asarray(mean)[:, None])).all()
    found = sharpen(jax.random.key(0), fitted, data, num_samples=2_000, exact=False)
    np.testing.assert_allclose(np.asarray(found.z0)[..., 0].mean(0), mean, atol=0.02)
    evidence = np.log(p.sum(0) * (grid[1] - grid[0])) + log_p.max(0)
    np.testing.assert_allclose(found.log_evidence, evidence, atol=0.1)


def test_a_flat_density_on_a_circle_has_the_evidence_1():
    wide = Mixture(jnp.zeros((1, 1)), jnp.ones((1, 1, 1)), 3 * jnp.ones((1, 1, 1, 1)), (2 * np.pi,))
    _, log_q = wide.draw(jax.random.key(0), 20_000)
    weights = np.exp(-np.log(2 * np.pi) - np.asarray(log_q, float))
    np.testing.assert_allclose(weights.mean(), 1.0, atol=0.03)
    assert weights.max() < 2


def test_a_saddle_hides_no_mode():
    """Four places of one trajectory: a saddle that is high, and a mode far away."""
    u = jnp.array([[[0.0, 0.0]], [[0.0, 50.0]]])
    precision = jnp.stack([jnp.diag(jnp.array([1.0, -0.1])), jnp.eye(2)])[:, None]
    place = Place(u, jnp.array([[0.0], [-1.0]]), jnp.zeros_like(u), precision)
    found = of_modes(place, (float("inf"),) * 2)
    assert np.isfinite(found.log_weight).all()


def test_what_the_guide_is_not_trusted_with_does_not_stop_the_chain():
    rng = np.random.default_rng(0)
    found = sharpening._Found(10, 1, 1)
    rows, draws = np.array([0]), rng.normal(size=(1, 1_000, 1))

    def pareto(k):
        return np.log(rng.pareto(1 / k, (1, 1_000)) + 1)

    found.keep("guide", rows, draws, pareto(0.58))
    assert found.pareto_k[0] > 0.5
    assert not found.sure[0]
    found.keep("laplace", rows, draws, pareto(0.95))
    assert not found.sure[0]
    assert found.ended[0] == "laplace"
    found.keep("adapted", rows, draws, pareto(0.1))
    assert found.sure[0]
    assert found.ended[0] == "adapted"


def test_trajectories_of_very_different_lengths_keep_their_places(closed_form):
    truth, _, fitted = closed_form
    rng = np.random.default_rng(5)
    times = truth.scaling.t0 + truth.scaling.time_unit * np.sort(rng.uniform(0, 2, (7, 24)), axis=1)
    lengths = np.array([24, 1, 2, 24, 1, 2, 1])
    data = Trajectories(times, truth.sample(6, times)).keep(np.arange(24) < lengths[:, None])
    found = sharpen(jax.random.key(0), fitted, data, num_samples=2_000)
    mean, covariance = truth.posterior(data)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    np.testing.assert_array_less(np.abs(moments(found)[0] - mean) / sd, 0.15)


# Inference as an object.


def test_forecasts_take_any_inference(problem):
    fitted, context = problem.with_guide("displaced"), problem.data
    times = np.asarray(context.times)
    mean, _ = problem.truth.posterior(context)

    def known(rng_key, fitted, context, num_samples):
        return jnp.broadcast_to(jnp.asarray(mean), (num_samples, *mean.shape))

    key = jax.random.key(0)
    errors = {}
    inferences = dict(guide=amortized, sharpened=Sharpened(), known=known)
    for name, inference in inferences.items():
        draws = forecast(key, fitted, context, times, inference=inference, num_samples=2_000)
        errors[name] = np.abs(np.asarray(draws["z0"]).mean(0) - mean).mean()
    assert errors["known"] < 1e-5
    assert errors["sharpened"] < 0.1 * errors["guide"]


def test_an_inference_that_returns_another_shape_is_refused(problem):
    times = np.asarray(problem.data.times)
    with pytest.raises(ValueError, match="inference must return z0 of shape"):
        forecast(
            jax.random.key(0),
            problem.fitted,
            problem.data,
            times,
            inference=lambda *_: jnp.zeros(3),
        )


def test_how_far_a_trajectory_goes_cannot_be_decided_inside_of_jit(problem):
    def draw(context):
        return sharpen(jax.random.key(0), problem.fitted, context).z0

    with pytest.raises(ValueError, match="known numbers"):
        jax.jit(draw)(problem.data)
    with pytest.raises(ValueError, match="num_weighted must be at least 25"):
        sharpen(jax.random.key(0), problem.fitted, problem.data, num_weighted=10)


def test_a_report_says_how_many_ended_where(problem):
    fitted = problem.with_guide("displaced")
    found = sharpen(jax.random.key(0), fitted, problem.data, num_samples=2_000)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["guide", "laplace"]
    assert lines[-1].startswith("100.0% of trajectories")
    later = replace(found, pareto_k=np.full(NUM, 1.0))
    assert str(later).splitlines()[-1].startswith("0.0%")

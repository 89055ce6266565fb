"""A linear field with a linear Gaussian emission: posterior and evidence are closed forms.

z(t) = expm(A (t - t0) / unit) z0,  x = loc + scale * C z(t) + noise,  z0 ~ N(0, I), so that the
observations of a trajectory are x ~ N(loc, H H^T + noise^2). H has a row of scale * C expm(...)
for each of them.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import numpyro.handlers as handlers
import optax
import pytest
from diffrax import Tsit5
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO
from scipy.linalg import expm
from scipy.stats import multivariate_normal

from np_latentode import (
    ODERNN,
    AmortizedGuide,
    DiagonalNormal,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    Scaling,
    Solver,
    StandardNormal,
    Trajectories,
    forecast,
    posterior,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

LATENT_DIM = 2
SOLVER = Solver(method=Tsit5(), dt0=1 / 16, max_steps=64)


@dataclass(frozen=True)
class Truth:
    """The closed form, in NumPy and double precision."""

    field: np.ndarray
    readout: np.ndarray
    noise: np.ndarray
    scaling: Scaling

    def design(self, times):
        """H before masking, shape (time, feature, latent)."""
        spans = (np.asarray(times, float) - self.scaling.t0) / self.scaling.time_unit
        flows = np.stack([expm(self.field * span) for span in spans])
        return self.scaling.scale[:, None] * (self.readout @ flows)

    def _observed(self, data):
        """Rows of H, centred observations and their noise, for one trajectory after the other."""
        for times, values, mask in zip(data.times, data.values, data.mask, strict=True):
            mask = np.asarray(mask)
            centred = np.asarray(values, float) - self.scaling.loc
            noise = np.broadcast_to(self.noise, mask.shape)
            yield self.design(times)[mask], centred[mask], noise[mask]

    def log_evidence(self, data):
        return np.array(
            [
                multivariate_normal(cov=h @ h.T + np.diag(noise**2)).logpdf(x) if len(x) else 0.0
                for h, x, noise in self._observed(data)
            ]
        )

    def posterior(self, data):
        """Means and covariances of z0."""
        means, covariances = [], []
        for h, x, noise in self._observed(data):
            covariance = np.linalg.inv(np.eye(LATENT_DIM) + (h / noise[:, None] ** 2).T @ h)
            means.append(covariance @ h.T @ (x / noise**2))
            covariances.append(covariance)
        return np.stack(means), np.stack(covariances)

    def sample(self, seed, times):
        rng = np.random.default_rng(seed)
        z0 = rng.normal(size=(len(times), LATENT_DIM))
        clean = np.stack([self.design(t) @ z for t, z in zip(times, z0, strict=True)])
        return clean + self.scaling.loc + self.noise * rng.normal(size=clean.shape)


def kl(mean, covariance, other_mean, other_covariance):
    """KL(N(mean, covariance) || N(other_mean, other_covariance)), one per trajectory."""
    precision = np.linalg.inv(other_covariance)
    gap = other_mean - mean
    log_ratio = np.linalg.slogdet(other_covariance)[1] - np.linalg.slogdet(covariance)[1]
    trace = np.trace(precision @ covariance, axis1=-2, axis2=-1)
    return 0.5 * (trace - LATENT_DIM + np.einsum("ni,nij,nj->n", gap, precision, gap) + log_ratio)


def sigma_points(mean, covariance):
    """Points over which a quadratic has the same mean as over N(mean, covariance), exactly.

    The terms of the ELBO are quadratic in z0, so that its expectation needs no Monte Carlo.
    """
    root = np.sqrt(LATENT_DIM) * np.linalg.cholesky(covariance)
    columns = np.moveaxis(root, -1, 0)
    return [jnp.asarray(mean + sign * column) for column in columns for sign in (-1, 1)]


class LinearField(nnx.Module):
    def __init__(self, matrix):
        self.matrix = nnx.Param(jnp.asarray(matrix))

    def __call__(self, t, z):
        return z @ self.matrix[...].T


class LinearDecoder(nnx.Module):
    def __init__(self, matrix):
        self.matrix = nnx.Param(jnp.asarray(matrix))

    def __call__(self, z):
        return z @ self.matrix[...].T


class ExactEncoder(nnx.Module):
    """The sufficient statistics: precision and information of z0, for a decaying rotation."""

    def __init__(self, truth):
        self.decay, self.speed = -float(truth.field[0, 0]), float(truth.field[1, 0])
        self.readout = tuple(map(tuple, truth.readout.tolist()))
        self.noise = tuple((truth.noise / truth.scaling.scale).tolist())

    def __call__(self, times, values, mask):
        c, s = jnp.cos(self.speed * times), jnp.sin(self.speed * times)
        rotation = jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)
        flow = jnp.exp(-self.decay * times)[..., None, None] * rotation
        weights = mask / jnp.asarray(self.noise) ** 2
        h = jnp.asarray(self.readout) @ flow
        precision = jnp.eye(LATENT_DIM) + jnp.einsum("ntd,ntdi,ntdj->nij", weights, h, h)
        information = jnp.einsum("ntd,ntdi,ntd->ni", weights, h, values)
        return jnp.concatenate([precision.reshape(len(times), -1), information], -1)


class ExactPosterior(nnx.Module):
    def __call__(self, features):
        precision = features[:, :-LATENT_DIM].reshape(-1, LATENT_DIM, LATENT_DIM)
        loc = jnp.linalg.solve(precision, features[:, -LATENT_DIM:, None])[..., 0]
        return dist.MultivariateNormal(loc, precision_matrix=precision)


def make_model(truth, *, noise_scale):
    return LatentODE(
        LinearField(truth.field),
        LinearDecoder(truth.readout),
        prior=StandardNormal(LATENT_DIM),
        scaling=truth.scaling,
        likelihood=GaussianLikelihood(noise_scale),
        solver=SOLVER,
    )


SCALINGS = {
    "plain units": Scaling.identity(3),
    "other units": Scaling(np.array([5.0, -1.0, 0.3]), np.array([2.0, 0.5, 4.0]), 1.5, 2.5),
}
NUM, NUM_TIMES = 4, 5


def make_problem(scaling):
    """A closed form, data from it, and the model and guide that are exact for it."""
    rng = np.random.default_rng(0)
    truth = Truth(
        field=np.array([[-0.3, -2.0], [2.0, -0.3]]),
        readout=rng.normal(size=(3, LATENT_DIM)),
        noise=np.array([0.3, 0.5, 0.2]) * scaling.scale,
        scaling=scaling,
    )
    times = scaling.t0 + scaling.time_unit * np.sort(rng.uniform(0, 2, (NUM, NUM_TIMES)), axis=1)
    data = Trajectories(times, truth.sample(1, times))
    guide = AmortizedGuide(ExactEncoder(truth), ExactPosterior(), scaling=scaling)
    return truth, data, make_model(truth, noise_scale=truth.noise), guide


@pytest.fixture(scope="module")
def problem():
    return make_problem(SCALINGS["other units"])


@pytest.fixture(scope="module", params=SCALINGS.values(), ids=SCALINGS.keys())
def problem_and_loss(request):
    truth, data, model, guide = make_problem(request.param)
    loss = jax.jit(lambda key, data: Trace_ELBO().loss(key, {}, model, guide, data))
    return truth, data, loss


ALL = np.ones((NUM, NUM_TIMES, 3), bool)
MASKS = {
    "nothing missing": ALL,
    "entries missing": np.random.default_rng(2).uniform(size=ALL.shape) < 0.5,
    "a feature missing": ALL & (np.arange(3) != 1),
    "a trajectory missing": ALL & (np.arange(NUM) != 2)[:, None, None],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.slow
def test_every_draw_from_the_exact_posterior_gives_the_evidence_of_what_is_observed(
    problem_and_loss, mask
):
    truth, data, loss = problem_and_loss
    observed = data.keep(mask)
    log_evidence = truth.log_evidence(observed).sum()
    losses = [loss(key, observed) for key in jax.random.split(jax.random.key(0), 5)]
    np.testing.assert_allclose(losses, -log_evidence, rtol=1e-6, atol=1e-4)


@pytest.mark.slow
def test_what_the_encoder_does_not_see_costs_the_kl_of_what_it_would_have_learned(problem):
    truth, data, model, guide = problem
    part_end = truth.scaling.t0 + truth.scaling.time_unit
    part = data.before(part_end)
    assert part.mask.sum() < data.mask.sum()
    mean, covariance = truth.posterior(part)
    gap = kl(mean, covariance, *truth.posterior(data)).sum()

    @jax.jit
    def loss_at(z0):
        at_z0 = handlers.substitute(guide, data={"z0": z0})
        return Trace_ELBO().loss(
            jax.random.key(0),
            {},
            model,
            at_z0,
            data,
            conditioning=lambda _, seen: seen.before(part_end),
        )

    elbo = -np.mean([loss_at(z0) for z0 in sigma_points(mean, covariance)])
    assert gap > 0.1
    np.testing.assert_allclose(elbo, truth.log_evidence(data).sum() - gap, rtol=1e-6, atol=1e-4)


@pytest.fixture(scope="module")
def rotation():
    """One problem in plain units, and its loss with any Gaussian guide at a given z0."""
    rng = np.random.default_rng(3)
    truth = Truth(
        field=np.array([[-0.3, -2.0], [2.0, -0.3]]),
        readout=np.array([[1.5, 1.2], [0.4, 0.5]]),
        noise=np.array([0.4, 0.6]),
        scaling=Scaling.identity(2),
    )
    times = np.sort(rng.uniform(0, 0.8, (3, 4)), axis=1)
    data = Trajectories(times, truth.sample(4, times))
    model = make_model(truth, noise_scale=None)

    def loss(params, mean, covariance, z0):
        def guide(context):
            with numpyro.plate("trajectory", len(context), dim=-1):
                numpyro.sample("z0", dist.MultivariateNormal(mean, covariance))

        at_z0 = handlers.substitute(guide, data={"z0": z0})
        return Trace_ELBO().loss(jax.random.key(0), params, model, at_z0, data)

    return truth, data, jax.jit(jax.value_and_grad(loss))


GUIDES = {
    "prior": lambda mean, cov: (0 * mean, np.broadcast_to(np.eye(LATENT_DIM), cov.shape)),
    "shifted": lambda mean, cov: (mean + 0.3, cov),
    "too narrow": lambda mean, cov: (mean, 0.25 * cov),
    "too wide": lambda mean, cov: (mean, 4 * cov),
    "uncorrelated": lambda mean, cov: (mean, cov * np.eye(LATENT_DIM)),
    "of another trajectory": lambda mean, cov: (mean[::-1], cov[::-1]),
}


def params_of(truth):
    return {
        "dynamics$params": {"matrix": jnp.asarray(truth.field)},
        "decoder$params": {"matrix": jnp.asarray(truth.readout)},
        "noise_scale": jnp.asarray(truth.noise),
    }


@pytest.mark.parametrize("change", GUIDES.values(), ids=GUIDES.keys())
@pytest.mark.slow
def test_the_elbo_is_below_the_evidence_by_the_kl_from_the_exact_posterior(rotation, change):
    truth, data, loss = rotation
    exact = truth.posterior(data)
    mean, covariance = change(*exact)
    losses = [
        loss(params_of(truth), jnp.asarray(mean), jnp.asarray(covariance), z0)[0]
        for z0 in sigma_points(mean, covariance)
    ]
    gap = kl(mean, covariance, *exact).sum()
    assert gap > 0.1
    log_evidence = truth.log_evidence(data).sum()
    assert -np.mean(losses) < log_evidence
    np.testing.assert_allclose(-np.mean(losses), log_evidence - gap, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("part", ["field", "readout", "noise"])
def test_at_the_exact_posterior_the_elbo_has_the_gradient_of_the_evidence(rotation, part):
    truth, data, loss = rotation
    mean, covariance = truth.posterior(data)
    gradients = [
        loss(params_of(truth), jnp.asarray(mean), jnp.asarray(covariance), z0)[1]
        for z0 in sigma_points(mean, covariance)
    ]
    gradient = jax.tree.map(lambda *g: -np.mean(g, axis=0), *gradients)
    ours = {
        "field": gradient["dynamics$params"]["matrix"],
        "readout": gradient["decoder$params"]["matrix"],
        "noise": gradient["noise_scale"],
    }[part]
    value, step = getattr(truth, part), 1e-5
    expected = np.empty_like(value)
    for index in np.ndindex(value.shape):
        move = np.zeros_like(value)
        move[index] = step
        up, down = (replace(truth, **{part: value + sign * move}) for sign in (1, -1))
        rise = up.log_evidence(data).sum() - down.log_evidence(data).sum()
        expected[index] = rise / (2 * step)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_forecasts_have_the_exact_mean_and_covariance_at_new_times(problem):
    truth, data, model, guide = problem
    times = truth.scaling.t0 + truth.scaling.time_unit * np.array([0.0, 1.1, 3.0])
    num_samples = 4_000
    draws = forecast(
        jax.random.key(0),
        Fitted(model, guide, initial_params(model, guide)),
        data,
        times,
        num_samples=num_samples,
        draws_at_once=500,
    )
    mean, covariance = truth.posterior(data)
    h = truth.design(times).reshape(-1, LATENT_DIM)
    for name, noise in (("x_mean", 0.0), ("x", truth.noise)):
        ours = np.asarray(draws[name], float).reshape(num_samples, NUM, -1)
        noise_variance = np.tile(np.broadcast_to(noise, 3) ** 2, len(times))
        for i in range(NUM):
            exact_mean = h @ mean[i] + np.tile(truth.scaling.loc, len(times))
            exact = h @ covariance[i] @ h.T + np.diag(noise_variance)
            sd = np.sqrt(np.diag(exact))
            z = (ours[:, i].mean(0) - exact_mean) / (sd / np.sqrt(num_samples))
            assert np.abs(z).max() < 5
            # The standard error of an entry, for unit variances, is at most sqrt(2 / num_samples).
            error = (np.cov(ours[:, i].T) - exact) / np.outer(sd, sd)
            assert np.abs(error).max() < 5 * np.sqrt(2 / num_samples)


@pytest.mark.slow
def test_svi_brings_an_amortized_diagonal_guide_to_a_diagonal_posterior():
    rng = np.random.default_rng(5)
    truth = Truth(
        field=np.diag([-0.5, 0.3]),
        readout=np.diag([1.0, 1.5]),
        noise=np.array([0.5, 0.7]),
        scaling=Scaling.identity(2),
    )
    times = np.sort(rng.uniform(0, 2, (8, 4)), axis=1)
    data = Trajectories(times, truth.sample(6, times))
    mean, covariance = truth.posterior(data)
    assert np.allclose(covariance, covariance * np.eye(LATENT_DIM))

    rngs = nnx.Rngs(0)
    guide = AmortizedGuide(
        ODERNN(2, hidden_dim=16, width=8, rngs=rngs),
        DiagonalNormal(16, LATENT_DIM, width=16, rngs=rngs),
        scaling=truth.scaling,
    )
    whole = make_model(truth, noise_scale=truth.noise)
    # Hidden from the optimizer, the model's parameters stay as they are.
    model = handlers.block(whole, hide=["dynamics$params", "decoder$params"])
    steps = 1_500
    svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(2e-2, steps)), Trace_ELBO())
    start = jax.jit(svi.init)(jax.random.key(0), data)
    assert set(svi.get_params(start)) == {"encoder$params", "posterior$params", "prior$params"}
    fit = svi.run(jax.random.key(1), steps, data, init_state=start, progress_bar=False)
    fitted = Fitted(whole, guide, initial_params(whole, guide) | fit.params)
    q = jax.jit(posterior)(fitted, data).base_dist
    learned = np.asarray(q.loc, float), np.asarray(q.scale, float)[..., None] ** 2 * np.eye(2)
    exact_sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    gap = kl(*learned, mean, covariance)
    assert gap.mean() < 0.05
    np.testing.assert_allclose(np.asarray(q.scale), exact_sd, rtol=0.2)
    assert np.abs((np.asarray(q.loc) - mean) / exact_sd).max() < 0.5
    evidence = truth.log_evidence(data).sum()
    recent = -np.asarray(fit.losses[-500:])
    np.testing.assert_allclose(recent.mean(), evidence - gap.sum(), atol=0.05 * len(data))

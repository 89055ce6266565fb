"""NUTS, refinement and their report against a closed form, and where ODEs cannot be solved."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.distributions import constraints
from numpyro.distributions.transforms import ParameterFreeTransform, biject_to
from test_linear_gaussian import (
    LATENT_DIM,
    MASKS,
    NUM,
    SCALINGS,
    ExactEncoder,
    ExactPosterior,
    kl,
    make_problem,
    params_of,
)

from np_latentode import (
    AmortizedGuide,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    Scaling,
    Solver,
    StandardNormal,
    Trajectories,
    amortization,
    convergence,
    exact_posterior,
    posterior,
    refine,
)
from np_latentode.inference import nuts

pytestmark = pytest.mark.usefixtures("compile_quickly")

DRAWS = dict(num_warmup=200, num_samples=400)


@pytest.fixture(scope="module", autouse=True)
def one_round():
    """Chains are not extended, which compiles programs again, unless a test asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nuts, "NUM_REPEATS", 0)
        yield


class Off(nnx.Module):
    """The exact posterior, shifted by a number of its standard deviations, and rescaled.

    Both are parameters, so that one program is compiled for all guides.
    """

    def __init__(self):
        self.shift, self.scale = nnx.Param(jnp.zeros(())), nnx.Param(jnp.ones(()))

    def __call__(self, features):
        q = ExactPosterior()(features)
        loc = q.loc + self.shift[...] * jnp.sqrt(q.variance)
        return dist.MultivariateNormal(loc, scale_tril=self.scale[...] * q.scale_tril)


GUIDES = {"exact": (0.0, 1.0), "displaced": (3.0, 1.0), "narrow": (0.0, 0.25)}


class Problem:
    def __init__(self):
        self.truth, self.data, exact, _ = make_problem(SCALINGS["other units"])
        self.model = LatentODE(
            exact.dynamics,
            exact.decoder,
            prior=exact.prior,
            scaling=self.truth.scaling,
            solver=Solver(dt0=1 / 8),
        )
        encoder = ExactEncoder(self.truth)
        self.guide = AmortizedGuide(encoder, Off(), scaling=self.truth.scaling)
        self.fitted = self.with_guide("exact")

    def with_guide(self, name):
        shift, scale = (jnp.asarray(number) for number in GUIDES[name])
        off = {"posterior$params": {"shift": shift, "scale": scale}}
        return Fitted(self.model, self.guide, params_of(self.truth) | off)

    def nuts(self, data, *, fitted=None, seed=0):
        fitted = self.fitted if fitted is None else fitted
        q = posterior(fitted, data)
        return exact_posterior(jax.random.key(seed), fitted, data, q=q, **DRAWS)

    def refine(self, data, name="exact"):
        return refine(jax.random.key(1), self.with_guide(name), data)

    def report(self, name, **changed):
        arguments = dict(context=self.data, target=self.data) | changed
        return amortization(jax.random.key(2), self.with_guide(name), **arguments)


@pytest.fixture(scope="module")
def problem():
    return Problem()


@pytest.fixture(scope="module")
def tree(problem):
    return problem.nuts(problem.data)


@pytest.fixture(scope="module")
def refined(problem):
    return {name: problem.refine(problem.data, name) for name in GUIDES}


def drawing(q):
    """Inference by draws of a distribution over z0."""
    return lambda rng_key, fitted, context, num_samples: q.sample(rng_key, (num_samples,))


@pytest.fixture(scope="module")
def reports(problem, tree, refined):
    return {
        name: problem.report(name, exact=tree, others={"refined": drawing(refined[name].q)})
        for name in GUIDES
    }


def exact_moments(problem, data):
    mean, covariance = problem.truth.posterior(data)
    return mean, np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))


def assert_moments(tree, mean, sd):
    """Within five standard errors of a mean, and of a standard deviation of a normal."""
    z0 = np.asarray(tree["posterior"]["z0"], float).reshape(-1, *mean.shape)
    ess = convergence(tree).ess
    np.testing.assert_array_less(np.abs(z0.mean(0) - mean), 5 * sd / np.sqrt(ess))
    # The squares of the draws have fewer effective samples than the draws.
    np.testing.assert_array_less(np.abs(z0.std(0) / sd - 1), 5 / np.sqrt(ess))


# The sampler against the closed form.


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.slow
def test_nuts_draws_from_the_closed_form_whatever_the_guide(problem, tree, name):
    if name != "exact":
        tree = problem.nuts(problem.data, fitted=problem.with_guide(name))
    assert_moments(tree, *exact_moments(problem, problem.data))
    assert convergence(tree).rhat.max() < 1.03


# The tests above and below are of the other masks.
@pytest.mark.parametrize("name", ["entries missing", "a feature missing"])
@pytest.mark.slow
def test_nuts_sees_only_what_is_observed(problem, name):
    observed = problem.data.keep(MASKS[name])
    assert_moments(problem.nuts(observed), *exact_moments(problem, observed))


@pytest.mark.slow
def test_where_nothing_is_observed_nuts_and_refinement_return_the_prior(problem):
    prior = np.zeros((NUM, LATENT_DIM)), np.ones((NUM, LATENT_DIM))
    # Nothing of one trajectory. Nothing of all of them would take another number of steps, so NUTS
    # would be compiled again; refinement has the same density, and compiles faster.
    missing = problem.data.keep(MASKS["a trajectory missing"])
    moments = exact_moments(problem, missing)
    np.testing.assert_allclose([m[2] for m in moments], [m[2] for m in prior], atol=1e-12)
    assert_moments(problem.nuts(missing), *moments)
    nothing = problem.data.keep(np.zeros(problem.data.mask.shape, bool))
    local = problem.refine(nothing)
    np.testing.assert_allclose(local.q.base_dist.loc, prior[0], atol=0.1)
    np.testing.assert_allclose(np.sqrt(local.q.base_dist.variance), prior[1], rtol=0.1)


@pytest.mark.slow
def test_the_tree_has_arviz_names_and_the_log_density_of_the_model(problem, tree):
    assert dict(tree["posterior"].sizes) == {
        "chain": 4,
        "draw": DRAWS["num_samples"],
        "trajectory": NUM,
        "latent": LATENT_DIM,
    }
    stats = tree["sample_stats"]
    assert {"lp", "energy", "diverging", "n_steps", "acceptance_rate"} <= set(stats)
    assert stats["lp"].dims == ("chain", "draw", "trajectory")
    assert stats["n_steps"].max() <= 7
    # p(x, z0) = p(x) p(z0 | x), here both in closed form.
    z0 = np.asarray(tree["posterior"]["z0"], float)
    mean, covariance = problem.truth.posterior(problem.data)
    gap = z0 - mean
    squares = np.einsum("cdni,nij,cdnj->cdn", gap, np.linalg.inv(covariance), gap)
    log_posterior = -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])
    expected = problem.truth.log_evidence(problem.data) + log_posterior
    np.testing.assert_allclose(stats["lp"], expected, rtol=1e-3, atol=5e-2)


@pytest.mark.slow
def test_another_key_draws_otherwise_and_the_same_key_alike(problem, tree):
    z0 = np.asarray(tree["posterior"]["z0"])
    np.testing.assert_array_equal(z0, problem.nuts(problem.data)["posterior"]["z0"])
    assert not np.any(z0 == np.asarray(problem.nuts(problem.data, seed=1)["posterior"]["z0"]))


@pytest.mark.slow
def test_the_networks_are_those_of_params(problem, tree):
    other = {"decoder$params": {"matrix": -problem.truth.readout}}
    other = replace(problem.fitted, params=problem.fitted.params | other)
    flipped = problem.nuts(problem.data, fitted=other)
    mean, sd = exact_moments(problem, problem.data)
    assert_moments(flipped, -mean, sd)


@pytest.mark.slow
def test_chains_that_have_not_converged_go_on_and_those_that_have_stay(problem, tree, monkeypatch):
    first = convergence(tree).rhat.max(-1)
    limit = float(np.sort(first)[-2:].mean())
    monkeypatch.setattr(nuts, "NUM_REPEATS", 1)
    monkeypatch.setattr(nuts, "CONVERGED", limit)
    longer = problem.nuts(problem.data)
    same = (longer["posterior"]["z0"] == tree["posterior"]["z0"]).all(("chain", "draw", "latent"))
    np.testing.assert_array_equal(same, first <= limit)
    assert_moments(longer, *exact_moments(problem, problem.data))


@pytest.mark.slow
def test_convergence_prints_the_worst(tree):
    report = convergence(tree)
    text = str(report)
    assert f"worst R-hat {report.rhat.max():.4f}" in text
    assert f"least ESS {report.ess.min():.0f}" in text
    assert "0 divergences" in text


# Refinement.


@pytest.mark.parametrize("name", ["exact", "displaced", "narrow"])
@pytest.mark.slow
def test_refinement_ends_at_the_closed_form_wherever_it_starts(problem, refined, name):
    mean, covariance = problem.truth.posterior(problem.data)
    q = refined[name].q.base_dist
    gap = kl(np.asarray(q.loc, float), np.asarray(q.covariance_matrix, float), mean, covariance)
    assert gap.max() < 0.02


@pytest.mark.slow
def test_elbos_are_below_the_evidence_by_the_kl(problem, refined):
    evidence = problem.truth.log_evidence(problem.data)
    mean, covariance = problem.truth.posterior(problem.data)
    sd = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    np.testing.assert_allclose(refined["exact"].elbo_before, evidence, atol=0.05)
    for name, start in (
        ("displaced", (mean + 3 * sd, covariance)),
        ("narrow", (mean, covariance / 16)),
    ):
        gap = kl(*start, mean, covariance)
        np.testing.assert_allclose(refined[name].elbo_before, evidence - gap, rtol=0.1, atol=1)
        np.testing.assert_allclose(refined[name].elbo_after, evidence, atol=0.1)


# The report.


@pytest.mark.slow
def test_an_exact_guide_is_reported_without_a_gap(reports):
    report = reports["exact"]
    for name in ("guide", "refined"):
        assert np.abs(report.shift[name]).max() < 0.2
        np.testing.assert_allclose(report.sd_ratio[name], 1, atol=0.15)
    np.testing.assert_allclose(report.crps["guide"], report.crps["exact"], rtol=0.1)


@pytest.mark.slow
def test_a_displaced_guide_is_caught_and_repaired(reports):
    report = reports["displaced"]
    np.testing.assert_allclose(report.shift["guide"], 3, atol=0.4)
    assert np.abs(report.shift["refined"]).max() < 0.2
    assert report.crps["guide"].mean() > 1.1 * report.crps["exact"].mean()
    np.testing.assert_allclose(report.crps["refined"], report.crps["exact"], rtol=0.1)


@pytest.mark.slow
def test_a_narrow_guide_is_caught_and_repaired(reports):
    report = reports["narrow"]
    np.testing.assert_allclose(report.sd_ratio["guide"], 0.25, atol=0.04)
    np.testing.assert_allclose(report.sd_ratio["refined"], 1, atol=0.15)


@pytest.mark.slow
def test_crps_is_that_of_the_gaussian_forecast(problem, reports):
    data, truth = problem.data, problem.truth
    mean, covariance = truth.posterior(data)
    expected = np.empty(NUM)
    for i in range(NUM):
        h = truth.design(data.times[i])
        loc = h @ mean[i] + truth.scaling.loc
        sd = np.sqrt(np.einsum("tdi,ij,tdj->td", h, covariance[i], h) + truth.noise**2)
        expected[i] = crps_of_a_normal(np.asarray(data.values[i], float), loc, sd).mean()
    np.testing.assert_allclose(reports["exact"].crps["exact"], expected, rtol=0.1)


def crps_of_a_normal(x, loc, sd):
    """Gneiting & Raftery 2007, equation 21."""
    from scipy.stats import norm

    z = (x - loc) / sd
    return sd * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


@pytest.mark.slow
def test_the_report_prints_a_row_for_each(reports):
    lines = str(reports["displaced"]).splitlines()
    assert [line.split()[0] for line in lines] == ["|shift|", "guide", "refined", "exact", "exact:"]
    assert f"{np.median(np.abs(reports['displaced'].shift['guide'])):.3f}" in lines[1]
    assert "worst R-hat" in lines[-1]


@pytest.mark.slow
def test_trajectories_without_a_target_have_no_score(problem, tree):
    late = problem.data.keep(MASKS["a trajectory missing"])
    report = problem.report("exact", target=late, exact=tree)
    assert set(report.crps) == {"guide", "exact"}
    np.testing.assert_array_equal(np.isnan(report.crps["exact"]), np.arange(NUM) == 2)
    assert "nan" not in str(report)


# Where the ODE cannot be solved.


class Explosive(nnx.Module):
    """dz/dt = z^3, whose solution is infinite at t = 1 / (2 z0^2)."""

    def __call__(self, t, z):
        return z**3


class Identity(nnx.Module):
    def __call__(self, z):
        return z


class Pooled(nnx.Module):
    def __call__(self, times, values, mask):
        return jnp.mean(values, axis=1)


class Fixed(nnx.Module):
    """Normal(loc, scale), which ignores the observations."""

    def __init__(self):
        self.loc, self.scale = nnx.Param(jnp.zeros(())), nnx.Param(jnp.ones(()))

    def __call__(self, features):
        return dist.Normal(self.loc[...] + 0 * features, self.scale[...]).to_event(1)


class Explosion:
    def __init__(self):
        scaling = Scaling.identity(1)
        self.model = LatentODE(
            Explosive(),
            Identity(),
            prior=StandardNormal(1),
            scaling=scaling,
            likelihood=GaussianLikelihood(0.1),
        )
        self.guide = AmortizedGuide(Pooled(), Fixed(), scaling=scaling)
        self.data = Trajectories([[0.0, 0.5, 2.0]] * 2, [[[0.1]] * 3, [[-0.2]] * 3])

    def fitted(self, loc, scale):
        return Fitted(self.model, self.guide, params_at(loc, scale))

    def nuts(self, loc, scale):
        fitted = self.fitted(loc, scale)
        q = posterior(fitted, self.data)
        return exact_posterior(jax.random.key(0), fitted, self.data, q=q, **DRAWS)


def params_at(loc, scale):
    return {"posterior$params": {"loc": jnp.asarray(loc), "scale": jnp.asarray(scale)}}


@pytest.fixture(scope="module")
def explosion():
    return Explosion()


@pytest.mark.slow
def test_chains_start_where_the_ode_can_be_solved(explosion):
    tree = explosion.nuts(0.0, 0.7)
    z0 = np.asarray(tree["posterior"]["z0"])
    assert np.isfinite(tree["sample_stats"]["lp"]).all()
    np.testing.assert_allclose(z0.mean((0, 1))[:, 0], [0.1, -0.2], atol=0.1)
    # Larger z0 may give finite states at first, but they do not explain the observations.
    assert np.abs(z0).max() < 1


@pytest.mark.slow
def test_a_wild_start_raises_nothing_and_is_reported(explosion):
    tree = explosion.nuts(1e8, 1.0)
    assert np.all(tree["sample_stats"]["lp"] == -np.inf)
    assert np.all(convergence(tree).divergences == 4 * DRAWS["num_samples"])


@pytest.mark.slow
def test_refinement_survives_draws_that_cannot_be_solved(explosion):
    local = refine(jax.random.key(0), explosion.fitted(0.0, 0.5), explosion.data)
    assert np.all(local.elbo_before == -np.inf)
    np.testing.assert_allclose(local.q.base_dist.loc[:, 0], [0.1, -0.2], atol=0.1)


# Other models than the default.


class Circle(constraints.Constraint):
    event_dim = 1

    def __call__(self, x):
        return jnp.abs(jnp.linalg.norm(x, axis=-1) - 1) < 1e-4

    def tree_flatten(self):
        return (), ((), {})


class Angle(ParameterFreeTransform):
    domain, codomain = constraints.real_vector, Circle()

    def __call__(self, x):
        return jnp.concatenate([jnp.cos(x), jnp.sin(x)], axis=-1)

    def _inverse(self, y):
        return jnp.arctan2(y[..., 1:], y[..., :1])

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.zeros(x.shape[:-1], x.dtype)

    def forward_shape(self, shape):
        return (*shape[:-1], 2)

    def inverse_shape(self, shape):
        return (*shape[:-1], 1)


@biject_to.register(Circle)
def _(constraint):
    return Angle()


class OnCircle(dist.Distribution):
    """An angle ~ Normal(angle, scale), as a point of the circle; nearly uniform for large scale."""

    support = Circle()
    pytree_data_fields = ("angle", "scale")

    def __init__(self, angle, scale):
        self.angle, self.scale = angle, scale
        super().__init__(jnp.shape(angle)[:-1], (2,))

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, sample_shape + jnp.shape(self.angle))
        return Angle()(self.angle + self.scale * noise)

    def log_prob(self, value):
        gap = Angle()._inverse(value) - self.angle
        gap = (gap + jnp.pi) % (2 * jnp.pi) - jnp.pi
        return dist.Normal(0.0, self.scale).log_prob(gap)[..., 0]


class UniformCircle(nnx.Module):
    def __call__(self):
        return OnCircle(jnp.zeros(1), 1e3)


class OnCirclePosterior(nnx.Module):
    def __call__(self, features):
        return OnCircle(Angle()._inverse(features) + 0.2, 0.3)


class Positive(nnx.Module):
    def __call__(self):
        return dist.Gamma(3.0, 2.0).expand([1]).to_event(1)


class Still(nnx.Module):
    def __call__(self, t, z):
        return 0 * z


class WithoutODE(LatentODE):
    """x ~ likelihood(z0), as a user might write it. It compiles quickly."""

    def __init__(self, prior, likelihood, *, dim=1):
        scaling = Scaling.identity(dim)
        super().__init__(
            Still(), Identity(), prior=prior, scaling=scaling, likelihood=GaussianLikelihood(1.0)
        )
        self.emission = likelihood

    def __call__(self, context, target=None, **options):
        with numpyro.plate("trajectory", len(context), dim=-1):
            z0 = numpyro.sample("z0", self.prior())
            likelihood = self.emission(z0[:, None]).mask(context.mask).to_event(2)
            numpyro.sample("x", likelihood, obs=context.values)


def without_a_guide(model):
    """A fit whose guide is not used."""
    guide = AmortizedGuide(Pooled(), Fixed(), scaling=model.scaling)
    return Fitted(model, guide, params_at(0.0, 1.0))


class TwoLatents(WithoutODE):
    def __call__(self, context, target=None, **options):
        numpyro.sample("rate", dist.Gamma(1.0, 1.0))
        super().__call__(context, target)


@pytest.mark.slow
def test_a_support_of_fewer_dimensions_is_sampled_across_the_cut_of_its_angle():
    noise = 0.1
    model = WithoutODE(UniformCircle(), lambda z0: dist.Normal(z0, noise), dim=2)
    guide = AmortizedGuide(Pooled(), OnCirclePosterior(), scaling=model.scaling)
    angles = np.array([np.pi, 0.5, -3.0])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, None]
    data = Trajectories(np.zeros((3, 1)), points)
    fitted = Fitted(model, guide, {})
    q = posterior(fitted, data)
    tree = exact_posterior(jax.random.key(0), fitted, data, q=q, **DRAWS)
    local = refine(jax.random.key(1), fitted, data)
    draws = {
        "nuts": np.asarray(tree["posterior"]["z0"], float).reshape(-1, 3, 2),
        "refined": np.asarray(local.q.sample(jax.random.key(2), (2_000,)), float),
    }
    for z0 in draws.values():
        np.testing.assert_allclose(np.linalg.norm(z0, axis=-1), 1, atol=1e-5)
        gap = np.angle((z0 @ [1, 1j]) * np.exp(-1j * angles))
        np.testing.assert_allclose(gap.mean(0), 0, atol=0.02)
        # In the angle the likelihood is von Mises with concentration 1 / noise^2.
        np.testing.assert_allclose(gap.std(0), noise, rtol=0.1)


@pytest.mark.slow
def test_prior_and_likelihood_are_those_of_the_model_and_draws_keep_to_the_support():
    model = WithoutODE(Positive(), lambda z0: dist.Laplace(z0, 0.01))
    data = Trajectories(np.zeros((2, 1)), [[[np.nan]], [[1.0]]])
    tree = exact_posterior(jax.random.key(0), without_a_guide(model), data, **DRAWS)
    z0 = tree["posterior"]["z0"]
    assert np.all(z0 > 0)
    # Without observations the moments are those of Gamma(3, 2), with one those of the Laplace.
    assert_moments(tree, np.array([[1.5], [1.0]]), np.array([[np.sqrt(0.75)], [np.sqrt(2) * 0.01]]))


def test_a_second_site_to_infer_is_refused():
    model = TwoLatents(StandardNormal(1), lambda z0: dist.Normal(z0, 1.0))
    data = Trajectories(np.zeros((2, 1)), [[[1.0]], [[-2.0]]])
    with pytest.raises(ValueError, match=r"^model must have z0 as its only .* got .*'rate'"):
        exact_posterior(jax.random.key(0), without_a_guide(model), data)


# Wrong arguments are refused before anything is computed.


@pytest.mark.parametrize("count", [0, -1, 2.5, "many"])
@pytest.mark.parametrize("name", ["num_warmup", "num_samples", "num_chains", "max_tree_depth"])
def test_counts_of_the_sampler_must_be_positive(problem, untyped, name, count):
    with pytest.raises(ValueError, match=rf"^{name} must be a positive integer; got {count!r}\.$"):
        exact_posterior(jax.random.key(0), problem.fitted, problem.data, **{name: count})


def test_a_distribution_that_is_not_over_z0_is_refused(problem, untyped):
    for q, came in ((dist.Normal(0.0, 1.0), r"\(\)"), (problem.guide, "AmortizedGuide")):
        with pytest.raises(ValueError, match=rf"^q must be over z0, .* \({NUM}, 2\); got {came}"):
            exact_posterior(jax.random.key(0), problem.fitted, problem.data, q=q)


@pytest.mark.parametrize("name", ["num_steps", "num_particles"])
def test_counts_of_the_refinement_must_be_positive(problem, name):
    with pytest.raises(ValueError, match=rf"^{name} must be a positive integer; got 0\.$"):
        refine(jax.random.key(0), problem.fitted, problem.data, **{name: 0})


def test_a_context_that_is_none_is_refused(problem, untyped):
    for run in (
        lambda: exact_posterior(jax.random.key(0), problem.fitted, [1.0]),
        lambda: refine(jax.random.key(0), problem.fitted, [1.0]),
    ):
        with pytest.raises(ValueError, match=r"^context must be Trajectories; got list"):
            run()


def test_where_nothing_was_observed_before_t0_no_steps_are_needed(problem):
    nothing = Trajectories.from_ragged([((), ())], num_features=problem.data.num_features)
    assert problem.truth.scaling.t0 > 0
    assert problem.model.steps_to(nothing.times, nothing.offset) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: dict(target=data[:2]), "target must have as many trajectories .* 4; got 2"),
        (lambda data: dict(target=data.before(-9.0)), "target must hold at least one observation"),
        (lambda data: dict(target=data.times), "target must be Trajectories; got "),
        (lambda data: dict(context=data[:2], target=data[:2]), "exact must hold .* 2; got .*4"),
        (lambda data: dict(num_samples=0), "num_samples must be a positive integer; got 0"),
        (lambda data: dict(num_moments=0), "num_moments must be a positive integer; got 0"),
    ],
    ids=["fewer", "nothing", "times", "another context", "no samples", "no moments"],
)
@pytest.mark.slow
def test_a_report_of_what_does_not_fit_is_refused(problem, tree, untyped, change, message):
    data = problem.data
    with pytest.raises(ValueError, match="^" + message):
        problem.report("exact", **(dict(exact=tree) | change(data)))

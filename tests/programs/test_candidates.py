"""Candidates are made for the data: a backbone where there are few features, and a network."""

import jax
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    BernoulliLikelihood,
    FeatureLikelihoods,
    Fitted,
    GaussianLikelihood,
    LinearDecoder,
    LinearDynamics,
    MLPDynamics,
    NegativeBinomialLikelihood,
    OrnsteinUhlenbeckLikelihood,
    RegressionEncoder,
    RegressionNormal,
    Scaling,
    Trajectories,
    candidates,
    choose_degree,
    decode,
    latent_ode,
)
from np_latentode.parts.likelihoods import linked
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")


def lines(num_features, count=20):
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 4, (count, 5)), axis=1)
    level, slope = rng.normal(size=(2, count, 1, num_features))
    x = level + slope * times[..., None] + 0.1 * rng.normal(size=(count, 5, num_features))
    return Trajectories(times, x)


DATA = lines(2)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_backbone_has_the_degree_that_the_data_choose_and_starts_at_its_noise():
    mixed = choose_degree(DATA, Scaling.fit(DATA), most_coefficients=24)
    model, guide = candidates(DATA)["backbone"](DATA, nnx.Rngs(0))
    assert model.latent_dim == guide.latent_dim == len(mixed.mean)
    assert isinstance(model.dynamics, LinearDynamics)
    assert isinstance(model.decoder, LinearDecoder)
    assert isinstance(guide.encoder, RegressionEncoder)
    assert isinstance(guide.posterior, RegressionNormal)
    params = initial_params(model, guide)
    noise = np.asarray(params["noise_scale"]) / model.scaling.scale
    np.testing.assert_allclose(noise, mixed.noise, rtol=0.05)


def test_a_backbone_of_a_part_has_the_same_programs_and_starts_at_its_own_estimates():
    build = candidates(DATA)["backbone"]
    pairs = [build(DATA[rows], nnx.Rngs(0)) for rows in (slice(0, 15), slice(5, 20))]
    one, other = (initial_params(*pair) for pair in pairs)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [leaf.shape for leaf in jax.tree.leaves(one)] == [
        leaf.shape for leaf in jax.tree.leaves(other)
    ]
    assert pairs[0][0].scaling.like(pairs[1][0].scaling)
    assert not np.array_equal(one["decoder$params"]["weight"], other["decoder$params"]["weight"])


@pytest.mark.parametrize(("num_features", "latent_dim"), [(1, 4), (3, 6), (9, 16)])
def test_a_network_has_two_dimensions_per_feature_from_4_to_16(num_features, latent_dim):
    data = lines(num_features)
    model, _ = candidates(data)["network"](data, nnx.Rngs(0))
    assert model.latent_dim == latent_dim
    assert isinstance(model.dynamics, MLPDynamics)


RICH = Trajectories(
    np.tile(np.arange(40.0), (500, 1)), np.random.default_rng(0).normal(size=(500, 40, 2))
)


@pytest.mark.parametrize(
    ("data", "latent_dim"),
    [(RICH, 32), (RICH[:499], 4), (RICH.keep(RICH.times > 0), 4)],
    ids=["rich", "too few ids", "too few values"],
)
def test_many_ids_with_many_values_have_a_wide_network(data, latent_dim):
    model, guide = candidates(data)["network"](data, nnx.Rngs(0))
    assert model.latent_dim == guide.latent_dim == latent_dim
    wide = latent_dim == 32
    assert (model.decoder.depth, model.dynamics.width) == ((0, 128) if wide else (1, 64))
    noise = initial_params(model, guide)["noise_scale"] / model.scaling.scale
    np.testing.assert_allclose(noise, 0.1 if wide else 0.5, rtol=1e-5)


def test_a_wide_network_has_no_more_weights_than_the_fewest_values_that_it_is_for():
    params = initial_params(*candidates(RICH)["network"](RICH, nnx.Rngs(0)))
    assert 30_000 < sum(leaf.size for leaf in jax.tree.leaves(params)) <= 40_000


def test_so_many_features_that_lines_are_too_many_have_no_backbone():
    assert {*candidates(lines(12))} == {"backbone", "network"}
    assert {*candidates(lines(13))} == {"network"}


def test_units_and_likelihood_are_those_given():
    scaling = Scaling.fit(DATA, t0=-1.0)
    found = candidates(DATA, scaling=scaling, likelihood=GaussianLikelihood)
    for build in found.values():
        model, guide = build(DATA, nnx.Rngs(0))
        assert model.scaling is guide.scaling is scaling
        assert isinstance(model.likelihood, GaussianLikelihood)


@pytest.mark.slow
def test_without_a_latent_dimension_a_latent_ode_is_the_first_candidate():
    one = latent_ode(DATA, rngs=nnx.Rngs(0))
    other = candidates(DATA)["backbone"](DATA, nnx.Rngs(0))
    same(initial_params(*one), initial_params(*other))
    assert isinstance(one[0].likelihood, OrnsteinUhlenbeckLikelihood)
    many, _ = latent_ode(lines(13), rngs=nnx.Rngs(0))
    assert isinstance(many.dynamics, MLPDynamics)
    own = GaussianLikelihood(0.3)
    assert latent_ode(DATA, likelihood=own, rngs=nnx.Rngs(0))[0].likelihood is own


def test_parts_of_your_own_need_a_latent_dimension():
    dynamics = MLPDynamics(2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"latent_dim must be given with .* got \['dynamics'\]"):
        latent_ode(DATA, dynamics=dynamics, rngs=nnx.Rngs(0))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("scaling", [None, Scaling.identity(2)])
def test_other_data_are_refused(scaling):
    with pytest.raises(ValueError, match="train must be Trajectories; got ndarray"):
        candidates(np.zeros((3, 4, 2)), scaling=scaling)


def mixed_kinds(count=60):
    """A number, zeros and ones, and counts, which go along with each other."""
    rng = np.random.default_rng(1)
    times = np.sort(rng.uniform(0, 4, (count, 5)), axis=1)
    level = rng.normal(size=(count, 1)) + 0.2 * times
    bits = rng.uniform(size=times.shape) < 1 / (1 + np.exp(-level))
    x = [level + 0.2 * rng.normal(size=times.shape), bits, rng.poisson(np.exp(0.3 * level))]
    return Trajectories(times, np.stack(x, axis=-1).astype(float))


MIXED = mixed_kinds()
NAMED = {"x_1": BernoulliLikelihood(), "x_2": NegativeBinomialLikelihood()}


@pytest.mark.slow
def test_both_candidates_have_the_likelihoods_by_name_and_a_residual_for_the_others():
    for build in candidates(MIXED, likelihood=NAMED).values():
        likelihood = build(MIXED, nnx.Rngs(0))[0].likelihood
        assert isinstance(likelihood, FeatureLikelihoods)
        kinds = [type(one) for one in likelihood.likelihoods]
        assert kinds == [OrnsteinUhlenbeckLikelihood, *map(type, NAMED.values())]
    one, other = (
        initial_params(*make)
        for make in (
            latent_ode(MIXED, likelihood=NAMED, rngs=nnx.Rngs(0)),
            candidates(MIXED, likelihood=NAMED)["backbone"](MIXED, nnx.Rngs(0)),
        )
    )
    same(one, other)
    # The residual of the number starts at the noise of the mixed model.
    mixed = choose_degree(MIXED, Scaling.fit(MIXED), most_coefficients=24)
    noise = mixed.noise[0] * Scaling.fit(MIXED).scale[0]
    assert float(one["x_0.noise_scale"][0]) == pytest.approx(noise, rel=1e-5)


@pytest.mark.slow
def test_a_backbone_starts_at_the_linear_model_of_zeros_and_ones_and_of_counts():
    scaling = Scaling.fit(MIXED)
    mixed = choose_degree(MIXED, scaling, most_coefficients=24)
    fits = []
    for likelihood in (NAMED, GaussianLikelihood()):
        model, guide = latent_ode(MIXED, likelihood=likelihood, rngs=nnx.Rngs(0))
        fits.append(Fitted(model, guide, initial_params(model, guide)))
    z0 = jax.random.normal(jax.random.key(0), (1, 200, len(mixed.mean)))
    times = np.tile(np.linspace(0.1, 3.9, 4), (200, 1))
    ours, linear = (decode(jax.random.key(0), fit, z0, times)["x_mean"][0] for fit in fits)
    np.testing.assert_allclose(ours[..., 0], linear[..., 0], rtol=1e-4, atol=1e-4)
    # What follows is exact: the link of the linear model's means.
    link = linked(fits[0].model.likelihood, scaling, mixed.noise)
    decoded = link.start + link.slope * (linear - scaling.loc) / scaling.scale
    sigmoid = 1 / (1 + np.exp(-decoded[..., 1]))
    np.testing.assert_allclose(ours[..., 1], sigmoid, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ours[..., 2], scaling.loc[2] * np.exp(decoded[..., 2]), rtol=5e-3)
    # And so they are near the linear model itself.
    assert np.abs(ours[..., 1] - np.clip(linear[..., 1], 0, 1)).mean() < 0.05
    assert np.abs(ours[..., 2] - np.maximum(linear[..., 2], 0)).mean() < 0.2


def test_what_a_likelihood_cannot_hold_is_refused_before_anything_is_estimated():
    with pytest.raises(ValueError, match=r"^train must be 0 or 1 under Bernoulli in feature 2"):
        candidates(MIXED, likelihood={"x_2": BernoulliLikelihood()})

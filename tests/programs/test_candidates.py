"""Candidates are made for the data: a backbone where there are few features, and a network."""

import jax
import numpy as np
import pytest
from flax import nnx

from np_latentode import (
    GaussianLikelihood,
    LinearDecoder,
    LinearDynamics,
    MLPDynamics,
    OrnsteinUhlenbeckLikelihood,
    RegressionEncoder,
    RegressionNormal,
    Scaling,
    Trajectories,
    candidates,
    choose_degree,
    latent_ode,
)
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

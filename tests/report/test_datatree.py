"""The data tree, and the report on the codes against closed forms."""

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray
from flax import nnx
from numpyro.infer import SVI, Trace_ELBO, log_likelihood
from optax import adam

from np_latentode import (
    AmortizedGuide,
    Fitted,
    GaussianLikelihood,
    LatentODE,
    Scaling,
    Solver,
    StandardNormal,
    Trajectories,
    gaussianization,
    latent_ode,
    to_datatree,
)
from np_latentode.programs.params import initial_params

pytestmark = pytest.mark.usefixtures("compile_quickly")

KEY = jax.random.key(0)


class Still(nnx.Module):
    """A state that does not move."""

    def __call__(self, t, z):
        return jnp.zeros_like(z)


class Same(nnx.Module):
    """Decoder, which returns z, and encoder, which returns the first values."""

    def __call__(self, z, values=None, mask=None):
        return z if values is None else values[:, 0]


class Around(nnx.Module):
    """z0 ~ N(the first values, scale^2)."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, features):
        return dist.Normal(features, self.scale).to_event(1)


def still_model(scale):
    """A guide of known form around values that we choose: q(z0 | x) = N(x, scale^2)."""
    scaling = Scaling.identity(2)
    model = LatentODE(
        Still(),
        Same(),
        prior=StandardNormal(2),
        scaling=scaling,
        likelihood=GaussianLikelihood(1.0),
    )
    return Fitted(model, AmortizedGuide(Same(), Around(scale), scaling=scaling), {})


def at(points):
    points = np.asarray(points)
    return Trajectories(np.zeros((len(points), 1)), points[:, None])


@pytest.mark.slow
def test_codes_that_follow_the_prior_have_no_marginal_kl():
    # x ~ N(0, 1 - s^2) and z | x ~ N(x, s^2) make z ~ N(0, 1), with I(x; z) = -log s per dimension.
    scale = 0.5
    x = np.random.default_rng(0).normal(0, np.sqrt(1 - scale**2), (20_000, 2))
    report = gaussianization(jax.random.key(0), still_model(scale), at(x))
    assert abs(report.kl_marginal) < 0.02
    assert report.mutual_information == pytest.approx(-2 * np.log(scale), abs=0.06)
    np.testing.assert_allclose(report.mean, 0, atol=0.03)
    np.testing.assert_allclose(report.sd, 1, atol=0.03)
    np.testing.assert_allclose(report.skew, 0, atol=0.08)
    np.testing.assert_allclose(report.excess_kurtosis, 0, atol=0.15)
    assert abs(report.energy_distance) < 4 * report.energy_distance_error < 0.02
    np.testing.assert_allclose(report.activity, 1 - scale**2, rtol=0.05)


def test_the_energy_distance_is_the_closed_form():
    # In one dimension, between N(m, s^2) and N(0, 1): E|z - w| of a normal difference is known.
    def mean_size(loc, sd):
        from scipy.stats import norm

        return sd * np.sqrt(2 / np.pi) * np.exp(-(loc**2) / (2 * sd**2)) + loc * (
            1 - 2 * norm.cdf(-loc / sd)
        )

    x = np.random.default_rng(0).normal(0.8, np.sqrt(1.5**2 - 0.1**2), (20_000, 1))
    scaling = Scaling.identity(1)
    model = LatentODE(Still(), Same(), prior=StandardNormal(1), scaling=scaling)
    guide = AmortizedGuide(Same(), Around(0.1), scaling=scaling)
    params = {"noise_scale": jnp.ones(1)}
    report = gaussianization(jax.random.key(0), Fitted(model, guide, params), at(x))
    between, within, prior = (
        mean_size(0.8, np.sqrt(3.25)),
        mean_size(0, 1.5 * 2**0.5),
        2 / np.pi**0.5,
    )
    exact = 2 * between - within - prior
    assert abs(report.energy_distance - exact) < 4 * report.energy_distance_error


def test_a_unit_without_information_is_not_active():
    x = np.random.default_rng(0).normal(size=(500, 2)) * np.array([1.0, 0.0])
    report = gaussianization(jax.random.key(0), still_model(1.0), at(x))
    assert (report.activity > 0.01).tolist() == [True, False]
    assert "1 of 2 units active" in str(report)


@pytest.mark.slow
def test_two_far_clusters_carry_one_bit_and_are_far_from_the_prior():
    scale, far = 0.1, 3.0
    x = np.where(np.arange(2_000)[:, None] % 2 == 0, far, -far) * np.ones(2)
    report = gaussianization(jax.random.key(0), still_model(scale), at(x))
    assert report.mutual_information == pytest.approx(np.log(2), abs=1e-3)
    exact = 2 * (0.5 * (scale**2 + far**2 - 1) - np.log(scale))
    assert report.kl == pytest.approx(exact, abs=0.1)
    assert (report.excess_kurtosis < -1.9).all()


@pytest.mark.slow
def test_the_kl_is_the_sum_of_its_parts():
    x = np.random.default_rng(1).normal(size=(300, 2))
    report = gaussianization(jax.random.key(0), still_model(0.3), at(x), num_points=200)
    assert report.kl == pytest.approx(report.mutual_information + report.kl_marginal, abs=1e-4)
    assert report.log_n == pytest.approx(np.log(300))
    for number in (report.kl, report.mutual_information, report.kl_marginal):
        assert f"{number:.3f}" in str(report)


def test_mutual_information_is_capped_at_log_n():
    report = gaussianization(
        jax.random.key(0), still_model(1e-3), at(np.random.default_rng(2).normal(size=(50, 2)))
    )
    assert report.mutual_information == pytest.approx(report.log_n, abs=1e-3)


@pytest.fixture(scope="module")
def fit():
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 1, (8, 5)), axis=1)
    values = 50 + 10 * rng.normal(size=(8, 5, 2))
    mask = rng.uniform(size=values.shape) < 0.7
    mask[:, 0] = True
    train = Trajectories(times, values, mask)
    model, guide = latent_ode(train, latent_dim=2, solver=Solver(dt0=2.5), rngs=nnx.Rngs(0))
    svi = SVI(model, guide, adam(1e-2), Trace_ELBO())
    result = svi.run(jax.random.key(0), 50, train, progress_bar=False)
    return train, Fitted(model, guide, result.params)


@pytest.fixture(scope="module")
def tree(fit):
    train, fitted = fit
    return to_datatree(
        KEY,
        fitted,
        train,
        times=np.array([1.0, 2.0, 3.0]),
        num_samples=60,
        feature_names=["a", "b"],
        trajectory_names=[f"patient {i}" for i in range(8)],
    )


@pytest.mark.slow
def test_the_tree_survives_the_disk(tree, tmp_path):
    assert set(tree.children) == {
        "posterior",
        "prior",
        "posterior_predictive",
        "prior_predictive",
        "predictions",
        "log_likelihood",
        "observed_data",
        "constant_data",
        "predictions_constant_data",
    }
    tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    with xarray.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as again:
        for group in tree.children:
            before, after = tree[group].to_dataset(), again[group].to_dataset()
            xarray.testing.assert_equal(before, after.load())


@pytest.mark.slow
def test_dimensions_and_coordinates_have_names(tree):
    assert tree.posterior["z0"].dims == ("chain", "draw", "trajectory", "latent")
    assert tree.posterior.trajectory.values[0] == "patient 0"
    assert tree.prior["z0"].shape == (1, 60, 8, 2)
    for group in ("posterior_predictive", "prior_predictive", "log_likelihood"):
        assert tree[group]["x"].dims == ("chain", "draw", "observation")
    assert tree.predictions["x"].dims == ("chain", "draw", "trajectory", "time", "feature")
    assert tree.predictions.time.values.tolist() == [1.0, 2.0, 3.0]
    assert tree.constant_data["noise_scale"].dims == ("feature",)


def test_every_observation_is_there_once_with_its_coordinates(fit, tree):
    train, _ = fit
    x = tree.observed_data["x"]
    assert x.sizes["observation"] == int(train.mask.sum())
    for i, j in np.ndindex(8, 2):
        mask = np.asarray(train.mask)[i, :, j]
        of = (x.trajectory == f"patient {i}") & (x.feature == "ab"[j])
        np.testing.assert_array_equal(x[of], train.given.values[i, mask, j])
        np.testing.assert_array_equal(x[of].time, train.given.times[i, mask])


def test_times_of_each_trajectory_are_kept_with_its_predictions(fit):
    train, fitted = fit
    times = 1 + np.arange(8)[:, None] * np.ones(3)
    tree = to_datatree(KEY, fitted, train, num_samples=60, times=times)
    np.testing.assert_array_equal(tree.predictions_constant_data["times"], times)


# Fifty steps give a poor model, and ArviZ warns.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_arviz_works_on_the_tree_as_it_is(tree):
    assert len(az.summary(tree, var_names=["z0"])) == 8 * 2
    loo = az.loo(tree, pointwise=True)
    assert np.isfinite(loo.elpd)
    assert loo.pareto_k.dims == ("observation",)
    az.plot_khat(loo)
    az.plot_ppc_dist(tree, num_samples=5)
    az.plot_ppc_dist(tree, num_samples=5, group="prior_predictive")
    az.plot_loo_pit(tree)
    az.plot_forest(tree, var_names=["z0"])
    az.plot_forest(tree, group="predictions", var_names=["x"])
    assert az.compare({"a": tree, "b": tree})["elpd_diff"].max() == 0
    plt.close("all")


def test_draws_of_the_exact_posterior_replace_the_guides_draws(fit):
    train, fitted = fit
    draws = 9 + np.random.default_rng(0).normal(size=(2, 30, 8, 2)).astype(np.float32)
    exact = az.from_dict(
        {"posterior": {"z0": draws}, "sample_stats": {"diverging": np.zeros((2, 30, 8), bool)}},
        dims={"z0": ["trajectory", "latent"], "diverging": ["trajectory"]},
    )
    tree = to_datatree(KEY, fitted, train, exact=exact, num_samples=60)
    np.testing.assert_array_equal(tree.posterior["z0"], draws)
    assert tree.posterior_predictive["x"].shape[:2] == (2, 30)
    assert tree.log_likelihood["x"].shape[:2] == (2, 30)
    assert tree.prior["z0"].shape[:2] == (1, 60)
    assert tree.sample_stats["diverging"].dims == ("chain", "draw", "trajectory")
    bare = az.from_dict({"posterior": {"z0": draws}}, dims={"z0": ["trajectory", "latent"]})
    without = to_datatree(KEY, fitted, train, exact=bare, num_samples=60)
    assert "sample_stats" not in without.children
    with pytest.raises(ValueError, match=r"exact must hold draws of z0.* 3; got .*'trajectory': 8"):
        to_datatree(KEY, fitted, train[:3], exact=exact)


@pytest.mark.slow
def test_the_log_likelihood_is_that_of_the_trained_networks(fit, tree):
    train, fitted = fit
    model = fitted.model
    x, mean = tree.observed_data["x"], tree.posterior_predictive["x_mean"]
    noise = tree.constant_data["noise_scale"].sel(feature=x.feature).drop_vars("feature")
    exact = -0.5 * ((x - mean) / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
    exact = exact.transpose("chain", "draw", "observation")
    np.testing.assert_allclose(tree.log_likelihood["x"], exact, rtol=1e-4, atol=1e-4)
    # NumPyro's own, of the same draws, has one term per trajectory.
    trained = numpyro.handlers.substitute(model, data=fitted.params)
    z0 = {"z0": jnp.asarray(tree.posterior["z0"].values[0, :3])}
    summed = tree.log_likelihood["x"][0, :3].groupby("trajectory").sum()
    np.testing.assert_allclose(
        log_likelihood(trained, z0, train)["x"], summed, rtol=1e-4, atol=1e-4
    )
    untrained = log_likelihood(model, z0, train)["x"]
    assert np.abs(np.asarray(untrained) - summed.values).min() > 1e-2


def test_a_wrong_number_of_feature_names_is_refused(fit):
    train, fitted = fit
    with pytest.raises(
        ValueError, match="feature_names must be 2 different names of features; got"
    ):
        to_datatree(jax.random.key(0), fitted, train, feature_names=["a"])


@pytest.mark.slow
def test_static_covariates_and_inputs_are_constant_data_as_they_were_given():
    rows = [("a", 0.0, 1.0, None, 40, "f"), ("a", 1.0, 2.0, 5.0, 40, "f")]
    rows += [("b", 0.0, 0.5, None, 50, "m"), ("b", 0.5, None, 7.0, 50, "m")]
    table = pd.DataFrame(rows, columns=["who", "day", "x", "dose", "age", "sex"])
    data = Trajectories.from_dataframe(
        table, id="who", time="day", values="x", static=["age", "sex"], inputs={"dose": "event"}
    )
    model, guide = latent_ode(data, latent_dim=2, rngs=nnx.Rngs(0))
    one = Fitted(model, guide, initial_params(model, guide))
    found = to_datatree(KEY, one, data, num_samples=2)["constant_data"].to_dataset()
    assert found["static"].dims == ("trajectory", "covariate")
    np.testing.assert_array_equal(found["static"].sel(covariate="age"), [40, 50])
    np.testing.assert_array_equal(found["static"].sel(trajectory="b"), [50, 1])
    assert found["inputs"].dims == ("trajectory", "row", "input")
    np.testing.assert_array_equal(found["inputs"].sel(input="dose")[:, 0], [5, 7])
    np.testing.assert_array_equal(found["input_times"][:, 0], [1, 0.5])

"""A fit that was saved is the same fit when it is loaded, and loading runs nothing."""

import json
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx

import np_latentode as nl
from np_latentode import GRU, ODERNN, Fitted, Labels, datasets, latent_ode, load, save
from np_latentode.programs.ensemble import kinds
from np_latentode.programs.params import initial_params
from np_latentode.storage.arrays import read
from np_latentode.storage.descriptions import build, describe
from np_latentode.storage.saving import describe_parts

SPIRALS = datasets.spirals(jax.random.key(0), num_trajectories=3)
RNGS = nnx.Rngs(0)

PARTS = {
    "defaults": lambda: {},
    "sizes": lambda: {
        "dynamics": nl.TimeMLPDynamics(4, width=5, depth=2, rngs=RNGS),
        "decoder": nl.MLPDecoder(4, 2, width=3, depth=3, rngs=RNGS),
        "prior": nl.MixturePrior(4, num_components=3, rngs=RNGS),
        "encoder": ODERNN(2, hidden_dim=6, width=7, method=diffrax.Heun(), rngs=RNGS),
        "posterior": nl.FullRankNormal(6, 4, width=9, rngs=RNGS),
        "likelihood": nl.StudentTLikelihood(3.0, noise_scale=np.array([0.1, 0.2])),
        "solver": nl.Solver(diffrax.Tsit5(), diffrax.PIDController(1e-3, 1e-4), dt0=None),
    },
    "nested": lambda: {
        "dynamics": nl.BoundedDynamics(nl.MLPDynamics(4, rngs=RNGS), speed=3.0),
        "prior": nl.FlowPrior(
            4,
            base=nl.ProductPrior(nl.RingPrior(), nl.StandardNormal(2)),
            num_layers=1,
            rngs=RNGS,
        ),
        "encoder": nl.PathODE(2, rngs=RNGS),
        "posterior": nl.FlowPosterior(24, 4, num_layers=1, rngs=RNGS),
        "likelihood": nl.FeatureLikelihoods(nl.GaussianLikelihood(), nl.StudentTLikelihood()),
    },
    "groups": lambda: {
        "likelihood": nl.FeatureLikelihoods(
            nl.StudentTLikelihood(), nl.GaussianLikelihood(), groups=[[1], [0]]
        ),
    },
    "linear": lambda: {
        "dynamics": nl.LinearDynamics(
            np.eye(4), np.ones(4), nl.MLPDynamics(4, width=3, from_zero=True, rngs=RNGS)
        ),
        "decoder": nl.LinearDecoder(
            np.ones((2, 4)), np.ones(2), nl.MLPDecoder(4, 2, width=3, from_zero=True, rngs=RNGS)
        ),
        "encoder": nl.RegressionEncoder(
            np.ones((3, 2, 4)), np.ones((3, 2)), np.zeros(2), event_decay=0.4
        ),
        "posterior": nl.RegressionNormal(4, width=3, rngs=RNGS),
        "likelihood": nl.OrnsteinUhlenbeckLikelihood(start=np.array([0.3, 0.7])),
    },
    "round": lambda: {
        "prior": nl.ProductPrior(nl.CirclePrior(), nl.StandardNormal(2)),
        "encoder": GRU(2, rngs=RNGS),
        "likelihood": nl.OrnsteinUhlenbeckLikelihood(residual_scale=np.array([0.0, 0.2])),
    },
}


def trained(**parts):
    """A fit with other numbers than the initial ones; it is not trained."""
    model, guide = latent_ode(SPIRALS, latent_dim=4, **parts, rngs=RNGS)
    leaves, tree = jax.tree.flatten(initial_params(model, guide))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = [
        0.1 * jax.random.uniform(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
    ]
    return Fitted(model, guide, jax.tree.unflatten(tree, params))


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.slow
def test_what_was_saved_is_loaded_the_same(name, tmp_path):
    fitted = trained(**PARTS[name]())
    save(tmp_path / "fit", fitted)
    other = load(tmp_path / "fit")
    jax.tree.map(np.testing.assert_array_equal, fitted.params, other.params)
    # All arguments of all constructors.
    assert describe_parts(fitted.model, fitted.guide) == describe_parts(other.model, other.guide)
    # The settings hold no Python objects.
    assert b"numpy" not in b"".join(
        p.read_bytes() for p in (tmp_path / "fit" / "settings").rglob("*") if p.is_file()
    )


@pytest.mark.slow
def test_a_loaded_fit_forecasts_what_it_forecast(tmp_path):
    fitted = trained()
    save(tmp_path / "fit", fitted)
    times = jnp.linspace(1.0, 5.0, 4)
    one, other = (
        nl.forecast(jax.random.key(0), fit, SPIRALS, times, num_samples=2)
        for fit in (fitted, load(tmp_path / "fit"))
    )
    np.testing.assert_array_equal(one["x"], other["x"])


def test_likelihoods_by_name_are_kept_by_position(tmp_path):
    values = np.asarray(SPIRALS.values)
    bits = SPIRALS.replace_arrays(SPIRALS.times, jnp.asarray(values > 0, float), SPIRALS.mask)
    named = {"x_0": nl.BernoulliLikelihood(), "x_1": nl.NegativeBinomialLikelihood(0.5)}
    for likelihood in (named, {"x_1": nl.BernoulliLikelihood()}):
        model, guide = latent_ode(bits, latent_dim=2, likelihood=likelihood, rngs=RNGS)
        fitted = Fitted(model, guide, initial_params(model, guide))
        path = tmp_path / f"{len(likelihood)}"
        save(path, fitted)
        other = load(path)
        assert kinds(other) == kinds(fitted)
        assert "bernoulli" in kinds(other)
        assert other.model.likelihood.groups == model.likelihood.groups
        assert other.params.keys() == fitted.params.keys()


def test_labels_are_kept_but_not_who_was_trained_on(tmp_path):
    labels = Labels(
        ("Ann", "Bob", "Cid"),
        ("a", "b"),
        "who",
        "when",
        np.datetime64("2020-01-01", "us"),
        "h",
        ("a",),
    )
    spirals = SPIRALS._replace(labels=labels)
    model, guide = latent_ode(spirals, latent_dim=2, rngs=RNGS)
    save(tmp_path / "fit", Fitted(model, guide, initial_params(model, guide)))
    kept = load(tmp_path / "fit").model.scaling.labels
    assert kept.like(labels)
    assert (kept.id, kept.time) == ("who", "when")
    assert kept.ids == ()
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert b"Ann" not in file.read_bytes()


class OwnPrior(nnx.Module):
    def __init__(self):
        self.log_scale = nnx.Param(jnp.zeros(4))

    def __call__(self):
        return dist.Normal(0.0, jnp.exp(self.log_scale[...])).to_event(1)


def own_dynamics():
    frequency = numpyro.param("frequency", 1.0)
    return lambda t, z: -frequency * z


def test_parts_of_your_own_are_asked_for_by_name(tmp_path):
    fitted = trained(prior=OwnPrior(), dynamics=own_dynamics)
    save(tmp_path / "fit", fitted)
    with pytest.raises(ValueError, match=r"dynamics must be given, .* own, own_dynamics"):
        load(tmp_path / "fit")
    with pytest.raises(ValueError, match=r"prior must be given, .* own, OwnPrior"):
        load(tmp_path / "fit", dynamics=own_dynamics)
    loaded = load(tmp_path / "fit", dynamics=own_dynamics, prior=OwnPrior())
    assert loaded.params["frequency"] == fitted.params["frequency"]
    with pytest.raises(ValueError, match="path must have the parameters of"):
        load(tmp_path / "fit", dynamics=own_dynamics, prior=nl.StandardNormal(4))


def ensemble_of(**parts):
    """Two members with the same programs, and one with others."""
    one = trained(**parts)
    other = Fitted(one.model, one.guide, jax.tree.map(lambda leaf: leaf * 0.9, one.params))
    wider = trained(**parts | {"encoder": GRU(2, rngs=RNGS)})
    return nl.Ensemble((one, other, wider), [0.2, 0.3, 0.5])


@pytest.mark.slow
def test_an_ensemble_forecasts_the_same_when_it_is_loaded(tmp_path):
    ensemble = ensemble_of()
    save(tmp_path / "fit", ensemble)
    again = load(tmp_path)
    assert isinstance(again, nl.Ensemble)
    np.testing.assert_allclose(again.weights, ensemble.weights, rtol=1e-15)
    times = np.linspace(1, 3, 4)
    one, other = (
        nl.forecast(jax.random.key(0), fit, SPIRALS, times, num_samples=6)
        for fit in (ensemble, again)
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # Members of the same parts share their programs.
    first, second, third = (member.model for member in again.members)
    assert first is second is not third


def test_bands_are_kept(tmp_path):
    plain = nl.Ensemble((trained(),))
    widths = np.array([1 / 3, np.pi])
    save(tmp_path / "plain", plain)
    save(tmp_path / "wide", replace(plain, bands=nl.Bands(widths)))
    assert load(tmp_path / "plain").bands is None
    np.testing.assert_array_equal(load(tmp_path / "wide").bands.widths, widths)


def test_parts_of_your_own_are_given_to_all_members(tmp_path):
    ensemble = ensemble_of(prior=OwnPrior())
    save(tmp_path / "fit", ensemble)
    with pytest.raises(ValueError, match=r"prior must be given, .* own, OwnPrior"):
        load(tmp_path / "fit")
    again = load(tmp_path / "fit", prior=OwnPrior())
    for one, other in zip(ensemble.members, again.members, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_of_an_ensemble_that_cannot_be_written_nothing_is_left(tmp_path, monkeypatch):
    ensemble = ensemble_of()
    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", raise_no_space)
    with pytest.raises(OSError, match="cannot be written: No space left"):
        save(tmp_path / "fit", ensemble)
    assert not any(tmp_path.iterdir())


def raise_no_space(*args, **kwargs):
    raise OSError("No space left")


def test_a_description_builds_nothing_but_parts():
    for name in ("eval", "os.system", "diffeqsolve", "Path", "Trajectories"):
        with pytest.raises(ValueError, match="must name a part of this library"):
            build({"made by": name, "from": {}})
    with pytest.raises(TypeError, match="OwnPrior is not one of"):
        describe(OwnPrior())


def test_descriptions_are_json_to_the_last_digit():
    scaling = nl.Scaling(np.array([1 / 3]), np.array([np.pi]), t0=1e-9, time_unit=0.1)
    again = build(json.loads(json.dumps(describe(scaling))))
    assert (again.loc, again.scale, again.t0, again.time_unit) == (1 / 3, np.pi, 1e-9, 0.1)


def test_nothing_is_saved_over(tmp_path):
    fitted = trained()
    (tmp_path / "fit").mkdir()
    with pytest.raises(ValueError, match="path must be new"):
        save(tmp_path / "fit", fitted)
    with pytest.raises(ValueError, match="must be whole, and written by np_latentode"):
        load(tmp_path / "fit")


@pytest.mark.slow
def test_single_precision_is_loaded_into_double(tmp_path, x64):
    with jax.enable_x64(False):
        fitted = trained()
        save(tmp_path / "fit", fitted)
    noise_scale = load(tmp_path / "fit").params["noise_scale"]
    assert noise_scale.dtype == jnp.float64
    np.testing.assert_array_equal(noise_scale, np.asarray(fitted.params["noise_scale"], float))


def test_a_description_of_another_version_is_refused_with_a_sentence(tmp_path, monkeypatch):
    fitted = trained()
    save(tmp_path / "fit", fitted)
    arrays, settings = read(tmp_path / "fit")
    settings["parts"]["dynamics"]["from"]["breadth"] = 3
    monkeypatch.setattr("np_latentode.storage.saving.read", lambda path: (arrays, settings))
    with pytest.raises(ValueError, match=r"must be of this version .*breadth"):
        load(tmp_path / "fit")


def test_neither_ids_nor_their_starts_are_saved(tmp_path):
    """They may be personal data, such as dates of birth."""
    labels = Labels((17, 18), ("a", "b"), since="birth", starts=(100.25, 777.5))
    scaling = nl.Scaling(np.zeros(2), np.ones(2), labels=labels)
    model, guide = latent_ode(SPIRALS, latent_dim=2, scaling=scaling, rngs=nnx.Rngs(0))
    save(tmp_path / "fit", Fitted(model, guide, initial_params(model, guide)))
    assert load(tmp_path / "fit").model.scaling.labels.starts == ()
    written = json.dumps(describe_parts(model, guide))
    assert "birth" in written
    assert "777.5" not in written

"""Building a model and its guide for training data, with default parts."""

from __future__ import annotations

from flax import nnx

from np_latentode.data.checks import check_counts
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.decoder import MLPDecoder
from np_latentode.parts.dynamics import MLPDynamics
from np_latentode.parts.encoders import ODERNN
from np_latentode.parts.likelihoods import Likelihood, check_observed
from np_latentode.parts.modules import Part, check_module, feature_dim, vector_distribution
from np_latentode.parts.posteriors import on_support
from np_latentode.parts.priors import StandardNormal
from np_latentode.parts.solve import Solver
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE

__all__ = ["latent_ode"]


def latent_ode(
    train: Trajectories,
    *,
    latent_dim: int,
    dynamics: Part | None = None,
    decoder: Part | None = None,
    prior: Part | None = None,
    encoder: Part | None = None,
    posterior: Part | None = None,
    scaling: Scaling | None = None,
    likelihood: Likelihood | None = None,
    solver: Solver | None = None,
    rngs: nnx.Rngs,
) -> tuple[LatentODE, AmortizedGuide]:
    """A latent ODE and its guide for data like `train`; you can replace every part.

    The defaults were chosen with `benchmarks/defaults.py`; docs/measured.md has their scores.

    Args:
        train: determines the number of features and, unless `scaling` is given, the units and t0.
        latent_dim: the dimension of z0.
        dynamics, decoder, prior, likelihood, solver: see `LatentODE`.
        encoder, posterior: see `AmortizedGuide`. The default posterior has the prior's support: a
            `CirclePosterior` for each circle, a `DiagonalNormal` for the rest.
        scaling: the units. Default: `Scaling.fit(train)`.
        rngs: the random keys that initialise the networks.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    if not isinstance(train, Trajectories):
        raise ValueError(f"train must be Trajectories; got {type(train).__name__}.")
    check_counts(latent_dim=latent_dim)
    num_features = train.num_features
    scaling = Scaling.fit(train) if scaling is None else scaling
    prior = StandardNormal(latent_dim) if prior is None else prior
    check_module("prior", prior)
    _check_dimension("prior", vector_distribution("prior", prior, batch_shape=())[0], latent_dim)
    model = LatentODE(
        MLPDynamics(latent_dim, rngs=rngs) if dynamics is None else dynamics,
        MLPDecoder(latent_dim, num_features, rngs=rngs) if decoder is None else decoder,
        prior=prior,
        scaling=scaling,
        likelihood=likelihood,
        solver=solver,
    )
    check_observed(model.likelihood, train, name="train")
    encoder = ODERNN(num_features, rngs=rngs) if encoder is None else encoder
    if posterior is None:
        posterior = on_support(model.support, feature_dim(encoder, num_features), rngs=rngs)
    guide = AmortizedGuide(encoder, posterior, scaling=scaling)
    _check_pair(model, guide)
    return model, guide


def _check_pair(model: LatentODE, guide: AmortizedGuide) -> None:
    _check_dimension("posterior", guide.latent_dim, model.latent_dim)
    if guide.support != model.support:
        raise ValueError(
            f"posterior must have the support of the prior, {model.support}; got {guide.support}."
        )
    if shared := sorted(model.trained & guide.trained):
        raise ValueError(
            "model and guide must name different parameters, as NumPyro merges those of the same "
            f"name; got {shared} in both."
        )


def _check_dimension(name: str, dim: int, latent_dim: int) -> None:
    if dim != latent_dim:
        raise ValueError(f"{name} must be over vectors of latent_dim {latent_dim}; got {dim}.")

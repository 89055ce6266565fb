"""Building a model and its guide for training data: default parts, and candidates of them.

There are two assemblies. The *network* has a field, a decoder and an encoder that are networks. The
*backbone* starts as a mixed model of polynomials and its exact posterior, with networks as
residuals. Which one forecasts better depends on the data: `cross_fit` finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffrax
import numpy as np
from flax import nnx

from np_latentode.data.checks import check_counts
from np_latentode.data.scaling import SPAN, Scaling, check_scaling
from np_latentode.data.stored import StoredTrajectories
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.decoder import MLPDecoder
from np_latentode.parts.dynamics import MLPDynamics
from np_latentode.parts.encoders import ODERNN, CovariateEncoder, InputEncoder
from np_latentode.parts.jumps import LinearJump
from np_latentode.parts.likelihoods import (
    FeatureLikelihoods,
    Likelihood,
    check_likelihood,
    check_observed,
    linked,
)
from np_latentode.parts.mixed_model import (
    MOST_ESTIMATED,
    choose_degree,
)
from np_latentode.parts.modules import Part, check_module, feature_dim, vector_distribution
from np_latentode.parts.posteriors import DiagonalNormal, on_support
from np_latentode.parts.priors import StandardNormal
from np_latentode.parts.residuals import OrnsteinUhlenbeckLikelihood
from np_latentode.parts.shifts import LinearShift
from np_latentode.parts.solve import Solver
from np_latentode.programs.guide import AmortizedGuide
from np_latentode.programs.model import LatentODE
from np_latentode.programs.plate import check_trajectories

__all__ = ["Candidate", "candidates", "in_steps", "is_rich", "latent_ode"]

Candidate = Callable[[Trajectories, nnx.Rngs], tuple[LatentODE, AmortizedGuide]]
"""`(train, rngs) -> (model, guide)`, whose parts may start at estimates from the data."""

MOST_COEFFICIENTS = 24
"""The highest latent dimension of a backbone. Its cost grows with the square."""

WIDTH = 32
"""The units of the hidden layers of a backbone's residual networks."""

LATENT_DIMS = (4, 16)
"""The least and the highest latent dimension of a network that looks at the data."""

MANY_IDS, MANY_VALUES = 500, 40_000
"""From so many ids on, with so many values that were observed, a network is a wide one, which has
40,000 weights."""

WIDE: dict[str, int] = dict(latent_dim=32, width=128, hidden_dim=64)
"""The sizes of a wide network."""

WIDE_STEPS = 12
"""Those of its solver, over the span of the data."""

WIDE_NOISE = 0.1
"""Where its noise starts. From a larger one, its guide may learn to tell nothing: the model then
explains a path that is hard to read, such as of an oscillation, as noise."""


def candidates(
    train: Trajectories | StoredTrajectories,
    *,
    scaling: Scaling | None = None,
    likelihood: Callable[..., Likelihood] | Mapping[str, Likelihood] = OrnsteinUhlenbeckLikelihood,
    solver: Solver | None = None,
) -> dict[str, Candidate]:
    """The assemblies among which `cross_fit` chooses, by name, for data like `train`.

    `backbone` starts as the mixed model whose degree, 1 to 3, forecasts best by cross-validation,
    and so the rate at which what events give decays; see `MixedModel.parts`. Of more than 2,000
    trajectories, the mixed model is that of a random 2,000: it is only a start. A backbone is left
    out for so many features that a line for each has more than 24 coefficients. `network` has an
    `MLPDynamics`, an `MLPDecoder`, an `ODERNN` and a `DiagonalNormal`, and two latent dimensions
    for each feature, from 4 to 16. If train has 500 ids and 40,000 observed values or more (of data
    on disk, among 2,000 trajectories), it is wide: it has 32 latent dimensions, a decoder without
    hidden layers, and noise that starts at a tenth. Both read static covariates and inputs, if
    train has some; the field of a backbone reads inputs only, as its z0 has the slopes.

    Args:
        train: all that may be trained on.
        scaling: the units of all. Default: `Scaling.fit(train)`.
        likelihood: makes that of each, as `likelihood(start=noise)` or `likelihood()`; or
            likelihoods by the name of their feature, and an `OrnsteinUhlenbeckLikelihood` of all
            others.
        solver: of all.

    Raises:
        ValueError: if train is of another type, a likelihood is named after no feature, or an
            observation is impossible under its likelihood.
    """
    train, scaling = _in_memory(train, scaling)
    scaling = Scaling.fit(train) if scaling is None else scaling
    if isinstance(likelihood, Mapping):
        named = partial(FeatureLikelihoods.by_name, likelihood, scaling)
        likelihood = partial(named, OrnsteinUhlenbeckLikelihood)
    check_observed(likelihood(), train, name="train")
    common: dict[str, Any] = dict(scaling=scaling, solver=solver)
    network = partial(_network, likelihood=likelihood, **common)
    if is_rich(train):
        network = partial(_wide_network, likelihood=likelihood, **common)
    if 2 * train.num_features > MOST_COEFFICIENTS:
        return {"network": network}
    whole = choose_degree(train, scaling, most_coefficients=MOST_COEFFICIENTS)

    def backbone(train: Trajectories, rngs: nnx.Rngs) -> tuple[LatentODE, AmortizedGuide]:
        mixed = whole.refitted(train.sample(MOST_ESTIMATED), scaling)
        own = likelihood(start=mixed.noise)
        _, controls, _, readings = _counts(scaling)
        given: Any = dict(num_inputs=controls, num_readings=readings)
        given |= dict(link=linked(own, scaling, mixed.noise))
        parts = mixed.parts(width=WIDTH, **given, rngs=rngs)
        parts |= dict(likelihood=own, latent_dim=len(mixed.mean))
        return latent_ode(train, rngs=rngs, **parts, **common)

    return {"backbone": backbone, "network": network}


def latent_ode(
    train: Trajectories | StoredTrajectories,
    *,
    latent_dim: int | None = None,
    dynamics: Part | None = None,
    decoder: Part | None = None,
    prior: Part | None = None,
    encoder: Part | None = None,
    posterior: Part | None = None,
    scaling: Scaling | None = None,
    likelihood: Likelihood | Mapping[str, Likelihood] | None = None,
    solver: Solver | None = None,
    shift: Part | None = None,
    jump: Part | None = None,
    rngs: nnx.Rngs,
) -> tuple[LatentODE, AmortizedGuide]:
    """A latent ODE and its guide for data like `train`; you can replace every part.

    With a `latent_dim`, the default parts are networks. Without, they are the first of
    `candidates(train)`, a backbone if there are not too many features: dynamics, decoder, encoder
    and posterior start as a mixed model of `train`, and the likelihood has a residual process. The
    defaults were chosen with `benchmarks/defaults.py` and `benchmarks/zoo.py`; docs/measured.md has
    their scores.

    Args:
        train: determines the number of features and, unless `scaling` is given, the units and t0;
            without a `latent_dim`, also the degree and the start of the backbone. So it must not
            hold validation data.
        latent_dim: the dimension of z0. Default: chosen by the data; then dynamics, decoder, prior,
            encoder, posterior, shift and jump cannot be given.
        dynamics, decoder, prior, likelihood, solver, shift, jump: see `LatentODE`. Likelihoods by
            the name of their feature leave the default to the others. If train has static
            covariates, the default dynamics and encoder read them, and the default shift is a
            `LinearShift`. The same holds for inputs, and with events the default jump is a
            `LinearJump`.
        encoder, posterior: see `AmortizedGuide`. The default posterior has the prior's support: a
            `CirclePosterior` for each circle, a `DiagonalNormal` for the rest.
        scaling: the units. Default: `Scaling.fit(train)`.
        rngs: the random keys that initialise the networks.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    train, scaling = _in_memory(train, scaling)
    if latent_dim is None:
        parts = dict(dynamics=dynamics, decoder=decoder, prior=prior)
        parts |= dict(encoder=encoder, posterior=posterior, shift=shift, jump=jump)
        return _assembled(train, parts, scaling, likelihood, solver, rngs)
    check_counts(latent_dim=latent_dim)
    num_features = train.num_features
    scaling = Scaling.fit(train) if scaling is None else scaling
    prior = StandardNormal(latent_dim) if prior is None else prior
    check_module("prior", prior)
    _check_dimension("prior", vector_distribution("prior", prior, batch_shape=())[0], latent_dim)
    count, _, events, readings = _counts(check_scaling(scaling))
    if dynamics is None:
        dynamics = _field(latent_dim, scaling, rngs=rngs)
    if shift is None and count:
        shift = LinearShift.zeros(count, latent_dim)
    if jump is None and events:
        jump = LinearJump.zeros(events, latent_dim)
    model = LatentODE(
        dynamics,
        MLPDecoder(latent_dim, num_features, rngs=rngs) if decoder is None else decoder,
        prior=prior,
        scaling=scaling,
        likelihood=likelihood,
        solver=solver,
        shift=shift,
        jump=jump,
    )
    check_observed(model.likelihood, train, name="train")
    if encoder is None:
        encoder, _ = _encoder(num_features, scaling, rngs=rngs)
    if posterior is None:
        size = feature_dim(encoder, num_features, count, readings)
        posterior = on_support(model.support, size, rngs=rngs)
    guide = AmortizedGuide(encoder, posterior, scaling=scaling)
    _check_pair(model, guide)
    return model, guide


def is_rich(train: Trajectories) -> bool:
    """Whether there are enough data for a wide network."""
    values = np.asarray(train.mask).sum()
    return bool(len({*train.names.ids}) >= MANY_IDS and values >= MANY_VALUES)


def _network(
    train: Trajectories, rngs: nnx.Rngs, *, likelihood: Callable[..., Likelihood], **common: Any
) -> tuple[LatentODE, AmortizedGuide]:
    least, most = LATENT_DIMS
    latent_dim = min(max(least, 2 * train.num_features), most)
    return latent_ode(train, latent_dim=latent_dim, likelihood=likelihood(), rngs=rngs, **common)


def _wide_network(
    train: Trajectories,
    rngs: nnx.Rngs,
    *,
    likelihood: Callable[..., Likelihood],
    scaling: Scaling,
    solver: Solver | None,
) -> tuple[LatentODE, AmortizedGuide]:
    """A latent ODE of many dimensions, and a decoder that is linear."""
    latent_dim, width, hidden_dim = WIDE["latent_dim"], WIDE["width"], WIDE["hidden_dim"]
    features, sizes = train.num_features, dict(hidden_dim=hidden_dim, width=hidden_dim)
    encoder, size = _encoder(features, scaling, **sizes, rngs=rngs)
    return latent_ode(
        train,
        latent_dim=latent_dim,
        dynamics=_field(latent_dim, scaling, width=width, rngs=rngs),
        decoder=MLPDecoder(latent_dim, features, depth=0, rngs=rngs),
        encoder=encoder,
        posterior=DiagonalNormal(size, latent_dim, width=hidden_dim, rngs=rngs),
        scaling=scaling,
        likelihood=likelihood(start=np.full(features, WIDE_NOISE)),
        solver=in_steps(WIDE_STEPS) if solver is None else solver,
        rngs=rngs,
    )


def _field(latent_dim: int, scaling: Scaling, *, rngs: nnx.Rngs, **sizes: int) -> MLPDynamics:
    """A network that reads covariates and inputs, if there are some."""
    count, controls, *_ = _counts(scaling)
    asked: Any = dict(num_covariates=count, num_inputs=controls, **sizes)
    return MLPDynamics(latent_dim, **asked, rngs=rngs)


def _encoder(
    num_features: int, scaling: Scaling, *, rngs: nnx.Rngs, **sizes: Any
) -> tuple[Part, int]:
    """An encoder that reads covariates and inputs, if there are some, and its features."""
    count, _, _, readings = _counts(scaling)
    encoder: Part = ODERNN(num_features + readings, **sizes, rngs=rngs)
    encoder = InputEncoder(encoder, readings) if readings else encoder
    encoder = CovariateEncoder(encoder, count) if count else encoder
    return encoder, feature_dim(encoder, num_features, count, readings)


def in_steps(count: int) -> Solver:
    """A solver of so many steps over the span of the data."""
    # Slightly longer steps, as rounding could put the last time after the last step.
    return Solver(diffrax.Heun(), dt0=SPAN / count * (1 + 1e-5))


def _in_memory(
    train: Trajectories | StoredTrajectories, scaling: Scaling | None
) -> tuple[Trajectories, Scaling | None]:
    """Trajectories from which a start is estimated; of those on disk, random ones and all units."""
    if not isinstance(train, StoredTrajectories):
        return check_trajectories(train, name="train"), scaling
    scaling = Scaling.fit(train) if scaling is None else scaling
    return train.sample(MOST_ESTIMATED), scaling


def _counts(scaling: Scaling) -> tuple[int, int, int, int]:
    """The entries of s; the controls, the events, and what an encoder reads of both."""
    units = scaling.inputs
    if units is None:
        return scaling.num_covariates, 0, 0, 0
    return scaling.num_covariates, units.num_controls, units.num_events, units.num_readings


def _assembled(
    train: Trajectories,
    parts: dict[str, Part | None],
    scaling: Scaling | None,
    likelihood: Likelihood | Mapping[str, Likelihood] | None,
    solver: Solver | None,
    rngs: nnx.Rngs,
) -> tuple[LatentODE, AmortizedGuide]:
    """The first of the candidates, with a likelihood of the user's own if there is one."""
    if given := [name for name, part in parts.items() if part is not None]:
        raise ValueError(f"latent_dim must be given with parts of your own; got {given} without.")

    def same(**start: Any) -> Likelihood:
        return check_likelihood(likelihood)

    made = OrnsteinUhlenbeckLikelihood if likelihood is None else same
    made = likelihood if isinstance(likelihood, Mapping) else made
    found = candidates(train, scaling=scaling, likelihood=made, solver=solver)
    return next(iter(found.values()))(train, rngs)


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

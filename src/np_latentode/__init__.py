"""Latent ODEs as NumPyro models: irregular time series in, calibrated forecasts out."""

from np_latentode import _started, datasets  # noqa: F401
from np_latentode.aggregate import fit_prior
from np_latentode.assemble import latent_ode
from np_latentode.conditioning import random_context, random_points, random_prefix
from np_latentode.decoder import MLPDecoder
from np_latentode.dynamics import BoundedDynamics, MLPDynamics, TimeMLPDynamics
from np_latentode.encoders import GRU, ODERNN, PathODE, SummaryEncoder
from np_latentode.guide import AmortizedGuide
from np_latentode.likelihoods import (
    BernoulliLikelihood,
    FeatureLikelihoods,
    GaussianLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
)
from np_latentode.model import LatentODE
from np_latentode.posteriors import (
    CirclePosterior,
    DiagonalNormal,
    FlowjaxPosterior,
    FlowPosterior,
    FullRankNormal,
    ProductPosterior,
)
from np_latentode.prediction import forecast, posterior, prior, prior_predictive
from np_latentode.priors import (
    CirclePrior,
    FlowjaxPrior,
    FlowPrior,
    MixturePrior,
    ProductPrior,
    RingPrior,
    StandardNormal,
)
from np_latentode.saving import load, save
from np_latentode.scaling import Scaling
from np_latentode.solve import Solver
from np_latentode.training import fit, optimizer
from np_latentode.trajectories import Trajectories

__all__ = [
    "GRU",
    "ODERNN",
    "AmortizedGuide",
    "BernoulliLikelihood",
    "BoundedDynamics",
    "CirclePosterior",
    "CirclePrior",
    "DiagonalNormal",
    "FeatureLikelihoods",
    "FlowPosterior",
    "FlowPrior",
    "FlowjaxPosterior",
    "FlowjaxPrior",
    "FullRankNormal",
    "GaussianLikelihood",
    "LatentODE",
    "MLPDecoder",
    "MLPDynamics",
    "MixturePrior",
    "PathODE",
    "PoissonLikelihood",
    "ProductPosterior",
    "ProductPrior",
    "RingPrior",
    "Scaling",
    "Solver",
    "StandardNormal",
    "StudentTLikelihood",
    "SummaryEncoder",
    "TimeMLPDynamics",
    "Trajectories",
    "datasets",
    "fit",
    "fit_prior",
    "forecast",
    "latent_ode",
    "load",
    "optimizer",
    "posterior",
    "prior",
    "prior_predictive",
    "random_context",
    "random_points",
    "random_prefix",
    "save",
]

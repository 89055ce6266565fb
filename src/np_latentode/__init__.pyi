# The public names: one flat list, whatever file they live in.
from .data.conditioning import (
    random_context as random_context,
    random_points as random_points,
    random_prefix as random_prefix,
)
from .data.covariates import Covariates as Covariates
from .data.input_units import InputUnits as InputUnits
from .data.inputs import Inputs as Inputs
from .data.labels import Labels as Labels
from .data.limits import Limits as Limits
from .data.problems import MalformedRows as MalformedRows
from .data.scaling import Scaling as Scaling
from .data.stored import StoredTrajectories as StoredTrajectories
from .data.tidy import tidy_forecast as tidy_forecast
from .data.trajectories import Trajectories as Trajectories
from .forecasts import baselines as baselines
from .forecasts.calibration import (
    Calibration as Calibration,
    SimulationRanks as SimulationRanks,
    calibration as calibration,
    simulation_ranks as simulation_ranks,
)
from .forecasts.codes import (
    amortized as amortized,
    posterior as posterior,
    prior as prior,
)
from .forecasts.crossing import Crossing as Crossing, crossing as crossing
from .forecasts.densities import (
    log_likelihood as log_likelihood,
    log_predictive as log_predictive,
)
from .forecasts.effects import Effect as Effect, effect as effect
from .forecasts.export import export_forecast as export_forecast
from .forecasts.prediction import (
    decode as decode,
    forecast as forecast,
    prior_predictive as prior_predictive,
)
from .forecasts.signals import signals as signals
from .forecasts.thresholds import Threshold as Threshold
from .forecasts.variance import (
    VarianceShares as VarianceShares,
    variance_shares as variance_shares,
)
from .inference.amortization import (
    AmortizationReport as AmortizationReport,
    amortization as amortization,
)
from .inference.choice import Choice as Choice, choose_inference as choose_inference
from .inference.convergence import Convergence as Convergence, convergence as convergence
from .inference.importance import (
    ImportanceReport as ImportanceReport,
    elpd as elpd,
    importance as importance,
)
from .inference.laplace import laplace as laplace
from .inference.nuts import Exact as Exact, exact_posterior as exact_posterior
from .inference.refinement import Refined as Refined, refine as refine
from .inference.sharpening import (
    Sharpened as Sharpened,
    Sharpening as Sharpening,
    sharpen as sharpen,
)
from .parts.decoder import LinearDecoder as LinearDecoder, MLPDecoder as MLPDecoder
from .parts.dynamics import (
    BoundedDynamics as BoundedDynamics,
    LinearDynamics as LinearDynamics,
    MLPDynamics as MLPDynamics,
    TimeMLPDynamics as TimeMLPDynamics,
)
from .parts.encoders import (
    GRU as GRU,
    ODERNN as ODERNN,
    CovariateEncoder as CovariateEncoder,
    InputEncoder as InputEncoder,
    PathODE as PathODE,
    SummaryEncoder as SummaryEncoder,
)
from .parts.jumps import LinearJump as LinearJump
from .parts.likelihoods import (
    BernoulliLikelihood as BernoulliLikelihood,
    FeatureLikelihoods as FeatureLikelihoods,
    GaussianLikelihood as GaussianLikelihood,
    NegativeBinomialLikelihood as NegativeBinomialLikelihood,
    PoissonLikelihood as PoissonLikelihood,
    StudentTLikelihood as StudentTLikelihood,
)
from .parts.mixed_model import MixedModel as MixedModel, choose_degree as choose_degree
from .parts.posteriors import (
    CirclePosterior as CirclePosterior,
    DiagonalNormal as DiagonalNormal,
    FlowjaxPosterior as FlowjaxPosterior,
    FlowPosterior as FlowPosterior,
    FullRankNormal as FullRankNormal,
    ProductPosterior as ProductPosterior,
)
from .parts.priors import (
    CirclePrior as CirclePrior,
    FlowjaxPrior as FlowjaxPrior,
    FlowPrior as FlowPrior,
    MixturePrior as MixturePrior,
    ProductPrior as ProductPrior,
    RingPrior as RingPrior,
    StandardNormal as StandardNormal,
)
from .parts.regression import (
    RegressionEncoder as RegressionEncoder,
    RegressionNormal as RegressionNormal,
)
from .parts.residuals import (
    BrownianLikelihood as BrownianLikelihood,
    OrnsteinUhlenbeckLikelihood as OrnsteinUhlenbeckLikelihood,
)
from .parts.shifts import LinearShift as LinearShift
from .parts.solve import Solver as Solver
from .programs.assemble import candidates as candidates, latent_ode as latent_ode
from .programs.bands import Bands as Bands
from .programs.ensemble import Ensemble as Ensemble
from .programs.fitted import Fitted as Fitted, History as History
from .programs.guide import AmortizedGuide as AmortizedGuide
from .programs.model import LatentODE as LatentODE
from .report.crossings import plot_crossings as plot_crossings
from .report.datatree import to_datatree as to_datatree
from .report.effects import plot_effect as plot_effect
from .report.fans import plot_forecasts as plot_forecasts
from .report.gaussianization import (
    GaussianizationReport as GaussianizationReport,
    gaussianization as gaussianization,
)
from .report.plots import (
    plot_calibration as plot_calibration,
    plot_guide as plot_guide,
    plot_latent as plot_latent,
    plot_pareto_k as plot_pareto_k,
    plot_ranks as plot_ranks,
    plot_training as plot_training,
)
from .storage.saving import load as load, save as save
from .studies import datasets as datasets
from .training.aggregate import fit_prior as fit_prior
from .training.cross_fit import CrossFit as CrossFit, cross_fit as cross_fit
from .training.ensemble import fit_ensemble as fit_ensemble
from .training.fit import fit as fit
from .training.optimizer import optimizer as optimizer
from .training.polish import polish as polish
from .training.recalibration import recalibrated as recalibrated

"""The mixed model of polynomials: estimated in closed form, a latent ODE starts as it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Float
from scipy.linalg import block_diag, solve_triangular
from scipy.special import factorial

from np_latentode.data.checks import check_counts
from np_latentode.data.folds import folds
from np_latentode.data.scaling import SPAN, Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.decoder import LinearDecoder, MLPDecoder
from np_latentode.parts.dynamics import LinearDynamics, MLPDynamics
from np_latentode.parts.jumps import LinearJump
from np_latentode.parts.links import Link
from np_latentode.parts.regression import RegressionEncoder, RegressionNormal
from np_latentode.parts.shifts import LinearShift

__all__ = ["MOST_ESTIMATED", "MixedModel", "choose_degree"]

DEGREES = (1, 2, 3)
"""Of the polynomials among which `choose_degree` chooses."""

DECAYS = (0.0, 2.0, 5.0, 10.0)
"""Of what events give, per span of the training data: from a half-life of a third of the span on,
to about as fast as the default solver can follow."""

NUM_FOLDS = 5

ITERATIONS = 100
"""Of the EM algorithm."""

MOST_ESTIMATED = 2_000
"""The most trajectories from which a start is estimated; EM takes as long as there are of them."""

LEAST_VARIANCE = 1e-4
"""The least variance of noise and of each direction of the coefficients, in scaled units."""


class _Moments(NamedTuple):
    """The sums over times by which observations enter."""

    squares: Float[np.ndarray, "trajectory feature power power"]
    products: Float[np.ndarray, "trajectory feature power"]
    total: Float[np.ndarray, " feature"]
    count: Float[np.ndarray, " feature"]
    s: Float[np.ndarray, "trajectory entry"]
    """Static covariates; there may be none."""
    by_amount: Float[np.ndarray, "trajectory feature power event"]
    """The products of powers and of the amounts given so far; there may be no events."""
    amount_products: Float[np.ndarray, "feature event"]
    amount_squares: Float[np.ndarray, "feature event event"]

    @classmethod
    def of(
        cls, trajectories: Trajectories, scaling: Scaling, degree: int, decay: float = 0.0
    ) -> _Moments:
        t, x, known = _scaled(trajectories, scaling, degree, decay)
        squares = np.einsum("nkf,nkp,nkq->nfpq", known, t, t, optimize=True)
        products = np.einsum("nkf,nkp->nfp", x, t, optimize=True)
        s = scaling.scale_static(trajectories.static)
        s = np.zeros((len(x), 0)) if s is None else np.asarray(s, float)
        given = _amounts(trajectories, scaling, decay)
        of_amounts = (
            np.einsum("nkf,nke,nkp->nfpe", known, given, t, optimize=True),
            np.einsum("nkf,nke->fe", x, given),
            np.einsum("nkf,nke,nkg->feg", known, given, given, optimize=True),
        )
        total = np.square(x).sum((0, 1))
        return cls(squares, products, total, known.sum((0, 1)), s, *of_amounts)

    def less(self, jumps: Float[np.ndarray, "feature event"]) -> _Moments:
        """Those of the values less what the amounts given so far add."""
        if not jumps.size:
            return self
        products = self.products - np.einsum("nfpe,fe->nfp", self.by_amount, jumps)
        total = self.total - 2 * (jumps * self.amount_products).sum(1)
        total = total + np.einsum("fe,feg,fg->f", jumps, self.amount_squares, jumps)
        return self._replace(products=products, total=total)


def _amounts(
    trajectories: Trajectories, scaling: Scaling, decay: float
) -> Float[np.ndarray, "trajectory time event"]:
    """The amount of each event that is left at each observed time, in scaled units."""
    inputs = trajectories.inputs
    if scaling.inputs is None or not scaling.inputs.num_events or inputs is None:
        return np.zeros((*trajectories.times.shape, 0))
    own = scaling.less(trajectories.offset)
    scaled = own.scale_inputs(inputs.at_offset(trajectories.offset.time))
    if scaled is None:
        return np.zeros((*trajectories.times.shape, 0))
    left, _ = scaled.read_events(own.scale_times(trajectories.times), decay / SPAN)
    return np.asarray(left, float)


def _scaled(
    trajectories: Trajectories, scaling: Scaling, degree: int, decay: float
) -> tuple[np.ndarray, ...]:
    """Powers of time, in units of the span, and what decays; values, 0 where unobserved; and 1
    where observed."""
    given, mask = trajectories.given, np.asarray(trajectories.mask)
    t = np.where(mask.any(-1), given.times - scaling.t0, 0.0) / (scaling.time_unit * SPAN)
    x = np.where(mask, (given.values - scaling.loc) / scaling.scale, 0.0)
    powers = t[..., None] ** np.arange(degree + 1)
    if decay:
        powers = np.concatenate([powers, np.exp(-decay * t)[..., None]], axis=-1)
    return powers, x, mask.astype(float)


class MixedModel(NamedTuple):
    """Each trajectory is a polynomial of its own about a mean one, jointly over all features.

    x_j(t_k) = sum_p u_jp t_k^p + jumps_j . amounts(t_k) + e_jk,   e_jk ~ Normal(0, noise_j)
    u ~ Normal(mean + effects s, covariance),   amounts(t) = sum_d amounts_d exp(-decay (t - t_d))

    It is the mixed model of Laird & Ware 1982 for several outcomes, whose random effects may all be
    correlated. Numbers are in scaled units, and time in units of the span of the training data. The
    coefficients are ordered by feature, then by power. Static covariates s have fixed effects on
    all of them. amounts(t) is what events, such as doses, gave before t. If it decays, each feature
    has one more coefficient, of exp(-decay t): what was there at the start.
    """

    mean: Float[np.ndarray, " coefficient"]
    covariance: Float[np.ndarray, "coefficient coefficient"]
    noise: Float[np.ndarray, " feature"]
    effects: Float[np.ndarray, "coefficient entry"] = np.zeros((0, 0))
    jumps: Float[np.ndarray, "feature event"] = np.zeros((0, 0))
    decay: float = 0.0
    """Per span of the training data."""

    @classmethod
    def fit(
        cls,
        trajectories: Trajectories,
        scaling: Scaling,
        *,
        degree: int,
        decay: float = 0.0,
    ) -> MixedModel:
        """The estimates of the EM algorithm (Laird & Ware 1982), under a weak prior.

        The prior is worth one trajectory for each coefficient, and pulls correlations towards 0. So
        a covariance is estimated from few trajectories as well. The prior of the effects of
        covariates is worth one trajectory each, and pulls them towards 0.

        Args:
            trajectories: the training data.
            scaling: their units.
            degree: of the polynomials.
            decay: of what events give, per span of the training data.

        Raises:
            ValueError: if the degree is no positive integer.
        """
        check_counts(degree=degree)
        moments = _Moments.of(trajectories, scaling, degree, decay)
        features, size = moments.products.shape[1], moments.products[0].size
        powers = np.tile([*range(degree + 1), *([0] if decay else [])], features)
        none = np.zeros((size, moments.s.shape[1]))
        still = np.zeros(moments.amount_products.shape)
        start = np.diag(1 / (1.0 + powers))
        noise = np.full(features, 0.3)
        estimate = cls(np.zeros(size), start, noise, none, still, decay)
        for _ in range(ITERATIONS):
            estimate = estimate._improved(moments)
        return estimate

    def refitted(self, trajectories: Trajectories, scaling: Scaling) -> MixedModel:
        """The estimates of the same degree and decay from other trajectories."""
        return MixedModel.fit(trajectories, scaling, degree=self.degree, decay=self.decay)

    @property
    def degree(self) -> int:
        return len(self.mean) // len(self.noise) - (2 if self.decay else 1)

    def log_predictive(
        self, context: Trajectories, target: Trajectories, scaling: Scaling
    ) -> Float[np.ndarray, " trajectory"]:
        """The sum of log p(x | context) over each trajectory's target, each observation by itself.

        In scaled units, in which only differences between models matter.
        """
        mean, covariance = self._given(_Moments.of(context, scaling, self.degree, self.decay))
        t, x, known = _scaled(target, scaling, self.degree, self.decay)
        if self.jumps.size:
            x = x - known * (_amounts(target, scaling, self.decay) @ self.jumps.T)
        shape = (len(mean), len(self.noise), t.shape[-1])
        expected = np.einsum("nkp,nfp->nkf", t, mean.reshape(shape))
        blocks = self._blocks(covariance)
        variance = np.einsum("nkp,nfpq,nkq->nkf", t, blocks, t, optimize=True) + self.noise**2
        log_p = -((x - expected) ** 2 / variance + np.log(2 * np.pi * variance)) / 2
        return (known * log_p).sum((1, 2))

    def parts(
        self,
        *,
        width: int,
        link: Link | None = None,
        num_inputs: int = 0,
        num_readings: int = 0,
        rngs: nnx.Rngs,
    ) -> dict[str, Any]:
        """Dynamics, decoder, encoder and posterior of a latent ODE that starts as this model.

        With N = the shift of derivatives and, for what decays, the rate -decay; D = the factors
        from coefficients to derivatives of scaled time; u = mean + L z0 and L L^T = covariance:

        dz/dt = (D L)^-1 N D (L z + mean),   x = the levels in D (L z + mean), and what decays
        z(t0) = z0 + L^-1 effects s, if there are covariates
        z(t+) = z(t) + (D L)^-1 (jumps amounts, as levels or as what decays), if there are events

        All networks are residuals that start at 0, and the guide starts as the exact posterior.
        Covariates move z0, which has the slopes as well; the field does not read them besides, as
        on few trajectories a network of them learns who is who (`benchmarks/zoo.py --static`).

        Args:
            width: the units of the hidden layer of each network.
            link: of a likelihood that reads the decoder on another scale. Default: in the units of
                x.
            num_inputs: the constant and linear inputs that the residual of the field reads.
            num_readings: the entries of inputs that the encoder reads.
            rngs: the random keys that initialise them.
        """
        features, each = len(self.noise), np.arange(self.degree + 1)
        unit, to_derivatives = np.eye(features), factorial(each) / SPAN**each
        rates: np.ndarray = np.eye(len(each), k=1)
        moved = levels = np.eye(len(each))[:1]
        if self.decay:
            to_derivatives = np.append(to_derivatives, 1.0)
            rates = np.asarray(block_diag(rates, -self.decay / SPAN))
            moved, levels = np.eye(len(rates))[-1:], np.append(levels, [[1.0]], axis=1)
        powers = len(rates)
        size, to_derivatives = features * powers, np.tile(to_derivatives, features)
        lower = np.linalg.cholesky(self.covariance)
        root, mean = to_derivatives[:, None] * lower, to_derivatives * self.mean
        shift, levels, moved = (np.kron(unit, one) for one in (rates, levels, moved))
        by_power, entries = (features, powers, -1), self.effects.shape[1]
        basis, effects = (a.reshape(by_power).transpose(1, 0, 2) for a in (lower, self.effects))
        link = Link(np.zeros(features), np.ones(features)) if link is None else link
        parts = {
            "dynamics": LinearDynamics(
                solve_triangular(root, shift @ root, lower=True),
                solve_triangular(root, shift @ mean, lower=True),
                MLPDynamics(size, width=width, from_zero=True, num_inputs=num_inputs, rngs=rngs),
            ),
            "decoder": LinearDecoder(
                link.slope[:, None] * (levels @ root),
                link.start + link.slope * (levels @ mean),
                MLPDecoder(size, features, width=width, from_zero=True, rngs=rngs),
            ),
            "encoder": RegressionEncoder(
                basis,
                self.mean.reshape(features, powers).T,
                np.log(self.noise),
                effects if entries else None,
                slopes=self._slopes(num_inputs, num_readings),
                event_decay=float(self.decay / SPAN),
                width=width,
                rngs=rngs,
            ),
            "posterior": RegressionNormal(size, width=width, rngs=rngs),
        }
        if self.jumps.size and num_readings:
            weight = solve_triangular(root, moved.T @ self.jumps, lower=True)
            parts["jump"] = LinearJump(weight)
        if not entries:
            return parts
        weight = solve_triangular(lower, self.effects, lower=True)
        return {**parts, "shift": LinearShift(weight)}

    def _slopes(self, num_inputs: int, num_readings: int) -> np.ndarray | None:
        """The slopes of the mean curve in what an encoder reads of inputs."""
        if not num_readings:
            return None
        slopes = np.zeros((len(self.noise), num_readings))
        if self.jumps.size:
            slopes[:, num_inputs : num_inputs + self.jumps.shape[1]] = self.jumps
        return slopes

    def _given(self, moments: _Moments) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of each trajectory's coefficients, given its observations."""
        moments = moments.less(self.jumps)
        inverse, weight = np.linalg.inv(self.covariance), self.noise[:, None] ** -2
        count, features, powers = moments.products.shape
        precision = np.tile(inverse, (count, 1, 1))
        for j in range(features):
            block = slice(j * powers, (j + 1) * powers)
            precision[:, block, block] += moments.squares[:, j] * weight[j]
        covariance = np.linalg.inv(precision)
        products = (moments.products * weight).reshape(count, -1)
        before = inverse @ self.mean
        if moments.s.shape[1]:
            before = before + moments.s @ (inverse @ self.effects).T
        return np.einsum("nab,nb->na", covariance, before + products), covariance

    def _blocks(
        self, covariance: np.ndarray
    ) -> Float[np.ndarray, "trajectory feature power power"]:
        """The covariance of the coefficients of each feature."""
        features = len(self.noise)
        powers = covariance.shape[-1] // features
        shape = (len(covariance), features, powers, features, powers)
        return np.einsum("nfpfq->nfpq", covariance.reshape(shape))

    def _improved(self, moments: _Moments) -> MixedModel:
        """The estimates after one more iteration of EM."""
        each, covariance = self._given(moments)
        count, size = each.shape
        mean, effects = _regressed(each, moments.s)
        apart = each - mean - moments.s @ effects.T
        total = covariance.sum(0) + apart.T @ apart
        spread = total + size * np.diag(np.diag(total) / count)
        spread = spread / (count + size) + LEAST_VARIANCE * np.eye(size)
        means = each.reshape(moments.products.shape)
        jumps = self._jumps(moments, means)
        moments = moments.less(jumps)
        second = self._blocks(covariance) + means[..., None] * means[..., None, :]
        squares = moments.total - 2 * np.einsum("nfp,nfp->f", moments.products, means)
        squares = squares + np.einsum("nfpq,nfpq->f", moments.squares, second)
        # The noise of a feature that was never observed stays where it is.
        seen = moments.count > 0
        variance = np.where(seen, squares / np.maximum(moments.count, 1), self.noise**2)
        variance = np.maximum(variance, LEAST_VARIANCE)
        return MixedModel(mean, spread, np.sqrt(variance), effects, jumps, self.decay)

    def _jumps(self, moments: _Moments, means: np.ndarray) -> np.ndarray:
        """By how much amounts move values, by ridge regression of what the coefficients leave."""
        left = moments.amount_products - np.einsum("nfpe,nfp->fe", moments.by_amount, means)
        ridge = np.eye(left.shape[1])
        return np.linalg.solve(moments.amount_squares + ridge, left[..., None])[..., 0]


def _regressed(
    each: Float[np.ndarray, "trajectory coefficient"], s: Float[np.ndarray, "trajectory entry"]
) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the coefficients, and their slopes over covariates, by ridge regression."""
    if not s.shape[1]:
        return each.mean(0), np.zeros((each.shape[1], 0))
    design = np.column_stack([np.ones(len(s)), s])
    ridge = np.diag([0.0] + [1.0] * s.shape[1])
    found = np.linalg.solve(design.T @ design + ridge, design.T @ each)
    return found[0], found[1:].T


def choose_degree(
    trajectories: Trajectories, scaling: Scaling, *, most_coefficients: int
) -> MixedModel:
    """The mixed model of the lowest degree that forecasts well, by cross-validation.

    With events, the decay is chosen besides: the best one of each degree.

    The later half of each trajectory is forecast from the first, by a model that was estimated
    without it. Chosen is the lowest degree whose score is within one standard error of the best
    one's, over trajectories (Hastie, Tibshirani & Friedman 2009, section 7.10). The estimates that
    are returned are those of all trajectories; of more than 2,000, those of a random 2,000.

    Args:
        trajectories: the training data.
        scaling: their units.
        most_coefficients: the highest number of coefficients; the lowest degree may have more.
    """
    trajectories = trajectories.sample(MOST_ESTIMATED)
    features = trajectories.num_features
    degrees = [d for d in DEGREES if features * (d + 1) <= most_coefficients or d == DEGREES[0]]
    check_counts(most_coefficients=most_coefficients)
    decays = DECAYS if scaling.inputs is not None and scaling.inputs.num_events else DECAYS[:1]
    models, scores = [], []
    for degree in degrees:
        own = [x for x in decays if not x or features * (degree + 2) <= most_coefficients]
        some = [MixedModel.fit(trajectories, scaling, degree=degree, decay=x) for x in own]
        if len(trajectories) < 2:
            return some[0]
        found = [_cross_validated(model, trajectories, scaling) for model in some]
        best = int(np.argmax([score.sum() for score in found]))
        models.append(some[best])
        scores.append(found[best])
    scores = np.stack(scores)
    behind = scores[scores.sum(1).argmax()] - scores
    error = np.sqrt(behind.shape[1]) * behind.std(1)
    return models[int(np.flatnonzero(behind.sum(1) <= error)[0])]


def _cross_validated(
    model: MixedModel, trajectories: Trajectories, scaling: Scaling
) -> Float[np.ndarray, " trajectory"]:
    """The score of each trajectory that a fold leaves out."""
    scores = []
    for left_out in folds(len(trajectories), min(NUM_FOLDS, len(trajectories))):
        others = np.setdiff1d(np.arange(len(trajectories)), left_out)
        other = model.refitted(trajectories[others], scaling)
        context, target = trajectories[left_out].split()
        scores.append(other.log_predictive(context, target, scaling))
    return np.concatenate(scores)

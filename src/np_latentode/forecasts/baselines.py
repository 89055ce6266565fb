"""Trivial baselines: predictions without a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from np_latentode.data.checks import check_counts
from np_latentode.data.covariates import Covariates
from np_latentode.data.numbers import Numbers
from np_latentode.data.trajectories import Trajectories

__all__ = ["constant", "last_value", "linear", "mixed_model", "pchip"]

Prediction = Float[np.ndarray, "trajectory query feature"]


def constant(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Each feature's mean in the training data, at every time."""
    mean = np.mean(train.given.values, axis=(0, 1), where=np.asarray(train.mask))
    return np.broadcast_to(mean, (len(context), len(times), len(mean)))


def last_value(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Each feature's last observed value up to that time; before its first, the first."""

    def step(at: np.ndarray, when: np.ndarray, what: np.ndarray) -> np.ndarray:
        return what[np.maximum(np.searchsorted(when, at, side="right") - 1, 0)]

    return _by_series(step, train, context, times)


def linear(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Linear interpolation of each feature's observed values, constant beyond them."""
    return _by_series(np.interp, train, context, times)


def pchip(train: Trajectories, context: Trajectories, times: np.ndarray) -> Prediction:
    """Monotone cubic interpolation of each feature's observed values (Fritsch & Carlson 1980).

    It never overshoots the values, and is constant beyond the first and the last. If several values
    were observed at one time, the last of them is used.
    """

    def curve(at: np.ndarray, when: np.ndarray, what: np.ndarray) -> np.ndarray:
        last = np.append(np.diff(when) > 0, True)
        when, what = when[last], what[last]
        if len(when) == 1:
            return np.full(at.shape, what[0])
        return PchipInterpolator(when, what)(np.clip(at, when[0], when[-1]))

    return _by_series(curve, train, context, times)


def _by_series(
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
    train: Trajectories,
    context: Trajectories,
    times: np.ndarray,
) -> Prediction:
    # A feature that was never observed is predicted by its mean in the training data.
    predicted = np.array(constant(train, context, times))
    (when, values, *_), mask = context.given, np.asarray(context.mask)
    for i, d in np.argwhere(mask.any(1)):
        seen = mask[i, :, d]
        predicted[i, :, d] = predict(np.asarray(times), when[i, seen], values[i, seen, d])
    return predicted


class _Polynomial(NamedTuple):
    """x_k = sum_j (mean_j + effects_j s + u_j) t_k^j + e_k,

    u ~ Normal(0, cov),  e_k ~ Normal(0, variance)
    """

    mean: Float[np.ndarray, " power"]
    cov: Float[np.ndarray, "power power"]
    variance: float
    effects: Float[np.ndarray, "power entry"] | None = None

    def powers(self, times: np.ndarray) -> Float[np.ndarray, "time power"]:
        return times[:, None] ** np.arange(len(self.mean))

    def forecast(
        self,
        times: np.ndarray,
        values: np.ndarray,
        query: np.ndarray,
        s: Float[np.ndarray, " entry"] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of new observations at `query`, given those at `times`."""
        own = self.mean if s is None or self.effects is None else self.mean + self.effects @ s
        seen, asked = self.powers(times), self.powers(query)
        marginal = seen @ self.cov @ seen.T + self.variance * np.eye(len(times))
        gain = np.linalg.solve(marginal, seen @ self.cov).T
        mean = own + gain @ (values - seen @ own)
        cov = self.cov - gain @ seen @ self.cov
        return asked @ mean, np.einsum("qi,ij,qj->q", asked, cov, asked) + self.variance


def mixed_model(
    train: Trajectories, context: Trajectories, times: Numbers, *, degree: int = 1
) -> tuple[Prediction, Prediction]:
    """A linear mixed model per feature (Laird & Ware 1982), the standard of medical statistics.

    x_k = sum_j (mean_j + u_j) t_k^j + e_k,  u ~ Normal(0, G),  e_k ~ Normal(0, s^2),  j <= degree

    Each trajectory has its own line, which deviates at random from a mean line. The model is fitted
    to `train` by restricted maximum likelihood. Given a context, u and new observations are
    Gaussian in closed form. Static covariates have fixed effects, on level, slope and so on.

    Args:
        train: the data from which mean, G and s are estimated.
        context: the known observations of the trajectories to predict.
        times: the times to predict, (time,) for all, or (trajectory, time).
        degree: the degree of the polynomials: 1 for lines, 2 for parabolas.

    Returns:
        The mean and the standard deviation of new observations, noise included.

    Raises:
        ValueError: if the degree is not a positive integer.
        ImportError: if statsmodels is not installed.
    """
    check_counts(degree=degree)
    asked = np.asarray(times, float)
    asked = np.broadcast_to(asked, (len(context), asked.shape[-1]))
    # From the first time on, in units of the span, so that all powers are of similar size.
    start, unit = _span(train)
    shape = (*asked.shape, train.num_features)
    mean, variance = np.empty(shape), np.empty(shape)
    (when, values, *_), mask = context.given, np.asarray(context.mask)
    s_train, s = _covariates(train, train), _covariates(train, context)
    for d in range(train.num_features):
        polynomial = _fit_polynomial(train, d, start, unit, degree, s_train)
        for i, seen in enumerate(mask[..., d]):
            at, later = (when[i, seen] - start) / unit, (asked[i] - start) / unit
            found = polynomial.forecast(at, values[i, seen, d], later, s[i])
            mean[i, :, d], variance[i, :, d] = found
    return mean, np.sqrt(variance)


def _span(train: Trajectories) -> tuple[float, float]:
    """Where the observed times begin, and their span."""
    times = train.given.times[np.asarray(train.observed)]
    return float(times.min()), float(np.ptp(times)) or 1.0


def _covariates(train: Trajectories, some: Trajectories) -> Float[np.ndarray, "trajectory entry"]:
    """Static covariates in the units of the training data, without those that never differ."""
    if train.given_static is None or some.static is None:
        return np.zeros((len(some), 0))
    units = Covariates.fit(train.given_static, train.names)
    differ = np.asarray(units.encode(train.static)).std(0) > 0
    return np.asarray(units.encode(some.static), float)[:, differ]


def _fit_polynomial(
    train: Trajectories,
    feature: int,
    start: float,
    unit: float,
    degree: int,
    s: Float[np.ndarray, "trajectory entry"] | None = None,
) -> _Polynomial:
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM
    except ImportError as error:
        raise ImportError(
            "mixed_model() needs the package statsmodels: pip install 'np-latentode[data]'"
        ) from error
    seen = np.asarray(train.mask)[..., feature]
    who = np.broadcast_to(np.arange(len(train))[:, None], seen.shape)[seen]
    x = train.given.values[..., feature][seen]
    powers = ((train.given.times[seen] - start) / unit)[:, None] ** np.arange(degree + 1)
    # Standardised, as the optimizer's tolerances are absolute.
    loc, scale = x.mean(), x.std() or 1.0
    s = np.zeros((len(train), 0)) if s is None else s
    products = powers[:, :, None] * s[who][:, None]
    fixed = np.hstack([powers, products.reshape(len(x), -1)])
    with warnings.catch_warnings():
        # It warns if the estimated covariance is singular, which is a valid estimate.
        warnings.simplefilter("ignore")
        fit: Any = MixedLM((x - loc) / scale, fixed, who, exog_re=powers).fit(reml=True)
    mean, effects = np.split(scale * np.asarray(fit.fe_params), [degree + 1])
    mean[0] += loc
    effects = effects.reshape(degree + 1, -1)
    cov, variance = scale**2 * np.asarray(fit.cov_re), scale**2 * float(fit.scale)
    return _Polynomial(mean, cov, variance, effects)

"""Links: how a decoder says on another scale what a linear model says in the units of x."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["Link", "log_link", "logit_link"]

LEAST_SPREAD = 0.05
"""The least standard deviation of a path for which a link is taken, in scaled units."""

RAREST = 0.01
"""The least probability at which a link is taken: rarer events, and a linear model's negative
probabilities, count as this one."""


class Link(NamedTuple):
    """decoded = start + slope (x - loc) / scale, for each feature.

    It is not the tangent of the link function at the mean, which overshoots far from there: a log
    link would take five times the mean for 55 times the mean. It is linear over the whole range of
    a path x ~ Normal(loc, spread^2). For a small spread, it is the tangent.
    """

    start: Float[np.ndarray, " feature"]
    slope: Float[np.ndarray, " feature"]


def log_link(
    loc: Float[np.ndarray, " feature"],
    scale: Float[np.ndarray, " feature"],
    noise: Float[np.ndarray, " feature"],
) -> Link:
    """Of m = loc exp(decoded), so that m has the mean and the standard deviation of the path.

    Its tangent is decoded = (x - loc) / loc.

    Args:
        loc: the mean of each feature.
        scale: its standard deviation.
        noise: that about the path, in units of the scale.
    """
    spread = _spread(noise)
    log_spread = np.sqrt(np.log1p((spread * scale / loc) ** 2))
    return Link(-0.5 * log_spread**2, log_spread / spread)


def logit_link(loc: Float[np.ndarray, " feature"], noise: Float[np.ndarray, " feature"]) -> Link:
    """Of p = sigmoid(decoded): the logistic regression of a linear model's probabilities.

    Its tangent is decoded = logit(loc) + (x - loc) / (loc (1 - loc)).

    Args:
        loc: the share of ones of each feature.
        noise: the standard deviation about the path, in units of sqrt(loc (1 - loc)).
    """
    spread, p = _spread(noise), np.clip(loc, RAREST, 1 - RAREST)
    start, slope = np.array([*map(_logistic, p, spread * np.sqrt(p * (1 - p)))]).T
    return Link(start, slope / spread)


def _spread(noise: Float[np.ndarray, " feature"]) -> Float[np.ndarray, " feature"]:
    """The standard deviation of a path, where that of the values is 1."""
    return np.sqrt(np.maximum(1 - noise**2, LEAST_SPREAD**2))


def _logistic(p: float, sd: float) -> Float[np.ndarray, " 2"]:
    """a and b for which sigmoid(a + b e) is nearest p + sd e, e ~ N(0, 1), by cross-entropy."""
    e, weight = np.polynomial.hermite_e.hermegauss(60)
    asked = np.clip(p + sd * e, RAREST, 1 - RAREST)

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        decoded = found[0] + found[1] * e
        error = weight * (expit(decoded) - asked)
        value = weight @ (np.logaddexp(0.0, decoded) - asked * decoded)
        return float(value), np.array([error.sum(), error @ e])

    # At the tangent to begin with. The loss is convex.
    begin = np.array([np.log(p / (1 - p)), sd / (p * (1 - p))])
    return np.asarray(minimize(loss, begin, jac=True, method="BFGS").x)

"""Likelihoods p(x | z): the distribution of observations, given the decoded latent state.

A likelihood is a callable `scaling -> (decoded -> distribution over x)`. It declares what is to be
learned as NumPyro parameters. Then it returns a function of the decoder's output, which has shape
(trajectory, time, feature) and is in scaled units:

    def laplace_likelihood(scaling):
        width = numpyro.param("width", 1.0, constraint=constraints.positive)
        return lambda decoded: dist.Laplace(scaling.unscale_values(decoded), width)   # p(x | z)

The distribution is a NumPyro distribution over x in the units of `scaling`: original units, less
the offset of `Trajectories`, which is mostly 0. Its batch shape is the shape of `decoded`, without
event axes, so that unobserved entries can be masked. Its mean is the site `x_mean`.

A likelihood of special numbers, such as counts, also has a method `check(values, mask, name=...)`
that refuses other numbers.

A likelihood may also remember: an observation then says something of those at other times. What it
returns has a method `along(decoded, times, mask, seen)`, which makes the distribution over x along
each trajectory, given what was seen of it; see `residuals.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike

from np_latentode.data.numbers import is_concrete
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.emissions import along, joined, remembers
from np_latentode.parts.scales import positive, positive_param

__all__ = [
    "BernoulliLikelihood",
    "FeatureLikelihoods",
    "GaussianLikelihood",
    "Likelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "check_distribution",
    "check_likelihood",
    "check_observed",
]


Likelihood = Callable[[Scaling], Any]
"""`scaling -> (decoded -> distribution over x)`."""


class GaussianLikelihood:
    """x | z ~ Normal(decoder(z), noise_scale).

    Args:
        noise_scale: the standard deviation in original units, one number or one per feature.
            Default: the NumPyro parameter `noise_scale`, one per feature, which is learned.
        start: where a learned noise scale starts, in the feature's unit; one number or one per
            feature.

    Raises:
        ValueError: if noise_scale or start is not positive and finite.
    """

    def __init__(self, noise_scale: ArrayLike | None = None, *, start: ArrayLike = 0.5):
        self.noise_scale = positive("noise_scale", noise_scale)
        self.start = np.asarray(positive("start", start))

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        noise_scale = positive_param("noise_scale", self.noise_scale, self.start * scaling.scale)
        return lambda decoded: dist.Normal(scaling.unscale_values(decoded), noise_scale)


class StudentTLikelihood:
    """x | z ~ StudentT(df, decoder(z), noise_scale): robust to outliers.

    Args:
        df: the degrees of freedom. Fewer give heavier tails.
        noise_scale, start: of the t distribution; see `GaussianLikelihood`.

    Raises:
        ValueError: if df is not greater than 1 (then x has no mean), or noise_scale or start is not
            positive and finite.
    """

    def __init__(
        self, df: float = 4.0, noise_scale: ArrayLike | None = None, *, start: ArrayLike = 0.5
    ):
        self.start = np.asarray(positive("start", start))
        if not (np.isfinite(df) and df > 1):
            raise ValueError(f"df must be greater than 1, so that there is a mean; got {df}.")
        self.df, self.noise_scale = float(df), positive("noise_scale", noise_scale)

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        noise_scale = positive_param("noise_scale", self.noise_scale, self.start * scaling.scale)
        return lambda decoded: dist.StudentT(self.df, scaling.unscale_values(decoded), noise_scale)


class BernoulliLikelihood:
    """x | z ~ Bernoulli(sigmoid(decoder(z))), for features that are 0 or 1."""

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        return dist.BernoulliLogits

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values other than 0 and 1."""
        _check_values(values, mask & ~np.isin(values, (0, 1)), "be 0 or 1 under Bernoulli", name)


class PoissonLikelihood:
    """x | z ~ Poisson(loc exp(decoder(z))), for counts.

    `loc` is that of the scaling: the mean count of the training data. It is 1 where that is 0.
    """

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        mean = np.where(scaling.loc > 0, scaling.loc, 1.0)
        return lambda decoded: dist.Poisson(jnp.asarray(mean, decoded.dtype) * jnp.exp(decoded))

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values that are not counts."""
        others = (values < 0) | (values != np.round(values))
        _check_values(values, mask & others, "be counts, 0, 1, 2, ..., under Poisson", name)


class FeatureLikelihoods:
    """x_j | z ~ likelihood_j, one for each feature.

    The parameter `noise_scale` of feature j's likelihood has the name `x_j.noise_scale`.

    Args:
        *likelihoods: one per feature.

    Raises:
        ValueError: if one of them is not a likelihood.
    """

    def __init__(self, *likelihoods: Likelihood):
        for j, likelihood in enumerate(likelihoods):
            check_likelihood(likelihood, name=f"likelihoods[{j}]")
        self.likelihoods = likelihoods

    def __call__(self, scaling: Scaling) -> Any:
        if len(self.likelihoods) != len(scaling.loc):
            raise ValueError(
                f"likelihood must have one likelihood for each of {len(scaling.loc)} features; "
                f"got {len(self.likelihoods)}."
            )
        parts = []
        for j, likelihood in enumerate(self.likelihoods):
            one = slice(j, j + 1)
            of_feature = replace(scaling, loc=scaling.loc[one], scale=scaling.scale[one])
            with numpyro.handlers.scope(prefix=f"x_{j}", divider="."):
                parts.append(likelihood(of_feature))

        return joined(parts)

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values that the likelihood of their feature refuses."""
        for j, likelihood in enumerate(self.likelihoods):
            if check := getattr(likelihood, "check", None):
                only = np.zeros_like(mask)
                only[..., j] = mask[..., j]
                check(values, only, name=name)


def check_likelihood(likelihood: Any, *, name: str = "likelihood") -> Any:
    """The likelihood, or a ValueError that says what came instead."""
    if not callable(likelihood) or isinstance(likelihood, (type, dist.Distribution)):
        raise ValueError(
            f"{name} must be callable as likelihood(scaling), such as "
            f"GaussianLikelihood(); got {likelihood!r}."
        )
    return likelihood


def check_distribution(likelihood: Any, scaling: Scaling) -> bool:
    """Refuses a likelihood that does not return a distribution over x with one entry per feature.

    Returns:
        Whether it remembers.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    shape, made = (1, 1, len(scaling.loc)), []

    def call(decoded: Array) -> Array:
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.trace():
            emission = likelihood(scaling)
            times, mask = decoded[..., 0], jnp.ones(shape, bool)
            made.extend([along(emission, decoded, times, mask, None), remembers(emission)])
        return decoded

    try:
        jax.eval_shape(call, jnp.zeros(shape))
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            "likelihood must be called as likelihood(scaling) and return a function of decoded "
            f"numbers, shape (trajectory, time, feature): {error}."
        ) from error
    x, memory = made
    if not isinstance(x, dist.Distribution):
        raise ValueError(
            f"likelihood must make a distribution of decoded numbers; got {type(x).__name__}."
        )
    if (x.batch_shape, x.event_shape) != (shape, ()):
        raise ValueError(
            f"likelihood must make a distribution of batch shape {shape} of as many decoded "
            f"numbers, without event axes; got batch shape {x.batch_shape}, event shape "
            f"{x.event_shape}."
        )
    return memory


def check_observed(likelihood: Any, trajectories: Trajectories, *, name: str) -> None:
    """Refuses observed values that are impossible under the likelihood."""
    check = getattr(likelihood, "check", None)
    if check is not None and is_concrete(trajectories.values, trajectories.mask):
        check(trajectories.given.values, np.asarray(trajectories.mask), name=name)
        _check_offset(likelihood, trajectories.offset.values, name)


def _check_offset(likelihood: Any, offsets: tuple[float, ...], name: str) -> None:
    """Refuses counts that are less an offset: their distribution cannot be shifted."""
    if not any(offsets):
        return
    parts = getattr(likelihood, "likelihoods", [likelihood] * len(offsets))
    for j, (part, offset) in enumerate(zip(parts, offsets, strict=True)):
        if offset and hasattr(part, "check"):
            raise ValueError(
                f"{name} must vary by more than a thousandth of its level in feature {j} under "
                f"{type(part).__name__}; got values close to {offset:g}. Use a "
                "GaussianLikelihood for it."
            )


def _check_values(values: np.ndarray, wrong: np.ndarray, rule: str, name: str) -> None:
    if wrong.any():
        i, k, j = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must {rule} in feature {j}; got {values[i, k, j]} at values[{i}, {k}, {j}]."
        )

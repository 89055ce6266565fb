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
that refuses other numbers, and an attribute `kind`, which forecasts and scores respect. If its
decoder does not speak in the units of x, it has a method `link(scaling, noise)`; see `linked`.

A likelihood may also remember: an observation then says something of those at other times. What it
returns has a method `along(decoded, times, mask, seen)`, which makes the distribution over x along
each trajectory, given what was seen of it; see `residuals.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from np_latentode.data.kinds import BERNOULLI, COUNTS, KINDS, NUMBERS, fits
from np_latentode.data.numbers import is_concrete
from np_latentode.data.scaling import Scaling
from np_latentode.data.trajectories import Trajectories
from np_latentode.parts.distributions import NegativeBinomial
from np_latentode.parts.emissions import (
    along,
    by_feature,
    joined,
    remembers,
    takes_error,
    takes_limits,
)
from np_latentode.parts.links import Link, log_link, logit_link
from np_latentode.parts.scales import positive, positive_param
from np_latentode.parts.threads import one_at_a_time

__all__ = [
    "BernoulliLikelihood",
    "FeatureLikelihoods",
    "GaussianLikelihood",
    "Likelihood",
    "NegativeBinomialLikelihood",
    "PoissonLikelihood",
    "StudentTLikelihood",
    "check_distribution",
    "check_likelihood",
    "check_observed",
    "kinds_of",
    "linked",
    "of_features",
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

    kind = BERNOULLI

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        return dist.BernoulliLogits

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values other than 0 and 1."""
        _check_kind("Bernoulli", self.kind, values, mask, name)

    def link(self, scaling: Scaling, noise: np.ndarray) -> Link:
        """From a linear probability model; see `linked`."""
        return logit_link(scaling.loc, noise)


class PoissonLikelihood:
    """x | z ~ Poisson(loc exp(decoder(z))), for counts.

    `loc` is that of the scaling: the mean count of the training data. It is 1 where that is 0.
    Where |decoder(z)| is above 5, the mean goes on as a linear function of it, or its reciprocal:
    the path of a field before training would overflow otherwise.
    """

    kind = COUNTS

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        mean = _mean_count(scaling)
        return lambda decoded: dist.Poisson(jnp.asarray(mean, decoded.dtype) * _growth(decoded))

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values that are not counts."""
        _check_kind("Poisson", self.kind, values, mask, name)

    def link(self, scaling: Scaling, noise: np.ndarray) -> Link:
        """From a linear model of counts; see `linked`."""
        return log_link(_mean_count(scaling), scaling.scale, noise)


class NegativeBinomialLikelihood:
    """x | z ~ NegativeBinomial with the mean of a `PoissonLikelihood`, for counts that vary more.

    m = loc exp(decoder(z)),   Var[x | z] = m + m^2 / concentration

    The more concentrated, the closer it is to the Poisson distribution.

    Args:
        concentration: one number or one per feature. Default: the NumPyro parameter
            `concentration`, one per feature, which is learned.

    Raises:
        ValueError: if the concentration is not positive and finite.
    """

    kind = COUNTS

    def __init__(self, concentration: ArrayLike | None = None):
        self.concentration = positive("concentration", concentration)

    def __call__(self, scaling: Scaling) -> Callable[[Array], dist.Distribution]:
        mean = _mean_count(scaling)
        start = np.full(mean.shape, START)
        concentration = positive_param("concentration", self.concentration, start)
        return lambda decoded: NegativeBinomial(
            jnp.asarray(mean, decoded.dtype) * _growth(decoded), concentration
        )

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values that are not counts."""
        _check_kind("NegativeBinomial", self.kind, values, mask, name)

    def link(self, scaling: Scaling, noise: np.ndarray) -> Link:
        """From a linear model of counts; see `linked`."""
        return log_link(_mean_count(scaling), scaling.scale, noise)


EXPONENTIAL = 5.0
"""Up to where means of counts are exponentials of what is decoded."""


def _growth(decoded: Array) -> Array:
    """exp(d) for |d| <= 5, and e^5 (1 + d - 5) or the reciprocal beyond, with a smooth slope."""
    size = jnp.abs(decoded)
    beyond = jnp.maximum(size - EXPONENTIAL, 0.0)
    power = jnp.minimum(size, EXPONENTIAL) + jnp.log1p(beyond)
    return jnp.exp(jnp.sign(decoded) * power)


START = 5.0
"""Where a learned concentration starts."""


class FeatureLikelihoods:
    """x_j | z ~ likelihood_j, one for each feature, or for each group of features.

    The parameter `noise_scale` of feature j's likelihood has the name `x_j.noise_scale`. That of a
    group is named after its first feature, and has one number per feature.

    Args:
        *likelihoods: one per feature, or per group.
        groups: the features of each likelihood, by number, in rising order. Default: one each.

    Raises:
        ValueError: if one of them is not a likelihood, or the groups are no partition.
    """

    def __init__(self, *likelihoods: Likelihood, groups: Sequence[Sequence[int]] | None = None):
        for j, likelihood in enumerate(likelihoods):
            check_likelihood(likelihood, name=f"likelihoods[{j}]")
        groups = [[j] for j in range(len(likelihoods))] if groups is None else groups
        self.likelihoods = likelihoods
        self.groups = tuple(tuple(int(j) for j in group) for group in groups)
        every = sorted(j for group in self.groups for j in group)
        alike = len(self.groups) == len(likelihoods) and all(self.groups)
        if not alike or every != [*range(len(every))] or any(list(g) != sorted(g) for g in groups):
            raise ValueError(
                f"groups must have the features of each of {len(likelihoods)} likelihoods, by "
                f"number, in rising order, and each feature once; got {groups}."
            )

    @classmethod
    def by_name(
        cls,
        named: Mapping[str, Likelihood],
        scaling: Scaling,
        default: Callable[..., Likelihood],
        *,
        start: np.ndarray | None = None,
    ) -> Likelihood:
        """The likelihoods of some features by name, and one for all others together.

        Args:
            named: by the name of the feature.
            scaling: that of the training data, whose labels have the names of all.
            default: makes that of the others, as `default(start=start)` or `default()`.
            start: one number per feature, of which the default gets those of its features.

        Raises:
            ValueError: if a name is no feature, or one of them is not a likelihood.
        """
        labels, count = scaling.labels, len(scaling.loc)
        features = labels.features if labels else tuple(f"x_{j}" for j in range(count))
        if strange := [name for name in named if name not in features]:
            raise ValueError(
                f"likelihood must name features of the training data, {[*features]}; got {strange}."
            )
        for name, likelihood in named.items():
            check_likelihood(likelihood, name=f"likelihood[{name!r}]")
        rest = [j for j, name in enumerate(features) if name not in named]
        others = [] if not rest else [default() if start is None else default(start=start[rest])]
        if not named:
            return others[0]
        each = {features.index(name): likelihood for name, likelihood in named.items()}
        made = [*others, *(each[j] for j in sorted(each))]
        return cls(*made, groups=[*([rest] if rest else []), *([j] for j in sorted(each))])

    def __call__(self, scaling: Scaling) -> Any:
        if (count := sum(map(len, self.groups))) != len(scaling.loc):
            raise ValueError(
                f"likelihood must have one likelihood for each of {len(scaling.loc)} features; "
                f"got {count}."
            )
        parts = []
        for group, likelihood in zip(self.groups, self.likelihoods, strict=True):
            with numpyro.handlers.scope(prefix=f"x_{group[0]}", divider="."):
                parts.append(likelihood(_scaling_of(scaling, group)))

        return joined(parts, self.groups)

    def check(self, values: np.ndarray, mask: np.ndarray, *, name: str) -> None:
        """Refuses observed values that the likelihood of their feature refuses."""
        for group, likelihood in zip(self.groups, self.likelihoods, strict=True):
            if check := getattr(likelihood, "check", None):
                only = np.zeros_like(mask)
                only[..., group] = mask[..., group]
                check(values, only, name=name)


class OfFeature(NamedTuple):
    """The likelihood of one feature."""

    likelihood: Likelihood
    prefix: str
    """Of the names of its NumPyro parameters."""
    place: int
    """Of the feature among those that the likelihood is of."""


def of_features(likelihood: Likelihood, num_features: int) -> list[OfFeature]:
    """The likelihood of each feature."""
    if not isinstance(likelihood, FeatureLikelihoods):
        return [OfFeature(likelihood, "", j) for j in range(num_features)]
    pairs = zip(likelihood.groups, likelihood.likelihoods, strict=True)
    by_feature = {
        j: OfFeature(one, f"x_{group[0]}.", place)
        for group, one in pairs
        for place, j in enumerate(group)
    }
    return [by_feature[j] for j in range(num_features)]


def kinds_of(likelihood: Likelihood, num_features: int) -> list[str]:
    """The kind of each feature: `numbers`, if its likelihood says nothing else."""
    parts = of_features(likelihood, num_features)
    return [getattr(part.likelihood, "kind", NUMBERS) for part in parts]


def linked(likelihood: Likelihood, scaling: Scaling, noise: Float[np.ndarray, " feature"]) -> Link:
    """The link of each feature; a likelihood without a method `link` reads the units of x.

    Args:
        likelihood: of all features.
        scaling: the units.
        noise: the standard deviation of each feature about the path, in scaled units.
    """
    start, slope = np.zeros(len(noise)), np.ones(len(noise))
    for j, part in enumerate(of_features(likelihood, len(noise))):
        if link := getattr(part.likelihood, "link", None):
            start[[j]], slope[[j]] = link(_scaling_of(scaling, (j,)), noise[[j]])
    return Link(start, slope)


def _mean_count(scaling: Scaling) -> np.ndarray:
    return np.where(scaling.loc > 0, scaling.loc, 1.0)


def _scaling_of(scaling: Scaling, group: Sequence[int]) -> Scaling:
    """The units of some features."""
    some = [*group]
    return replace(scaling, loc=scaling.loc[some], scale=scaling.scale[some])


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
    shape = (1, 1, len(scaling.loc))
    x, memory = _made(likelihood, scaling)
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


@one_at_a_time
def _made(likelihood: Any, scaling: Scaling) -> tuple[Any, bool]:
    """What a likelihood makes at one time, without numbers, and whether it remembers."""
    shape, made = (1, 1, len(scaling.loc)), []

    def call(decoded: Array) -> Array:
        # Blocked, as no model around it has these parameters.
        with numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=0):
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
    return made[0], made[1]


def check_observed(likelihood: Any, trajectories: Trajectories, *, name: str) -> None:
    """Refuses observed values that are impossible under the likelihood."""
    _check_measured(likelihood, trajectories, name)
    check = getattr(likelihood, "check", None)
    if check is not None and is_concrete(trajectories.values, trajectories.mask):
        check(trajectories.given.values, np.asarray(trajectories.mask), name=name)
        _check_offset(likelihood, trajectories.offset.values, name)


def _check_measured(likelihood: Any, trajectories: Trajectories, name: str) -> None:
    """Refuses standard errors and limits of features whose likelihood cannot have some."""
    error, limits = trajectories.error, trajectories.limits
    if not is_concrete(*jax.tree.leaves((error, limits))):
        return
    # In NumPy: inside `jax.jit`, JAX would trace these operations even on known values.
    given: dict[str, Any] = {
        "standard errors (error)": None if error is None else np.asarray(error) > 0,
        "limits, such as <0.5,": None if limits is None else trajectories.limited,
    }
    given = {what: where for what, where in given.items() if where is not None and where.any()}
    if not given:
        return
    count = trajectories.num_features
    parts = by_feature(_made(likelihood, Scaling.identity(count))[0], count)
    for what, where in given.items():
        able = takes_limits if what.startswith("limits") else takes_error
        for j in np.flatnonzero(where.any((0, 1))):
            if not able(parts[j]):
                raise ValueError(
                    f"{name} must have no {what} in feature {trajectories.names.features[j]!r} "
                    f"under {type(parts[j]).__name__}; got {np.sum(where[..., j])} of them. Use a "
                    "GaussianLikelihood for it."
                )


def _check_offset(likelihood: Any, offsets: tuple[float, ...], name: str) -> None:
    """Refuses counts that are less an offset: their distribution cannot be shifted."""
    if not any(offsets):
        return
    for j, (part, offset) in enumerate(
        zip(of_features(likelihood, len(offsets)), offsets, strict=True)
    ):
        if offset and hasattr(part.likelihood, "check"):
            raise ValueError(
                f"{name} must vary by more than a thousandth of its level in feature {j} under "
                f"{type(part.likelihood).__name__}; got values close to {offset:g}. Use a "
                "GaussianLikelihood for it."
            )


def _check_kind(under: str, kind: str, values: np.ndarray, mask: np.ndarray, name: str) -> None:
    wrong = mask & ~fits(kind, values)
    if wrong.any():
        i, k, j = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must {KINDS[kind]} under {under} in feature {j}; got {values[i, k, j]} at "
            f"values[{i}, {k}, {j}]."
        )

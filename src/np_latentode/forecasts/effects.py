"""Effects: by how much a static covariate changes forecasts, with the uncertainty of the fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import narwhals as nw
import numpy as np
from jaxtyping import Array, Float
from scipy.special import stdtrit

from np_latentode.data.checks import check_counts
from np_latentode.data.covariates import Covariates
from np_latentode.data.inputs import Inputs
from np_latentode.data.labels import Labels
from np_latentode.data.numbers import Numbers
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.codes import prior
from np_latentode.forecasts.prediction import check_reach, draw_x, warn_of_inputs
from np_latentode.programs.ensemble import Ensemble, members_of, with_solver
from np_latentode.programs.fitted import Fitted
from np_latentode.programs.plate import check_context, prediction_times

__all__ = ["Effect", "effect"]


@dataclass(frozen=True)
class Effect:
    """By how much a covariate changes the mean path of each feature, at some times.

    All arrays have shape (time, feature). They are differences in the units of the table: of
    numbers, of probabilities for zeros and ones, of mean counts. Where the logarithm of a feature
    is modelled, they are ratios.
    """

    column: str
    between: tuple[Any, Any] | None
    """The two entries that are compared, the second less the first; None for one more unit."""
    times: Float[np.ndarray, " time"]
    estimate: Float[np.ndarray, "time feature"]
    sd: Float[np.ndarray, "time feature"]
    """The standard error; of the logarithm, where the estimate is a ratio."""
    low: Float[np.ndarray, "time feature"]
    high: Float[np.ndarray, "time feature"]
    level: float
    """That of the band from low to high."""
    degrees: int
    """Of freedom of Student's t, from which the band is: one less than the groups of members."""
    labels: Labels

    def to_dataframe(self, *, backend: Any = "pandas") -> Any:
        """A row for each time and feature: estimate, standard error, and the ends of the band.

        Args:
            backend: the library of the data frame: "pandas", "polars" or "pyarrow".

        Raises:
            ValueError: if the column of times has the name of another column.
        """
        k, j = (index.ravel() for index in np.indices(self.estimate.shape))
        low, high = self.ends
        arrays = {"effect": self.estimate, "se": self.sd, low: self.low, high: self.high}
        time, own = self.labels.time, ["feature", "scale", *arrays]
        if time in own:
            raise ValueError(f"time must not be called {', '.join(own)}; got {time!r}.")
        columns = {
            time: self.calendar[k],
            "feature": [self.labels.features[d] for d in j],
            "scale": ["ratio" if self.labels.logged[d] else "difference" for d in j],
            **{name: array[k, j] for name, array in arrays.items()},
        }
        frame = nw.from_dict(columns, backend=backend)
        if self.labels.zone and not self.labels.own_clocks:
            frame = frame.with_columns(nw.col(time).dt.replace_time_zone("UTC"))
        return frame.to_native()

    @property
    def ends(self) -> tuple[str, str]:
        """The columns of the ends of the band in tables."""
        return f"low{self.level:g}", f"high{self.level:g}"

    @property
    def comparison(self) -> str:
        """What is compared, in words."""
        if self.between is None:
            return f"one more unit of {self.column}"
        return f"{self.column} {self.between[1]} compared with {self.between[0]}"

    @property
    def calendar(self) -> np.ndarray:
        """The times as in the table, where one clock is for all."""
        return self.times if self.labels.own_clocks else self.labels.calendar(self.times)


def effect(
    rng_key: Array,
    fitted: Ensemble,
    column: str,
    trajectories: Trajectories,
    times: Numbers,
    *,
    between: Sequence[Any] | None = None,
    level: float = 0.9,
    num_samples: int = 50,
) -> Effect:
    """The difference of forecasts between two entries of a static covariate, all else equal.

    effect(t) = mean_i E[path_i(t) | s_i with column = b] - E[path_i(t) | s_i with column = a]

    The mean is over the other covariates and the inputs of the trajectories, which are the same for
    both entries (standardisation, Robins 1986). Nothing is observed: z0 has its prior. It is the
    effect of the covariate only if nothing else differs between those who have one entry and those
    who have the other, as in a randomized trial. Otherwise it is an association.

    The band has the uncertainty of the fit. Of an ensemble of `cross_fit`, whose members are
    trained without one of K folds each, it is that of the jackknife (Efron & Stein 1981),

        sd^2 = (K - 1) / K sum_k (effect_k - effect)^2,   band = effect +- t_{K-1} sd

    Of other ensembles, whose members see the same data, effect_k are those of the members, and sd
    is their standard deviation: the uncertainty of training, without that of the data.

    Args:
        rng_key: a key.
        fitted: an ensemble, as of `cross_fit` or `recalibrated`, with static covariates.
        column: the covariate, by its name in the table.
        trajectories: whose other covariates are averaged over, such as the training data.
        times: shape (time,), in original units.
        between: two entries to compare, (a, b): categories, or numbers. Default: the two categories
            of the column; of numbers, one more unit than each trajectory has.
        level: of the band, between 0 and 1.
        num_samples: draws of z0 per trajectory.

    Raises:
        ValueError: naming the argument, the rule and what came.
    """
    if not isinstance(fitted, Ensemble) or len(fitted.members) < 2:
        raise ValueError(
            "fitted must be an Ensemble of two members or more, as cross_fit makes it, as bands "
            f"come from their differences; got {type(fitted).__name__}."
        )
    check_counts(num_samples=num_samples)
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}.")
    scaling = fitted.scaling
    trajectories = check_context(trajectories, scaling, name="trajectories")
    place, pair = _compared(scaling.covariates, column, between)
    when = np.asarray(times, float)
    if when.ndim != 1:
        raise ValueError(f"times must have shape (time,); got {when.shape}.")
    at = prediction_times(when, 1, scaling, offset=scaling.offset, name="times")
    check_reach(fitted, when)
    warn_of_inputs(fitted, trajectories, when)
    both = _with_entries(jnp.asarray(trajectories.static), place, pair, scaling.covariates)
    given: Any = (both, trajectories.inputs, at[0], num_samples)
    silent = members_of(with_solver(fitted, throw=False))
    each = [_of_member(rng_key, one, *given) for one in silent]
    groups, weights, jackknife = _groups(fitted)
    found = np.stack(
        [
            np.average(np.stack(each)[members], axis=0, weights=share)
            for members, share in zip(groups, weights, strict=True)
        ]
    )
    if not np.isfinite(found).all():
        raise ValueError(
            f"times must be where the dynamics are finite; those of some trajectories diverge "
            f"before {when.max():g}. Ask for earlier times, or train longer."
        )
    estimate, count = found.mean(0), len(found)
    variance = ((found - estimate) ** 2).sum(0)
    sd = np.sqrt(variance * ((count - 1) / count if jackknife else 1 / (count - 1)))
    half = stdtrit(count - 1, 0.5 + level / 2) * sd
    names = trajectories.names if trajectories.labels else scaling.labels or trajectories.names
    own, *ends = (
        np.where(names.logged, np.exp(x), x) for x in (estimate, estimate - half, estimate + half)
    )
    low, high = ends
    return Effect(column, pair, when, own, sd, low, high, level, count - 1, names)


def _compared(
    covariates: Covariates | None, column: str, between: Any
) -> tuple[int, tuple[Any, Any] | None]:
    """The place of the covariate, and the two entries that are compared."""
    names = () if covariates is None else covariates.names
    if covariates is None or column not in names:
        came = f"it has {', '.join(names)}" if names else "it has none"
        raise ValueError(
            f"column must name a static covariate of the fit; got {column!r}, and {came}."
        )
    place = names.index(column)
    levels = covariates.levels[place]
    if between is None:
        if len(levels) == 1 or len(levels) > 2:
            raise ValueError(
                f"between must name two of the categories of {column!r}, {', '.join(levels)}; got "
                "none."
            )
        return place, (levels[0], levels[-1]) if levels else None
    rule = f"two categories of {column!r}, {', '.join(levels)}" if levels else "two finite numbers"
    pair = tuple(between) if isinstance(between, (tuple, list)) else ()
    right = {*map(str, pair)} <= {*levels} if levels else all(map(_is_number, pair))
    if len(pair) != 2 or not right:
        raise ValueError(f"between must be {rule}; got {between!r}.")
    return place, (str(pair[0]), str(pair[1])) if levels else (float(pair[0]), float(pair[1]))


def _is_number(entry: Any) -> bool:
    try:
        return bool(np.isfinite(float(entry)))
    except (TypeError, ValueError):
        return False


def _with_entries(
    static: Array, place: int, pair: tuple[Any, Any] | None, covariates: Covariates | None
) -> tuple[Array, Array]:
    """The covariates of all trajectories, with the first and with the second entry."""
    if pair is None:
        own = static[:, place]
        own = jnp.where(jnp.isnan(own), jnp.nanmean(own), own)
        entries = (own, own + 1.0)
    else:
        levels = () if covariates is None else covariates.levels[place]
        entries = tuple(levels.index(x) if levels else x for x in pair)
    first, second = (static.at[:, place].set(entry) for entry in entries)
    return first, second


def _of_member(
    rng_key: Array,
    fitted: Fitted,
    both: tuple[Array, Array],
    inputs: Inputs | None,
    times: Array,
    num_samples: int,
) -> Float[np.ndarray, "time feature"]:
    """The effect under one member; both forecasts have the same draws of z0."""
    count = len(both[0])
    z0 = jnp.asarray(prior(fitted).sample(rng_key, (num_samples, count)))
    rows, offset = jnp.broadcast_to(times, (count, len(times))), fitted.scaling.offset
    options: Any = [dict(static=static, inputs=inputs) for static in both]
    first, second = (
        np.asarray(draw_x(rng_key, fitted, z0, rows, offset, **given)["x_mean"], float)
        for given in options
    )
    return (second - first).mean((0, 1))


def _groups(fitted: Ensemble) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
    """Members that are averaged, their weights, and whether each group left out a fold."""
    if fitted.folds is None:
        each = [np.array([k]) for k in range(len(fitted.members))]
        return each, [np.ones(1)] * len(each), False
    folds = np.array(fitted.folds)
    groups = [np.flatnonzero(folds == k) for k in np.unique(folds)]
    if len(groups) < 2:
        raise ValueError(
            "fitted must have members that were trained without different folds, for a band; got "
            "one fold. Use num_folds=5 in cross_fit."
        )
    return groups, [fitted.weights[k] for k in groups], True

"""How good the forecasts of held-out trajectories are: scores, figures and heldout.csv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Array, Float

from np_latentode.app.horizons import all_finite, finite, scored_by_thirds, thirds
from np_latentode.app.origins import Origins
from np_latentode.data.far import warn_user
from np_latentode.data.given import table_times, table_values
from np_latentode.data.tidy import tidy_forecast
from np_latentode.data.trajectories import Trajectories
from np_latentode.data.written import cells_as_texts
from np_latentode.forecasts.calibration import Calibration, calibration
from np_latentode.forecasts.codes import Inference, amortized
from np_latentode.forecasts.densities import DRAWS_AT_ONCE
from np_latentode.forecasts.prediction import (
    draw_forecast,
    forecast_observed,
    in_table_units,
    mean_and_x,
)
from np_latentode.forecasts.scores import (
    Forecasts,
    of_calibration,
    of_levels,
    of_mixed_models,
    score,
    score_features,
    with_bands,
    within_band,
)
from np_latentode.programs.ensemble import Ensemble, heaviest, kinds
from np_latentode.programs.fitted import Fitted

__all__ = ["QUANTILES", "HeldOutScores", "score_held_out"]

MOST_MIXED = 3_000
"""The highest number of trajectories to which mixed models are fitted for comparison."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles in heldout.csv."""

NUM_SHOWN = 100
"""The number of evenly spaced times in the figure of forecasts."""

ABOUT_LAST = (-0.25, 0.0, 0.1, 0.25, 0.5)
"""Times about the last observation in that figure, in steps of the even ones."""


class HeldOutScores(NamedTuple):
    """Scores, figures and tables of a fit."""

    metrics: dict[str, Any]
    figures: dict[str, Callable[[], Any]]
    """By name, to be drawn."""
    held_out: Any
    """The table heldout.csv, None if nothing was held out."""


def score_held_out(
    keys: tuple[Array, Array],
    fitted: Fitted | Ensemble,
    train: Trajectories,
    test: Trajectories | None,
    t0: float,
    *,
    inference: Inference = amortized,
    num_origins: int = 1,
    num_trained: int | None = None,
) -> HeldOutScores:
    """Scores, figures and the table of forecasts of those held out.

    Args:
        keys: of the scores and of the draws.
        fitted: the fit, or an ensemble.
        train: what it was trained on, or a random part, for baselines.
        test: those held out, if any.
        t0: where the figure of forecasts begins.
        inference: how forecasts draw z0.
        num_origins: from how many `Origins` those held out are forecast.
        num_trained: the number of trajectories that it was trained on. Default: those of train.
    """
    # Imported after training, as training should not wait for matplotlib.
    from np_latentode.report import plots

    score_key, draw_key = keys
    past = heaviest(fitted).history
    figures: dict[str, Callable[[], Any]] = {
        "training": partial(
            plots.plot_training,
            past.losses,
            num_trajectories=num_trained or len(train),
            history=past,
        )
    }
    if test is None:
        return HeldOutScores({}, figures, None)
    origins = Origins.of(test, num_origins)
    context, target = origins.context, origins.target
    kind = kinds(fitted)
    found = calibration(score_key, fitted, context, target, inference=inference)
    draws = forecast_observed(
        draw_key, fitted, context, target, inference=inference, num_samples=500
    )
    figures["forecasts"] = partial(
        _forecast_figure, draw_key, fitted, *origins.middle(), t0, inference
    )
    figures["calibration"] = partial(plots.plot_calibration, found)
    made = {"latent ODE": of_calibration(target, found), **_others(train, context, target)}
    # In standard deviations of each feature in the training data, as it is modelled.
    unit = fitted.scaling.scale
    metrics = _scored(made, target, unit, kind)
    metrics["horizons"] = scored_by_thirds(made, context, target, unit)
    metrics["coverage"] = {"forecast": covered(found, context, target, kind)}
    if isinstance(fitted, Ensemble) and fitted.bands is not None:
        # The same draws, not widened.
        plain = replace(fitted, bands=None)
        before = calibration(score_key, plain, context, target, inference=inference)
        metrics["coverage"]["before recalibration"] = covered(before, context, target, kind)
    table = _compared(draws, target)
    if num_origins > 1:
        metrics["origins"] = origins.scored(made, unit, kind)
        number = np.broadcast_to(origins.number[:, None, None], target.mask.shape)
        table.insert(2, "origin", number[np.asarray(target.mask)])
    return HeldOutScores({"held_out": len(test), **metrics}, figures, table)


def covered(
    found: Calibration, context: Trajectories, target: Trajectories, kind: Sequence[str]
) -> dict[str, Any]:
    """The share of a target within the central 90%: of all, by column, and by thirds of the gap.

    A gap is the time from a trajectory's last known observation to the one that is forecast. The
    first third of the target has the shortest gaps. Zeros and ones are left out: a band of them
    means nothing.
    """
    mask, inside = np.asarray(target.mask) & with_bands(kind), within_band(found.pit)
    each = [inside[mask][third] for third in thirds(context, target.keep(mask))]
    columns = {
        name: float(inside[..., j][mask[..., j]].mean())
        for j, name in enumerate(target.names.features)
        if mask[..., j].any()
    }
    return {
        "all": float(inside[mask].mean()) if mask.any() else None,
        "columns": columns,
        "thirds": [finite(third.mean()) if len(third) else None for third in each],
    }


def _others(
    train: Trajectories, context: Trajectories, target: Trajectories
) -> dict[str, Forecasts]:
    """The forecasts of baselines."""
    made = of_levels(train, context, target)
    if len(train) > MOST_MIXED:
        warn_user(
            f"The mixed models to compare with are estimated from a random {MOST_MIXED} of "
            f"{len(train)} ids."
        )
        train = train.sample(MOST_MIXED)
    try:
        return made | of_mixed_models(train, context, target)
    except ImportError:
        warn_user("No mixed model is compared: pip install 'np-latentode[data]' for one.")
    # statsmodels raises exceptions of many types where a mixed model cannot be estimated.
    except Exception as error:
        warn_user(f"No mixed model is compared, as it cannot be estimated: {error}.")
    return made


def _scored(
    made: dict[str, Forecasts], target: Trajectories, unit: np.ndarray, kind: Sequence[str]
) -> dict[str, Any]:
    """The scores of each method, over all features and for each, with the observed spread."""

    values, mask, names = target.given.values, np.asarray(target.mask), target.names.features
    exact = mask & ~target.limited
    observed = {
        name: values[..., j][exact[..., j]] for j, name in enumerate(names) if mask[..., j].any()
    }
    return {
        "observed_sd": {n: float(x.std()) if x.size else None for n, x in observed.items()},
        "observed_count": {n: int(mask[..., names.index(n)].sum()) for n in observed},
        **_limits_counted(target),
        "methods": {
            name: {
                **all_finite(score(target, unit, forecasts, kind)),
                "columns": {
                    column: all_finite(scores)
                    for column, scores in score_features(target, unit, forecasts, kind).items()
                },
            }
            for name, forecasts in made.items()
        },
    }


def _limits_counted(target: Trajectories) -> dict[str, Any]:
    """The number of limits that are held out, by column; nothing, if there are none."""
    counts = target.limited.sum((0, 1)).tolist()
    pairs = zip(target.names.features, counts, strict=True)
    found = {name: count for name, count in pairs if count}
    return {"limits": found} if found else {}


def _forecast_figure(
    rng_key: Array,
    fitted: Fitted | Ensemble,
    context: Trajectories,
    target: Trajectories,
    t0: float,
    inference: Inference,
) -> Any:
    """The four trajectories with the longest forecasts."""
    from np_latentode.report.fans import plot_forecasts

    most = np.argsort(-target.lengths, kind="stable")[:4]
    context, target = context[most], target[most]
    times = _times_shown(context, t0, target.given.times.max())
    # Not `forecast`, as nobody has asked for these times: inputs may end before them.
    draws = draw_forecast(
        rng_key,
        fitted,
        context,
        times,
        inference=inference,
        num_samples=500,
        draws_at_once=DRAWS_AT_ONCE,
        reading=mean_and_x,
    )
    return plot_forecasts(context, draws, times, target=target)


def _times_shown(
    context: Trajectories, t0: float, end: float
) -> Float[np.ndarray, "trajectory time"]:
    """Evenly spaced times, and those about each one's last observation, where bands open fast."""
    even, step = np.linspace(t0, end, NUM_SHOWN, retstep=True)
    last = np.max(context.given.times, axis=1, where=np.asarray(context.observed), initial=t0)
    about = last[:, None] + step * np.array(ABOUT_LAST)
    return np.hstack([np.tile(even, (len(last), 1)), np.clip(about, t0, end)])


def _compared(draws: dict[str, Any], target: Trajectories) -> Any:
    """The observations, each beside its forecast; the draws are at the observed times."""
    seen, names = np.asarray(target.observed), target.names
    when, what = table_times(target.given, names)[seen], table_values(target.given, names)[seen]
    # A trajectory of one time for each observed time.
    each = names.select(np.nonzero(seen)[0])
    own = in_table_units(draws, target.offset, names)
    x = {name: own[name][:, :, None] for name in ("x_mean", "x")}
    table = tidy_forecast(x, target.given.times[seen][:, None], each, quantiles=QUANTILES)
    column = pd.Series(np.repeat(when, target.num_features), table.index)
    table[names.time] = column.dt.tz_localize("UTC") if names.zone else column
    table.insert(3, "observed", _observed(what, target, seen))
    return table[np.asarray(target.mask)[seen].ravel()]


def _observed(what: np.ndarray, target: Trajectories, seen: np.ndarray) -> Any:
    """The observed cells (slot, feature) one after the other; with limits, as texts."""
    if (limits := target.given.limits) is None:
        return what.ravel()
    return cells_as_texts(what.ravel(), limits.lower[seen].ravel(), limits.upper[seen].ravel())

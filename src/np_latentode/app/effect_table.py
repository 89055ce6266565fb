"""From a fit and a table to the effect of a covariate: what `np-latentode effect` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from np_latentode.app.asked_times import time_of, warn_of_long_reach
from np_latentode.app.column_names import split_names
from np_latentode.app.forecast_table import read_known
from np_latentode.app.outputs import beside, check_new, write_figure
from np_latentode.data.checks import check_counts, check_seed
from np_latentode.data.files import check_path, write_table
from np_latentode.data.labels import shown_time
from np_latentode.data.trajectories import Trajectories
from np_latentode.forecasts.effects import Effect, effect
from np_latentode.programs.ensemble import Ensemble, shortest_reach
from np_latentode.programs.model import LatentODE
from np_latentode.storage.saving import load

__all__ = ["effect_table"]

FEW_DEGREES = 4
"""Of freedom: with fewer, a band is much wider than its standard error says."""


def effect_table(
    run_dir: Path,
    data: Path,
    output: Path,
    of: str,
    *,
    between: str | None = None,
    until: str | None = None,
    points: int = 50,
    level: float = 0.9,
    seed: int = 0,
    plot: bool = False,
    overwrite: bool = False,
) -> str:
    """Writes the effect of a static covariate on forecasts, as a table and as a figure.

    Args:
        run_dir: the output_dir of `fit_table`.
        data: a table with the columns of the one fitted, over whose ids other covariates are
            averaged.
        output: a file in a format of `Trajectories.to_file`.
        of: the column of the covariate.
        between: two of its entries, separated by a comma.
        until: the last time. Default: the latest of the table.
        points: the number of times, evenly spaced from the start of the fit on.
        level: of the band.
        seed: of the draws.
        plot: whether to draw a figure as well.
        overwrite: whether existing files are replaced.

    Returns:
        What to say: a line for each feature, with the effect at the last time.

    Raises:
        ValueError: naming the argument, or file, row and column, the rule and what came.
        OSError: if a file cannot be read or written.
    """
    check_counts(points=points)
    check_seed(seed)
    check_path(output)
    picture = beside(output, ".png")
    check_new((output, *([picture] if plot else [])), overwrite=overwrite)
    fitted = load(run_dir)
    labels = fitted.scaling.labels
    if labels is None or not isinstance(fitted, Ensemble):
        raise ValueError(f"run must be what `np-latentode fit` wrote; got {run_dir}.")
    model = shortest_reach(fitted)
    known = read_known(model, labels, data)
    times = _times(known, model, until, points)
    levels = dict(zip(labels.static, labels.levels, strict=True)).get(of, ())
    pair = None if between is None else split_names("between", [between], lambda: levels)
    options: dict[str, Any] = dict(between=pair, level=level)
    found = effect(jax.random.key(seed), fitted, of, known, times, **options)
    write_table(found.to_dataframe(), output)
    if plot:
        from np_latentode.report.effects import plot_effect

        write_figure(picture, plot_effect(found))
    return f"{_described(found)}\neffects in {output}"


def _times(known: Trajectories, model: LatentODE, until: str | None, points: int) -> np.ndarray:
    """Evenly spaced times from t0 on, on the clock of the fit."""
    t0, labels = model.scaling.t0, known.names
    if until is None:
        end = float(known.given.times[np.asarray(known.observed)].max())
    elif labels.own_clocks:
        end = _number(until)
    else:
        end = float(np.max(time_of("until", until, labels)))
    if not end > t0:
        raise ValueError(f"until must be later than {t0:g}, where the fit begins; got {until}.")
    if end > (latest := model.latest_time):
        raise ValueError(
            f"until must not lead further than the solver reaches, {latest:g}; got {until}."
        )
    if until is not None:
        warn_of_long_reach(model, labels, np.full(len(known), end), "until")
    return np.linspace(t0, end, points + 1)[1:]


def _number(until: str) -> float:
    try:
        return float(until)
    except ValueError as error:
        raise ValueError(
            f"until must be a number, the time since each start; got {until!r}."
        ) from error


def _described(found: Effect) -> str:
    """The effect at the last time, one line for each feature."""
    last = found.to_dataframe().iloc[-len(found.labels.features) :]
    time, (low, high) = found.labels.time, found.ends
    lines = [f"effect of {found.comparison}, at {time} {shown_time(found.calendar[-1])}:"]
    for _, row in last.iterrows():
        band = f"{row[low]:.3g} to {row[high]:.3g}"
        lines.append(
            f"  {row['feature']}: {row['scale']} {row['effect']:.3g} ({found.level:.0%} {band})"
        )
    if found.degrees < FEW_DEGREES:
        lines.append(
            f"(With {found.degrees + 1} members of the fit, the band is Student's t with "
            f"{found.degrees} degrees of freedom. More --members of the fit narrow it.)"
        )
    lines.append(
        "(It is an effect if the covariate was randomized; otherwise it is an association.)"
    )
    return "\n".join(lines)

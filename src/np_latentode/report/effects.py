"""The figure of an effect: the difference of forecasts over time, with its band."""

from __future__ import annotations

from matplotlib.figure import Figure

from np_latentode.forecasts.effects import Effect
from np_latentode.report.fans import with_dates
from np_latentode.report.panels import MODEL, TRUTH, panels

__all__ = ["plot_effect"]


def plot_effect(found: Effect) -> Figure:
    """The effect of a covariate on each feature over time, with its band and a line of no effect.

    Args:
        found: what `effect` returns.
    """
    table, names = found.to_dataframe(), found.labels
    low, high = found.ends
    dates = names.origin is not None and not names.own_clocks
    with panels(1, len(names.features), size=(3.6, 2.8)) as (figure, axes):
        for axis, name, log in zip(axes[0], names.features, names.logged, strict=True):
            rows = table[table["feature"] == name]
            when, band = rows[names.time], f"{found.level:.0%} band"
            axis.fill_between(when, rows[low], rows[high], color=MODEL, alpha=0.3, lw=0, label=band)
            axis.plot(when, rows["effect"], color=MODEL, lw=1.3, label="effect")
            axis.axhline(1.0 if log else 0.0, color=TRUTH, lw=0.8, ls=":", label="no effect")
            axis.set_title(name)
            axis.set_xlabel(f"{names.time} (UTC)" if dates and names.zone else names.time)
            axis.set_ylabel("ratio" if log else "difference")
            if dates:
                with_dates(axis)
        figure.suptitle(found.comparison)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

"""The figure of an effect: the difference of forecasts over time, with its band."""

from __future__ import annotations

from matplotlib.figure import Figure

from np_latentode.forecasts.effects import Effect
from np_latentode.report.panels import MODEL, TRUTH, panels

__all__ = ["plot_effect"]


def plot_effect(found: Effect) -> Figure:
    """The effect of a covariate on each feature over time, with its band and a line of no effect.

    Args:
        found: what `effect` returns.
    """
    table = found.to_dataframe()
    names = found.labels
    what = f"one more unit of {found.column}"
    if found.between is not None:
        what = f"{found.column}: {found.between[1]} compared with {found.between[0]}"
    with panels(1, len(names.features), size=(3.6, 2.8)) as (figure, axes):
        for axis, name, log in zip(axes[0], names.features, names.logged, strict=True):
            rows = table[table["feature"] == name]
            when, ends = rows[names.time], [c for c in rows if c.startswith(("low", "high"))]
            low, high = (rows[end] for end in ends)
            band = f"{found.level:.0%} band"
            axis.fill_between(when, low, high, color=MODEL, alpha=0.3, lw=0, label=band)
            axis.plot(when, rows["effect"], color=MODEL, lw=1.3, label="effect")
            axis.axhline(1.0 if log else 0.0, color=TRUTH, lw=0.8, ls=":", label="no effect")
            axis.set_title(name)
            axis.set_xlabel(names.time)
            axis.set_ylabel("ratio" if log else "difference")
        figure.suptitle(what)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return figure

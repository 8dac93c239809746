"""Picture of the analyses: what moves the weight of the rarest class, by the class of the samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lt_kernels.train.analysis.measures import Analysis
from lt_kernels.train.analysis.plots_classes import COLOURS, colour_bar, grid, logarithmic, not_applicable, same_scale
from lt_kernels.train.output import figures
from lt_kernels.train.run.parts import Parts

LINES = 6  # epochs that are drawn
OWN = {"marker": "*", "markersize": 13, "markeredgecolor": "black", "markeredgewidth": 0.6, "linestyle": "none"}


def parts_of(analysis: Analysis) -> Parts | None:
    """What a run recorded, if it did."""
    return None if analysis.history is None else analysis.history.parts


def gradient_parts(analyses: Sequence[Analysis]) -> Figure:
    """The parts of the gradient of the rarest class's weight against the count of the class that they come from.

    A panel a run that has some, a line an epoch; the class's own part is a star.
    """
    found = {analysis.name: parts for analysis in analyses if (parts := parts_of(analysis)) is not None}
    recorded = [analysis for analysis in analyses if analysis.name in found]
    figure, axes = grid(max(1, len(recorded)), 4.6, 4.0, across=3)
    norm = Normalize(1, max([2, *(int(parts.epochs[-1]) for parts in found.values())]))
    for axis, analysis in zip(axes, recorded, strict=False):
        _panel(axis, analysis, found[analysis.name], norm)
    if not recorded:
        not_applicable(axes[0])
    else:
        same_scale(axes)
        colour_bar(figure, axes, norm, "epoch", ticks=MaxNLocator(integer=True))
        handles = [Line2D([], [], color="0.3", marker="o", markersize=4), Line2D([], [], color="0.7", **OWN)]
        labels = ["repulsion by the samples of another class", "attraction by its own samples"]
        figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(recorded)), frameon=False)
    counts, counted = analyses[0].counts, analyses[0].counted
    ranges = "a point a class" if len(counts) <= figures.POINTS else "means over ranges of like counts"
    title = f"What moves the weight of the rarest class (training {counted}: {counts[counts > 0].min():,})"
    figures.heading(figure, f"{title},\nby the class of the samples ({ranges}; mean over batches)")
    return figure


def _panel(axis: Axes, analysis: Analysis, parts: Parts, norm: Normalize) -> None:
    figures.panel_title(axis, figures.literal(analysis.name))
    counts, rarest = analysis.counts.astype(float), int(parts.classes[0])
    for place in np.unique(np.linspace(0, len(parts.epochs) - 1, LINES).round().astype(int)):
        values, colour = parts.values[place, :, 0].copy(), COLOURS(norm(parts.epochs[place]))
        own, values[rarest] = values[rarest], np.nan
        values[values == 0] = np.nan
        axis.plot(*figures.class_curve(counts, values), color=colour, marker="o", markersize=4, linewidth=1.2)
        if own > 0:
            axis.plot(counts[rarest], own, color=colour, zorder=3, **OWN)
    logarithmic(axis, analysis)
    axis.set_xlabel(f"training {analysis.counted} of the class that moves it (log scale)", fontsize=9)
    axis.set_yscale("log")
    axis.set_ylabel("length of the part of the gradient\n[features' unit, log scale]", fontsize=9)

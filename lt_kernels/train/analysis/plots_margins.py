"""The picture of the margins of runs."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_kernels.train.analysis.margins import DEGREES, MarginCurves
from lt_kernels.train.analysis.measures import Analysis
from lt_kernels.train.analysis.plots_classes import Analyses, grid
from lt_kernels.train.output import figures

COLOURS = (figures.INDIGO, figures.ROSE, figures.GREEN)  # of the most frequent class, the one in the middle, the rarest


def margins(analyses: Analyses) -> Figure:
    """The target's logit against the angle, a panel a run that has a margin."""
    shown = [analysis for analysis in analyses if analysis.margins is not None]
    figure, axes = grid(len(shown), 4.6, 4.0, across=3)
    for axis, analysis in zip(axes, shown, strict=True):
        assert analysis.margins is not None
        _panel(axis, analysis, analysis.margins)
    title = "The target's logit against the angle of feature and weight"
    figures.heading(figure, f"{title}\n(n: training {analyses[0].counted} of the class)")
    return figure


def _panel(axis: Axes, analysis: Analysis, curves: MarginCurves) -> None:
    """A line a class, or one where the margin is the same for all; a dashed one for hard samples where it differs."""
    same = np.allclose(curves.easy, curves.easy[:1]) and np.allclose(curves.hard, curves.hard[:1])
    for place, index in enumerate(curves.classes[:1] if same else curves.classes):
        name, colour = "every class" if same else f"n = {analysis.counts[index]:,}", COLOURS[place]
        differ = not np.allclose(curves.easy[place], curves.hard[place])
        label = f"{name}, easy" if differ else name
        axis.plot(curves.angle, curves.easy[place], color=colour, linewidth=1.4, label=label)
        if differ:
            style = {"color": colour, "linewidth": 1.4, "linestyle": "--"}
            axis.plot(curves.angle, curves.hard[place], label=f"{name}, hard", **style)
    plain = np.cos(np.radians(curves.angle))
    axis.plot(curves.angle, plain, color="black", linewidth=1, linestyle=":", label="no margin")
    axis.set_xlim(0, DEGREES)
    axis.set_xticks(range(0, DEGREES + 1, 45))
    axis.set_xlabel("angle [degrees]")
    axis.set_ylabel("logit of the target / scale")
    figures.panel_title(axis, figures.literal(analysis.name))
    axis.legend(loc="lower left", fontsize=7, frameon=False)

"""Pictures of the analyses: what offsets and biases there are, and where the boundaries between classes lie."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from lt_kernels.train.analysis.measures import BIAS, Analysis
from lt_kernels.train.analysis.plots_classes import (
    curve,
    grid,
    logarithmic,
    not_applicable,
    same_scale,
    shown_as,
    styles_of,
)
from lt_kernels.train.output import figures

Analyses = Sequence[Analysis]
KINDS = {
    "test features": "mean of the test features",
    "training features": "mean of the training features",
    "centres": "centres that the loss learns",
    BIAS: "what a trained bias $b$ subtracts",
}


def offsets(analyses: Analyses) -> Figure:
    """Half the product of class mean and class weight against the class count, a panel for each kind of mean, and the
    negative bias.
    """
    kinds = [kind for kind in KINDS if any(kind in a.offsets for a in analyses)]
    figure, axes = grid(len(kinds), 4.6, 4.0, across=2 if len(kinds) == 4 else 3)
    styles = styles_of(analyses)
    for axis, kind in zip(axes, kinds, strict=True):
        for analysis in analyses:
            if kind in analysis.offsets:
                curve(axis, analysis, analysis.offsets[kind], styles[analysis.name])
        logarithmic(axis, analyses[0])
        axis.set_title(KINDS[kind], fontsize=10)
        axis.set_ylabel("$-b_c$ [logit]" if kind == BIAS else "offset $o_c = m_c w_c / 2$ [logit]")
    same_scale(axes)
    figures.heading(figure, f"Offset of each class by its count ({shown_as(analyses)})")
    figures.legend_below(figure, axes[0])
    return figure


def boundaries(analyses: Analyses) -> Figure:
    """How far each class reaches beyond the middle between its mean and another's, mean over the others, against the
    class count.
    """
    figure, (axis,) = figures.canvas(10, 4.4)
    styles = styles_of(analyses)
    for analysis in analyses:
        if analysis.boundaries is not None:
            curve(axis, analysis, analysis.of_all(analysis.boundaries), styles[analysis.name])
    if axis.lines:
        axis.axhline(0, color="0.3", linestyle=":", linewidth=1)
        logarithmic(axis, analyses[0])
        axis.set_ylabel("shift of the class's boundaries\n[halves of the distance between two means]")
        figures.legend_below(figure, axis)
    else:
        not_applicable(axis)
    title = "How far the boundaries of a class are beyond the middles between its mean and the others'"
    axis.set_title(f"{title}\n(above 0: it takes room from them; {shown_as(analyses)})", fontsize=11)
    return figure

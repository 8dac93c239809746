"""Pictures of the analyses by sample: angles, logits, confidence; and of single numbers a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_kernels.train.analysis.measures import Analysis, groups_of
from lt_kernels.train.analysis.plots_classes import Analyses, grid, styles_of
from lt_kernels.train.output import figures

CLASSES = 12  # up to this many classes each has quartiles of its own in the table
DRAWN = 5000  # angles of a group that its density is made from
SIGNS = {"positive": (figures.INDIGO, "of the sample's class"), "negative": (figures.ROSE, "of other classes")}
BALANCE = {
    "balance_dot": "$B_D^2$, of the products",
    "balance_angle": "$B_A^2$, of the cosines",
    "balance_norm": "$B_L^2$, of the lengths",
}
BALANCE_UNITS = {"balance_dot": " [weights' unit⁴]", "balance_angle": "", "balance_norm": " [weights' unit²]"}


def angle_sets(analysis: Analysis, kind: str, classes: int = 0) -> list[tuple[str, np.ndarray]]:
    """Label and angles in degrees, of each group of classes, and of each class where there are up to `classes`; classes
    by descending count.
    """
    chosen = []
    for name, mask in groups_of(analysis.counts).items():
        chosen.append((f"{name}\n{mask.sum():,} {'classes' if mask.sum() > 1 else 'class'}", mask[analysis.target]))
    if len(analysis.counts) <= classes:
        chosen += [(str(analysis.counts[index]), analysis.target == index) for index in analysis.order]
    values = [(label, analysis.angles[kind][samples]) for label, samples in chosen]
    return [(label, part[np.isfinite(part)]) for label, part in values]


def mean_and_quartiles(values: np.ndarray) -> list[float]:
    """The mean and the three quartiles, NaN of nothing."""
    return [values.mean(), *np.quantile(values, [0.25, 0.5, 0.75])] if len(values) else [np.nan] * 4


def angles(analyses: Analyses) -> Figure:
    """Angles between test features and their class's weight or mean: a violin a group of classes and run."""
    figure, axes = figures.canvas(11, 7.4, 1, 2)
    for axis, kind in zip(axes, ("weight", "mean"), strict=True):
        _violins(axis, analyses, kind)
        axis.set_xticks(
            np.arange(len(groups_of(analyses[0].counts))), [name for name, _ in angle_sets(analyses[0], kind)]
        )
        axis.set_ylim(bottom=0)
        axis.set_ylabel("angle [degrees]")
        axis.set_title(f"to the {'weight' if kind == 'weight' else 'mean test feature'} of their class", fontsize=10)
    axes[1].set_xlabel(f"classes, by their training {analyses[0].counted}")
    figures.heading(figure, "Angles of the test features: density, quartiles (bar), median (dot) and mean (line)")
    figures.legend_below(figure, axes[0])
    return figure


def _violins(axis: Axes, analyses: Analyses, kind: str) -> None:
    styles, width = figures.bar_styles([analysis.name for analysis in analyses]), 0.84 / len(analyses)
    for place, analysis in enumerate(analyses):
        colour, hatch = styles[analysis.name]["color"], styles[analysis.name]["hatch"]
        style = {"facecolor": colour, "edgecolor": colour, "alpha": 0.5, "hatch": hatch}
        axis.bar(0, 0, label=figures.literal(analysis.name), **style)  # for the legend
        for group, (_, values) in enumerate(angle_sets(analysis, kind)):
            if not len(values):
                continue
            at = group - 0.42 + (place + 0.5) * width
            places = np.linspace(0, len(values) - 1, min(len(values), DRAWN)).round().astype(int)
            some = np.sort(values)[places]  # keeps the distribution and its ends
            for body in axis.violinplot(some, [at], widths=0.92 * width, showextrema=False)["bodies"]:
                body.set(**style)
            mean, low, middle, high = mean_and_quartiles(values)
            axis.vlines(at, low, high, color=colour, linewidth=3)
            axis.hlines(mean, at - 0.25 * width, at + 0.25 * width, color=colour, linewidth=1.4)
            axis.plot(at, middle, "o", color="white", markeredgecolor=colour, markersize=4, zorder=3)


def logits(analyses: Analyses) -> Figure:
    """Densities of positive and negative logits: a row a run, a column a group of classes."""
    groups = list(groups_of(analyses[0].counts))
    figure, axes = grid(len(analyses) * len(groups), 4.0, 2.5, across=len(groups))
    for place, axis in enumerate(axes):
        analysis, group = analyses[place // len(groups)], groups[place % len(groups)]
        histogram = analysis.histogram
        for sign, (colour, label) in SIGNS.items():
            density = histogram.densities[group, sign]
            axis.stairs(density, histogram.edges, fill=True, alpha=0.4, color=colour, label=label)
            axis.stairs(density, histogram.edges, color=colour)
        figures.panel_title(axis, f"{figures.literal(analysis.name)}, {group}")
        axis.set_xlabel("logit", fontsize=8)
        axis.set_ylabel("density [1 / logit]", fontsize=8)
        axis.set_xlim(*_extent(analysis))
    figures.heading(figure, "Logits of the classes of a group, for samples of the class and of other classes")
    figures.legend_below(figure, axes[0])
    return figure


def _extent(analysis: Analysis) -> tuple[float, float]:
    """Where the densities of some group are above a thousandth of their peak."""
    shares = [density / density.max() for density in analysis.histogram.densities.values() if density.max() > 0]
    seen = np.flatnonzero(np.max(shares, axis=0) > 1e-3)
    edges = analysis.histogram.edges
    return float(edges[seen[0]]), float(edges[seen[-1] + 1])


def calibration(analyses: Analyses) -> Figure:
    """Accuracy against confidence, a panel a run."""
    figure, axes = grid(len(analyses), 3.2, 3.2)
    for axis, analysis in zip(axes, analyses, strict=True):
        least, number, confidence, accuracy = analysis.calibration.T
        width = 1 / len(least)
        reached, promised = np.nan_to_num(accuracy), np.nan_to_num(confidence)
        both = np.minimum(reached, promised)
        for bottom, top, colour, label in (
            (0 * both, both, figures.INDIGO, "accuracy"),
            (both, promised, figures.ROSE, "confidence above it"),
            (both, reached, figures.GREEN, "accuracy above confidence"),
        ):
            axis.bar(least, top - bottom, 0.94 * width, bottom, align="edge", color=colour, alpha=0.6, label=label)
        axis.plot(least + width / 2, number / number.sum(), ".-", color="0.25", linewidth=0.9, label="share of samples")
        axis.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
        error = 100 * analysis.summary["calibration_error"]
        figures.panel_title(axis, f"{figures.literal(analysis.name)}: ECE {error:.1f} %")
        axis.set_xlabel("confidence")
        axis.set_ylabel("accuracy, share")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1)
    figures.heading(figure, "Calibration on the test set: accuracy in bins of confidence")
    figures.legend_below(figure, axes[0])
    return figure


def separability(analyses: Analyses) -> Figure:
    """Fisher's separability of the test features as the network gives them, mean over the classes of each group."""
    names = [name for name in ("many", "medium", "few", "all") if f"separability_{name}" in analyses[0].summary]
    figure, (axis,) = figures.canvas(10, 4.0)
    _bars(axis, analyses, [[a.summary[f"separability_{name}"] for name in names] for a in analyses])
    axis.set_xticks(np.arange(len(names)), [figures.GROUP_LABELS[name] for name in names])
    axis.set_xlabel(f"classes, by their number of training {analyses[0].counted}")
    axis.set_ylabel("Fisher separability [ratio]")
    title = "How far the classes' test features are apart, against their spread"
    axis.set_title(f"{title}\n(features as the network gives them, of every run)", fontsize=11)
    figures.legend_below(figure, axis)
    return figure


def _bars(axis: Axes, analyses: Analyses, values: Sequence[Sequence[float]]) -> None:
    styles, width = figures.bar_styles([analysis.name for analysis in analyses]), 0.84 / len(analyses)
    for place, (analysis, row) in enumerate(zip(analyses, values, strict=True)):
        left = np.arange(len(row)) - 0.42 + (place + 0.5) * width
        style = {**styles[analysis.name], "edgecolor": "white", "linewidth": 0}
        axis.bar(left, row, width * 0.92, label=figures.literal(analysis.name), **style)


def balance(analyses: Analyses) -> Figure:
    """The three balance metrics of the class weights, a panel each, a bar a run."""
    figure, axes = _panels(analyses)
    styles, names = styles_of(analyses), [analysis.name for analysis in analyses]
    for axis, (key, title) in zip(axes, BALANCE.items(), strict=True):
        values = [analysis.summary[key] for analysis in analyses]
        axis.barh([figures.literal(name) for name in names], values, color=[styles[name]["color"] for name in names])
        for place, value in enumerate(values):
            axis.annotate(f"{value:.2g}", (value, place), xytext=(3, 0), textcoords="offset points", va="center")
        axis.margins(x=0.2)
        axis.set_xlim(left=0)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(f"variance{BALANCE_UNITS[key]}")
    figures.heading(figure, "Balance of the class weights: 0 where all pairs, and all lengths, are alike")
    return figure


def _panels(analyses: Analyses) -> tuple[Figure, list[Axes]]:
    figure, axes = figures.canvas(11, 1.6 + 0.3 * len(analyses), 3)
    for axis in axes[1:]:
        axis.tick_params(labelleft=False)
    return figure, axes

"""Pictures of the analyses by class: matrices between classes, and curves over the class counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure

from lt_kernels.train.analysis.measures import Analysis, Matrix, groups_of
from lt_kernels.train.output import figures

Analyses = Sequence[Analysis]
ACROSS = 4  # panels in a row
TICKS = 6
COLOURS = ListedColormap(matplotlib.colormaps["viridis_r"](np.linspace(0.12, 1, 256)))  # no yellow on white


def grid(number: int, width: float, height: float, across: int = ACROSS) -> tuple[Figure, list[Axes]]:
    """A figure of `number` panels of these inches, up to `across` in a row; those too many are hidden."""
    lines = -(-number // across)
    columns = -(-number // lines)
    figure, axes = figures.canvas(max(6.0, columns * width), lines * height + 0.5, columns, lines)
    for axis in axes[number:]:
        axis.set_visible(False)
    return figure, axes[:number]


def styles_of(analyses: Analyses, marks: bool = True) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each run; the run called `ce` is black and dashed."""
    styles = figures.method_styles([analysis.name for analysis in analyses])
    return styles if marks else {name: {**style, "marker": ""} for name, style in styles.items()}


def logarithmic(axis: Axes, analysis: Analysis) -> None:
    """The horizontal axis: the class count."""
    axis.set_xscale("log")
    counts = analysis.counts[analysis.counts > 0]
    figures.count_ticks(axis.xaxis, counts)
    axis.set_xlim(counts.min() / 1.3, counts.max() * 1.3)
    axis.set_xlabel(f"training {analysis.counted} of the class (log scale)")


def shown_as(analyses: Analyses) -> str:
    """What a point of a curve over the class counts is."""
    classes = len(analyses[0].counts)
    return (
        "a point a class" if classes <= figures.POINTS else f"means over ranges of like counts of {classes:,} classes"
    )


def matrices(
    analyses: Analyses,
    chosen: Callable[[Analysis], Matrix],
    title: str,
    label: str,
    centre: float,
    percent: float,
    below: Callable[[Analysis], str] | None = None,
) -> Figure:
    """A matrix between classes for each run, classes by descending count, on one colour scale around `centre` that
    reaches as far as `percent` of the values; `below` is a line of text under each.
    """
    figure, axes = grid(len(analyses), 3.4, 3.3 if below is None else 3.5)
    shown = [chosen(analysis) for analysis in analyses]
    size = np.abs(np.concatenate([matrix.values.ravel() for matrix in shown]) - centre)
    reach = (float(np.nanpercentile(size, percent)) if np.isfinite(size).any() else 0.0) or 1.0
    colours = matplotlib.colormaps["RdBu_r"].with_extremes(bad="0.75")
    image = None
    for axis, analysis, matrix in zip(axes, analyses, shown, strict=True):
        axis.grid(False)
        image = axis.imshow(matrix.values, cmap=colours, vmin=centre - reach, vmax=centre + reach)
        figures.panel_title(axis, figures.literal(analysis.name))
        _class_ticks(axis, analysis, matrix)
        if below is not None:
            axis.set_xlabel(f"{axis.get_xlabel()}\n{below(analysis)}", fontsize=8)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8, extend="both" if percent < 100 else "neither")
    figures.heading(figure, title + _averaged(shown[0]))
    return figure


def _averaged(matrix: Matrix) -> str:
    classes = int(matrix.starts[-1])
    return (
        "" if len(matrix.values) == classes else f"\n(means over blocks of {classes / len(matrix.values):.0f} classes)"
    )


def _class_ticks(axis: Axes, analysis: Analysis, matrix: Matrix) -> None:
    """Ticks at some classes with their counts, and lines between many, medium and few."""
    counts = analysis.counts[analysis.order]
    length = len(matrix.values)
    places = np.unique(np.linspace(0, length - 1, length if length <= 12 else TICKS).round().astype(int))
    names = [f"{counts[matrix.starts[place]]:,}" for place in places]
    axis.set_xticks(places, names, rotation=90, fontsize=7)
    axis.set_yticks(places, names, fontsize=7)
    axis.set_xlabel(f"class, by its training {analysis.counted}", fontsize=8)
    for edge in boundaries(analysis):
        place = np.interp(edge, matrix.starts, np.arange(length + 1)) - 0.5
        axis.axhline(place, color="0.2", linewidth=0.6)
        axis.axvline(place, color="0.2", linewidth=0.6)


def boundaries(analysis: Analysis) -> list[int]:
    """The ranks at which medium and few begin, where there are classes on both sides."""
    sizes = np.cumsum([mask.sum() for mask in groups_of(analysis.counts).values()])
    return [int(size) for size in sizes[:-1]]


def similarity(analyses: Analyses) -> Figure:
    """Cosines between class weights."""
    title = "Similarity of class weights, classes by descending count"
    return matrices(analyses, lambda analysis: analysis.similarity, title, "cosine of two class weights", 0, 100)


def affinity(analyses: Analyses) -> Figure:
    """Shares of the products between class weights, and the three balance metrics below each panel."""
    title = "Affinity of class weights, classes by descending count"
    label = "share of the row's $w_i w_j$ [even shares]"
    return matrices(analyses, lambda analysis: analysis.affinity, title, label, 1, 95, _balance)


def _balance(analysis: Analysis) -> str:
    """$B_D^2$, $B_A^2$ and $B_L^2$ as a line of text."""
    names = {"D": "balance_dot", "A": "balance_angle", "L": "balance_norm"}
    return ", ".join(f"$B_{letter}^2$ {analysis.summary[name]:.2g}" for letter, name in names.items())


def curve(axis: Axes, analysis: Analysis, values: np.ndarray, style: Mapping[str, Any], label: str = "") -> None:
    """Draw values by class against the class counts."""
    points = figures.class_curve(analysis.counts.astype(float), values)
    axis.plot(*points, label=label or figures.literal(analysis.name), linewidth=1.4, markersize=5, **style)


def same_scale(axes: Sequence[Axes]) -> None:
    """Give the vertical axes of several panels the same ends, with room for the markers there."""
    ends = [axis.get_ylim() for axis in axes]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    spare = 0.03 * (high - low)
    for axis in axes:
        axis.set_ylim((low / 1.15, high * 1.15) if axes[0].get_yscale() == "log" else (low - spare, high + spare))


def accuracy(analyses: Analyses) -> Figure:
    """Accuracy of each class against its count."""
    runs = {
        a.name: [{"class_counts": a.counts, "per_class": a.accuracy, "units": {"counts": a.counted}}] for a in analyses
    }
    return figures.accuracy_by_count(runs, "")


def false_positives(analyses: Analyses) -> Figure:
    """False positives summed up over the classes by descending count."""
    figure, (axis,) = figures.canvas(10, 4.6)
    few = len(analyses[0].counts) <= figures.POINTS
    styles = styles_of(analyses, marks=few)
    for analysis in analyses:
        ranks = np.arange(1, len(analysis.cumulative) + 1)
        style = {**styles[analysis.name], "markersize": 4, "linewidth": 1.4}
        axis.plot(ranks, analysis.cumulative, label=figures.literal(analysis.name), **style)
        even, colour = [0, analysis.cumulative[-1]], styles[analysis.name]["color"]
        axis.plot([0, ranks[-1]], even, color=colour, linewidth=0.9, linestyle=":")
    axis.plot([], [], color="0.4", linewidth=0.9, linestyle=":", label="a run's errors, evenly spread")
    for edge in boundaries(analyses[0]):
        axis.axvline(edge + 0.5, color="0.7", linewidth=0.8)
    _name_groups(axis, analyses[0])
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_xlabel("classes, from the most frequent on")
    axis.set_ylabel("false positives of these classes [test samples]")
    axis.set_title("Cumulative false positives (the last value is the number of errors)", fontsize=11)
    figures.legend_below(figure, axis)
    return figure


def _name_groups(axis: Axes, analysis: Analysis) -> None:
    edges = [0, *boundaries(analysis), len(analysis.counts)]
    for name, first, last in zip(groups_of(analysis.counts), edges, edges[1:]):
        middle = (first + last + 1) / 2
        axis.text(middle, 0.99, name, transform=axis.get_xaxis_transform(), ha="center", va="top", color="0.35")


def components(analyses: Analyses) -> Figure:
    """Attraction and repulsion of each class weight at the end of training against the class count."""
    figure, axes = grid(2, 5.4, 4.2)
    styles, known = styles_of(analyses), [a for a in analyses if not isinstance(a.components, str)]
    for axis, name in zip(axes, ("attraction", "repulsion"), strict=True):
        for analysis in known:
            curve(axis, analysis, analysis.components[name], styles[analysis.name])  # type: ignore[index]
        logarithmic(axis, analyses[0])
        axis.set_title(name, fontsize=10)
        axis.set_ylabel("length of the part of the gradient\n[features' unit, log scale]")
        if any(np.any(analysis.components[name] > 0) for analysis in known):  # type: ignore[index]
            axis.set_yscale("log")
        if not known:
            not_applicable(axis)
    same_scale(axes)
    title = "Gradient components of each class weight after training, over the training set"
    figures.heading(figure, f"{title} ({shown_as(analyses)})")
    figures.legend_below(figure, axes[0])
    return figure


def not_applicable(axis: Axes) -> None:
    """Say that a run has nothing to draw here."""
    axis.text(0.5, 0.5, "not applicable", transform=axis.transAxes, ha="center", color="0.4")
    axis.set_xticks([])
    axis.set_yticks([])


def logit_means(analyses: Analyses) -> Figure:
    """The mean logit of each class for its own samples and for those of others, with log C, on one axis."""
    figure, axes = grid(len(analyses), 3.4, 3.2)
    for axis, analysis in zip(axes, analyses, strict=True):
        for sign, colour, marker in (("positive", figures.INDIGO, "o"), ("negative", figures.ROSE, "s")):
            label = "samples of the class" if sign == "positive" else "samples of other classes"
            curve(axis, analysis, analysis.logit_means[sign], {"color": colour, "marker": marker}, label)
        axis.axhline(analysis.log_classes, color="0.3", linestyle="--", linewidth=1, label="log C")
        logarithmic(axis, analyses[0])
        axis.xaxis.label.set_fontsize(8)
        axis.set_ylabel("mean logit of the class", fontsize=8)
        figures.panel_title(axis, figures.literal(analysis.name))
    same_scale(axes)
    figures.heading(figure, f"Mean logits of the test set by class ({shown_as(analyses)})")
    figures.legend_below(figure, axes[0])
    return figure


HISTORY = {
    "attraction": "attraction [features' unit]",
    "repulsion": "repulsion [features' unit]",
    "offset": "offset of the training features [logit]",
    "estimated_offset": "offset of the learned centres [logit]",
}


def colour_bar(figure: Figure, axes: Sequence[Axes], norm: Normalize, label: str, **options: Any) -> Colorbar:
    """The scale of `COLOURS` beside the panels, as wide where they stand in many rows as beside one."""
    rows = axes[0].get_subplotspec().get_gridspec().nrows  # type: ignore[union-attr]
    colours = matplotlib.cm.ScalarMappable(norm, COLOURS)
    return figure.colorbar(colours, ax=axes, label=label, shrink=0.8, aspect=20 * rows, **options)


def history(analyses: Analyses, names: Sequence[str]) -> Figure:
    """Recorded values over the epochs: a row of panels a run, a line a class or a range of like counts; or where most
    runs have some of these values alone, the panels that have any, one after the other.
    """
    values = {analysis.name: analysis.history.values for analysis in analyses if analysis.history is not None}
    found = [name for name, one in values.items() if any(np.isfinite(one[kind]).any() for kind in names)]
    recorded = [analysis for analysis in analyses if analysis.name in (found or values)]
    names = [name for name in names if any(np.isfinite(one[name]).any() for one in values.values())] or names[:1]
    panels = [(analysis, name) for analysis in recorded for name in names]
    there = [(run, name) for run, name in panels if np.isfinite(values[run.name][name]).any()] or panels[:1]
    figure, axes = grid(len(there), 5.2, 3.3, across=len(names) if len(there) == len(panels) > len(recorded) else 3)
    counts = np.concatenate([analysis.counts[analysis.counts > 0] for analysis in recorded]).astype(float)
    norm = LogNorm(counts.min(), max(counts.max(), counts.min() + 1))
    for axis, (analysis, name) in zip(axes, there, strict=True):
        _history_panel(axis, analysis, name, norm)
    bar = colour_bar(figure, axes, norm, f"training {recorded[0].counted} of the class (log scale)")
    figures.count_ticks(bar.ax.yaxis, counts)
    title = "a line a class" if len(recorded[0].counts) <= figures.POINTS else "means over ranges of like counts"
    figures.heading(figure, f"Over the epochs, on the training set ({title})")
    return figure


def _history_panel(axis: Axes, analysis: Analysis, name: str, norm: LogNorm) -> None:
    assert analysis.history is not None
    values, colours = analysis.history.values[name], COLOURS
    there = np.flatnonzero(analysis.counts > 0)
    for chosen in figures.class_bins(analysis.counts[there].astype(float)):
        count = np.exp(np.log(analysis.counts[there][chosen]).mean())
        part = values[:, there[chosen]]
        known = np.isfinite(part)
        line = np.where(known, part, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)
        axis.plot(analysis.history.epochs, line, color=colours(norm(count)), linewidth=1.2)
    if not np.isfinite(values).any():
        not_applicable(axis)
    elif name in ("attraction", "repulsion") and np.nanmax(values) > 0:
        axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel(HISTORY[name], fontsize=8)
    figures.panel_title(axis, f"{figures.literal(analysis.name)}: {name.replace('_', ' ')}")

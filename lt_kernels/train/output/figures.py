"""Figures as every report draws them: panels, styles of methods, names, curves over the class counts, PNG and SVG."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

Results = Mapping[str, Sequence[Mapping[str, Any]]]
GROUP_LABELS = {
    "many": "many\n(more than 100)",
    "medium": "medium\n(20 to 100)",
    "few": "few\n(fewer than 20)",
    "all": "all classes",
    "gm": "all classes,\ngeometric mean",
    "miou": "mean\nintersection\nover union",
    "macc": "mean pixel\naccuracy",
}
MARKERS = "oD^vP*Xh<>p"  # and a square for cross-entropy
# "Muted" of Paul Tol's colour schemes (SRON/EPS/TN/09-002): told apart with any colour vision. Lines take the first
# SERIES of them, which stand out from white, and so do once the page's dark scheme inverts them.
INDIGO, ROSE, GREEN, WINE, PURPLE, OLIVE = "#332288", "#cc6677", "#117733", "#882255", "#aa4499", "#999933"
MUTED = (INDIGO, ROSE, GREEN, WINE, PURPLE, OLIVE, "#44aa99", "#88ccee", "#ddcc77", "#bbbbbb")
SERIES = 6
# Up to this many classes each is a point; beyond, classes of like counts are averaged.
POINTS = 40
BINS = 12
TICKS = 4  # labels of an axis of class counts, where they are not powers of ten
LONGEST = 48  # characters of a name
ROWS, ROW = 3, 0.21  # of a legend: how many a figure has room for, and the inches of one
LETTER = 0.58  # width of a character of a title, in sizes of its letters
EDGE = 1.2  # inches of a figure that panels leave to a colour bar
HATCHES = ("", "///", "...", "xxx")  # of bars whose colour is there once, twice, ...


def canvas(width: float, height: float, panels: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of these inches with `panels` panels in each of `rows` rows."""
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, panels, index + 1) for index in range(rows * panels)]
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def literal(name: str) -> str:
    """A name as a picture shows it: dollar signs begin no mathematics, an underscore keeps it from no legend, and
    a long one is cut.
    """
    short = name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."
    return (" " + short if short.startswith("_") else short).replace("$", "\\$")


def heading(figure: Figure, text: str, size: float = 11) -> None:
    """Write a title above the figure, its lines broken where the figure ends."""
    longest = int(72 * figure.get_figwidth() / (LETTER * size))
    lines = [textwrap.fill(line, longest, break_long_words=False) for line in text.splitlines()]
    figure.suptitle("\n".join(lines), fontsize=size)


def panel_title(axis: Axes, text: str, size: float = 10) -> None:
    """Write a title above a panel, a long one in smaller letters, so that it does not reach into the next."""
    figure, place = axis.get_figure(), axis.get_subplotspec()
    assert figure is not None
    assert place is not None
    room = 72 * (figure.get_figwidth() - EDGE) / place.get_gridspec().ncols
    axis.set_title(text, fontsize=min(size, room / (LETTER * max(1, len(text)))))


def png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def svg(figure: Figure, key: str, says: str) -> str:
    """The figure as an <svg> element of a page, without a background, its text as text; the same bytes each time.

    `key` stands before each id, so that pictures with other keys have other ids; `says` is read to those who do not see
    it. Colours are for white paper: the style sheet inverts them for the dark scheme.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    tag, inside = text[text.index("<svg") :].split(">", 1)
    inside = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{key}-", inside)
    inside = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", inside)
    box, width = re.findall(r'viewBox="[^"]*"', tag)[0], round(72 * figure.get_figwidth())
    return f'<svg {box} style="--width: {width}px" role="img" aria-label="{html.escape(says)}">{inside}'


def method_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method; cross-entropy is black and dashed: the rest is read against it."""
    names = [method for method in methods if method != "ce"]
    styles = {
        name: {"color": MUTED[index % SERIES], "marker": MARKERS[index % len(MARKERS)], "linestyle": "-"}
        for index, name in enumerate(names)
    }
    return {**styles, "ce": {"color": "black", "marker": "s", "linestyle": "--"}}


def bar_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and pattern of each method's bars and areas, which have no marker: no two of `SERIES * 4` look alike."""
    styles = method_styles(methods)
    names = [method for method in methods if method != "ce"]
    hatches = {name: HATCHES[index // SERIES % len(HATCHES)] for index, name in enumerate(names)}
    return {name: {"color": styles[name]["color"], "hatch": hatches.get(name, "")} for name in styles}


def legend_below(figure: Figure, axis: Axes) -> None:
    """What an axis shows, named below the figure in as many columns as fit; it grows with the rows."""
    handles, labels = axis.get_legend_handles_labels()
    fitting = int(13 * figure.get_figwidth() / (5 + max(map(len, labels), default=0)))
    columns = max(1, min(fitting, len(labels)))
    figure.set_figheight(figure.get_figheight() + ROW * max(0, -(-len(labels) // columns) - ROWS))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=columns)


def class_colours(classes: int) -> np.ndarray:
    """A colour a class, [C, 3]."""
    if classes <= len(MUTED):
        return np.array([to_rgb(colour) for colour in MUTED[:classes]])
    return matplotlib.colormaps["viridis"](np.linspace(0, 1, classes))[:, :3]


def class_legend(figure: Figure, axis: Axes, counts: np.ndarray, colours: np.ndarray) -> None:
    """Name the classes to the right of the figure, by descending count, where they are few."""
    if len(counts) > POINTS:
        return
    order = np.argsort(-counts, kind="stable")
    points = [axis.plot([], [], "o", color=colours[index], label=f"{index} ({counts[index]:,})")[0] for index in order]
    style = {"frameon": False, "title": "class (training samples)", "ncols": 1 + len(counts) // 20}
    figure.legend(handles=points, loc="outside right center", **style)


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values that are there; NaN, without a warning, where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def class_curve(counts: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (class count, accuracy): each class where they are few, else means over up to `BINS` ranges equal on the
    log axis.
    """
    known = np.isfinite(accuracy) & (counts > 0)
    counts, accuracy = counts[known], accuracy[known]
    if len(counts) <= POINTS:
        order = np.argsort(counts, kind="stable")
        return counts[order], accuracy[order]
    bins = class_bins(counts)
    middle = [np.exp(np.log(counts[bin_]).mean()) for bin_ in bins]
    return np.array(middle), np.array([accuracy[bin_].mean() for bin_ in bins])


def count_ticks(axis: Axis, counts: np.ndarray) -> None:
    """Label a log axis of class counts at the powers of ten, or at some counts where fewer than two of those are among
    them.
    """
    low, high = float(counts.min()), float(counts.max())
    if np.floor(np.log10(high)) - np.ceil(np.log10(low)) < 1:
        number = 1 + min(TICKS - 1, int(TICKS * np.log10(high / low)))
        axis.set_ticks(np.unique(np.geomspace(low, high, number).round()))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def class_bins(counts: np.ndarray) -> list[np.ndarray]:
    """The classes in ranges of like counts, from the rarest: each its own where they are few, else up to `BINS` ranges
    equal on the log axis; counts [C] above 0.
    """
    if len(counts) <= POINTS:
        return [np.array([index]) for index in np.argsort(counts, kind="stable")]
    edges = np.geomspace(counts.min(), counts.max() * (1 + 1e-9), BINS + 1)
    bins = np.clip(np.searchsorted(edges, counts, side="right") - 1, 0, BINS - 1)
    return [np.flatnonzero(bins == index) for index in range(BINS) if np.any(bins == index)]


def accuracy_by_count(results: Results, remark: str = " (mean over seeds)") -> Figure:
    """Class-wise accuracy against the class's number of training samples, mean over seeds."""
    figure, (axis,) = canvas(5, 4.4)
    styles = method_styles(list(results))
    counts, counted = np.ones(0), "samples"
    for method, runs in results.items():
        counted = runs[0].get("units", {}).get("counts", counted)
        counts = np.array(runs[0]["class_counts"], dtype=float)
        accuracy = np.mean([run["per_class"] for run in runs], axis=0)
        label = literal(method)
        axis.plot(*class_curve(counts, accuracy), label=label, markersize=5, linewidth=1.4, **styles[method])
    axis.set_xscale("log")
    count_ticks(axis.xaxis, counts[counts > 0])
    axis.set_ylim(-2, 102)
    axis.set_xlabel(f"training {counted} of the class (log scale)")
    axis.set_ylabel("accuracy of the class [%]")
    what = "each class" if len(counts) <= POINTS else f"{len(counts):,} classes, in ranges of like counts,"
    axis.set_title(f"Accuracy of {what}\nby the number of training {counted}{remark}", fontsize=10)
    legend_below(figure, axis)
    return figure

"""The report's pictures where there are too many methods for bars and curves: a row a method, the best above."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from lt_kernels.train.compare.plots import Rows
from lt_kernels.train.compare.tables import Summary, columns
from lt_kernels.train.output.figures import GROUP_LABELS, Results, canvas, class_bins, encoded, literal

MANY = 16  # methods, from which on these are drawn
LEADING = 8  # methods whose training is drawn then, beside cross-entropy


def group_points(summaries: Sequence[Summary], grouped: str = "samples") -> bytes:
    """Accuracy of each group, a panel each: a point a method, with the spread over seeds, against cross-entropy."""
    ranked = sorted(summaries, key=lambda summary: summary.values["all"].mean)
    names, places = columns(summaries), np.arange(len(ranked))
    figure, panels = canvas(2.0 + 2.1 * len(names), 1.4 + 0.19 * len(ranked), panels=len(names))
    plain = next((summary for summary in ranked if summary.method == "ce"), None)
    for name, axis in zip(names, panels):
        values = [summary.values[name] for summary in ranked]
        _points(axis, np.array([value.mean for value in values]), [value.deviation or 0.0 for value in values])
        if plain is not None:
            axis.axvline(plain.values[name].mean, color="black", linestyle="--", linewidth=1)
        axis.set_ylim(-0.6, len(ranked) - 0.4)
        axis.set_yticks(
            places, [literal(summary.method) for summary in ranked] if axis is panels[0] else [], fontsize=8
        )
        axis.set_title(GROUP_LABELS[name], fontsize=9)
    panels[len(names) // 2].set_xlabel("accuracy on the test set [%]; a triangle: further to the left")
    figure.suptitle(
        f"Accuracy per group of classes, by their training {grouped}\n"
        "(mean over seeds; bars: sample standard deviation; dashed: cross-entropy)",
        fontsize=11,
    )
    return encoded(figure)


def _points(axis: Axes, mean: np.ndarray, errors: Sequence[float]) -> None:
    """A point a row; those far below the rest are marked at the edge, so that the rest can be told apart."""
    low, middle = np.percentile(mean, [25, 50])
    edge = float(low - 4 * max(middle - low, 1.0))
    far, places = mean < edge, np.arange(len(mean))
    spread = np.where(far, np.nan, errors)
    axis.errorbar(np.where(far, np.nan, mean), places, xerr=spread, fmt="o", markersize=4, elinewidth=1, ecolor="0.6")
    if far.any():
        left = float(min(mean[~far] - spread[~far])) - 1
        axis.plot(np.full(int(far.sum()), left), places[far], "<", color="C3", markersize=6)


def class_table(results: Results) -> bytes:
    """Class-wise accuracy, mean over seeds: a row a method, a column a class or a range of like counts."""
    counts = np.array(next(iter(results.values()))[0]["class_counts"], dtype=float)
    counted = next(iter(results.values()))[0].get("units", {}).get("counts", "samples")
    bins = class_bins(np.maximum(counts, 1))[::-1]
    each = {method: np.mean([run["per_class"] for run in runs], axis=0) for method, runs in results.items()}
    ranked = sorted(each, key=lambda method: -float(np.nanmean(each[method])))
    table = np.array([[np.nanmean(each[method][chosen]) for chosen in bins] for method in ranked])
    figure, (axis,) = canvas(3.4 + 0.5 * len(bins), 1.6 + 0.19 * len(ranked))
    shown = axis.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    axis.grid(visible=False)
    axis.set_yticks(np.arange(len(ranked)), [literal(name) for name in ranked], fontsize=8)
    labels = [f"{np.exp(np.log(np.maximum(counts[chosen], 1)).mean()):.0f}" for chosen in bins]
    axis.set_xticks(np.arange(len(bins)), labels, fontsize=8)
    axis.set_xlabel(f"training {counted} of the class" + (", ranges of like counts" if len(bins) < len(counts) else ""))
    figure.colorbar(shown, ax=axis, label="accuracy of the class [%]")
    axis.set_title("Accuracy of each class (mean over seeds), methods by their mean", fontsize=11)
    return encoded(figure)


def leading(rows: Rows, results: Results) -> Rows:
    """The training of the methods with the highest accuracy of all classes, and of cross-entropy."""
    mean = {method: np.mean([run["accuracy"]["all"] for run in runs]) for method, runs in results.items()}
    best = sorted(mean, key=lambda method: -float(mean[method]))[:LEADING]
    return {method: curves for method, curves in rows.items() if method in best or method == "ce"}

"""The report's pictures: a row a method where methods are compared, curves over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lt_kernels.train.compare.pairs import Pair
from lt_kernels.train.compare.tables import Summary
from lt_kernels.train.output.figures import (
    GROUP_LABELS,
    Results,
    canvas,
    class_bins,
    legend_below,
    literal,
    mean_of_known,
    method_styles,
)

Rows = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]
MANY = 16  # methods, from which on classes are shown as a table of colours, and not every method's training is drawn
LEADING = 8  # methods whose training is drawn then, beside cross-entropy


def _rows(names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with a row for each name, the first one at the bottom."""
    figure, (axis,) = canvas(4.8, 1.3 + 0.24 * len(names))
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.set_yticks(np.arange(len(names)), [literal(name) for name in names], fontsize=9)
    return figure, axis


def group_points(summaries: Sequence[Summary], name: str, grouped: str = "samples") -> Figure:
    """Accuracy of a group: a row a method, the best of all classes above, with the spread over seeds."""
    ranked = sorted(summaries, key=lambda summary: summary.values["all"].mean)
    figure, axis = _rows([summary.method for summary in ranked])
    values = [summary.values[name] for summary in ranked]
    styles = method_styles([summary.method for summary in summaries])
    points = _points(axis, np.array([value.mean for value in values]), [value.deviation or 0.0 for value in values],
                     [styles[summary.method] for summary in ranked])  # fmt: skip
    plain = next((summary for summary in ranked if summary.method == "ce"), None)
    if plain is not None:
        axis.axvline(plain.values[name].mean, color="black", linestyle="--", linewidth=1)
    axis.set_xlabel("accuracy [%]" + points, fontsize=9)
    label = " ".join(GROUP_LABELS[name].split())
    axis.set_title(label.replace(")", f" training {grouped})"), fontsize=10)
    return figure


def _points(axis: Axes, mean: np.ndarray, errors: Sequence[float], styles: Sequence[Mapping[str, str]]) -> str:
    """A point a row; those far below the rest are marked at the edge, so that the rest can be told apart.

    Return what to say of such marks.
    """
    low, middle = np.percentile(mean, [25, 50])
    edge = float(low - 4 * max(middle - low, 1.0))
    far = mean < edge
    left = float(min((mean - errors)[~far])) - 1
    for place, (value, error, style) in enumerate(zip(mean, errors, styles, strict=True)):
        if far[place]:
            axis.plot(left, place, "<", color=style["color"], markersize=6)
        else:
            look = {"color": style["color"], "marker": style["marker"], "markersize": 5, "elinewidth": 1.4}
            axis.errorbar(value, place, xerr=error, **look)
    return "; a triangle: further to the left" if far.any() else ""


def differences(pairs: Sequence[Pair]) -> Figure:
    """What each method gains on the one that it builds on, with the interval of the mean: a row a method."""
    figure, axis = _rows([f"{pair.method} - {pair.beside}" for pair in reversed(pairs)])
    for place, pair in enumerate(reversed(pairs)):
        low, high = pair.interval()
        axis.plot([low, high], [place, place], color="0.35", linewidth=1.6)
        axis.plot(pair.difference.mean, place, "o", color="black", markersize=6)
    axis.axvline(0, color="black", linestyle="--", linewidth=1)
    axis.set_xlabel("difference of mean class accuracy [points]", fontsize=9)
    return figure


def _mean_curve(runs: Sequence[Sequence[Mapping[str, float]]], name: str) -> tuple[list[float], np.ndarray]:
    """Epochs at which every run has a value, and the mean over runs."""
    tables = [{row["epoch"]: row[name] for row in rows if name in row} for rows in runs]
    epochs = sorted(set.intersection(*(set(table) for table in tables)))
    return epochs, np.array([[table[epoch] for epoch in epochs] for table in tables]).mean(axis=0)


def training_curve(rows: Rows, name: str) -> Figure:
    """The training "loss" or the mean accuracy of "all" classes against the epoch, mean over seeds."""
    figure, (axis,) = canvas(5, 4.2)
    styles = method_styles(list(rows))
    for method, runs in rows.items():
        style = styles[method] if len(runs[0]) <= 20 else {**styles[method], "marker": ""}
        axis.plot(*_mean_curve(runs, name), label=literal(method), linewidth=1.3, markersize=4, **style)
    axis.set_xlabel("epoch")
    if name == "loss":
        _loss_axis(axis, min(row["loss"] for runs in rows.values() for run in runs for row in run))
    else:
        axis.set_title("Mean class accuracy", fontsize=10)
        axis.set_ylabel("accuracy [%]")
    legend_below(figure, axis)
    return figure


def _loss_axis(axis: Axes, lowest: float) -> None:
    axis.set_title("Training loss (each method its own: compare shapes)", fontsize=10)
    if lowest > 0:
        axis.set_yscale("log")
        axis.set_ylabel("loss per sample, without regularizer\n[nats, log scale]")
    else:  # an entropy among the terms may make a loss negative
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_ylabel("loss per sample, without regularizer\n[nats, log scale, linear below 0.01]")


def class_table(results: Results) -> Figure:
    """Class-wise accuracy, mean over seeds: a row a method, a column a class or a range of like counts."""
    counts = np.array(next(iter(results.values()))[0]["class_counts"], dtype=float)
    counted = next(iter(results.values()))[0].get("units", {}).get("counts", "samples")
    bins = class_bins(np.maximum(counts, 1))[::-1]
    each = {method: np.mean([run["per_class"] for run in runs], axis=0) for method, runs in results.items()}
    ranked = sorted(each, key=lambda method: -mean_of_known(each[method]))
    table = np.array([[mean_of_known(each[method][chosen]) for chosen in bins] for method in ranked])
    figure, (axis,) = canvas(3.4 + 0.5 * len(bins), 1.6 + 0.19 * len(ranked))
    shown = axis.imshow(table, aspect="auto", cmap="viridis", vmin=0, vmax=100)
    axis.grid(visible=False)
    axis.set_yticks(np.arange(len(ranked)), [literal(name) for name in ranked], fontsize=8)
    labels = [f"{np.exp(np.log(np.maximum(counts[chosen], 1)).mean()):.0f}" for chosen in bins]
    axis.set_xticks(np.arange(len(bins)), labels, fontsize=8)
    axis.set_xlabel(f"training {counted} of the class" + (", ranges of like counts" if len(bins) < len(counts) else ""))
    figure.colorbar(shown, ax=axis, label="accuracy of the class [%]")
    axis.set_title("Accuracy of each class (mean over seeds), methods by their mean", fontsize=11)
    return figure


def leading(rows: Rows, results: Results) -> Rows:
    """The training of the methods with the highest accuracy of all classes, and of cross-entropy."""
    mean = {method: np.mean([run["accuracy"]["all"] for run in runs]) for method, runs in results.items()}
    best = sorted(mean, key=lambda method: -float(mean[method]))[:LEADING]
    return {method: curves for method, curves in rows.items() if method in best or method == "ce"}

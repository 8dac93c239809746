"""The report's pictures, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lt_kernels.train.compare.tables import Summary, columns
from lt_kernels.train.output.figures import (
    GROUP_LABELS,
    canvas,
    encoded,
    literal,
    method_styles,
    side_legend,
)

Rows = Mapping[str, Sequence[Sequence[Mapping[str, float]]]]


def group_bars(summaries: Sequence[Summary], grouped: str = "samples") -> bytes:
    """Accuracy of each group by method, with the spread over seeds as error bars; `grouped`: what is counted."""
    figure, (axis,) = canvas(10, 4.2)
    styles, names = method_styles([summary.method for summary in summaries]), columns(summaries)
    width = 0.84 / len(summaries)
    for index, summary in enumerate(summaries):
        left = np.arange(len(names)) - 0.42 + (index + 0.5) * width
        values = [summary.values[name] for name in names]
        errors = [value.deviation or 0.0 for value in values]
        axis.bar(
            left,
            [value.mean for value in values],
            width * 0.92,
            yerr=errors,
            label=literal(summary.method),
            color=styles[summary.method]["color"],
            error_kw={"elinewidth": 1, "ecolor": "0.45"},
        )
    axis.set_xticks(np.arange(len(names)), [GROUP_LABELS[name] for name in names])
    shown = [summary.values[name] for summary in summaries for name in names]
    highest = max(value.mean + (value.deviation or 0) for value in shown)
    axis.set_ylim(0, min(100, 1.1 * highest + 1))
    axis.set_xlabel(f"classes, by their number of training {grouped}")
    axis.set_ylabel("accuracy on the test set [%]")
    axis.set_title("Accuracy per group of classes (mean over seeds; bars: sample standard deviation)", fontsize=11)
    side_legend(figure, axis)
    return encoded(figure)


def _mean_curve(runs: Sequence[Sequence[Mapping[str, float]]], name: str) -> tuple[list[float], np.ndarray]:
    """Epochs at which every run has a value, and the mean over runs."""
    tables = [{row["epoch"]: row[name] for row in rows if name in row} for rows in runs]
    epochs = sorted(set.intersection(*(set(table) for table in tables)))
    return epochs, np.array([[table[epoch] for epoch in epochs] for table in tables]).mean(axis=0)


def training_curves(rows: Rows) -> bytes:
    """Training loss and mean class accuracy against the epoch, mean over seeds."""
    figure, (left, right) = canvas(12, 4.4, panels=2)
    styles = method_styles(list(rows))
    for method, runs in rows.items():
        style = {key: value for key, value in styles[method].items() if key != "marker"}
        mark = {"marker": styles[method]["marker"]} if len(runs[0]) <= 20 else {}
        label = literal(method)
        left.plot(*_mean_curve(runs, "loss"), label=label, linewidth=1.3, markersize=4, **style, **mark)
        right.plot(*_mean_curve(runs, "all"), label=label, linewidth=1.3, markersize=4, **style, **mark)
    lowest = min(row["loss"] for runs in rows.values() for run in runs for row in run)
    if lowest > 0:
        left.set_yscale("log")
        left.set_ylabel("loss per sample, without regularizer [nats, log scale]")
    else:  # an entropy among the terms may make a loss negative
        left.set_yscale("symlog", linthresh=0.01)
        left.set_ylabel("loss per sample, without regularizer\n[nats, log scale, linear below 0.01]")
    left.set_title("Training loss (each method its own: compare shapes, not heights)", fontsize=10)
    right.set_title("Mean class accuracy", fontsize=10)
    right.set_ylabel("accuracy [%]")
    for axis in (left, right):
        axis.set_xlabel("epoch")
    side_legend(figure, left)
    return encoded(figure)

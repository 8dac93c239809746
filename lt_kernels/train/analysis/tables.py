"""The numbers behind each picture of the analyses, as CSV: one table a picture, the run's name first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lt_kernels.train.analysis.measures import Analysis, Matrix
from lt_kernels.train.analysis.plots_samples import quartiles
from lt_kernels.train.output.cells import csv_text

Rows = Iterator[Sequence[Any]]
OF_CLASS = ("run", "class", "name", "training_samples")


def as_csv(head: Sequence[str], rows: Rows) -> str:
    """A table; what is not a number is left empty."""
    return csv_text([head, *([_cell(value) for value in row] for row in rows)])


def _cell(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return "" if isinstance(value, float) and value != value else value


def by_class(analyses: Sequence[Analysis], columns: Callable[[Analysis], dict[str, Any]]) -> str:
    """A row a class, by descending count; `columns` gives the values [C] by name, of the first run all names."""
    names = list(dict.fromkeys(name for analysis in analyses for name in columns(analysis)))

    def rows() -> Rows:
        for analysis in analyses:
            by_name = columns(analysis)
            nothing = np.full(len(analysis.counts), np.nan)
            parts = [by_name.get(name, nothing) for name in names]
            for index in analysis.order:
                first = [analysis.name, index, analysis.class_names[index], analysis.counts[index]]
                yield [*first, *(part[index] for part in parts)]

    return as_csv([*OF_CLASS, *names], rows())


def matrix(analyses: Sequence[Analysis], chosen: Callable[[Analysis], Matrix]) -> str:
    """A row a cell: ranks of the classes (by descending count, from 1) from first to last, and the mean."""

    def rows() -> Rows:
        for analysis in analyses:
            blocks = chosen(analysis)
            first, last = blocks.starts[:-1] + 1, blocks.starts[1:]
            for row, column in np.ndindex(*blocks.values.shape):
                ends = (first[row], last[row], first[column], last[column])
                yield [analysis.name, *ends, blocks.values[row, column]]

    return as_csv(["run", "row_first", "row_last", "column_first", "column_last", "mean"], rows())


def false_positives(analyses: Sequence[Analysis]) -> str:
    """False positives of each class, and of all classes up to it."""

    def columns(analysis: Analysis) -> dict[str, Any]:
        cumulative = np.empty_like(analysis.cumulative)
        cumulative[analysis.order] = analysis.cumulative
        return {"false_positives": analysis.false_positives, "cumulative": cumulative}

    return by_class(analyses, columns)


def components(analyses: Sequence[Analysis]) -> str:
    """Attraction and repulsion of each class; a run that has none is left empty."""
    return by_class(analyses, lambda a: {} if isinstance(a.components, str) else a.components)


def angles(analyses: Sequence[Analysis]) -> str:
    """Quartiles in degrees, of each class or group."""

    def rows() -> Rows:
        for analysis in analyses:
            for kind in analysis.angles:
                for label, samples, values in quartiles(analysis, kind):
                    yield [analysis.name, kind, label.replace("\n", ", "), samples, *values]

    return as_csv(["run", "angle_to", "classes", "test_samples", "quarter", "median", "three_quarters"], rows())


def margins(analyses: Sequence[Analysis]) -> str:
    """The target's logit divided by the scale, at each angle of each class that is drawn."""

    def rows() -> Rows:
        for analysis in analyses:
            if (curves := analysis.margins) is None:
                continue
            for place, index in enumerate(curves.classes):
                first = [analysis.name, index, analysis.class_names[index], analysis.counts[index]]
                for values in zip(curves.angle, curves.easy[place], curves.hard[place], strict=True):
                    yield [*first, *values]

    return as_csv([*OF_CLASS, "angle", "easy", "hard"], rows())


def logits(analyses: Sequence[Analysis]) -> str:
    """Densities by group, sign and bin."""

    def rows() -> Rows:
        for analysis in analyses:
            edges = analysis.histogram.edges
            for (group, sign), density in analysis.histogram.densities.items():
                for low, high, value in zip(edges, edges[1:], density):
                    yield [analysis.name, group, sign, low, high, value]

    return as_csv(["run", "group", "sign", "from", "to", "density"], rows())


def calibration(analyses: Sequence[Analysis]) -> str:
    """Bins of confidence."""
    rows = ([analysis.name, *row] for analysis in analyses for row in analysis.calibration)
    return as_csv(["run", "confidence_above", "samples", "mean_confidence", "accuracy"], rows)


def separability(analyses: Sequence[Analysis]) -> str:
    """Each class that was looked at."""

    def columns(analysis: Analysis) -> dict[str, Any]:
        values = np.full(len(analysis.counts), np.nan)
        values[analysis.separated] = analysis.separability
        return {"separability": values}

    return by_class(analyses, columns)


def summary(analyses: Sequence[Analysis]) -> str:
    """A row a run."""
    names = list(analyses[0].summary)
    rows = ([analysis.name, *(analysis.summary.get(name, np.nan) for name in names)] for analysis in analyses)
    return as_csv(["run", *names], rows)


def history(analyses: Sequence[Analysis], names: Sequence[str]) -> str:
    """A row an epoch and class, classes by descending count."""

    def rows() -> Rows:
        for analysis in analyses:
            if analysis.history is None:
                continue
            for place, epoch in enumerate(analysis.history.epochs):
                for index in analysis.order:
                    values = [analysis.history.values[name][place, index] for name in names]
                    yield [analysis.name, epoch, index, *values]

    return as_csv(["run", "epoch", "class", *names], rows())

"""The numbers behind each picture of the analyses, as CSV: one table a picture, the run's name first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lt_kernels.train.analysis.measures import BIAS, Analysis, Matrix
from lt_kernels.train.analysis.plots_samples import CLASSES, angle_sets, mean_and_quartiles
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


def offsets(analyses: Sequence[Analysis]) -> str:
    """The offset of each class by each kind of mean, and what the bias subtracts."""

    def columns(analysis: Analysis) -> dict[str, Any]:
        return {"minus bias" if name == BIAS else f"of {name}": value for name, value in analysis.offsets.items()}

    return by_class(analyses, columns)


def components(analyses: Sequence[Analysis]) -> str:
    """Attraction and repulsion of each class; a run that has none is left empty."""
    return by_class(analyses, lambda a: {} if isinstance(a.components, str) else a.components)


def angles(analyses: Sequence[Analysis]) -> str:
    """Mean and quartiles in degrees, of each group of classes, and of each class where they are few."""

    def rows() -> Rows:
        for analysis in analyses:
            for kind in analysis.angles:
                for label, values in angle_sets(analysis, kind, CLASSES):
                    yield [analysis.name, kind, label.replace("\n", ", "), len(values), *mean_and_quartiles(values)]

    return as_csv(["run", "angle_to", "classes", "test_samples", "mean", "quarter", "median", "three_quarters"], rows())


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
    """Each class that was looked at, with the features as they are and with those of length 1."""
    return by_class(
        analyses,
        lambda a: {
            "separability": a.of_all(a.separability["raw"]),
            "separability_unit": a.of_all(a.separability["unit"]),
        },
    )


def boundaries(analyses: Sequence[Analysis]) -> str:
    """Each class that was looked at; a run whose prediction is another is left empty."""
    return by_class(analyses, lambda a: {} if a.boundaries is None else {"shift": a.of_all(a.boundaries)})


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


def parts(analyses: Sequence[Analysis]) -> str:
    """A row an epoch, class whose weight is moved (the rarest first), and class of the samples that move it."""

    def rows() -> Rows:
        for analysis in analyses:
            recorded = None if analysis.history is None else analysis.history.parts
            if recorded is None:
                continue
            for epoch, values in zip(recorded.epochs, recorded.values, strict=True):
                for column, index in enumerate(recorded.classes):
                    for source, value in enumerate(values[:, column]):
                        yield [analysis.name, epoch, index, source, analysis.counts[source], value]

    return as_csv(["run", "epoch", "class", "source", "source_training_samples", "part"], rows())

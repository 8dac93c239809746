"""The table of a shift in class priors: methods by test sets, as a rich table, Markdown, CSV and a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lt_kernels import doctor
from lt_kernels.data.shift import ShiftedTest
from lt_kernels.system.storage import write_whole
from lt_kernels.system.terminal import shown
from lt_kernels.train.compare.tables import Spread, spread
from lt_kernels.train.output.cells import csv_text, markdown_cell, markdown_table
from lt_kernels.train.published import Figure, figures, fits
from lt_kernels.train.shift.evaluate import Holds, ShiftResult

Published = Mapping[str, Sequence["Figure | None"]]
PRIOR = {False: "as trained", True: "compensated"}


@dataclasses.dataclass(frozen=True)
class ShiftRow:
    """One method, as trained or compensated: percent on each test set, over its seeds."""

    method: str
    holds: Holds
    compensated: bool
    values: list[Spread]


def shift_rows(results: Sequence[ShiftResult]) -> list[ShiftRow]:
    """Return two rows a method, or one where nothing can be compensated, in the methods' first order."""
    by_method: dict[str, list[ShiftResult]] = {}
    for result in results:
        by_method.setdefault(result.name, []).append(result)
    rows = []
    for method, runs in by_method.items():
        rows.append(ShiftRow(method, runs[0].holds, False, _spreads([run.plain for run in runs])))
        moved = [run.compensated for run in runs if run.compensated is not None]
        if moved:
            rows.append(ShiftRow(method, runs[0].holds, True, _spreads(moved)))
    return rows


def _spreads(runs: Sequence[Sequence[float]]) -> list[Spread]:
    return [spread(values) for values in zip(*runs)]


def published_rows(config: Mapping[str, Any], tests: Sequence[ShiftedTest]) -> dict[str, list[Figure | None]]:
    """The published figures on shifted test sets for a run's data and network, by method, one for each test set."""
    found: dict[str, dict[str, Figure]] = {}
    for one in figures():
        if one.measure == "shift" and fits(one, config):
            found.setdefault(one.method, {})[one.note] = one
    return {method: [known.get(test.name) for test in tests] for method, known in found.items()}


def _beside(published: Published) -> list[list[str]]:
    """The cells of the published rows: their methods may be the best of several, and say themselves what they are."""
    lines = []
    for method, row in published.items():
        numbers = ["" if one is None or one.all is None else f"{one.all:.1f}" for one in row]
        lines.append([f"{method} (published)", "", "", *numbers])
    return lines


def _source(published: Published) -> str:
    return "; ".join(dict.fromkeys(one.where() for row in published.values() for one in row if one is not None))


def _headings(tests: Sequence[ShiftedTest]) -> list[str]:
    return ["method", "logits hold", "prior", *(test.name for test in tests)]


def _cells(row: ShiftRow) -> list[str]:
    return [row.method, row.holds, PRIOR[row.compensated], *(value.text() for value in row.values)]


def _marked(rows: Sequence[ShiftRow], before: str, after: str) -> list[list[str]]:
    """The cells, the best mean of each test set between the marks."""
    best = [max(means) for means in zip(*([value.mean for value in row.values] for row in rows))]
    lines = []
    for row in rows:
        first, numbers = _cells(row)[:3], _cells(row)[3:]
        wins = [value.mean == most for value, most in zip(row.values, best)]
        lines.append(first + [f"{before}{cell}{after}" if won else cell for cell, won in zip(numbers, wins)])
    return lines


def shift_table(
    rows: Sequence[ShiftRow], tests: Sequence[ShiftedTest], published: Published, title: str, encoding: str = "utf-8"
) -> Table:
    """For a terminal of this encoding; the best mean of each test set in bold, published rows below."""
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(_headings(tests)):
        table.add_column(heading, justify="left" if index < 3 else "right", no_wrap=True)
    for line in [*_marked(rows, "[bold]", "[/]"), *_beside(published)]:
        table.add_row(*(shown(cell, encoding) for cell in (escape(line[0]), *line[1:])))
    if published:
        table.caption, table.caption_justify = escape(f"published: {_source(published)}"), "left"
    return table


def shift_markdown(rows: Sequence[ShiftRow], tests: Sequence[ShiftedTest], published: Published) -> str:
    """As a Markdown table; the best mean of each test set in bold, published rows and their source below."""
    marked = [*_marked(rows, "**", "**"), *_beside(published)]
    lines = [[markdown_cell(line[0]), *line[1:]] for line in marked]
    table = markdown_table(_headings(tests), lines, left=3)
    return table + (f"\nPublished: {_source(published)}.\n" if published else "")


def shift_csv(rows: Sequence[ShiftRow], tests: Sequence[ShiftedTest], published: Published) -> str:
    """The printed table as CSV: `mean ± spread` cells."""
    return csv_text([_headings(tests), *map(_cells, rows), *_beside(published)])


def shift_runs_csv(results: Sequence[ShiftResult], tests: Sequence[ShiftedTest]) -> str:
    """One row a run, test set and prior, unrounded."""
    lines: list[list[object]] = [["method", "seed", "prior", "test", "samples", "accuracy"]]
    for result in results:
        for compensated, values in ((False, result.plain), (True, result.compensated)):
            for test, value in zip(tests, values or ()):
                about = [result.name, result.config.seed, PRIOR[compensated]]
                lines.append([*about, test.name, len(test.rows), value])
    return csv_text(lines)


def shift_picture(rows: Sequence[ShiftRow], tests: Sequence[ShiftedTest], title: str) -> bytes:
    """Accuracy against the shift, PNG: as trained on the left, compensated on the right."""
    from lt_kernels.train.output.figures import canvas, heading, legend_below, literal, method_styles, png

    figure, panels = canvas(14, 5, panels=2)
    styles = method_styles(list(dict.fromkeys(row.method for row in rows)))
    lowest = min(value.mean - (value.deviation or 0) for row in rows for value in row.values)
    for compensated, axis in zip((False, True), panels):
        for row in (row for row in rows if row.compensated == compensated):
            means, errors = [value.mean for value in row.values], [value.deviation or 0 for value in row.values]
            axis.errorbar(
                range(len(tests)), means, errors, label=literal(row.method), **styles[row.method], markersize=5
            )
        axis.set_xticks(range(len(tests)), [test.name for test in tests], rotation=45, ha="right")
        axis.set_ylim(max(0, lowest - 3), 100)
        axis.set_xlabel("shift of the test set: like the training set (forward), or against it (backward)")
        axis.set_ylabel("accuracy over the test set's samples [%]")
    panels[0].set_title("Logits as trained", fontsize=11)
    panels[1].set_title("Compensated for the test set's class prior", fontsize=11)
    heading(figure, f"{literal(title)} (mean over seeds; bars: sample standard deviation)", 12)
    legend_below(figure, panels[0])
    return png(figure)


def write_shift(
    results: Sequence[ShiftResult], tests: Sequence[ShiftedTest], folder: Path, encoding: str = "utf-8"
) -> Table:
    """Write shift.md, .csv, .json and .png and shift_runs.csv into a folder that is there, and return the table for a
    terminal.
    """
    rows, first = shift_rows(results), results[0].config
    title = f"{first.data}: accuracy on shifted test sets"
    about: dict[str, Any] = {
        "data": first.data,
        "imbalance": first.imbalance,
        "seeds": sorted({result.config.seed for result in results}),
        "test_counts": {test.name: test.counts.tolist() for test in tests},
        "device": doctor.device_name(),
        "commit": doctor.commit(digits=12),
    }
    published = published_rows(first.as_dict(), tests)
    if published:
        numbers = {method: [one and one.all for one in row] for method, row in published.items()}
        about["published"] = {"source": _source(published), "tests": [test.name for test in tests], **numbers}
    write_whole(folder / "shift.md", shift_markdown(rows, tests, published))
    write_whole(folder / "shift.csv", shift_csv(rows, tests, published))
    write_whole(folder / "shift_runs.csv", shift_runs_csv(results, tests))
    write_whole(folder / "shift.json", json.dumps(about, indent=1) + "\n")
    write_whole(folder / "shift.png", shift_picture(rows, tests, title))
    return shift_table(rows, tests, published, f"{title} [%]", encoding)

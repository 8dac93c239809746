"""Runs summed up by method: mean and spread over seeds, as a rich table, Markdown and CSV."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from lt_kernels import doctor
from lt_kernels.system.terminal import shown
from lt_kernels.train.compare.beside import HEADING, cell, footnotes, published_for, sources
from lt_kernels.train.config import judged_on
from lt_kernels.train.methods.variants import title_of
from lt_kernels.train.model.scores import GROUPS
from lt_kernels.train.output.cells import csv_text, markdown_cell, markdown_table
from lt_kernels.train.published import Figure
from lt_kernels.train.values import title

HEADINGS: Mapping[str, str] = {
    "many": "many",
    "medium": "medium",
    "few": "few",
    "all": "all",
    "gm": "GM",
    "miou": "mIoU",
    "macc": "mAcc",
}
TIME = "seconds_per_epoch"


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (divisor n - 1; none from a single value)."""

    mean: float
    deviation: float | None

    def text(self, digits: int = 1) -> str:
        """As `12.3 ± 0.4`."""
        spread = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """One method over its seeds: accuracies in percent by group, seconds per epoch; `title` is what its name means,
    `published` what others found with the same data, imbalance and network.
    """

    method: str
    seeds: int
    values: Mapping[str, Spread]
    title: str
    published: tuple[Figure, ...] = ()


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def summarize_method(method: str, results: Sequence[Mapping[str, Any]]) -> Summary:
    """One method's results, one a seed, summed up; a group that the data set does not have is left out."""
    names = [name for name in GROUPS if all(name in result["accuracy"] for result in results)]
    values = {name: spread([result["accuracy"][name] for result in results]) for name in names}
    values[TIME] = spread([result[TIME] for result in results])
    config = results[0]["config"]
    return Summary(method, len(results), values, title_of(method, config), published_for(method, config))


def best(summaries: Sequence[Summary], name: str) -> str:
    """The method with the highest mean of a column."""
    return max(summaries, key=lambda summary: summary.values[name].mean).method


def columns(summaries: Sequence[Summary]) -> list[str]:
    """The groups that there are."""
    return [name for name in GROUPS if name in summaries[0].values]


def cells(summary: Summary, names: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
    """One row as text, with the published figures where there are footnotes."""
    beside = [cell(summary.published, notes)] if notes else []
    numbers = [summary.values[name].text() for name in names]
    return [summary.method, *numbers, f"{summary.values[TIME].mean:.3g}", *beside]


def headings(names: Sequence[str], notes: Sequence[str] = ()) -> list[str]:
    """The columns' titles."""
    return ["method", *(HEADINGS[name] for name in names), "s/epoch", *([HEADING] if notes else [])]


def notes_of(summaries: Sequence[Summary]) -> list[str]:
    """The sources of the published figures, in the order of their footnotes."""
    return sources([summary.published for summary in summaries])


def rich_table(summaries: Sequence[Summary], title: str, encoding: str = "utf-8") -> Table:
    """For a terminal of this encoding; the best mean of each column in bold."""
    names = columns(summaries)
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    notes = notes_of(summaries)
    for index, heading in enumerate(headings(names, notes)):
        table.add_column(heading, justify="right" if index else "left", no_wrap=True)
    winners = {name: best(summaries, name) for name in names}
    for summary in summaries:
        first, *rest = (escape(shown(cell, encoding)) for cell in cells(summary, names, notes))
        marked = [f"[bold]{text}[/]" if winners[name] == summary.method else text for name, text in zip(names, rest)]
        table.add_row(first, *marked, *rest[len(names) :])
    if notes:
        table.caption, table.caption_justify = escape("\n".join(footnotes(notes))), "left"
    return table


def markdown(summaries: Sequence[Summary]) -> str:
    """As a Markdown table; the best mean of each column in bold, the sources of published figures below."""
    names, notes = columns(summaries), notes_of(summaries)
    winners = {name: best(summaries, name) for name in names}
    lines = []
    for summary in summaries:
        first, *rest = cells(summary, names, notes)
        marked = [f"**{text}**" if winners[name] == summary.method else text for name, text in zip(names, rest)]
        lines.append([markdown_cell(first), *marked, *rest[len(names) :]])
    table = markdown_table(headings(names, notes), lines, left=1)
    return table + (f"\nPublished: {'; '.join(footnotes(notes))}.\n" if notes else "")


def table_csv(summaries: Sequence[Summary]) -> str:
    """The printed table as CSV: `mean ± spread` cells, and beside published figures their sources."""
    names, notes = columns(summaries), notes_of(summaries)
    rows = [headings(names, notes), *(cells(summary, names, notes) for summary in summaries)]
    if notes:
        numbered = dict(zip(notes, footnotes(notes)))
        said = ["; ".join(numbered[note] for note in sources([summary.published])) for summary in summaries]
        rows = [[*row, more] for row, more in zip(rows, ["sources", *said])]
    return csv_text(rows)


def summary_csv(summaries: Sequence[Summary]) -> str:
    """One row a method, unrounded: mean and spread of each column apart."""
    names = [*columns(summaries), TIME]
    parts = [f"{name}_{part}" for name in names for part in ("mean", "spread")]
    rows: list[Sequence[Any]] = [["method", "seeds", *parts]]
    for summary in summaries:
        pairs = [summary.values[name] for name in names]
        rows.append([summary.method, summary.seeds, *(cell for pair in pairs for cell in (pair.mean, pair.deviation))])
    return csv_text(rows)


def runs_csv(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row a run, unrounded."""
    names = [name for name in GROUPS if all(name in run["accuracy"] for runs in results.values() for run in runs)]
    rows: list[Sequence[Any]] = [["method", "seed", *names, TIME, "seconds"]]
    for method, runs in results.items():
        for run in runs:
            accuracies = (run["accuracy"][name] for name in names)
            rows.append([method, run["config"]["seed"], *accuracies, run[TIME], run["seconds"]])
    return csv_text(rows)


def classes_csv(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row a method and class, unrounded: accuracy, and where pixels have classes also intersection over union, in
    percent; means over seeds.
    """
    names = {"per_class": "accuracy", "per_class_iou": "iou"}
    there = [name for name in names if all(name in run for runs in results.values() for run in runs)]
    rows: list[Sequence[Any]] = [["method", "class", "training_count", *(names[name] for name in there)]]
    for method, runs in results.items():
        for label, count in enumerate(runs[0]["class_counts"]):
            means = (statistics.fmean(run[name][label] for run in runs) for name in there)
            rows.append([method, label, count, *means])
    return csv_text(rows)


def training_csv(rows: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> str:
    """One row a method, run (from 0, by seed) and epoch, unrounded: the loss, and where it is known the accuracy."""
    lines: list[Sequence[Any]] = [["method", "run", "epoch", "loss", "all"]]
    for method, runs in rows.items():
        for place, run in enumerate(runs):
            lines += [[method, place, row["epoch"], row["loss"], row.get("all")] for row in run]
    return csv_text(lines)


def evaluated_on(config: Mapping[str, Any]) -> str:
    """What a run's accuracies are of."""
    return "the balanced test set" if judged_on(config) == "test" else "validation samples"


def facts(result: Mapping[str, Any], seeds: int, jobs: int) -> dict[str, str | int]:
    """Where and with what a comparison was made: what its table must say when it leaves the machine."""
    config, counts = result["config"], result["class_counts"]
    units = result.get("units", {"counts": "samples", "groups": "samples"})
    return {
        "data": config["data"],
        "classes": len(counts),
        "class_counts": f"{max(counts)} to {min(counts)}",
        "counted": units["counts"],
        "grouped": units["groups"],
        "training_samples": result["samples"]["train"],
        f"{judged_on(config)}_samples": result["samples"]["test"],
        "network": title(config["network"]),
        "epochs": config["epochs"],
        "seeds": seeds,
        "device": doctor.device_name(),
        "torch": result["torch"],
        "threads_a_run": result["threads"],
        "runs_at_a_time": jobs,
        "commit": doctor.commit(digits=12),
    }

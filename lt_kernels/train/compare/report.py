"""The report of a comparison: its tables, and one HTML page that needs no file beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_kernels.system.storage import write_whole
from lt_kernels.train.analysis.entries import ENTRIES
from lt_kernels.train.compare import plots, plots_many, tables
from lt_kernels.train.compare.beside import as_facts, footnotes
from lt_kernels.train.compare.jobs import Job
from lt_kernels.train.compare.pairs import HEADINGS, Pair, paired, pairs_csv
from lt_kernels.train.compare.tables import Summary, best, cells, columns, headings, notes_of
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.output import figures
from lt_kernels.train.output.pages import STYLE, html_figure, html_table


def write_report(
    jobs: Sequence[Job], results: Mapping[str, list[dict[str, Any]]], folder: Path, settings: str, workers: int
) -> list[Summary]:
    """Write table.csv, .md and .json, summary.csv, runs.csv, pairs.csv and report.html; return the summaries."""
    summaries = [tables.summarize_method(method, runs) for method, runs in results.items()]
    rows = {method: [read_rows(job.folder) for job in jobs if job.name == method] for method in results}
    published = as_facts({summary.method: summary.published for summary in summaries})
    about = tables.facts(next(iter(results.values()))[0], summaries[0].seeds, workers)
    analyses = [folder / "analysis", *(job.folder / "analysis" for job in jobs)]
    title = f"{jobs[0].config.data}: {len(results)} methods, {summaries[0].seeds} seed(s)"
    pages = {
        "table.csv": tables.table_csv(summaries),
        "table.json": json.dumps({**about, **published}, indent=1) + "\n",
        "summary.csv": tables.summary_csv(summaries),
        "table.md": tables.markdown(summaries),
        "runs.csv": tables.runs_csv(results),
        "pairs.csv": pairs_csv(paired(results)),
        "report.html": render(summaries, results, rows, settings, about, title, analyses),
    }
    if all("per_class_iou" in run for runs in results.values() for run in runs):
        pages["classes.csv"] = tables.classes_csv(results)
    for name, text in pages.items():
        write_whole(folder / name, text)
    return summaries


def _finding(summaries: Sequence[Summary]) -> str:
    """The best method, and by how much it differs from plain cross-entropy."""
    winner = next(summary for summary in summaries if summary.method == best(summaries, "all"))
    title, accuracy = winner.title, winner.values["all"].text()
    sentence = f"Highest mean class accuracy: {winner.method} ({title}), {accuracy} %."
    plain = next((summary for summary in summaries if summary.method == "ce"), None)
    if plain is None or winner is plain:
        return sentence
    gain = winner.values["all"].mean - plain.values["all"].mean
    deviations = [summary.values["all"].deviation for summary in (winner, plain)]
    known = [value for value in deviations if value is not None]
    compared = f"; the larger of the two spreads over seeds is {max(known):.1f}" if known else ""
    return f"{sentence} That is {gain:.1f} points above plain cross-entropy{compared}."


def _facts(about: Mapping[str, Any]) -> str:
    part = "test" if "test_samples" in about else "validation"
    return (
        "{data}: {classes} classes with {class_counts} training {counted} each, {training_samples} training and "
        f"{about[f'{part}_samples']} {part} samples. "
        "Network {network}, {epochs} epochs. All methods have the same network, optimizer "
        "and split, and for a seed the same initial network and, unless the method draws its own, order of samples; "
        "seeds change the last two. "
        "Accuracies are those after the last epoch. Run on {device}, torch {torch}, {threads_a_run} thread(s) a run, "
        "{runs_at_a_time} run(s) at a time, commit {commit}."
    ).format_map(about)


def render(
    summaries: Sequence[Summary],
    results: figures.Results,
    rows: plots.Rows,
    settings: str,
    about: Mapping[str, Any],
    title: str,
    analyses: Sequence[Path] = (),
) -> str:
    """The report's HTML: the table, three pictures, the analyses in these folders (of those that there are), the runs
    and the settings.
    """
    names, notes = columns(summaries), notes_of(summaries)
    lines = [cells(summary, names, notes) for summary in summaries]
    marked = {
        (line, place + 1): True
        for place, name in enumerate(names)
        for line, summary in enumerate(summaries)
        if summary.method == best(summaries, name)
    }
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>",
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(_facts(about))}</p><p><b>{html.escape(_finding(summaries))}</b></p>",
        f"<h2>Accuracy on {tables.evaluated_on(next(iter(results.values()))[0]['config'])}, in percent</h2>",
        html_table(headings(names, notes), lines, marked),
        _reading(summaries, str(about["grouped"])),
        _published(notes),
        *_pairs(paired(results)),
        *_pictures(summaries, results, rows, str(about["grouped"])),
        *_analyses(analyses),
        "<h2>Every run</h2>" + _runs(results, names),
        f"<h2>Settings</h2><pre>{html.escape(settings)}</pre></body></html>",
    ]
    return "\n".join(parts)


def _reading(summaries: Sequence[Summary], grouped: str) -> str:
    seeds = max(summary.seeds for summary in summaries)
    text = (
        f"Mean ± sample standard deviation over {seeds} seed(s); the best mean of a column in bold. many: classes "
        f"with more than 100 training {grouped}; medium: 20 to 100; few: below 20; all: mean of all class accuracies; "
        "GM: geometric mean of all class accuracies, zero counting as 0.1 %. s/epoch: median over epochs, "
        "training only."
    )
    if "miou" in columns(summaries):
        text += " mIoU: mean over the classes of intersection over union; mAcc: mean pixel accuracy of the classes."
    titles = "; ".join(f"{summary.method}: {summary.title}" for summary in summaries)
    return f"<p>{html.escape(text)}</p><p>Methods: {html.escape(titles)}.</p>"


def _published(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    text = (
        "Published: over all classes (many, medium, few), with the same data, imbalance and network; what else differs "
        "the recipe of the figure says (lt-kernels recipes --published). "
    )
    return f"<p>{html.escape(text + '; '.join(footnotes(notes)))}.</p>"


def _pairs(pairs: Sequence[Pair]) -> list[str]:
    """What each method gains on the one that it builds on, seed by seed."""
    if not pairs or pairs[0].seeds < 2:
        return []
    text = (
        "Mean ± sample standard deviation of the difference in mean class accuracy, in points; for a seed both start "
        "from the same network. A difference that is small beside its deviation, or that has not one sign over the "
        "seeds, may be chance."
    )
    head = "<h2>Each method beside the one that it builds on, seed by seed</h2>"
    return [head, html_table(HEADINGS, [pair.cells() for pair in pairs], {}), f"<p>{text}</p>"]


def coinciding(results: figures.Results) -> str:
    """Which methods have the same accuracies in every class and run, so that their curves lie on one another."""
    groups: dict[str, list[str]] = {}
    for method, runs in results.items():
        groups.setdefault(repr([run["per_class"] for run in runs]), []).append(method)
    same = [" = ".join(methods) for methods in groups.values() if len(methods) > 1]
    return f" Curves that coincide: {'; '.join(same)}." if same else ""


def _pictures(summaries: Sequence[Summary], results: figures.Results, rows: plots.Rows, grouped: str) -> list[str]:
    same, many = coinciding(results), len(summaries) > plots_many.MANY
    drawn = plots_many.leading(rows, results) if many else rows
    groups = plots_many.group_points(summaries, grouped) if many else plots.group_bars(summaries, grouped)
    classes = plots_many.class_table(results) if many else figures.accuracy_by_count(results)
    who = f" The {plots_many.LEADING} methods with the highest mean, and cross-entropy." if many else ""
    dashed = "" if many else "; cross-entropy is dashed"
    return [
        "<h2>Groups of classes</h2>",
        html_figure(groups, "Accuracy per group", "A group that the data set does not have is left out."),
        "<h2>Classes by their count in training</h2>",
        html_figure(classes, "Accuracy against class count", f"Mean over seeds{dashed}.{same}"),
        "<h2>Training</h2>",
        html_figure(
            plots.training_curves(drawn),
            "Training curves",
            f"Mean over seeds, by epoch; cross-entropy is dashed.{who}{'' if many else same}",
        ),
    ]


def _analyses(folders: Sequence[Path]) -> list[str]:
    """The pictures that `lt-kernels analyze` wrote into folders, each folder's in a part of the page that opens."""
    parts = []
    for folder in folders:
        drawn = [entry for entry in ENTRIES if (folder / f"{entry.stem}.png").exists()]
        pictures = [html_figure((folder / f"{one.stem}.png").read_bytes(), one.title, one.caption) for one in drawn]
        if pictures:
            name = html.escape(str(folder.parent))
            parts.append(f"<details><summary>{name}</summary>{''.join(pictures)}</details>")
    return ["<h2>What the runs have learnt</h2>", *parts] if parts else []


def _runs(results: figures.Results, names: Sequence[str]) -> str:
    def row(method: str, run: Mapping[str, Any]) -> list[str]:
        numbers = [f"{run['accuracy'][name]:.1f}" for name in names]
        return [method, str(run["config"]["seed"]), *numbers, f"{run['seconds']:.1f}"]

    lines = [row(method, run) for method, runs in results.items() for run in runs]
    return html_table(["method", "seed", *headings(names)[1:-1], "seconds"], lines, {})

"""The report of a comparison: its tables, and one HTML page that needs no file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_kernels.data import LongTailedData
from lt_kernels.system.storage import write_whole
from lt_kernels.train.compare import plots, tables
from lt_kernels.train.compare.beside import as_facts, footnotes
from lt_kernels.train.compare.classes import class_rows, data_of, shown_classes, thumbnails
from lt_kernels.train.compare.jobs import Job
from lt_kernels.train.compare.pairs import HEADINGS, Pair, pair_of, paired, pairs_csv
from lt_kernels.train.compare.tables import Summary, best, cells, columns, headings, notes_of
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.files.results import read_rows
from lt_kernels.train.output import figures
from lt_kernels.train.output.pages import Picture, Table, extremes, page, picture

UNUSED = ("method", "seed", "method_options")  # settings that the report shows otherwise


def write_report(
    jobs: Sequence[Job], results: Mapping[str, list[dict[str, Any]]], folder: Path, settings: str, workers: int
) -> list[Summary]:
    """Write table.csv, .md and .json, summary.csv, runs.csv, classes.csv, pairs.csv, training.csv and report.html;
    return the summaries.
    """
    summaries = [tables.summarize_method(method, runs) for method, runs in results.items()]
    rows = {method: [read_rows(job.folder) for job in jobs if job.name == method] for method in results}
    published = as_facts({summary.method: summary.published for summary in summaries})
    about = tables.facts(next(iter(results.values()))[0], summaries[0].seeds, workers)
    texts = {
        "table.csv": tables.table_csv(summaries),
        "table.json": json.dumps({**about, **published}, indent=1) + "\n",
        "summary.csv": tables.summary_csv(summaries),
        "table.md": tables.markdown(summaries),
        "runs.csv": tables.runs_csv(results),
        "classes.csv": tables.classes_csv(results),
        "pairs.csv": pairs_csv(paired(results)),
        "training.csv": tables.training_csv(rows),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    analyses = [each.relative_to(folder).as_posix() for each in sorted(folder.glob("**/analysis/analysis.html"))]
    title = f"{jobs[0].config.data}: {_some(len(results), 'method')}, {_some(summaries[0].seeds, 'seed')}"
    data = data_of(jobs[0].config)
    write_whole(folder / "report.html", render(summaries, results, rows, about, title, list(texts), analyses, data))
    return summaries


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def render(
    summaries: Sequence[Summary],
    results: figures.Results,
    rows: plots.Rows,
    about: Mapping[str, Any],
    title: str,
    files: Sequence[str] = (),
    analyses: Sequence[str] = (),
    data: LongTailedData | None = None,
) -> str:
    """The report's HTML; `files` and `analyses` lie beside it, and of `data` it shows samples."""
    names, notes, grouped = columns(summaries), notes_of(summaries), str(about["grouped"])
    counts = next(iter(results.values()))[0]["class_counts"]
    classes = shown_classes(counts)
    few = (
        f"{len(classes)} of {len(counts):,} classes, evenly by their count; all: " if len(classes) < len(counts) else ""
    )
    return page(
        "comparison.html",
        title=title,
        finding=finding(summaries, results),
        about=_facts(about),
        evaluated_on=tables.evaluated_on(next(iter(results.values()))[0]["config"]),
        accuracies=_accuracies(summaries, names, notes),
        reading=_reading(summaries, grouped),
        titles=f"Methods: {'; '.join(f'{summary.method}: {summary.title}' for summary in summaries)}.",
        published=_published(notes),
        files=files,
        differences=_differences(paired(results)),
        groups=[_group(summaries, name, grouped) for name in names],
        classes=_by_count(summaries, results),
        class_table=class_rows(results, data and data.class_names, classes, str(about["counted"])),
        thumbnails=thumbnails(data, classes) if data is not None else {},
        class_words=f"Percent, mean over seeds; the best of a class in bold. {few}",
        training=_training(results, rows),
        analyses=analyses,
        runs=_runs(results, names),
        settings=used_settings({method: runs[0]["config"] for method, runs in results.items()}),
    )


def _accuracies(summaries: Sequence[Summary], names: Sequence[str], notes: Sequence[str]) -> Table:
    lines = [cells(summary, names, notes) for summary in summaries]
    methods = [summary.method for summary in summaries]
    marked = {(methods.index(best(summaries, name)), 1 + place) for place, name in enumerate(names)}
    return Table(headings(names, notes), lines, marked)


def finding(summaries: Sequence[Summary], results: figures.Results) -> str:
    """Which methods are best and worst, and by how much the best one differs from plain cross-entropy."""
    means = {summary.method: summary.values["all"].mean for summary in summaries}
    text = extremes("mean class accuracy", means, " %", ".1f")
    winner = best(summaries, "all")
    if winner == "ce" or "ce" not in results:
        return text
    pair = pair_of(winner, "ce", results)
    low, high = pair.interval()
    known = f"95 % interval {low:+.1f} to {high:+.1f}" if pair.seeds > 1 else "of one seed, so without an interval"
    return f"{text} {winner} is {pair.difference.mean:.1f} points above plain cross-entropy ({known})."


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


def _reading(summaries: Sequence[Summary], grouped: str) -> str:
    seeds = max(summary.seeds for summary in summaries)
    text = (
        f"Mean ± sample standard deviation over {_some(seeds, 'seed')}; the best mean of a column in bold. many: "
        f"classes with more than 100 training {grouped}; medium: 20 to 100; few: below 20; all: mean of all class "
        "accuracies; GM: geometric mean of all class accuracies, zero counting as 0.1 %. s/epoch: median over epochs, "
        "training only."
    )
    if "miou" in columns(summaries):
        text += " mIoU: mean over the classes of intersection over union; mAcc: mean pixel accuracy of the classes."
    return text


def _published(notes: Sequence[str]) -> str:
    text = (
        "Published: over all classes (many, medium, few), with the same data, imbalance and network; what else differs "
        "the recipe of the figure says (lt-kernels recipes --published). "
    )
    return f"{text}{'; '.join(footnotes(notes))}." if notes else ""


def _differences(pairs: Sequence[Pair]) -> tuple[Picture, Table] | None:
    """What each method gains on the one that it builds on, seed by seed; nothing from a single seed."""
    if not pairs or pairs[0].seeds < 2:
        return None
    gains = {f"{pair.method} beside {pair.beside}": pair.difference.mean for pair in pairs}
    drawn = picture(
        plots.differences(pairs),
        "differences",
        "Differences in mean class accuracy",
        "A point: the mean difference, a line: its 95 % interval.",
        extremes("difference", gains, " points", "+.1f"),
        "pairs.csv",
    )
    return drawn, Table(HEADINGS, [pair.cells() for pair in pairs])


def _group(summaries: Sequence[Summary], name: str, grouped: str) -> Picture:
    means = {summary.method: summary.values[name].mean for summary in summaries}
    said = extremes(f"accuracy ({tables.HEADINGS[name]})", means, " %", ".1f")
    figure, caption = plots.group_points(summaries, name, grouped), f"{said} Lines: sample standard deviation."
    return picture(figure, f"group-{name}", f"Accuracy: {tables.HEADINGS[name]}", caption, said, "summary.csv")


def coinciding(results: figures.Results) -> str:
    """Which methods have the same accuracies in every class and run, so that their curves lie on one another."""
    groups: dict[str, list[str]] = {}
    for method, runs in results.items():
        groups.setdefault(repr([run["per_class"] for run in runs]), []).append(method)
    same = [" = ".join(methods) for methods in groups.values() if len(methods) > 1]
    return f" Curves that coincide: {'; '.join(same)}." if same else ""


def _by_count(summaries: Sequence[Summary], results: figures.Results) -> Picture:
    """Accuracy against the class count."""
    many = len(summaries) > plots.MANY
    figure = plots.class_table(results) if many else figures.accuracy_by_count(results)
    caption = "Mean over seeds" + ("." if many else "; cross-entropy is dashed." + coinciding(results))
    group = next((name for name in ("few", "medium", "many") if name in summaries[0].values), "all")
    means = {summary.method: summary.values[group].mean for summary in summaries}
    said = extremes(f"accuracy of the classes with the fewest samples ({group})", means, " %", ".1f")
    return picture(figure, "classes", "Accuracy against class count", caption, said, "classes.csv")


def _training(results: figures.Results, rows: plots.Rows) -> list[Picture]:
    many = len(results) > plots.MANY
    drawn = plots.leading(rows, results) if many else rows
    who = f" The {plots.LEADING} methods with the highest mean, and cross-entropy." if many else coinciding(results)
    said = {"loss": "training loss of the last epoch", "all": "accuracy of the last epoch"}
    pictures = []
    for name, what in said.items():
        last = {
            method: sum(run[-1].get(name, float("nan")) for run in runs) / len(runs) for method, runs in drawn.items()
        }
        caption = f"Mean over seeds, by epoch; cross-entropy is dashed.{who}"
        finding = extremes(what, last, " %" if name == "all" else "")
        figure = plots.training_curve(drawn, name)
        pictures.append(picture(figure, f"training-{name}", "Training curves", caption, finding, "training.csv"))
    return pictures


def _runs(results: figures.Results, names: Sequence[str]) -> Table:
    def row(method: str, run: Mapping[str, Any]) -> list[str]:
        numbers = [f"{run['accuracy'][name]:.1f}" for name in names]
        return [method, str(run["config"]["seed"]), *numbers, f"{run['seconds']:.1f}"]

    lines = [row(method, run) for method, runs in results.items() for run in runs]
    return Table(["method", "seed", *headings(names)[1:-1], "seconds"], lines)


def used_settings(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    """The settings that differ from the defaults in some method, and each method's options."""
    defaults = TrainConfig().as_dict()

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    rows = []
    for key, default in defaults.items():
        values = {method: text(config.get(key, default)) for method, config in configs.items()}
        if key in UNUSED or set(values.values()) == {text(default)}:
            continue
        same = len(set(values.values())) == 1
        shown = next(iter(values.values())) if same else "; ".join(f"{name}: {value}" for name, value in values.items())
        rows.append([key, shown, text(default)])
    options = [[f"options of {name}", text(config["method_options"]), "{}"] for name, config in configs.items()
               if config["method_options"]]  # fmt: skip
    return Table(["setting", "value", "default"], rows + options)

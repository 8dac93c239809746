"""Writes the tables of README and docs between their markers from measured files: none is typed by hand.

<!-- table: bench -->     benchmarks/results/<device>.csv, as `lt-kernels bench` wrote them
<!-- table: bench-short -->  those of their cases that `SHORT` names
<!-- table: training -->  benchmarks/results/training/<device>.csv, as `python -m benchmarks.training` wrote it
<!-- table: loading -->   the same file, as `python -m benchmarks.loading` wrote it
<!-- table: compare-<name> -->  benchmarks/results/compare-<name>.csv and .json, copied from runs/<name> if it is there
<!-- table: shift-<name> -->    the same of runs/<name>/shift
<!-- table: pairs-<name> -->    each method beside the one that it builds on, of runs/<name>/pairs.csv
<!-- table: analysis-<name> --> numbers of what the runs have learnt, of the tables in runs/<name>/analysis
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.results import Row
from benchmarks.tables.markdown import markdown, section
from benchmarks.tables.training import loading_tables, training_tables
from lt_kernels.train.output.cells import markdown_cell, rounded, unquoted

TIME = "s/epoch"
WORDS = ("counted", "grouped")  # what a report calls its samples: no facts
APART = ("compare-", "shift-", "pairs-", "analysis-")  # files beside those of the benchmarks
DOCUMENTS = tuple(
    results.ROOT / name
    for name in ("README.md", "docs/results.md", "docs/results_images.md", "docs/kernels/benchmarks.md")
)
# Tables of an analysis with a line for each class, of which the first and the last are kept: file, column, name.
BY_CLASS = (
    ("false_positives.csv", "false_positives", "false_positives"),
    ("offsets.csv", "of training features", "offset"),
)
# What a document shows of an analysis: column of summary.csv, or of the above, and heading.
ANALYSED = {
    "run": "run",
    "false_positives_first": "false positives of the most frequent class",
    "false_positives_last": "of the rarest",
    "offset_first": "offset of the most frequent class",
    "offset_last": "of the rarest",
    "calibration_error": "calibration error",
    **{f"angle_weight_{group}": f"angle to the weight, {group} [°]" for group in ("many", "medium", "few")},
    **{f"angle_mean_{group}": f"angle to the mean, {group} [°]" for group in ("many", "medium", "few")},
    "separability_unit_all": "separability",
    "balance_angle": "balance of the weights' cosines",
}
# Column heading: provider. The time of ours is given in ms, the others' as multiples of it. Who was not measured on a
# device has no column in its table.
COMPETITORS = {
    "eager": "eager",
    "torch.compile": "compile",
    "torch, plain": "torch",
    "torch, chunked": "torch-chunked",
    "Liger": "liger",
    "CCE": "cce",
    "CCE, exact": "cce-exact",
    "QuACK": "quack",
    "PML": "pml",
    "bare products": "products",
    "by oneDNN": "products-onednn",
    "clone": "clone",
}
# What the README shows of all that is measured, in float32: operator and case, and who is beside ours.
SHORT = (
    *(("offset_cross_entropy", case) for case in ("inat", "vocab")),
    *(("linear_cross_entropy", case) for case in ("imagenet-lt", "inat")),
    *(("cosine_margin_cross_entropy", case) for case in ("inat", "faces")),
    ("lade_regularizer", "inat"),
    ("logit_weight_repulsion", "lwr-inat"),
    *(("losses", case) for case in ("BalancedSoftmaxLoss", "DBMLoss")),
)
SHORT_COMPETITORS = {"eager", "compile"}


def main(argv: Sequence[str] | None = None) -> int:
    """Collect the tables of runs/, then rewrite every marked section of the documents."""
    parser = argparse.ArgumentParser("python -m benchmarks.tables.readme", description="Write the tables of README.")
    parser.add_argument("--runs", type=Path, default=results.ROOT / "runs", help="where `compare` wrote its tables")
    chosen = parser.parse_args(argv)
    collect(chosen.runs, results.RESULTS)
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        document.write_text(rewritten(text, results.RESULTS), encoding="utf-8")
    return 0


def rewritten(text: str, folder: Path) -> str:
    """The text with each marked section made anew from the files in `folder`; a section without a file stays."""
    for name, make in (("bench", bench_tables), ("bench-short", short_tables)):
        text = section(text, name, make(folder))
    for name, of_rows in (("training", training_tables), ("loading", loading_tables)):
        text = section(text, name, of_rows(_measured(folder / results.TRAINING)))
    for path in sorted([*folder.glob("compare-*.csv"), *folder.glob("shift-*.csv")]):
        text = section(text, path.stem, compare_table(path))
    for path in sorted(folder.glob("pairs-*.csv")):
        header, *lines = _cells(path)
        text = section(text, path.stem, markdown(header, lines))
    for path in sorted(folder.glob("analysis-*.csv")):
        text = section(text, path.stem, analysis_table(path))
    return text


def _cells(path: Path) -> list[list[str]]:
    """The rows of a table that a comparison wrote, as Markdown's cells."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[markdown_cell(unquoted(cell)) for cell in row] for row in csv.reader(file)]


def bench_tables(folder: Path) -> str:
    """One table for each device whose results lie in `folder`."""
    measured = ([row for row in rows if row.operator != results.DEVICE] for rows in _measured(folder))
    return "\n\n".join(bench_table(rows) for rows in measured if rows)


def short_tables(folder: Path) -> str:
    """One table for each device, of the cases that `SHORT` names, beside eager torch and torch.compile."""
    chosen = (
        [
            row
            for row in rows
            if (row.operator, row.case) in SHORT
            and row.dtype == "float32"
            and row.provider in {"ours", *SHORT_COMPETITORS}
        ]
        for rows in _measured(folder)
    )
    return "\n\n".join(bench_table(rows) for rows in chosen if rows)


def _measured(folder: Path) -> Iterable[list[Row]]:
    """The rows of each device."""
    return map(results.read, sorted(path for path in folder.glob("*.csv") if not path.name.startswith(APART)))


def bench_table(rows: list[Row]) -> str:
    """Forward and backward of every case on one device, named losses last."""
    places = dict.fromkeys((row.operator, row.case, row.dtype, row.sizes) for row in rows)
    figures = {(row.operator, row.case, row.dtype, row.provider, row.metric): row for row in rows if row.mode == "both"}
    replays = {(*row.place, "graph"): row for row in rows if row.mode == "graph"}
    order = sorted(places, key=lambda place: place[0] == "losses")
    there = {heading: who for heading, who in COMPETITORS.items() if any(row.provider == who for row in rows)}
    graphs = ["as a graph, ms"] if replays else []
    header = ["operator", "case", "ours, ms", *graphs, *there, "memory: ours", "memory: eager"]
    body = [_bench_line(place, figures | replays, [*graphs, *there.values()]) for place in order]
    first = rows[0]
    commits, dates = sorted({row.commit for row in rows}), sorted({row.date for row in rows})
    caption = (
        f"{first.device}, {first.threads} threads, torch {first.torch}, commit {', '.join(commits)}, "
        f"{dates[-1]}. Forward and backward together, medians; others' times as multiples of ours; memory beyond the "
        "inputs in MiB."
    )
    return caption + "\n\n" + markdown(header, body)


def _bench_line(place: tuple[str, ...], figures: dict[tuple[str, ...], Row], columns: Sequence[str]) -> list[str]:
    operator, case, dtype, sizes = place

    def figure(provider: str, metric: str) -> float | None:
        row = figures.get((operator, case, dtype, provider, metric))
        return None if row is None else row.p50

    ours = figure("ours", "time")
    cells = [f"`{operator}`" if operator != "losses" else f"`{case}`", _case_words(operator, case, dtype, sizes)]
    cells.append("wrong" if ours is None else f"{ours:.3g}")
    for column in columns:
        replay, theirs = figure("ours", "graph"), figure(column, "time")
        if column not in COMPETITORS.values():
            cells.append("" if replay is None else f"{replay:.3g}")
        else:
            cells.append("" if ours is None or theirs is None else f"{theirs / ours:.2f}x")
    for provider in ("ours", "eager"):
        memory = figure(provider, "peak extra memory")
        cells.append("" if memory is None else f"{memory:,.0f}")
    return cells


def _case_words(operator: str, case: str, dtype: str, sizes: str) -> str:
    name = "cifar" if operator == "losses" else case
    return f"{name}: {sizes}" + ("" if dtype == "float32" else f", {dtype}")


def collect(runs: Path, folder: Path) -> None:
    """Keep the tables of finished comparisons with the other results, because runs/ is nobody's to keep."""
    found = [(table, f"compare-{table.parent.name}") for table in sorted(runs.glob("*/table.csv"))]
    found += [(table, f"shift-{table.parents[1].name}") for table in sorted(runs.glob("*/shift/shift.csv"))]
    for table, name in found:
        about = table.with_suffix(".json")
        if about.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table, folder / f"{name}.csv")
            shutil.copyfile(about, folder / f"{name}.json")
    for table in sorted(runs.glob("*/pairs.csv")):
        shutil.copyfile(table, folder / f"pairs-{table.parent.name}.csv")
    for table in sorted(runs.glob("*/analysis/summary.csv")):
        rows = learnt(table.parent)
        with (folder / f"analysis-{table.parents[1].name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def learnt(analysis: Path) -> list[dict[str, str]]:
    """The runs of an analysis: summary.csv, with what the most frequent and the rarest class have in other tables."""
    runs = _read(analysis / "summary.csv")
    for file, column, name in BY_CLASS:
        classes = _read(analysis / file) if (analysis / file).exists() else []
        for run in runs:
            own = [row[column] for row in classes if row["run"] == run["run"]] or [""]
            run |= {f"{name}_first": own[0], f"{name}_last": own[-1]}
    return runs


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def analysis_table(path: Path) -> str:
    """The columns of `ANALYSED` that have numbers, to three figures."""
    rows = _read(path)
    columns = [name for name in ANALYSED if name in rows[0] and any(row[name] for row in rows)]
    lines = [
        [text if name == "run" or not text else rounded(float(text)) for name in columns for text in (row[name],)]
        for row in rows
    ]
    return markdown([ANALYSED[name] for name in columns], lines)


def compare_table(path: Path) -> str:
    """The CSV as Markdown, the best of each column bold, under one line on data, device and commit."""
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    header, *lines = _cells(path)
    columns = [column if name in (header[0], TIME) else _bold(column) for name, column in zip(header, zip(*lines))]
    told = {name: value for name, value in about.items() if _is_plain(value) and name not in WORDS}
    facts = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items())
    return f"{facts}. Accuracy in percent, mean ± standard deviation.\n\n{markdown(header, zip(*columns))}"


def _bold(column: Sequence[str]) -> list[str]:
    """The cells of one column, such as 70.1 ± 0.4, those with the largest mean in bold."""
    if not all(re.match(r"\d", cell) for cell in column):
        return list(column)
    means = [float(cell.split()[0]) for cell in column]
    return [f"**{cell}**" if mean == max(means) else cell for cell, mean in zip(column, means)]


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


if __name__ == "__main__":
    raise SystemExit(main())

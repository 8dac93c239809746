"""The tables of training at speed: what loaders give, and steps with our losses and with those of plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.results import LOADING, TRAINING, Row
from benchmarks.tables.markdown import markdown

WHO = ("ours", "eager")
PER_SECOND = 1e14  # what is taken for the arithmetic of a GPU
Figures = Mapping[tuple[str, str, str, str], Row]  # by case, provider, mode and metric


def _ratio(row: Row) -> str:
    return f"{row.p50:.3g}x ({row.p20:.3g} .. {row.p80:.3g})"


def _rate(row: Row) -> str:
    """Steps a second of milliseconds a step: the median, and those of the 80th and the 20th percentile."""
    p50, p20, p80 = (1e3 / value for value in (row.p50, row.p20, row.p80))
    return f"{p50:.3g} ({p80:.3g} .. {p20:.3g})"


# Name, mode, metric, and how the figure is written.
COLUMNS: Sequence[tuple[str, str, str, Callable[[Row], str]]] = (
    ("steps/s", "step", "time", _rate),
    ("an epoch, minutes", "epoch", "time", lambda row: f"{row.p50 / 60:.1f}"),
    ("the loss's share", "loss", "share", lambda row: f"{100 * row.p50:.1f} %"),
    ("memory of a step, MiB", "step", "peak extra memory", lambda row: f"{row.p50:,.0f}"),
    ("memory of its loss, MiB", "loss", "peak extra memory", lambda row: f"{row.p50:,.0f}"),
)


def training_tables(measured: Iterable[Sequence[Row]]) -> str:
    """Steps of training, of the rows of each device: a table for each data set, dtype, and sizes (of one network)."""
    tables = []
    for rows in measured:
        timed = [row for row in rows if row.operator == TRAINING]
        kinds = dict.fromkeys(_kind(row) for row in timed if row.metric == "time")
        tables += [_training_table([row for row in timed if _kind(row) == kind], kind[0]) for kind in kinds]
    return "\n\n".join(tables)


def _kind(row: Row) -> tuple[str, str, str]:
    """What the methods of one table have in common."""
    return row.case.split()[0], row.dtype, row.sizes


def _training_table(rows: Sequence[Row], data: str) -> str:
    """Ours and plain torch, a line for each method; a column for which no method has figures is left out."""
    figures: Figures = {(row.case, row.provider, row.mode, row.metric): row for row in rows}
    cases = [case for case in dict.fromkeys(row.case for row in rows) if (case, "ours", "step", "time") in figures]
    header, body = ["method"], [[case.split()[1]] for case in cases]
    for name, mode, metric, form in COLUMNS:
        pairs = [[_cell(figures.get((case, who, mode, metric)), form) for who in WHO] for case in cases]
        if any(map(any, pairs)):
            header += [f"{name}: ours", "plain torch"]
            body = [[*line, *pair] for line, pair in zip(body, pairs, strict=True)]
    for line, case in zip(body, cases, strict=True):
        paired = figures.get((case, "eager", "step", "ratio"))
        ours, theirs = (figures[case, who, "step", "time"].p50 for who in WHO)
        line.insert(3, f"{theirs / ours:.3g}x" if paired is None else _ratio(paired))
    header.insert(3, "")
    first, commits = rows[0], ", ".join(dict.fromkeys(row.commit for row in rows))
    threads = f"{first.threads} thread{'s' if first.threads != 1 else ''}"
    caption = f"{data}: {first.device}, {threads}, torch {first.torch}, {first.dtype}, {first.sizes}, commit {commits}."
    return caption + "\n\n" + markdown(header, body)


def _cell(row: Row | None, form: Callable[[Row], str]) -> str:
    return "" if row is None else form(row)


def loading_tables(measured: Iterable[Sequence[Row]]) -> str:
    """What a core loads, and what a GPU's network asks for, of the rows of each device."""
    tables = []
    for rows in measured:
        of_loaders = [row for row in rows if row.operator == LOADING]
        if any(row.metric == "rate" for row in of_loaders):
            tables.append(_loading_table(of_loaders))
    return "\n\n".join(tables)


def _loading_table(rows: Sequence[Row]) -> str:
    rates = {row.case: row for row in rows if row.metric == "rate"}
    grown = {row.case: row.p50 for row in rows if row.metric == "growth of memory"}
    asked = {row.case: PER_SECOND / (1e9 * row.p50) for row in rows if row.metric == "arithmetic"}
    header = ["an epoch of", "images/s/core", "growth of memory, MiB", *(f"cores for {name}" for name in asked)]
    body = []
    for case, row in rates.items():
        cells = [_figure(need / row.p50) if "trained" not in case else "" for need in asked.values()]
        body.append(
            [case, f"{_figure(row.p50)} ({_figure(row.p20)} .. {_figure(row.p80)})", f"{grown[case]:.1f}", *cells]
        )
    first = rows[0]
    needs = ", ".join(f"{name} {_figure(need)}" for name, need in asked.items())
    caption = (
        f"{first.device}, torch {first.torch}, commit {first.commit}. Images of 32 x 32 that 1e14 operations a second "
        f"train on in a second: {needs}."
    )
    return caption + "\n\n" + markdown(header, body)


def _figure(value: float) -> str:
    """Three digits."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"

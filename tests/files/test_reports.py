"""Names in reports: none is a tag of a page, a formula of a spreadsheet, or a mark of a terminal or a picture."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("matplotlib", reason="the extra [train] is not installed")

from rich.console import Console

from benchmarks.tables import readme
from lt_kernels.train.analysis import tables as analysis_tables
from lt_kernels.train.analysis.measures import Analysis, analyze
from lt_kernels.train.analysis.report import PAGE, write_analysis
from lt_kernels.train.compare import pairs, report, tables
from lt_kernels.train.config import TrainConfig
from lt_kernels.train.model.readings import Reading
from lt_kernels.train.output import figures
from lt_kernels.train.output.cells import NUMBER, csv_text, quoted, unquoted
from lt_kernels.train.shift import report as shift_report
from lt_kernels.train.shift.evaluate import ShiftResult
from tests.pages import Page

TAG = '<script>alert("1")</script><img src=x onerror=alert(1)>\'"&amp;'
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "\uff1d1+1", "'=1",
            "''@a", "-", "=", "+a", "-inf", "--1", "+1 ± x"]  # fmt: skip
NUMBERS = ["-0.5", "+1", "-1e-5", "+2.0 ± 3.0", "-12.3 ± 0.4", ".5", "-.5", "12"]
PLAIN = ["a", "", "'", "it's", "a=1", "é", "1+1", " =1", "a\nb", 'say "x", y', "bs-lwr"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_quoted_and_read_back(text):
    assert quoted(text) == "'" + text
    assert unquoted(quoted(text)) == text


@pytest.mark.parametrize("text", [*NUMBERS, *PLAIN])
def test_numbers_and_other_text_are_as_they_are(text):
    assert quoted(text) == text
    assert unquoted(text) == text


@pytest.mark.parametrize("value", [-0.5, -3, 0, 1e-300, None, True, float("nan")])
def test_what_is_no_text_is_as_it_is(value):
    assert quoted(value) is value


def test_a_table_is_read_back():
    rows = [["name", "=a"], [*FORMULAS[:2]], ["-0.5", -0.5], [TAG, None]]
    found = list(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert [[unquoted(cell) for cell in row] for row in found] == [
        ["name", "=a"],
        FORMULAS[:2],
        ["-0.5", "-0.5"],
        [TAG, ""],
    ]
    assert found[0][1] == "'=a"


def safe(text: str) -> bool:
    """Whether no cell of a CSV is a formula."""
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    return not any(cell[:1] in tuple("=+-@\t\r") and not NUMBER.fullmatch(cell) for cell in cells if cell)


NAME = "=1+1" + TAG + "|[/x][bold]a_b$\\frac$c"


def result(**changes: Any) -> dict[str, Any]:
    config = {**TrainConfig(data="digits-lt", method="ce").as_dict(), "seed": 0}
    accuracy = {"many": 50.0, "all": 40.0, "gm": 30.0}
    numbers = {"accuracy": accuracy, "per_class": [50.0, 30.0], "per_class_iou": [5.0, 3.0], "class_counts": [200, 3]}
    return {"config": config, "seconds": 1.0, "seconds_per_epoch": 0.5, **numbers, **changes}


def summaries() -> list[tables.Summary]:
    return [tables.summarize_method(name, [result(), result()]) for name in (NAME, "ce")]


def test_tables_of_a_comparison():
    results, found = {NAME: [result()], "ce": [result()]}, summaries()
    pair = pairs.Pair(NAME, "=ce", tables.Spread(-0.5, 1.0), 1, 2)
    texts = [tables.table_csv(found), tables.summary_csv(found), tables.runs_csv(results), tables.classes_csv(results),
             pairs.pairs_csv([pair])]  # fmt: skip
    for text in texts:
        assert safe(text)
        assert unquoted(next(row for row in csv.reader(text.splitlines()) if "1+1" in row[0])[0]) == NAME
    assert ",-0.5 ± 1.0," in texts[-1]
    assert "<script" not in tables.markdown(found)
    assert len({line.replace("\\|", "").count("|") for line in tables.markdown(found).splitlines()}) == 1


def test_a_terminal_shows_names_as_they_are():
    shown = Console(file=io.StringIO(), width=400, force_terminal=False)
    shown.print(tables.rich_table(summaries(), f"{NAME} [/]"))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert text.count(NAME) == 2
    assert f"{NAME} [/]" in text


def shifts() -> tuple[list[ShiftResult], list[Any]]:
    class Test:
        name, rows = "forward 50", torch.arange(3)

    return [ShiftResult(NAME, TrainConfig(), "prior", [50.0], [60.0])], [Test()]


def test_tables_of_a_shift():
    results, tests = shifts()
    rows = shift_report.shift_rows(results)
    assert safe(shift_report.shift_csv(rows, tests, {NAME: [None]}))
    assert safe(shift_report.shift_runs_csv(results, tests))
    assert "<script" not in shift_report.shift_markdown(rows, tests, {})
    shown = Console(file=io.StringIO(), width=400, force_terminal=False)
    shown.print(shift_report.shift_table(rows, tests, {}, f"{NAME} [/]"))
    assert shown.file.getvalue().count(NAME) == 3  # type: ignore[attr-defined]
    assert shift_report.shift_picture(rows, tests, NAME).startswith(b"\x89PNG")


def test_documents_made_of_tables(tmp_path):
    (tmp_path / "compare-x.csv").write_text(tables.table_csv(summaries()), encoding="utf-8", newline="")
    (tmp_path / "compare-x.json").write_text('{"data": "x"}')
    text = readme.rewritten("<!-- table: compare-x -->\n<!-- end of table: compare-x -->", tmp_path)
    assert "&lt;script&gt;" in text
    assert "'=1+1" not in text


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "details", "summary", "a", "script"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "img", "figcaption"),
    *("svg", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect", "image", "lineargradient", "stop"),
}
HANDLERS = re.compile("on[a-z]+")


def assert_safe(page: Page) -> None:
    """No tag of a name, no attribute that runs a script, and one script: the page's own."""
    assert page.tags <= TAGS
    assert not any(HANDLERS.fullmatch(name) for name in page.names)
    assert page.scripts == 1
    assert page.outside() == []


def test_the_page_of_a_comparison():
    results, found = {NAME: [result()], "ce": [result()]}, summaries()
    rows = {name: [[{"epoch": 1.0, "loss": 1.0, "all": 50.0}]] for name in results}
    facts = ("data", "classes", "class_counts", "counted", "training_samples", "test_samples", "network", "epochs")
    more = ("device", "torch", "threads_a_run", "runs_at_a_time", "commit", "grouped")
    about = dict.fromkeys((*facts, *more), TAG)
    page = Page(report.render(found, results, rows, about, TAG))
    assert_safe(page)
    assert page.text.count(TAG) > 5


def analysis(name: str) -> Analysis:
    features, target = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    weight = torch.eye(3, 2)
    logits = features @ weight.T
    means = {"positive": torch.zeros(3), "negative": torch.ones(3), "log_classes": math.log(3)}
    reading = Reading(
        class_counts=torch.tensor([200, 50, 2]),
        weight=weight,
        train=(features, target),
        test=(features, target),
        prediction=logits.argmax(1),
        confidence=logits.softmax(1).amax(1),
        logits=(logits, target),
        logit_means=means,
        components=TAG,
    )
    return analyze(name, reading, ("=a", TAG, "-0.5"))


@pytest.mark.slow
def test_the_page_of_an_analysis(tmp_path):
    analyses = [analysis(NAME), analysis("_two$")]
    page = Page(write_analysis(analyses, tmp_path, TAG, 1).read_text(encoding="utf-8"))
    assert (tmp_path / PAGE).exists()
    assert_safe(page)
    assert TAG in page.text
    assert NAME in page.text
    written = {path: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.csv")}
    assert len(written) > 5
    assert all(map(safe, written.values()))
    rows = list(csv.DictReader(io.StringIO(analysis_tables.false_positives(analyses), newline="")))
    assert {unquoted(row["run"]) for row in rows} == {NAME, "_two$"}
    assert [unquoted(row["name"]) for row in rows[:3]] == ["=a", TAG, "-0.5"]


@pytest.mark.parametrize("name", ["$", "$$", "a$b$c", "$\\frac$", "_hidden", "\\$", NAME])
def test_pictures_show_names_as_they_are(name):
    figure, (axis,) = figures.canvas(10, 4)
    axis.plot([0, 1], label=figures.literal(name))
    axis.set_title(figures.literal(name))
    figures.legend_below(figure, axis)
    assert figures.png(figure).startswith(b"\x89PNG")
    assert Page(figures.svg(figure, "a", name)).pictures == [name]
    assert len(figure.legends[0].get_texts()) == 1


def test_a_bad_byte_in_a_name_is_written(tmp_path: Path):
    """A folder's name that is no UTF-8 reaches the pages as surrogates."""
    from lt_kernels.system.storage import write_whole

    write_whole(tmp_path / "a.csv", csv_text([["\udce9=1", "=\udce9"]]))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "\\udce9=1,'=\\udce9\n"

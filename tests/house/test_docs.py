"""What the documents say of the code is so: links, examples, sections that it cites, tables, options, numbers."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import readme
from lt_kernels import functional, losses
from lt_kernels.ops import budget, tiles
from lt_kernels.reference import gram
from tests.nursery import missing

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for folder in ("lt_kernels", "csrc") for path in sorted((ROOT / folder).rglob("*.*"))]
CODE = [path for path in SOURCES if path.suffix in (".py", ".h", ".cpp")]
COUNTS = [90, 40, 12, 3]
EXTRA = {"EstimatedOffsetLoss": (4, 3)}  # what a loss is made of where it is not the class counts
ROOMS = {"rows": {1, 3}, "margins": {2, 4}, "linear": {5}, "gram": {6}, "columns": {7}}


def read(path: Path) -> str:
    """A file's text."""
    return path.read_text(encoding="utf-8")


def headings(path: Path) -> list[str]:
    """A document's headings, without what stands in code."""
    text = re.sub(r"^```.*?^```", "", read(path), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def cited(path: Path) -> set[int]:
    """The sections of docs/math.md that a source names."""
    found = re.findall(r"docs/math\.md, sections? ([\d, and]+)", read(path))
    return {int(number) for place in found for number in re.findall(r"\d+", place)}


def test_sections_are_numbered_in_order() -> None:
    lines = "\n".join(headings(ROOT / "docs" / "math.md"))
    numbers = [int(found) for found in re.findall(r"^(\d+)\. ", lines, re.MULTILINE)]
    assert numbers == list(range(1, 14))


def test_cited_sections_exist() -> None:
    there = set(range(1, 14))
    assert {str(path.relative_to(ROOT)): cited(path) for path in CODE if not cited(path) <= there} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_cites_its_sections(room: str) -> None:
    assert cited(ROOT / "lt_kernels" / "reference" / f"{room}.py") == ROOMS[room]
    if room != "linear":  # driven from Python
        assert cited(ROOT / "csrc" / f"{room}.h") == ROOMS[room]


def test_anchors_lead_to_headings() -> None:
    lost = []
    for path in DOCUMENTS:
        for file, name in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", read(path)):
            target = path.parent / file if file else path
            lost += [f"{path.name}: {file}#{name}"] if name not in map(anchor, headings(target)) else []
    assert lost == []


def test_links_between_documents_lead_somewhere() -> None:
    links = [
        (path, target)
        for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", read(path))
    ]
    assert [f"{path.name}: {target}" for path, target in links if not (path.parent / target).exists()] == []


def test_files_that_the_guides_name_exist() -> None:
    """A path in a document is one from the top or from the package; <name> stands for whatever is added."""
    lost = []
    for path in [*DOCUMENTS, ROOT / "CONTRIBUTING.md"]:
        named = re.findall(r"`((?:\w+/)+\w+\.(?:py|h|cpp))`", read(path))
        lost += [
            (path.name, one) for one in named if not any((top / one).exists() for top in (ROOT, ROOT / "lt_kernels"))
        ]
    assert lost == []


def blocks(path: Path) -> list[str]:
    """The Python code of a document, block by block."""
    return re.findall(r"^```python\n(.*?)^```", read(path), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "path", [path for path in DOCUMENTS if blocks(path)], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_code_in_documents_runs(path: Path) -> None:
    if lacking := missing("\n".join(blocks(path))):
        pytest.skip(f"Python 3.10 has no {', '.join(lacking)} here")
    space: dict[str, object] = {"__name__": "document"}
    for number, block in enumerate(blocks(path), 1):
        exec(compile(block, f"{path.name}, block {number}", "exec"), space)


def test_tables_are_what_the_measured_files_say() -> None:
    for path in readme.DOCUMENTS:
        text = read(path)
        assert readme.rewritten(text, ROOT / "benchmarks" / "results") == text, "run make readme"


def rows_of_losses() -> dict[str, list[str]]:
    """The tables of named losses: name -> offset, margin, weight, gamma, smoothing, source; or the parts of one."""
    lines = [line for line in read(ROOT / "docs" / "math.md").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip(" `"): row[1:] for row in cells}


def made(name: str) -> Any:
    """A named loss with the settings that it has when nothing is said."""
    arguments = EXTRA.get(name, (COUNTS,))
    takes_counts = "class_counts" in inspect.signature(getattr(losses, name)).parameters or name in EXTRA
    return getattr(losses, name)(*arguments) if takes_counts else getattr(losses, name)()


def test_the_table_has_every_loss() -> None:
    assert set(rows_of_losses()) == set(losses.__all__) - {"Loss"}


@pytest.mark.parametrize("name", sorted(name for name, row in rows_of_losses().items() if len(row) == 6))
def test_the_table_says_what_a_loss_sets(name: str) -> None:
    offset, margin, weight, gamma, smoothing, _ = rows_of_losses()[name]
    loss = made(name)
    assert (margin == "-") == (loss.margin is None)
    assert offset != "-" or loss.offset is None
    assert weight != "-" or loss.weight is None
    assert gamma != "-" or loss.focal_gamma == 0
    assert smoothing != "-" or (loss.class_smoothing is None and loss.label_smoothing == 0)


def test_a_loss_with_a_second_part_is_in_the_other_table() -> None:
    parts = {name for name, row in rows_of_losses().items() if len(row) == 4}
    assert parts == {name for name in losses.__all__ if not issubclass(getattr(losses, name), losses.Loss)}


def test_the_readme_is_under_200_lines() -> None:
    assert len(read(ROOT / "README.md").splitlines()) < 200


def test_a_document_has_every_option() -> None:
    text = read(ROOT / "docs" / "functional.md")
    named = [name for name in functional.__all__ if name.islower()]
    options = {option for name in named for option in inspect.signature(getattr(functional, name)).parameters}
    assert [option for option in sorted(options) if not re.search(rf"\b{option}\b", text)] == []


def test_numbers_in_kernels_are_the_codes() -> None:
    text = " ".join(word for path in (ROOT / "docs" / "kernels").glob("*.md") for word in read(path).split())
    assert f"({budget.DEFAULT_BUDGET // 2**20} MiB without it)" in text
    assert f"more than {budget.SLAB['cpu'] // 2**20} MiB" in text
    assert f"{gram.TILE} by {gram.TILE}" in text
    assert f"room for {gram.PAIRS} a class" in text
    assert f"one active pair in {tiles._DENSITY}" in text


def test_the_example_of_a_loss_is_under_twenty_lines() -> None:
    (code,) = blocks(ROOT / "docs" / "adding_a_loss.md")
    parts = [node for node in ast.parse(code).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    assert sum((node.end_lineno or 0) - node.lineno + 1 for node in parts) < 20

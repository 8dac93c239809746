"""Each file of examples/ is short, and runs as it stands with the real library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vision import beside

from tests.nursery import ROOT, Nursery, missing

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LINES = 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(nursery: Nursery, path: Path, tmp_path: Path):
    code = path.read_text(encoding="utf-8")
    words = [path]
    if re.search(r"^(import|from) (timm|torchvision)\b", code, re.MULTILINE):
        if not beside.there():
            pytest.skip(beside.MISSING)
        words = [Path(beside.__file__), path]
    elif missing(code):
        pytest.skip(f"Python 3.10 has no {', '.join(missing(code))} here")
    status, printed = nursery.script(*words, folder=tmp_path)
    assert status == 0, printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES


def stored(cell: dict[str, Any]) -> tuple[str, int]:
    """What a cell of a notebook is kept with: its printed text, and how many figures."""
    outputs = cell["outputs"]
    assert all(one["output_type"] == "display_data" or one.get("name") == "stdout" for one in outputs)
    printed = "".join("".join(one.get("text", ())) for one in outputs)
    return printed, sum("image/png" in one.get("data", {}) for one in outputs)


def without_numbers(text: str) -> str:
    """A text in which figures of another processor do not differ."""
    return re.sub(r"[\d.]+", "0", text)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_cell_by_cell_and_is_kept_with_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In one namespace, as a kernel does it; every figure that a cell shows has something in it."""
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("agg")
    from matplotlib import pyplot

    figures: list[int] = []

    def show() -> None:
        figures.append(min(len(axes.lines) + len(axes.images) for axes in pyplot.gcf().axes))
        pyplot.close("all")

    monkeypatch.setattr(pyplot, "show", show)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "__main__"}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    with matplotlib.rc_context():
        for number, cell in enumerate(cells, 1):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), space)
            printed, shown = stored(cell)
            assert cell["execution_count"] == number
            assert without_numbers(capsys.readouterr().out) == without_numbers(printed)
            assert len(figures) == shown
            assert all(figures)
            figures.clear()

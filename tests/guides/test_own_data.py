"""The guide to one's own data, done as it is written: its commands one after the other, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.nursery import FORKS, ROOT, Nursery

GUIDE = ROOT / "docs" / "guides" / "own_data.md"


def commands(heading: str) -> list[list[str]]:
    """The words of the command lines of a section."""
    section = GUIDE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.S)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]


def run(nursery: Nursery, words: list[str], folder: Path) -> str:
    """What a command of the guide prints."""
    if words[0] == "python":
        status, printed = nursery.script(ROOT / words[1], *words[2:], folder=folder)
    else:
        assert words[0] == "lt-kernels"
        status, printed = nursery.run(*words[1:], before=FORKS, folder=folder)
    assert status == 0, (words, printed)
    return printed


@pytest.mark.slow
def test_a_folder_of_pictures(nursery: Nursery, tmp_path: Path) -> None:
    printed = {" ".join(words[:2]): run(nursery, words, tmp_path) for words in commands("A folder of pictures")}
    assert {"python examples/digits_folder.py", "lt-kernels train", "lt-kernels analyze"} <= set(printed)
    accuracy = float(re.findall(r" on folder: .* all ([\d.]+) %", printed["lt-kernels train"])[0])
    assert accuracy > 50  # of ten classes
    assert (tmp_path / "runs" / "digits-bs" / "analysis" / "analysis.html").stat().st_size > 10_000
    lines = [line.split(",") for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]]
    right = [Path(cells[0]).parent.name == cells[1] for cells in lines]
    assert len(right) == 500
    assert 100 * sum(right) / 500 == pytest.approx(accuracy)
    assert (tmp_path / "digits.pt2").stat().st_size > 10_000
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_network_of_ones_own(nursery: Nursery, tmp_path: Path) -> None:
    section = GUIDE.read_text(encoding="utf-8").split("## A network of your own\n")[1]
    (tmp_path / "mynet.py").write_text(re.findall(r"```python\n(.*?)```", section, flags=re.S)[0], encoding="utf-8")
    run(nursery, ["python", "examples/digits_folder.py", "digits"], tmp_path)
    printed = [run(nursery, words, tmp_path) for words in commands("A network of your own")]
    assert float(re.findall(r" on folder: .* all ([\d.]+) %", printed[0])[0]) > 40  # of ten classes
    assert (tmp_path / "runs" / "digits-net" / "analysis" / "analysis.html").stat().st_size > 10_000

"""The guide to one's own data, done as it is written: its commands one after the other, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="the extra [train] is not installed")
pytest.importorskip("sklearn", reason="the extra [train] is not installed")

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guides" / "own_data.md"


def commands(heading: str) -> list[list[str]]:
    """The words of the command lines of a section."""
    section = GUIDE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.S)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", "").splitlines()]


def run(words: list[str], folder: Path) -> str:
    """What a command of the guide prints."""
    starts = {"lt-kernels": ["-m", "lt_kernels"], "python": []}
    places = [str(ROOT / word) if word.startswith("examples/") else word for word in words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    line = [sys.executable, *starts[words[0]], *places]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_a_folder_of_pictures(tmp_path: Path) -> None:
    printed = {" ".join(words[:2]): run(words, tmp_path) for words in commands("A folder of pictures")}
    assert {"python examples/digits_folder.py", "lt-kernels train", "lt-kernels analyze"} <= set(printed)
    accuracy = float(re.findall(r"all ([\d.]+) %", printed["lt-kernels train"])[0])
    assert accuracy > 50  # of ten classes
    assert (tmp_path / "runs" / "digits-bs" / "analysis" / "analysis.html").stat().st_size > 10_000
    lines = [line.split(",") for line in (tmp_path / "predictions.csv").read_text().splitlines()[1:]]
    right = [Path(cells[0]).parent.name == cells[1] for cells in lines]
    assert len(right) == 500
    assert 100 * sum(right) / 500 == pytest.approx(accuracy)
    assert (tmp_path / "digits.pt2").stat().st_size > 10_000
    assert (tmp_path / "runs" / "digits" / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_network_of_ones_own(tmp_path: Path) -> None:
    section = GUIDE.read_text(encoding="utf-8").split("## A network of your own\n")[1]
    (tmp_path / "mynet.py").write_text(re.findall(r"```python\n(.*?)```", section, flags=re.S)[0], encoding="utf-8")
    run(["python", "examples/digits_folder.py", "digits"], tmp_path)
    printed = [run(words, tmp_path) for words in commands("A network of your own")]
    assert float(re.findall(r"all ([\d.]+) %", printed[0])[0]) > 40  # of ten classes
    assert (tmp_path / "runs" / "digits-net" / "analysis" / "analysis.html").stat().st_size > 10_000

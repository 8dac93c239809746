"""Tests that need torchvision or timm, each file in a process of its own: see beside.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vision import beside

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = sorted(HERE.glob("cases_*.py"))


@pytest.mark.slow
@pytest.mark.skipif(not beside.there(), reason=beside.MISSING)
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_cases_of_a_file(path: Path, tmp_path: Path) -> None:
    words = ["-q", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'apart'}", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(HERE / "beside.py"), "-m", "pytest", *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout, done.stdout[-2000:]

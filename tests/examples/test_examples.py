"""Each file of examples/ is short, and runs as it stands with the real library."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from vision import beside

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LINES = 60


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [str(path)]
    if re.search(r"^(import|from) (timm|torchvision)\b", path.read_text(encoding="utf-8"), re.MULTILINE):
        if not beside.there():
            pytest.skip(beside.MISSING)
        words = [beside.__file__, *words]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < LINES

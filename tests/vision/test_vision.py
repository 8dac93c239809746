"""Tests that need torchvision or timm, in a process of their own: see beside.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from vision import beside

from tests.nursery import ROOT, Nursery

HERE = Path(__file__).resolve().parent
CASES = sorted(HERE.glob("cases_*.py"))


@pytest.mark.slow
@pytest.mark.skipif(not beside.there(), reason=beside.MISSING)
def test_the_cases_of_every_file(nursery: Nursery, tmp_path: Path) -> None:
    known = "ignore::pytest.PytestAssertRewriteWarning"  # of what the process has imported before
    words = ["-W", known, "-q", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'apart'}", *CASES]
    status, printed = nursery.script(HERE / "beside.py", "-m", "pytest", *words, folder=ROOT)
    assert status == 0, printed[-8000:]
    assert " passed" in printed
    assert "skipped" not in printed, printed[-2000:]

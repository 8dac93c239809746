"""What ranks must not do without a word: two processes go through the scenarios of a script together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from launch import reports

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"),
    pytest.mark.slow,
]
HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("script", ["told", "steps", "sharded", "replicated", "deferred", "dtensors/doors_refused"])
def test_every_scenario_passes_on_every_rank(script: str, tmp_path: Path) -> None:
    """Each process by itself checks every scenario; the reports are those of the ones that failed."""
    found = reports(HERE / f"{script}.py", 2, tmp_path)
    assert {name: report for name, report in found.items() if report} == {}
    assert len(found) > 1  # what a rank wrote, and not only what it printed

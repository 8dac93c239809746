"""Sharded heads trained over two to four processes, and resumed on other numbers of them (training.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from launch import reports

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"),
    pytest.mark.slow,
]
SCRIPT = Path(__file__).with_name("dtensors") / "training.py"


@pytest.mark.parametrize("world", [2, 3, 4])
def test_training_is_that_of_one_process(world: int, tmp_path: Path) -> None:
    """Each process by itself checks every scenario; the reports are those of the ones that failed."""
    found = reports(SCRIPT, world, tmp_path)
    assert {name: report for name, report in found.items() if report} == {}
    assert len(found) > 1


def test_a_checkpoint_goes_on_with_more_ranks_and_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved on two ranks, loaded and saved on three, and loaded into a head without a mesh."""
    kept = tmp_path / "checkpoints"
    kept.mkdir()
    monkeypatch.setenv("LT_KERNELS_TEST_CHECKPOINT", str(kept))
    for world in (2, 3, 1):
        folder = tmp_path / str(world)
        folder.mkdir()
        found = reports(SCRIPT, world, folder)
        assert {name: report for name, report in found.items() if report} == {}, world
        assert "saved" in found
    assert len(list(kept.iterdir())) == 3

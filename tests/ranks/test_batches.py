"""Batches that are dealt over two and three processes: what is gathered or made of them is the whole's (batches.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from launch import reports

from lt_kernels.distributed import gather_batch

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("script", ["batches", "state", "sums", "refused", "repulsed"])
def test_every_scenario_passes_on_every_rank(script: str, world: int, tmp_path: Path) -> None:
    """Each process by itself checks every scenario; the reports are those of the ones that failed."""
    found = reports(HERE / f"{script}.py", world, tmp_path)
    assert {name: report for name, report in found.items() if report} == {}
    assert len(found) > 1


def test_without_a_process_group_there_is_nothing_to_gather() -> None:
    with pytest.raises(ValueError, match=r"group must be a process group, or torch.distributed be initialised"):
        gather_batch(torch.zeros(2, 3), torch.tensor([0, 1]))

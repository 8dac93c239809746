"""Classes sharded over two to four processes, all or sampled: the whole's values, gradients and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist
from launch import reports


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("script", ["shards", "sampled", "traffic", "dtensors/doors"])
def test_shards_are_the_whole(world, script, tmp_path):
    """Each process by itself checks every case against the unsharded result; the reports are those that failed."""
    found = reports(Path(__file__).parent / f"{script}.py", world, tmp_path)
    assert {name: report for name, report in found.items() if report} == {}
    assert len(found) > 1

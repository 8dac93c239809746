"""Classes sharded over two and three processes: values, gradients and errors are the whole's (tests/shards.py)."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from lt_kernels.distributed import shard_bounds

HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_the_whole(world, tmp_path):
    """Each process by itself checks every case against the unsharded result; the first traceback is the test's."""
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "error", str(HERE / "shards.py")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        said = [rank.communicate(timeout=90)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    reports = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("rank*.txt"))]
    assert all(rank.returncode == 0 for rank in ranks), "\n".join(reports + said)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("classes", [7, 8, 100, 8142])
def test_bounds_deal_out_every_class_evenly(classes, world):
    bounds = [shard_bounds(classes, rank, world) for rank in range(world)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == classes
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bounds))
    sizes = [last - first for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_bounds_of_fewer_classes_than_ranks_are_an_error():
    with pytest.raises(ValueError, match="num_classes must be at least 1 for each of the 3 ranks, got 2"):
        shard_bounds(2, 0, 3)
    with pytest.raises(ValueError, match="rank must be 0 to 2, got -1"):
        shard_bounds(5, -1, 3)

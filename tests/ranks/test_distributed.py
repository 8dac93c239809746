"""Classes sharded over two and three processes, all or sampled: the whole's values, gradients and errors."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch.distributed as dist
from launch import reports

from lt_kernels.distributed import shard_bounds


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
@pytest.mark.parametrize("script", ["shards", "sampled"])
@pytest.mark.parametrize("world", [2, 3])
def test_shards_are_the_whole(world, script, tmp_path):
    """Each process by itself checks every case against the unsharded result; the reports are those that failed."""
    found = reports(Path(__file__).with_name(f"{script}.py"), world, tmp_path)
    assert {name: report for name, report in found.items() if report} == {}
    assert len(found) > 1


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

"""Metrics of a data set whose parts lie on two ranks: run by test_torchmetrics.py, one process a rank."""

from __future__ import annotations

from typing import Any

import torch
from launch import main
from torch.testing import assert_close

from lt_kernels.integrations.torchmetrics import ExpectedCalibrationError, GroupAccuracy


def synced(rank: int, world: int, group: Any) -> None:
    """Each rank has the value of the whole; one of them has fewer batches, and what is its own it gets back."""
    logits, target = torch.randn(90, 4), torch.randint(4, (90,))
    for metric in (GroupAccuracy([200, 90, 30, 2]), ExpectedCalibrationError(4, [200, 90, 30, 2], bins=5)):
        whole = metric.clone()
        whole.sync_on_compute = False
        whole.update(logits, target)
        for start in range(0, 60, 30) if rank == 0 else [60]:
            metric.update(logits[start : start + 30], target[start : start + 30])
        own = metric.total.clone()
        found, expected = metric.compute(), whole.compute()
        assert found.keys() == expected.keys()
        for name in found:
            assert_close(found[name], expected[name])
        assert torch.equal(metric.total, own)


if __name__ == "__main__":
    main([synced])

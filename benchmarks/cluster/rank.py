"""One process of `benchmarks.cluster.million`: its steps, and what they raise its memory by."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from benchmarks.memory import resident
from lt_kernels.heads import CosineHead
from lt_kernels.losses import CosFaceLoss

WARM = 2  # steps that are not timed: the first one makes AdamW's state


def made(told: dict[str, Any], mesh: DeviceMesh) -> tuple[CosineHead, torch.optim.Optimizer]:
    """The head, and an optimiser whose step makes no copies of the rows."""
    sample = None if told["sample"] == 1.0 else told["sample"]
    head = CosineHead(told["features"], told["classes"], CosFaceLoss(), mesh=mesh, sample=sample)
    return head, torch.optim.AdamW(head.parameters(), 1e-3, fused=True)


def steps(told: dict[str, Any], mesh: DeviceMesh) -> list[float]:
    """Seconds of each step: a loss, its gradients, and an update."""
    head, optimizer = made(told, mesh)
    generator, seconds = torch.Generator().manual_seed(0), []  # every rank has the same batch
    for _ in range(told["steps"] + WARM):
        features = F.normalize(torch.randn(told["rows"], told["features"], generator=generator)).requires_grad_()
        target = torch.randint(told["classes"], (told["rows"],), generator=generator)
        dist.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        head(features, target).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM:]


def main() -> int:
    """Go through the steps as one rank, and print what was measured."""
    told, rank = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    store = dist.FileStore(told["store"], told["world"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=told["world"])
    mesh = init_device_mesh("cpu", (told["world"],))
    steps({**told, "classes": 8 * told["world"], "steps": 1}, mesh)  # libraries and threads do not count
    before = resident("VmRSS")
    seconds = steps(told, mesh)
    print(json.dumps({"seconds": seconds, "before": before, "peak": resident("VmHWM") - before}))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

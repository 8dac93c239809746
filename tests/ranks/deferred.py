"""What each of two processes does with a model that was built on the meta device: run by test_fully_shard.py."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from every_loss import HEADS, TARGET, D, N, tables, value
from helpers import normal
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard


class Model(nn.Module):
    """A backbone and a head of ours."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, D), HEADS[name]()

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        features = self.backbone(inputs)
        return self.head(features.repeat(1, getattr(self.head, "experts", 1)), target)


def deferred(name: str, mesh: object, rank: int) -> None:
    """Build on meta, shard, fill, and train a step: loss and weights are those of the model in one piece."""
    with torch.device("meta"):
        model = Model(name)
    fully_shard(model.head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    torch.manual_seed(5)
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    whole = Model(name)
    whole.load_state_dict({key: full(tensor) for key, tensor in model.state_dict().items()})
    for key, table in tables(HEADS[name]()).items():
        assert torch.equal(tables(model.head)[key], table), key
    found = []
    for one in (model, whole):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        inputs = normal(N, 3, seed=6, dtype=torch.float32)
        for _ in range(2):
            optimizer.zero_grad()
            loss = one(inputs, TARGET)
            loss.backward()
            optimizer.step()
        found.append([loss.detach(), *(full(parameter.detach()) for parameter in one.parameters())])
    for ours, exact in zip(*found, strict=True):
        assert_close(ours, exact, torch.float32, f"{name}, rank {rank}")
    assert value(whole.head).isfinite()


def full(tensor: Tensor) -> Tensor:
    """All of a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(rank: int, world: int, folder: Path) -> None:
    """Every head; what goes wrong is left in a file, and ends the rank at once."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=30))
    try:
        mesh = dist.init_device_mesh("cpu", (world,))
        for name in HEADS:
            deferred(name, mesh, rank)
    except BaseException:
        (folder / f"rank{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

"""FSDP2 around models that hold our heads, built on the meta device and filled after they were sharded."""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist
from every_loss import HEADS, TARGET, D, N, tables, value
from helpers import normal
from launch import main
from tolerances import assert_close
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard


class Model(nn.Module):
    """A backbone and a head of ours."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(3, D), HEADS[name]()
        for part in self.head.modules():
            if hasattr(part, "batch_group"):
                part.batch_group = None  # all ranks have the same batch

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


def every_head(rank: int, world: int, group: object) -> None:
    """Each head by itself."""
    mesh = dist.init_device_mesh("cpu", (world,))
    warnings.filterwarnings("ignore", "DTensor random operators", UserWarning)  # torch's own reset_parameters
    for name in HEADS:
        deferred(name, mesh, rank)


if __name__ == "__main__":
    main([every_head])

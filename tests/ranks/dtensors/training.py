"""Sharded heads that are trained, clipped, saved and loaded, against one process: one rank of several."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from doors import compared
from every_loss import BARE, COUNTS, PLAIN, C, D
from helpers import classes_of, normal
from launch import main, mesh_of
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from lt_kernels import losses
from lt_kernels.distributed import clip_grad_norm_
from lt_kernels.heads import CosineHead, LinearHead

N = 12
FOLDER = os.environ.get("LT_KERNELS_TEST_CHECKPOINT", "")
SHARDED = {name: make for name, make in {**PLAIN, **BARE}.items() if not make().needs_logits}
OPTIMIZERS: tuple[Callable[[Any], torch.optim.Optimizer], ...] = (
    lambda values: torch.optim.AdamW(values, 0.05),
    lambda values: torch.optim.SGD(values, 0.5, momentum=0.9, weight_decay=0.01),
)


class Model(nn.Module):
    """A backbone and a head of a loss: of cosines, or of logits."""

    def __init__(self, loss: losses.Loss, mesh: Any, cosine: bool) -> None:
        super().__init__()
        self.body = nn.Linear(D, D)
        self.head = CosineHead(D, C, loss, mesh=mesh) if cosine else LinearHead(D, C, loss, mesh=mesh)

    def forward(self, features: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """The loss."""
        return self.head(self.body(features), target, sample_weight)


def model_of(loss: losses.Loss, mesh: Any, cosine: bool) -> Model:
    """A model with the same weights whatever the mesh."""
    torch.manual_seed(7)
    return Model(loss, mesh, cosine).double()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int, clip: Callable[..., Tensor]) -> list[Tensor]:
    """One step with clipped gradients, every second one with weights of rows: the loss and the norm."""
    optimizer.zero_grad()
    rows = normal(N, seed=200 + number).abs() if number % 2 else None
    loss = model(normal(N, D, seed=number), classes_of(N, C, seed=100 + number), rows).sum()
    loss.backward()
    norm = clip(model.parameters(), 0.3)
    optimizer.step()
    return [loss.detach(), norm]


def full(model: nn.Module) -> list[Tensor]:
    """All parameters, whole."""
    return [one.full_tensor() if hasattr(one, "full_tensor") else one.detach() for one in model.parameters()]


def every_loss(rank: int, world: int, group: Any) -> None:
    """Each named loss that shards, with both heads where it takes both: loss, norm and weights of several steps."""
    for number, (name, make) in enumerate(SHARDED.items()):
        for cosine in (True,) if make().input_kind == "cosine" else (False, True):
            optimizer = OPTIMIZERS[(number + cosine) % 2]
            ours, whole = model_of(make(), mesh_of(world), cosine), model_of(make(), None, cosine)
            steps = [optimizer(one.parameters()) for one in (ours, whole)]
            for at in range(3):
                found = step(ours, steps[0], at, clip_grad_norm_)
                exact = step(whole, steps[1], at, nn.utils.clip_grad_norm_)
                compared(found, exact, f"{name}, {cosine}, step {at}")
            compared(full(ours), full(whole), f"{name}, {cosine}, weights")


def drift(rank: int, world: int, group: Any) -> None:
    """Every rank has the same backbone after clipped steps, to the bit."""
    model = model_of(losses.BalancedSoftmaxLoss(COUNTS), mesh_of(world), False)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for at in range(5):
        step(model, optimizer, at, clip_grad_norm_)
    every: list[Any] = [None] * world
    dist.all_gather_object(every, model.body.weight.detach(), group=group)
    assert all(torch.equal(one, every[0]) for one in every)


def grid(rank: int, world: int, group: Any) -> None:
    """fully_shard over one dimension of a mesh and the classes over the other; one clip for both."""
    if world == 3:  # fully_shard takes no parameter of which a rank has nothing, and there are four classes
        return
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("rows", "classes"))
    ours = model_of(losses.BalancedSoftmaxLoss(COUNTS), mesh["classes"], False)
    whole = model_of(losses.BalancedSoftmaxLoss(COUNTS), None, False)
    fully_shard(ours, mesh=mesh["rows"])
    steps = [OPTIMIZERS[0](one.parameters()) for one in (ours, whole)]
    for at in range(3):
        found, exact = step(ours, steps[0], at, clip_grad_norm_), step(whole, steps[1], at, nn.utils.clip_grad_norm_)
        compared(found, exact, f"step {at}")
    compared(full(ours), full(whole), "weights")


def columns(rank: int, world: int, group: Any) -> None:
    """ColwiseParallel over a head without a mesh: the loss and its steps, and logits whole or by classes."""
    for cosine in (False, True):
        made = partial(losses.BalancedSoftmaxLoss, COUNTS, softcap=None if cosine else 1.5)
        ours, whole = (model_of(made(), None, cosine) for _ in range(2))
        parallelize_module(ours, mesh_of(world), {"head": ColwiseParallel(output_layouts=Replicate())})
        assert ours.head.weight.placements == (Shard(0),)
        steps = [OPTIMIZERS[0](one.parameters()) for one in (ours, whole)]
        for at in range(3):
            found = step(ours, steps[0], at, clip_grad_norm_)
            compared(found, step(whole, steps[1], at, nn.utils.clip_grad_norm_), f"{cosine}, step {at}")
        compared(full(ours), full(whole), "weights")
        features = normal(4, 2, D, seed=1)
        compared([ours.head(features).detach()], [whole.head(features).detach()], "logits")
        parted = model_of(made(), None, cosine).head
        exact = parted(features).detach()
        parallelize_module(parted, mesh_of(world), ColwiseParallel())
        chunks = [*exact.chunk(world, -1), *[exact[..., :0]] * world]
        compared([parted(features).detach()], [chunks[rank]], "own logits")


def saved(rank: int, world: int, group: Any) -> None:
    """The checkpoint of other ranks, if there is one, goes on as one process does, with the optimiser's state."""
    folder = Path(FOLDER)
    done = sorted(folder.iterdir())
    mesh = mesh_of(world) if world > 1 else None
    ours, whole = (model_of(losses.BalancedSoftmaxLoss(COUNTS), one, False) for one in (mesh, None))
    steps = [OPTIMIZERS[0](one.parameters()) for one in (ours, whole)]
    for at in range(2 * len(done)):
        step(whole, steps[1], at, nn.utils.clip_grad_norm_)
    if done:
        model, optimizer = get_state_dict(ours, steps[0])
        dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=done[-1])
        set_state_dict(ours, steps[0], model_state_dict=model, optim_state_dict=optimizer)
        compared(full(ours), full(whole), "loaded")
    for at in range(2 * len(done), 2 * len(done) + 2):
        found = step(ours, steps[0], at, clip_grad_norm_)
        compared(found, step(whole, steps[1], at, nn.utils.clip_grad_norm_), f"step {at}")
    compared(full(ours), full(whole), "trained on")
    model, optimizer = get_state_dict(ours, steps[0])
    dist.barrier()  # all have looked at what was there
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder / f"{len(done)}")


if __name__ == "__main__":
    main([saved] if FOLDER else [every_loss, drift, grid, columns])

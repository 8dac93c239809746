"""What a step sends is what the formulas of docs/cluster.md say, counted by a process group: one rank of several."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import counting
import torch
from helpers import classes_of, normal
from launch import main, mesh_of
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cluster import formulas
from benchmarks.cluster.formulas import Sent
from lt_kernels import losses
from lt_kernels.distributed import clip_grad_norm_, gather_batch
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import LinearHead
from lt_kernels.ops.ranks import exchange

D, C = 8, 23


def counted(group: Any, step: Callable[[], object]) -> list[Sent]:
    """What the third of three equal steps sends: the first make room in frames, and order what DDP sends."""
    exchange.talk_of(group).room = 0  # as in a new group: frames keep the room of what was larger
    step()
    step()
    group.sent.clear()
    step()
    return sorted(Sent(*one) for one in group.sent)


def head(rank: int, world: int, group: Any) -> None:
    """A sharded head sends the same whatever its classes are, sampled or not: N numbers a row, and the gradient."""
    rows_of = ((6, 1, 0.0), (7, 1, 0.1), (6, 2, 0.1))
    for dtype, (rows, targets, smoothing), (classes, sample) in itertools.product(
        (torch.float32, torch.float64), rows_of, ((C, None), (40 * C, None), (C, 0.5))
    ):
        torch.manual_seed(0)
        loss = losses.CrossEntropyLoss(label_smoothing=smoothing)
        sharded = LinearHead(D, classes, loss, mesh=mesh_of(world), sample=sample).to(dtype)
        target = classes_of(rows, classes, seed=1)
        both = MixedTarget(target, target.flip(0), 0.3) if targets == 2 else target
        features = normal(rows, D, seed=2, dtype=dtype).requires_grad_()
        found = counted(group, functools.partial(stepped, sharded, features, both))
        statistics = formulas.payload(rows, targets, bool(smoothing), dtype.itemsize)
        exact = formulas.head_step(rows, D, statistics, dtype.itemsize)
        assert found == sorted(exact), (classes, sample, rows, targets)


def stepped(model: nn.Module, features: Tensor, target: Any) -> None:
    """Forward and backward."""
    model(features, target).backward()


def batch(rank: int, world: int, group: Any) -> None:
    """With `gather_batch` a step sends each rank's rows once, and their gradient twice."""
    torch.manual_seed(0)
    sharded = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world))
    rows = rank + 2  # of this rank
    features, target = normal(rows, D, seed=rank, dtype=torch.float32).requires_grad_(), classes_of(rows, C, seed=rank)
    total, most = sum(range(2, world + 2)), world + 1
    found = counted(group, lambda: sharded(*gather_batch(features, target, group)).backward())
    statistics = formulas.payload(total)
    step = formulas.batch_step(most, world, D, statistics) + formulas.head_step(total, D, statistics)
    assert found == sorted(step), (found, step)


def clipped(rank: int, world: int, group: Any) -> None:
    """Clipping sends a frame, whatever there is to clip, and leaves the frames of the next step alone."""
    torch.manual_seed(0)
    body, sharded = nn.Linear(D, D), LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world))
    features, target = normal(6, D, seed=1, dtype=torch.float32), classes_of(6, C, seed=2)

    def step() -> None:
        sharded(body(features), target).backward()
        clip_grad_norm_([*body.parameters(), *sharded.parameters()], 1.0)

    statistics = formulas.payload(6)
    found, exact = counted(group, step), formulas.head_step(6, D, statistics) + formulas.clip_step(statistics)
    assert found == sorted(exact), (found, exact)


def held(rank: int, world: int, group: Any) -> None:
    """Weights, gradients and AdamW's moments of a rank are what the formula says of the one with the most classes."""
    sharded = LinearHead(D, C, losses.CrossEntropyLoss(), bias=False, mesh=mesh_of(world))
    optimizer = torch.optim.AdamW(sharded.parameters(), fused=True)
    sharded(normal(6, D, seed=1, dtype=torch.float32), classes_of(6, C, seed=2)).backward()
    optimizer.step()
    moments = [value for value in optimizer.state[sharded.weight].values() if value.ndim == 2]
    found: Any = sum(one.to_local().nbytes for one in (sharded.weight, sharded.weight.grad, *moments))
    exact = formulas.sharded_memory(C, D, world, 6).stays
    assert found == exact if rank == 0 else found <= exact, (found, exact)


def replicated(rank: int, world: int, group: Any) -> None:
    """`DistributedDataParallel` sends the gradients of all class weights, and `fully_shard` three times a share."""
    features, target = normal(6, D, seed=1, dtype=torch.float32), classes_of(6, C, seed=2)
    numbers = C * (D + 1)
    whole = DistributedDataParallel(LinearHead(D, C, losses.CrossEntropyLoss()), process_group=group)
    found = counted(group, lambda: whole(features, target).backward())
    assert found == formulas.replicated_step(numbers), found
    classes = 12 * C  # all ranks have as many
    model = nn.Sequential(nn.Linear(D, classes, bias=False))
    fully_shard(model[0], mesh=mesh_of(world))
    fully_shard(model, mesh=mesh_of(world))
    found = counted(group, lambda: model(features).square().sum().backward())
    assert found == sorted(formulas.fully_sharded_step(classes * D, world)), found


if __name__ == "__main__":
    counting.register()
    main([head, batch, clipped, held, replicated], backend="counting")

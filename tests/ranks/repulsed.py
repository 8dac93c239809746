"""Logit-weight repulsion of class weights that are sharded over ranks: run by test_batches.py, one a rank."""

from __future__ import annotations

import unittest.mock
from typing import Any

import pytest
import torch
import torch.distributed as dist
from batches import cut
from helpers import normal
from launch import main
from told_problem import right
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from lt_kernels import losses
from lt_kernels.distributed import RankError, gather_batch
from lt_kernels.functional import logit_weight_repulsion
from lt_kernels.heads import LinearHead
from lt_kernels.ops.ranks import gram
from lt_kernels.regularizers import LogitWeightRepulsion

C, D = 23, 6
WEIGHT = normal(C, D, seed=1) + normal(1, D, seed=2)  # a common part, so that some are near
WEIGHT[4] = 0  # without a direction
SIZES = {2: [(12, 11), (22, 1), (0, 23)], 3: [(8, 8, 7), (1, 21, 1), (0, 23, 0)]}
FORMS: tuple[Any, ...] = (True, False, "raw")


def found(weight: Tensor, own: Tensor | None = None, **settings: Any) -> list[Tensor]:
    """R, and the gradient for the class weights of its sum with some factors."""
    leaf = weight.detach().clone().requires_grad_()
    value = logit_weight_repulsion(leaf, **settings)
    factors = torch.ones_like(value) if own is None else own
    (grad,) = torch.autograd.grad(value, leaf, factors.to(value.dtype))
    return [value.detach(), grad]


def whole(rank: int, world: int, group: Any) -> None:
    """Value and gradient are those of all class weights in one piece, in every form, for any shards."""
    factors = normal(C, seed=3).exp()
    for sizes in SIZES[world]:
        rows = cut(rank, sizes, WEIGHT)
        for project in FORMS:
            for threshold in (-1.0, 0.2, 0.6, 1.0):
                settings = {"project": project, "threshold": threshold}
                name = f"{sizes}, {settings}"
                for reduction in ("sum", "mean", "none"):
                    own = (None, None) if reduction != "none" else (factors, cut(rank, sizes, factors))
                    value, grad = found(WEIGHT, own[0], reduction=reduction, **settings)
                    ours, gradient = found(rows, own[1], reduction=reduction, group=group, **settings)
                    exact = cut(rank, sizes, value) if reduction == "none" else value
                    torch.testing.assert_close(ours, exact, msg=lambda text, name=name: f"{name}: {text}")
                    torch.testing.assert_close(
                        gradient, cut(rank, sizes, grad), msg=lambda text, name=name: f"{name}: {text}"
                    )
        for project, few in ((True, 0), (False, 0), ("raw", 0), ("raw", 50)):  # slabs of few rows, pairs listed or not
            with unittest.mock.patch.object(gram, "_SLAB", 40), unittest.mock.patch.object(gram, "_GATHERED", few):
                ours = found(rows, project=project, threshold=0.2, group=group)
            for one, exact in zip(ours, found(WEIGHT, project=project, threshold=0.2), strict=True):
                torch.testing.assert_close(one, exact if exact.ndim == 0 else cut(rank, sizes, exact))


def kinds(rank: int, world: int, group: Any) -> None:
    """Every dtype, autocast, rows that are not finite, and a factor of the loss."""
    rows = cut(rank, SIZES[world][0], WEIGHT)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        for project in FORMS:
            value, grad = found(rows.to(dtype), project=project, group=group)
            exact = found(WEIGHT.to(dtype).double(), project=project)
            assert value.dtype is dtype
            assert grad.dtype is dtype
            torch.testing.assert_close(value.double(), exact[0], rtol=tolerance, atol=tolerance)
            exact = cut(rank, SIZES[world][0], exact[1])
            torch.testing.assert_close(grad.double(), exact, rtol=tolerance, atol=tolerance * WEIGHT.abs().max().item())
    with torch.autocast("cpu", torch.bfloat16):
        value = logit_weight_repulsion(rows.float(), group=group)
    assert value.dtype is torch.float32
    torch.testing.assert_close(value, logit_weight_repulsion(WEIGHT.float()))
    broken = WEIGHT.clone()
    broken[7] = torch.nan
    value = logit_weight_repulsion(cut(rank, SIZES[world][0], broken), reduction="none", group=group)
    exact = logit_weight_repulsion(broken, reduction="none")
    torch.testing.assert_close(value, cut(rank, SIZES[world][0], exact), equal_nan=True)


def dtensors(rank: int, world: int, group: Any) -> None:
    """A DTensor of sharded rows or of whole ones, the weight of a head among them; other placements are refused."""
    mesh = dist.init_device_mesh("cpu", (world,))
    value, grad = found(WEIGHT)
    for placement in (Shard(0), Replicate()):
        weight = distribute_tensor(WEIGHT, mesh, [placement]).requires_grad_()
        for term in (LogitWeightRepulsion(), LogitWeightRepulsion(neighbours="list")):
            weight.grad = None
            ours = term(weight)
            ours.backward()
            torch.testing.assert_close(ours.detach(), value)
            torch.testing.assert_close(weight.grad.full_tensor(), grad)
        assert term.status == "all pairs: the class weights are sharded over ranks"
    with pytest.raises(ValueError, match=r"linear_weight must have placements Shard\(dim=0\)"):
        logit_weight_repulsion(distribute_tensor(WEIGHT, mesh, [Shard(1)]))
    with pytest.raises(ValueError, match="group must be None with a DTensor"):
        logit_weight_repulsion(weight, group=group)
    for classes in (C, 1):  # a rank may have no class
        torch.manual_seed(0)
        alone = LinearHead(D, classes, losses.CrossEntropyLoss())
        torch.manual_seed(0)
        head = LinearHead(D, classes, losses.CrossEntropyLoss(), mesh=mesh)
        for one in (alone, head):
            (0.1 * LogitWeightRepulsion(0.1)(one.weight)).backward()
        torch.testing.assert_close(head.weight.grad.full_tensor(), alone.weight.grad)


def exchanged(rank: int, world: int, group: Any) -> None:
    """All rows come by once in each pass, a rank's at a time, and one or two numbers a class in the backward pass."""
    sizes = SIZES[world][0]
    rows, sent = cut(rank, sizes, WEIGHT).float().requires_grad_(), []
    logit_weight_repulsion(rows, group=group)
    broadcast = dist.broadcast

    def counted(tensor: Tensor, *args: Any, **options: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return broadcast(tensor, *args, **options)

    with unittest.mock.patch.object(dist, "broadcast", counted):
        logit_weight_repulsion(rows, group=group).backward()
    assert sent == [size * D * 4 for size in sizes] * 2


def told(rank: int, world: int, group: Any) -> None:
    """What differs is named on every rank: settings, dtypes, widths, gradients; and rows that are the same."""
    rows = cut(rank, SIZES[world][0], WEIGHT)
    odd = rank == 1
    for settings, word in (
        ({"threshold": 0.4 + odd / 10}, "threshold"),
        ({"project": not odd}, "project"),
        ({"reduction": "mean" if odd else "sum"}, "reduction"),
    ):
        with pytest.raises(RankError, match=f"^{word} must be the same on every rank"):
            logit_weight_repulsion(rows, group=group, **settings)
    for other in (rows.float(), rows[:, 1:]):
        with pytest.raises(RankError, match=r"^linear_weight must be the same on every rank"):
            logit_weight_repulsion(other if odd else rows, group=group)
    leaf = rows.clone().requires_grad_()
    with pytest.raises(RankError, match="requires_grad of linear_weight must be the same"):
        logit_weight_repulsion(leaf if odd else rows, group=group)
    with pytest.raises(RankError, match="rank 1 holds those of rank 0"):
        logit_weight_repulsion(WEIGHT[:3], group=group)
    right(rank, world, group)


def refused(rank: int, world: int, group: Any) -> None:
    """What one rank refuses all refuse, and so a call or a backward pass that one leaves out."""
    rows, odd = cut(rank, SIZES[world][0], WEIGHT), rank == 1
    leaf = rows.clone().requires_grad_()
    if odd:
        with pytest.raises(ValueError, match=r"linear_weight must be \[C, d\]"):
            logit_weight_repulsion(rows[0], group=group)
        with pytest.raises(ValueError, match="reduction must be one of"):
            logit_weight_repulsion(rows, reduction="own", group=group)
    else:
        for word in ("linear_weight", "reduction"):
            with pytest.raises(RankError, match=f"rank 1: ValueError: {word} must be"):
                logit_weight_repulsion(rows, group=group)
    with pytest.raises(RankError, match="every rank must make the same calls"):
        logit_weight_repulsion(rows, group=group) if odd else gather_batch(WEIGHT, torch.zeros(C).long(), group)
    value = logit_weight_repulsion(leaf, group=group)
    with pytest.raises(RankError, match="every rank must make the same calls"):
        value.backward() if odd else logit_weight_repulsion(leaf, group=group)
    with pytest.raises(ValueError, match="group must be a torch"):
        logit_weight_repulsion(rows, group="world")
    right(rank, world, group)


if __name__ == "__main__":
    main([whole, kinds, dtensors, exchanged, told, refused])

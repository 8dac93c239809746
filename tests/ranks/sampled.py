"""A sharded head that samples its classes, against one process that is given the same: one rank of several."""

from __future__ import annotations

import unittest.mock
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import classes_of, counts_of, normal
from launch import main, mesh_of
from told_problem import right
from torch import Tensor, nn

from lt_kernels import losses
from lt_kernels.distributed import RankError
from lt_kernels.functional import MixedTarget
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.ops.ranks.placements import local
from lt_kernels.ops.ranks.sampling import Chosen, Sampling

N, D, C = 8, 5, 41
COUNTS = counts_of(C, seed=1)
WEIGHT = normal(C, seed=2).exp()
FEATURES = normal(N, D, seed=3)
TARGET = classes_of(N, 12, seed=4)  # all of them on the first rank
SPREAD = classes_of(N, C, seed=5)
TARGETS = {
    "one rank's": TARGET,
    "spread": SPREAD,
    "ignored": SPREAD.masked_fill(torch.arange(N) % 3 == 1, 5),
    "two": MixedTarget(SPREAD, TARGET, 0.3),
    "many": torch.arange(0, C, 2),
}
Make = Callable[..., Any]
HEADS: dict[str, Make] = {
    "linear": lambda **given: LinearHead(D, C, losses.Loss(weight=WEIGHT, ignore_index=5), **given),
    "smoothed": lambda **given: LinearHead(
        D, C, losses.BalancedSoftmaxLoss(COUNTS, weight=WEIGHT, label_smoothing=0.2, ignore_index=5), **given
    ),
    "capped": lambda **given: LinearHead(D, C, losses.Loss(softcap=0.5, z_loss=0.1, ignore_index=5), **given),
    "dbm": lambda **given: CosineHead(D, C, losses.DBMLoss(COUNTS, 0.3, base="bs", ignore_index=5), **given),
    "arcface": lambda **given: CosineHead(D, C, losses.ArcFaceLoss(scale=9.0, label_smoothing=0.1), **given),
    "sphere": lambda **given: CosineHead(D, C, losses.SphereFaceLoss(), **given),
}


def drawn(group: Any, head: Any, target: Any) -> Chosen:
    """All ranks' classes of this seed's draw, as one process would have them."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    torch.manual_seed(10 + rank)  # the ranks' generators need not be in step
    own = head.weight.to_local()
    start = min(C, rank * -(-C // world))
    found = head.sampling.draw(target, head.loss.ignore_index, own, start)
    rows = torch.arange(len(own)) if found.rows is None else found.rows
    stands = torch.ones(len(rows)).double() if found.stands is None else found.stands
    every: list[Any] = [None] * world
    dist.all_gather_object(every, (rows + start, stands), group=group)
    return Chosen(head.sampling, *(torch.cat(parts) for parts in zip(*every, strict=True)))


def called(head: Any, features: Tensor, target: Any) -> list[Tensor]:
    """The loss and its gradients."""
    features = features.clone().requires_grad_()
    loss = head(features, target)
    return [loss.detach(), *torch.autograd.grad(loss, [features, *head.parameters()])]


def near(ours: Tensor, whole: Tensor, name: str) -> None:
    """Equal to 1e-12 of the largest entry."""
    error = (ours - whole).abs().max().item()
    assert error <= 1e-12 * max(1.0, whole.abs().max().item()), f"{name}: {error:.2e}"


def one_process(rank: int, world: int, group: Any) -> None:
    """Loss and gradients of the ranks' choice are those of one process; no other class gets a gradient.

    Each head with each target, with the correction or without; with 2 and 3 processes both.
    """
    for first, (name, make) in enumerate(HEADS.items()):
        for logq in (False, True):
            torch.manual_seed(1)
            whole = make(sample=0.4, logq_correction=logq).double()
            torch.manual_seed(1)
            ours = make(sample=0.4, logq_correction=logq, mesh=mesh_of(world)).double()
            for second, (kind, target) in enumerate(TARGETS.items()):
                if (first + second + world + logq) % 2:
                    continue
                features = normal(len(target), D, seed=6) if isinstance(target, Tensor) else FEATURES
                chosen = drawn(group, ours, target)
                torch.manual_seed(10 + rank)
                found = called(ours, features, target)
                with unittest.mock.patch.object(Sampling, "draw", lambda *_, chosen=chosen: chosen):
                    exact = called(whole, features, target)
                near(found[0], exact[0], f"{name}, {kind}, loss")
                near(found[1], exact[1], f"{name}, {kind}, features")
                for part, full in zip(found[2:], exact[2:], strict=True):
                    near(part.full_tensor(), full, f"{name}, {kind}, parameter")
                    assert chosen.rows is not None
                    rest = torch.ones(C, dtype=torch.bool).index_fill(0, chosen.rows, False)
                    assert bool((part.full_tensor()[rest] == 0).all()), f"{name}, {kind}"


def whole_share(rank: int, world: int, group: Any) -> None:
    """With all classes a sampled head is the one that does not sample, to the bit; so it is in evaluation."""
    for name in ("linear", "dbm", "sphere"):
        torch.manual_seed(1)
        plain = HEADS[name](mesh=mesh_of(world)).double()
        for sample, training in ((1.0, True), (0.2, False)):
            torch.manual_seed(1)
            ours = HEADS[name](mesh=mesh_of(world), sample=sample).double().train(training)
            found, exact = (called(head, FEATURES, TARGET) for head in (ours, plain))
            assert all(torch.equal(local(one), local(other)) for one, other in zip(found, exact, strict=True)), name


def no_classes(rank: int, world: int, group: Any) -> None:
    """With fewer classes than ranks one has none; each of the others has one, which is always there."""
    found = []
    for sample in (None, 0.5):
        torch.manual_seed(1)
        head = LinearHead(D, world - 1, losses.CrossEntropyLoss(), mesh=mesh_of(world), sample=sample).double()
        found.append(called(head, FEATURES, TARGET % (world - 1)))
    assert all(torch.equal(local(one), local(other)) for one, other in zip(*found, strict=True))


def unlike(rank: int, world: int, group: Any) -> None:
    """Ranks that sample otherwise, or not at all, are an error on all of them; so is a target that is none."""
    for other in ({"sample": 0.5}, {"sample": 0.3, "logq_correction": True}, {}):
        torch.manual_seed(1)
        head = HEADS["linear"](mesh=mesh_of(world), **({"sample": 0.3} if rank else other)).double()
        with pytest.raises(RankError, match="sample must be the same on every rank"):
            head(FEATURES, TARGET)
        right(rank, world, group)
    torch.manual_seed(1)
    head = HEADS["linear"](mesh=mesh_of(world), sample=0.3).double()
    if rank:
        head.eval()
    with pytest.raises(RankError, match="sample must be the same on every rank"):
        head(FEATURES, TARGET)
    head.train()
    for wrong, error in ((torch.full((N,), C), IndexError), (torch.rand(N, C).double(), ValueError)):
        with pytest.raises(error, match="target"):
            head(FEATURES, wrong)
        right(rank, world, group)


def trained(rank: int, world: int, group: Any) -> None:
    """A backbone and a sampled head, trained: every rank has the same backbone, and the loss of all classes falls."""
    torch.manual_seed(1)
    body = nn.Linear(D, D).double()
    head = CosineHead(
        D, C, losses.CosFaceLoss(0.1, scale=16.0), sample=0.3, logq_correction=True, mesh=mesh_of(world)
    ).double()
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], 0.05)
    centres = normal(C, D, seed=7)
    losses_of = []
    for step in range(30):
        target = classes_of(32, C, seed=step)
        optimizer.zero_grad()
        head(body(centres[target]), target).backward()
        optimizer.step()
        losses_of.append(head.eval()(body(centres), torch.arange(C)).item())
        head.train()
    every: list[Any] = [None] * world
    dist.all_gather_object(every, body.weight.detach(), group=group)
    assert all(torch.equal(one, every[0]) for one in every)
    assert losses_of[-1] < 0.5 * losses_of[0], losses_of


if __name__ == "__main__":
    main([one_process, whole_share, no_classes, unlike, trained])

"""Ranks that make other calls than the others are told so, and go on in step: run by test_ranks.py, one a rank."""

from __future__ import annotations

import unittest.mock
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import normal
from launch import main, mesh_of
from told_problem import INPUT, OTHER, TARGET, WEIGHT, C, D, N, right, rows
from tolerances import assert_close

from lt_kernels import losses
from lt_kernels.distributed import RankError, clip_grad_norm_
from lt_kernels.functional import linear_cross_entropy
from lt_kernels.heads import LinearHead
from lt_kernels.ops.ranks import exchange


def backwards(rank: int, world: int, group: Any) -> None:
    """No gradient is summed with that of another batch, or of another loss."""
    features = [normal(N, D, seed=10 + one).requires_grad_() for one in range(2)]
    found = [linear_cross_entropy(one, rows(rank, world), TARGET, group=group) for one in features]
    order = found if rank else found[::-1]
    with pytest.raises(RankError, match=r"rank 0 is at backward of call .*, rank 1 is at backward of call"):
        order[0].backward()
    right(rank, world, group)
    loss = linear_cross_entropy(features[0], rows(rank, world), TARGET, group=group)
    with pytest.raises(RankError, match=r"rank 0 is at layout of call .*, rank 1 is at backward of call"):
        loss.backward() if rank else linear_cross_entropy(features[1], rows(rank, world), TARGET, group=group)
    assert all(one.grad is None for one in features)
    right(rank, world, group)


def other_calls(rank: int, world: int, group: Any) -> None:
    """Ranks that are at different calls, and layouts that only one of them knows."""
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    loss = head(INPUT, TARGET).detach()
    with pytest.raises(RankError, match=r"every rank must make the same calls.*clip_grad_norm_"):
        clip_grad_norm_(head.parameters(), 1.0) if rank else head(INPUT, TARGET)
    right(rank, world, group)
    shard = rows(rank, world)
    known = linear_cross_entropy(INPUT, shard, TARGET, group=group).detach()
    with pytest.raises(RankError, match="every rank must make the same calls"):
        linear_cross_entropy(INPUT, rows(rank, world) if rank else shard, TARGET, group=group)
    assert torch.equal(linear_cross_entropy(INPUT, shard, TARGET, group=group).detach(), known)
    assert torch.equal(head(INPUT, TARGET).detach(), loss)


def without_waiting(rank: int, world: int, group: Any) -> None:
    """Where a device is not waited for, what does not belong together is NaN, and an error one exchange later."""
    right(rank, world, group)
    with unittest.mock.patch.object(exchange, "_at_once", return_value=False):
        right(rank, world, group)
        features, shard = INPUT.clone().requires_grad_(), rows(rank, world)
        linear_cross_entropy(features, shard, TARGET, group=group).backward()  # the layout waits
        loss = linear_cross_entropy(features, shard, TARGET if rank else OTHER, group=group)
        assert bool(loss.isnan())
        with pytest.raises(RankError, match="target must be the same"):
            loss.backward()
        linear_cross_entropy(features, shard, TARGET, group=group)
        if rank:
            with pytest.raises(IndexError, match="target"):
                linear_cross_entropy(features, shard, TARGET + C, group=group)
        else:
            assert bool(linear_cross_entropy(features, shard, TARGET, group=group).isnan())
            with pytest.raises(RankError, match="rank 1: IndexError: target"):
                linear_cross_entropy(features, shard, TARGET, group=group)
    right(rank, world, group)


def edges(rank: int, world: int, group: Any) -> None:
    """No rows, only ignored rows, and groups of one rank."""
    alone = [dist.new_group([one]) for one in range(world)][rank]
    for target in (TARGET[:0], torch.full((N,), -100)):
        for reduction in ("sum", "mean", "none"):
            features = INPUT[: len(target)].clone().requires_grad_()
            whole = INPUT[: len(target)].clone().requires_grad_()
            exact = torch.nn.functional.cross_entropy(whole @ WEIGHT.T, target, reduction=reduction)
            for weight, ranks in ((rows(rank, world), group), (WEIGHT, alone)):
                loss = linear_cross_entropy(features, weight, target, reduction=reduction, group=ranks)
                torch.testing.assert_close(loss, exact, equal_nan=True)
                (found,) = torch.autograd.grad(loss.sum(), features)
                assert bool((found == 0).all())


def compiled(rank: int, world: int, group: Any) -> None:
    """Under torch.compile the exchange stays outside of the graph: same value, same gradients, same errors."""
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    body = torch.nn.Linear(D, D).double()
    model = torch.compile(lambda x, y: head(body(x), y), backend="aot_eager")
    features = INPUT.clone().requires_grad_()
    exact = head(body(INPUT), TARGET)
    with warnings.catch_warnings():  # torch's own, where a graph ends at a tensor that is no leaf
        warnings.simplefilter("ignore", UserWarning)
        loss = model(features, TARGET)
    loss.backward()
    assert_close(loss.detach(), exact.detach(), torch.float64, "loss")
    if rank:
        with pytest.raises(IndexError, match="target"):
            model(INPUT, TARGET + C)
    else:
        with pytest.raises(RankError, match="rank 1: IndexError: target"):
            model(INPUT, TARGET)
    right(rank, world, group)


if __name__ == "__main__":
    main([backwards, other_calls, without_waiting, edges, compiled])

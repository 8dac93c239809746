"""What must not happen to a head whose classes are sharded, and what must: run by test_ranks.py, one a rank."""

from __future__ import annotations

import copy
import io
import unittest.mock
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import counts_of
from launch import main
from told_problem import INPUT, OTHER, TARGET, C, D, right
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lt_kernels import losses
from lt_kernels.distributed import RankError, clip_grad_norm_, gather_rows, shard_bounds
from lt_kernels.heads import CosineHead, LinearHead, share

COUNTS = counts_of(C, seed=1)
EVEN = 2 * C  # as many classes on both ranks


def head_of(group: Any, classes: int = EVEN) -> LinearHead:
    """A head of the whole, or this rank's share of it."""
    return LinearHead(D, classes, losses.CrossEntropyLoss(), group=group).double()


class Model(nn.Module):
    """A backbone and a sharded head."""

    def __init__(self, group: Any, classes: int = EVEN) -> None:
        super().__init__()
        self.body = nn.Linear(D, D).double()
        self.head = head_of(group, classes)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return self.head(self.body(features), target)


def drawn(rank: int, world: int, group: Any) -> None:
    """Under one seed a sharded head has the rows of the unsharded one, and what is drawn next is the same too."""
    makers = (
        lambda classes, width, ranks: LinearHead(width, classes, losses.CrossEntropyLoss(), group=ranks),
        lambda classes, width, ranks: LinearHead(width, classes, losses.CrossEntropyLoss(), bias=False, group=ranks),
        lambda classes, width, ranks: CosineHead(width, classes, losses.CosFaceLoss(), group=ranks),
    )
    for small in (2**20, 64):
        with unittest.mock.patch.object(share, "BLOCK", small):
            for classes, width in ((world, 1), (3, 5), (11, 7), (97, 3), (1000, 33), (40_001, 32)):
                mine = slice(*shard_bounds(classes, rank, world))
                for make in makers:
                    torch.manual_seed(3)
                    whole, after = make(classes, width, None), torch.randn(5)
                    torch.manual_seed(3)
                    ours, then = make(classes, width, group), torch.randn(5)
                    for again in range(2):
                        for part, full in zip(ours.parameters(), whole.parameters(), strict=True):
                            assert torch.equal(part, full[mine]), (classes, width, again)
                        torch.manual_seed(4)
                        whole.reset_parameters()
                        torch.manual_seed(4)
                        ours.reset_parameters()
                    assert torch.equal(after, then)


def deferred(rank: int, world: int, group: Any) -> None:
    """Built on the meta device and drawn there where it goes, a sharded head has the same rows."""
    torch.manual_seed(3)
    whole = LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS))
    with torch.device("meta"):
        head = LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS), group=group)
    assert head.weight.is_meta
    head.to_empty(device="cpu")
    torch.manual_seed(3)
    head.reset_parameters()
    mine = slice(*shard_bounds(C, rank, world))
    assert torch.equal(head.weight, whole.weight[mine])
    assert torch.equal(head.bias, whole.bias[mine])
    torch.testing.assert_close(head(INPUT.float(), TARGET), whole(INPUT.float(), TARGET))


def same_rows(rank: int, world: int, group: Any) -> None:
    """Ranks that hold the same rows are an error of all; rows that are all the same are not."""
    for classes in (EVEN, C, world):
        torch.manual_seed(0)
        head = head_of(group, classes)
        weight = torch.full_like(head.weight, 0.5)
        head.load_state_dict({"weight": weight, "bias": torch.zeros_like(head.bias)}, strict=False)
        head(INPUT, TARGET % classes)
        torch.manual_seed(1)
        nn.init.uniform_(head.weight)  # as many users do, under the same seed everywhere
        with pytest.raises(RankError, match="rank 1 holds those of rank 0"):
            head(INPUT, TARGET % classes)
        right(rank, world, group)


def averaged_by_ddp(rank: int, world: int, group: Any) -> None:
    """DistributedDataParallel around a sharded head is refused on every rank, whether it broadcasts or not."""
    for options in ({}, {"init_sync": False}):
        torch.manual_seed(0)
        model = DistributedDataParallel(Model(group), process_group=group, **options)
        with pytest.raises(ValueError, match="must not be in DistributedDataParallel over the ranks"):
            model(INPUT, TARGET)
        right(rank, world, group)
    with pytest.raises(RankError, match="rank 1 holds those of rank 0"):  # its rows have been overwritten
        model = DistributedDataParallel(Model(group), process_group=group).module(INPUT, TARGET)
    right(rank, world, group)


def beside_ddp(rank: int, world: int, group: Any) -> None:
    """DistributedDataParallel that leaves the head out, as the unsharded model; so with the ranks of another group."""
    torch.manual_seed(0)
    whole, target = Model(None), TARGET
    torch.manual_seed(0)
    model = Model(group)
    names = [f"head.{name}" for name, _ in model.head.named_parameters()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    wrapped = DistributedDataParallel(model, process_group=group)
    for one in (whole, wrapped):
        one(INPUT, target).backward()
    mine = slice(*shard_bounds(EVEN, rank, world))
    torch.testing.assert_close(model.head.weight.grad, whole.head.weight.grad[mine])
    torch.testing.assert_close(model.body.weight.grad, whole.body.weight.grad)
    alone = [dist.new_group([one]) for one in range(world)][rank]
    other = DistributedDataParallel(Model(group, C), process_group=alone)
    other(INPUT, target).backward()


def fully_sharded(rank: int, world: int, group: Any) -> None:
    """fully_shard and FSDP mix up the rows of a sharded head: refused; with the head left out they serve."""
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    for classes in (EVEN, C):
        for part in (lambda model: model, lambda model: model.head):
            torch.manual_seed(0)
            model = Model(group, classes)
            fully_shard(part(model), mesh=mesh)
            with pytest.raises(RankError, match="rank 1 holds those of rank 0"):
                model(INPUT, TARGET)
            right(rank, world, group)
    torch.manual_seed(0)
    whole = Model(None)
    whole(INPUT, TARGET).backward()
    torch.manual_seed(0)
    model = Model(group)
    fully_shard(model, mesh=mesh, ignored_params=set(model.head.parameters()))
    model(INPUT, TARGET).backward()
    mine = slice(*shard_bounds(EVEN, rank, world))
    torch.testing.assert_close(model.head.weight.grad, whole.head.weight.grad[mine])
    torch.testing.assert_close(model.body.weight.grad.full_tensor(), whole.body.weight.grad)


def clipped(rank: int, world: int, group: Any) -> None:
    """The norm is that of the whole, and every gradient is scaled alike; gradients that drifted apart are an error."""
    for norm_type in (2.0, 1.0, float("inf")):
        torch.manual_seed(0)
        whole = Model(None)
        torch.manual_seed(0)
        model = Model(group)
        for one in (whole, model):
            one(INPUT, TARGET).backward()
        exact = nn.utils.clip_grad_norm_(whole.parameters(), 0.01, norm_type)
        found = clip_grad_norm_(model.parameters(), 0.01, group, norm_type=norm_type)
        torch.testing.assert_close(found, exact)
        mine = slice(*shard_bounds(EVEN, rank, world))
        for (name, part), full in zip(model.named_parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(part.grad, full.grad[mine] if name.startswith("head") else full.grad)
    model.body.weight.grad.mul_(1 + rank)
    with pytest.raises(RankError, match="must be the same on every rank, but their norms are"):
        clip_grad_norm_(model.parameters(), 0.01, group)
    with pytest.raises(ValueError, match="max_norm must be"):
        clip_grad_norm_(model.parameters(), -1.0, group)
    right(rank, world, group)


def copied(rank: int, world: int, group: Any) -> None:
    """deepcopy and AveragedModel keep the group; what was pickled wants it again, and only a fitting one."""
    head = head_of(group, C)
    loss = head(INPUT, TARGET)
    for other in (copy.deepcopy(head), AveragedModel(head), copy.copy(head)):
        assert torch.equal(other(INPUT, TARGET), loss)
    average = AveragedModel(head)
    average.update_parameters(head)
    assert torch.equal(average(INPUT, TARGET), loss)
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(INPUT), head(INPUT))
    with pytest.raises(ValueError, match=r"group must be given again with head.group = .*classes"):
        loaded(INPUT, TARGET)
    alone = [dist.new_group([one]) for one in range(world)][rank]
    with pytest.raises(ValueError, match="group must fit this head, with classes"):
        loaded.group = alone
    loaded.group = group
    assert torch.equal(loaded(INPUT, TARGET), loss)
    with pytest.raises(ValueError, match="group must be given when the head is made"):
        head_of(None).group = group
    right(rank, world, group)


def states(rank: int, world: int, group: Any) -> None:
    """A state_dict of other classes is refused by name; a rank's own, and rows gathered and cut, are loaded."""
    head, other = head_of(group, C), head_of(group, C)
    file = io.BytesIO()
    torch.save(nn.Sequential(head).state_dict(), file)
    others: list[Any] = [None] * world
    dist.all_gather_object(others, file.getvalue(), group=group)
    kept = [torch.load(io.BytesIO(one), weights_only=True) for one in others]
    model = nn.Sequential(other)
    model.load_state_dict(kept[rank])
    assert torch.equal(other.weight, head.weight)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"weight holds classes \d+ to \d+ of 11, this head has classes"):
            model.load_state_dict(kept[1 - rank], strict=strict)
    even = head_of(group)
    with pytest.raises(RuntimeError, match=r"of 11, this head has classes \d+ to \d+ of 22"):
        even.load_state_dict(head.state_dict())
    with pytest.raises(RuntimeError, match=r"weight holds 11 rows, this head has classes .*shard_bounds"):
        model.load_state_dict(nn.Sequential(head_of(None, C)).state_dict())
    with pytest.raises(RuntimeError, match="this head has all 11 classes: gather the rows"):
        head_of(None, C).load_state_dict(head.state_dict())
    whole = {"weight": gather_rows(head.weight, group), "bias": gather_rows(head.bias, group)}
    full = head_of(None, C)
    full.load_state_dict(whole)
    torch.testing.assert_close(full(INPUT, OTHER), head(INPUT, OTHER))
    cut = {key: value[slice(*shard_bounds(C, rank, world))] for key, value in whole.items()}
    other.load_state_dict(cut)
    assert torch.equal(other(INPUT, OTHER), head(INPUT, OTHER))
    plain = dict(kept[0])  # says nothing of its classes; rank 1's rows do not fit, as C is odd
    if rank:
        with pytest.raises(RuntimeError, match="weight holds 5 rows, this head has classes 5 to 10"):
            model.load_state_dict(plain)


def modes(rank: int, world: int, group: Any) -> None:
    """Prediction is a rank's own matter in train() and eval(): no exchange."""
    head = head_of(group, C)
    with unittest.mock.patch.object(dist, "all_gather", side_effect=AssertionError("nothing to exchange")):
        for training in (True, False):
            found = head.train(training)(INPUT)
            assert found.shape == (len(INPUT), head.weight.shape[0])
    with torch.no_grad():
        quiet = head.eval()(INPUT, TARGET)
    torch.testing.assert_close(quiet, head.train()(INPUT, TARGET).detach())


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's of FSDP
        main([drawn, deferred, same_rows, averaged_by_ddp, beside_ddp, fully_sharded, clipped, copied, states, modes])

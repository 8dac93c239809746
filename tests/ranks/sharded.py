"""What must not happen to a head whose classes are sharded, and what must: run by test_ranks.py, one a rank."""

from __future__ import annotations

import copy
import io
import math
import unittest.mock
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import counts_of, normal
from launch import main, mesh_of
from told_problem import INPUT, TARGET, C, D, right
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from lt_kernels import losses
from lt_kernels.distributed import RankError, clip_grad_norm_
from lt_kernels.functional import linear_cross_entropy
from lt_kernels.heads import CosineHead, LinearHead, rows

COUNTS = counts_of(C, seed=1)
EVEN = 2 * C  # as many classes on both ranks


def head_of(mesh: Any, classes: int = EVEN) -> LinearHead:
    """A head of the whole, or this rank's share of it."""
    return LinearHead(D, classes, losses.CrossEntropyLoss(), mesh=mesh).double()


def drawn_alike(whole: nn.Module, ours: nn.Module) -> None:
    """Every parameter of the sharded head is that of the whole one."""
    for part, full in zip(ours.parameters(), whole.parameters(), strict=True):
        assert torch.equal(part.full_tensor(), full)


class Model(nn.Module):
    """A backbone and a sharded head."""

    def __init__(self, mesh: Any, classes: int = EVEN) -> None:
        super().__init__()
        self.body = nn.Linear(D, D).double()
        self.head = head_of(mesh, classes)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss."""
        return self.head(self.body(features), target)


def drawn(rank: int, world: int, group: Any) -> None:
    """Under one seed a sharded head has the rows of the unsharded one, and what is drawn next is the same too."""
    makers = (
        lambda classes, width, mesh: LinearHead(width, classes, losses.CrossEntropyLoss(), mesh=mesh),
        lambda classes, width, mesh: LinearHead(width, classes, losses.CrossEntropyLoss(), bias=False, mesh=mesh),
        lambda classes, width, mesh: CosineHead(width, classes, losses.CosFaceLoss(), mesh=mesh),
    )
    for small in (2**20, 64):
        with unittest.mock.patch.object(rows, "BLOCK", small):
            for classes, width in ((world, 1), (1, 3), (3, 5), (11, 7), (97, 3), (1000, 33), (40_001, 32)):
                for make in makers:
                    torch.manual_seed(3)
                    whole, after = make(classes, width, None), torch.randn(5)
                    torch.manual_seed(3)
                    ours, then = make(classes, width, mesh_of(world)), torch.randn(5)
                    for _ in range(2):
                        drawn_alike(whole, ours)
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
        head = LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS), mesh=mesh_of(world))
    assert head.weight.is_meta
    head.to_empty(device="cpu")
    torch.manual_seed(3)
    head.reset_parameters()
    drawn_alike(whole, head)
    torch.testing.assert_close(head(INPUT.float(), TARGET), whole(INPUT.float(), TARGET))


def same_rows(rank: int, world: int, group: Any) -> None:
    """Ranks that hold the same rows are an error of all; rows that are all the same are not."""
    for classes in (EVEN, C, world):
        head = head_of(mesh_of(world), classes)
        head.load_state_dict({"weight": torch.full((classes, D), 0.5), "bias": torch.zeros(classes)})
        head(INPUT, TARGET % classes)
        torch.manual_seed(1)
        nn.init.uniform_(head.weight.to_local().detach())  # under the same seed everywhere
        with pytest.raises(RankError, match="rank 1 holds those of rank 0"):
            head(INPUT, TARGET % classes)
        right(rank, world, group)


def wrapped(rank: int, world: int, group: Any) -> None:
    """DistributedDataParallel and fully_shard around a sharded head over its ranks are errors, and change no row."""
    for part in (lambda model: model, lambda model: model.head):
        for wrap in (
            lambda model: DistributedDataParallel(model, process_group=group),
            lambda model: fully_shard(model, mesh=mesh_of(world)),
        ):
            model = Model(mesh_of(world))
            before = model.head.weight.full_tensor()
            with pytest.raises((RuntimeError, TypeError, NotImplementedError, AssertionError, ValueError)):
                wrap(part(model))
            assert torch.equal(model.head.weight.full_tensor(), before)
            right(rank, world, group)
        unsynced = DistributedDataParallel(part(Model(mesh_of(world))), process_group=group, init_sync=False)
        with pytest.raises(RuntimeError):
            unsynced(INPUT, TARGET).backward()


def beside(rank: int, world: int, group: Any) -> None:
    """Wrappers that leave the head out train as the unsharded model; so do those over another dimension of a mesh."""
    torch.manual_seed(0)
    whole = Model(None)
    whole(INPUT, TARGET).backward()
    grid = init_device_mesh("cpu", (1, world), mesh_dim_names=("rows", "classes"))
    for wrap in ("ddp", "fully_shard", "both"):
        torch.manual_seed(0)
        model = Model(grid["classes"] if wrap == "both" else mesh_of(world))
        own = [f"head.{name}" for name, _ in model.head.named_parameters()]
        called: nn.Module = model
        if wrap == "ddp":
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, own)
            called = DistributedDataParallel(model, process_group=group)
        elif wrap == "fully_shard":
            fully_shard(model, mesh=mesh_of(world), ignored_params=set(model.head.parameters()))
        else:
            fully_shard(model, mesh=grid["rows"])
        called(INPUT, TARGET).backward()
        for part, full in zip(model.parameters(), whole.parameters(), strict=True):
            grad = part.grad.full_tensor() if hasattr(part.grad, "full_tensor") else part.grad
            torch.testing.assert_close(grad, full.grad)


def clipped(rank: int, world: int, group: Any) -> None:
    """The norm is that of the whole, and every gradient is scaled alike."""
    for norm_type, shard_body in ((2.0, False), (1.0, True), (float("inf"), False), (2.0, True)):
        torch.manual_seed(0)
        whole = Model(None)
        torch.manual_seed(0)
        model = Model(mesh_of(world))
        if shard_body:
            fully_shard(model.body, mesh=init_device_mesh("cpu", (world,), mesh_dim_names=("rows",)))
        for one in (whole, model):
            one(INPUT, TARGET).backward()
        exact = nn.utils.clip_grad_norm_(whole.parameters(), 0.01, norm_type)
        found = clip_grad_norm_(model.parameters(), 0.01, norm_type=norm_type)
        torch.testing.assert_close(found, exact)
        for part, full in zip(model.parameters(), whole.parameters(), strict=True):
            grad = part.grad.full_tensor() if hasattr(part.grad, "full_tensor") else part.grad
            torch.testing.assert_close(grad, full.grad)


class Rows(nn.Module):
    """This rank's rows of class weights, as a plain parameter."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.weight, self.group = nn.Parameter(normal(C, D, seed=1)), group

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The loss over the classes of all ranks."""
        return linear_cross_entropy(features, self.weight, target, group=self.group)


def averaged(rank: int, world: int, group: Any) -> None:
    """Rows that `DistributedDataParallel` would average over the ranks that they are sharded over are refused."""
    with pytest.raises(ValueError, match="linear_weight must not be in DistributedDataParallel") as own:
        DistributedDataParallel(Rows(group))(INPUT, TARGET)
    assert not isinstance(own.value, RankError)
    alone = [dist.new_group([one]) for one in range(world)][rank]
    DistributedDataParallel(Rows(alone))(INPUT, TARGET).backward()


def fused(rank: int, world: int, group: Any) -> None:
    """With a group of its own for the head, an optimiser's fused and foreach steps are those of the whole."""
    for option in ("fused", "foreach"):
        torch.manual_seed(0)
        whole = Model(None, C)
        torch.manual_seed(0)
        model = Model(mesh_of(world), C)
        for one in (whole, model):
            groups = [{"params": part.parameters()} for part in (one.body, one.head)]
            optimizer = torch.optim.AdamW(groups, 0.1, **{option: True})
            for _ in range(2):
                optimizer.zero_grad()
                one(INPUT, TARGET).backward()
                optimizer.step()
        for part, full in zip(model.parameters(), whole.parameters(), strict=True):
            torch.testing.assert_close(part.full_tensor() if hasattr(part, "full_tensor") else part, full)


def not_clipped(rank: int, world: int, group: Any) -> None:
    """Infinity clips nothing; gradients that drifted apart, or are missing on one rank, are an error on every rank."""
    model = Model(mesh_of(world))
    model(INPUT, TARGET).backward()
    before = [part.grad.clone() for part in model.parameters()]
    norm = clip_grad_norm_(model.parameters(), math.inf)
    assert all(torch.equal(part.grad, old) for part, old in zip(model.parameters(), before, strict=True))
    torch.testing.assert_close(norm, clip_grad_norm_(model.parameters(), 2 * norm.item()))
    model.body.weight.grad.mul_(1 + rank)
    with pytest.raises(RankError, match="must be the same on every rank, but their norms are"):
        clip_grad_norm_(model.parameters(), 0.01)
    model.body.weight.grad.div_(1 + rank)
    bias, model.head.bias.grad = model.head.bias.grad, None if rank else model.head.bias.grad
    with pytest.raises(RankError, match="the number of gradients of DTensors must be the same on every rank"):
        clip_grad_norm_(model.parameters(), 0.01)
    model.head.bias.grad = bias
    for wrong in ({"max_norm": -1.0}, {"max_norm": math.nan}, {"norm_type": 0}, {"norm_type": -1.0}):
        with pytest.raises(RankError if rank else ValueError, match=f"{next(iter(wrong))} must be a number above 0"):
            clip_grad_norm_(model.parameters(), **{"max_norm": 1.0, **({} if rank else wrong)})
    for name in ("max_norm", "norm_type"):
        with pytest.raises(RankError, match=f"{name} must be the same on every rank"):
            clip_grad_norm_(model.parameters(), **{"max_norm": 1.0, name: 1.0 + rank})
    alone = nn.Linear(2, 2)
    alone(torch.ones(2)).sum().backward()
    assert clip_grad_norm_(alone.parameters(), 0.01).item() == pytest.approx(6**0.5)
    assert clip_grad_norm_([], 1.0) == 0
    right(rank, world, group)


def copied(rank: int, world: int, group: Any) -> None:
    """deepcopy, AveragedModel and a pickle of this process compute what the head does."""
    head = head_of(mesh_of(world), C)
    loss = head(INPUT, TARGET)
    for other in (copy.deepcopy(head), AveragedModel(head), copy.copy(head)):
        assert torch.equal(other(INPUT, TARGET), loss)
    average = AveragedModel(head)
    for _ in range(2):
        average.update_parameters(head)
    assert torch.equal(average(INPUT, TARGET), loss)
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(INPUT).full_tensor(), head(INPUT).full_tensor())
    assert torch.equal(loaded(INPUT, TARGET), loss)
    right(rank, world, group)


def states(rank: int, world: int, group: Any) -> None:
    """A state_dict is loaded by a head that is sharded alike, whole ones by each; what does not fit is named."""
    head, other, full = head_of(mesh_of(world), C), head_of(mesh_of(world), C), head_of(None, C)
    file = io.BytesIO()
    torch.save(nn.Sequential(head).state_dict(), file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    model = nn.Sequential(other)
    model.load_state_dict(kept)
    assert torch.equal(other.weight.full_tensor(), head.weight.full_tensor())
    for assign in (False, True):
        other = head_of(mesh_of(world), C)
        other.load_state_dict(full.state_dict(), assign=assign)
        drawn_alike(full, other)
        assert other.weight.placements == head.weight.placements
        assert isinstance(other.weight, nn.Parameter)
    with pytest.raises(RuntimeError, match=r"weight must be a plain tensor, .* got a DTensor .*full_tensor"):
        full.load_state_dict(head.state_dict())
    full.load_state_dict({key: value.full_tensor() for key, value in head.state_dict().items()})
    drawn_alike(full, head)
    for wrong in (head_of(None), head_of(mesh_of(world))):
        with pytest.raises(RuntimeError, match=r"size mismatch for weight.*\[22, 5\].*\[11, 5\]"):
            head.load_state_dict(wrong.state_dict())


def modes(rank: int, world: int, group: Any) -> None:
    """Prediction is a rank's own matter in train() and eval(): no exchange before its logits are gathered."""
    head = head_of(mesh_of(world), C)
    with unittest.mock.patch.object(dist, "all_gather", side_effect=AssertionError("nothing to exchange")):
        for training in (True, False):
            found = head.train(training)(INPUT)
            assert found.shape == (len(INPUT), C)
            assert found.to_local().shape == (len(INPUT), head.weight.to_local().shape[0])
    assert torch.equal(found.argmax(-1).full_tensor(), found.full_tensor().argmax(-1))
    with torch.no_grad():
        quiet = head.eval()(INPUT, TARGET)
    torch.testing.assert_close(quiet, head.train()(INPUT, TARGET).detach())


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's of FSDP
        main(
            [drawn, deferred, same_rows, wrapped, beside, clipped, not_clipped, averaged, fused, copied, states, modes]
        )

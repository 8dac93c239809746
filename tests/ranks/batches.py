"""Batches that are dealt over ranks and gathered: run by test_batches.py, one a rank."""

from __future__ import annotations

import unittest.mock
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import classes_of, normal
from launch import main, mesh_of
from told_problem import right
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lt_kernels import losses
from lt_kernels.distributed import RankError, gather_batch
from lt_kernels.functional import MixedTarget, linear_cross_entropy
from lt_kernels.heads import CosineHead, LinearHead

N, D, C = 7, 5, 11
FEATURES, TARGET, OTHER = normal(N, D, seed=1), classes_of(N, C, seed=2), classes_of(N, C, seed=3)
LAM, SHARES = normal(N, seed=4).sigmoid(), normal(N, C, seed=5).softmax(1)
# How many of the N rows each rank has.
SIZES = {2: [(4, 3), (7, 0), (0, 7), (1, 6)], 3: [(3, 2, 2), (0, 6, 1), (7, 0, 0)]}


def cut(rank: int, sizes: tuple[int, ...], value: Any) -> Any:
    """A rank's rows."""
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    if isinstance(value, MixedTarget):
        lam = value.lam[mine] if isinstance(value.lam, Tensor) and value.lam.ndim else value.lam
        return MixedTarget(value.first[mine], value.second[mine], lam)
    return value[mine]


def parts(target: Any) -> list[Tensor]:
    """The tensors that a target consists of."""
    return [target.first, target.second, target.lam] if isinstance(target, MixedTarget) else [target]


TARGETS: dict[str, Any] = {
    "indices": TARGET,
    "indices of places": classes_of(N * 6, C, seed=6).reshape(N, 2, 3),
    "ignored": torch.full((N,), -100),
    "probabilities": SHARES,
    "mixed by rows": MixedTarget(TARGET, OTHER, LAM),
    "mixed": MixedTarget(TARGET, OTHER, 0.3),
    "mixed by a tensor": MixedTarget(TARGET, OTHER, torch.tensor(0.3)),
}


def values(rank: int, world: int, group: Any) -> None:
    """The batch of all ranks is the whole one to the bit, in every dtype and with every kind of target."""
    for sizes in SIZES[world]:
        for name, target in TARGETS.items():
            for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
                found, labels = gather_batch(cut(rank, sizes, FEATURES.to(dtype)), cut(rank, sizes, target), group)
                assert found.dtype is dtype, name
                assert torch.equal(found, FEATURES.to(dtype)), (name, sizes)
                for ours, whole in zip(parts(labels), parts(target), strict=True):
                    assert torch.equal(ours, torch.as_tensor(whole, dtype=ours.dtype).expand(ours.shape)), (name, sizes)
        images = normal(N, 3, 2, 2, seed=7)
        found, labels = gather_batch(cut(rank, sizes, images), cut(rank, sizes, TARGET.to(torch.int32)))
        assert torch.equal(found, images)
        assert torch.equal(labels, TARGET)
        assert not found.requires_grad
    kinds = [MixedTarget(TARGET, OTHER, 0.25 + one) for one in (0.0, 0.5, 0.75)]  # each rank draws its own share
    _, labels = gather_batch(FEATURES, kinds[rank], group)
    assert torch.equal(labels.lam, torch.tensor([0.25, 0.75, 1.0][:world]).double().repeat_interleave(N))


def gradients(rank: int, world: int, group: Any) -> None:
    """A loss of the whole batch on each rank: its gradient times the ranks; in every dtype, used twice, kept or not."""
    weight = normal(C, D, seed=8)
    for sizes in SIZES[world]:
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
            whole = FEATURES.to(dtype).clone().requires_grad_()
            exact = linear_cross_entropy(whole, weight.to(dtype), TARGET) + whole.square().sum()
            exact.backward()
            own = cut(rank, sizes, FEATURES.to(dtype)).clone().requires_grad_()
            found, labels = gather_batch(own, cut(rank, sizes, TARGET), group)
            loss = linear_cross_entropy(found, weight.to(dtype), labels) + found.square().sum()
            loss.backward(retain_graph=True)
            wanted = world * cut(rank, sizes, whole.grad)
            torch.testing.assert_close(own.grad, wanted, rtol=tolerance, atol=tolerance)
            loss.backward()
            torch.testing.assert_close(own.grad, 2 * wanted, rtol=tolerance, atol=tolerance)
    own = [cut(rank, sizes, FEATURES).clone().requires_grad_() for _ in range(2)]
    first, second = (gather_batch(one, cut(rank, sizes, TARGET), group)[0] for one in own)
    ((first * second).sum() * (1 + rank)).backward()  # other losses: their sum
    factor = sum(1 + one for one in range(world))
    for one in own:
        torch.testing.assert_close(one.grad, factor * cut(rank, sizes, FEATURES))
    with torch.no_grad():
        assert not gather_batch(own[0], cut(rank, sizes, TARGET), group)[0].requires_grad


def weights(rank: int, world: int, group: Any) -> None:
    """Row weights of all ranks, for a head's loss of them; what one rank refuses or has alone is named."""
    torch.manual_seed(3)
    whole = LinearHead(D, C, losses.CrossEntropyLoss()).double()
    torch.manual_seed(3)
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    for sizes in SIZES[world]:
        for target in TARGETS.values():
            own, mine = (cut(rank, sizes, one) for one in (FEATURES, target))
            assert torch.equal(gather_batch(own, mine, group, sample_weight=cut(rank, sizes, LAM))[2], LAM)
        found = gather_batch(own, cut(rank, sizes, TARGET), sample_weight=cut(rank, sizes, LAM))
        exact = whole(FEATURES, TARGET, sample_weight=LAM)
        torch.testing.assert_close(head(*found[:2], sample_weight=found[2]), exact)
    wrong = {"have shape": LAM[1:], "not require": LAM.clone().requires_grad_(), "be float32": TARGET}
    for word, value in wrong.items():
        with pytest.raises((TypeError, ValueError) if rank == 0 else RankError, match=f"sample_weight must {word}"):
            gather_batch(FEATURES, TARGET, group, sample_weight=LAM if rank else value)
    with pytest.raises(RankError, match="whether there is a sample_weight must be the same on every rank"):
        gather_batch(FEATURES, TARGET, group, sample_weight=LAM if rank else None)
    right(rank, world, group)


class Body(nn.Module):
    """A backbone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(D, D).double(), nn.Linear(D, D).double()

    def forward(self, features: Tensor) -> Tensor:
        """Features."""
        return self.second(self.first(features).tanh())


HEADS: dict[str, Callable[[Any], nn.Module]] = {
    "linear": lambda mesh: LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh),
    "batch": lambda mesh: LinearHead(D, C, losses.ARBLoss(counts="batch"), mesh=mesh),
    "cosine": lambda mesh: CosineHead(D, C, losses.CosFaceLoss(), mesh=mesh),
}


def data_parallel(rank: int, world: int, group: Any) -> None:
    """A backbone in DistributedDataParallel and a head, sharded or not: the gradients of one process with all rows."""
    ignored = TARGET.masked_fill(torch.arange(N) < 3, -100)  # all rows of a rank, or of none
    for name, make in HEADS.items():
        for sizes in SIZES[world]:
            for target in (TARGET, ignored, MixedTarget(TARGET, TARGET.flip(0), LAM)):
                torch.manual_seed(3)
                whole, alone = make(None).double(), Body()
                whole(alone(FEATURES), target).backward()
                torch.manual_seed(3)
                head = make(mesh_of(world)).double()
                body = DistributedDataParallel(Body(), process_group=group)
                loss = head(*gather_batch(body(cut(rank, sizes, FEATURES)), cut(rank, sizes, target), group))
                loss.backward()
                for part, full in zip(body.parameters(), alone.parameters(), strict=True):
                    torch.testing.assert_close(part.grad, full.grad, msg=lambda text, name=name: f"{name}: {text}")
                torch.testing.assert_close(head.weight.grad.full_tensor(), whole.weight.grad)


def autocast(rank: int, world: int, group: Any) -> None:
    """Under autocast features keep the dtype that the backbone gave them, and their gradient too."""
    torch.manual_seed(3)
    head, body = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)), Body().float()
    features = FEATURES.float()
    with torch.autocast("cpu", torch.bfloat16):
        found, labels = gather_batch(body(cut(rank, SIZES[world][0], features)), cut(rank, SIZES[world][0], TARGET))
        exact = body(features)
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found, exact)
        head(found, labels).backward()
    assert body.first.weight.grad is not None
    assert bool(body.first.weight.grad.isfinite().all())


def compiled(rank: int, world: int, group: Any) -> None:
    """Under torch.compile the exchange stays outside of the graph."""
    body, own = Body(), cut(rank, SIZES[world][0], FEATURES)
    target = cut(rank, SIZES[world][0], TARGET)
    step = torch.compile(lambda x, y: gather_batch(body(x), y)[0].square().sum(), backend="aot_eager")
    with warnings.catch_warnings():  # torch's own, where a graph ends at a tensor that is no leaf
        warnings.simplefilter("ignore", UserWarning)
        loss = step(own, target)
    loss.backward()
    torch.testing.assert_close(loss.detach(), body(FEATURES).square().sum().detach())
    assert body.first.weight.grad is not None


def exchanged(rank: int, world: int, group: Any) -> None:
    """Two collectives forward and two backward; the rows' bytes are those of features and targets, padded."""
    sent: dict[str, list[int]] = {"gather": [], "scatter": []}

    def count(kind: str, call: Callable[..., Any], place: int) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            tensors = args[place] if isinstance(args[place], list) else [args[place]]
            sent[kind].append(sum(one.numel() * one.element_size() for one in tensors))
            return call(*args, **options)

        return counted

    own, target = cut(rank, SIZES[world][0], FEATURES).clone().requires_grad_(), cut(rank, SIZES[world][0], TARGET)
    gather_batch(own, target)[0].sum().backward()  # what the group sends from here on has the same size
    with (
        unittest.mock.patch.object(dist, "all_gather", count("gather", dist.all_gather, 1)),
        unittest.mock.patch.object(dist, "reduce_scatter", count("scatter", dist.reduce_scatter, 1)),
    ):
        gather_batch(own, target)[0].sum().backward()
    most = max(SIZES[world][0])
    frame, rows, again = sent["gather"]
    assert rows == most * (8 * D + 8)
    assert frame == again <= 8 * (80 + 200)
    assert sent["scatter"] == [world * most * 8 * D]


# What is wrong on one rank alone, and what the error there and on the others says.
WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "no tensor": ("x", TARGET, TypeError, "features must be a tensor"),
    "whole numbers": (FEATURES.long(), TARGET, TypeError, "features must be float32"),
    "no rows": (FEATURES[0], TARGET, ValueError, "features must be"),
    "fewer targets": (FEATURES, TARGET[1:], ValueError, "target must have shape"),
    "no targets": (FEATURES, None, TypeError, "target must be a tensor"),
    "no indices": (FEATURES, TARGET.bool(), TypeError, "target must hold class indices"),
    "fewer shares": (FEATURES, MixedTarget(TARGET, OTHER, LAM[1:]), ValueError, "lam must have one number"),
    "fewer seconds": (FEATURES, MixedTarget(TARGET[1:], OTHER[1:], LAM), ValueError, "first must have shape"),
    "probabilities of fewer rows": (FEATURES, SHARES[1:], ValueError, "target must be"),
    "a learned target": (FEATURES, SHARES.clone().requires_grad_(), ValueError, "target must not require a gradient"),
}
# What one rank has alone, and what the error on all ranks says.
DIFFERENT: dict[str, tuple[Any, Any, str]] = {
    "width": (FEATURES[:, 1:], TARGET, "a row of features must be the same on every rank"),
    "dtype": (FEATURES.float(), TARGET, "a row of features must be the same on every rank"),
    "probabilities": (FEATURES, SHARES, "a row of target must be the same on every rank"),
    "mixed": (FEATURES, MixedTarget(TARGET, OTHER, LAM), "the kind of target must be the same on every rank"),
    "places": (FEATURES, TARGET[:, None], "a row of target must be the same on every rank"),
    "gradient": (FEATURES.clone().requires_grad_(), TARGET, "requires_grad of features must be the same on every rank"),
}


def told(rank: int, world: int, group: Any) -> None:
    """What one rank refuses all refuse, what differs is named, and then the ranks are in step again."""
    for number, (features, target, kind, word) in enumerate(WRONG.values()):
        if rank == number % world:
            with pytest.raises(kind, match=word):
                gather_batch(features, target, group)
        else:
            with pytest.raises(RankError, match=f"rank {number % world}: {kind.__name__}: {word}"):
                gather_batch(FEATURES, TARGET, group)
    for number, (features, target, word) in enumerate(DIFFERENT.values()):
        given = (features, target) if rank == number % world else (FEATURES, TARGET)
        with pytest.raises(RankError, match=word):
            gather_batch(*given, group)
    right(rank, world, group)


def out_of_step(rank: int, world: int, group: Any) -> None:
    """A rank that makes another call, or leaves the gather or its backward pass out, is told on all ranks."""
    own = FEATURES.clone().requires_grad_()
    with pytest.raises(RankError, match="every rank must make the same calls"):
        gather_batch(own, TARGET, group) if rank else right(rank, world, group)
    found, _ = gather_batch(own, TARGET, group)
    with pytest.raises(RankError, match=r"rank 0 is at gather_batch of call .*, rank 1 is at backward of call"):
        found.sum().backward() if rank else gather_batch(own, TARGET, group)
    assert own.grad is None
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    with pytest.raises(RankError, match=r"^input must be the same .*lt_kernels\.distributed\.gather_batch"):
        head(normal(N, D, seed=20 + rank), TARGET)  # the ranks' own features
    right(rank, world, group)


def groups(rank: int, world: int, group: Any) -> None:
    """A group of one rank gives everything back as it is; what is no group is named."""
    alone = [dist.new_group([one]) for one in range(world)][rank]
    target = MixedTarget(TARGET, OTHER, 0.3)
    found = gather_batch(FEATURES, target, alone)
    assert found[0] is FEATURES
    assert found[1] is target
    with pytest.raises(ValueError, match="features must be"):
        gather_batch(FEATURES[0], target, alone)
    with pytest.raises(ValueError, match="group must be a torch"):
        gather_batch(FEATURES, target, "world")
    dtensor = dist.tensor.distribute_tensor(FEATURES, dist.init_device_mesh("cpu", (world,)), [dist.tensor.Shard(0)])
    with pytest.raises(TypeError, match="features must be this rank's rows as a plain tensor, got a DTensor"):
        gather_batch(dtensor, TARGET, group)


if __name__ == "__main__":
    main([values, weights, gradients, data_parallel, autocast, compiled, exchanged, told, out_of_step, groups])

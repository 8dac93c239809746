"""What each of several processes does with its share of the classes: run by test_distributed.py, one a rank."""

from __future__ import annotations

import math
import unittest.mock
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import classes_of, counts_of, normal
from launch import main, mesh_of
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.nn.functional import all_gather

from lt_kernels import losses, ops
from lt_kernels.functional import (
    DBM,
    LDAM,
    ArcFace,
    CosFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    linear_cross_entropy,
)
from lt_kernels.heads import CosineHead, LinearHead

N, D, C = 9, 5, 11
COUNTS = counts_of(C, seed=1)
MIXED = MixedTarget(classes_of(N, C, seed=2), classes_of(N, C, seed=3), 0.3)
ROWWISE = MixedTarget(MIXED.first, MIXED.second, normal(N, seed=4).sigmoid())
TARGET = classes_of(N, C, seed=5)
IGNORED = TARGET.masked_fill(torch.arange(N) % 4 == 1, -100)
ABSENT = normal(C, seed=6).masked_fill(torch.tensor([c in (0, 7) for c in range(C)]), -torch.inf)
PRESENT = torch.where((TARGET == 0) | (TARGET == 7), 3, TARGET)
PROBABILITIES = normal(N, C, seed=7).softmax(1)
WEIGHT = normal(C, seed=8).exp()
SMOOTHING = normal(C, seed=9).sigmoid()

# The settings of each call: (function, settings, target); "offset" is differentiated.
CASES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], Any]] = {
    "plain": (linear_cross_entropy, {}, TARGET),
    "ignored": (linear_cross_entropy, {"weight": WEIGHT, "label_smoothing": 0.1}, IGNORED),
    "all ignored": (linear_cross_entropy, {"reduction": "sum"}, torch.full((N,), -100)),
    "weight, focal, smoothing": (
        linear_cross_entropy,
        {"weight": WEIGHT, "focal_gamma": 2.0, "label_smoothing": SMOOTHING},
        TARGET,
    ),
    "weights of rows, z-loss": (
        linear_cross_entropy,
        {"sample_weight": normal(N, seed=14).abs(), "z_loss": 0.2, "weight": WEIGHT},
        TARGET,
    ),
    "softcap": (linear_cross_entropy, {"softcap": 1.5, "offset": normal(C, seed=10)}, TARGET),
    "offset": (linear_cross_entropy, {"offset": normal(C, seed=10), "label_smoothing": 0.2}, TARGET),
    "absent": (linear_cross_entropy, {"offset": ABSENT, "label_smoothing": 0.2, "reduction": "none"}, PRESENT),
    "offset of rows": (linear_cross_entropy, {"offset": normal(N, C, seed=11), "reduction": "none"}, TARGET),
    "offset of targets": (linear_cross_entropy, {"offset": normal(C, C, seed=12), "reduction": "sum"}, TARGET),
    "mixed": (linear_cross_entropy, {"label_smoothing": 0.1, "weight": WEIGHT}, MIXED),
    "mixed by rows": (linear_cross_entropy, {"offset": normal(C, C, seed=12)}, ROWWISE),
    "probabilities": (linear_cross_entropy, {"offset": normal(C, seed=10), "label_smoothing": 0.1}, PROBABILITIES),
    "cosine": (cosine_margin_cross_entropy, {"focal_gamma": 1.5, "weight": WEIGHT}, IGNORED),
    "cosface": (cosine_margin_cross_entropy, {"margin": CosFace(0.3), "reduction": "none"}, TARGET),
    "arcface": (cosine_margin_cross_entropy, {"margin": ArcFace(0.5), "label_smoothing": 0.1}, TARGET),
    "ldam": (cosine_margin_cross_entropy, {"margin": LDAM(COUNTS), "weight": WEIGHT}, MIXED),
    "dbm": (cosine_margin_cross_entropy, {"margin": DBM(COUNTS, 0.4), "offset": normal(C, seed=10)}, TARGET),
    "dbm mixed": (cosine_margin_cross_entropy, {"margin": DBM(COUNTS, 0.4, guard=True), "scale": 7.0}, ROWWISE),
    "dbm of all": (cosine_margin_cross_entropy, {"margin": DBM(COUNTS, 0.4, applies="all")}, TARGET),
    "sphereface": (cosine_margin_cross_entropy, {"margin": SphereFace(4, 2.0), "scale": 1.0}, TARGET),
}
# How many of the C classes each rank has.
SHARDS = {2: [(5, 6), (10, 1), (0, 11)], 3: [(3, 4, 4), (1, 9, 1), (5, 0, 6)], 4: [(3, 0, 7, 1)]}

HEADS: dict[str, Callable[[int, Any], torch.nn.Module]] = {
    "LinearHead": lambda c, mesh: LinearHead(D, c, losses.BalancedSoftmaxLoss(COUNTS[:c]), mesh=mesh),
    "LinearHead, no bias": lambda c, mesh: LinearHead(D, c, losses.FocalLoss(2.0, WEIGHT[:c]), bias=False, mesh=mesh),
    "CosineHead": lambda c, mesh: CosineHead(D, c, losses.LDAMLoss(COUNTS[:c], weight=WEIGHT[:c]), mesh=mesh),
    "CosineHead, DBM": lambda c, mesh: CosineHead(D, c, losses.DBMLoss(COUNTS[:c], 0.3, base="bs"), mesh=mesh),
    "CosineHead, logits": lambda c, mesh: CosineHead(D, c, losses.ARBLoss(counts="batch"), scale=9.0, mesh=mesh),
    "CosineHead, sphere": lambda c, mesh: CosineHead(D, c, losses.SphereFaceLoss(annealing=0.5), mesh=mesh),
}


def near(ours: Tensor, whole: Tensor, name: str) -> None:
    """Equal to 1e-12 of the largest entry."""
    assert ours.shape == whole.shape, (name, ours.shape, whole.shape)
    if not ours.numel():
        return
    error = (ours - whole).abs().max().item()
    assert error <= 1e-12 * max(1.0, whole.abs().max().item()), f"{name}: {error:.2e}"


def found(function: Callable[..., Tensor], leaves: dict[str, Tensor], target: Any, **settings: Any) -> list[Tensor]:
    """The value, and the gradient of each leaf."""
    leaves = {key: leaf.clone().requires_grad_() for key, leaf in leaves.items()}
    value = function(
        leaves["input"],
        leaves["linear_weight"],
        target,
        **{key: leaf for key, leaf in leaves.items() if "input" not in key and key != "linear_weight"},
        **settings,
    )
    cotangent = normal(*value.shape, seed=20) if value.ndim else torch.ones_like(value)
    return [value.detach(), *torch.autograd.grad(value, list(leaves.values()), cotangent)]


def functions(rank: int, world: int, group: Any) -> None:
    """Every case, the classes shared out in several ways."""
    for sizes in SHARDS[world]:
        shared_out(rank, sizes, group)


def shared_out(rank: int, sizes: tuple[int, ...], group: Any) -> None:
    """Value and gradients of input, weight, bias and offset against those of the whole."""
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    for name, (function, settings, target) in CASES.items():
        settings = dict(settings)
        leaves = {"input": normal(N, D, seed=30), "linear_weight": normal(C, D, seed=31)}
        if function is linear_cross_entropy:
            leaves["linear_bias"] = normal(C, seed=32)
        if "offset" in settings:
            leaves["offset"] = settings.pop("offset")
        shards = {key: leaf[mine] if key.startswith("linear") else leaf for key, leaf in leaves.items()}
        with ops.use_kernels("reference"):
            whole = found(function, leaves, target, **settings)
        ours = found(function, shards, target, group=group, **settings)
        for key, mine_of, all_of in zip(["value", *leaves], ours, whole, strict=True):
            wanted = all_of[mine] if key.startswith("linear") else all_of
            near(mine_of, wanted, f"{name}, {sizes}, rank {rank}, {key}")


def heads(rank: int, world: int, group: Any) -> None:
    """Each head with its share of the classes against the head with all; a rank may have no class."""
    for classes in (C, world - 1, world + 1):
        for name, make in HEADS.items():
            held_to_whole(f"{name}, {classes}", make, classes, world)


def held_to_whole(name: str, make: Callable[[int, Any], torch.nn.Module], classes: int, world: int) -> None:
    """Loss, gradients and predictions of a sharded head are those of the whole one."""
    whole, ours = make(classes, None).double(), make(classes, mesh_of(world)).double()
    for full in whole.parameters():
        full.data.copy_(normal(*full.shape, seed=40))
    ours.load_state_dict(whole.state_dict())
    results = []
    for head in (ours, whole):
        features = normal(3, 4, D, seed=41).requires_grad_()
        loss = head(features, classes_of(12, classes, seed=42).reshape(3, 4))
        predicted = head(features)
        predicted = predicted.full_tensor() if head is ours else predicted
        cotangent = normal(*predicted.shape, seed=43)
        leaves = [features, *head.parameters()]
        found = [loss.detach(), *torch.autograd.grad(loss, leaves), predicted.detach()]
        results.append([*found, *torch.autograd.grad(predicted, leaves, cotangent)])
    for number, (ours, exact) in enumerate(zip(*results, strict=True)):
        near(ours.full_tensor() if hasattr(ours, "full_tensor") else ours, exact, f"{name}, {number}")


def two_heads(rank: int, world: int, group: Any) -> None:
    """Heads with other numbers of classes, one after the other; some ranks have as many as before, others do not."""
    for classes in (world, world + 1, 1, 2 * world, 2 * world - 1, world):
        head = LinearHead(D, classes, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
        target = classes_of(N, classes, seed=60)
        loss = head(normal(N, D, seed=61), target)
        weight, bias = head.weight.full_tensor(), head.bias.full_tensor()
        exact = torch.nn.functional.cross_entropy(normal(N, D, seed=61) @ weight.T + bias, target)
        near(loss.detach(), exact.detach(), "loss")


def asked_once(rank: int, world: int, group: Any) -> None:
    """A call of a head is one exchange, and its backward pass another with the sum of the features' gradients."""
    sizes = (world, world + 1, 2 * world)
    heads = [LinearHead(D, classes, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double() for classes in sizes]

    def called(order: list[LinearHead]) -> tuple[int, int]:
        with (
            unittest.mock.patch.object(dist, "all_gather", wraps=dist.all_gather) as asked,
            unittest.mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as summed,
        ):
            for head in order:
                features = normal(N, D, seed=61).requires_grad_()
                head(features, classes_of(N, head.num_classes, seed=60)).backward()
        return asked.call_count, summed.call_count

    called(heads[:1])  # makes room for what the next ones send
    assert called(heads[1:]) == (2 * 2, 2)
    assert called([*heads[::-1], *heads]) == (2 * 6, 6)


def data_parallel(rank: int, world: int, group: Any) -> None:
    """Features gathered from all ranks get `world` times the gradient, which the averaging of a backbone's expects."""
    features, weight = normal(world * 4, D, seed=80), normal(C, D, seed=81)
    target = classes_of(world * 4, C, seed=82)
    own = features[rank * 4 : rank * 4 + 4].clone().requires_grad_()
    with warnings.catch_warnings():  # torch 2.13 deprecates it for one that 2.11 has not
        warnings.simplefilter("ignore", FutureWarning)
        gathered = torch.cat(all_gather(own, group=group))
    linear_cross_entropy(gathered, weight.chunk(world)[rank], target, group=group).backward()
    whole = features.clone().requires_grad_()
    linear_cross_entropy(whole, weight, target).backward()
    assert own.grad is not None
    assert whole.grad is not None
    near(own.grad, world * whole.grad[rank * 4 : rank * 4 + 4], "gathered features")


def edges(rank: int, world: int, group: Any) -> None:
    """NaN of one rank is every rank's, and targets are checked against all classes."""
    first, last = rank * C // world, (rank + 1) * C // world
    for broken in range(C):
        weight = normal(C, D, seed=70)
        weight[broken] = torch.nan
        loss = linear_cross_entropy(
            normal(N, D, seed=71), weight[first:last], torch.full((N,), broken), reduction="none", group=group
        )
        assert bool(loss.isnan().all()), broken
    call = {"input": normal(N, D, seed=71), "linear_weight": normal(C, D, seed=70)[first:last], "group": group}
    for wrong in (C, -1):
        with pytest.raises(IndexError, match=f"target .*{wrong}"):
            linear_cross_entropy(target=torch.full((N,), wrong), **call)
    with pytest.raises(ValueError, match="offset is -inf for class 0"):
        linear_cross_entropy(target=PRESENT.clamp(max=0), offset=ABSENT, **call)


def far(rank: int, world: int, group: Any) -> None:
    """Equal logits of any size, of which a rank has a part: log C; and one part far above the other."""
    first, last = rank * C // world, (rank + 1) * C // world
    for size in (1e2, 1e5, 1e15):
        features, weight = torch.full((N, 1), size), torch.full((C, 1), size)[first:last].requires_grad_()
        for target in (TARGET, MIXED, PROBABILITIES.float()):
            loss = linear_cross_entropy(features, weight, target, label_smoothing=0.1, group=group)
            assert abs(loss.item() - math.log(C)) < 1e-5, (size, loss)
    bias = torch.where(torch.arange(C) < 5, 1e6, -1e6).requires_grad_()
    logits = normal(N, D, seed=90, dtype=torch.float32), normal(C, D, seed=91, dtype=torch.float32)
    whole = linear_cross_entropy(*logits, TARGET, linear_bias=bias, label_smoothing=0.1)
    part = logits[0], logits[1][first:last]
    loss = linear_cross_entropy(*part, TARGET, linear_bias=bias[first:last], label_smoothing=0.1, group=group)
    assert abs(loss.item() / whole.item() - 1) < 1e-6, (loss, whole)


def bad_groups(rank: int, world: int, group: Any) -> None:
    """What is no group, or has this rank not in it, is named; and so is what is no mesh."""
    others = dist.new_group([0])
    weight = normal(C, D, seed=2)
    for bad in ["world", 3, object()] + ([others] if rank else []):
        with pytest.raises(ValueError, match="group must be a torch"):
            linear_cross_entropy(normal(N, D, seed=1), weight, TARGET, group=bad)
        with pytest.raises(ValueError, match="group must be a torch"):
            losses.CrossEntropyLoss().from_features(normal(N, D, seed=1), weight, TARGET, group=bad)
    alone = DeviceMesh("cpu", [0])
    for bad in ["world", group, init_device_mesh("cpu", (1, world)), *([alone] if rank else [])]:
        with pytest.raises(ValueError, match="mesh must be a DeviceMesh of one dimension that this rank is in, got"):
            LinearHead(D, C, losses.CrossEntropyLoss(), mesh=bad)
    for loss in (losses.LADELoss(COUNTS), losses.EstimatedOffsetLoss(C, D)):
        with pytest.raises(ValueError, match=f"loss must be one whose .*, got {type(loss).__name__}, which needs all"):
            LinearHead(D, C, loss, mesh=mesh_of(world))


if __name__ == "__main__":
    main([functions, heads, two_heads, asked_once, data_parallel, edges, far, bad_groups])

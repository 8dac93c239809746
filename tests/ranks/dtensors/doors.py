"""Functions and named losses of DTensors against one process with all rows and classes: one rank of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, normal
from launch import main, mesh_of
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lt_kernels import losses
from lt_kernels.functional import (
    CosFace,
    MixedTarget,
    cosine_margin_cross_entropy,
    linear_cross_entropy,
    offset_cross_entropy,
)

N, D, C = 7, 5, 6
ROWS, WHOLE = [Shard(0)], [Replicate()]
FEATURES, WEIGHT, BIAS = normal(N, D, seed=1), normal(C, D, seed=2), normal(C, seed=3)
TARGET, OTHER, LAM = classes_of(N, C, seed=4), classes_of(N, C, seed=5), normal(N, seed=6).sigmoid()
FIRST = torch.arange(N) < 4  # all rows of the first rank, of two and of three, and some of the second's, of four
TABLE, COUNTS = normal(C, seed=7), counts_of(C, seed=8)

# The target, and the settings; "offset" and "linear_bias" are differentiated.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (TARGET, {}),
    "weighted": (TARGET.masked_fill(torch.arange(N) % 3 == 0, -100), {"weight": TABLE.exp(), "label_smoothing": 0.1}),
    "ignored on the first rank": (TARGET.masked_fill(FIRST, -100), {"weight": TABLE.exp()}),
    "all ignored": (torch.full((N,), -100), {}),
    "focal": (TARGET, {"focal_gamma": 2.0, "label_smoothing": TABLE.sigmoid()}),
    "offset": (TARGET, {"offset": TABLE, "label_smoothing": 0.2}),
    "offset of targets": (TARGET, {"offset": normal(1, C, C, seed=9)}),
    "offset of rows": (TARGET, {"offset": normal(N, C, seed=10)}),
    "mixed": (MixedTarget(TARGET, OTHER, 0.3), {"weight": TABLE.exp(), "label_smoothing": 0.1}),
    "mixed by rows": (MixedTarget(TARGET, OTHER.masked_fill(FIRST, -100), LAM), {"weight": TABLE.exp()}),
    "probabilities": (normal(N, C, seed=11).softmax(1), {"offset": TABLE, "label_smoothing": 0.1}),
}
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "logits": (offset_cross_entropy, (FEATURES @ WEIGHT.T,)),
    "linear": (
        lambda x, w, b, y, **more: linear_cross_entropy(x, w, y, linear_bias=b, **more),
        (FEATURES, WEIGHT, BIAS),
    ),
    "cosine": (
        lambda x, w, y, **more: cosine_margin_cross_entropy(x, w, y, margin=CosFace(0.2), scale=7.0, **more),
        (FEATURES, WEIGHT),
    ),
}


def placed(value: Any, mesh: DeviceMesh, placements: list[Any]) -> Any:
    """A tensor, or the parts of a `MixedTarget`, as DTensors; numbers as they are."""
    if isinstance(value, MixedTarget):
        return MixedTarget(*(placed(one, mesh, placements) for one in (value.first, value.second, value.lam)))
    return distribute_tensor(value, mesh, placements) if isinstance(value, Tensor) else value


def called(function: Callable[..., Tensor], given: tuple[Any, ...], target: Any, more: dict[str, Any]) -> list[Tensor]:
    """The value and the gradients of all that is differentiable, whole."""
    given = tuple(one.detach().requires_grad_() for one in given)
    if "offset" in more:
        more = {**more, "offset": more["offset"].detach().requires_grad_()}
    value = function(*given, target, **more)
    leaves = [*given, *([more["offset"]] if "offset" in more else [])]
    found = torch.autograd.grad(value.square().sum(), leaves)
    for leaf, grad in zip(leaves, found, strict=True):
        if isinstance(leaf, DTensor):
            assert grad.placements == leaf.placements
    return [one.full_tensor() if isinstance(one, DTensor) else one for one in (value.detach(), *found)]


def compared(ours: list[Tensor], exact: list[Tensor], name: str) -> None:
    """Equal to the last digits, NaN included."""
    for number, (one, other) in enumerate(zip(ours, exact, strict=True)):
        torch.testing.assert_close(
            one, other, rtol=1e-11, atol=1e-12, equal_nan=True, msg=lambda t, number=number: f"{name}, {number}: {t}"
        )


def every(world: int, check: Callable[..., None]) -> None:
    """Each function with each case that it takes and one reduction: in 2, 3 and 4 processes every three of them."""
    for first, (kind, (function, given)) in enumerate(FUNCTIONS.items()):
        for second, (name, (target, settings)) in enumerate(CASES.items()):
            if kind == "cosine" and name == "probabilities":
                continue
            reduction = ("mean", "sum", "none")[(first + second + world) % 3]
            more = {**settings, "reduction": reduction}
            check(f"{kind}, {name}, {reduction}", function, given, target, more)


def of_rows(more: dict[str, Any], mesh: DeviceMesh, rows: list[Any], everywhere: list[Any]) -> dict[str, Any]:
    """Settings as DTensors: an offset with a row for each target is placed as the rows, all else is the same."""
    return {
        key: placed(value, mesh, rows if key == "offset" and value.shape == (N, C) else everywhere)
        for key, value in more.items()
    }


def batches(rank: int, world: int, group: Any) -> None:
    """A batch whose rows are sharded: the result, and all gradients, are those of the whole batch."""
    mesh = mesh_of(world)

    def check(name: str, function: Any, given: Any, target: Any, more: Any) -> None:
        exact = called(function, given, target, more)
        rows, weights = placed(given[0], mesh, ROWS), given[1:]
        for held in (weights, tuple(placed(one, mesh, WHOLE) for one in weights)):
            more = of_rows(more, mesh, ROWS, WHOLE)
            ours = called(function, (rows, *held), placed(target, mesh, ROWS), more)
            compared(ours, exact, f"{name}, rank {rank}")

    every(world, check)


def classes(rank: int, world: int, group: Any) -> None:
    """Class weights that are sharded, or whole, with rows that are the same everywhere."""
    mesh = mesh_of(world)

    def check(name: str, function: Any, given: Any, target: Any, more: Any) -> None:
        exact = called(function, given, target, more)
        rows, weights = given[0], given[1:]
        for placements in (ROWS, WHOLE):
            held = tuple(placed(one, mesh, placements) for one in weights)
            ours = called(function, (placed(rows, mesh, WHOLE), *held), target, more)
            compared(ours, exact, f"{name}, {placements}, rank {rank}")
        if weights:
            held = tuple(placed(one, mesh, ROWS) for one in weights)
            compared(called(function, (rows, *held), target, more), exact, f"{name}, plain rows, rank {rank}")

    every(world, check)


def grids(rank: int, world: int, group: Any) -> None:
    """Rows over one dimension of a mesh and classes over the other."""
    for shape in {(1, world), (world, 1), (2, world // 2)} - {(2, 1), (2, 0)} if world != 3 else {(1, 3), (3, 1)}:
        mesh = init_device_mesh("cpu", shape)
        rows, columns, everywhere = [Shard(0), Replicate()], [Replicate(), Shard(0)], [Replicate(), Replicate()]
        for kind in ("linear", "cosine"):
            function, given = FUNCTIONS[kind]
            for name in ("weighted", "offset", "mixed by rows"):
                target, more = CASES[name]
                exact = called(function, given, target, more)
                held = [placed(one, mesh, columns) for one in given[1:]]
                own = of_rows(more, mesh, rows, everywhere)
                ours = called(function, (placed(given[0], mesh, rows), *held), placed(target, mesh, rows), own)
                compared(ours, exact, f"{kind}, {name}, {shape}, rank {rank}")


LOSSES: dict[str, Callable[[], losses.Loss]] = {
    "balanced": lambda: losses.BalancedSoftmaxLoss(COUNTS, weight=TABLE.exp()),
    "batch": lambda: losses.ARBLoss(counts="batch"),
    "average": lambda: losses.ClassBalancedLoss(COUNTS, average="batch"),
    "smoothing": lambda: losses.LabelAwareSmoothingLoss(COUNTS, reduction="sum"),
    "dbm": lambda: losses.DBMLoss(COUNTS, 0.3, base="bs", reduction="none"),
    "sphere": lambda: losses.SphereFaceLoss(annealing=0.5),
}


def features(name: str, loss: losses.Loss, mesh: DeviceMesh, by_row: Tensor) -> None:
    """The same of features, whose class weights are whole, and sharded with rows that are the same everywhere."""
    exact = called(loss.from_features, (FEATURES, WEIGHT), TARGET, {"sample_weight": by_row})
    for rows, columns in ((ROWS, WHOLE), (WHOLE, ROWS)):
        held = placed(FEATURES, mesh, rows), placed(WEIGHT, mesh, columns)
        more = {"sample_weight": placed(by_row, mesh, rows)}
        compared(called(loss.from_features, held, placed(TARGET, mesh, rows), more), exact, f"{name}, {rows}")


def named(rank: int, world: int, group: Any) -> None:
    """Named losses of logits or cosines whose rows are sharded, with norms, MixUp and weights of rows too."""
    mesh, logits = mesh_of(world), normal(N, C, seed=12).tanh()
    by_row = normal(N, seed=13).abs()
    for name, make in LOSSES.items():
        for target in (TARGET.masked_fill(FIRST, -100), MixedTarget(TARGET, OTHER, LAM)):
            loss = make()
            more = {"sample_weight": by_row} if isinstance(target, Tensor) else {}
            more |= {"norms": FEATURES.norm(dim=1)} if name == "sphere" else {}
            exact = called(loss, (logits,), target, more)
            rows = {key: placed(value, mesh, ROWS) for key, value in more.items()}
            ours = called(loss, (placed(logits, mesh, ROWS),), placed(target, mesh, ROWS), rows)
            compared(ours, exact, f"{name}, rank {rank}")
        if not isinstance(loss, losses.SphereFaceLoss) and loss.reduction != "none":
            features(name, make(), mesh, by_row)
    for loss in (losses.LADELoss(COUNTS), losses.EstimatedOffsetLoss(C, D)):
        with pytest.raises(ValueError, match=f"got {type(loss).__name__}, which needs all"):
            loss.evaluate(placed(logits, mesh, ROWS), placed(TARGET, mesh, ROWS))


def added(rank: int, world: int, group: Any) -> None:
    """A plain term is added to the plain tensor of a loss of sharded rows; the gradient is that of both."""
    mesh, found = mesh_of(world), []
    for placements in (ROWS, None):
        rows, target = ((one if placements is None else placed(one, mesh, placements)) for one in (FEATURES, TARGET))
        weight = WEIGHT.clone().requires_grad_()
        loss = linear_cross_entropy(rows, weight, target)
        total = (loss if placements is None else loss.to_local()) + weight.square().mean()
        total.backward()
        found.append((total.detach(), weight.grad))
    torch.testing.assert_close(*found)


def any_numbers(rank: int, world: int, group: Any) -> None:
    """Ranks with any numbers of rows, none too, as DTensor's own chunks do not have them."""
    sizes = [0, 5, 2, 0][:world] if world > 2 else [7, 0]
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    rows, labels = (
        DTensor.from_local(one[mine], mesh_of(world), ROWS, run_check=False, shape=one.shape, stride=one.stride())
        for one in (FEATURES, TARGET)
    )
    for reduction in ("mean", "sum"):
        weight, whole = WEIGHT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
        ours = linear_cross_entropy(rows, weight, labels, weight=TABLE.exp(), reduction=reduction)
        exact = linear_cross_entropy(FEATURES, whole, TARGET, weight=TABLE.exp(), reduction=reduction)
        ours.backward()
        exact.backward()
        compared([ours.full_tensor().detach(), weight.grad], [exact.detach(), whole.grad], f"{reduction}, {rank}")


if __name__ == "__main__":
    main([batches, classes, grids, named, added, any_numbers])

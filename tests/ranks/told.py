"""An error on one rank is an error on all, and what differs between ranks is one: run by test_ranks.py, one a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import counts_of, normal
from launch import main, mesh_of
from told_problem import ABSENT, INPUT, MIXED, OTHER, TABLE, TARGET, WEIGHT, C, D, N, right, rows
from torch import Tensor

from lt_kernels import losses
from lt_kernels.distributed import RankError
from lt_kernels.functional import ArcFace, CosFace, MixedTarget, cosine_margin_cross_entropy, linear_cross_entropy
from lt_kernels.heads import CosineHead, LinearHead

# What is wrong on one rank alone: the function, its settings, the error there, and what all are told.
WRONG: dict[str, tuple[Callable[..., Tensor], dict[str, Any], type[Exception], str]] = {
    "a target that is no class": (linear_cross_entropy, {"target": TARGET + C}, IndexError, "target"),
    "a negative target": (cosine_margin_cross_entropy, {"target": -1 - TARGET}, IndexError, "target"),
    "targets of another number": (linear_cross_entropy, {"target": TARGET[1:]}, ValueError, "target"),
    "targets that are no indices": (linear_cross_entropy, {"target": TARGET.bool()}, TypeError, "target"),
    "features of another width": (linear_cross_entropy, {"input": INPUT[:, 1:]}, ValueError, "input"),
    "features of another dtype": (cosine_margin_cross_entropy, {"input": INPUT.float()}, TypeError, "linear_weight"),
    "features that are no tensor": (linear_cross_entropy, {"input": "x"}, TypeError, "input"),
    "features of whole numbers": (linear_cross_entropy, {"input": INPUT.long()}, TypeError, "input"),
    "a bias of another size": (linear_cross_entropy, {"linear_bias": normal(C + 1, seed=1)}, ValueError, "linear_bias"),
    "class weights of one dimension": (linear_cross_entropy, {"linear_weight": WEIGHT[0]}, ValueError, "linear_weight"),
    "a table of another size": (linear_cross_entropy, {"weight": TABLE[1:].exp()}, ValueError, "weight"),
    "an offset of another size": (linear_cross_entropy, {"offset": TABLE[1:]}, ValueError, "offset"),
    "a word that is none": (linear_cross_entropy, {"reduction": "average"}, ValueError, "reduction"),
    "a smoothing above 1": (cosine_margin_cross_entropy, {"label_smoothing": 2.0}, ValueError, "label_smoothing"),
    "a scale of 0": (cosine_margin_cross_entropy, {"scale": 0.0}, ValueError, "scale"),
    "a margin that is none": (cosine_margin_cross_entropy, {"margin": 0.5}, TypeError, "margin"),
    "an index that is none": (linear_cross_entropy, {"ignore_index": 0.5}, TypeError, "ignore_index"),
    "shares of other rows": (
        linear_cross_entropy,
        {"target": MixedTarget(TARGET, OTHER, normal(N + 1, seed=1).sigmoid())},
        ValueError,
        "lam",
    ),
    "a second target that is no class": (
        linear_cross_entropy,
        {"target": MixedTarget(TARGET, OTHER + C, 0.3), "offset": normal(1, C, C, seed=6)},
        IndexError,
        "target",
    ),
}


def told(rank: int, world: int, group: Any) -> None:
    """Whatever a rank refuses, all refuse, with its number and its words; each rank in turn is the one."""
    for number, (name, (function, settings, kind, word)) in enumerate(WRONG.items()):
        bad = number % world
        usual: dict[str, Any] = {"input": INPUT, "linear_weight": rows(rank, world), "target": TARGET, "group": group}
        if name.startswith("a second"):
            usual |= {"target": MIXED, "offset": settings["offset"]}
        if rank == bad:
            with pytest.raises(kind, match=word) as own:
                function(**usual | settings)
            assert not isinstance(own.value, RankError), name
        else:
            with pytest.raises(RankError, match=f"rank {bad}: {kind.__name__}: .*{word}"):
                function(**usual)
        right(rank, world, group)


def all_at_once(rank: int, world: int, group: Any) -> None:
    """Where every rank has an error of its own, each raises that."""
    with pytest.raises(IndexError, match="target"):
        linear_cross_entropy(INPUT, rows(rank, world), TARGET + C + rank, group=group)
    right(rank, world, group)


def heads(rank: int, world: int, group: Any) -> None:
    """The same for what heads refuse before their loss."""
    for make in (LinearHead, CosineHead):
        head = make(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
        wrong = [(INPUT[:, 1:], TARGET), (INPUT.reshape(2, 3, D), TARGET), (INPUT, TARGET + C), (None, TARGET)]
        for features, target in wrong:
            if rank == world - 1:
                with pytest.raises((ValueError, IndexError, TypeError)) as own:
                    head(features, target)
                assert not isinstance(own.value, RankError)
            else:
                with pytest.raises(RankError, match=f"rank {world - 1}: "):
                    head(INPUT, TARGET)
            right(rank, world, group)


# What is there on all ranks, and what there is instead on one; the name that the error has.
DIFFERENT: dict[str, tuple[Callable[..., Tensor], dict[str, Any], dict[str, Any]]] = {
    "target": (linear_cross_entropy, {}, {"target": OTHER}),
    "target of two": (linear_cross_entropy, {"target": MIXED}, {"target": MixedTarget(OTHER, TARGET, 0.3)}),
    "target, ignored": (linear_cross_entropy, {}, {"target": torch.full((N,), -100)}),
    "target, probabilities": (
        linear_cross_entropy,
        {"target": normal(N, C, seed=7).softmax(1)},
        {"target": normal(N, C, seed=8).softmax(1)},
    ),
    "input": (linear_cross_entropy, {}, {"input": INPUT.nextafter(INPUT + 1)}),
    "input, rows": (cosine_margin_cross_entropy, {}, {"input": INPUT.flip(0)}),
    "input, fewer rows": (linear_cross_entropy, {}, {"input": INPUT[:3], "target": TARGET[:3]}),
    "input, NaN": (linear_cross_entropy, {}, {"input": INPUT * torch.nan}),
    "input, no rows": (linear_cross_entropy, {}, {"input": INPUT[:0], "target": TARGET[:0]}),
    "reduction": (linear_cross_entropy, {}, {"reduction": "sum"}),
    "weight": (linear_cross_entropy, {"weight": TABLE.exp()}, {"weight": TABLE.sigmoid()}),
    "weight, none": (linear_cross_entropy, {"weight": TABLE.exp()}, {"weight": None}),
    "offset": (linear_cross_entropy, {"offset": TABLE}, {"offset": TABLE.flip(0)}),
    "offset, of one that is a target": (linear_cross_entropy, {"offset": TABLE}, {"offset": ABSENT}),
    "label_smoothing": (linear_cross_entropy, {"label_smoothing": 0.1}, {"label_smoothing": 0.2}),
    "focal_gamma": (linear_cross_entropy, {"focal_gamma": 1.0}, {"focal_gamma": 2.0}),
    "ignore_index": (linear_cross_entropy, {}, {"ignore_index": -1}),
    "scale": (cosine_margin_cross_entropy, {}, {"scale": 31.0}),
    "margin": (cosine_margin_cross_entropy, {"margin": CosFace(0.2)}, {"margin": CosFace(0.3)}),
    "margin, kind": (cosine_margin_cross_entropy, {"margin": CosFace(0.2)}, {"margin": ArcFace(0.2)}),
    "lam": (linear_cross_entropy, {"target": MIXED}, {"target": MixedTarget(TARGET, OTHER, 0.4)}),
    "linear_bias": (linear_cross_entropy, {}, {"linear_bias": "own"}),
    "requires_grad of input": (linear_cross_entropy, {}, {"input": INPUT.clone().requires_grad_()}),
}


def different(rank: int, world: int, group: Any) -> None:
    """What must be the same and is not is named, on all ranks."""
    for number, (name, (function, usual, instead)) in enumerate(DIFFERENT.items()):
        settings: dict[str, Any] = {"input": INPUT, "linear_weight": rows(rank, world), "target": TARGET, **usual}
        if rank == number % world:
            settings |= instead
        if settings.get("linear_bias") == "own":
            settings["linear_bias"] = normal(len(settings["linear_weight"]), seed=9)
        with pytest.raises(RankError, match=f"^{name.split(',')[0].removesuffix(' of two')}.* must be the same"):
            function(**settings, group=group)
        right(rank, world, group)


def named_losses(rank: int, world: int, group: Any) -> None:
    """Tables of named losses, how they average, no_grad on one rank, another loss, other numbers of classes."""
    counts, mesh = counts_of(C, seed=1), mesh_of(world)
    made = {
        "weight": lambda odd: LinearHead(D, C, losses.FocalLoss(2.0, counts + odd), mesh=mesh),
        "average": lambda odd: LinearHead(
            D, C, losses.ClassBalancedLoss(counts, average="batch" if odd else "weighted"), mesh=mesh
        ),
        "margin": lambda odd: CosineHead(D, C, losses.LDAMLoss(counts, 0.5 + odd / 10), mesh=mesh),
        "offset": lambda odd: LinearHead(D, C, losses.LogitAdjustmentLoss(counts, 1.0 + odd), mesh=mesh),
    }
    for name, make in made.items():
        head = make(rank == 1).double()
        with pytest.raises(RankError, match=f"^{name} must be the same"):
            head(INPUT, TARGET)
        right(rank, world, group)
    head = LinearHead(D, C + (rank == 1), losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    with pytest.raises(RankError, match="linear_weight must be the same on every rank"):
        head(INPUT, TARGET)
    right(rank, world, group)
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world)).double()
    with torch.set_grad_enabled(rank == 0), pytest.raises(RankError, match="requires_grad"):
        head(INPUT.clone().requires_grad_(), TARGET)
    right(rank, world, group)


def other_dtype(rank: int, world: int, group: Any) -> None:
    """Features and class weights of one rank in another dtype."""
    head = LinearHead(D, C, losses.CrossEntropyLoss(), mesh=mesh_of(world))
    for _ in range(2):  # at the first call it is the layout that is asked for
        kind = torch.float32 if rank else torch.float64
        with pytest.raises(RankError, match="must be the same"):
            head.to(kind)(INPUT.to(kind), TARGET)
        right(rank, world, group)


if __name__ == "__main__":
    main([told, all_at_once, heads, different, named_losses, other_dtype])

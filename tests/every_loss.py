"""Every loss and head, how it is called, and which tables it holds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from helpers import classes_of, normal
from torch import Tensor, nn

from benchmarks.registry import NAMED, OF_FEATURES, example, made, takes
from lt_kernels import heads, losses, regularizers
from lt_kernels.functional import DBM

N, D, C = 6, 5, 4
COUNTS = [70_000, 900, 31, 2]
TARGET = classes_of(N, C, seed=1)
WEIGHT = torch.tensor([0.5, 1.0, 3.0, 9.0])


def from_registry(counted: bool) -> dict[str, Callable[[], losses.Loss]]:
    """The named losses of logits or cosines that take counts, or those that take none; few settings are the default."""
    names = [name for name in NAMED if name not in OF_FEATURES and takes(name, "class_counts") == counted]
    given = {name: {} if name == "ARBLoss" else example(name) for name in names}
    return {name: functools.partial(made, name, COUNTS, **given[name]) for name in names}


def adjusted() -> losses.Loss:
    return losses.LogitAdjustmentLoss(COUNTS, 1.5)


# Losses of logits or cosines [N, C]: those that hold tables, and those that hold none.
PLAIN: dict[str, Callable[[], losses.Loss]] = {
    **from_registry(counted=True),
    "weight": lambda: losses.CrossEntropyLoss(WEIGHT),
    "z-loss": lambda: losses.BalancedSoftmaxLoss(COUNTS, z_loss=0.2),
    "focal weight": lambda: losses.FocalLoss(1.5, WEIGHT),
    "ldam weight": lambda: losses.LDAMLoss(COUNTS, weight=WEIGHT),
    "dbm": lambda: losses.DBMLoss(COUNTS),
    "dbm cb": lambda: losses.DBMLoss(COUNTS, base="cb"),
}
BARE: dict[str, Callable[[], losses.Loss]] = {
    **from_registry(counted=False),
    "batch counts": lambda: losses.ARBLoss(counts="batch"),
}
HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear bs": lambda: heads.LinearHead(D, C, losses.BalancedSoftmaxLoss(COUNTS)),
    "linear lade": lambda: heads.LinearHead(D, C, losses.LADELoss(COUNTS)),
    "linear offset": lambda: heads.LinearHead(D, C, losses.EstimatedOffsetLoss(C, D), bias=False),
    "cosine ldam": lambda: heads.CosineHead(D, C, losses.LDAMLoss(COUNTS, weight=WEIGHT)),
    "cosine dbm": lambda: heads.CosineHead(D, C, losses.DBMLoss(COUNTS, base="bs")),
    "bcl": lambda: heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(adjusted())),
    "gml": lambda: heads.GMLHead(D, C, losses.GMLLoss(adjusted(), COUNTS), queue=16),
    "ncl": lambda: heads.NCLHead(D, C, losses.NCLLoss(COUNTS, hard_categories=2, margin=DBM(COUNTS)), experts=2),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {"lade term": lambda: regularizers.LADERegularizer(COUNTS)}
FILLED = {**PLAIN, **HEADS, **OTHERS}
ALL = {**FILLED, **BARE}


def input_of(loss: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits or cosines [N, C]."""
    if getattr(loss, "input_kind", "logits") == "cosine":
        return normal(N, C, seed=2, dtype=torch.float64).tanh().to(dtype)
    return normal(N, C, seed=2, spread=2, dtype=dtype)


def value(module: nn.Module, dtype: torch.dtype = torch.float32, **options: Any) -> Tensor:
    """What a loss, or a head of freshly seeded weights, says of one batch."""
    if hasattr(module, "in_features"):
        features = normal(N, getattr(module, "experts", 1) * D, seed=3, dtype=dtype)
        return module(features, TARGET, **options).detach()
    return module(input_of(module, dtype), TARGET, **options).detach()


def tables(module: nn.Module) -> dict[str, Tensor]:
    """The tables of numbers a class that a module holds, as they are now: a copy."""
    names = ("loss.center_loss", "queue", "prototypes", "projection")
    found = {name: buffer for name, buffer in module.named_buffers() if not name.startswith(names)}
    return {name: buffer.clone() for name, buffer in found.items()}

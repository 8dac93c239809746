"""The public functions on the GPU's kernels, with their gradients, on a GPU or by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device import DEVICE, INTERPRETED, MARKS, by_triton
from helpers import classes_of, counts_of, gradients, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional as F
from lt_kernels import losses, memory_budget
from lt_kernels.functional import DBM, ArcFace, MixedTarget, SphereFace
from lt_kernels.ops import use_kernels

pytestmark = [pytest.mark.usefixtures("tensor_float"), *MARKS]
N, C, D = 19, 40, 6
COUNTS, BY_ROW = counts_of(C, 30), normal(N, seed=31).abs()
LEAVES = {"z": (N, C), "x": (N, D), "w": (C, D), "b": (C,), "o": (C,)}
Leaves = dict[str, Tensor]
Case = Callable[[Leaves, Tensor, Tensor], Tensor]


def mixed(first: Tensor, second: Tensor | None = None) -> MixedTarget:
    """Two targets a row; by default ones that are ignored together."""
    return MixedTarget(first, torch.where(first < 0, first, (first + 1) % C) if second is None else second, 0.3)


def soft(logits: Tensor, target: Tensor) -> Tensor:
    """Class probabilities of a kind."""
    return (logits.detach() * (target[:, None] + 1)).softmax(1).to(logits.dtype)


def linear(leaves: Leaves, target: Any, **options: Any) -> Tensor:
    return F.linear_cross_entropy(leaves["x"], leaves["w"], target, offset=leaves["o"], **options)


def cosines(leaves: Leaves, target: Any, margin: Any, scale: float = 6.0) -> Tensor:
    return F.cosine_margin_cross_entropy(
        leaves["x"], leaves["w"], target, margin=margin, offset=leaves["o"], scale=scale
    )


# Losses of the leaves, of classes of which some are ignored, and of classes of which none is.
OF_FEATURES: dict[str, Case] = {
    "linear": lambda t, y, _: linear(t, y, label_smoothing=0.1, focal_gamma=1.5),
    "bias": lambda t, y, _: linear(t, y, linear_bias=t["b"], reduction="sum"),
    "weights of rows, z-loss": lambda t, y, _: linear(t, y, sample_weight=BY_ROW.to(t["x"]), z_loss=0.1),
    "softcap": lambda t, y, _: linear(t, y, softcap=1.5, linear_bias=t["b"]),
    "mixed": lambda t, y, _: linear(t, mixed(y), label_smoothing=0.1, focal_gamma=1.5),
    "probabilities": lambda t, _, y: linear(t, soft(t["z"], y), linear_bias=t["b"], reduction="none"),
    "sphereface": lambda t, y, _: cosines(t, y, SphereFace(3), 2.0),
    "sphereface, annealed": lambda t, y, _: cosines(t, y, SphereFace(3, 1.5), 2.0),
    "sphereface, mixed": lambda t, y, every: cosines(t, mixed(y, every), SphereFace(4, torch.tensor(0.5)), 2.0),
    "arcface": lambda t, y, _: cosines(t, y, ArcFace(0.4)),
    "arcface, mixed": lambda t, y, every: cosines(t, mixed(y, every), ArcFace(0.4)),
    "dbm": lambda t, y, _: cosines(t, y, DBM(COUNTS, 0.3)),
    "dbm of all": lambda t, y, _: cosines(t, y, DBM(COUNTS, 0.5, 0.5, applies="all")),
}
OF_LOGITS: dict[str, Case] = {
    "plain": lambda t, y, _: F.offset_cross_entropy(t["z"], y, offset=t["o"], label_smoothing=0.1),
    "rows": lambda t, y, _: F.offset_cross_entropy(t["z"], y, offset=t["o"], focal_gamma=0.5, reduction="none"),
    "rows, mixed": lambda t, y, every: F.offset_cross_entropy(t["z"], mixed(y, every), label_smoothing=0.1),
    "rows, probabilities": lambda t, _, y: F.offset_cross_entropy(t["z"], soft(t["z"], y)),
    "balanced": lambda t, y, _: losses.BalancedSoftmaxLoss(COUNTS)(t["z"], y),
    "ldam": lambda t, y, _: losses.LDAMLoss(COUNTS, scale=10.0)(t["z"].tanh(), y),
    "dbm of cosines": lambda t, y, _: losses.DBMLoss(COUNTS, max_margin=0.2, scale=10.0)(t["z"].tanh(), y),
    "lade": lambda t, _, y: F.lade_regularizer(t["z"], 2 * (y // 2), COUNTS, lam=0.3),
    "lade of samples": lambda t, _, y: F.lade_regularizer(t["z"], y, COUNTS, lam=0.3, importance="sample"),
    "repulsion": lambda t, *_: F.logit_weight_repulsion(t["w"][:24], threshold=0.3),
    "repulsion, rows": lambda t, *_: F.logit_weight_repulsion(t["w"][:24], threshold=0.3, reduction="none"),
}
CASES = OF_FEATURES | OF_LOGITS
IGNORING = ("linear", "bias", "mixed", "sphereface", "plain", "rows")
CALLS = [*((name, torch.float32) for name in CASES), *((name, torch.float64) for name in OF_LOGITS)]


def targets(ignored: list[int]) -> tuple[Tensor, Tensor]:
    every = classes_of(N, C, 62)
    return every.index_fill(0, torch.tensor(ignored), -100), every


@pytest.mark.parametrize(("name", "dtype"), CALLS, ids=str)
def test_public_functions(name: str, dtype: torch.dtype) -> None:
    """Values and gradients, those of features in slabs, are those of the definition in float64."""
    leaves = {key: normal(*size, seed=65 + len(size), dtype=dtype) for key, size in LEAVES.items()}
    classes = targets([2, 5])
    with use_kernels("reference"):
        exact = gradients(lambda **t: CASES[name](t, *classes), {key: leaf.double() for key, leaf in leaves.items()})
    here = [one.to(DEVICE) for one in classes]
    with by_triton(), memory_budget(4 * N * C):
        ours = gradients(lambda **t: CASES[name](t, *here), {key: leaf.to(DEVICE) for key, leaf in leaves.items()})
    for key, value in exact.items():
        assert_close(ours[key].cpu(), value, dtype if INTERPRETED else torch.float16, key)


@pytest.mark.parametrize("name", IGNORING)
@pytest.mark.parametrize("every", [True, False])
def test_infinity_comes_in(name: str, every: bool) -> None:
    """Rows that are ignored, all or some, have a gradient of exactly 0 whatever comes back to the loss."""
    ignored = [*range(N)] if every else [1, 2]
    leaves = {key: normal(*size, seed=65, dtype=torch.float32).to(DEVICE) for key, size in LEAVES.items()}
    leaves = {key: leaf.requires_grad_() for key, leaf in leaves.items()}
    with by_triton():
        value = CASES[name](leaves, *(one.to(DEVICE) for one in targets(ignored))).sum() * torch.inf
        found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    made = {key: one for key, one in zip(leaves, found, strict=True) if one is not None}
    rows = made.pop("x" if "x" in made else "z")
    assert bool((rows[ignored] == 0).all()), rows
    if every:
        assert not any(bool(one.any()) for one in made.values()), made
    else:
        assert not bool(rows[3:].isfinite().all(1).any()), rows

"""offset_cross_entropy against the papers' formulas: values and all gradients, every option, many shapes."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, normal
from torch import Tensor

from lt_kernels import functional

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

CLASSES = [1, 2, 15, 16, 17, 31, 33, 255, 1000, 1025, 4097]  # both sides of vector and block boundaries
OFFSETS = ["none", "class", "row", "target", "missing", "missing by target"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"focal_gamma": 2.0},
    {"focal_gamma": 0.5},
    {"focal_gamma": 1.0, "label_smoothing": 0.2},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"ignore_index": 2},
    {"ignore_index": -7, "label_smoothing": 0.3, "focal_gamma": 1.5},
]


def offset_for(kind: str, rows: int, classes: int, target: Tensor) -> Tensor | None:
    """An offset of each kind; a missing class is never a target's own."""
    if kind == "none":
        return None
    if kind == "class":
        return normal(classes, seed=21, spread=2.0)
    if kind == "row":
        return normal(rows, 1, classes, seed=22, spread=2.0)
    if kind == "target":
        return normal(classes, classes, seed=23, spread=2.0)[None]
    if kind == "missing":
        offset = normal(classes, seed=24, spread=2.0)
        gone = torch.ones(classes, dtype=torch.bool)
        gone[target] = False
        return offset.masked_fill(gone & (torch.arange(classes) % 2 == 0), -torch.inf)
    away = torch.rand(classes, classes, generator=torch.Generator().manual_seed(25)) < 0.5
    return normal(classes, classes, seed=26).masked_fill(away & ~torch.eye(classes, dtype=torch.bool), -torch.inf)[None]


def both(options: dict[str, Any], leaves: dict[str, Tensor], target: Tensor, **extra: Any) -> None:
    """Compare ours with the paper's, given the options in our words."""
    words = {"focal_gamma": "gamma", "label_smoothing": "smoothing"}
    theirs = {words.get(key, key): value for key, value in (options | extra).items()}

    def ours(logits: Tensor, offset: Tensor | None = None) -> Tensor:
        return functional.offset_cross_entropy(logits, target, offset=offset, **options, **extra)

    def exact(logits: Tensor, offset: Tensor | None = None) -> Tensor:
        return published.cross_entropy(logits, target, offset=offset, **theirs)

    assert_same(ours, exact, leaves)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options(options: dict[str, Any], kind: str, reduction: str) -> None:
    rows, classes = 14, 9
    target = classes_of(rows, classes - 2, 31)
    target[4] = options.get("ignore_index", -100)
    weight = normal(classes, seed=32).abs() + 0.1
    offset = offset_for(kind, rows, classes, target[target >= 0])
    leaves = {"logits": normal(rows, classes, seed=33, spread=3.0)} | ({} if offset is None else {"offset": offset})
    both(options, leaves, target, weight=weight, reduction=reduction)
    both(options, leaves, target, reduction=reduction)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("options", [{}, {"focal_gamma": 2.0, "label_smoothing": 0.1}], ids=str)
def test_every_width(options: dict[str, Any], classes: int) -> None:
    target = classes_of(6, classes, 34)
    leaves = {"logits": normal(6, classes, seed=35, spread=3.0), "offset": normal(classes, seed=36, spread=2.0)}
    both(options, leaves, target, reduction="none")


@pytest.mark.parametrize("options", [{}, {"focal_gamma": 1.0}], ids=str)
def test_smoothing_per_class(options: dict[str, Any]) -> None:
    rows, classes = 14, 9
    smoothing = torch.linspace(0.0, 0.6, classes, dtype=torch.float64)
    leaves = {"logits": normal(rows, classes, seed=37), "offset": normal(classes, seed=38)}
    both(options, leaves, classes_of(rows, classes, 39), label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(7,), (4, 7), (4, 7, 3), (4, 7, 2, 3), (2, 7, 1, 2, 3)], ids=str)
def test_shapes(shape: tuple[int, ...], reduction: str) -> None:
    """[C], [N, C], [N, C, d1, ...]: the class axis is the second one, the result has the target's shape."""
    axis = 0 if len(shape) == 1 else 1
    target = torch.randint(7, shape[:axis] + shape[axis + 1 :], generator=torch.Generator().manual_seed(41))
    weight = normal(7, seed=42).abs()

    def ours(logits: Tensor, offset: Tensor) -> Tensor:
        return functional.offset_cross_entropy(
            logits, target, weight, offset=offset, label_smoothing=0.1, reduction=reduction
        )

    def exact(logits: Tensor, offset: Tensor) -> Tensor:
        flat, rows = logits.movedim(axis, -1).reshape(-1, 7), target.reshape(-1)
        if offset.dim() > 1:
            offset = offset.movedim(axis, -1).reshape(-1, 1, 7)
        loss = published.cross_entropy(flat, rows, weight, offset, smoothing=0.1, reduction=reduction)
        return loss.reshape(target.shape) if reduction == "none" else loss

    logits = normal(*shape, seed=43)
    assert_same(ours, exact, {"logits": logits, "offset": normal(7, seed=44)})
    assert_same(ours, exact, {"logits": logits, "offset": normal(*shape, seed=45)})


@pytest.mark.parametrize("shape", [(7,), (4, 7), (4, 7, 3)], ids=str)
def test_offset_by_target_in_every_shape(shape: tuple[int, ...]) -> None:
    axis = 0 if len(shape) == 1 else 1
    target = torch.randint(7, shape[:axis] + shape[axis + 1 :], generator=torch.Generator().manual_seed(46))

    def exact(logits: Tensor, offset: Tensor) -> Tensor:
        flat = logits.movedim(axis, -1).reshape(-1, 7)
        return published.cross_entropy(flat, target.reshape(-1), offset=offset)

    leaves = {"logits": normal(*shape, seed=47), "offset": normal(7, 7, seed=48)}
    assert_same(lambda logits, offset: functional.offset_cross_entropy(logits, target, offset=offset), exact, leaves)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["none", "class", "row", "missing"])
def test_probability_targets(kind: str, smoothing: float, reduction: str) -> None:
    """Class probabilities; a row need not sum to one, and classes that are not there carry no mass."""
    rows, classes = 11, 9
    offset = offset_for(kind, rows, classes, torch.tensor([0, 1]))
    soft = 1.3 * normal(rows, classes, seed=51).softmax(1)
    if kind == "missing":
        soft = soft * published.present(offset)
    weight = normal(classes, seed=52).abs()

    def ours(logits: Tensor, soft: Tensor, offset: Tensor | None = None) -> Tensor:
        return functional.offset_cross_entropy(
            logits, soft, weight, offset=offset, label_smoothing=smoothing, reduction=reduction
        )

    def exact(logits: Tensor, soft: Tensor, offset: Tensor | None = None) -> Tensor:
        return published.soft_cross_entropy(logits, soft, weight, offset, smoothing, reduction)

    leaves = {"logits": normal(rows, classes, seed=53, spread=2.0), "soft": soft}
    assert_same(ours, exact, leaves if offset is None else leaves | {"offset": offset})


@pytest.mark.parametrize("classes", [1, 17, 33, 1025])
def test_probability_targets_of_every_width(classes: int) -> None:
    leaves = {"logits": normal(5, classes, seed=54, spread=2.0), "target": normal(5, classes, seed=55).softmax(1)}
    assert_same(functional.offset_cross_entropy, published.soft_cross_entropy, leaves)


def test_small_offset_gradient_of_a_saturated_row() -> None:
    """A row that is already right keeps a relative precision of its tiny gradient."""
    logits = torch.tensor([[60.0, 0.0, -5.0], [0.0, 80.0, 1.0]], dtype=torch.float64, requires_grad=True)
    functional.offset_cross_entropy(logits, torch.tensor([0, 1]), reduction="sum").backward()
    tiny = torch.tensor([[-60.0, -60.0, -65.0], [-80.0, -80.0, -79.0]], dtype=torch.float64).exp()
    expected = torch.stack(
        [
            torch.stack([-(tiny[0, 1] + tiny[0, 2]), tiny[0, 1], tiny[0, 2]]),
            torch.stack([tiny[1, 0], -(tiny[1, 0] + tiny[1, 2]), tiny[1, 2]]),
        ]
    )
    assert ((logits.grad - expected) / expected).abs().max() < 1e-12

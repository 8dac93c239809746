"""linear_cross_entropy against dense logits and the papers' formulas: values and all gradients."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, normal
from torch import Tensor

from lt_kernels import functional

pytestmark = pytest.mark.usefixtures("kernels")


def leaves_for(rows: int, classes: int, features: int, *extra: str) -> dict[str, Tensor]:
    """Features, class weights, and whichever of bias and offset are asked for."""
    available = {
        "linear_bias": normal(classes, seed=63),
        "offset": normal(classes, seed=64, spread=2.0),
    }
    leaves = {"input": normal(rows, features, seed=61), "linear_weight": normal(classes, features, seed=62)}
    return leaves | {name: available[name] for name in extra}


def both(target: Tensor, leaves: dict[str, Tensor], **options: Any) -> None:
    """Compare ours with the paper's cross-entropy of input @ linear_weight.T + linear_bias."""
    words = {"focal_gamma": "gamma", "label_smoothing": "smoothing"}
    theirs = {words.get(key, key): value for key, value in options.items()}

    def exact(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None = None, **rest: Tensor) -> Tensor:
        logits = input @ linear_weight.T + (0 if linear_bias is None else linear_bias)
        loss = published.soft_cross_entropy if target.is_floating_point() else published.cross_entropy
        return loss(logits, target, **rest, **theirs)

    def ours(input: Tensor, linear_weight: Tensor, **rest: Tensor) -> Tensor:
        return functional.linear_cross_entropy(input, linear_weight, target, **rest, **options)

    assert_same(ours, exact, leaves)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("extra", [(), ("linear_bias",), ("offset",), ("linear_bias", "offset")], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"focal_gamma": 2.0}, {"label_smoothing": 0.2}, {"focal_gamma": 0.7, "label_smoothing": 0.1}],
    ids=str,
)
def test_options(options: dict[str, Any], extra: tuple[str, ...], reduction: str) -> None:
    target = classes_of(13, 9, 65)
    target[2] = -100
    weight = normal(9, seed=66).abs()
    both(target, leaves_for(13, 9, 6, *extra), weight=weight, reduction=reduction, **options)


@pytest.mark.parametrize("rows, classes", [(5, 1), (5, 2), (5, 33), (5, 257), (3, 1025), (40, 7), (130, 17), (3, 4097)])
def test_shapes(rows: int, classes: int) -> None:
    """Both slabs of classes (C > N) and slabs of rows."""
    leaves = leaves_for(rows, classes, 4, "linear_bias", "offset")
    both(classes_of(rows, classes, 67), leaves, label_smoothing=0.1, focal_gamma=1.0)


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 9), (13, 1, 9)], ids=str)
def test_offsets(shape: tuple[int, ...]) -> None:
    offset = normal(*shape, seed=68)
    both(classes_of(13, 9, 69), leaves_for(13, 9, 6) | {"offset": offset})


def test_missing_classes() -> None:
    offset = normal(9, seed=70)
    offset[[3, 8]] = -torch.inf
    target = classes_of(13, 3, 71)
    both(target, leaves_for(13, 9, 6) | {"offset": offset}, label_smoothing=0.2)


def test_ignore_index_and_smoothing_per_class() -> None:
    smoothing = torch.linspace(0.0, 0.5, 9, dtype=torch.float64)
    both(classes_of(13, 9, 72), leaves_for(13, 9, 6), ignore_index=4, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_probability_targets(smoothing: float) -> None:
    soft = normal(13, 9, seed=73).softmax(1)
    both(soft, leaves_for(13, 9, 6, "linear_bias", "offset"), label_smoothing=smoothing)


def test_one_row_without_a_batch() -> None:
    """input [d] and a scalar target, as torch's function of this name has it."""
    leaves = leaves_for(1, 9, 6, "linear_bias")
    leaves["input"] = leaves["input"][0]
    target = torch.tensor(5)

    def exact(input: Tensor, linear_weight: Tensor, linear_bias: Tensor) -> Tensor:
        return published.cross_entropy((input @ linear_weight.T + linear_bias)[None], target[None])

    def ours(input: Tensor, linear_weight: Tensor, linear_bias: Tensor) -> Tensor:
        return functional.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias)

    assert_same(ours, exact, leaves)


def torch_call(input: Tensor, linear_weight: Tensor, linear_bias: Tensor, target: Tensor, **options: Any) -> Tensor:
    """torch's own function, from the version that has it on."""
    return torch.nn.functional.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="torch before 2.13 has none")
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("width", [(), (3,), (2, 3)], ids=str)
def test_drop_in_for_torch(width: tuple[int, ...], reduction: str) -> None:
    """The same call gives torch's numbers, also with linear_weight [C, d1, ..., d] for several targets a row."""
    target = torch.randint(9, (13, *width), generator=torch.Generator().manual_seed(74))
    target.view(-1)[1] = 2
    leaves = leaves_for(13, 9, 6) | {
        "linear_weight": normal(9, *width, 6, seed=75),
        "linear_bias": normal(9, *width, seed=76),
    }
    options = {
        "weight": normal(9, seed=77).abs(),
        "ignore_index": 2,
        "label_smoothing": 0.1,
        "reduction": reduction,
    }

    def ours(input: Tensor, linear_weight: Tensor, linear_bias: Tensor) -> Tensor:
        return functional.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)

    assert_same(ours, lambda **leaves: torch_call(target=target, **leaves, **options), leaves)

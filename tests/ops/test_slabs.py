"""Any partition of classes or rows merges to the whole: the memory budget changes the work, not the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, gradients, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import memory_budget
from lt_kernels.functional import (
    DBM,
    ArcFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    linear_cross_entropy,
)

pytestmark = pytest.mark.usefixtures("kernels")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "focal": {"focal_gamma": 1.5},
    "smoothing": {"label_smoothing": 0.2},
    "ignored": {"ignore_index": 1},
}
MARGINS: dict[str, Any] = {"arcface": ArcFace(0.4), "sphereface": SphereFace(3), "none": None}


def leaves_for(rows: int, classes: int) -> dict[str, Tensor]:
    return {
        "input": normal(rows, 5, seed=341),
        "linear_weight": normal(classes, 5, seed=342),
        "offset": normal(classes, seed=343, spread=2.0),
    }


def same_for_every_budget(function: Any, leaves: dict[str, Tensor]) -> None:
    """Bytes for one logit, for a few, for about a row, for nearly all, against as many as wanted."""
    whole = gradients(function, leaves)
    rows, classes = len(leaves["input"]), len(leaves["linear_weight"])
    for size in (8, 24, 8 * rows, 8 * classes + 8, 8 * rows * classes - 8):
        with memory_budget(size):
            parts = gradients(function, leaves)
        for key, value in whole.items():
            assert_close(parts[key], value, name=f"{key} within {size} bytes")


@pytest.mark.parametrize("rows, classes", [(4, 23), (19, 6)])
@pytest.mark.parametrize("name", OPTIONS)
def test_linear(name: str, rows: int, classes: int) -> None:
    target = classes_of(rows, classes, 344)
    same_for_every_budget(
        lambda **leaves: linear_cross_entropy(target=target, **OPTIONS[name], **leaves), leaves_for(rows, classes)
    )


@pytest.mark.parametrize("rows, classes", [(4, 23), (19, 6)])
@pytest.mark.parametrize("name", [*MARGINS, "dbm"])
def test_cosine_margin(name: str, rows: int, classes: int) -> None:
    target, margin = classes_of(rows, classes, 345), MARGINS.get(name, DBM(counts_of(classes, 346), 0.3))
    same_for_every_budget(
        lambda **leaves: cosine_margin_cross_entropy(target=target, margin=margin, scale=4.0, **leaves),
        leaves_for(rows, classes),
    )


@pytest.mark.parametrize("rows, classes", [(4, 23), (19, 6)])
def test_mixed_target_and_probabilities(rows: int, classes: int) -> None:
    mixed = MixedTarget(classes_of(rows, classes, 347), classes_of(rows, classes, 348), 0.3)
    for target in (mixed, normal(rows, classes, seed=349).softmax(1)):
        same_for_every_budget(
            lambda target=target, **leaves: linear_cross_entropy(target=target, label_smoothing=0.1, **leaves),
            leaves_for(rows, classes),
        )


@pytest.mark.parametrize("shape", ["row", "target"])
def test_offsets(shape: str) -> None:
    rows, classes = 4, 9
    leaves = leaves_for(rows, classes)
    leaves["offset"] = normal(*((rows, 1, classes) if shape == "row" else (1, classes, classes)), seed=350)
    target = classes_of(rows, classes, 351)
    same_for_every_budget(lambda **leaves: linear_cross_entropy(target=target, **leaves), leaves)


def test_backward_outside_of_the_context() -> None:
    """What the forward pass left out is made again in the backward pass, wherever that runs."""
    leaves = leaves_for(4, 23)
    target = classes_of(4, 23, 352)
    whole = gradients(lambda **leaves: linear_cross_entropy(target=target, **leaves), leaves)
    held = {key: leaf.clone().requires_grad_() for key, leaf in leaves.items()}
    with memory_budget(64):
        value = linear_cross_entropy(target=target, **held)
    value.backward()
    for key, leaf in held.items():
        assert_close(leaf.grad, whole[key], name=key)


@pytest.mark.parametrize("size", [0, -1, 1.5, None])
def test_bad_budget(size: Any) -> None:
    with pytest.raises(ValueError, match="bytes"), memory_budget(size):
        pass


def test_half_precision_weight_gradients_accumulate_in_float32() -> None:
    """A sum over 4,096 rows in slabs of a few: added up in bfloat16 it would stop growing."""
    features = torch.ones(4096, 2, dtype=torch.bfloat16)
    weight = torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True)
    naive = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(4096):
        naive = naive + 1 / 3
    assert naive < 0.5 * 4096 / 3
    with memory_budget(1024):
        value = linear_cross_entropy(features, weight, torch.zeros(4096, dtype=torch.long), reduction="sum")
    value.backward()
    expected = torch.tensor([-2 / 3, 1 / 3, 1 / 3], dtype=torch.float64)[:, None].expand(3, 2) * 4096
    assert_close(weight.grad, expected)

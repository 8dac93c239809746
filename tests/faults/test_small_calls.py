"""Calls at the edge: no rows, one feature, integers beyond C's, traces, and losses in the places of their features."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, heads, losses, memory_budget
from lt_kernels.functional import ArcFace, MixedTarget

C, D = 9, 8
COUNTS = torch.arange(1.0, C + 1)
HEADS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda how: heads.LinearHead(D, C, losses.CrossEntropyLoss(reduction=how)),
    "focal": lambda how: heads.LinearHead(D, C, losses.FocalLoss(reduction=how)),
    "cosine": lambda how: heads.CosineHead(D, C, losses.BalancedSoftmaxLoss(COUNTS, reduction=how)),
    "SphereFace": lambda how: heads.CosineHead(D, C, losses.SphereFaceLoss(reduction=how)),
}


@pytest.mark.parametrize("features", [1, 2, 3, 5, 7, 9])
@pytest.mark.parametrize("classes", [1, 3, 17, 70])
def test_repulsion_of_few_features(features: int, classes: int) -> None:
    """Cosines of one feature are 1 or -1: exactly as in float64, and the same at each call."""
    weight = normal(classes, features, seed=classes, dtype=torch.float32)
    exact = functional.logit_weight_repulsion(weight.double())
    for _ in range(3):
        assert_close(functional.logit_weight_repulsion(weight), exact, torch.float32)


def test_repulsion_of_one_feature() -> None:
    """Three classes of one sign and one of the other: 3 log(3 e + 1) + log(e + 3) - 4."""
    value = functional.logit_weight_repulsion(torch.tensor([[1.0], [2.0], [0.5], [-3.0]]))
    assert_close(value, torch.tensor(3 * math.log(3 * math.e + 1) + math.log(math.e + 3) - 4))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("how", ["none", "mean", "sum"])
def test_no_rows_with_an_offset_for_each_target_class(how: Any) -> None:
    logits, offset = torch.zeros(0, 3, requires_grad=True), torch.zeros(3, 3, requires_grad=True)
    target = torch.zeros(0, dtype=torch.int64)
    value = functional.offset_cross_entropy(logits, target, offset=offset, reduction=how)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction=how)
    assert value.shape == expected.shape
    assert torch.equal(value, expected) or (value.isnan() and expected.isnan())
    assert torch.autograd.grad(value.sum(), offset)[0].tolist() == [[0.0] * 3] * 3


@pytest.mark.parametrize("value", [2**63, 2**70, -(2**70)])
def test_integers_beyond_64_bits(value: int) -> None:
    """An error that names the argument; a budget that large is one."""
    target = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="ignore_index"):
        functional.offset_cross_entropy(torch.zeros(2, 3), target, ignore_index=value)
    with pytest.raises(ValueError, match="ignore_index"):
        functional.linear_cross_entropy(torch.zeros(2, D), torch.zeros(C, D), target, ignore_index=value)
    with pytest.raises(ValueError, match="ignore_index"):
        functional.cosine_margin_cross_entropy(torch.ones(2, D), torch.ones(C, D), target, ignore_index=value)
    if value > 0:
        with memory_budget(value):
            functional.linear_cross_entropy(torch.zeros(2, D), torch.zeros(C, D), target)


TRACED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "logits": lambda x, w, y: functional.offset_cross_entropy(w[:4], y % D),
    "linear": lambda x, w, y: functional.linear_cross_entropy(x, w, y),
    "cosine": lambda x, w, y: functional.cosine_margin_cross_entropy(x, w, y, margin=ArcFace(0.2)),
    "lade": lambda x, w, y: functional.lade_regularizer(x, y % D, torch.arange(1.0, D + 1)),
    "repulsion": lambda x, w, y: functional.logit_weight_repulsion(w),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", TRACED)
def test_traces(name: str, grad: bool) -> None:
    """A traced loss is a function of what it is given."""
    with torch.set_grad_enabled(grad):
        given = (normal(4, D, seed=1, dtype=torch.float32), normal(C, D, seed=2, dtype=torch.float32), torch.arange(4))
        traced = torch.jit.trace(TRACED[name], given, check_trace=False)
        others = (2 * given[0] - 1, given[1].flip(1), given[2].flip(0) + 1)
        assert_close(traced(*others), TRACED[name](*others))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("places", [(2, 3), (), (4,), (0,), (2, 0)], ids=str)
def test_losses_lie_where_their_features_do(name: str, places: tuple[int, ...]) -> None:
    """A loss without a reduction is [2, 3] for features [2, 3, d]; and of two targets with a share for each row."""
    head = HEADS[name]("none").double()
    features, target = normal(*places, D, seed=1), torch.randint(C, places)
    assert head(features).shape == (*places, C)
    found = head(features, target)
    assert found.shape == places
    assert_close(found.reshape(-1), head(features.reshape(-1, D), target.reshape(-1)))
    assert head(features, MixedTarget(target, target, 0.3)).shape == places
    if places:
        share = torch.rand(places[0], dtype=torch.float64)
        mixed = head(features, MixedTarget(target, target.flip(0), share))
        rows = share.reshape(-1, *(1,) * (len(places) - 1)).expand(places)
        assert_close(mixed, rows * head(features, target) + (1 - rows) * head(features, target.flip(0)))


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("shape", [(3, 2), (6,), (2, 3, 1)])
def test_two_targets_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    """They are not paired row by row."""
    target = torch.zeros(shape, dtype=torch.int64)
    with pytest.raises(ValueError, match="target"):
        HEADS[name]("mean")(torch.zeros(2, 3, D), MixedTarget(target, target, 0.3))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("how", ["mean", "sum"])
def test_no_rows_have_the_loss_of_none(name: str, how: str) -> None:
    """As F.linear and F.cross_entropy: 0 / 0 for a mean, 0 for a sum, and gradients of 0."""
    head = HEADS[name](how)
    value = head(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    assert value.isnan() if how == "mean" else value == 0
    value.backward()
    assert head.weight.grad is None or bool((head.weight.grad == 0).all())


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1)])
def test_one_class_has_no_loss_whatever_its_offset(shape: tuple[int, ...]) -> None:
    offset = torch.full(shape, 2.0)
    for target in (torch.zeros(1, dtype=torch.int64), torch.ones(1, 1)):
        assert functional.offset_cross_entropy(torch.ones(1, 1), target, offset=offset) == 0
        assert functional.linear_cross_entropy(torch.ones(1, 3), torch.ones(1, 3), target, offset=offset) == 0

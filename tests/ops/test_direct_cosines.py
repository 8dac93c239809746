"""The losses of cosines on the direct way: who takes it, and its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from helpers import classes_of, counts_of, normal
from published import own_of
from tolerances import assert_close
from torch import Tensor

from lt_kernels import losses, memory_budget
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace, cosine_margin_cross_entropy
from lt_kernels.heads import CosineHead
from lt_kernels.ops import use_kernels
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C, D = 9, 7, 5
FLOATS = [torch.float32, torch.float64]
REDUCTIONS = ["none", "mean", "sum"]
# One of each, parts of vectors, whole ones with a rest, several blocks of classes; products of a library's own choice.
SIZES = [(1, 1, 1), (9, 7, 5), (128, 100, 64), (40, 19, 131), (8, 3000, 17), (300, 1100, 120)]
COUNTS = counts_of(C, seed=3)
MARGINS = {
    "none": (None, lambda cosine, target: own_of(cosine, target)),
    "cosface": (CosFace(0.3), lambda cosine, target: published.cosface(own_of(cosine, target), 0.3)),
    "arcface": (ArcFace(0.6), lambda cosine, target: published.arcface(own_of(cosine, target), 0.6)),
    "ldam": (
        LDAM(COUNTS, 0.4),
        lambda cosine, target: published.cosface(own_of(cosine, target), published.ldam_margin(COUNTS, 0.4)[target]),
    ),
    "dbm": (
        DBM(COUNTS, 0.5, 0.3, 1.5, guard=True),
        lambda cosine, target: published.dbm(cosine, target, published.dbm_margin(COUNTS, 0.5, 0.3), 1.5, True),
    ),
}


def problem(n=N, c=C, d=D, dtype=torch.float32):
    x, w = (normal(size, d, seed=seed, dtype=dtype).requires_grad_() for seed, size in ((1, n), (2, c)))
    return x, w, classes_of(n, c, seed=4)


def is_direct(value: Tensor | None) -> bool:
    return value is not None and value.grad_fn is not None and value.grad_fn.name() == "FeaturesLossBackward"


def as_the_operators(evaluate: Callable[[], tuple[Tensor, ...]]) -> None:
    """The direct way serves, with the operators' loss and gradients."""
    mine = evaluate()
    assert is_direct(mine[0])
    with use_kernels("compiled"):
        theirs = evaluate()
    for one, other in zip(mine, theirs, strict=True):
        assert_close(one, other.detach().double())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tables", [(), ("weight",), ("offset",), ("weight", "offset")])
@pytest.mark.parametrize("name", MARGINS)
def test_they_are_the_papers_losses(name, tables, dtype):
    """With rows that are ignored, each option, and an incoming gradient that is not 1."""
    x, w, target = problem(dtype=dtype)
    target[3] = -100
    margin, phi = MARGINS[name]
    given = {key: normal(C, seed=7).abs().to(dtype) for key in tables}
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, w)]
    for gamma, reduction in ((0.0, "mean"), (1.5, "mean"), (0.0, "sum"), (2.0, "none")):
        loss = cosine_margin_cross_entropy(
            x, w, target, margin=margin, scale=12.0, focal_gamma=gamma, reduction=reduction, **given
        )
        assert is_direct(loss)
        cosine, kept = published.cosines(*wide), target.clamp(min=0)
        logits = 12 * published.replace(cosine, kept, phi(cosine, kept))
        exact = published.cross_entropy(
            logits, target, **{key: table.double() for key, table in given.items()}, gamma=gamma, reduction=reduction
        )
        assert_close(loss, exact.detach())
        factor = normal(N, seed=8)[: loss.numel()].reshape(loss.shape).to(dtype)
        mine = torch.autograd.grad(loss, (x, w), factor)
        for one, other in zip(mine, torch.autograd.grad(exact, wide, factor.double()), strict=True):
            assert_close(one, other)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_they_are_what_the_operators_give(size, reduction, dtype):
    """Classes that are not there, tables of another dtype, rows and classes of norm 0."""
    x, w, target = problem(*size, dtype=dtype)
    with torch.no_grad():
        x[-1], w[-1] = 0, 0
    classes = size[1]
    offset = normal(classes, seed=5).masked_fill((torch.arange(classes) % 3 == 1) & (classes > 1), -torch.inf)
    target = target // 3 * 3
    margin = DBM(counts_of(classes, seed=6), 0.4)

    def evaluate():
        loss = cosine_margin_cross_entropy(
            x, w, target, margin=margin, offset=offset, weight=offset.exp() + 0.1, scale=9, reduction=reduction
        )
        return loss, *torch.autograd.grad(loss.sum(), (x, w))

    as_the_operators(evaluate)


def test_two_classes_by_hand():
    """Cosines 1 and 0, margin 1/2: the target's logit is 2 (1 - 1/2), the other's 0."""
    x, w = torch.tensor([[3.0, 0.0]], requires_grad=True), torch.tensor([[0.5, 0.0], [0.0, 7.0]], requires_grad=True)
    loss = cosine_margin_cross_entropy(x, w, torch.tensor([0]), margin=CosFace(0.5), scale=2.0)
    assert is_direct(loss)
    assert loss.item() == pytest.approx(0.313261687518)  # log(1 + 1 / e)
    # 1 / (1 + e) of the scale 2 goes to the other class, whose cosine grows by 1/3 along the second axis of x
    (slope,) = torch.autograd.grad(loss, x)
    assert slope[0].tolist() == pytest.approx([0.0, 2 / 3 * 0.268941421370], abs=1e-7)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_row_without_a_direction_has_no_gradient(dtype):
    x, w, target = problem(dtype=dtype)
    with torch.no_grad():
        x[2], w[4] = 0, 0
        x[5] *= 1e-14
    loss = cosine_margin_cross_entropy(x, w, target, margin=CosFace(0.0), scale=8.0, reduction="none")
    assert_close(loss[2], torch.tensor(C, dtype=torch.float64).log())  # all cosines are 0
    assert_close(loss[5], torch.tensor(C, dtype=torch.float64).log())
    slopes = torch.autograd.grad(loss.sum(), (x, w))
    assert (slopes[0][[2, 5]] == 0).all()
    assert (slopes[1][4] == 0).all()
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e15])
def test_a_cosine_does_not_change_with_the_length(size):
    """Nor does the loss, and the gradient is orthogonal to each row and falls with its length."""
    x, w, target = problem()
    long = (size * x.detach()).requires_grad_()
    values = [cosine_margin_cross_entropy(one, w, target, margin=ArcFace(0.5)) for one in (x, long)]
    assert_close(values[1], values[0].detach().double())
    slopes = [torch.autograd.grad(value, one)[0] for value, one in zip(values, (x, long), strict=True)]
    assert_close(size * slopes[1], slopes[0].double())
    along = (slopes[0] * x).sum(1).abs() / (slopes[0].norm(dim=1) * x.norm(dim=1))
    assert along.max() < 1e-5


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scale_of_one(dtype, reduction):
    """Nothing but the norms is left of what tells cosines from plain rows."""
    x, w, target = problem(dtype=dtype)

    def exact():
        u, v = (leaf.double() / leaf.double().norm(dim=1, keepdim=True) for leaf in (x, w))
        return torch.nn.functional.cross_entropy(u @ v.T, target, reduction=reduction)

    loss = cosine_margin_cross_entropy(x, w, target, scale=1.0, reduction=reduction)
    assert is_direct(loss)
    found = [torch.autograd.grad(value.sum(), (x, w)) for value in (loss, exact())]
    assert_close(loss, exact(), dtype)
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs.double(), dtype)
    with torch.no_grad():
        assert_close(cosine_margin_cross_entropy(x, w, target, scale=1.0, reduction=reduction), loss.double(), dtype)


def test_who_takes_the_direct_way():
    x, w, target = problem()
    assert is_direct(cosine_margin_cross_entropy(x, w, target, scale=8, focal_gamma=1))
    with use_kernels("compiled"):
        assert not is_direct(cosine_margin_cross_entropy(x, w, target))
    with memory_budget(N * C * 8 - 1):
        assert not is_direct(cosine_margin_cross_entropy(x, w, target))
    assert not is_direct(cosine_margin_cross_entropy(x, w, target, margin=SphereFace(2)))
    assert not is_direct(cosine_margin_cross_entropy(x, w, MixedTarget(target, target, 0.5)))
    assert not is_direct(cosine_margin_cross_entropy(x.bfloat16(), w.bfloat16(), target))


def test_wrong_calls_are_named():
    x, w, target = problem()
    with pytest.raises(IndexError, match=f"target holds {C}"):
        cosine_margin_cross_entropy(x, w, torch.full_like(target, C))
    with pytest.raises(ValueError, match="offset is -inf for class"):
        cosine_margin_cross_entropy(x, w, target, offset=torch.full((C,), -torch.inf))
    with pytest.raises(ValueError, match="reduction must be"):
        cosine_margin_cross_entropy(x, w, target, reduction="batch")  # type: ignore[arg-type]


HEADS: dict[str, Any] = {
    "logits": lambda: losses.BalancedSoftmaxLoss(COUNTS),
    "batch counts": lambda: losses.ARBLoss(counts="batch"),
    "focal": lambda: losses.FocalLoss(1.5, normal(C, seed=9).abs()),
    "cosface": lambda: losses.CosFaceLoss(0.2, 16.0),
    "arcface": lambda: losses.ArcFaceLoss(0.3, 16.0, reduction="sum"),
    "ldam": lambda: losses.LDAMLoss(COUNTS, weight=normal(C, seed=9).abs()),
    "dbm": lambda: losses.DBMLoss(COUNTS, 0.4, base="bs"),
    "dbm, weights, mean of rows": lambda: losses.DBMLoss(COUNTS, 0.4, base="cb", average="batch"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_take_it_and_give_what_the_operators_give(name):
    """A mean of rows divides by their number and not by their weights, whoever computes it."""
    x, _, target = problem()
    head = CosineHead(D, C, HEADS[name](), scale=7.0)

    def evaluate():
        loss = head(x, target)
        return loss, *torch.autograd.grad(loss, (x, head.weight))

    as_the_operators(evaluate)


def test_heads_of_other_losses_go_on_by_the_operators():
    x, _, target = problem()
    for loss in (losses.SphereFaceLoss(2), losses.LADELoss(COUNTS)):
        value = CosineHead(D, C, loss)(x, target)
        assert value.isfinite()
        assert not is_direct(value)

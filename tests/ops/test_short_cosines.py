"""The losses of cosines past the dispatcher (csrc/cosine.cpp): who takes that way, and its values."""

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

from lt_kernels import functional, losses, memory_budget
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace, cosine_margin_cross_entropy
from lt_kernels.heads import CosineHead
from lt_kernels.ops import library, small, use_kernels

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


def is_short(value: Tensor | None) -> bool:
    return value is not None and value.grad_fn is not None and value.grad_fn.name() == "CosineLossBackward"


def as_the_operators(evaluate: Callable[[], tuple[Tensor, ...]]) -> None:
    """The short way serves, with the operators' loss and gradients."""
    mine = evaluate()
    assert is_short(mine[0])
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
        assert is_short(loss)
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
    assert is_short(loss)
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


class Subclass(torch.Tensor):
    """Any tensor of somebody else's."""


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scale_of_one(dtype, reduction):
    """Nothing but the norms is left of what tells cosines from plain rows."""
    x, w, target = problem(dtype=dtype)

    def exact():
        u, v = (leaf.double() / leaf.double().norm(dim=1, keepdim=True) for leaf in (x, w))
        return torch.nn.functional.cross_entropy(u @ v.T, target, reduction=reduction)

    loss = cosine_margin_cross_entropy(x, w, target, scale=1.0, reduction=reduction)
    assert is_short(loss)
    found = [torch.autograd.grad(value.sum(), (x, w)) for value in (loss, exact())]
    assert_close(loss, exact(), dtype)
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs.double(), dtype)
    with torch.no_grad():
        assert torch.equal(cosine_margin_cross_entropy(x, w, target, scale=1.0, reduction=reduction), loss)


def few(x, w, y, margin=None, scale=30.0, weight=None, offset=None, gamma=0.0, smoothing=0.0, ignore=-100, mean="mean"):
    return small.cosine_cross_entropy(x, w, y, margin, None, scale, weight, offset, gamma, smoothing, ignore, mean)


def cast(x, w, y) -> Tensor | None:
    with torch.autocast("cpu", torch.bfloat16):
        return few(x, w, y)


UNUSUAL = {
    "bfloat16": lambda x, w, y: few(x.bfloat16(), w.bfloat16(), y),
    "two dtypes": lambda x, w, y: few(x.double(), w, y),
    "one row": lambda x, w, y: few(x[0], w, y[0]),
    "no rows": lambda x, w, y: few(x[:0], w, y[:0]),
    "no classes": lambda x, w, y: few(x, w[:0], y),
    "features that lie apart": lambda x, w, y: few(x[:, :-1], w[:, 1:].contiguous(), y),
    "class weights that lie apart": lambda x, w, y: few(x[:, 1:].contiguous(), w[:, :-1], y),
    "features of another length": lambda x, w, y: few(x[:, 1:].contiguous(), w, y),
    "subclass": lambda x, w, y: few(x.detach().as_subclass(Subclass), w, y),
    "no tensor": lambda x, w, y: few(x.tolist(), w, y),
    "another device": lambda x, w, y: few(x.detach().to("meta"), w.detach().to("meta"), y),
    "autocast": cast,
    "probabilities": lambda x, w, y: few(x, w, torch.full((N, C), 1 / C)),
    "two targets": lambda x, w, y: few(x, w, MixedTarget(y, y, 0.5)),
    "int32 target": lambda x, w, y: few(x, w, y.int()),
    "target of another length": lambda x, w, y: few(x, w, y[:3]),
    "target too large": lambda x, w, y: few(x, w, torch.full_like(y, C)),
    "sphere": lambda x, w, y: few(x, w, y, SphereFace(2)),
    "margin a number": lambda x, w, y: few(x, w, y, 0.5),
    "margins of another length": lambda x, w, y: few(x, w, y, LDAM(counts_of(C + 1, seed=1))),
    "scale 0": lambda x, w, y: few(x, w, y, scale=0.0),
    "scale not a number": lambda x, w, y: few(x, w, y, scale=float("nan")),
    "scale a bool": lambda x, w, y: few(x, w, y, scale=True),
    "gamma negative": lambda x, w, y: few(x, w, y, gamma=-1.0),
    "smoothing": lambda x, w, y: few(x, w, y, smoothing=0.1),
    "smoothing a tensor": lambda x, w, y: few(x, w, y, smoothing=torch.zeros(C)),
    "ignore_index a bool": lambda x, w, y: few(x, w, y, ignore=False),
    "reduction unknown": lambda x, w, y: few(x, w, y, mean="average"),
    "weight of another length": lambda x, w, y: few(x, w, y, weight=torch.ones(C + 1)),
    "weight in integers": lambda x, w, y: few(x, w, y, weight=torch.ones(C, dtype=torch.int64)),
    "weight learned": lambda x, w, y: few(x, w, y, weight=torch.ones(C, requires_grad=True)),
    "offset learned": lambda x, w, y: few(x, w, y, offset=torch.ones(C, requires_grad=True)),
    "offset per row": lambda x, w, y: few(x, w, y, offset=torch.ones(N, C)),
    "offset on another device": lambda x, w, y: few(x, w, y, offset=torch.ones(C, device="meta")),
    "offset -inf at a target": lambda x, w, y: few(x, w, y, offset=torch.full((C,), -torch.inf)),
    "too few arguments": lambda x, w, y: library.few_cosine_cross_entropy(x, w, y),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_whatever_is_unusual_is_left_to_the_operators(name):
    assert UNUSUAL[name](*problem()) is None


def test_who_takes_the_short_way():
    x, w, target = problem()
    assert is_short(cosine_margin_cross_entropy(x, w, target, scale=8, focal_gamma=1))
    with use_kernels("compiled"):
        assert few(x, w, target) is None
    with memory_budget(N * C * 8 - 1):
        assert few(x, w, target) is None
    calls = []
    torch.func.grad(lambda one: calls.append(few(one, w, target)) or one.sum())(x.detach())
    assert calls == [None]
    assert not is_short(functional.linear_cross_entropy(x, w, target))


def test_wrong_calls_are_named():
    x, w, target = problem()
    with pytest.raises(IndexError, match=f"target holds {C}"):
        cosine_margin_cross_entropy(x, w, torch.full_like(target, C))
    with pytest.raises(ValueError, match="offset is -inf for class"):
        cosine_margin_cross_entropy(x, w, target, offset=torch.full((C,), -torch.inf))
    with pytest.raises(ValueError, match="reduction must be"):
        cosine_margin_cross_entropy(x, w, target, reduction="batch")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="15 arguments"):
        library.cosine_forward(1)
    with pytest.raises(TypeError, match="2 arguments"):
        library.cosine_backward(1)
    settings = (None, None, None, 8.0, 0, 0.0, 0.0, False, 0.0, -100, 1)
    with pytest.raises(TypeError, match="dense"):
        small.CosineLoss.apply(x.half(), w.half(), target, *settings)


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
    for loss in (losses.SphereFaceLoss(2), losses.LabelAwareSmoothingLoss(COUNTS), losses.LADELoss(COUNTS)):
        value = CosineHead(D, C, loss)(x, target)
        assert value.isfinite()
        assert not is_short(value)


def test_a_norm_that_overflows_is_left_to_others():
    """Its squares are no float32; the cosines do not know."""
    x, w, target = problem()
    loss = cosine_margin_cross_entropy((1e25 * x.detach()).requires_grad_(), w, target)
    assert not is_short(loss)
    assert_close(loss.detach(), cosine_margin_cross_entropy(x.detach().double(), w.detach().double(), target))

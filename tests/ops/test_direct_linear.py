"""Losses of features on the direct way: their value, and every gradient from the one that the forward made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import TOLERANCE, assert_close, error

from lt_kernels.functional import linear_cross_entropy
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
FLOATS = [torch.float32, torch.float64]
SIZES = [(1, 4, 1), (2, 8, 8), (7, 9, 9), (16, 16, 16), (17, 31, 15), (33, 5, 17), (6, 64, 65), (48, 12, 33)]
SIZES += [(64, 50, 48), (49, 100, 70), (97, 101, 26), (130, 13, 63), (128, 100, 16), (300, 10, 11), (9, 1024, 12)]
SIZES += [(31, 15, 300), (700, 8, 9)]  # sums of more products than are taken at once


def problem(n, c, d, dtype=torch.float32):
    """Features, class weights and a bias, rounded to `dtype`; targets of which some are ignored."""
    x, w, b = (normal(*size, seed=11 + k, dtype=dtype) for k, size in enumerate([(n, d), (c, d), (c,)]))
    target = classes_of(n, c, seed=14)
    target[3::5] = -100
    return [(2 * x / d**0.5).requires_grad_(), w.requires_grad_(), b.requires_grad_()], target


def tables(c, dtype=torch.float32):
    return {"weight": normal(c, seed=15, dtype=dtype).abs(), "offset": normal(c, seed=16, dtype=dtype)}


def loss_of(leaves, target, **options):
    bias = leaves[2] if len(leaves) > 2 else None
    return linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=bias, **options)


def by_torch(leaves, target, weight=None, offset=None, reduction="mean", kind=torch.float64):
    """The loss and its gradients by plain torch, with the numbers as they are."""
    wide = [leaf.detach().to(kind).requires_grad_() for leaf in leaves]
    u = F.linear(*wide) if offset is None else F.linear(*wide) + offset.to(kind)
    loss = F.cross_entropy(u, target, None if weight is None else weight.to(kind), reduction=reduction)
    return [loss.detach(), *torch.autograd.grad(loss, wide)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_every_gradient(size, dtype, reduction):
    """With bias and tables, or none; they err no more than torch's own, but for the tolerance."""
    leaves, target = problem(*size, dtype)
    for some, options in ((leaves, tables(size[1], dtype)), (leaves[:2], {}), (leaves, {})):
        mine = loss_of(some, target, reduction=reduction, **options)
        assert mine.grad_fn.name() == "FeaturesLossBackward"
        found = [mine, *torch.autograd.grad(mine, some)]
        exact, theirs = (by_torch(some, target, **options, reduction=reduction, kind=k) for k in (torch.float64, dtype))
        for ours, other, truth in zip(found, theirs, exact, strict=True):
            assert error(ours, truth) <= error(other, truth) + TOLERANCE[dtype]
        with torch.no_grad():
            assert torch.equal(mine, loss_of(some, target, reduction=reduction, **options))


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_what_is_wanted_is_made(wanted):
    leaves, target = problem(33, 21, 18)
    every = torch.autograd.grad(loss_of(leaves, target), leaves)
    some = [leaf.detach().requires_grad_(place in wanted) for place, leaf in enumerate(leaves)]
    loss = loss_of(some, target)
    loss.backward()
    for place, (leaf, gradient) in enumerate(zip(some, every, strict=True)):
        assert (leaf.grad is not None) == (place in wanted)
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


def test_ignored_rows_get_exactly_nothing():
    leaves, target = problem(33, 21, 18)
    ignored = target == -100
    loss_of(leaves, target, **tables(21)).backward()
    assert (leaves[0].grad[ignored] == 0).all()
    assert (leaves[0].grad[~ignored] != 0).any(1).all()
    alone, _ = problem(33, 21, 18)
    loss_of([alone[0][~ignored], *alone[1:]], target[~ignored], **tables(21)).backward()
    assert_close(leaves[1].grad, alone[1].grad)
    nobody = loss_of(leaves, torch.full_like(target, -100), reduction="sum")
    assert nobody == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(nobody, leaves))


@pytest.mark.parametrize("factor", [1.0, -0.75])
def test_a_kept_graph_gives_new_tensors(factor):
    """Those of somebody's who writes to them."""
    leaves, target = problem(33, 21, 18)
    exact = by_torch(leaves, target)[1:]
    loss = loss_of(leaves, target)
    incoming = torch.tensor(factor)
    for keep in (True, True, False):
        found = torch.autograd.grad(loss, leaves, incoming, retain_graph=keep)
        for one, other in zip(found, exact, strict=True):
            assert_close(one, factor * other)
        for one in found:
            one.zero_()
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


def test_gradients_add_up_and_hooks_see_them():
    leaves, target = problem(33, 21, 18)
    seen = []
    leaves[1].register_hook(lambda gradient: seen.append(gradient) or 2 * gradient)
    exact = by_torch(leaves, target)[1:]
    for _ in range(3):
        loss_of(leaves, target).backward()
    for leaf, gradient, factor in zip(leaves, exact, (3, 6, 3), strict=True):
        assert_close(leaf.grad, factor * gradient)
    assert len(seen) == 3
    loss = loss_of(leaves, target)
    rows = torch.autograd.grad(loss, leaves, torch.tensor([1.0, -2.0]), is_grads_batched=True)
    for both, gradient, factor in zip(rows, exact, (1, 2, 1), strict=True):
        assert_close(both, torch.stack([gradient, -2 * gradient]) * factor)


@pytest.mark.parametrize("bias", [False, True])
def test_second_derivatives(bias):
    leaves, target = problem(5, 8, 8, torch.float64)
    leaves = leaves if bias else leaves[:2]
    torch.autograd.gradgradcheck(lambda *some: 0.5 * loss_of(some, target, **tables(8, torch.float64)), leaves)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_stays_so(value, place):
    """The loss is finite where torch's is and nowhere else, a gradient at least where torch's is."""
    leaves, target = problem(33, 21, 18)
    target.clamp_(min=0)
    with torch.no_grad():
        leaves[place].view(-1)[5] = value
    mine = loss_of(leaves, target, reduction="sum")
    exact = by_torch(leaves, target, reduction="sum")
    assert mine.isfinite() == exact[0].isfinite()
    for one, other in zip(torch.autograd.grad(mine, leaves), exact[1:], strict=True):
        assert (one.isfinite() | ~other.isfinite()).all()


def test_what_is_wrong_is_named():
    leaves, target = problem(33, 21, 18)
    for wrong in (21, -1):
        with pytest.raises(IndexError, match=f"target holds {wrong}"):
            loss_of(leaves, torch.where(torch.arange(33) == 7, wrong, target))
    absent = torch.where(torch.arange(21) == target[0], -torch.inf, 0.0)
    with pytest.raises(ValueError, match="offset is -inf for class"):
        loss_of(leaves, target, offset=absent)
    with pytest.raises(ValueError, match="input must be"):
        loss_of([leaves[0][:, :5].contiguous(), *leaves[1:]], target)


def test_rows_that_lie_apart_and_no_features():
    leaves, target = problem(33, 21, 18)
    wide = torch.cat([leaves[0], leaves[0]], 1)[:, :18]
    assert_close(loss_of([wide, *leaves[1:]], target), by_torch(leaves, target)[0], torch.float32)
    none = [leaves[0][:, :0].contiguous(), leaves[1][:, :0].contiguous(), leaves[2]]
    assert_close(loss_of(none, target), F.cross_entropy(leaves[2].expand(33, 21), target))

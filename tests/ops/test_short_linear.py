"""Small linear losses (csrc/linear.cpp): products of the extension's own, and every gradient made in the forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import TOLERANCE, assert_close, error
from torch.profiler import ProfilerActivity, profile
from whitebox import build

from lt_kernels.functional import linear_cross_entropy
from lt_kernels.ops import library

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


def products_of(call):
    """The products that torch made."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    return [event.name for event in seen.events() if event.name in ("aten::mm", "aten::addmm", "aten::linear")]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_every_gradient(size, dtype, reduction):
    """With bias and tables, or none; they err no more than torch's own, but for the tolerance."""
    leaves, target = problem(*size, dtype)
    for some, options in ((leaves, tables(size[1], dtype)), (leaves[:2], {}), (leaves, {})):
        mine = loss_of(some, target, reduction=reduction, **options)
        assert mine.grad_fn.name() == "LinearLossBackward"
        found = [mine, *torch.autograd.grad(mine, some)]
        exact, theirs = (by_torch(some, target, **options, reduction=reduction, kind=k) for k in (torch.float64, dtype))
        for ours, other, truth in zip(found, theirs, exact, strict=True):
            assert error(ours, truth) <= error(other, truth) + TOLERANCE[dtype]
        with torch.no_grad():
            assert torch.equal(mine, loss_of(some, target, reduction=reduction, **options))


def test_torch_multiplies_nothing():
    """Neither forward nor backward, alone or with something behind; more, and losses by the row, are torch's."""
    leaves, target = problem(64, 50, 48)
    assert products_of(lambda: loss_of(leaves, target).backward()) == []
    assert products_of(lambda: (2 * loss_of(leaves, target)).backward()) == []
    assert products_of(lambda: loss_of([leaf.detach() for leaf in leaves], target)) == []
    assert len(products_of(lambda: loss_of(leaves, target, reduction="none").sum().backward())) >= 3
    many, target = problem(300, 300, 4)
    assert len(products_of(lambda: loss_of(many, target).backward())) >= 3


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_only_what_is_wanted_is_made(wanted):
    leaves, target = problem(33, 21, 18)
    every = torch.autograd.grad(loss_of(leaves, target), leaves)
    some = [leaf.detach().requires_grad_(place in wanted) for place, leaf in enumerate(leaves)]
    loss = loss_of(some, target)
    assert [made is not None for made in loss.grad_fn.gradient] == [place in wanted for place in range(3)]
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
    """Those of somebody's who writes to them; the last pass gives away what was made."""
    leaves, target = problem(33, 21, 18)
    exact = by_torch(leaves, target)[1:]
    loss = loss_of(leaves, target)
    made = [tensor.data_ptr() for tensor in loss.grad_fn.gradient]
    incoming = torch.tensor(factor)
    for keep in (True, True, False):
        found = torch.autograd.grad(loss, leaves, incoming, retain_graph=keep)
        for one, other in zip(found, exact, strict=True):
            assert_close(one, factor * other)
        addresses = [tensor.data_ptr() for tensor in found]
        assert addresses == made if factor == 1 and not keep else not set(addresses) & set(made)
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


def test_the_number_of_threads_does_not_count():
    sizes, before = [(128, 100, 64), (97, 101, 26), (700, 8, 9), (20, 1000, 30)], torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for size in sizes:
                leaves, target = problem(*size)
                loss = loss_of(leaves, target, **tables(size[1]))
                results.append((loss, *torch.autograd.grad(loss, leaves)))
    finally:
        torch.set_num_threads(before)
    for k, found in enumerate(results):
        for one, other in zip(found, results[k % len(sizes)], strict=True):
            assert torch.equal(one, other)


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
    with pytest.raises((RuntimeError, ValueError)):
        loss_of([leaves[0][:, :5].contiguous(), *leaves[1:]], target)


def test_rows_that_lie_apart_and_no_features_are_torchs():
    leaves, target = problem(33, 21, 18)
    wide = torch.cat([leaves[0], leaves[0]], 1)[:, :18]
    assert_close(loss_of([wide, *leaves[1:]], target), by_torch(leaves, target)[0], torch.float32)
    none = [leaves[0][:, :0].contiguous(), leaves[1][:, :0].contiguous(), leaves[2]]
    assert_close(loss_of(none, target), F.cross_entropy(leaves[2].expand(33, 21), target))


@pytest.fixture(scope="session")
def box(pytestconfig, tmp_path_factory):
    """The internals, compiled once for all workers."""
    return build.for_tests(pytestconfig, tmp_path_factory)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products_on_every_instruction_set(box, dtype):
    """Whole numbers, of which every sum is exact: of any strides, around the sizes of tiles and of long sums."""
    random = np.random.default_rng(17)

    def whole(*size):
        return random.integers(-8, 9, size).astype(dtype)

    sizes = [
        (m, k, n) for m in (1, 3, 4, 6, 13) for k in (1, 7) for n in (1, 2, 3, 4, 7, 8, 9, 16, 20, 31, 64, 65, 101)
    ]
    for isa in box.instruction_sets():
        for m, k, n in [*sizes, (5, 255, 33), (5, 256, 18), (7, 257, 70), (2, 1000, 5)]:
            start, right = whole(n), whole(k, n + 3)[:, :n]
            for left in (whole(m, k), whole(k, m).T, whole(m, 2 * k)[:, ::2]):
                out = np.full((m + 1, n + 2), dtype(99))
                box.multiply(isa, left, right, start, out[:m, :n])
                assert (out[:m, :n] == left @ right + start).all(), (isa, m, k, n)
                assert (out[m:] == 99).all()
                assert (out[:, n:] == 99).all()
                box.multiply(isa, left, right, None, out[:m, :n])
                assert (out[:m, :n] == left @ right).all(), (isa, m, k, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_turning_on_every_instruction_set(box, dtype):
    for isa in box.instruction_sets():
        for c, d, begin in ((1, 1, 0), (5, 3, 1), (8, 8, 4), (13, 9, 4), (21, 30, 0)):
            rows, out = np.arange(c * d, dtype=dtype).reshape(c, d), np.full((d, c + 2), dtype(-1))
            box.turn(isa, rows, out, begin, c)
            assert (out[:, begin:c] == rows.T[:, begin:]).all()
            assert (out[:, :begin] == -1).all()
            assert (out[:, c:] == -1).all()

"""The graphs of losses on the direct way: gradients of every kind, kept graphs, second derivatives."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lt_kernels.functional import (
    cosine_margin_cross_entropy,
    lade_regularizer,
    linear_cross_entropy,
    offset_cross_entropy,
)
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C, D = 6, 5, 4
REDUCTIONS = ["none", "mean", "sum"]


def inputs(dtype=torch.float64):
    """Features, class weights, a bias, and targets of which one is ignored."""
    x, w, b = (normal(*size, seed=len(size) + size[0], dtype=dtype) for size in ((N, D), (C, D), (C,)))
    target = classes_of(N, C, seed=2)
    target[1] = -100
    return [x.requires_grad_(), w.requires_grad_(), b.requires_grad_()], target


def tables(dtype=torch.float64):
    return {"weight": normal(C, seed=3, dtype=dtype).abs(), "offset": normal(C, seed=4, dtype=dtype)}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_second_derivatives_are_those_of_the_dense_formula(smoothing, reduction):
    (logits, *_), target = [normal(N, C, seed=1).requires_grad_()], inputs()[1]
    settings = {"label_smoothing": smoothing, "reduction": reduction, **tables()}
    torch.autograd.gradgradcheck(lambda z: offset_cross_entropy(z, target, **settings), logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (0, 2)])
def test_second_derivatives_of_a_product(reduction, frozen):
    leaves, target = inputs()
    for place in frozen:
        leaves[place].requires_grad_(False)

    def loss(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, target, linear_bias=b, reduction=reduction, **tables())

    assert loss(*leaves).sum().grad_fn is not None
    torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("factor", [1.0, -0.3])
def test_a_product_gives_every_gradient_wherever_it_stands_in_a_graph(dtype, reduction, factor):
    """Alone or with something behind it, once and again in a kept graph; the made gradient is not used up by that."""
    leaves, target = inputs(dtype)
    x, w, b = (leaf.detach().double().requires_grad_() for leaf in leaves)
    wide = {name: table.double() for name, table in tables(dtype).items()}
    u = F.linear(x, w, b) + wide["offset"]
    exact = factor * F.cross_entropy(u, target, wide["weight"], reduction=reduction)
    exact_gradients = torch.autograd.grad(exact.sum(), (x, w, b))
    mine = factor * linear_cross_entropy(
        leaves[0], leaves[1], target, linear_bias=leaves[2], reduction=reduction, **tables(dtype)
    )
    assert_close(mine, exact.detach())
    for keep in (True, True, False):
        found = torch.autograd.grad(mine.sum(), leaves, retain_graph=keep)
        for one, other in zip(found, exact_gradients, strict=True):
            assert_close(one, other)
            one.zero_()  # somebody's own tensor
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(mine.sum(), leaves)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_frozen_inputs_get_no_gradient(wanted):
    leaves, target = inputs(torch.float32)
    loss = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2])
    every = torch.autograd.grad(loss, leaves)
    some = [leaf.detach().requires_grad_(place in wanted) for place, leaf in enumerate(leaves)]
    linear_cross_entropy(some[0], some[1], target, linear_bias=some[2]).backward()
    for place, (leaf, gradient) in enumerate(zip(some, every, strict=True)):
        assert (leaf.grad is not None) == (place in wanted)
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_a_learned_offset_gets_its_gradient(reduction, bias):
    (x, w, b), target = inputs(torch.float32)
    offset = tables(torch.float32)["offset"].requires_grad_()
    target.clamp_(min=0)
    leaves = [x, w, offset, *([b] if bias else [])]
    logits = F.linear(x, w, b if bias else None).detach().requires_grad_()
    for loss, wanted in (
        (
            linear_cross_entropy(x, w, target, linear_bias=b if bias else None, offset=offset, reduction=reduction),
            leaves,
        ),
        (offset_cross_entropy(logits, target, offset=offset, reduction=reduction), [logits, offset]),
    ):
        wide = [leaf.detach().double().requires_grad_() for leaf in wanted]
        u = wide[0] + wide[1] if len(wide) == 2 else F.linear(wide[0], wide[1], wide[3] if bias else None) + wide[2]
        exact = F.cross_entropy(u, target, reduction=reduction)
        assert loss.grad_fn.name() == "RowsLossBackward"
        assert_close(loss, exact.detach())
        found = torch.autograd.grad(loss.sum(), wanted)
        for one, other in zip(found, torch.autograd.grad(exact.sum(), wide), strict=True):
            assert_close(one, other)


def test_a_learned_offset_of_an_absent_target_is_named():
    (x, w, b), target = inputs(torch.float32)
    offset = torch.where(torch.arange(C) == target[0], -torch.inf, 0.0).requires_grad_()
    for call in (
        lambda: linear_cross_entropy(x, w, target, linear_bias=b, offset=offset),
        lambda: linear_cross_entropy(x, w, target, offset=offset),
        lambda: offset_cross_entropy(x @ w.T, target, offset=offset),
    ):
        with pytest.raises(ValueError, match="offset is -inf for class"):
            call()


def test_changed_weights_are_noticed():
    leaves, target = inputs(torch.float32)
    loss = linear_cross_entropy(leaves[0], leaves[1], target, linear_bias=leaves[2])
    with torch.no_grad():
        leaves[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_logits_of_a_product_do_not_stay():
    """Between the passes there is one array of the size of the logits: their gradient."""
    x, w = torch.randn(512, 8), torch.randn(700, 8, requires_grad=True)
    target, size = torch.zeros(512, dtype=torch.int64), 512 * 700 * 4
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = linear_cross_entropy(x, w, target)
    changes = [event.self_cpu_memory_usage for event in seen.events()]
    assert size <= sum(changes) < 1.5 * size, (size, sum(changes))
    loss.backward()


def test_where_no_gradient_is_wanted_none_is_made():
    leaves, target = inputs(torch.float32)
    graphs = linear_cross_entropy(leaves[0], leaves[1], target), offset_cross_entropy(leaves[0] @ leaves[1].T, target)
    with torch.no_grad():
        values = (
            linear_cross_entropy(leaves[0], leaves[1], target),
            offset_cross_entropy(leaves[0] @ leaves[1].T, target),
        )
    assert [value.grad_fn for value in values] == [None, None]
    assert all(torch.equal(one, other) for one, other in zip(graphs, values, strict=True))
    x, w, size = torch.randn(512, 8), torch.randn(700, 8, requires_grad=True), 512 * 700 * 4
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        linear_cross_entropy(x, w, torch.zeros(512, dtype=torch.int64))
    assert sum(event.self_cpu_memory_usage >= size for event in seen.events()) == 1  # the logits


def losses():
    (x, w, b), target = inputs()
    return {
        "linear": (lambda x, w, b: linear_cross_entropy(x, w, target, linear_bias=b), (x, w, b)),
        "rows": (lambda z: offset_cross_entropy(z, target), (normal(N, C, seed=5).requires_grad_(),)),
        "cosines": (lambda x, w: cosine_margin_cross_entropy(x, w, target, scale=4.0), (x, w)),
        "lade": (
            lambda z: lade_regularizer(z, target.clamp(min=0), torch.ones(C)),
            (normal(N, C, seed=6).requires_grad_(),),
        ),
    }


def test_a_first_call_in_inference_mode_leaves_nothing_behind():
    """In a fresh process: what later losses are made like is made by the first one."""
    program = """
import torch
from lt_kernels.functional import *
x, w, y = torch.ones(6, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True), torch.zeros(6, dtype=torch.int64)
losses = [lambda: offset_cross_entropy(x, y), lambda: linear_cross_entropy(x, w, y),
          lambda: cosine_margin_cross_entropy(x, w, y), lambda: lade_regularizer(x, y, [3, 2, 1, 1])]
with torch.inference_mode():
    assert all(loss().is_inference() for loss in losses)
for loss in losses:
    value = loss()
    assert not value.is_inference()
    (2 * value).backward()
assert not x.grad.is_inference()
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", losses())
def test_checkpoint(name):
    """It stops the second forward, once it has what it needs, by an exception of its own."""
    loss, leaves = losses()[name]
    plain = torch.autograd.grad(loss(*leaves), leaves)
    again = torch.autograd.grad(checkpoint(loss, *leaves, use_reentrant=False), leaves)
    for one, other in zip(again, plain, strict=True):
        assert torch.equal(one, other)


class NotOurs(Exception):
    pass


@pytest.mark.parametrize("name", ["linear", "rows", "cosines"])
def test_what_a_hook_raises_goes_on(name):
    def pack(_):
        raise NotOurs

    loss, leaves = losses()[name]
    with saved_tensors_hooks(pack, lambda x: x), pytest.raises(NotOurs):
        loss(*leaves)


@pytest.mark.parametrize("name", losses())
def test_dispatch_modes_see_every_step(name):
    """A traced loss is a function of what it is given, not of what it was traced with."""
    loss, leaves = losses()[name]

    def both(*given):
        value = loss(*given)
        return value, *torch.autograd.grad(value, given)

    traced, others = make_fx(both)(*leaves), [(2 * leaf.detach() - 1).requires_grad_() for leaf in leaves]
    with torch.no_grad():
        found = traced(*others)
    for mine, theirs in zip(found, both(*others), strict=True):
        assert_close(mine, theirs.detach())


@pytest.mark.parametrize("name", losses())
def test_under_a_counter(name):
    """A mode that only looks changes nothing but the way."""
    loss, leaves = losses()[name]
    plain = torch.autograd.grad(loss(*leaves), leaves)
    with FlopCounterMode(display=False):
        seen = torch.autograd.grad(loss(*leaves), leaves)
    for one, other in zip(seen, plain, strict=True):
        assert_close(one, other)

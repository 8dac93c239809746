"""The graphs of losses on the direct way: gradients of every kind, kept graphs, second derivatives."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext

import published
import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, counts_of, normal
from tolerances import assert_close
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lt_kernels.functional import (
    Accuracy,
    ArcFace,
    cosine_margin_cross_entropy,
    lade_regularizer,
    linear_cross_entropy,
    offset_cross_entropy,
)
from lt_kernels.ops.backends import library

pytestmark = pytest.mark.skipif(not library.built(), reason="needs the C++ extension")
N, C, D = 6, 5, 4
COUNTS, TARGET = counts_of(C, seed=7), classes_of(N, C, seed=2)
IGNORED = TARGET.index_fill(0, torch.tensor(1), -100)
# The sizes of what each loss takes; the names of its autograd function and of its gradients' last step.
SIZES = {"rows": [(N, C)], "linear": [(N, D), (C, D), (C,)], "cosines": [(N, D), (C, D)], "lade": [(N, C)]}
NODES = {"rows": "RowsLoss", "linear": "FeaturesLoss", "cosines": "FeaturesLoss", "lade": "LadeLoss"}
TABLES = {"weight": normal(C, seed=3, dtype=torch.float32).abs(), "offset": normal(C, seed=4, dtype=torch.float32)}
WIDE = {key: table.double() for key, table in TABLES.items()}
REDUCED = [*((name, how) for name in ("rows", "linear", "cosines") for how in ("none", "mean", "sum")), ("lade", "")]


def leaves_of(name, dtype=torch.float64):
    return [normal(*size, seed=len(size) + size[0], dtype=dtype).requires_grad_() for size in SIZES[name]]


def loss_of(name, leaves, reduction="mean", smoothing=0.0):
    """A loss with tables, one row of which is ignored."""
    settings = {
        "reduction": reduction,
        "label_smoothing": smoothing,
        **(TABLES if leaves[0].dtype == torch.float32 else WIDE),
    }
    if name == "lade":
        return lade_regularizer(*leaves, TARGET, COUNTS)
    if name == "rows":
        return offset_cross_entropy(*leaves, IGNORED, **settings)
    if name == "linear":
        return linear_cross_entropy(*leaves[:2], IGNORED, linear_bias=leaves[2], **settings)
    return cosine_margin_cross_entropy(*leaves, IGNORED, margin=ArcFace(0.4), scale=10.0, **settings)


def dense(name, leaves, reduction="mean"):
    """The loss by its formula in float64, and the leaves that it is of."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    if name == "lade":
        return published.lade_regularizer(*wide, TARGET, COUNTS), wide
    logits = F.linear(*wide) if name == "linear" else wide[0]
    if name == "cosines":
        cosine = published.cosines(*wide)
        own = published.arcface(published.own_of(cosine, TARGET), 0.4)
        logits = 10 * published.replace(cosine, TARGET, own)
    return published.cross_entropy(logits, IGNORED, reduction=reduction, **WIDE), wide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1.0, -0.3])
@pytest.mark.parametrize(("name", "reduction"), REDUCED)
def test_every_gradient_wherever_it_stands_in_a_graph(name, reduction, factor, dtype):
    """Alone or with something behind it, once and again in a kept graph; nothing of the caller's is written to."""
    leaves = leaves_of(name, dtype)
    loss, (exact, wide) = loss_of(name, leaves, reduction), dense(name, leaves, reduction)
    before, slopes = [leaf.detach().clone() for leaf in leaves], torch.autograd.grad(factor * exact.sum(), wide)
    assert loss.grad_fn.name() == f"{NODES[name]}Backward"
    assert_close(loss, exact.detach())
    loss = factor * loss.sum() if reduction == "none" or factor != 1 else loss
    for options in ({"retain_graph": True}, {"create_graph": True}, {"retain_graph": True}, {}):
        found = torch.autograd.grad(loss if loss.ndim == 0 else loss.sum(), leaves, **options)
        for one, other in zip(found, slopes, strict=True):
            assert_close(one, other)
            one.detach().zero_()  # somebody's own tensor
    assert all(map(torch.equal, before, leaves))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", SIZES)
def test_gradients_add_up_hooks_see_them_and_many_come_at_once(name):
    leaves, seen = leaves_of(name), []
    exact = torch.autograd.grad(*dense(name, leaves))
    leaves[0].register_hook(lambda gradient: seen.append(gradient) or 2 * gradient)
    for _ in range(3):
        loss_of(name, leaves).backward()
    assert len(seen) == 3
    for place, (leaf, gradient) in enumerate(zip(leaves, exact, strict=True)):
        assert_close(leaf.grad, (3 if place else 6) * gradient)
    leaves = leaves_of(name)
    many, loss = torch.tensor([1.0, -0.5], dtype=torch.float64), loss_of(name, leaves)
    found = torch.autograd.grad(loss_of(name, leaves), leaves, many, is_grads_batched=True)
    again = torch.func.vmap(lambda grad: torch.autograd.grad(loss, leaves, grad, retain_graph=True))(many)
    for one, other, gradient in zip(found, again, exact, strict=True):
        for each in (one, other):
            assert_close(each, torch.stack([gradient, -0.5 * gradient]))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize(("name", "frozen"), [("rows", ()), *(("linear", some) for some in ((), (0,), (1,), (0, 2)))])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_second_derivatives_are_those_of_the_dense_formula(name, frozen, reduction, smoothing):
    leaves = [leaf.requires_grad_(place not in frozen) for place, leaf in enumerate(leaves_of(name))]
    torch.autograd.gradgradcheck(lambda *some: loss_of(name, some, reduction, smoothing), leaves)


def test_what_is_wrong_is_named_where_a_gradient_is_made():
    (x, w, b), (z,), wrong = leaves_of("linear"), leaves_of("rows"), TARGET.index_fill(0, torch.tensor(3), C)
    for call in (
        lambda: offset_cross_entropy(z, wrong),
        lambda: linear_cross_entropy(x, w, wrong),
        lambda: cosine_margin_cross_entropy(x, w, wrong),
        lambda: lade_regularizer(z, wrong, COUNTS),
    ):
        with pytest.raises(IndexError, match=f"target holds {C}"):
            call()
    absent = torch.where(torch.arange(C) == TARGET[0], -torch.inf, 0.0)
    for offset in (absent, absent.clone().requires_grad_()):
        for call in (
            lambda offset: linear_cross_entropy(x, w, TARGET, linear_bias=b, offset=offset),
            lambda offset: linear_cross_entropy(x, w, TARGET, offset=offset),
            lambda offset: cosine_margin_cross_entropy(x, w, TARGET, offset=offset),
            lambda offset: offset_cross_entropy(z, TARGET, offset=offset),
        ):
            with pytest.raises(ValueError, match="offset is -inf for class"):
                call(offset)


@pytest.mark.parametrize(("name", "place"), [(name, k) for name in SIZES for k in range(len(SIZES[name]))][1:])
def test_changed_inputs_are_noticed(name, place):
    """Logits of a plain loss may change: nothing of them is needed any more."""
    leaves = leaves_of(name)
    loss = loss_of(name, leaves)
    with torch.no_grad():
        leaves[place].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("function", [linear_cross_entropy, cosine_margin_cross_entropy])
def test_neither_logits_nor_unit_rows_stay(function):
    """Between the passes there is one array of the size of the logits: their gradient. Without a graph, none."""
    x, w, size = torch.randn(64, 512), torch.randn(500, 512, requires_grad=True), 64 * 500 * 4
    with torch.profiler.profile(profile_memory=True) as seen:
        loss = function(x, w, torch.zeros(64, dtype=torch.int64))
    changes = [event.self_cpu_memory_usage for event in seen.events()]
    assert size <= sum(changes) < 1.5 * size, (size, sum(changes))
    loss.backward()
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as seen:
        function(x, w, torch.zeros(64, dtype=torch.int64))
    assert sum(event.self_cpu_memory_usage >= size for event in seen.events()) == 1  # the logits


@pytest.mark.parametrize(("name", "reduction"), REDUCED)
def test_where_no_gradient_is_wanted_the_value_is_the_same(name, reduction):
    leaves = leaves_of(name, torch.float32)
    with torch.no_grad():
        value = loss_of(name, leaves, reduction)
    frozen = loss_of(name, [leaf.detach() for leaf in leaves], reduction)
    assert [value.grad_fn, frozen.grad_fn] == [None, None]
    assert torch.equal(value, loss_of(name, leaves, reduction))
    assert torch.equal(value, frozen)


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


@pytest.mark.parametrize("around", ["a checkpoint", "a counter", "autocast"])
@pytest.mark.parametrize("name", SIZES)
def test_what_stands_around_changes_nothing(name, around):
    """A checkpoint stops its second forward by an exception; a mode looks on; autocast is around the backward alone."""
    leaves = leaves_of(name, torch.float32)
    plain = torch.autograd.grad(loss_of(name, leaves), leaves)
    with FlopCounterMode(display=False) if around == "a counter" else nullcontext():
        if around == "a checkpoint":
            loss = checkpoint(lambda *some: loss_of(name, some), *leaves, use_reentrant=False)
        else:
            loss = loss_of(name, leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=around == "autocast"):
            found = torch.autograd.grad(loss, leaves)
    for one, other in zip(found, plain, strict=True):
        assert one.dtype == torch.float32
        assert_close(one, other.double())
        assert torch.equal(one, other) or around == "a counter"


class NotOurs(Exception):
    pass


@pytest.mark.parametrize("name", ["linear", "rows", "cosines"])
def test_what_a_hook_raises_goes_on(name):
    def pack(_):
        raise NotOurs

    with saved_tensors_hooks(pack, lambda x: x), pytest.raises(NotOurs):
        loss_of(name, leaves_of(name))


@pytest.mark.parametrize("name", ["linear", "cosines"])
def test_what_hooks_bring_back_may_lie_otherwise(name):
    """Saved tensors may come back with other strides; with another shape they are an error."""
    leaves = leaves_of(name)
    with saved_tensors_hooks(lambda one: one.t().contiguous(), lambda one: one.t()):
        loss = loss_of(name, leaves)
    for one, other in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(*dense(name, leaves)), strict=True):
        assert_close(one, other)
    for unpack in (lambda one: one[..., :-1].contiguous(), lambda one: one if len(one) == C else one[:2]):
        with saved_tensors_hooks(lambda one: one, unpack):
            loss = loss_of(name, leaves)
        with pytest.raises(RuntimeError, match=r"invalid gradient|shape|size"):
            torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", SIZES)
def test_dispatch_modes_see_every_step(name):
    """A traced loss is a function of what it is given, not of what it was traced with."""
    leaves = leaves_of(name)

    def both(*given):
        value = loss_of(name, given)
        return value, *torch.autograd.grad(value, given)

    traced, others = make_fx(both)(*leaves), [(2 * leaf.detach() - 1).requires_grad_() for leaf in leaves]
    with torch.no_grad():
        found = traced(*others)
    for mine, theirs in zip(found, both(*others), strict=True):
        assert_close(mine, theirs.detach())


def test_capped_logits_have_second_derivatives() -> None:
    """Those of the formula in plain torch."""
    logits = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    target, found = torch.arange(6) % 5, []
    for loss in (
        lambda z: offset_cross_entropy(z, target, softcap=2.0),
        lambda z: F.cross_entropy(2.0 * torch.tanh(z / 2.0), target),
    ):
        (slope,) = torch.autograd.grad(loss(logits), logits, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), logits)[0])
    torch.testing.assert_close(*found)


PER_CLASS, ROWS = torch.rand(C), torch.rand(N)
ONCE = [{"focal_gamma": 1.5}, {"z_loss": 0.1}, {"sample_weight": ROWS}, {"label_smoothing": PER_CLASS}]
ONCE += [{"offset": torch.randn(C, C)}, {"offset": PER_CLASS.clone().requires_grad_()}, {"accuracy": Accuracy()}]
TWICE = [{"weight": PER_CLASS}, {"offset": PER_CLASS}, {"offset": torch.randn(N, C)}, {"shift": 1}]


def one_id(value: object) -> str:
    """The option's name; a tensor's numbers differ between the processes that tests run in."""
    return next(iter(value)) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("function", [offset_cross_entropy, linear_cross_entropy])
@pytest.mark.parametrize(("options", "there"), [*((o, False) for o in ONCE), *((o, True) for o in TWICE)], ids=one_id)
def test_which_losses_have_second_derivatives(function, options, there) -> None:
    """As docs/kernels/which.md lists them."""
    leaves = [
        torch.randn(*size, requires_grad=True)
        for size in SIZES["rows" if function is offset_cross_entropy else "cosines"]
    ]
    (slope,) = torch.autograd.grad(function(*leaves, TARGET, **options), leaves[:1], create_graph=True)
    with nullcontext() if there else pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(slope.square().sum(), leaves[0])

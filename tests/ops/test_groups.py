"""Losses of more logits than have room, by groups of rows: the same loss and gradients as of logits that are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import classes_of, counts_of, gradients, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import heads, losses, memory_budget
from lt_kernels.functional import (
    DBM,
    LDAM,
    ArcFace,
    MixedTarget,
    SphereFace,
    cosine_margin_cross_entropy,
    linear_cross_entropy,
)
from lt_kernels.ops import budget, groups, linear_policy, use_kernels

ROWS, CLASSES, FEATURES = 11, 23, 6
SLAB = 8 * 4 * 5  # four rows of five classes, float64
BUDGET = 8 * 4 * CLASSES + SLAB  # four rows of logits and a slab of their gradient: three groups
MEBI = 2**20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Groups at sizes of a few, blocks of five classes; the rows of each product of logits that such a loss made."""
    monkeypatch.setattr(budget, "GROUP_ROWS", 2)
    monkeypatch.setattr(budget, "GROUP_FEATURES", 2)
    monkeypatch.setitem(budget.SLAB, "cpu", SLAB)
    made: list[int] = []
    inner = groups._Walk.product

    def spied(self: Any, part: Any, rows: slice, classes: slice) -> Tensor:
        made.append(part.input[rows].shape[0])
        return inner(self, part, rows, classes)

    monkeypatch.setattr(groups._Walk, "product", spied)
    return made


@contextmanager
def grouped(made: list[int], served: bool = True) -> Iterator[None]:
    """Little memory, and whether it led to groups."""
    made.clear()
    with memory_budget(BUDGET):
        yield
    assert bool(made) == served, made


def leaves_for(rows: int = ROWS, **more: Tensor) -> dict[str, Tensor]:
    return {"input": normal(rows, FEATURES, seed=951), "linear_weight": normal(CLASSES, FEATURES, seed=952)} | more


def same(made: list[int], function: Callable[..., Tensor], leaves: dict[str, Tensor], served: bool = True) -> None:
    """The loss and its gradients by groups against those of whole logits."""
    whole = gradients(function, leaves)
    with grouped(made, served):
        parts = gradients(function, leaves)
    for key, value in whole.items():
        assert_close(parts[key], value, name=key)


TARGET = classes_of(ROWS, CLASSES, 953)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "focal": {"focal_gamma": 1.5},
    "weight": {"weight": counts_of(CLASSES, 954) / 100},
    "weight, sum": {"weight": counts_of(CLASSES, 954) / 100, "reduction": "sum"},
    "weights of rows, z-loss": {"sample_weight": normal(ROWS, seed=956).abs(), "z_loss": 0.2},
    "softcap": {"softcap": 1.5, "label_smoothing": 0.1},
    "smoothing": {"label_smoothing": 0.2},
    "smoothing by class": {"label_smoothing": normal(CLASSES, seed=955).sigmoid()},
    "ignored": {"ignore_index": int(TARGET[0])},
    "offset": {"offset": normal(CLASSES, seed=956, spread=2.0)},
    "offset of rows": {"offset": normal(ROWS, 1, CLASSES, seed=957), "label_smoothing": 0.1},
    "offset of targets": {"offset": normal(1, CLASSES, CLASSES, seed=958), "label_smoothing": 0.1},
    "no class": {"offset": torch.full((CLASSES,), -torch.inf, dtype=torch.float64).scatter(0, TARGET, 0.5)},
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_linear(small: list[int], name: str, bias: bool) -> None:
    more = {"linear_bias": normal(CLASSES, seed=959)} if bias else {}
    same(small, lambda **leaves: linear_cross_entropy(target=TARGET, **OPTIONS[name], **leaves), leaves_for(**more))
    assert small == [4] * 5 + [4] * 5 + [3] * 5  # each logit is made once


MARGINS = {
    "none": None,
    "arcface": ArcFace(0.4),
    "ldam": LDAM(counts_of(CLASSES, 960)),
    "dbm": DBM(counts_of(CLASSES, 961), 0.3, guard=True),
}


@pytest.mark.parametrize("name", MARGINS)
def test_cosine_margin(small: list[int], name: str) -> None:
    leaves = leaves_for()
    leaves["input"][3] = 0  # no direction
    options = {"margin": MARGINS[name], "scale": 4.0, "target": TARGET}
    same(small, lambda **leaves: cosine_margin_cross_entropy(**options, **leaves), leaves)


def test_named_losses_and_heads(small: list[int]) -> None:
    features, counts = normal(ROWS, FEATURES, seed=962).requires_grad_(), counts_of(CLASSES, 963)
    for loss in (losses.BalancedSoftmaxLoss(counts), losses.LogitAdjustmentLoss(counts), losses.FocalLoss(2.0)):
        head = heads.LinearHead(FEATURES, CLASSES, loss.double()).double()
        wanted = [features, head.weight, head.bias]
        whole = torch.autograd.grad(head(features, TARGET), wanted)
        with grouped(small):
            parts = torch.autograd.grad(head(features, TARGET), wanted)
        for mine, exact in zip(parts, whole, strict=True):
            assert_close(mine, exact)


@pytest.mark.parametrize("frozen", [{"input"}, {"linear_weight"}, {"input", "linear_bias"}, {"linear_bias"}])
def test_frozen_inputs_get_nothing(small: list[int], frozen: set[str]) -> None:
    leaves = leaves_for(linear_bias=normal(CLASSES, seed=964))
    own = {key: leaf.requires_grad_(key not in frozen) for key, leaf in leaves.items()}
    wanted = [leaf for leaf in own.values() if leaf.requires_grad]
    whole = torch.autograd.grad(linear_cross_entropy(target=TARGET, **own), wanted)
    with grouped(small):
        linear_cross_entropy(target=TARGET, **own).backward()
    assert {key for key, leaf in own.items() if leaf.grad is None} == frozen
    for leaf, exact in zip(wanted, whole, strict=True):
        assert_close(leaf.grad, exact)


def held() -> list[Tensor]:
    return [leaf.requires_grad_() for leaf in leaves_for().values()]


def test_incoming_gradients(small: list[int]) -> None:
    """Any number; again while the graph stays; and many at once."""
    own = held()
    whole = torch.autograd.grad(linear_cross_entropy(*own, TARGET), own)
    with grouped(small):
        loss = linear_cross_entropy(*own, TARGET)
        last = linear_cross_entropy(*own, TARGET)
    incoming = torch.tensor([1.0, -2.5, 0.0], dtype=torch.float64)
    rows = torch.autograd.grad(loss, own, incoming, retain_graph=True, is_grads_batched=True)
    for many, once in zip(rows, torch.autograd.grad(last, own, incoming, is_grads_batched=True), strict=True):
        assert torch.equal(many, once)
    first = torch.autograd.grad(loss, own, retain_graph=True)
    for value in first:
        value.zero_()  # what was handed out is the receiver's
    second = torch.autograd.grad(loss / 3, own)
    for many, one, exact in zip(rows, second, whole, strict=True):
        assert_close(many, incoming[:, None, None] * exact)
        assert_close(one, exact / 3)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, own)


def test_accumulates_into_what_is_there(small: list[int]) -> None:
    own = held()
    whole = torch.autograd.grad(linear_cross_entropy(*own, TARGET), own)
    for _ in range(2):
        with grouped(small):
            linear_cross_entropy(*own, TARGET).backward()
    for leaf, exact in zip(own, whole, strict=True):
        assert_close(leaf.grad, 2 * exact)


def test_second_derivative_is_an_error(small: list[int]) -> None:
    own = held()
    with grouped(small):
        loss = linear_cross_entropy(*own, TARGET)
    (first,) = torch.autograd.grad(loss, own[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(first.sum(), own)


def test_nothing_counts(small: list[int]) -> None:
    """As torch: a mean of no rows is NaN, and no row has a gradient."""
    own, ignored = held(), torch.full_like(TARGET, -100)
    with grouped(small):
        loss = linear_cross_entropy(*own, ignored)
    assert loss.isnan()
    assert all(not value.any() for value in torch.autograd.grad(loss, own))


def test_nothing_weighs(small: list[int]) -> None:
    """As torch: NaN."""
    own, weight = held(), torch.zeros(CLASSES, dtype=torch.float64)
    with grouped(small):
        loss = linear_cross_entropy(*own, TARGET, weight=weight)
    assert all(value.isnan().all() for value in torch.autograd.grad(loss, own))


@pytest.mark.parametrize("incoming", [torch.inf, torch.nan])
@pytest.mark.parametrize("kept", [False, True])
def test_ignored_rows_stay_out_of_it(small: list[int], incoming: float, kept: bool) -> None:
    own, target = held(), TARGET.clone()
    target[[0, 7]] = -100
    with grouped(small):
        loss = linear_cross_entropy(*own, target)
    (found,) = torch.autograd.grad(loss * incoming, own[:1], retain_graph=kept)
    assert not found[[0, 7]].any()
    assert not found[1:7].isfinite().any()


def test_bad_targets_are_named(small: list[int]) -> None:
    own, target = held(), TARGET.clone()
    target[-1] = CLASSES
    with memory_budget(BUDGET), pytest.raises(IndexError, match=f"target.*{CLASSES}"):
        linear_cross_entropy(*own, target)


def test_inputs_stay_and_bits_repeat(small: list[int]) -> None:
    own = held()
    before = [leaf.detach().clone() for leaf in own]
    with grouped(small):
        found = [torch.autograd.grad(linear_cross_entropy(*own, TARGET), own) for _ in range(2)]
    for leaf, as_it_was, one, two in zip(own, before, *found, strict=True):
        assert torch.equal(leaf, as_it_was)
        assert torch.equal(one, two)


def test_what_others_do(small: list[int]) -> None:
    """Calls that are not for groups, with the gradients of whole logits all the same."""
    offset = {"offset": normal(CLASSES, seed=965)}
    each, mixed = {"reduction": "none"}, {"target": MixedTarget(TARGET, TARGET.flip(0), 0.3)}
    for options, more in ((each, {}), (mixed, {}), ({}, offset)):
        settings = {"target": TARGET} | options
        same(
            small,
            lambda settings=settings, **x: linear_cross_entropy(**settings, **x),
            leaves_for(**more),
            served=False,
        )
    sphere = {"margin": SphereFace(3), "scale": 2.0, "target": TARGET}
    same(small, lambda **leaves: cosine_margin_cross_entropy(**sphere, **leaves), leaves_for(), served=False)
    own = held()
    with grouped(small, served=False), torch.no_grad():
        linear_cross_entropy(*own, TARGET)
    with grouped(small, served=False), use_kernels("reference"):
        linear_cross_entropy(*own, TARGET)
    with grouped(small, served=False):
        torch.func.grad(lambda x: linear_cross_entropy(x, own[1], TARGET))(own[0])


@pytest.mark.parametrize(
    "shape, within, rows",
    [
        ((1024, 128_256, 256), 256, 256),
        ((1000, 128_256, 256), 256, 250),
        ((1024, 128_256, 2048), 256, 512),
        ((1024, 128_256, 2048), 130, 256),
        ((1024, 128_256, 2048), 129, 0),  # 255 rows and a slab
        ((1024, 128_256, 2048), 64, 0),
        ((1024, 128_256, 128), 256, 0),
        ((100_000, 1000, 2048), 256, 1042),
        ((512, 8142, 2048), 256, 0),
    ],
    ids=[
        "vocab",
        "equal groups",
        "budget",
        "smaller budget",
        "no room for a slab",
        "few rows",
        "few features",
        "cache",
        "kept",
    ],
)
def test_sizes(shape: tuple[int, int, int], within: int, rows: int) -> None:
    count, classes, features = shape
    with memory_budget(within * MEBI):
        # no memory is touched
        input, weight = (torch.zeros(()).expand(size, features) for size in (count, classes))
        assert budget.group_rows(input, classes) == rows
        assert (f"groups of {rows:,} rows" in linear_policy(input, weight).reason) == (rows > 0)


def test_errs_no_more_than_slabs() -> None:
    """At sizes as they are, in float32, with products by whichever library is faster."""
    rows, classes, features = 300, 3000, 256  # groups of 150: more than 256 would be more than there are features
    leaves = {"input": normal(rows, features, seed=966), "linear_weight": normal(classes, features, seed=967)}
    target, found = classes_of(rows, classes, 968), []
    for kind in (torch.float32, torch.float64):
        own = [(leaf / 4).to(kind).requires_grad_() for leaf in leaves.values()]
        with memory_budget(530 * classes * own[0].element_size()):
            assert (budget.group_rows(own[0], classes) == 150) == (kind is torch.float32)
            loss = linear_cross_entropy(*own, target)
        found.append((loss, *torch.autograd.grad(loss, own)))
    for mine, exact in zip(*found, strict=True):
        assert_close(mine, exact, torch.float32)

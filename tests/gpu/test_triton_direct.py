"""Losses on the direct way on a GPU, or by Triton's interpreter: their graphs, groups of rows, what is launched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from device import DEVICE, MARKS, by_triton
from helpers import classes_of, normal
from tolerances import assert_close, error
from torch import Tensor

from lt_kernels import functional as F
from lt_kernels import memory_budget
from lt_kernels.core.terms import Reduction
from lt_kernels.ops import budget, calling, use_kernels
from lt_kernels.triton.launch import recorded

pytestmark = [pytest.mark.usefixtures("tensor_float"), *MARKS]
N, C, D = 70, 40, 6
SIZES = {"rows": [(N, C)], "linear": [(N, D), (C, D), (C,)], "cosines": [(N, D), (C, D)]}
NODES = {"rows": "RowsLoss", "linear": "FeaturesLoss", "cosines": "FeaturesLoss"}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
IGNORED = [1, 17]


def targets(ignored: list[int]) -> Tensor:
    return classes_of(N, C, seed=2).index_fill(0, torch.tensor(ignored), -100).to(DEVICE)


def leaves_of(name: str, dtype: torch.dtype) -> list[Tensor]:
    made = [normal(*size, seed=len(size) + size[0], dtype=dtype).to(DEVICE) for size in SIZES[name]]
    return [leaf.requires_grad_() for leaf in made]


def loss_of(name: str, leaves: list[Tensor], reduction: Reduction = "mean", ignored: list[int] = IGNORED) -> Tensor:
    """A loss with tables, some rows of which are ignored."""
    kind = torch.float64 if leaves[0].dtype == torch.float64 else torch.float32
    tables = {key: normal(C, seed=seed, dtype=kind).to(DEVICE) for key, seed in (("weight", 3), ("offset", 4))}
    tables["weight"] = tables["weight"].abs()
    if name == "rows":
        return F.offset_cross_entropy(leaves[0], targets(ignored), reduction=reduction, **tables)
    if name == "linear":
        x, w, b = leaves
        return F.linear_cross_entropy(x, w, targets(ignored), linear_bias=b, reduction=reduction, **tables)
    (x, w), chosen = leaves, {"margin": F.ArcFace(0.4), "scale": 10.0}
    return F.cosine_margin_cross_entropy(x, w, targets(ignored), reduction=reduction, **chosen, **tables)


def exact_of(name: str, leaves: list[Tensor], factor: float, reduction: Reduction) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and the gradients of the reference in float64."""
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with use_kernels("reference"):
        loss = loss_of(name, wide, reduction)
        return loss.detach(), torch.autograd.grad(factor * loss, wide)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", SIZES)
def test_every_gradient_wherever_it_stands_in_a_graph(
    name: str, reduction: Reduction, factor: float, dtype: torch.dtype
) -> None:
    """Alone or with something behind it, once and again in a kept graph; nothing of the caller's is written to."""
    leaves = leaves_of(name, dtype)
    value, slopes = exact_of(name, leaves, factor, reduction)
    before = [leaf.detach().clone() for leaf in leaves]
    with by_triton():
        loss = loss_of(name, leaves, reduction)
        assert NODES[name] in {loss.grad_fn.name()[:-8], loss.grad_fn.next_functions[0][0].name()[:-8]}
        assert_close(loss, value)
        loss = loss if factor == 1 else factor * loss
        for options in ({"retain_graph": True}, {"create_graph": True}, {"retain_graph": True}, {}):
            found = torch.autograd.grad(loss, leaves, **options)
            for one, other in zip(found, slopes, strict=True):
                assert_close(one, other)
                one.detach().zero_()  # somebody's own tensor
        assert all(map(torch.equal, before, leaves))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("name", SIZES)
def test_gradients_come_in_batches(name: str) -> None:
    leaves = leaves_of(name, torch.float64)
    exact, many = exact_of(name, leaves, 1.0, "mean")[1], torch.tensor([1.0, -0.5], dtype=torch.float64, device=DEVICE)
    with by_triton():
        found = torch.autograd.grad(loss_of(name, leaves), leaves, many, is_grads_batched=True)
    for one, gradient in zip(found, exact, strict=True):
        assert_close(one, torch.stack([gradient, -0.5 * gradient]))


@pytest.mark.parametrize("name", ["rows", "linear"])
def test_second_derivatives_are_those_of_the_dense_formula(name: str) -> None:
    leaves = leaves_of(name, torch.float64)
    with by_triton():
        torch.autograd.gradgradcheck(lambda *some: loss_of(name, list(some)), leaves, fast_mode=True)


@contextmanager
def groups_of(rows: int, itemsize: int) -> Iterator[None]:
    """Little memory, so that the logits are made by groups of so many rows."""
    with memory_budget(rows * C * itemsize), patch.object(budget, "GPU_GROUP_ROWS", 2), patch.object(budget, "TILE", 1):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["linear", "cosines"])
def test_groups_of_rows(name: str, reduction: Reduction, factor: float, dtype: torch.dtype) -> None:
    """Loss and gradients of logits that are made by groups of rows, also with a kept graph."""
    leaves = leaves_of(name, dtype)
    value, slopes = exact_of(name, leaves, factor, reduction)
    with by_triton(), groups_of(16, dtype.itemsize):
        assert budget.group_rows(leaves[0], C) == 14
        loss = loss_of(name, leaves, reduction)
        assert "GroupedLoss" in loss.grad_fn.name() + loss.grad_fn.next_functions[0][0].name()
        assert_close(loss, value)
        for kept in (True, False):
            found = torch.autograd.grad(factor * loss if factor != 1 else loss, leaves, retain_graph=kept)
            for one, other in zip(found, slopes, strict=True):
                assert_close(one, other)
                one.zero_()


@pytest.mark.parametrize("every", [True, False])
@pytest.mark.parametrize("name", ["linear", "cosines"])
def test_infinity_comes_into_groups(name: str, every: bool) -> None:
    """Ignored rows have a gradient of exactly 0 whatever comes back; with all ignored, so has everything."""
    leaves, ignored = leaves_of(name, torch.float32), [*range(N)] if every else IGNORED
    with by_triton(), groups_of(16, 4):
        loss = loss_of(name, leaves, "sum" if every else "mean", ignored) * torch.inf
        found = torch.autograd.grad(loss, leaves)
    assert not bool(found[0][ignored].any())
    assert not every or not any(bool(one.any()) for one in found)
    assert every or not bool(found[0].isfinite().all())


@contextmanager
def as_on_a_gpu() -> Iterator[list]:
    """What would be launched for tensors without memory."""
    calling.force("triton")
    try:
        with recorded() as launches:
            yield launches
    finally:
        calling.force("")


def launched(name: str, rows: int, classes: int, features: int, dtype: torch.dtype) -> Counter[str]:
    """The kernels of ours that a loss and its gradients launch, and how often each."""
    z, x, w = (
        torch.empty(size, dtype=dtype, device="meta", requires_grad=True)
        for size in ((rows, classes), (rows, features), (classes, features))
    )
    target = torch.empty(rows, dtype=torch.int64, device="meta")
    with as_on_a_gpu() as launches:
        if name == "rows":
            F.offset_cross_entropy(z, target, offset=torch.empty(classes, device="meta")).backward()
        elif name == "linear":
            F.linear_cross_entropy(x, w, target).backward()
        else:
            F.cosine_margin_cross_entropy(x, w, target, margin=F.ArcFace(0.5)).backward()
    return Counter(one.kernel.__name__ for one in launches)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="on meta, torch adds no product of another dtype before 2.13")
def test_few_launches_where_the_host_is_the_limit() -> None:
    """At most three of ours for logits and for features, and the norms and two projections for cosines."""
    for name, most in (("rows", 3), ("linear", 3), ("cosine", 6)):
        found = launched(name, 256, 8142, 2048, torch.bfloat16)
        assert 0 < found.total() <= most, (name, found)
    found = launched("linear", 8192, 128_256, 2048, torch.bfloat16)
    assert found.total() <= 8 * 2 + 5, found  # groups of 1,024 rows


def test_gradients_in_half_precision_are_as_exact_as_torch_s() -> None:
    """bfloat16 features: our error against float64 is below that of the eager formula."""
    x, w, _ = leaves_of("linear", torch.bfloat16)
    leaves = [x, w]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    target = targets(IGNORED)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, w), target)

    true = torch.autograd.grad(eager(*exact), exact)
    theirs = torch.autograd.grad(eager(*leaves), leaves)
    with by_triton():
        ours = torch.autograd.grad(F.linear_cross_entropy(x, w, target), leaves)
    for one, other, value in zip(ours, theirs, true, strict=True):
        assert error(one, value) <= error(other, value)

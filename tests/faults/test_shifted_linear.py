"""Losses of features at any size of their logits, kept or made again by slabs of rows, of classes, or by groups.

Features and class weights are whole numbers whose products are exact, so that every way sees the same logits.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, generator, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import memory_budget
from lt_kernels.functional import MixedTarget, linear_cross_entropy

AS_SHIPPED = True
pytestmark = pytest.mark.usefixtures("kernels")

N, C, D = 12, 90, 8
BUDGETS = {"kept": 2**28, "slabs of rows": 2000, "slabs of classes": 600}  # bytes
SHIFTS = [2.0**13, 2.0**20, -(2.0**20)]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"reduction": "none"},
    "weighted": {"weight": normal(C, seed=1, dtype=torch.float32).exp()},
    "offset": {"offset": torch.randint(-3, 4, (C,), generator=generator(2)).float()},
    "smoothing": {"label_smoothing": 0.2},
    "focal": {"focal_gamma": 1.0},
}
TARGET, SECOND = classes_of(N, C, seed=3), classes_of(N, C, seed=4)


def leaves(shift: float, dtype: torch.dtype) -> list[Tensor]:
    """Features and class weights whose products are small whole numbers, but for one of the size of the shift."""
    x = torch.randint(-2, 3, (N, D), generator=generator(5))
    w = torch.randint(-2, 3, (C, D), generator=generator(6))
    x[:, 0], w = 1, w.double()
    w[:, 0] += shift
    return [x.to(dtype), w.to(dtype)]


def eager(
    x: Tensor, w: Tensor, target: Any, offset: Tensor | None = None, focal_gamma: float = 0.0, **more: Any
) -> Tensor:
    z = F.linear(x, w) if offset is None else F.linear(x, w) + offset.to(x.dtype)
    more = {key: value.to(x.dtype) if isinstance(value, Tensor) else value for key, value in more.items()}
    if isinstance(target, MixedTarget):
        return 0.3 * F.cross_entropy(z, target.first, **more) + 0.7 * F.cross_entropy(z, target.second, **more)
    if target.is_floating_point():
        target = target.to(x.dtype)
    if not focal_gamma:
        return F.cross_entropy(z, target, **more)
    entropy = F.cross_entropy(z, target, reduction="none")
    return ((1 - torch.exp(-entropy)) * entropy).mean()


def judge(shift: float, dtype: torch.dtype, target: Any, budget: int, options: dict[str, Any]) -> None:
    """Value and gradients: our error may exceed eager's by no more than the tolerance."""
    found = []
    for mine, kind in ((True, dtype), (False, dtype), (False, torch.float64)):
        given = [leaf.to(kind).requires_grad_() for leaf in leaves(shift, dtype)]
        with memory_budget(budget):
            value = linear_cross_entropy(*given, target, **options) if mine else eager(*given, target, **options)
            found.append([value.detach(), *torch.autograd.grad(value.sum(), given)])
    for ours, others, truth in zip(*found, strict=True):
        # A gradient of the features is a sum of terms of the size of the shift, which cancel: in units of these.
        unit = 1.0 if truth.shape != (N, D) else max(1.0, abs(shift) / float(truth.abs().max()))
        limit = error(others, truth) / unit + TOLERANCE[dtype]
        assert error(ours, truth) / unit <= limit, f"{error(ours, truth) / unit:.2e} above {limit:.2e}"


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_no_worse_than_eager_at_any_shift(shift: float, budget: str, option: str) -> None:
    judge(shift, torch.float32, TARGET, BUDGETS[budget], OPTIONS[option])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_targets_and_probabilities(dtype: torch.dtype, budget: str) -> None:
    soft = normal(N, C, seed=7).softmax(1).to(dtype)
    for target, options in ((MixedTarget(TARGET, SECOND, 0.3), {"label_smoothing": 0.1}), (soft, {})):
        judge(2.0**20, dtype, target, BUDGETS[budget], options)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", [1e2, 1e5, 1e15])
def test_equal_logits(size: float, budget: str) -> None:
    """log C, and a gradient of the bias that sums to 0, whatever the one logit is."""
    x, w, b = torch.full((N, 1), size), torch.full((C, 1), size), torch.zeros(C, requires_grad=True)
    w.requires_grad_()
    with memory_budget(BUDGETS[budget]):
        loss = linear_cross_entropy(x, w, TARGET, linear_bias=b)
        (gradient,) = torch.autograd.grad(loss, b)
    assert_close(loss, torch.tensor(math.log(C)))
    assert gradient.sum().abs() < 1e-6


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("what", [torch.inf, torch.nan], ids=str)
def test_divergence_shows(what: float, budget: str) -> None:
    """One class weight that is infinite: no loss of a row that meets it is a number."""
    x, w = (leaf.requires_grad_() for leaf in leaves(0.0, torch.float32))
    w.data[int(TARGET[0]), 0] = what
    with memory_budget(BUDGETS[budget]):
        loss = linear_cross_entropy(x, w, TARGET)
        found = torch.autograd.grad(loss, (x, w))
    assert loss.isnan()
    assert all(gradient.isnan().any() for gradient in found)

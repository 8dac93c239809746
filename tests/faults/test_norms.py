"""Cosines are those of float64 however long the rows are: norms beyond float16's 65,504, squares beyond float32's.

The law behind most of it: a cosine does not know its rows' lengths, so features a x and class weights b w have the loss
of x and w, and gradients that are those over a and over b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import contrastive, functional, heads, losses, memory_budget, metrics, regularizers
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget

AS_SHIPPED = True  # small inputs may take another way than the operators
pytestmark = pytest.mark.usefixtures("kernels")

N, C, D = 5, 9, 8
COUNTS = torch.arange(1.0, C + 1)
LONG = torch.tensor([[60000.0, 30000.0]])
RIGHT = torch.tensor([[2.0, 1.0]], dtype=torch.float64) / 5**0.5
Function = Callable[[Tensor, Tensor], Tensor]


def cosine(dtype: torch.dtype = torch.float32, **options: Any) -> Function:
    """The loss of features and class weights."""
    target = classes_of(N, C, 3)
    return lambda x, w: functional.cosine_margin_cross_entropy(x, w, target, **options)


def mixed(x: Tensor, w: Tensor) -> Tensor:
    target = MixedTarget(classes_of(N, C, 3), classes_of(N, C, 4), 0.3)
    return functional.cosine_margin_cross_entropy(x, w, target, margin=CosFace(0.2))


def within(function: Function, budget: int) -> Function:
    def limited(x: Tensor, w: Tensor) -> Tensor:
        with memory_budget(budget):
            return function(x, w)

    return limited


def of_head(make: Callable[[], Any]) -> Function:
    """A head with our class weights."""

    def call(x: Tensor, w: Tensor) -> Tensor:
        torch.manual_seed(0)
        head = make().to(x.dtype)
        return torch.func.functional_call(head, {"weight": w}, (x, classes_of(N, C, 3)))

    return call


def contrasted(x: Tensor, w: Tensor) -> Tensor:
    return contrastive.balanced_contrastive(x, w, classes_of(N, C, 3))


def predicted(x: Tensor, w: Tensor) -> Tensor:
    head = heads.CosineHead(D, C, losses.CosFaceLoss()).to(x.dtype)
    return torch.func.functional_call(head, {"weight": w}, (x,)).square().sum()


CASES: dict[str, Function] = {
    "plain": cosine(),
    "ArcFace, offset": cosine(margin=ArcFace(0.3), offset=COUNTS.log()),
    "LDAM, rows": lambda x, w: cosine(margin=LDAM(COUNTS), reduction="none")(x, w).sum(),
    "DBM, smoothing": cosine(margin=DBM(COUNTS), label_smoothing=0.1),
    "mixed": mixed,
    "slabs": within(mixed, 128),
    "groups": within(cosine(margin=ArcFace(0.3)), 256),
    "head": of_head(lambda: heads.CosineHead(D, C, losses.BalancedSoftmaxLoss(COUNTS))),
    "experts": of_head(lambda: heads.NCLHead(D, C, losses.NCLLoss(COUNTS, hard_categories=2), experts=1)),
    "prediction": predicted,
    "contrastive": contrasted,
    "repulsion": lambda x, w: functional.logit_weight_repulsion(w, threshold=0.1) + 0 * x.sum(),
    "repulsion, list": lambda x, w: regularizers.LogitWeightRepulsion(0.1, neighbours="list")(w) + 0 * x.sum(),
    "repulsion, norms held": lambda x, w: functional.logit_weight_repulsion(w, threshold=0.1, project=False),
}


def gradients(function: Function, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    """The value and both gradients."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    value = function(x, w)
    found = torch.autograd.grad(value, (x, w), allow_unused=True)
    return value.detach(), *(
        torch.zeros_like(leaf) if one is None else one for leaf, one in zip((x, w), found, strict=True)
    )


@pytest.mark.parametrize(("left", "right"), [(2.0**67, 1.0), (1.0, 2.0**83), (2.0**80, 2.0**90)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_lengths_do_not_count(name: str, dtype: torch.dtype, left: float, right: float) -> None:
    """Powers of two, so that what is rounded is the same; for float64 longer ones, whose squares are no float64."""
    left, right = (one**8 if dtype == torch.float64 else one for one in (left, right))
    x, w = normal(N, D, seed=1, dtype=dtype), normal(C, D, seed=2, dtype=dtype)
    expected, found = gradients(CASES[name], x, w), gradients(CASES[name], x * left, w * right)
    for one, other, factor in zip(found, expected, (1.0, left, right), strict=True):
        assert_close((one.double() * factor).to(dtype), other, dtype)


@pytest.mark.parametrize("place", [0, 1])
def test_one_long_row_among_others(place: int) -> None:
    """The others stay what they are."""
    x, w = normal(N, D, seed=1, dtype=torch.float32), normal(C, D, seed=2, dtype=torch.float32)
    theirs = functional.cosine_margin_cross_entropy(x.double(), w.double(), classes_of(N, C, 3), reduction="none")
    (x, w)[place][2] *= 2.0**70
    ours = functional.cosine_margin_cross_entropy(x, w, classes_of(N, C, 3), reduction="none")
    assert_close(ours, theirs, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_norms_beyond_half_precision(dtype: torch.dtype, swapped: bool) -> None:
    """Features [60000, 30000] against unit weights, and the other way around."""
    head = heads.CosineHead(2, 2, losses.ArcFaceLoss()).to(dtype)
    rows, units = LONG.to(dtype), torch.eye(2, dtype=dtype)
    with torch.no_grad():
        if swapped:
            head.weight.copy_(rows.expand(2, 2))
            assert_close(head(units), RIGHT.T.expand(2, 2), dtype)
        else:
            head.weight.copy_(units)
            assert_close(head(rows), RIGHT, dtype)
    experts = heads.NCLHead(2, 2, losses.NCLLoss(torch.ones(2), hard_categories=1), experts=2).to(dtype)
    with torch.no_grad():
        experts.weight.copy_(torch.cat((units, units)))
        assert_close(experts(torch.cat((rows, rows), 1)), RIGHT, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("margin", [None, CosFace(0.2), ArcFace(0.3), DBM(torch.ones(2))], ids=str)
def test_losses_of_norms_beyond_half_precision(dtype: torch.dtype, margin: Any) -> None:
    """And their gradients, which in float16 are 0: smaller than its least number."""
    target, exact = torch.tensor([1]), LONG.to(dtype).double()
    settings: dict[str, Any] = {"margin": margin, "scale": 4.0}
    ours = functional.cosine_margin_cross_entropy(LONG.to(dtype), torch.eye(2, dtype=dtype), target, **settings)
    theirs = functional.cosine_margin_cross_entropy(exact, torch.eye(2).double(), target, **settings)
    assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    """float32 features that float16 cannot hold."""
    x, w = normal(N, D, seed=1, spread=1e6), normal(C, D, seed=2)
    target = classes_of(N, C, 3)
    theirs = functional.cosine_margin_cross_entropy(x, w, target, margin=ArcFace(0.2), scale=4.0)
    narrow = x.float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        ours = functional.cosine_margin_cross_entropy(narrow, w.float(), target, margin=ArcFace(0.2), scale=4.0)
    assert_close(ours, theirs, dtype)
    (found,) = torch.autograd.grad(ours, narrow)
    assert found.isfinite().all()
    assert bool(found.any())


@pytest.mark.parametrize("centers", ["wen", "autograd"])
def test_distances_beyond_half_precision(centers: Any) -> None:
    """A centre loss of float16: |[300, 0]|^2 is 90,000, the mean of it and three zeros 22,500."""
    loss = regularizers.CenterLoss(1, 2, centers=centers).half().eval()
    features = torch.tensor([[300.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float16)
    assert_close(loss(features, torch.zeros(4, dtype=torch.int64)), torch.tensor(22500.0), torch.float16)


def test_geometry() -> None:
    """Angles of rows whose squares are no float64."""
    angle = metrics.angular_distance(
        torch.tensor([[1e200, 1e200]], dtype=torch.float64), torch.tensor([0]), torch.eye(2)
    )
    assert_close(angle, torch.tensor([torch.pi / 4], dtype=torch.float64))

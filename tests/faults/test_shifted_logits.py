"""A row's loss is that of its differences: the same at any size of its logits, to what eager torch keeps of them.

Judged in float64, which sees the same rounded logits: our error may not exceed that of F.cross_entropy by more than
the tolerance. And what diverges shows: a row that holds an infinite logit or NaN has no loss that is a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import classes_of, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels import losses
from lt_kernels.functional import MixedTarget, offset_cross_entropy

AS_SHIPPED = True  # small inputs may take another way than the operators
pytestmark = pytest.mark.usefixtures("kernels")

N = 5
EACH = torch.tensor([1e4, -1e6, 1e10, -1e30, 0.0], dtype=torch.float64)[:, None]
SHIFTS = {"1e4": 1e4, "1e6": 1e6, "1e10": 1e10, "1e30": 1e30, "-1e6": -1e6, "each row": EACH}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
TARGET, SECOND = classes_of(N, 3, seed=1), classes_of(N, 3, seed=2)
Loss = Callable[..., Tensor]


def focal(z: Tensor, y: Tensor) -> Tensor:
    """(1 - p)^2 (-log p)."""
    entropy = F.cross_entropy(z, y, reduction="none")
    return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()


def by_class(z: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """Label smoothing by a number for each class."""
    log_p, part = z.log_softmax(1), eps[y]
    return (-(1 - part) * log_p.gather(1, y[:, None])[:, 0] - part * log_p.mean(1)).mean()


def cases(classes: int, kind: torch.dtype) -> dict[str, tuple[Loss, Loss]]:
    """(ours, eager torch's) of logits and what else has a gradient; tables in `kind`."""
    w, eps = normal(classes, seed=3).exp().to(kind), normal(classes, seed=4).sigmoid().to(kind) / 2
    soft, ours, eager = normal(N, classes, seed=5).softmax(1), offset_cross_entropy, F.cross_entropy
    mix, s = MixedTarget(TARGET, SECOND, 0.3), losses.CosFaceLoss(0.0, scale=4.0)

    def mixed(z: Tensor, **more: Any) -> Tensor:
        return 0.3 * eager(z, TARGET, **more) + 0.7 * eager(z, SECOND, **more)

    return {
        "plain": (lambda z: ours(z, TARGET), lambda z: eager(z, TARGET)),
        "weighted": (lambda z: ours(z, TARGET, w), lambda z: eager(z, TARGET, w.to(z.dtype))),
        "focal": (lambda z: ours(z, TARGET, focal_gamma=2.0), lambda z: focal(z, TARGET)),
        "smoothing": (
            lambda z: ours(z, TARGET, w, label_smoothing=0.2),
            lambda z: eager(z, TARGET, w.to(z.dtype), label_smoothing=0.2),
        ),
        "smoothing by class": (
            lambda z: ours(z, TARGET, label_smoothing=eps),
            lambda z: by_class(z, TARGET, eps.to(z.dtype)),
        ),
        "probabilities": (lambda z: ours(z, soft.to(z.dtype)), lambda z: eager(z, soft.to(z.dtype))),
        "mixed": (lambda z: ours(z, mix), mixed),
        "mixed, smoothing": (lambda z: ours(z, mix, label_smoothing=0.1), lambda z: mixed(z, label_smoothing=0.1)),
        "scale": (lambda z: s(z, TARGET), lambda z: eager(4.0 * z, TARGET)),
    }


def judge(ours: Loss, eager: Loss, *leaves: Tensor) -> None:
    """Value and gradients: our error may exceed eager's by no more than the tolerance."""
    found = []
    for call, kind in ((ours, None), (eager, None), (eager, torch.float64)):
        mine = [leaf.detach().to(kind or leaf.dtype).requires_grad_() for leaf in leaves]
        value = call(*mine)
        found.append([value.detach(), *torch.autograd.grad(value, mine)])
    for mine, others, truth in zip(*found, strict=True):
        limit = error(others, truth) + TOLERANCE[leaves[0].dtype]
        assert error(mine, truth) <= limit, f"{error(mine, truth):.2e} above {limit:.2e}"


def logits(classes: int, shift: str, dtype: torch.dtype, spread: float = 3.0) -> Tensor:
    """Logits around the shift, rounded to the dtype; of one size for a spread of 0."""
    return (normal(N, classes, seed=6, spread=spread) + SHIFTS[shift]).to(dtype)


SIZES = [(torch.float32, shift) for shift in SHIFTS]
SIZES += [(dtype, shift) for dtype in (torch.float64, torch.bfloat16) for shift in ("1e10", "each row")]


@pytest.mark.parametrize("classes", [3, 1100])
@pytest.mark.parametrize("dtype, shift", SIZES, ids=str)
def test_no_worse_than_eager_at_any_shift(dtype: torch.dtype, shift: str, classes: int) -> None:
    wide = dtype == torch.float64
    for turn, (ours, eager) in enumerate(cases(classes, torch.float64 if wide else torch.float32).values()):
        judge(ours, eager, logits(classes, shift, dtype, 0.0 if turn % 4 == classes % 4 else 3.0))


@pytest.mark.parametrize("form", ["class", "row", "target"])
@pytest.mark.parametrize("dtype, shift", SIZES[:8], ids=str)
def test_offsets_at_any_shift(dtype: torch.dtype, shift: str, form: str) -> None:
    """[C], [N, 1, C] and [1, C, C], given and learned."""
    classes = 7
    sizes = {"class": (classes,), "row": (N, 1, classes), "target": (1, classes, classes)}[form]
    table = normal(*sizes, seed=7, dtype=dtype)

    def eager(z: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(z + (b if form == "class" else b[:, 0] if form == "row" else b[0][TARGET]), TARGET)

    for spread in (3.0, 0.0):
        z = logits(classes, shift, dtype, spread)
        judge(lambda z, b: offset_cross_entropy(z, TARGET, offset=b), eager, z, table)
        judge(lambda z: offset_cross_entropy(z, TARGET, offset=table), lambda z: eager(z, table.to(z.dtype)), z)


def test_equal_logits() -> None:
    """log C, and a gradient that sums to 0, of 2,000 equal logits."""
    for size in (1e4, 1e6, 1e10, 1e30, -1e6):
        z = torch.full((4, 2000), size, requires_grad=True)
        loss = offset_cross_entropy(z, torch.arange(4))
        assert_close(loss, torch.tensor(math.log(2000)))
        (gradient,) = torch.autograd.grad(loss, z)
        assert gradient.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [3.0, 30.0])
@pytest.mark.parametrize("size", [1e6, 1e10, 1e30])
def test_equal_logits_with_a_scale_and_an_offset(size: float, scale: float) -> None:
    """The target's logit is rounded as every other one is: the loss is log C, not what a rounding leaves."""
    z = torch.full((3, 1300), size / 3, requires_grad=True)
    loss = losses.CosFaceLoss(0.0, scale=scale)(z, torch.tensor([0, 700, 1299]))
    assert_close(loss, torch.tensor(math.log(1300)))
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.sum(1).abs().max() < 1e-5 * scale


INFINITE = [torch.inf, -torch.inf, torch.nan]
PLACES = ["the target's", "another's", "all", "all others"]


def columns(place: str, classes: int) -> list[int]:
    """Where the first row, whose target is TARGET[0], is to hold something."""
    own = int(TARGET[0])
    every = list(range(classes))
    return {"the target's": [own], "another's": [own + 3], "all": every}.get(place, every[:own] + every[own + 1 :])


@pytest.mark.parametrize("classes", [7, 1100])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", INFINITE, ids=str)
def test_divergence_shows_as_in_torch(what: float, place: str, classes: int) -> None:
    """Value and gradient are no numbers, or infinite, exactly where those of F.cross_entropy are."""
    for name, (ours, eager) in cases(classes, torch.float32).items():
        if name == "focal":  # 0 times infinity, as usually written
            continue
        z = normal(N, classes, seed=8, dtype=torch.float32)
        z[0, columns(place, classes)] = what
        found = []
        for call in (ours, eager):
            leaf = z.clone().requires_grad_()
            value = call(leaf)
            found.append([value.detach(), *torch.autograd.grad(value, leaf)])
        for mine, others in zip(*found, strict=True):
            assert torch.equal(mine.isnan(), others.isnan()), (name, mine, others)
            assert torch.equal(mine.isinf(), others.isinf()), (name, mine, others)


@pytest.mark.parametrize("what", INFINITE, ids=str)
def test_ignored_rows_may_hold_anything(what: float) -> None:
    for classes in (7, 1100):
        for reduction in ("none", "mean", "sum"):
            z = normal(N, classes, seed=9, dtype=torch.float32)
            z[1] = what
            z.requires_grad_()
            y = TARGET.index_fill(0, torch.tensor([1]), -100)
            for target in (y, MixedTarget(y, y, 0.3)):
                loss = offset_cross_entropy(z, target, label_smoothing=0.1, reduction=reduction)
                (gradient,) = torch.autograd.grad(loss.sum(), z)
                assert loss.isfinite().all()
                assert (gradient[1] == 0).all()
                assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", [losses.ArcFaceLoss(), losses.SphereFaceLoss(), losses.LDAMLoss([5.0, 3.0, 1.0])])
def test_a_cosine_that_is_infinite_shows(loss: torch.nn.Module) -> None:
    """It is the cosine of no angle; a loss that is cut at 1 would hide it."""
    cosine = torch.tensor([[0.1, torch.inf, 0.2], [0.3, 0.2, 0.1]], requires_grad=True)
    assert loss(cosine, torch.tensor([1, 0])).isnan()

"""Every named loss against its paper's formula: value and all gradients, with settings that are not the defaults."""

from __future__ import annotations

from collections.abc import Callable

import published
import pytest
import torch
from helpers import assert_same, classes_of, counts_of, normal
from published import own_of, replace
from tolerances import assert_close
from torch import Tensor

from lt_kernels import losses

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

ROWS, CLASSES = 17, 9
COUNTS = counts_of(CLASSES, 101)
WEIGHT = normal(CLASSES, seed=102).abs() + 0.2

Formula = Callable[[Tensor, Tensor], Tensor]


def batch_arb(z: Tensor, y: Tensor) -> Tensor:
    return published.arb(z, y, y.bincount(minlength=CLASSES).double())


def lade(alpha: float, lam: float, importance: str = "class", classes: str = "all") -> Formula:
    return lambda z, y: (
        published.balanced_softmax(z, y, COUNTS)
        + alpha * published.lade_regularizer(z, y, COUNTS, lam, importance, classes)
    )


def smoothed(head: float, tail: float, shape: str, power: float = 1.0, spread: str = "all") -> Formula:
    smoothing = published.label_aware_smoothing(COUNTS, head, tail, shape, power)
    return lambda z, y: published.label_aware(z, y, smoothing, spread)


LOGIT_LOSSES: dict[str, tuple[Callable[[], torch.nn.Module], Formula]] = {
    "ce": (lambda: losses.CrossEntropyLoss(), lambda z, y: published.cross_entropy(z, y)),
    "ce weight": (lambda: losses.CrossEntropyLoss(weight=WEIGHT), lambda z, y: published.cross_entropy(z, y, WEIGHT)),
    "bs": (lambda: losses.BalancedSoftmaxLoss(COUNTS), lambda z, y: published.balanced_softmax(z, y, COUNTS)),
    "la": (lambda: losses.LogitAdjustmentLoss(COUNTS), lambda z, y: published.logit_adjustment(z, y, COUNTS)),
    "la tau": (
        lambda: losses.LogitAdjustmentLoss(COUNTS, tau=1.7),
        lambda z, y: published.logit_adjustment(z, y, COUNTS, 1.7),
    ),
    "arb": (lambda: losses.ARBLoss(COUNTS), lambda z, y: published.arb(z, y, COUNTS)),
    "arb batch": (lambda: losses.ARBLoss(counts="batch"), batch_arb),
    "focal": (lambda: losses.FocalLoss(), lambda z, y: published.focal(z, y, 2.0)),
    "focal weight": (lambda: losses.FocalLoss(0.5, weight=WEIGHT), lambda z, y: published.focal(z, y, 0.5, WEIGHT)),
    "cb": (
        lambda: losses.ClassBalancedLoss(COUNTS, beta=0.99),
        lambda z, y: published.class_balanced(z, y, COUNTS, 0.99, 0.0, "weighted", True),
    ),
    "cb focal": (
        lambda: losses.ClassBalancedLoss(COUNTS, beta=0.999, gamma=1.5, average="batch"),
        lambda z, y: published.class_balanced(z, y, COUNTS, 0.999, 1.5, "batch", True),
    ),
    "cb paper": (
        lambda: losses.ClassBalancedLoss(COUNTS, beta=0.9, average="batch", normalize=False),
        lambda z, y: published.class_balanced(z, y, COUNTS, 0.9, 0.0, "batch", False),
    ),
    "lade": (lambda: losses.LADELoss(COUNTS), lade(0.1, 0.1)),
    "lade tuned": (
        lambda: losses.LADELoss(COUNTS, alpha=0.5, lam=0.3, importance="sample", classes="present"),
        lade(0.5, 0.3, "sample", "present"),
    ),
    "las": (lambda: losses.LabelAwareSmoothingLoss(COUNTS), smoothed(0.3, 0.0, "concave")),
    "las others": (
        lambda: losses.LabelAwareSmoothingLoss(COUNTS, head=0.4, tail=0.1, spread="others"),
        smoothed(0.4, 0.1, "concave", spread="others"),
    ),
    "las exp": (
        lambda: losses.LabelAwareSmoothingLoss(COUNTS, head=0.4, tail=0.1, shape="exp", power=3.0),
        smoothed(0.4, 0.1, "exp", 3.0),
    ),
    "las linear": (
        lambda: losses.LabelAwareSmoothingLoss(COUNTS, head=0.2, tail=0.05, shape="linear"),
        smoothed(0.2, 0.05, "linear"),
    ),
    "las convex": (
        lambda: losses.LabelAwareSmoothingLoss(COUNTS, head=0.2, tail=0.05, shape="convex"),
        smoothed(0.2, 0.05, "convex"),
    ),
}


def softmax_of(scale: float, phi: Formula, weight: Tensor | None = None, offset: Tensor | None = None) -> Formula:
    """Cross-entropy of the scaled cosines with the target's replaced by phi(cosines, target)."""
    return lambda c, y: published.cross_entropy(scale * replace(c, y, phi(c, y)), y, weight, offset)


def dbm_phi(largest: float = 0.1, tau: float = 1.0, instance: float = 1.0, guard: bool = False) -> Formula:
    margin = published.dbm_margin(COUNTS, largest, tau)
    return lambda c, y: published.dbm(c, y, margin, instance, guard)


def ldam_phi(largest: float) -> Formula:
    return lambda c, y: own_of(c, y) - published.ldam_margin(COUNTS, largest)[y]


LOG_PRIOR = (COUNTS / COUNTS.sum()).log()

COSINE_LOSSES: dict[str, tuple[Callable[[], torch.nn.Module], Formula]] = {
    "ldam": (lambda: losses.LDAMLoss(COUNTS), softmax_of(30.0, ldam_phi(0.5))),
    "ldam tuned": (
        lambda: losses.LDAMLoss(COUNTS, max_margin=0.3, scale=10.0, weight=WEIGHT),
        softmax_of(10.0, ldam_phi(0.3), WEIGHT),
    ),
    "dbm": (lambda: losses.DBMLoss(COUNTS), softmax_of(30.0, dbm_phi())),
    "dbm bs": (
        lambda: losses.DBMLoss(COUNTS, max_margin=0.3, tau=0.5, instance=2.0, scale=16.0, base="bs"),
        softmax_of(16.0, dbm_phi(0.3, 0.5, 2.0), offset=LOG_PRIOR),
    ),
    "dbm cb": (
        lambda: losses.DBMLoss(COUNTS, scale=12.0, base="cb", beta=0.99),
        softmax_of(12.0, dbm_phi(), published.class_balanced_weight(COUNTS, 0.99)),
    ),
    "dbm guard": (
        lambda: losses.DBMLoss(COUNTS, max_margin=0.9, tau=0.1, scale=12.0, guard=True),
        softmax_of(12.0, dbm_phi(0.9, 0.1, 1.0, True)),
    ),
    "cosface": (lambda: losses.CosFaceLoss(), softmax_of(64.0, lambda c, y: own_of(c, y) - 0.35)),
    "cosface tuned": (lambda: losses.CosFaceLoss(0.2, scale=9.0), softmax_of(9.0, lambda c, y: own_of(c, y) - 0.2)),
    "arcface": (lambda: losses.ArcFaceLoss(), softmax_of(64.0, lambda c, y: published.arcface(own_of(c, y), 0.5))),
    "arcface tuned": (
        lambda: losses.ArcFaceLoss(1.1, scale=7.0),
        softmax_of(7.0, lambda c, y: published.arcface(own_of(c, y), 1.1)),
    ),
    "sphereface": (
        lambda: losses.SphereFaceLoss(),
        softmax_of(1.0, lambda c, y: published.sphereface(own_of(c, y), 4)),
    ),
    "sphereface tuned": (
        lambda: losses.SphereFaceLoss(3, scale=2.0),
        softmax_of(2.0, lambda c, y: published.sphereface(own_of(c, y), 3)),
    ),
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_logit_losses(name: str) -> None:
    make, formula = LOGIT_LOSSES[name]
    loss, target = make().double(), classes_of(ROWS, CLASSES, 103)
    assert loss.input_kind == "logits"
    leaves = {"input": normal(ROWS, CLASSES, seed=104, spread=2.0)}
    assert_same(lambda input: loss(input, target), lambda input: formula(input, target), leaves)


@pytest.mark.parametrize("name", COSINE_LOSSES)
def test_cosine_losses(name: str) -> None:
    make, formula = COSINE_LOSSES[name]
    loss, target = make().double(), classes_of(ROWS, CLASSES, 105)
    assert loss.input_kind == "cosine"
    leaves = {"input": normal(ROWS, CLASSES, seed=106).tanh()}
    assert_same(lambda input: loss(input, target), lambda input: formula(input, target), leaves)


def test_sphereface_norms() -> None:
    """All logits of the row are multiplied by |x|, and the gradient flows through it."""
    loss, target = losses.SphereFaceLoss(4, scale=1.5), classes_of(ROWS, CLASSES, 107)

    def exact(input: Tensor, norms: Tensor) -> Tensor:
        logits = 1.5 * norms[:, None] * replace(input, target, published.sphereface(own_of(input, target), 4))
        return published.cross_entropy(logits, target)

    leaves = {"input": normal(ROWS, CLASSES, seed=108).tanh(), "norms": normal(ROWS, seed=109).abs()}
    assert_same(lambda input, norms: loss(input, target, norms=norms), exact, leaves)


@pytest.mark.parametrize("gap", [-1e-3, -1e-9, 1e-9, 1e-3])
def test_hard_starts_where_another_cosine_is_larger(gap: float) -> None:
    """The instance margin sets in between a rival just below and one just above the target's cosine."""
    cosine = torch.full((1, CLASSES), -0.9, dtype=torch.float64)
    cosine[0, 2], cosine[0, 7] = 0.3, 0.3 + gap
    loss, target = losses.DBMLoss(torch.ones(CLASSES), max_margin=0.4, scale=10.0).double(), torch.tensor([2])
    angle = torch.tensor(0.3, dtype=torch.float64).acos() + 0.4 * (1 + (gap > 0) * 0.35)
    exact = published.cross_entropy(10.0 * replace(cosine, target, angle.cos()[None]), target)
    assert_close(loss(cosine, target), exact)

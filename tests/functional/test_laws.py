"""Laws: what must hold for every input, whatever the formula is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_same, classes_of, counts_of, gradients, normal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch import Tensor

from benchmarks import registry
from benchmarks.registry import NAMED, OF_FEATURES, example, of_cosine
from lt_kernels import functional, losses
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

ROWS, CLASSES, FEATURES = 14, 9, 5
COUNTS = counts_of(CLASSES, 161)
LOGITS, TARGET = normal(ROWS, CLASSES, seed=162, spread=2.0), classes_of(ROWS, CLASSES, 163)
COSINES = normal(ROWS, CLASSES, seed=164).tanh()
OFFSET = normal(CLASSES, seed=165, spread=2.0)
VECTORS = {"input": normal(ROWS, FEATURES, seed=166), "linear_weight": normal(CLASSES, FEATURES, seed=167)}
MARGINS = [None, CosFace(0.3), ArcFace(0.4), SphereFace(3), LDAM(COUNTS), DBM(COUNTS, 0.3)]

GLOBAL = "ARBLoss of the training set"
LOSSES: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, example(name)) for name in NAMED if name not in OF_FEATURES},
    GLOBAL: ("ARBLoss", {}),
}
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the wing of kernels is the same for all examples
)
COSINE = {name for name, (loss, _) in LOSSES.items() if of_cosine(loss)}


def kind_of(margin: object) -> str:
    """The name of a margin."""
    return type(margin).__name__


def made(name: str, counts: Tensor = COUNTS, **options: object) -> Any:
    loss, settings = LOSSES[name]
    return registry.made(loss, counts, **settings, **options).double()


def input_of(name: str) -> Tensor:
    return COSINES if name in COSINE else LOGITS


@pytest.mark.parametrize("name", sorted(set(LOSSES) - COSINE - {"LADELoss"}))
def test_shift_invariance(name: str) -> None:
    """Adding a number to a whole row changes nothing."""
    loss, shift = made(name), normal(ROWS, 1, seed=168, spread=50.0)
    assert_same(lambda z: loss(z + shift, TARGET), lambda z: loss(z, TARGET), {"z": LOGITS})


@pytest.mark.parametrize("name", LOSSES)
def test_permutation_of_classes(name: str) -> None:
    """Renaming the classes changes nothing; so the rarest class need not be the last one."""
    order = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(169))
    loss, renamed = made(name), made(name, COUNTS[order])
    place = order.argsort()
    assert_same(lambda z: renamed(z[:, order], place[TARGET]), lambda z: loss(z, TARGET), {"z": input_of(name)})


@pytest.mark.parametrize("name", LOSSES)
def test_permutation_of_rows(name: str) -> None:
    order, loss = torch.randperm(ROWS, generator=torch.Generator().manual_seed(170)), made(name)
    assert_same(lambda z: loss(z[order], TARGET[order]), lambda z: loss(z, TARGET), {"z": input_of(name)})


@pytest.mark.parametrize("name", ["BalancedSoftmaxLoss", "LogitAdjustmentLoss", GLOBAL, "ClassBalancedLoss"])
def test_equal_counts_are_plain_cross_entropy(name: str) -> None:
    equal = torch.full((CLASSES,), 37.0)
    loss = losses.ClassBalancedLoss(equal) if name == "ClassBalancedLoss" else made(name, equal)
    assert_same(lambda z: loss(z, TARGET), lambda z: torch.nn.functional.cross_entropy(z, TARGET), {"z": LOGITS})


def test_balanced_batch_counts_are_plain_cross_entropy() -> None:
    """ARB with the batch's counts, when each class occurs once."""
    target, logits = torch.randperm(CLASSES), normal(CLASSES, CLASSES, seed=171)
    loss = losses.ARBLoss(counts="batch")
    assert_same(lambda z: loss(z, target), lambda z: torch.nn.functional.cross_entropy(z, target), {"z": logits})


NOTHING = [CosFace(0.0), ArcFace(0.0), SphereFace(1), SphereFace(1, 3.0), LDAM(COUNTS, 0.0), DBM(COUNTS, 0.0)]


@pytest.mark.parametrize("margin", NOTHING, ids=kind_of)
def test_zero_margin_is_none(margin: object) -> None:
    def plain(input: Tensor, linear_weight: Tensor) -> Tensor:
        size = input.norm(dim=1, keepdim=True) if isinstance(margin, SphereFace) else 1.0
        cosine = torch.nn.functional.normalize(input) @ torch.nn.functional.normalize(linear_weight).T
        return torch.nn.functional.cross_entropy(5.0 * size * cosine, TARGET)

    call = functional.cosine_margin_cross_entropy
    assert_same(lambda **leaves: call(target=TARGET, margin=margin, scale=5.0, **leaves), plain, VECTORS)


def test_zero_parameters_return_the_plain_member() -> None:
    plain = torch.nn.functional.cross_entropy
    for loss in (
        losses.FocalLoss(0.0),
        losses.ClassBalancedLoss(COUNTS, beta=0.0),
        losses.LogitAdjustmentLoss(COUNTS, tau=0.0),
        losses.LabelAwareSmoothingLoss(COUNTS, head=0.0, tail=0.0),
    ):
        assert_same(lambda z, loss=loss: loss.double()(z, TARGET), lambda z: plain(z, TARGET), {"z": LOGITS})
    lade, balanced = losses.LADELoss(COUNTS, alpha=0.0).double(), losses.BalancedSoftmaxLoss(COUNTS).double()
    assert_same(lambda z: lade(z, TARGET), lambda z: balanced(z, TARGET), {"z": LOGITS})


def test_arb_is_balanced_softmax() -> None:
    arb, balanced = losses.ARBLoss(COUNTS).double(), losses.BalancedSoftmaxLoss(COUNTS).double()
    assert_same(lambda z: arb(z, TARGET), lambda z: balanced(z, TARGET), {"z": LOGITS})


def test_counts_only_matter_up_to_a_factor() -> None:
    for name in ("BalancedSoftmaxLoss", "LogitAdjustmentLoss", GLOBAL, "LDAMLoss", "DBMLoss", "LADELoss"):
        loss, same = made(name), made(name, 3.0 * COUNTS)
        assert_same(lambda z, loss=loss: loss(z, TARGET), lambda z, same=same: same(z, TARGET), {"z": input_of(name)})


@pytest.mark.parametrize("margin", MARGINS, ids=kind_of)
def test_removing_a_class_is_an_offset_of_minus_infinity(margin: object) -> None:
    """Also for the hard samples of DBM: a class that is not there is nobody's rival."""
    target, gone = TARGET % (CLASSES - 2), [CLASSES - 2, CLASSES - 1]
    offset = OFFSET.clone()
    offset[gone] = -torch.inf
    call, common = functional.cosine_margin_cross_entropy, {"target": target, "scale": 6.0, "label_smoothing": 0.1}

    def whole(**leaves: Tensor) -> Tensor:
        return call(margin=margin, offset=offset, **leaves, **common)

    def part(input: Tensor, linear_weight: Tensor) -> Tensor:
        fewer = margin
        if isinstance(margin, LDAM):  # fewer classes, the same margins: the rarest of them sets the scale
            fewer = LDAM(COUNTS[:-2], 0.5 * (COUNTS.min() / COUNTS[:-2].min()).item() ** 0.25)
        if isinstance(margin, DBM):
            fewer = DBM(COUNTS[:-2], 0.3 * COUNTS.min().item() / COUNTS[:-2].min().item())
        return call(input, linear_weight[:-2], margin=fewer, offset=offset[:-2], **common)

    assert_same(whole, part, VECTORS)
    assert (gradients(whole, VECTORS)["linear_weight"][gone] == 0).all()


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 9),
    classes=st.integers(2, 40),
    constant=st.floats(-30, 30),
)
@FEW
def test_offset_is_an_addition(seed: int, rows: int, classes: int, constant: float) -> None:
    """F.cross_entropy of z + b; a constant in b cancels; the gradient of b is the column sum of that of z."""
    logits, target = normal(rows, classes, seed=seed, spread=4.0), classes_of(rows, classes, seed + 1)
    leaves = {"logits": logits, "offset": normal(classes, seed=seed + 2, spread=3.0)}
    found = gradients(lambda logits, offset: functional.offset_cross_entropy(logits, target, offset=offset), leaves)
    assert_close(found["value"], torch.nn.functional.cross_entropy(logits + leaves["offset"], target))
    assert_close(found["offset"], found["logits"].sum(0))
    assert_close(found["logits"].sum(1), torch.zeros(rows, dtype=torch.float64))
    moved = functional.offset_cross_entropy(logits, target, offset=leaves["offset"] + constant)
    assert_close(moved, found["value"])


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.5, 2.0]))
@FEW
def test_mixed_target_is_the_mixture_of_losses(seed: int, lam: float, smoothing: float, gamma: float) -> None:
    first, second = classes_of(ROWS, CLASSES, seed), classes_of(ROWS, CLASSES, seed + 1)
    options = {"weight": COUNTS / 100, "focal_gamma": gamma, "label_smoothing": smoothing}
    call = lambda z, y: functional.offset_cross_entropy(z, y, offset=OFFSET, **options)  # noqa: E731
    assert_same(
        lambda z: call(z, MixedTarget(first, second, lam)),
        lambda z: lam * call(z, first) + (1 - lam) * call(z, second),
        {"z": LOGITS},
    )

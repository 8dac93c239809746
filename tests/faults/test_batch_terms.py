"""Losses with terms of the batch: rows that are ignored are in none of them, or the loss says that it has none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch import Tensor, nn

from lt_kernels import functional, heads, losses, ops, regularizers

N, D, C = 70, 4, 5
COUNTS = [50, 20, 7, 2, 1]
LEFT = torch.arange(N) % 3 > 0
LEFT[:34] = False  # a whole block of rows
TARGET = classes_of(N, C, seed=1)
LADE = [
    {"importance": importance, "classes": classes, "reduction": reduction}
    for importance in ("class", "sample")
    for classes in ("all", "present")
    for reduction in ("mean", "sum")
]


def ids(options: dict[str, Any]) -> str:
    return " ".join(options.values())


def value_and_gradient(loss: Any, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    leaf = input.detach().clone().requires_grad_()
    value = loss(leaf, target)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("ignored", [-100, -1, 255, 2])
@pytest.mark.parametrize("options", LADE, ids=ids)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_lade_is_that_of_the_rows_that_are_left(
    options: dict[str, str], dtype: torch.dtype, ignored: int, kernels: str
) -> None:
    loss = losses.LADELoss(COUNTS, ignore_index=ignored, **options)
    target = torch.where(ignored == TARGET, 0, TARGET).masked_fill(~LEFT, ignored)
    logits = normal(N, C, seed=2, dtype=dtype)
    value, gradient = value_and_gradient(loss, logits, target)
    exact, slope = value_and_gradient(loss, logits[LEFT].double(), target[LEFT])
    assert_close(value, exact, dtype)
    assert_close(gradient[LEFT], slope, dtype)
    assert not gradient[~LEFT].any()


def test_lade_of_ignored_rows_that_are_not_finite() -> None:
    loss, target = losses.LADELoss(COUNTS), TARGET.masked_fill(~LEFT, -100)
    logits = normal(N, C, seed=2)
    broken = torch.where(LEFT[:, None], logits, torch.nan)
    value, gradient = value_and_gradient(loss, broken, target)
    assert_close(value, loss(logits[LEFT], target[LEFT]))
    assert not gradient[~LEFT].any()


def test_no_row_is_left() -> None:
    """A sum over no rows is 0 with gradient 0."""
    loss, none = losses.LADELoss(COUNTS, reduction="sum"), torch.full((N,), -100)
    value, gradient = value_and_gradient(loss, normal(N, C, seed=2), none)
    assert float(value) == 0
    assert not gradient.any()


@pytest.mark.filterwarnings("ignore:.*Function.*should not be instantiated:DeprecationWarning")  # torch's own
def test_lade_compiled_and_by_torch_func() -> None:
    """Where no value can be looked at, rows are left out all the same."""
    loss, target = losses.LADELoss(COUNTS), TARGET.masked_fill(~LEFT, -100)
    logits = normal(N, C, seed=2)
    exact = loss(logits[LEFT], target[LEFT])
    assert_close(torch.compile(loss, backend="eager", fullgraph=True)(logits, target), exact)
    gradient, value = torch.func.grad_and_value(loss)(logits, target)
    assert_close(value, exact)
    assert not gradient[~LEFT].any()


def head(**options: Any) -> heads.LinearHead:
    torch.manual_seed(3)
    loss = losses.EstimatedOffsetLoss(C, D, 0.7, 0.3, **options)
    made = heads.LinearHead(D, C, loss, bias=False).double()
    loss.center_loss.centers.copy_(normal(C, D, seed=4)) if options.get("centers") != "autograd" else None
    return made


@pytest.mark.parametrize("ignored", [-100, 2])
@pytest.mark.parametrize("centers", ["wen", "autograd"])
@pytest.mark.parametrize("use", ["subtract", "regularize"])
def test_estimated_offsets_of_the_rows_that_are_left(use: str, centers: str, ignored: int) -> None:
    ours, twin = (head(use=use, centers=centers, ignore_index=ignored) for _ in range(2))
    target = torch.where(ignored == TARGET, 0, TARGET).masked_fill(~LEFT, ignored)
    features = torch.where(LEFT[:, None], normal(N, D, seed=5), torch.nan)
    for _ in range(2):  # the centres that were moved
        value, gradient = value_and_gradient(ours, features, target)
        exact, slope = value_and_gradient(twin, features[LEFT], target[LEFT])
        assert_close(value, exact)
        assert_close(gradient[LEFT], slope)
        assert not gradient[~LEFT].any()
    assert_close(ours.loss.center_loss.centers.detach(), twin.loss.center_loss.centers.detach())


def test_centres_of_a_literal_batch() -> None:
    """Distances 1 and 9 of two rows that count: 5; c += 0.5 (2 + 4) / 3 for the class of both."""
    term = regularizers.CenterLoss(2, 1, ignore_index=-100)
    term.centers.fill_(1.0)
    loss = term(torch.tensor([[2.0], [torch.inf], [4.0]]), torch.tensor([1, -100, 1]))
    assert float(loss) == 5
    assert term.centers.flatten().tolist() == pytest.approx([1.0, 1 + 0.5 * (1 + 3) / 3])


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_terms_of_the_batch_are_added_to_no_rows(reduction: str) -> None:
    with pytest.raises(ValueError, match=f"reduction must be 'mean'.*got '{reduction}'"):
        losses.EstimatedOffsetLoss(C, D, reduction=reduction)
    with pytest.raises(ValueError, match="base must have reduction 'mean'"):
        losses.BalancedContrastiveLoss(losses.CrossEntropyLoss(reduction=reduction))


@pytest.mark.parametrize("ignored", [-1, 0, 255])
def test_second_parts_have_all_rows(ignored: int) -> None:
    base = losses.LogitAdjustmentLoss(COUNTS, ignore_index=ignored)
    for make in (losses.BalancedContrastiveLoss, lambda base: losses.GMLLoss(base, COUNTS)):
        with pytest.raises(ValueError, match=f"base must keep ignore_index -100.*got {ignored}"):
            make(base)


def without_rows() -> dict[str, tuple[nn.Module, Any]]:
    features, logits = normal(4, D, seed=6), normal(4, C, seed=7)
    base = losses.LogitAdjustmentLoss(COUNTS)
    return {
        "bcl": (heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(base)).double(), features),
        "gml": (heads.GMLHead(D, C, losses.GMLLoss(base, COUNTS), queue=16).double(), features),
        "ncl": (losses.NCLLoss(COUNTS, hard_categories=2), logits[None]),
        "lade term": (regularizers.LADERegularizer(COUNTS), logits),
        "centres": (regularizers.CenterLoss(C, D).double(), features),
        "lade": (lambda z, y: functional.lade_regularizer(z, y, torch.tensor(COUNTS)), logits),
    }


@pytest.mark.parametrize("wing", ["reference", "compiled"])
@pytest.mark.parametrize("name", without_rows())
def test_who_ignores_nothing_names_the_target(name: str, wing: str) -> None:
    loss, input = without_rows()[name]
    if wing == "compiled" and not ops.extension_status()[0]:
        pytest.skip("the C++ extension is not built")
    with ops.use_kernels(wing), pytest.raises(IndexError, match=r"^target"):
        loss(input, torch.tensor([0, -100, 2, 1]))

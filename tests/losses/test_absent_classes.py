"""Classes with no training sample: each function does what docs/class_counts.md says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from lt_kernels import losses, metrics, posthoc, regularizers, schedules

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "class_counts.md"
COUNTS = [3, 0, 2]
LEFT_OUT = ("BalancedSoftmaxLoss", "LogitAdjustmentLoss", "ARBLoss", "LADELoss")
REFUSED: dict[str, Callable[[], Any]] = {
    "ClassBalancedLoss": lambda: losses.ClassBalancedLoss(COUNTS),
    "LDAMLoss": lambda: losses.LDAMLoss(COUNTS),
    "DBMLoss": lambda: losses.DBMLoss(COUNTS),
    "NCLLoss": lambda: losses.NCLLoss(COUNTS, hard_categories=2),
    "DeferredReweighting": lambda: schedules.DeferredReweighting(COUNTS, 0)(0),
    "logit_adjustment": lambda: posthoc.logit_adjustment(torch.randn(4, 3), COUNTS),
    "rescale_by_count": lambda: posthoc.rescale_by_count(torch.randn(3, 4), COUNTS),
    "pc_softmax": lambda: posthoc.pc_softmax(torch.randn(4, 3), COUNTS),
}
OTHERS = {"LADERegularizer", "LabelAwareSmoothingLoss", "group_accuracy"}


def logits() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, dtype=torch.float64)


def test_the_table_has_what_is_tested() -> None:
    rows = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    assert named == {*LEFT_OUT, *REFUSED, *OTHERS}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_loss_without_the_class(name: str) -> None:
    """Its logits change nothing, to a gradient that is 0 and not merely small."""
    loss, target = getattr(losses, name)(COUNTS), torch.tensor([0, 2, 2, 0])
    z, other = logits().requires_grad_(), logits()
    other[:, 1] = 7.0
    value = loss(z, target)
    assert_close(loss(other, target), value)
    if name != "LADELoss":  # in whose second part the number of classes has a place
        assert_close(getattr(losses, name)([3, 2])(z[:, [0, 2]], target // 2), value)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient[:, 1].abs().max() == 0
    with pytest.raises(ValueError, match="offset is -inf for class 1, which is a target"):
        loss(z, torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_names_the_class(name: str) -> None:
    with pytest.raises(ValueError, match=r"(class|source)_counts must be above 0 for every class.*got 0 for class 1"):
        REFUSED[name]()


def test_the_regularizer_has_no_term_for_it() -> None:
    term, z, target = regularizers.LADERegularizer(COUNTS), logits(), torch.tensor([0, 1, 2, 0])
    other = z.clone()
    other[:, 1] = 7.0
    assert_close(term(other, target), term(z, target))
    assert (term(z[[0, 2, 3]], target[[0, 2, 3]]) - term(z, target)).abs() > 0.01  # the row of class 1 does count


def test_smoothing_is_that_of_the_rarest() -> None:
    loss = losses.LabelAwareSmoothingLoss(COUNTS, head=0.3, tail=0.1)
    z, target = logits(), torch.tensor([1, 1, 1, 1])
    expected = torch.nn.functional.cross_entropy(z, target, label_smoothing=0.1)
    assert_close(loss(z, target), expected)


def test_metrics_and_posterior() -> None:
    assert metrics.group_accuracy([0.5, 0.25, 0.75], COUNTS, many=2, few=1)["few"] == 0.25
    found = posthoc.pc_softmax(logits(), [1, 1, 1], COUNTS)
    assert found[:, 1].tolist() == [0, 0, 0, 0]
    assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))

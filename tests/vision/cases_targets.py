"""Mixed targets as timm and torchvision give them, against the losses of timm and of dense probabilities."""

from __future__ import annotations

import pytest
import torch
from helpers import normal
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torchvision.transforms import v2

from lt_kernels.functional import MixedTarget
from lt_kernels.losses import BalancedSoftmaxLoss, CrossEntropyLoss

CLASSES, LABELS = 10, torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
COUNTS = torch.tensor([500, 300, 200, 120, 70, 40, 25, 15, 9, 5])
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def same(ours: torch.nn.Module, target: MixedTarget, dense: torch.Tensor, offset: torch.Tensor | float) -> None:
    """Loss and gradient of our loss are those of timm's for the logits with the offset."""
    logits = normal(len(LABELS), CLASSES, seed=1, spread=3.0).requires_grad_()
    losses = ours(logits, target), SoftTargetCrossEntropy()(logits + offset, dense.double())
    torch.testing.assert_close(*losses, **CLOSE)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses), **CLOSE)


def of_timm(smoothing: float, mode: str, cutmix: float) -> torch.Tensor:
    mixup = Mixup(0.8, cutmix, mode=mode, label_smoothing=smoothing, num_classes=CLASSES)
    return mixup(torch.rand(len(LABELS), 3, 8, 8), LABELS)[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mode", "cutmix"), [("batch", 0.0), ("elem", 1.0), ("pair", 1.0)])
def test_timms_mixup(smoothing: float, mode: str, cutmix: float):
    dense = of_timm(smoothing, mode, cutmix)
    target = MixedTarget.from_dense(dense, label_smoothing=smoothing)
    same(CrossEntropyLoss(label_smoothing=smoothing), target, dense, 0.0)
    same(BalancedSoftmaxLoss(COUNTS, label_smoothing=smoothing), target, dense, COUNTS.double().log())


def test_timms_smoothed_targets_are_named():
    with pytest.raises(ValueError, match=r"timm's Mixup\(label_smoothing=0\.1\), need that label_smoothing here"):
        MixedTarget.from_dense(of_timm(0.1, "elem", 0.0))


@pytest.mark.parametrize("kind", [v2.MixUp, v2.CutMix])
def test_torchvisions_mixup_and_cutmix(kind: type):
    dense = kind(num_classes=CLASSES)(torch.rand(len(LABELS), 3, 8, 8), LABELS)[1]
    target = MixedTarget.from_dense(dense)
    same(CrossEntropyLoss(), target, dense, 0.0)
    same(BalancedSoftmaxLoss(COUNTS), target, dense, COUNTS.double().log())

"""The named losses: modules called with logits or raw cosines and the targets; a head takes the same objects.

Their tables move with `.to()` and keep their float64.
"""

from lt_kernels.losses.base import Loss
from lt_kernels.losses.compound import EstimatedOffsetLoss, LADELoss
from lt_kernels.losses.contrastive import BalancedContrastiveLoss, GMLLoss
from lt_kernels.losses.experts import NCLLoss
from lt_kernels.losses.named import (
    ARBLoss,
    ArcFaceLoss,
    BalancedSoftmaxLoss,
    ClassBalancedLoss,
    CosFaceLoss,
    CrossEntropyLoss,
    DBMLoss,
    FocalLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustmentLoss,
    SphereFaceLoss,
)

__all__ = [
    "ARBLoss",
    "ArcFaceLoss",
    "BalancedContrastiveLoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "CosFaceLoss",
    "CrossEntropyLoss",
    "DBMLoss",
    "EstimatedOffsetLoss",
    "FocalLoss",
    "GMLLoss",
    "LADELoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustmentLoss",
    "Loss",
    "NCLLoss",
    "SphereFaceLoss",
]

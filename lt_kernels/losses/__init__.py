"""The named losses: modules that are called with logits or raw cosines and the target, or given to a head.

Their tables move with `.to()` and stay float64.
"""

from lt_kernels.losses.base import Loss
from lt_kernels.losses.compound import ARBLoss, EstimatedOffsetLoss, LADELoss
from lt_kernels.losses.contrastive import BalancedContrastiveLoss, GMLLoss
from lt_kernels.losses.experts import NCLLoss
from lt_kernels.losses.named import (
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

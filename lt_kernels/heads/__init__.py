"""Classifiers with their loss inside: features and targets in, loss out, and the logits are never held whole."""

from lt_kernels.heads.classifier import CosineHead, LinearHead
from lt_kernels.heads.projected import BalancedContrastiveHead, GMLHead, NCLHead

__all__ = ["BalancedContrastiveHead", "CosineHead", "GMLHead", "LinearHead", "NCLHead"]

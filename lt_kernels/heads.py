"""Classifiers with their loss inside: features and targets in, loss out, and the logits are never held whole."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels import checks
from lt_kernels.distributed import checked, shard_bounds
from lt_kernels.lossmodule import Loss
from lt_kernels.ops.small import cosines
from lt_kernels.tables import reset_loss
from lt_kernels.values import MixedTarget
from lt_kernels.viewheads import BalancedContrastiveHead, GMLHead, NCLHead

__all__ = ["BalancedContrastiveHead", "CosineHead", "GMLHead", "LinearHead", "NCLHead"]


class _Head(nn.Module):
    """Class weights [C, d] and a loss; with a process group, this rank's share of the classes."""

    def __init__(self, in_features: int, num_classes: int, loss: Loss, group: Any) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features)
        self.num_classes = checks.whole("num_classes", num_classes)
        if not isinstance(loss, Loss):
            raise TypeError(f"loss must be one of lt_kernels.losses, got {type(loss).__name__}")
        if group is not None and (loss.needs_logits or loss.needs_features):
            raise ValueError(f"group must be None with {type(loss).__name__}, which needs all classes on each rank")
        self.loss, self.group = loss, group
        first, last = (
            (0, num_classes)
            if group is None
            else shard_bounds(num_classes, dist.get_rank(checked(group)), dist.get_world_size(group))
        )
        self.weight = nn.Parameter(torch.empty(last - first, in_features))

    def reset_parameters(self) -> None:
        """Draw all weights anew, and put what the loss learns or gathers back to its start: after `to_empty`, say."""
        self.draw()
        reset_loss(self.loss)

    def draw(self) -> None:
        """Draw the weights of the head itself."""
        raise NotImplementedError

    def flat(self, features: Tensor, target: Tensor | MixedTarget) -> tuple[Tensor, Tensor | MixedTarget]:
        """Features [..., d] and targets [...] as rows."""
        checks.floating("features", features)
        if features.ndim == 0 or features.shape[-1] != self.in_features:
            raise ValueError(f"features must be [..., {self.in_features}], got {list(features.shape)}")
        if features.ndim == 2:
            return features, target
        if isinstance(target, MixedTarget):
            mixed = MixedTarget(target.first.reshape(-1), target.second.reshape(-1), target.lam)
            return features.reshape(-1, self.in_features), mixed
        if tuple(target.shape) != tuple(features.shape[:-1]):
            raise ValueError(f"target must have shape {list(features.shape[:-1])}, got {list(target.shape)}")
        return features.reshape(-1, self.in_features), target.reshape(-1)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, num_classes={self.num_classes}"


class LinearHead(_Head):
    """Logits W x + b and the loss of them: head(features, target) -> loss, head(features) -> logits.

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses` that takes logits.
        bias: whether there is a b; `EstimatedOffsetLoss` brings its own offset and wants none.
        group: a process group over whose ranks the classes are sharded; features and targets are the same on every
            rank, and head(features) gives this rank's logits.
    """

    def __init__(self, in_features: int, num_classes: int, loss: Loss, *, bias: bool = True, group: Any = None) -> None:
        super().__init__(in_features, num_classes, loss, group)
        if loss.input_kind != "logits":
            raise ValueError(f"loss must take logits, got {type(loss).__name__}, which takes cosines: use CosineHead")
        self.bias = nn.Parameter(torch.empty(self.weight.shape[0])) if checks.flag("bias", bias) else None
        self.draw()

    def draw(self) -> None:
        """Draw weights and bias anew, as `torch.nn.Linear` does."""
        bound = 1 / math.sqrt(self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, features: Tensor, target: Tensor | MixedTarget | None = None) -> Tensor:
        """The loss, or without a target the logits [..., C]."""
        if target is None:
            logits, offset = F.linear(features, self.weight, self.bias), self.loss.predicted_offset(self.weight)
            return logits if offset is None else logits + offset.to(logits.dtype)
        features, target = self.flat(features, target)
        return self.loss.from_features(features, self.weight, target, self.bias, group=self.group)


class CosineHead(_Head):
    """Cosines and the loss of them: head(features, target) -> loss, head(features) -> cosines.

    Args:
        in_features, num_classes: d and C.
        loss: one of `lt_kernels.losses`; a margin loss brings its own scale.
        scale: what cosines are multiplied by for a loss that takes logits.
        group: as for `LinearHead`.
    """

    def __init__(
        self, in_features: int, num_classes: int, loss: Loss, *, scale: float = 30.0, group: Any = None
    ) -> None:
        super().__init__(in_features, num_classes, loss, group)
        if loss.needs_features:
            raise ValueError(
                f"loss must not estimate offsets of linear logits, got {type(loss).__name__}: use LinearHead"
            )
        self.scale = checks.number("scale", scale, above=0.0)
        self.draw()

    def draw(self) -> None:
        """Draw weights whose rows have norms of about 1."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.in_features))

    def forward(self, features: Tensor, target: Tensor | MixedTarget | None = None) -> Tensor:
        """The loss, or without a target the cosines [..., C]."""
        if target is None:
            flat = features.reshape(-1, self.in_features)
            return cosines(flat, self.weight).reshape(*features.shape[:-1], -1)
        features, target = self.flat(features, target)
        return self.loss.from_features(features, self.weight, target, cosine=True, scale=self.scale, group=self.group)

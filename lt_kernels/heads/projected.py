"""Heads whose loss has a second part: they own the classifier, the projections and the queue."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_kernels.contrastive import class_indices
from lt_kernels.core import checks
from lt_kernels.core.tables import reset_loss
from lt_kernels.heads.queue import ClassQueue
from lt_kernels.heads.rows import check
from lt_kernels.losses.contrastive import BalancedContrastiveLoss, GMLLoss, TwoPartLoss
from lt_kernels.losses.experts import NCLLoss
from lt_kernels.losses.whole import WholeBatch
from lt_kernels.ops.directions import cosines, unit
from lt_kernels.ops.ranks import placements
from lt_kernels.ops.ranks.dealing import Dealt

Classifier = Literal["cosine", "linear"]


class _ClassifierHead(WholeBatch):
    """Class weights [M C, d], with a bias where they are linear, and a loss of their logits or cosines."""

    def __init__(
        self, in_features: int, num_classes: int, loss: Any, cosine: Classifier, scale: float, copies: int = 1
    ) -> None:
        super().__init__()
        self.in_features = checks.whole("in_features", in_features)
        self.num_classes = checks.whole("num_classes", num_classes)
        self.classifier: Classifier = checks.choice("cosine", cosine, ("cosine", "linear"))
        if loss.input_kind == "cosine" and cosine == "linear":
            raise ValueError("cosine must be 'cosine' with a loss that takes cosines, got 'linear'")
        self.loss, self.scale = loss, checks.number("scale", scale, above=0.0)
        self.weight = nn.Parameter(torch.empty(copies * self.num_classes, self.in_features))
        self.bias = nn.Parameter(torch.empty(copies * self.num_classes)) if cosine == "linear" else None

    def reset_parameters(self) -> None:
        """Initialise all weights, empty the queue, and reset what the loss learns."""
        self.draw()
        reset_loss(self.loss)

    def draw(self) -> None:
        """Draw the head's own weights: those of cosines with norms of about 1, linear ones as `torch.nn.Linear`."""
        bound = 1 / math.sqrt(self.in_features)
        if self.bias is None:
            nn.init.normal_(self.weight, std=bound)
        else:
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.BatchNorm1d | nn.SyncBatchNorm | ClassQueue):
                part.reset_parameters()

    def predicted(self, features: Tensor) -> Tensor:
        """Logits, or raw cosines, [..., M C]."""
        check(features, self.in_features, self.weight)
        flat = features.reshape(-1, self.in_features)
        found = cosines(flat, self.weight) if self.bias is None else F.linear(flat, self.weight, self.bias)
        return found.reshape(*features.shape[:-1], self.weight.shape[0])

    def classified(self, loss: TwoPartLoss, features: Tensor, target: Tensor) -> Tensor:
        """The classification part, straight from features [N, d]."""
        scale = self.scale if self.bias is None else None
        return loss.base.from_features(features, self.weight, target, self.bias, cosine=self.bias is None, scale=scale)

    def check_views(self, features: Tensor, target: Tensor) -> None:
        """Raise unless there are features [V N, d] of target [N]."""
        check(features, self.in_features, self.weight, "N")
        rows = target.shape[0] if isinstance(target, Tensor) and target.ndim == 1 else 0
        if rows == 0 or features.shape[0] % rows or features.shape[0] == 0:
            shown = [*target.shape] if isinstance(target, Tensor) else type(target).__name__
            raise ValueError(f"target must be [N] with features [V N, d], whose rows are {len(features)}, got {shown}")

    def extra_repr(self) -> str:
        """The settings."""
        return f"in_features={self.in_features}, num_classes={self.num_classes}, cosine={self.classifier!r}"


def _projection(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear."""
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out_features)
    )


class BalancedContrastiveHead(_ClassifierHead):
    """Classifier, projection and prototypes for BCL: head(features, target) -> loss, head(features) -> prediction.

    Prediction is logits, or raw cosines, [N, C]. The first view is classified; the views that are contrasted are
    projected, and the class weights [C, d] by an MLP of their own, whose gradient reaches them (Zhu et al., 2022). In
    training its batch norm is over the C classes.

    Args:
        in_features, num_classes: d and C, at least 2.
        loss: `losses.BalancedContrastiveLoss`.
        cosine: the classifier, "cosine" (raw cosines, which margin losses need) or "linear" (with a bias).
        scale: what cosines are multiplied by for a base that takes logits.
        hidden, out_features: of both MLPs; hidden=None is in_features.
        contrasted: "all" views, or the "later" ones, without the one that is classified (published, with three views).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: BalancedContrastiveLoss,
        *,
        cosine: Classifier = "cosine",
        scale: float = 30.0,
        hidden: int | None = None,
        out_features: int = 128,
        contrasted: Literal["all", "later"] = "all",
    ) -> None:
        if not isinstance(loss, BalancedContrastiveLoss):
            raise TypeError(f"loss must be BalancedContrastiveLoss, got {type(loss).__name__}")
        self_contrasted = checks.choice("contrasted", contrasted, ("all", "later"))
        super().__init__(in_features, checks.whole("num_classes", num_classes, 2), loss, cosine, scale)
        sizes = (self.in_features if hidden is None else checks.whole("hidden", hidden),)
        sizes = (*sizes, checks.whole("out_features", out_features))
        self.projection, self.prototypes = (_projection(self.in_features, *sizes) for _ in range(2))
        self.contrasted: Literal["all", "later"] = self_contrasted
        self.draw()

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of features [V N, d], view after view, and target [N]; or without a target logits or cosines."""
        if target is None:
            return self.predicted(features)
        return placements.together(self.loss.ranks(), features, self._loss, features, target)

    def _loss(self, features: Tensor, target: Tensor) -> Tensor:
        self.check_views(features, target)
        samples = target.shape[0]
        if self.contrasted == "later" and features.shape[0] == samples:
            raise ValueError(f"features must have two views or more of {samples} samples, got {samples} rows")
        classification = self.classified(self.loss, features[:samples], target)
        views = self.projection(features[samples if self.contrasted == "later" else 0 :])
        return self.loss.total(classification, target, views, self.prototypes(self.weight))


class GMLHead(Dealt, _ClassifierHead):
    """Cosine classifier, projection and queue for GML: head(features, target) -> loss, head(features) -> cosines.

    The first view is classified, the last one asks, and the first one's features, without gradient, are the keys that
    enter the queue; with one view these are the same. The queue holds features of earlier batches, and all of it is
    projected as the projection is now, which gets a gradient from the keys too (Suh and Seo, 2023). The loss sees the
    batch's own keys; the queue itself changes after it, in training only.

    Args:
        in_features, num_classes: d and C.
        loss: `losses.GMLLoss`.
        scale: what cosines are multiplied by for a base that takes logits.
        out_features: e, of the linear projection.
        queue: places in the queue, at least C per_class.
        per_class: places that each class has at least; the others are shared out by the class prior.
        batch_group: the ranks whose keys enter the queue in training, in their order (docs/distributed.md): "all", a
            process group, or None for this process alone, which then has a queue of its own.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: GMLLoss,
        *,
        scale: float = 30.0,
        out_features: int = 32,
        queue: int = 4096,
        per_class: int = 2,
        batch_group: Any = "all",
    ) -> None:
        if not isinstance(loss, GMLLoss):
            raise TypeError(f"loss must be GMLLoss, got {type(loss).__name__}")
        super().__init__(in_features, num_classes, loss, "cosine", scale)
        if loss.log_prior.numel() != num_classes:
            raise ValueError(f"loss must have {num_classes} class_counts, got {loss.log_prior.numel()}")
        self.projection = nn.Linear(self.in_features, checks.whole("out_features", out_features))
        self.queue = ClassQueue(self.in_features, loss.log_prior.exp(), queue, per_class)
        self.batch_group = batch_group
        self.draw()

    def forward(self, features: Tensor, target: Tensor | None = None, *, teacher: Tensor | None = None) -> Tensor:
        """The loss of features [V N, d] and target [N], with a teacher's cosines [N, C] or none; or cosines."""
        if target is None:
            return self.predicted(features)
        group = self.ranks()
        return placements.together(group, features, self._loss, features, target, teacher, group)

    def _loss(self, features: Tensor, target: Tensor, teacher: Tensor | None, group: Any) -> Tensor:
        self.check_views(features, target)
        rows = target.shape[0]
        target = class_indices(target, self.num_classes, rows, features)
        first, last = features[:rows], features[-rows:]
        # Whatever may raise comes before the exchange, because an error after it would not be raised on other ranks.
        taught = None if teacher is None else self._taught(first, teacher)
        classification = self.classified(self.loss, first, target)
        if group is None:
            (held, own), share = self.queue.after(first.detach(), target), None
        else:
            held, own, share = self.queue.after_ranks(group, first.detach(), target)
        loss = self.loss.total(
            classification,
            target,
            self.projection(last),
            self.projection(held.features.to(self.projection.weight.dtype)),  # of mixed precision without autocast
            held.labels,
            own,
            share,
        )
        if self.training:
            self.queue.keep(held)
        return loss if taught is None else loss + taught

    def _taught(self, features: Tensor, teacher: Tensor) -> Tensor:
        """The distillation part, with a teacher's cosines [N, C]."""
        times = 1.0 if self.loss.input_kind == "cosine" else self.scale
        return self.loss.distillation(times * self.predicted(features), times * checks.floating("teacher", teacher))


class NCLHead(_ClassifierHead):
    """K classifiers for NCL, each on its expert's features: head(features, target) -> loss, head(features) -> the mean.

    Features [N, K d] are the experts' d features side by side; `weight` is [K C, d], the first expert's rows first.
    Prediction is the mean over the experts of their logits, or raw cosines, [N, C] (Li et al., 2022).

    Args:
        in_features, num_classes: d of one expert, and C.
        loss: `losses.NCLLoss`.
        experts: K.
        cosine: the classifiers, "cosine" (raw cosines, which a margin needs) or "linear" (with a bias).
        scale: what cosines are multiplied by for a loss that takes logits.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        loss: NCLLoss,
        *,
        experts: int = 3,
        cosine: Classifier = "cosine",
        scale: float = 16.0,
    ) -> None:
        if not isinstance(loss, NCLLoss):
            raise TypeError(f"loss must be NCLLoss, got {type(loss).__name__}")
        experts = checks.whole("experts", experts)
        super().__init__(in_features, num_classes, loss, cosine, scale, experts)
        if loss.num_classes != num_classes:
            raise ValueError(f"loss must have {num_classes} class_counts, got {loss.num_classes}")
        self.experts = experts
        self.draw()

    def each(self, features: Tensor) -> Tensor:
        """Each expert's logits or raw cosines [K, N, C] of features [N, K d]."""
        check(features, self.experts * self.in_features, self.weight, "N")
        rows = features.reshape(-1, self.in_features)
        weight = self.weight
        if self.bias is None:
            rows, weight = unit(rows), unit(weight)
        weight = weight.reshape(self.experts, self.num_classes, -1)
        found = torch.bmm(rows.reshape(-1, self.experts, self.in_features).transpose(0, 1), weight.transpose(1, 2))
        return found if self.bias is None else found + self.bias.reshape(self.experts, 1, -1)

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        """The loss of features [N, K d] and target [N]; or without a target the experts' mean [N, C]."""
        found = self.each(features)
        if target is None:
            return found.mean(0)
        scaled = self.bias is None and self.loss.input_kind == "logits"
        return self.loss(self.scale * found if scaled else found, target)

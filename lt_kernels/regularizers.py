"""Terms that are added to a loss: repulsion of class weights, LADE's regulariser, even offsets, class centres."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lt_kernels import checks, functional


class LogitWeightRepulsion(nn.Module):
    """`functional.logit_weight_repulsion` of the classifier's weights [C, d], to be added with a decaying factor.

    Args:
        threshold, project, reduction: of the function; `schedules.PolynomialDecay` gives the published factor.
    """

    def __init__(
        self, threshold: float = 0.4, project: bool = True, reduction: Literal["none", "mean", "sum"] = "sum"
    ) -> None:
        super().__init__()
        self.threshold, self.project = checks.number("threshold", threshold), checks.flag("project", project)
        self.reduction: Literal["none", "mean", "sum"] = checks.choice("reduction", reduction, ("none", "mean", "sum"))

    def forward(self, linear_weight: Tensor) -> Tensor:
        """R of class weights [C, d]."""
        return functional.logit_weight_repulsion(
            linear_weight, threshold=self.threshold, project=self.project, reduction=self.reduction
        )


class LADERegularizer(nn.Module):
    """`functional.lade_regularizer` with the class counts as a buffer (Hong et al., 2021)."""

    def __init__(
        self,
        class_counts: Any,
        lam: float = 0.1,
        *,
        importance: Literal["class", "sample"] = "class",
        classes: Literal["all", "present"] = "all",
    ) -> None:
        super().__init__()
        self.lam = checks.number("lam", lam, 0.0)
        self.importance: Literal["class", "sample"] = checks.choice("importance", importance, ("class", "sample"))
        self.classes: Literal["all", "present"] = checks.choice("classes", classes, ("all", "present"))
        self.register_buffer("class_counts", checks.counts(class_counts))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The regulariser of logits [N, C] and class indices [N]."""
        return functional.lade_regularizer(
            logits, target, self.class_counts, lam=self.lam, importance=self.importance, classes=self.classes
        )


class UniformOffset(nn.Module):
    """sum_k q_k log q_k with q = softmax(-o): least, -log C, where all offsets o [C] are the same."""

    def forward(self, offset: Tensor) -> Tensor:
        """The negative entropy of offsets [C], in nats."""
        checks.floating("offset", offset)
        if offset.ndim != 1 or offset.numel() == 0:
            raise ValueError(f"offset must be 1-D with a number for each class, got shape {list(offset.shape)}")
        log_share = torch.log_softmax(-offset, 0)
        return (log_share.exp() * log_share).sum()


class CenterLoss(nn.Module):
    """mean_i |x_i - c_{y_i}|^2, the features' distance to the centre of their class (Wen et al., 2016).

    Args:
        num_classes, in_features: C and d.
        centers: "wen" moves each centre towards the batch after the loss is computed in training,
            c_j -= rate sum_{y_i = j} (c_j - x_i) / (1 + N_j); "autograd" makes the centres a parameter.
        rate: in [0, 1].
    """

    def __init__(
        self, num_classes: int, in_features: int, centers: Literal["wen", "autograd"] = "wen", rate: float = 0.5
    ) -> None:
        super().__init__()
        shape = (checks.whole("num_classes", num_classes), checks.whole("in_features", in_features))
        self.mode = checks.choice("centers", centers, ("wen", "autograd"))
        self.rate = checks.number("rate", rate, 0.0, 1.0)
        if self.mode == "autograd":
            self.centers = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("centers", torch.zeros(shape))

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """The mean squared distance of features [N, d] with class indices [N]; differences, so nothing cancels."""
        checks.floating("features", features)
        classes, size = self.centers.shape
        if features.ndim != 2 or features.shape[1] != size:
            raise ValueError(f"features must be [N, {size}], got {list(features.shape)}")
        target = checks.indices("target", target, features.shape[:1], features)
        if target.device.type == "cpu" and target.numel():
            least, most = (int(end) for end in target.aminmax())
            if not 0 <= least <= most < classes:
                raise IndexError(f"target must be in 0 to {classes - 1}, got {least} to {most}")
        distance = features.to(self.centers.dtype) - self.centers[target]
        if self.training and self.mode == "wen":
            self._move(distance.detach(), target)
        return distance.square().sum(1).mean()

    def _move(self, distance: Tensor, target: Tensor) -> None:
        """Wen's update; into a new tensor, since the old one may be needed by the backward pass."""
        total = torch.zeros_like(self.centers).index_add(0, target, distance)
        count = torch.zeros_like(self.centers[:, 0]).index_add(0, target, torch.ones_like(distance[:, 0]))
        self.centers = self.centers + self.rate * total / (1 + count)[:, None]

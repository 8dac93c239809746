"""Metrics of lt_kernels.metrics that gather batches, as torchmetrics' classes: synced over processes, in collections.

Each takes `preds`, scores [N, C] or [N, C, d1, ...] of any floating dtype, or class indices of the target's shape; and
`target`, class indices [N] or [N, d1, ...], of which those that are `ignore_index` do not count. On the whole data they
equal the functions of their names. Errors: TypeError or ValueError naming the argument.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.integrations.libraries import library
from lt_kernels.metrics import balanced_accuracy, geometric_mean, group_accuracy
from lt_kernels.metrics.accuracy import groups_of
from lt_kernels.metrics.errors import gaps
from lt_kernels.metrics.inputs import flat, shares, sizes, within

__all__ = ["BalancedAccuracy", "ExpectedCalibrationError", "GeometricMean", "GroupAccuracy"]

Metric: Any = library("torchmetrics").Metric


class _Base(Metric):
    """A number of classes, and rows that are ignored."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, num_classes: int, ignore_index: int, options: dict[str, Any]) -> None:
        super().__init__(**options)
        self.num_classes = checks.whole("num_classes", num_classes)
        self.ignore_index = checks.ignored("ignore_index", ignore_index)
        # A collection counts once for metrics whose states are alike after a batch: not for those that ignore others.
        self.add_state("ignored", torch.tensor(self.ignore_index), dist_reduce_fx="max")

    def rows(self, preds: Any) -> Tensor:
        """Scores as rows [..., C]."""
        scores = checks.floating("preds", preds).detach()
        if scores.ndim < 2 or scores.shape[1] != self.num_classes:
            raise ValueError(f"preds must be [N, {self.num_classes}, ...], got {list(scores.shape)}")
        return scores.movedim(1, -1)

    def kept(self, preds: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Class indices, or whatever there is one of for each target, of the rows that count."""
        if not isinstance(preds, Tensor):
            raise TypeError(f"preds must be a tensor of class indices or of scores, got {type(preds).__name__}")
        target = checks.indices("target", target, preds.shape, preds)
        count = target != self.ignore_index
        return preds[count], within("target", target[count], self.num_classes)


class _PerClass(_Base):
    """How many samples each class has, and how many of them are right: int64 [C] each."""

    higher_is_better = True
    right: Tensor
    total: Tensor

    def __init__(self, num_classes: int, ignore_index: int, options: dict[str, Any]) -> None:
        super().__init__(num_classes, ignore_index, options)
        for name in ("right", "total"):
            self.add_state(name, torch.zeros(self.num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count a batch."""
        scored = isinstance(preds, Tensor) and preds.is_floating_point()
        prediction, target = flat(*self.kept(self.rows(preds).argmax(-1) if scored else preds, target))
        self.right += sizes(target[prediction == target], self.num_classes)
        self.total += sizes(target, self.num_classes)

    def per_class(self) -> Tensor:
        """The accuracy of each class so far, float64 [C], NaN without samples."""
        return self.right.double() / self.total

    def number(self, value: float) -> Tensor:
        """A number as torchmetrics returns one."""
        return torch.tensor(value, dtype=torch.float64, device=self.right.device)


class BalancedAccuracy(_PerClass):
    """The mean of the class accuracies, `metrics.balanced_accuracy`: a float64 number in [0, 1].

    Args:
        num_classes: C.
        ignore_index: a target that does not count.
        options: those of `torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, *, ignore_index: int = -100, **options: Any) -> None:
        super().__init__(num_classes, ignore_index, options)

    def compute(self) -> Tensor:
        """The value of all batches."""
        return self.number(balanced_accuracy(self.per_class()))


class GeometricMean(_PerClass):
    """exp(mean log a_c) of the class accuracies, `metrics.geometric_mean`: a float64 number in [0, 1].

    Args:
        num_classes: C.
        eps: what stands for an accuracy of 0, in (0, 1].
        ignore_index: a target that does not count.
        options: those of `torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, eps: float = 1e-3, *, ignore_index: int = -100, **options: Any) -> None:
        super().__init__(num_classes, ignore_index, options)
        self.eps = checks.number("eps", eps, high=1.0, above=0.0)

    def compute(self) -> Tensor:
        """The value of all batches."""
        return self.number(geometric_mean(self.per_class(), self.eps))


class GroupAccuracy(_PerClass):
    """The accuracies of many-, medium- and few-shot classes and of "all", `metrics.group_accuracy`: a dictionary.

    Args:
        class_counts: training samples of each class [C].
        many, few, convention, groups: as of `metrics.group_accuracy`.
        weigh: "classes", the mean of class accuracies, or "samples", the accuracy over a group's samples.
        ignore_index: a target that does not count.
        options: those of `torchmetrics.Metric`.
    """

    def __init__(
        self,
        class_counts: Any,
        many: float = 100,
        few: float = 20,
        convention: Literal["standard", "ncl", "strict"] = "standard",
        *,
        groups: Mapping[str, Any] | None = None,
        weigh: Literal["classes", "samples"] = "classes",
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        counts = checks.counts(class_counts)
        super().__init__(counts.numel(), ignore_index, options)
        self.weigh = checks.choice("weigh", weigh, ("classes", "samples"))
        self.asked: dict[str, Any] = {"many": many, "few": few, "convention": convention, "groups": groups}
        self.register_buffer("class_counts", counts, persistent=False)
        groups_of(counts, **self.asked)  # what is wrong is said now

    def compute(self) -> dict[str, Tensor]:
        """The values of all batches, by group."""
        weight = self.total if self.weigh == "samples" else None
        found = group_accuracy(self.per_class(), self.class_counts, test_counts=weight, **self.asked)
        return {name: self.number(value) for name, value in found.items()}


class ExpectedCalibrationError(_Base):
    """How far confidence is from accuracy, `metrics.expected_calibration_error`, over all and by groups of classes.

    A sample is in the group of its target. Returns a float64 number; with `class_counts` a dictionary of the groups and
    "all"; NaN for a group without samples.

    Args:
        num_classes: C.
        class_counts: training samples of each class [C], for the groups; None: no groups.
        bins: how many, of equal width.
        many, few, convention, groups: as of `metrics.group_accuracy`.
        scores: what `preds` has, "logits", whose softmax is taken, or "probabilities".
        ignore_index: a target that does not count.
        options: those of `torchmetrics.Metric`.
    """

    higher_is_better = False
    gap: Tensor
    total: Tensor

    def __init__(
        self,
        num_classes: int,
        class_counts: Any = None,
        bins: int = 15,
        many: float = 100,
        few: float = 20,
        convention: Literal["standard", "ncl", "strict"] = "standard",
        *,
        groups: Mapping[str, Any] | None = None,
        scores: Literal["logits", "probabilities"] = "logits",
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, ignore_index, options)
        self.bins = checks.whole("bins", bins)
        self.scores = checks.choice("scores", scores, ("logits", "probabilities"))
        self.grouped = class_counts is not None or groups is not None
        counts = torch.ones(self.num_classes) if class_counts is None else checks.counts(class_counts)
        if counts.numel() != self.num_classes:
            raise ValueError(f"class_counts must have {self.num_classes} entries, got {counts.numel()}")
        masks = groups_of(counts.double(), many, few, convention, groups) if self.grouped else {}
        masks["all"] = torch.ones(self.num_classes, dtype=torch.bool)
        self.names = list(masks)
        self.register_buffer("masks", torch.stack([mask.cpu() for mask in masks.values()]), persistent=False)
        self.add_state("gap", torch.zeros(len(masks), self.bins, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(len(masks), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the gaps of a batch."""
        scores = self.rows(preds)
        if self.scores == "logits":
            scores = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        best = scores.max(-1)
        confidence, target_of = self.kept(best.values, target)
        right = self.kept(best.indices, target)[0] == target_of
        shares("preds", confidence)
        for place, mask in enumerate(self.masks[:, target_of].bool()):
            self.gap[place] += gaps(confidence[mask], right[mask].double(), self.bins)
            self.total[place] += mask.sum()

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The value of all batches, or the values by group."""
        error = self.gap.abs().sum(1) / self.total
        error = torch.where(self.total > 0, error, math.nan)
        return dict(zip(self.names, error.unbind(), strict=True)) if self.grouped else error[0]

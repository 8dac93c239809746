"""The numbers a run is judged by, in percent, on the balanced test set."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.data.base import IGNORED
from lt_kernels.metrics import geometric_mean, group_accuracy, mean_iou, per_class_accuracy

GROUPS = ("many", "medium", "few", "all", "gm", "miou", "macc")


@dataclasses.dataclass(frozen=True)
class Score:
    """`groups`: percent by name (a group without classes is left out); `per_class`: accuracies [C] in percent, and
    `per_class_iou` [C] where pixels have classes.
    """

    groups: dict[str, float]
    per_class: list[float]
    per_class_iou: list[float] | None = None


def score(prediction: Tensor, data: LongTailedData) -> Score:
    """Mean class accuracy of the many- (more than 100 training samples), medium- (20 to 100) and few-shot classes and
    of all, and the geometric mean of the class accuracies (a class never right counts as 0.1 percent); where pixels
    have classes, also the mean intersection over union and the mean pixel accuracy, over the pixels with a class."""
    target, overlap = data.test[1], None
    if data.input_kind == "scene":
        overlap = mean_iou(prediction, target, data.num_classes, ignore_index=IGNORED)
        prediction, target = prediction[target != IGNORED], data.labels("test")
    per_class = per_class_accuracy(prediction, target, data.num_classes)
    counts = data.class_counts if data.group_counts is None else data.group_counts
    groups = {name: 100 * float(value) for name, value in group_accuracy(per_class, counts).items()}
    groups["gm"] = 100 * float(geometric_mean(per_class))
    if overlap is not None:
        groups.update(miou=100 * float(overlap["mean_iou"]), macc=100 * float(overlap["mean_pixel_accuracy"]))
    shown = {name: groups[name] for name in GROUPS if not math.isnan(groups.get(name, math.nan))}
    each = None if overlap is None else (100 * torch.as_tensor(overlap["per_class"])).tolist()
    return Score(shown, (100 * per_class).tolist(), each)

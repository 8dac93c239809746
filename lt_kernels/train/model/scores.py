"""The numbers a run is judged by, in percent, on the balanced test set."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.data.base import IGNORED
from lt_kernels.metrics import geometric_mean, group_accuracy, per_class_accuracy
from lt_kernels.metrics.errors import overlaps, pixel_counts
from lt_kernels.train.model.classifier import Classifier
from lt_kernels.train.model.predictions import predict, predictions
from lt_kernels.train.ranks.group import ALONE, Ranks

PIXELS = 2**20  # of the scenes that are in memory at a time
GROUPS = ("many", "medium", "few", "all", "gm", "miou", "macc")


@dataclasses.dataclass(frozen=True)
class Score:
    """`groups`: percent by name (a group without classes is left out); `per_class`: accuracies [C] in percent, and
    `per_class_iou` [C] where pixels have classes.
    """

    groups: dict[str, float]
    per_class: list[float]
    per_class_iou: list[float] | None = None


def judge(module: Classifier, data: LongTailedData, ranks: Ranks = ALONE) -> Score:
    """The score of what a classifier predicts on the test set, to which each of `ranks` adds its part; of scenes a few
    are in memory at a time.
    """
    inputs, target = data.test
    if data.input_kind != "scene":
        return score(predict(module, inputs, ranks=ranks), data)
    counts: Any = 0
    for places, found in predictions(module, inputs, scenes_at_once(data), ranks):
        rows = target.index_select(0, torch.arange(places.start, places.stop))
        counts = counts + pixel_counts(found, rows, data.num_classes, IGNORED)
    return _of_pixels(ranks.total(counts), data)


def scenes_at_once(data: LongTailedData) -> int:
    """How many scenes have about a million pixels: those of digit-scenes by the thousand, photographs one by one."""
    return max(1, PIXELS // math.prod(data.test[0].shape[2:]))


def score(prediction: Tensor, data: LongTailedData) -> Score:
    """Mean class accuracy of the many- (more than 100 training samples), medium- (20 to 100) and few-shot classes and
    of all, and the geometric mean of the class accuracies (a class never right counts as 0.1 percent); where pixels
    have classes, also the mean intersection over union and the mean pixel accuracy, over the pixels with a class."""
    if data.input_kind == "scene":
        return _of_pixels(pixel_counts(prediction, data.test[1], data.num_classes, IGNORED), data)
    per_class = per_class_accuracy(prediction, data.test[1], data.num_classes)
    return Score(_shown(_groups(per_class, data)), (100 * per_class).tolist())


def _groups(per_class: Tensor, data: LongTailedData) -> dict[str, float]:
    counts = data.class_counts if data.group_counts is None else data.group_counts
    groups = {name: 100 * float(value) for name, value in group_accuracy(per_class, counts).items()}
    return {**groups, "gm": 100 * float(geometric_mean(per_class))}


def _shown(groups: dict[str, float]) -> dict[str, float]:
    return {name: groups[name] for name in GROUPS if not math.isnan(groups.get(name, math.nan))}


def _of_pixels(counts: Any, data: LongTailedData) -> Score:
    """The score of counts of pixels, int64 [3, C]."""
    overlap, per_class = overlaps(counts), counts[2].double() / counts[1]
    groups = _groups(per_class, data)
    groups.update(miou=100 * overlap["mean_iou"], macc=100 * overlap["mean_pixel_accuracy"])
    return Score(_shown(groups), (100 * per_class).tolist(), (100 * overlap["per_class"]).tolist())

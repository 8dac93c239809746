"""The numbers a run is judged by, in percent, on the balanced test set."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from lt_kernels.data import LongTailedData
from lt_kernels.metrics import geometric_mean, group_accuracy, per_class_accuracy

GROUPS = ("many", "medium", "few", "all", "gm")


@dataclasses.dataclass(frozen=True)
class Score:
    """`groups`: percent by name (a group without classes is left out); `per_class`: accuracies [C] in percent."""

    groups: dict[str, float]
    per_class: list[float]


def score(prediction: Tensor, data: LongTailedData) -> Score:
    """Mean class accuracy of the many- (more than 100 training samples), medium- (20 to 100) and few-shot classes and
    of all, and the
    geometric mean of the class accuracies (a class never right counts as 0.1 percent)."""
    per_class = per_class_accuracy(prediction, data.test[1], data.num_classes)
    groups = {name: 100 * float(value) for name, value in group_accuracy(per_class, data.class_counts).items()}
    groups["gm"] = 100 * float(geometric_mean(per_class))
    return Score({name: groups[name] for name in GROUPS if groups[name] == groups[name]}, (100 * per_class).tolist())

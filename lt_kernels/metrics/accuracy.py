"""The share of the samples of each class, of groups of classes and of all that is predicted right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.metrics.inputs import chosen_classes, flat, sizes, within


def per_class_accuracy(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Share of each class's samples that are predicted right: float64 [C] in [0, 1], NaN for a class without samples.

    prediction, target: class indices of one shape. Errors: TypeError or ValueError naming the argument, also for a
    target outside 0..C - 1; a prediction outside is merely wrong.
    """
    num_classes = checks.whole("num_classes", num_classes)
    prediction, target = flat(prediction, target)
    right = sizes(within("target", target, num_classes)[prediction == target], num_classes)
    return right.double() / sizes(target, num_classes)


def _accuracies(per_class: Any) -> Tensor:
    value = checks.held("per_class", checks.by_class("per_class", per_class))
    if bool(((value < 0) | (value > 1)).any()):
        wrong = value[(value < 0) | (value > 1)][0]
        raise ValueError(f"per_class must be in [0, 1] or NaN, got {float(wrong)}")
    return value


def _mean(values: Tensor, weight: Tensor) -> float:
    known = ~values.isnan() & (weight > 0)
    return float((values[known] * weight[known]).sum() / weight[known].sum()) if bool(known.any()) else math.nan


def balanced_accuracy(per_class: Any) -> float:
    """Mean of the class accuracies [C]; classes without test samples (NaN) do not count."""
    value = _accuracies(per_class)
    return _mean(value, torch.ones_like(value))


def _groups_of_counts(count: Tensor, many: float, few: float, convention: str) -> dict[str, Tensor]:
    """Which classes have many, a medium number of and few training samples."""
    if not 0 <= few <= many:
        raise ValueError(f"few must be in 0..many = {many}, got {few}")
    if convention == "ncl" and few == many:
        raise ValueError(f"few must be below many = {many} in the convention 'ncl', got {few}")
    is_many, is_few = (count >= many, count <= few) if convention == "ncl" else (count > many, count < few)
    medium = ~is_many & ~is_few
    return {"many": is_many, "medium": medium & (count != few) if convention == "strict" else medium, "few": is_few}


def _groups_of_classes(groups: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Which classes are in each group that is given by class indices."""
    if not isinstance(groups, Mapping) or "all" in groups:
        raise ValueError(f"groups must map names other than 'all' to class indices, got {groups!r}")
    masks = {}
    for name, members in groups.items():
        index = chosen_classes(f"groups[{name!r}]", members, len(like)).to(like.device)
        masks[name] = torch.zeros_like(like, dtype=torch.bool).index_fill(0, index, True)
    return masks


def groups_of(
    count: Tensor, many: float, few: float, convention: str, groups: Mapping[str, Any] | None
) -> dict[str, Tensor]:
    """Which classes are in each group, bool [C]: by their training samples [C], or as `groups` has them."""
    checks.choice("convention", convention, ("standard", "ncl", "strict"))
    return _groups_of_counts(count, many, few, convention) if groups is None else _groups_of_classes(groups, count)


def group_accuracy(
    per_class: Any,
    class_counts: Any = None,
    many: float = 100,
    few: float = 20,
    convention: Literal["standard", "ncl", "strict"] = "standard",
    test_counts: Any = None,
    *,
    groups: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Mean accuracy of the classes with many, a medium number of and few training samples, and of "all".

    "standard" (Liu et al., 2019; Kang et al., 2020): many n > 100, medium 20..100, few n < 20, that is, a class on a
    threshold is medium. "ncl" (Li et al., 2022): many n >= 100, few n <= 20. "strict" (Kim, Hong and Kim): as
    "standard", but a class with exactly `few` is in no group. per_class, class_counts: [C]; with `test_counts` [C], the
    classes weigh as many as they have test samples (accuracy pooled over samples, as "ncl" reports it; on a balanced
    test set the same). `groups`, names with class indices (a range, sequence or tensor), takes the place of the counts,
    thresholds and convention (Zhong et al., 2021, have ranges of indices). A group without tested classes is NaN.
    Errors: TypeError or ValueError naming the argument.
    """
    value = _accuracies(per_class)
    unused = groups is not None and class_counts is None
    count = torch.ones_like(value) if unused else checks.counts(class_counts).to(value.device)
    weight = torch.ones_like(value) if test_counts is None else checks.by_class("test_counts", test_counts).to(value)
    for name, tensor in {"class_counts": count, "test_counts": weight}.items():
        if tensor.shape != value.shape:
            raise ValueError(f"{name} must have shape {list(value.shape)} as per_class has, got {list(tensor.shape)}")
    masks = groups_of(count, many, few, convention, groups)
    masks["all"] = torch.ones_like(value, dtype=torch.bool)
    return {name: _mean(value[group], weight[group]) for name, group in masks.items()}


def geometric_mean(per_class: Any, eps: float = 1e-3) -> float:
    """exp(mean log a_c) of the class accuracies [C], with `eps` for an accuracy of exactly 0 (Kubat and Matwin, 1997).

    Classes without test samples (NaN) do not count; without any tested class the result is NaN.
    """
    eps = checks.number("eps", eps, high=1.0, above=0.0)
    value = _accuracies(per_class)
    value = torch.where(value == 0, eps, value)
    return math.exp(_mean(value.log(), torch.ones_like(value)))

"""How good a classifier is on every class and not only on the frequent ones: numbers from class-wise accuracies."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels import checks


def per_class_accuracy(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Share of each class's samples that are predicted right: float64 [C] in [0, 1], NaN for a class without samples.

    prediction, target: class indices of one shape. Errors: TypeError or ValueError naming the argument, also for a
    target outside 0..C - 1; a prediction outside is merely wrong.
    """
    num_classes = checks.whole("num_classes", num_classes)
    target = checks.indices("target", target, target.shape, target).flatten()
    prediction = checks.indices("prediction", prediction, prediction.shape, target).flatten()
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have as many entries as target, {len(target)}, got {len(prediction)}")
    if target.numel() and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
        raise ValueError(f"target must be in 0..{num_classes - 1}, got {int(target.min())}..{int(target.max())}")
    right = torch.bincount(target[prediction == target], minlength=num_classes)
    return right.double() / torch.bincount(target, minlength=num_classes)


def _accuracies(per_class: Any) -> Tensor:
    value = torch.as_tensor(per_class).double()
    if value.ndim != 1:
        raise ValueError(f"per_class must have shape [C], got {list(value.shape)}")
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


def group_accuracy(
    per_class: Any,
    class_counts: Any,
    many: float = 100,
    few: float = 20,
    convention: Literal["standard", "ncl"] = "standard",
    test_counts: Any = None,
) -> dict[str, float]:
    """Mean accuracy of the classes with many, a medium number of and few training samples, and of "all".

    "standard" (Liu et al., 2019; Kang et al., 2020): many n > 100, medium 20..100, few n < 20, that is, a class on a
    threshold is medium. "ncl" (Li et al., 2022): many n >= 100, few n <= 20. per_class, class_counts: [C]; with
    `test_counts` [C], the classes weigh as many as they have test samples (accuracy pooled over samples, as "ncl"
    reports it; on a balanced test set the same). A group without tested classes is NaN. Errors: ValueError naming
    the argument.
    """
    checks.choice("convention", convention, ("standard", "ncl"))
    value, count = _accuracies(per_class), checks.counts(class_counts)
    if not 0 <= few <= many:
        raise ValueError(f"few must be in 0..many = {many}, got {few}")
    if convention == "ncl" and few == many:
        raise ValueError(f"few must be below many = {many} in the convention 'ncl', got {few}")
    weight = torch.ones_like(value) if test_counts is None else torch.as_tensor(test_counts).double()
    for name, tensor in {"class_counts": count, "test_counts": weight}.items():
        if tensor.shape != value.shape:
            raise ValueError(f"{name} must have shape {list(value.shape)} as per_class has, got {list(tensor.shape)}")
    is_many, is_few = (count > many, count < few) if convention == "standard" else (count >= many, count <= few)
    groups = {"many": is_many, "medium": ~is_many & ~is_few, "few": is_few, "all": torch.ones_like(is_many)}
    return {name: _mean(value[group], weight[group]) for name, group in groups.items()}


def geometric_mean(per_class: Any, eps: float = 1e-3) -> float:
    """exp(mean log a_c) of the class accuracies [C], with `eps` for an accuracy of exactly 0 (Kubat and Matwin, 1997).

    Classes without test samples (NaN) do not count; without any tested class the result is NaN.
    """
    eps = checks.number("eps", eps, high=1.0, above=0.0)
    value = _accuracies(per_class)
    value = torch.where(value == 0, eps, value)
    return math.exp(_mean(value.log(), torch.ones_like(value)))

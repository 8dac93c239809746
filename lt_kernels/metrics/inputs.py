"""What the metrics share: checked class indices, float64 matrices without a graph, and sums over a class's samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import add_rows


def within(name: str, index: Tensor, num_classes: int) -> Tensor:
    """Class indices, all of them in 0..C - 1."""
    if index.numel():
        least, most = (int(end) for end in index.aminmax())
        if least < 0 or most >= num_classes:
            raise ValueError(f"{name} must be in 0..{num_classes - 1}, got {least}..{most}")
    return index


def flat(prediction: Any, target: Any) -> tuple[Tensor, Tensor]:
    """Predicted and true class indices, each as int64 [N]."""
    target = checks.indices("target", target, getattr(target, "shape", ()), target).flatten()
    prediction = checks.indices("prediction", prediction, getattr(prediction, "shape", ()), target).flatten()
    if prediction.shape != target.shape:
        raise ValueError(f"prediction must have as many entries as target, {len(target)}, got {len(prediction)}")
    return prediction, target


def shares(name: str, value: Any) -> Tensor:
    """Floating-point numbers in [0, 1], without their graph."""
    value = checks.floating(name, value).detach()
    fits = (value >= 0) & (value <= 1)
    if not bool(fits.all()):
        raise ValueError(f"{name} must be in [0, 1], got {float(value[~fits][0])}")
    return value


def chosen_classes(name: str, members: Any, num_classes: int) -> Tensor:
    """Class indices given as a tensor, range or sequence, each once: int64 on their own device."""
    try:
        index = members if isinstance(members, Tensor) else torch.tensor(list(members))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be class indices, got {members!r}") from error
    index = index.long() if index.numel() == 0 else checks.indices(name, index, (index.numel(),), index)
    index = within(name, index, num_classes)
    if len(index.unique()) < len(index):
        raise ValueError(f"{name} must name each class once, got {index.tolist()}")
    return index


def plane(name: str, value: Any, shape: str = "[N, d]") -> Tensor:
    """A floating-point matrix without its graph."""
    checks.floating(name, value)
    if value.ndim != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} must be 2-D, {shape} with at least one column, got shape {list(value.shape)}")
    return value.detach()


def matrix(name: str, value: Any, shape: str = "[N, d]") -> Tensor:
    """A floating-point matrix as float64, without its graph."""
    return plane(name, value, shape).double()


def rows(name: str, value: Any, least: int = 1) -> Tensor:
    """A float64 matrix [C, d] with a row for each of at least so many classes."""
    value = matrix(name, value, "[C, d]")
    if value.shape[0] < least:
        raise ValueError(f"{name} must have a row for each of at least {least} classes, got shape {list(value.shape)}")
    return value


def labels(target: Any, like: Tensor, num_classes: int) -> Tensor:
    """The class index of each row of `like`, as int64 [N]."""
    return within("target", checks.indices("target", target, like.shape[:1], like), num_classes)


def columns(name: str, value: Tensor, like: str, other: Tensor) -> None:
    """A matrix that has the columns, and the device, of another."""
    if value.shape[1] != other.shape[1]:
        raise ValueError(f"{name} must have {other.shape[1]} columns as {like} has, got shape {list(value.shape)}")
    checks.same_device(name, value, other)


def sizes(target: Tensor, num_classes: int) -> Tensor:
    """How many samples each class has: int64 [C]."""
    return torch.bincount(target, minlength=num_classes)


def means(value: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The mean of value's rows [N, d] over each class: [C, d], NaN for a class without samples."""
    return sums(value, target, num_classes) / sizes(target, num_classes)[:, None]


def sums(value: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """The sum of value's rows [N, ...] over each class: [C, ...], zero for a class without samples."""
    total = value.new_zeros((num_classes, *value.shape[1:]))
    add_rows(total, target, value)
    return total

"""Class indices: checks of their range, and the entries of per-class tables that they select."""

from __future__ import annotations

import torch
from torch import Tensor


def check_target(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise for a class index outside [0, classes) that is not `ignore_index`; only on a CPU: no sync."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(wrong.any()):
        value = int(target[wrong][0])
        raise IndexError(f"target holds {value}; allowed are 0 to {classes - 1} and ignore_index={ignore_index}")


def check_places(name: str, place: Tensor, size: int, counted: Tensor | None = None) -> None:
    """Raise for a place outside of [0, size), among those that are `counted`; only on a CPU: no sync."""
    if place.device.type != "cpu" or place.numel() == 0:
        return
    wrong = (place < 0) | (place >= size)
    wrong = wrong if counted is None else wrong & counted
    if bool(wrong.any()):
        raise IndexError(f"{name} holds {int(place[wrong][0])}; allowed are 0 to {size - 1}")


def pick(table: Tensor, row: Tensor | None) -> Tensor:
    """Rows of a [1, C], [N, C] or (with `row`) [R, C] table, to broadcast against [N, C]."""
    return table if row is None or table.shape[0] == 1 else table[row.clamp(0, table.shape[0] - 1)]


def at_target(table: Tensor | None, row: Tensor | None, target: Tensor) -> Tensor | None:
    """A [1, C], [N, C] or (with `row`) [R, C] table at each row's target (0 where that is out of range): [N]."""
    if table is None:
        return None
    column = target.clamp(0, table.shape[1] - 1)
    if table.shape[0] == 1:
        value = table[0][column]
    else:
        line = torch.arange(target.shape[0], device=target.device) if row is None else row.clamp(0, table.shape[0] - 1)
        value = table[line, column]
    return torch.where(column == target, value, 0.0)


def counted(grad: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """The incoming gradient of each row's loss, [N] or one number for all; exactly 0 for an ignored row."""
    return torch.where(target == ignore_index, 0.0, grad)


def divisor_of(target: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None = None) -> Tensor:
    """What a mean divides by: the sum of the rows' weights, of class and sample, ignored rows left out."""
    counted = target != ignore_index
    if weight is None and sample_weight is None:
        return counted.sum()
    amount = 1.0 if weight is None else weight[target.clamp(0, weight.shape[0] - 1)]
    return torch.where(counted, amount if sample_weight is None else amount * sample_weight, 0.0).sum()

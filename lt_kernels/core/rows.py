"""The arguments of the row operators: what describes the logits, and the incoming gradients of their statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.targets import check_places, pick


class Inputs(NamedTuple):
    """The arguments that the forward and the backward operator share, in their order."""

    logits: Tensor  # [N, C]
    target: Tensor  # [N, K]
    scale: float
    row_scale: Tensor | None  # [N]
    column_scale: Tensor | None  # [C]
    offset: Tensor | None  # [1, C], [N, C], or [R, C] with offset_row
    offset_row: Tensor | None  # [N]
    mean_weight: Tensor | None  # as offset
    start: int  # the index of the first class here among all `classes`
    classes: int
    ignore_index: int

    def scaled(self, value: Tensor) -> Tensor:
        """A [N, C] array times the scales of rows and columns."""
        value = value if self.row_scale is None else value * self.row_scale[:, None]
        return value if self.column_scale is None else value * self.column_scale

    def values(self) -> tuple[Tensor, Tensor]:
        """(z, u): the scaled logits, and scale * z + offset; both [N, C]."""
        z = self.scaled(self.logits.to(accumulate_type(self.logits.dtype)))
        u = z if self.scale == 1.0 else self.scale * z
        return z, u if self.offset is None else u + pick(self.offset, self.offset_row)

    def check_rows(self) -> None:
        """Raise for a row of a table that is not there, of rows that are not ignored."""
        if self.offset_row is None:
            return
        counted = ~_skipped(self.target, self.ignore_index)
        for table in (self.offset, self.mean_weight):
            if table is not None and table.shape[0] > 1:
                check_places("offset_row", self.offset_row, table.shape[0], counted)

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Each target's column [N, K], whether it is one of ours [N, K], and what is hidden from the sums [N, C]."""
        width = self.logits.shape[1]
        column, inside = _local(self.target, self.start, width, self.ignore_index)
        return column, inside, _excluded(column, inside, width) | _skipped(self.target, self.ignore_index)[:, None]


class Slopes(NamedTuple):
    """The statistics' incoming gradients, and which gradients are wanted, in the order of the operator's arguments."""

    rest: Tensor  # [N], as the forward pass computed it
    top: Tensor  # [N], too
    d_rest: Tensor  # [N]
    d_own: Tensor  # [N, K]
    d_own_offset: Tensor | None  # [N, K]
    d_mean: Tensor | None  # [N]
    grad: Tensor | None  # [N], a factor for all of them
    want_offset: bool

    def with_grad(self) -> Slopes:
        """The same with the factor multiplied in."""
        if self.grad is None:
            return self
        by_slot = self.grad[:, None]
        return self._replace(
            d_rest=self.d_rest * self.grad,
            d_own=self.d_own * by_slot,
            d_own_offset=None if self.d_own_offset is None else self.d_own_offset * by_slot,
            d_mean=None if self.d_mean is None else self.d_mean * self.grad,
        )


def _local(target: Tensor, start: int, width: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Each target's column in this slab, and whether it is one: [N, K] and [N, K]."""
    local = target - start
    inside = (target != ignore_index) & (local >= 0) & (local < width)
    return local.clamp(0, width - 1), inside


def _excluded(column: Tensor, inside: Tensor, width: int) -> Tensor:
    """[N, C]: the entries that are a target of their row."""
    classes = torch.arange(width, device=column.device)
    mask = torch.zeros(column.shape[0], width, dtype=torch.bool, device=column.device)
    for slot in range(column.shape[1]):
        mask |= (classes == column[:, slot, None]) & inside[:, slot, None]
    return mask


def _skipped(target: Tensor, ignore_index: int) -> Tensor:
    """Rows whose every target is ignored: [N]."""
    if target.shape[1] == 0:
        return torch.zeros(target.shape[0], dtype=torch.bool, device=target.device)
    return (target == ignore_index).all(1)

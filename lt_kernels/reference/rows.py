"""Row statistics of given logits, and their gradient: the definition (docs/math.md, sections 1 and 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.reference.margins import finite, margins
from lt_kernels.reference.terms import LOSS_FIELDS, Terms, check_places

NONE, WEIGHTED_MEAN, SUM, MEAN = range(4)  # reductions; MEAN divides by the number of rows that count


def accumulate_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_target(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise for a class index outside [0, classes) that is not `ignore_index`; only on a CPU: no sync."""
    if target.device.type != "cpu" or target.numel() == 0:
        return
    wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if bool(wrong.any()):
        value = int(target[wrong][0])
        raise IndexError(f"target holds {value}; allowed are 0 to {classes - 1} and ignore_index={ignore_index}")


def pick(table: Tensor, row: Tensor | None) -> Tensor:
    """Rows of a [1, C], [N, C] or (with `row`) [R, C] table, to broadcast against [N, C]."""
    return table if row is None or table.shape[0] == 1 else table[row.clamp(0, table.shape[0] - 1)]


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


class Inputs(NamedTuple):
    """What the two operators of this room share; the order is that of their arguments."""

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


def rows_forward(*inputs: Any) -> tuple[Tensor, ...]:
    """Statistics of [N, C] logits without the K targets: (rest, own [N, K], rival, mean, top, shares); the others [N].

    top is the largest u; rest and mean are those of u - top, and shares is the sum of what the mean weighs with.
    """
    i = Inputs(*inputs)
    check_target(i.target, i.classes, i.ignore_index)
    i.check_rows()
    z, u = i.values()
    column, inside, hidden = i.targets()
    own = z.gather(1, column).masked_fill(~inside, -torch.inf)
    seen = u.masked_fill(hidden, -torch.inf)
    top = seen.amax(1)
    above = finite(top)[:, None]  # kept apart: at its size what is added to it is lost
    rest = (seen - above).exp().sum(1).log()
    rival = z.masked_fill(hidden | (u == -torch.inf), -torch.inf).amax(1)  # a class that is not there is no rival
    if i.mean_weight is None:
        return rest, own, rival, rest.new_zeros(0), top, rest.new_zeros(0)
    share = pick(i.mean_weight, i.offset_row).expand_as(u).masked_fill(hidden, 0.0)
    mean = torch.where(share != 0, share * (u - above), 0.0).sum(1)
    return rest, own, rival, mean, top, share.sum(1)


class Slopes(NamedTuple):
    """What comes back to the statistics, and what is wanted of it; the order is that of the operator's arguments."""

    rest: Tensor  # [N], as the forward pass found it
    top: Tensor  # [N], as well
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


def rows_backward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Gradient of the statistics with respect to the logits [N, C] and, if wanted, to the offset's own shape [R, C]."""
    i, s = Inputs(*inputs[: len(Inputs._fields)]), Slopes(*inputs[len(Inputs._fields) :]).with_grad()
    check_target(i.target, i.classes, i.ignore_index)
    i.check_rows()
    _, u = i.values()
    column, inside, hidden = i.targets()
    d_u = (s.d_rest * (-finite(s.rest)).exp())[:, None] * (u - finite(s.top)[:, None]).exp()
    if s.d_mean is not None and i.mean_weight is not None:
        d_u = d_u + s.d_mean[:, None] * pick(i.mean_weight, i.offset_row)
    d_u = d_u.masked_fill(hidden, 0.0)
    d_offset = d_u.new_zeros(0)
    if s.want_offset and i.offset is not None:
        at_own = torch.zeros_like(s.d_own) if s.d_own_offset is None else torch.where(inside, s.d_own_offset, 0.0)
        d_offset = _fold(d_u.scatter_add(1, column, at_own), i.offset, i.offset_row)
    d_z = (d_u if i.scale == 1.0 else d_u * i.scale).scatter_add(1, column, torch.where(inside, s.d_own, 0.0))
    return i.scaled(d_z).to(i.logits.dtype), d_offset


def _fold(d_u: Tensor, offset: Tensor, row: Tensor | None) -> Tensor:
    """Sum a [N, C] gradient into the offset's [R, C]."""
    if offset.shape[0] == 1:
        return d_u.sum(0, keepdim=True)
    if row is None:
        return d_u.clone()
    return torch.zeros_like(offset, dtype=d_u.dtype).index_add(0, row.clamp(0, offset.shape[0] - 1), d_u)


def rows_loss(logits: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """Statistics and loss in one call, for one target a row; the settings are the fields of `Terms` and the reduction.

    Returns the loss, [N] or reduced, and (rest, top, d_rest, d_own, d_offset, d_mean) [6, N] with the slopes of that.
    """
    t, reduction, tables = Terms(*settings[:-1]), settings[-1], settings[:3]
    rest, own, rival, mean, top, _ = rows_forward(
        logits, target[:, None], t.scale, None, None, *tables, 0, logits.shape[1], t.ignore_index
    )
    share, own_offset = at_target(t.mean_weight, t.offset_row, target), at_target(t.offset, t.offset_row, target)
    total = None if t.total is None else pick(t.total[:, None], t.offset_row).expand(target.shape[0], 1)[:, 0]
    loss, slopes = margins(rest, top, own[:, 0], rival, target, own_offset, None, mean, total, share, *t[LOSS_FIELDS])
    slopes = torch.cat((slopes[:3], slopes[4:]))
    if reduction in (WEIGHTED_MEAN, MEAN):
        divisor = divisor_of(target, t.weight if reduction == WEIGHTED_MEAN else None, t.ignore_index).to(loss.dtype)
        loss, slopes = loss.sum() / divisor, torch.where(target == t.ignore_index, 0.0, slopes / divisor)
    elif reduction == SUM:
        loss = loss.sum()
    return loss, torch.cat((rest[None], top[None], slopes))


def rows_loss_gradient(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`rows_loss`, and the gradient of its sum (or mean) for the logits."""
    loss, saved = rows_loss(*inputs)
    logits, target, offset, row, mean_weight = inputs[:5]
    tables, one = (offset, row, mean_weight), saved.new_ones(())
    return loss, saved, rows_loss_backward(logits, target, saved, one, *tables, inputs[9], inputs[16], False)[0]


def counted(grad: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """What comes back to each row's loss, [N] or one number for all; 0, even of infinity, for a row that is ignored."""
    return torch.where(target == ignore_index, 0.0, grad)


def divisor_of(target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What a mean divides by: the sum of the rows' weights, ignored rows left out."""
    counted = target != ignore_index
    if weight is None:
        return counted.sum()
    return torch.where(counted, weight[target.clamp(0, weight.shape[0] - 1)], 0.0).sum()


def rows_loss_backward(
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    grad: Tensor,
    offset: Tensor | None,
    offset_row: Tensor | None,
    mean_weight: Tensor | None,
    scale: float,
    ignore_index: int,
    want_offset: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of `rows_loss` for the logits [N, C] and, if wanted, the offset's own shape [R, C]."""
    tables, classes = (offset, offset_row, mean_weight), logits.shape[1]
    inputs = Inputs(logits, target[:, None], scale, None, None, *tables, 0, classes, ignore_index)
    rest, top, d_rest, d_own, d_offset, d_mean = saved
    mean = None if mean_weight is None else d_mean
    factor = grad.expand(target.shape[0])
    return rows_backward(*inputs, rest, top, d_rest, d_own[:, None], d_offset[:, None], mean, factor, want_offset)


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

"""Row statistics of given logits, and their gradient: the definition (docs/math.md, sections 1 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_kernels.reference.margins import margins

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


def _values(
    logits: Tensor,
    scale: float,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    offset: Tensor | None,
    row: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(z, u): the logits with the scales of rows and columns, and scale * z + offset; both [N, C]."""
    z = logits.to(accumulate_type(logits.dtype))
    if row_scale is not None:
        z = z * row_scale[:, None]
    if column_scale is not None:
        z = z * column_scale
    u = z if scale == 1.0 else scale * z
    return z, u if offset is None else u + pick(offset, row)


def rows_forward(
    logits: Tensor,
    target: Tensor,
    scale: float,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    offset: Tensor | None,
    offset_row: Tensor | None,
    mean_weight: Tensor | None,
    start: int,
    classes: int,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of [N, C] logits: rest [N], own [N, K], rival [N] and the weighted mean [N], without the K targets."""
    check_target(target, classes, ignore_index)
    z, u = _values(logits, scale, row_scale, column_scale, offset, offset_row)
    width = logits.shape[1]
    column, inside = _local(target, start, width, ignore_index)
    excluded = _excluded(column, inside, width)
    own = z.gather(1, column).masked_fill(~inside, -torch.inf)
    skipped = _skipped(target, ignore_index)
    hidden = excluded | skipped[:, None]
    rest = u.masked_fill(hidden, -torch.inf).logsumexp(1)
    rival = z.masked_fill(hidden | (u == -torch.inf), -torch.inf).amax(1)  # a class that is not there is no rival
    if mean_weight is None:
        return rest, own, rival, rest.new_zeros(0)
    share = pick(mean_weight, offset_row).expand_as(u)
    mean = torch.where((share != 0) & ~hidden, share * u, 0.0).sum(1)
    return rest, own, rival, mean


def rows_backward(
    logits: Tensor,
    target: Tensor,
    scale: float,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    offset: Tensor | None,
    offset_row: Tensor | None,
    mean_weight: Tensor | None,
    start: int,
    classes: int,
    ignore_index: int,
    rest: Tensor,
    d_rest: Tensor,
    d_own: Tensor,
    d_own_offset: Tensor | None,
    d_mean: Tensor | None,
    grad: Tensor | None,
    want_offset: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient of the statistics with respect to the logits [N, C] and, if wanted, to the offset's own shape [R, C]."""
    _, u = _values(logits, scale, row_scale, column_scale, offset, offset_row)
    column, inside = _local(target, start, logits.shape[1], ignore_index)
    if grad is not None:
        d_rest, d_own = d_rest * grad, d_own * grad[:, None]
        d_mean = None if d_mean is None else d_mean * grad
        d_own_offset = None if d_own_offset is None else d_own_offset * grad[:, None]
    chance = (u - torch.where(rest == -torch.inf, 0.0, rest)[:, None]).exp()
    d_u = d_rest[:, None] * chance
    if d_mean is not None and mean_weight is not None:
        d_u = d_u + d_mean[:, None] * pick(mean_weight, offset_row)
    hidden = _excluded(column, inside, logits.shape[1]) | _skipped(target, ignore_index)[:, None]
    d_u = d_u.masked_fill(hidden, 0.0)
    d_offset = d_u.new_zeros(0)
    if want_offset and offset is not None:
        at_target = 0.0 if d_own_offset is None else torch.where(inside, d_own_offset, 0.0)
        d_offset = _fold(d_u.scatter_add(1, column, at_target + torch.zeros_like(d_own)), offset, offset_row)
    d_z = (d_u if scale == 1.0 else d_u * scale).scatter_add(1, column, torch.where(inside, d_own, 0.0))
    if row_scale is not None:
        d_z = d_z * row_scale[:, None]
    if column_scale is not None:
        d_z = d_z * column_scale
    return d_z.to(logits.dtype), d_offset


def _fold(d_u: Tensor, offset: Tensor, row: Tensor | None) -> Tensor:
    """Sum a [N, C] gradient into the offset's [R, C]."""
    if offset.shape[0] == 1:
        return d_u.sum(0, keepdim=True)
    if row is None:
        return d_u.clone()
    return torch.zeros_like(offset, dtype=d_u.dtype).index_add(0, row.clamp(0, offset.shape[0] - 1), d_u)


def rows_loss(
    logits: Tensor,
    target: Tensor,
    offset: Tensor | None,
    offset_row: Tensor | None,
    mean_weight: Tensor | None,
    total: Tensor | None,
    weight: Tensor | None,
    class_margin: Tensor | None,
    class_smoothing: Tensor | None,
    scale: float,
    kind: int,
    margin: float,
    instance: float,
    guard: bool,
    gamma: float,
    smoothing: float,
    ignore_index: int,
    reduction: int,
) -> tuple[Tensor, Tensor]:
    """Statistics and loss in one call, for one target a row.

    Returns the loss, [N] or reduced, and (rest, d_rest, d_own, d_offset, d_mean) [5, N] with the slopes of that.
    """
    rest, own, rival, mean = rows_forward(
        logits, target[:, None], scale, None, None, offset, offset_row, mean_weight, 0, logits.shape[1], ignore_index
    )
    share = at_target(mean_weight, offset_row, target)
    row_total = None if total is None else pick(total[:, None], offset_row).expand(target.shape[0], 1)[:, 0]
    loss, slopes = margins(
        rest,
        own[:, 0],
        rival,
        target,
        at_target(offset, offset_row, target),
        None,
        mean,
        row_total,
        share,
        weight,
        class_margin,
        class_smoothing,
        scale,
        kind,
        margin,
        instance,
        guard,
        gamma,
        smoothing,
        ignore_index,
    )
    slopes = torch.cat((slopes[:3], slopes[4:]))
    if reduction in (WEIGHTED_MEAN, MEAN):
        divisor = divisor_of(target, weight if reduction == WEIGHTED_MEAN else None, ignore_index).to(loss.dtype)
        loss, slopes = loss.sum() / divisor, torch.where(target == ignore_index, 0.0, slopes / divisor)
    elif reduction == SUM:
        loss = loss.sum()
    return loss, torch.cat((rest[None], slopes))


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
    rest, d_rest, d_own, d_offset, d_mean = saved
    return rows_backward(
        logits,
        target[:, None],
        scale,
        None,
        None,
        offset,
        offset_row,
        mean_weight,
        0,
        logits.shape[1],
        ignore_index,
        rest,
        d_rest,
        d_own[:, None],
        d_offset[:, None],
        None if mean_weight is None else d_mean,
        grad.expand(target.shape[0]),
        want_offset,
    )


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

"""Row statistics of given logits, and their gradient: the definition (docs/math.md, sections 1 and 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core.numbers import finite
from lt_kernels.core.rows import Inputs, Slopes
from lt_kernels.core.targets import at_target, check_target, divisor_of, pick
from lt_kernels.core.terms import LOSS_FIELDS, Reduce, Terms
from lt_kernels.reference.margins import margins


def rows_forward(*inputs: Any) -> tuple[Tensor, ...]:
    """Statistics of [N, C] logits without the K targets: (rest, own [N, K], rival, mean, top, shares); the others [N].

    top is the maximum of u = scale * z + offset, rest the log-sum-exp of u - top, own the target logits z, rival the
    largest other z, mean the sum of mean_weight * (u - top), and shares that of mean_weight.
    """
    i = Inputs(*inputs)
    check_target(i.target, i.classes, i.ignore_index)
    i.check_rows()
    z, u = i.values()
    column, inside, hidden = i.targets()
    own = z.gather(1, column).masked_fill(~inside, -torch.inf)
    seen = u.masked_fill(hidden, -torch.inf)
    top = seen.amax(1)
    above = finite(top)[:, None]  # returned separately: in a sum with it, small digits of rest would be lost
    rest = (seen - above).exp().sum(1).log()
    rival = z.masked_fill(hidden | (u == -torch.inf), -torch.inf).amax(1)  # an absent class is no rival
    if i.mean_weight is None:
        return rest, own, rival, rest.new_zeros(0), top, rest.new_zeros(0)
    share = pick(i.mean_weight, i.offset_row).expand_as(u).masked_fill(hidden, 0.0)
    mean = torch.where(share != 0, share * (u - above), 0.0).sum(1)
    return rest, own, rival, mean, top, share.sum(1)


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
    """Statistics and loss, for one target per row; the settings are the fields of `Terms` and the reduction.

    Returns the loss, [N] or reduced, and (rest, top, d_rest, d_own, d_offset, d_mean) [6, N] with the slopes of that.
    """
    return _loss(logits, target, (None, None), settings)


def _loss(
    logits: Tensor, target: Tensor, scales: tuple[Tensor | None, ...], settings: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """`rows_loss` of logits whose rows and columns are scaled."""
    t, reduction, tables = Terms(*settings[:-1]), settings[-1], settings[:3]
    rest, own, rival, mean, top, _ = rows_forward(
        logits, target[:, None], t.scale, *scales, *tables, 0, logits.shape[1], t.ignore_index
    )
    share, own_offset = at_target(t.mean_weight, t.offset_row, target), at_target(t.offset, t.offset_row, target)
    total = None if t.total is None else pick(t.total[:, None], t.offset_row).expand(target.shape[0], 1)[:, 0]
    loss, slopes = margins(rest, top, own[:, 0], rival, target, own_offset, None, mean, total, share, *t[LOSS_FIELDS])
    slopes = torch.cat((slopes[:3], slopes[4:]))
    if reduction in (Reduce.WEIGHTED_MEAN, Reduce.MEAN):
        weight = t.weight if reduction == Reduce.WEIGHTED_MEAN else None
        divisor = divisor_of(target, weight, t.ignore_index, t.sample_weight).to(loss.dtype)
        loss, slopes = loss.sum() / divisor, torch.where(target == t.ignore_index, 0.0, slopes / divisor)
    elif reduction == Reduce.SUM:
        loss = loss.sum()
    return loss, torch.cat((rest[None], top[None], slopes))


def rows_loss_gradient(
    logits: Tensor, target: Tensor, row_scale: Tensor | None, column_scale: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor]:
    """The loss of logits that are multiplied by scales of rows and columns, and the gradient of its sum or mean."""
    loss, saved = _loss(logits, target, (row_scale, column_scale), settings)
    terms, one = Terms(*settings[:-1]), saved.new_ones(())
    return loss, _loss_backward(logits, target, saved, one, (row_scale, column_scale), terms, False)[0]


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
    terms = Terms(offset, offset_row, mean_weight, scale=scale, ignore_index=ignore_index)
    return _loss_backward(logits, target, saved, grad, (None, None), terms, want_offset)


def _loss_backward(
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    grad: Tensor,
    scales: tuple[Tensor | None, ...],
    terms: Terms,
    want_offset: bool,
) -> tuple[Tensor, Tensor]:
    """`rows_loss_backward` of logits whose rows and columns are scaled."""
    t, (row_scale, column_scale) = terms, scales
    tables, places = (t.offset, t.offset_row, t.mean_weight), (0, logits.shape[1], t.ignore_index)
    inputs = Inputs(logits, target[:, None], t.scale, row_scale, column_scale, *tables, *places)
    rest, top, d_rest, d_own, d_offset, d_mean = saved
    mean = None if t.mean_weight is None else d_mean
    factor = grad.expand(target.shape[0])
    return rows_backward(*inputs, rest, top, d_rest, d_own[:, None], d_offset[:, None], mean, factor, want_offset)

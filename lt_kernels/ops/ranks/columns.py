"""LADE's regulariser of a batch that is dealt over ranks: the sums over its rows are over the rows of all ranks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.ops.columns import NOTHING, backward_op, checked, forward_op, lade_of_counts
from lt_kernels.ops.ranks import batches, exchange, placements
from lt_kernels.reference.columns import check_target


class Settings(NamedTuple):
    """The settings of `functional.lade_regularizer`, and the prior [C] in float64."""

    prior: Tensor
    lam: float
    importance: str
    classes: str

    def row_offset(self, target: Tensor, left: Tensor) -> Tensor:
        """log v of each row [N], so low that nothing remains for those that are not `left`."""
        uniform = math.log(1 / len(self.prior) + 1e-9)
        own = (
            (uniform - torch.log(self.prior + 1e-9))[target] if self.importance == "sample" else self.prior.new_zeros(1)
        )
        return torch.where(left, own, NOTHING)

    def total(self, lse: Tensor, count: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sum, and its derivatives by the log-sum-exp of each column [C] and by the target logits of a class [C].

        Of the log-sum-exps, the numbers of rows of each class, and the sums of their target logits, all of all ranks.
        """
        prior, rows = self.prior, count.sum()
        uniform = math.log(1 / len(prior) + 1e-9)
        shift = uniform - torch.log(prior + 1e-9) if self.importance == "class" else torch.zeros_like(prior)
        mean = torch.where(rows > 0, lse + shift - rows.clamp_min(1).log(), 0.0)
        counted = (prior if self.classes == "all" else prior * (count > 0)) * (rows > 0)
        share = prior / (-1e-8 - count)
        value = (counted * (mean + self.lam * mean.square())).sum() + (share * own).sum()
        return value, counted * (1 + 2 * self.lam * mean), share


class LadeOfRanks(torch.autograd.Function):
    """The regulariser of the rows of all ranks, the same on each; its incoming gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, left: Tensor, settings: Settings, group: Any) -> Tensor:
        kind, classes = accumulate_type(logits.dtype), logits.shape[1]
        row_offset = settings.row_offset(target, left).to(kind)
        lse, own = logits.new_full((classes,), -torch.inf, dtype=kind), logits.new_zeros(len(logits), dtype=kind)
        if len(logits):
            lse, own = forward_op(logits, target, row_offset)
        lse = torch.where(left.any(), lse.double(), -torch.inf)
        count, sums = (
            lse.new_zeros(classes).index_add(0, target, one) for one in (left.double(), (own * left).double())
        )
        said = [
            ("logits", (logits.dtype, classes)),
            *zip(("class_counts", *Settings._fields[1:]), settings, strict=True),
        ]
        said.append(("requires_grad of logits", ctx.needs_input_grad[0]))
        found = batches.each(group, torch.cat((lse, count, sums)), said).view(-1, 3, classes).unbind(1)
        lse, (count, sums) = found[0].logsumexp(0), (one.sum(0) for one in found[1:])
        value, d_lse, share = settings.total(lse, count, sums)
        ctx.group, ctx.call = group, exchange.talk_of(group).met
        ctx.save_for_backward(logits, target, row_offset, lse.to(kind), d_lse, share[target] * left)
        return value.to(kind)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, row_offset, lse, *slopes = ctx.saved_tensors
        exchange.meet(ctx.group, "backward", grad.device, call=ctx.call)
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        if not len(logits):
            return torch.zeros_like(logits), *(None,) * 4
        d_lse, d_own = ((total * one).to(lse.dtype) for one in slopes)
        return backward_op(logits, target, row_offset, lse, d_lse, d_own), *(None,) * 4


def lade_of_ranks(group: Any, logits: Tensor, *others: Any) -> Tensor:
    """`ops.columns.lade_of_counts`; with a group of the rows of all its ranks, of which this one has N, at least 0."""
    if group is None:
        return lade_of_counts(logits, *others)
    return placements.together(group, logits, _of_ranks, group, logits, *others)


def _of_ranks(
    group: Any,
    logits: Tensor,
    target: Tensor,
    count: Tensor,
    lam: float,
    importance: str,
    classes: str,
    factor: float = 1.0,
    ignore_index: int | None = None,
) -> Tensor:
    target = checked(logits, target, count, 0)
    left = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    logits, target = logits.masked_fill(~left[:, None], 0.0), target.masked_fill(~left, 0)
    if checks.readable(target):
        check_target(target, logits.shape[1])
    settings = Settings((count.double() / count.double().sum()).to(logits.device), float(lam), importance, classes)
    value = LadeOfRanks.apply(logits, target, left, settings, group)
    return factor * (value if autocast(logits) else value.to(logits.dtype))

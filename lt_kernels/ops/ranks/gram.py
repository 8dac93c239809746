"""Logit-weight repulsion of class weights whose rows are sharded: each rank its rows against all, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.core.numbers import as_they_are, inverse_norm
from lt_kernels.ops import directions, gram
from lt_kernels.ops.gram import value_of
from lt_kernels.ops.ranks import batches, exchange, placements, shards
from lt_kernels.reference import gram as reference

_SLAB = 2**22  # cosines held at a time
_GATHERED = 2**22  # numbers of class weights gathered at a time


class Problem(NamedTuple):
    """This rank's classes, the threshold, and the form."""

    shard: shards.Shard
    threshold: float
    project: bool
    raw: bool

    def blocks(self, weight: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The first class and the rows of each rank in turn; the next rank's are under way while one's are used."""
        group, rank = self.shard.group, dist.get_rank(self.shard.group)
        own, waiting, start = weight.detach().contiguous(), [], 0
        for source, size in enumerate(self.shard.sizes):
            block = own if source == rank else own.new_empty((size, own.shape[1]))
            sender = dist.get_global_rank(group, source)
            waiting.append((start, block, dist.broadcast(block, sender, group=group, async_op=True) if size else None))
            start += size
            if source:
                yield self._arrived(*waiting.pop(0))
        yield self._arrived(*waiting.pop(0))

    @staticmethod
    def _arrived(start: int, block: Tensor, work: Any) -> tuple[int, Tensor]:
        if work is not None:
            work.wait()
        return start, block

    def slabs(self, weight: Tensor, scale: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Rows of this rank, classes of all, their cosines (or products), which are active, and the classes' rows.

        The rows are unit rows in the form with cosines.
        """
        own = self.rows(weight, scale)
        for start, block in self.blocks(weight):
            inverse = inverse_norm(block)
            rows = self.rows(block, inverse)
            height = max(1, _SLAB // max(1, len(block)))
            for first in range(0, len(own), height):
                part = slice(first, min(first + height, len(own)))
                value = own[part] @ rows.T
                cosine = value * scale[part, None] * inverse if self.raw else value
                active = cosine > self.threshold
                if start == self.shard.start and len(block):  # a class is no pair with itself
                    active[:, part].diagonal().fill_(False)
                yield part, slice(start, start + len(block)), value, active, rows

    def rows(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Class weights in the dtype of the arithmetic; unit rows in the form with cosines."""
        wide = weight.detach().to(scale.dtype)
        return wide if self.raw else wide * scale[:, None]

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(Z [c], or R in the raw form, of this rank's classes; 1 / |w| [c])."""
        scale = inverse_norm(weight)
        total, top = torch.zeros_like(scale, dtype=torch.float64), reference.squares(weight)
        if self.threshold < 1:
            for rows, _, value, active, _ in self.slabs(weight, scale):
                listed = _listed(active, weight)
                if listed is not None and (not self.raw or not len(listed[0])):
                    total[rows].index_add_(0, listed[0], value[listed].double().expm1())
                    continue
                if not self.raw:
                    total[rows] += torch.where(active, value.expm1(), 0.0).sum(1, dtype=torch.float64)
                    continue
                before = top[rows]
                now = before if not value.shape[1] else torch.where(active, value, -torch.inf).amax(1).maximum(before)
                part = torch.where(active, (value - now[:, None]).exp() - (-now).exp()[:, None], 0.0)
                total[rows] = total[rows] * (before - now).double().exp() + part.sum(1, dtype=torch.float64)
                top[rows] = now
        classes = self.shard.classes
        if self.raw:
            return reference.finish_raw(total, top, reference.squares(weight), scale, self.threshold, classes), scale
        return reference.finish(total, scale, self.threshold, classes), scale

    def backward(self, weight: Tensor, scale: Tensor, total: Tensor, grad: Tensor, call: int) -> Tensor:
        """The gradient of the sum over all classes of grad_i R_i for this rank's rows."""
        own, slope, shift = reference.slopes(weight, total, grad, self.threshold, self.project, self.raw)
        if self.threshold >= 1:
            return torch.zeros_like(weight)
        numbers = torch.stack((slope, slope if shift is None else shift), 1)
        dealt = batches.Parts(self.shard.group, self.shard.sizes, dist.get_rank(self.shard.group), call)
        slopes, shifts = dealt.rows(numbers).unbind(1)
        line = self.rows(weight, scale)
        pushed, along = torch.zeros_like(line), torch.zeros_like(own) if self.project else own
        for rows, classes, value, active, others in self.slabs(weight, scale):
            listed = _listed(active, weight)
            if listed is not None:
                here, there = listed
                both = None if shift is None else (shift[rows][here], shifts[classes][there])
                push = reference.coefficients(value[listed], slope[rows][here], slopes[classes][there], both)
                pushed[rows].index_add_(0, here, push[:, None] * others[there])
                continue
            both = None if shift is None else (shift[rows, None], shifts[classes])
            push = torch.where(active, reference.coefficients(value, slope[rows, None], slopes[classes], both), 0.0)
            pushed[rows] += push @ others
        if self.project:
            along = -(pushed * line).sum(1)
        return ((1.0 if self.raw else scale[:, None]) * (pushed + along[:, None] * line)).to(weight.dtype)


def _listed(active: Tensor, weight: Tensor) -> tuple[Tensor, Tensor] | None:
    """The places of the active pairs, if they are few; None on a GPU, which would be waited for."""
    if active.device.type != "cpu" or int(active.sum()) * weight.shape[1] > _GATHERED:
        return None
    return active.nonzero(as_tuple=True)


class RepulsionOfRanks(torch.autograd.Function):
    """R [c] of this rank's class weights [c, d], with their gradient of what every rank makes of its R."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, problem: Problem) -> Tensor:
        with as_they_are(weight.device):
            total, scale = problem.forward(weight)
        ctx.problem, ctx.call = problem, exchange.talk_of(problem.shard.group).met
        ctx.save_for_backward(weight, total, scale)
        return value_of(total, problem.threshold, problem.raw)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, total, scale = ctx.saved_tensors
        exchange.meet(ctx.problem.shard.group, "backward", grad.device, call=ctx.call)
        with as_they_are(weight.device):
            return ctx.problem.backward(weight, scale, total, grad, ctx.call), None


class Sum(torch.autograd.Function):
    """The sum of R [c] over the classes of all ranks, the same on each; the loss is one, so the gradient is its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.size = len(value)
        return exchange.gather(value.sum().reshape(1), group).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad.expand(ctx.size), None


def repulsion(group: Any, weight: Tensor, *settings: Any) -> Tensor:
    """R of class weights sharded over the ranks of a group, or as a DTensor says: [c], or reduced over all classes.

    The settings are the threshold, the form and the reduction.
    """
    if not placements.is_dtensor(weight):
        return placements.together(group, weight, _repulsion, group, weight, *settings)
    if group is not None:
        raise ValueError(f"group must be None with a DTensor, whose mesh says the group, got {group!r}")
    dim, own = placements.sharded_over("linear_weight", weight), weight.to_local()
    if dim is None:
        return reduced(gram.repulsion(own, *gram.checked(own, *settings)), settings[-1])
    shard = shards.of_chunks(weight, dim)
    return placements.together(shard.group, own, _repulsion, shard, own, *settings)


def _repulsion(where: Any, weight: Tensor, threshold: float, project: Any, reduction: str) -> Tensor:
    threshold, project = gram.checked(weight, threshold, project, reduction, 0)
    shard = where if isinstance(where, shards.Shard) else shards.shard_of(weight, where)
    raw = project == "raw"
    weight = weight if raw else directions.in_range(weight)
    learned = torch.is_grad_enabled() and weight.requires_grad
    named = (("threshold", threshold), ("project", project), ("reduction", reduction))
    said = [exchange.check(*one) for one in (*named, ("requires_grad of linear_weight", learned))]
    kind = exchange.check("linear_weight", (weight.dtype, weight.shape[1], shard.sizes))
    rows = exchange.first_rows(weight)
    exchange.meet(shard.group, "repulsion", weight.device, [kind, *said], size=shard.size, rows=rows)
    value = RepulsionOfRanks.apply(weight, Problem(shard, threshold, project is True, raw))
    if reduction == "none":
        return value
    total = Sum.apply(value, shard.group)
    return total if reduction == "sum" else total / shard.classes


def reduced(value: Tensor, reduction: str) -> Tensor:
    """R [C] reduced."""
    return value if reduction == "none" else value.sum() if reduction == "sum" else value.mean()

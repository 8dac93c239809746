"""Losses of features whose logits exceed the memory budget, by groups of rows that fit (docs/kernels/memory.md).

The logits of a group are computed once, in slabs of classes that stay in memory until the group's gradients have been
added. So there are three products, where slabs that are computed again in the backward pass need four. This requires
that loss and gradients are computed in one loop over the groups, in the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import private
from lt_kernels.core.accuracy import Accuracy
from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.core.targets import counted
from lt_kernels.core.terms import Reduce, Terms
from lt_kernels.ops import budget, calling, margins, slabs
from lt_kernels.ops.backends import gpu
from lt_kernels.ops.calling import first_order
from lt_kernels.ops.linear import problem
from lt_kernels.ops.rows import own_offsets
from lt_kernels.reference import linear as reference


def serve(input: Tensor, weight: Tensor, terms: Terms, reduction: str, softcap: float = 0.0) -> bool:
    """Whether groups are used for the loss of features [N, d] and class weights [C, d], in an eager call."""
    return (
        reduction != "none"
        and not (softcap and calling.on_gpu(input))  # whose gradient overwrites the logits
        and (input.dtype == weight.dtype or (calling.on_gpu(input) and weight.dtype == torch.float32))
        and torch.is_grad_enabled()
        and (input.requires_grad or weight.requires_grad)
        and not (terms.offset is not None and terms.offset.requires_grad)
        and not calling.transient()
        and calling.forced() in ("", "triton")
        and budget.group_rows(input, weight.shape[0]) > 0
    )


class _Walk(slabs.Backward):
    """Both passes of one problem, group by group."""

    def __init__(self, problem: Problem, terms: Terms, wants: tuple[bool, ...], divisor: Tensor | None) -> None:
        p, numbers = problem, problem.input.new_empty
        with reference.as_they_are(p.input.device):
            row_scale = reference.inverse_norm(p.input) if p.normalize == Normalize.BOTH else numbers(0)
            column_scale = reference.inverse_norm(p.weight) if p.normalize >= Normalize.CLASSES else numbers(0)
        rows = p.input.shape[0]
        mean = None if p.mean_weight is None else numbers(rows)
        slopes = numbers(rows), numbers(rows, 1), None, mean
        saved = numbers(0), row_scale, column_scale, numbers(rows), numbers(rows)
        super().__init__(problem, saved, slopes, (*wants, False))
        self.terms, self.divisor = terms, divisor
        self.accuracy: Accuracy | None = None
        self.made: dict[int, Tensor] = {}  # the logits of the group, by the first class of their slab

    def logits(self, rows: slice, classes: slice) -> Tensor:
        """The logits of a block, which `product` has kept."""
        return self.made[classes.start]

    def product(self, part: Problem, rows: slice, classes: slice) -> Tensor:
        """Compute and keep the logits of a block of the group."""
        self.made.pop(classes.start, None)  # frees the memory, which the next one reuses
        self.made[classes.start] = slabs.logits(part, rows, classes)
        return self.made[classes.start]

    def losses(self, rows: slice) -> Tensor:
        """The losses of the group; stores the statistics and the derivatives for an incoming gradient of 1."""
        p, t = self.problem, self.terms
        offset, offset_row, mean_weight = p.tables(rows, slice(None))
        tables = {"offset": offset, "offset_row": offset_row, "mean_weight": mean_weight}
        total = None if t.total is None else p.cut(t.total[:, None], rows, slice(None))[:, 0]  # type: ignore[index]
        part = p._replace(input=p.input[rows], target=p.target[rows], **tables)

        def norm(values: Tensor) -> Any:
            return self.column_scale if values is p.weight else self.row_scale[rows]  # type: ignore[index]

        rest, own, rival, mean, top, *_ = reference.by_slabs(part, False, norm, self.product)
        if self.accuracy is not None:
            self.accuracy.compare(own[:, 0], rival, part.target[:, 0] != p.ignore_index)
        shift = own_offsets(offset, offset_row, part.target, own)[:, 0]
        by_row = None if t.sample_weight is None else t.sample_weight[rows]
        t = t._replace(total=total, sample_weight=by_row, **tables)
        losses, slopes = margins.loss(rest, top, own[:, 0], rival, part.target[:, 0], shift, mean, t)
        slopes = slopes if self.divisor is None else counted(slopes / self.divisor, part.target[:, 0], t.ignore_index)
        d_rest, d_own, _, d_mean = self.slopes
        self.rest[rows], self.top[rows] = rest, top
        d_rest[rows], d_own[rows, 0] = slopes[0], slopes[1]  # type: ignore[index]
        if d_mean is not None:
            d_mean[rows] = slopes[4]
        return losses

    def walk(self) -> Tensor:
        """The losses [N]; the gradients are complete afterwards."""
        p, found = self.problem, []
        with reference.as_they_are(p.input.device):
            for rows in p.row_slabs():
                found.append(self.losses(rows))
                for classes in p.class_slabs():
                    self.weight = p.weight[classes]
                    self.block(rows, classes, self.d_weight[classes] if self.want_weight else self.d_weight)
            self.made.clear()
            for classes in p.class_slabs():
                final = self.d_weight[classes] if self.want_weight else self.d_weight
                self.finish_weight(final, classes, final)
        return torch.cat(found)


class _WalkOnGpu(reference.Backward):
    """Both passes of one problem, group by group, by the GPU's kernels; their sums are divided at the end.

    A group's gradient is written over its logits, so these are held once, in the dtype of the features.
    """

    def __init__(self, problem: Problem, terms: Terms, wants: tuple[bool, ...], divisor: Tensor | None) -> None:
        p, nothing = problem, problem.input.new_empty(0)
        scales = gpu.inverse_norms(p.input, p.weight) if p.normalize == Normalize.BOTH else (nothing, nothing)
        super().__init__(problem, (nothing, *scales, nothing, nothing), (nothing,) * 4, (*wants, False))
        self.terms, ignored = terms, p.target == p.ignore_index
        self.unit = None if divisor is None else torch.where(ignored.all(), 1.0, divisor.to(self.sums))
        self.d_input = self.d_input.new_empty(self.d_input.shape, dtype=self.sums)

    def walk(self) -> Tensor:
        """The losses of the groups; the gradients are complete afterwards."""
        p = self.problem
        with reference.as_they_are(p.input.device):
            self.weight = self.operand(p.weight)
            total = self.d_weight if p.weight.dtype == self.sums else torch.empty_like(self.d_weight, dtype=self.sums)
            found = [self.group(rows, total) for rows in p.row_slabs()]
            self.finish_weight(total, slice(None), self.d_weight)
        return torch.stack(found)

    def group(self, rows: slice, d_weight: Tensor) -> Tensor:
        """The loss of a group; adds its gradients."""
        p, t = self.problem, self.terms
        offset, offset_row, mean_weight = p.tables(rows, slice(None))
        total = None if t.total is None else p.cut(t.total[:, None], rows, slice(None))[:, 0]  # type: ignore[index]
        part = t._replace(offset=offset, offset_row=offset_row, mean_weight=mean_weight, total=total)
        part = part if t.sample_weight is None else part._replace(sample_weight=t.sample_weight[rows])
        by_row = None if self.row_scale is None else self.row_scale[rows]
        logits = gpu.product(p.input[rows], self.weight.t(), p.input.dtype, padded=True)
        logits = logits if p.bias is None else logits.add_(p.bias)
        loss, slope = gpu.gradient_into(
            logits, logits, p.target[rows, 0], (by_row, self.column_scale), part, Reduce.SUM
        )
        if self.want_input:
            self.add_product(self.d_input[rows], slope, self.weight, True)
        if self.want_weight:
            self.add_product(d_weight, slope.t(), p.input[rows], rows.start == 0)
        if self.want_bias:
            self.d_bias.add_(self.column_sum(slope))
        return loss

    def operand(self, rows: Tensor) -> Tensor:
        """In the dtype of the features."""
        return rows.to(self.problem.input.dtype)

    def finish(self, total: Tensor, rows: Tensor, scale: Tensor | None, final: Tensor) -> None:
        """Write a summed gradient, over the divisor, to `final`; orthogonal to `rows` if these were normalised."""
        gpu.project(total, rows, scale, self.unit, final)

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients once every group has been added."""
        self.d_bias = self.d_bias if self.unit is None else self.d_bias / self.unit
        return super().found()


class GroupedLoss(torch.autograd.Function):
    """The loss, a sum or a mean, of features and class weights; the forward pass computes the gradients too.

    input [N, d], weight [C, d], bias [C] or None, target [N], terms, normalize, divisor (None for a sum),
    accuracy, softcap.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        terms: Terms,
        normalize: int,
        divisor: Tensor | None,
        accuracy: Accuracy | None = None,
        softcap: float = 0.0,
    ) -> Tensor:
        classes, group = weight.shape[0], budget.group_rows(input, weight.shape[0])
        wide = budget.choose(input[:group], classes, input.element_size()).class_slab
        given, slabs = (input, weight, bias, target[:, None]), (group, wide)
        whole = problem(given, terms, normalize, 0, classes, slabs=slabs, softcap=softcap)
        ctx.on_gpu = calling.on_gpu(input)
        walk = (_WalkOnGpu if ctx.on_gpu else _Walk)(whole, terms, ctx.needs_input_grad[:3], divisor)
        walk.accuracy = accuracy
        total = walk.walk().sum()
        ctx.gradients, ctx.target, ctx.ignore_index = walk.found()[:3], target, terms.ignore_index
        ctx.save_for_backward(input, weight, bias)  # so that a second derivative is an error and not 0
        return total if divisor is None else total / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = first_order(_handed_out, ctx, grad, *ctx.saved_tensors)
        needs = ctx.needs_input_grad[:3]
        return *(value if need else None for value, need in zip(made, needs, strict=True)), *(None,) * 6


def _handed_out(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
    """The gradients times the incoming one; multiplied in place unless they are needed again."""
    made, kept = ctx.gradients, private.graph_kept()
    if private.batched(grad) or (kept and not ctx.on_gpu):
        return tuple(value * factor for value, factor in zip(made, _factors(ctx, grad, made[0]), strict=True))
    ctx.gradients = made if kept else None
    if ctx.on_gpu:
        made = tuple(value.clone() for value in made) if kept else made
        gpu.times(made, grad, ctx.target, ctx.ignore_index)
    elif grad.item() != 1:
        for value, factor in zip(made, _factors(ctx, grad, made[0]), strict=True):
            value.mul_(factor)
    return made


def _factors(ctx: Any, grad: Tensor, d_input: Tensor) -> tuple[Tensor, ...]:
    """The factors of the gradients of features, class weights and bias; exactly 0 for ignored rows."""
    ignored = (ctx.target == ctx.ignore_index)[:, None]
    some = torch.where(ignored.all(), 0.0, grad)
    return torch.where(ignored, 0.0, grad) if d_input.numel() else some, some, some

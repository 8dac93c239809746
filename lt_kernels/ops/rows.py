"""Row statistics of given logits: schemas, fakes, autograd, and the loss from them in one call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.targets import at_target
from lt_kernels.core.terms import NONE, Terms
from lt_kernels.ops.library import apply, define, forced, takes, watched
from lt_kernels.ops.second import first_order
from lt_kernels.reference import rows as reference

_TABLES = "Tensor? offset, Tensor? offset_row, Tensor? mean_weight"
_VALUES = (
    f"Tensor logits, Tensor target, float scale, Tensor? row_scale, Tensor? column_scale, {_TABLES}, "
    "int start, int classes, int ignore_index"
)
_LOSS = (
    f"Tensor logits, Tensor target, {_TABLES}, Tensor? total, Tensor? weight, Tensor? class_margin, "
    "Tensor? class_smoothing, float scale, int kind, float margin, float instance, bool guard, float gamma, "
    "float smoothing, int ignore_index, int reduction"
)
_LOSS_INPUTS = 18


def _numbers(logits: Tensor, *sizes: int) -> Tensor:
    return logits.new_empty(sizes, dtype=accumulate_type(logits.dtype))


def _forward_fake(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    rows, mean = logits.shape[0], 0 if rest[5] is None else logits.shape[0]
    return tuple(
        _numbers(logits, *sizes) for sizes in ((rows,), (rows, target.shape[1]), (rows,), (mean,), (rows,), (mean,))
    )


def _backward_fake(logits: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    offset, want_offset = rest[3], rest[-1]
    sizes = tuple(offset.shape) if want_offset and offset is not None else (0,)
    return logits.new_empty(logits.shape), _numbers(logits, *sizes)


def _loss_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    loss = _numbers(logits, logits.shape[0]) if rest[-1] == NONE else _numbers(logits)
    return loss, _numbers(logits, 6, logits.shape[0])


def _loss_backward_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    offset, want_offset = rest[3], rest[-1]
    sizes = tuple(offset.shape) if want_offset and offset is not None else (0,)
    return logits.new_empty(logits.shape), _numbers(logits, *sizes)


forward_op = define(
    "rows",
    f"rows_forward({_VALUES}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.rows_forward,
    _forward_fake,
)
backward_op = define(
    "rows",
    f"rows_backward({_VALUES}, Tensor rest, Tensor top, Tensor d_rest, Tensor d_own, Tensor? d_own_offset, "
    "Tensor? d_mean, Tensor? grad, bool want_offset) -> (Tensor, Tensor)",
    reference.rows_backward,
    _backward_fake,
)
loss_op = define("rows", f"rows_loss({_LOSS}) -> (Tensor, Tensor)", reference.rows_loss, _loss_fake)
gradient_op = define(
    "rows",
    f"rows_loss_gradient({_LOSS}) -> (Tensor, Tensor, Tensor)",
    reference.rows_loss_gradient,
    lambda logits, *rest: (*_loss_fake(logits, *rest), logits.new_empty(logits.shape)),
)
loss_backward_op = define(
    "rows",
    f"rows_loss_backward(Tensor logits, Tensor target, Tensor saved, Tensor grad, {_TABLES}, float scale, "
    "int ignore_index, bool want_offset) -> (Tensor, Tensor)",
    reference.rows_loss_backward,
    _loss_backward_fake,
)


@takes(_LOSS_INPUTS)
class RowLoss(torch.autograd.Function):
    """The loss, [N] or reduced, of logits [N, C] and one target a row; with gradients for the logits and the offset."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return loss_op(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        RowLoss.keep(ctx, inputs, output[1])

    @staticmethod
    def keep(ctx: Any, inputs: tuple[Any, ...], saved: Tensor) -> None:
        """What `slopes` needs."""
        ctx.save_for_backward(inputs[0], inputs[1], saved, *inputs[2:5])
        ctx.scale, ctx.ignore_index = inputs[9], inputs[16]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return RowLoss.slopes(ctx, grad, *ctx.needs_input_grad)

    @staticmethod
    def slopes(ctx: Any, grad: Tensor | None, *needs: bool) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs; None where none is needed."""
        if grad is None:
            return (None,) * _LOSS_INPUTS
        logits, target, saved, offset, row, mean_weight = ctx.saved_tensors
        want_offset = offset is not None and needs[2]
        tables, fixed = (offset, row, mean_weight), (ctx.scale, ctx.ignore_index, want_offset)
        d_logits, d_table = first_order(loss_backward_op, logits, target, saved, grad.to(saved.dtype), *tables, *fixed)
        return d_logits, None, d_table if want_offset else None, *(None,) * (_LOSS_INPUTS - 3)


class DirectRowLoss(torch.autograd.Function):
    """`RowLoss` where neither torch.func nor a compiler looks on: on a CPU the forward makes the gradient as well.

    It is made while a row is in the cache, for an incoming gradient of 1, and handed out as it is, or as a copy where
    the graph is kept for a further backward pass. float16, whose gradients an incoming one may have to lift above its
    least number, does without. The loss has the dtype `kind`.
    """

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *inputs: Any) -> Tensor:
        logits, (_, wanted, _, offset_wanted, *_) = inputs[0], ctx.needs_input_grad
        ctx.gradient = None
        if wanted and not offset_wanted and logits.is_cpu and logits.dtype != torch.float16 and forced() != "triton":
            loss, saved, ctx.gradient = gradient_op(*inputs)
        else:
            loss, saved = loss_op(*inputs)
        if wanted or offset_wanted:
            ctx.set_materialize_grads(False)
            RowLoss.keep(ctx, inputs, saved)
        return loss if loss.dtype is kind else loss.to(kind)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        made = handed_out(ctx, grad)
        if made is None:
            return None, *RowLoss.slopes(ctx, grad, *ctx.needs_input_grad[1:])
        return None, made, *(None,) * (_LOSS_INPUTS - 1)


def handed_out(ctx: Any, grad: Tensor | None) -> Tensor | None:
    """The gradient that was made with the loss, times the incoming one; None where that has to be done anew.

    As it has to be where infinity or NaN comes in: 0 times that is not the 0 of an ignored row.
    """
    made, kept = ctx.gradient, torch._C._autograd._get_current_graph_task_keep_graph()
    if made is None or grad is None or type(grad) is not Tensor or torch.is_grad_enabled():
        return None
    alone = grad.ndim == 0
    if checks.batched(grad) or not (math.isfinite(grad.item()) if alone else bool(grad.isfinite().all())):
        return None
    one = alone and grad.item() == 1
    if made.dtype == torch.bfloat16 and not one:  # rounded once is better than twice
        return None
    ctx.gradient = made if kept else None
    if one:
        return made.clone() if kept else made
    by_row = grad if alone else grad[:, None]
    return made * by_row if kept else made.mul_(by_row)


@takes(9)
class RowStatistics(torch.autograd.Function):
    """(rest, own [N, K], own_offset [N, K], mean, rival, top, shares) of logits, K targets a row; others [N].

    Gradients are those while top is constant: neither rest + top nor mean + shares * top depends on it.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        offset: Tensor | None,
        offset_row: Tensor | None,
        mean_weight: Tensor | None,
        scale: float,
        start: int,
        classes: int,
        ignore_index: int,
    ) -> tuple[Tensor, ...]:
        rest, own, rival, mean, *more = forward_op(
            logits, target, scale, None, None, offset, offset_row, mean_weight, start, classes, ignore_index
        )
        return rest, own, own_offsets(offset, offset_row, target - start, own), mean, rival, *more

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[4:])
        ctx.save_for_backward(*inputs[:5], output[0], output[5])
        ctx.settings = inputs[5:]

    @staticmethod
    def backward(
        ctx: Any, d_rest: Tensor, d_own: Tensor, d_own_offset: Tensor, d_mean: Tensor, *_: Any
    ) -> tuple[Tensor | None, ...]:
        logits, target, offset, row, mean_weight, *saved = ctx.saved_tensors
        scale, start, classes, ignore_index = ctx.settings
        want_offset = offset is not None and ctx.needs_input_grad[2]
        tables, fixed = (offset, row, mean_weight), (start, classes, ignore_index)
        slopes = [value.contiguous() for value in (d_rest, d_own, d_own_offset)]
        mean = None if mean_weight is None else d_mean.contiguous()
        d_logits, d_table = first_order(
            backward_op, logits, target, scale, None, None, *tables, *fixed, *saved, *slopes, mean, None, want_offset
        )
        return d_logits, None, d_table if want_offset else None, *(None,) * 6


def own_offsets(offset: Tensor | None, row: Tensor | None, local: Tensor, own: Tensor) -> Tensor:
    """The offset of each of a row's K targets, 0 without one: [N, K]."""
    if offset is None or local.shape[1] == 0:
        return torch.zeros_like(own)
    slots = [at_target(offset, row, local[:, slot]) for slot in range(local.shape[1])]
    found = torch.stack(slots, 1)
    # A conversion that does nothing hands out its input: two names of one tensor, of which the compiler of torch 2.11
    # gives the gradient to the wrong one.
    return found if found.dtype == own.dtype else found.to(own.dtype)


def loss(logits: Tensor, target: Tensor, terms: Terms, reduction: int = NONE) -> Tensor:
    """The loss, [N] or reduced, in the dtype of the arithmetic, from logits [N, C] and class indices [N]."""
    if watched():
        return RowLoss.apply(logits, target, *terms, reduction)[0]
    return DirectRowLoss.apply(accumulate_type(logits.dtype), logits, target, *terms, reduction)


def statistics(logits: Tensor, target: Tensor, terms: Terms) -> tuple[Tensor, ...]:
    """(rest, own, own_offset, mean, rival, top, shares) of logits [N, C] and class indices [N, K], differentiable."""
    t = terms
    return apply(
        RowStatistics,
        logits,
        target,
        t.offset,
        t.offset_row,
        t.mean_weight,
        t.scale,
        0,
        logits.shape[1],
        t.ignore_index,
    )

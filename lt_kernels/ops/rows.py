"""Row statistics of given logits, and the loss from them in one call: schemas, fakes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.targets import at_target, counted
from lt_kernels.core.terms import Reduce, Terms
from lt_kernels.ops.backends.library import define
from lt_kernels.ops.calling import apply, first_order, forced, takes
from lt_kernels.reference import rows as reference

_TABLES = "Tensor? offset, Tensor? offset_row, Tensor? mean_weight"
_VALUES = (
    f"Tensor logits, Tensor target, float scale, Tensor? row_scale, Tensor? column_scale, {_TABLES}, "
    "int start, int classes, int ignore_index"
)
_SETTINGS = (
    f"{_TABLES}, Tensor? total, Tensor? weight, Tensor? sample_weight, Tensor? class_margin, "
    "Tensor? class_smoothing, float scale, int kind, float margin, float instance, bool guard, float gamma, "
    "float smoothing, float z_loss, int ignore_index, int reduction"
)
_LOSS = f"Tensor logits, Tensor target, {_SETTINGS}"
_LOSS_INPUTS = 20


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
    loss = _numbers(logits, logits.shape[0]) if rest[-1] == Reduce.NONE else _numbers(logits)
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
    f"rows_loss_gradient(Tensor logits, Tensor target, Tensor? row_scale, Tensor? column_scale, {_SETTINGS}) "
    "-> (Tensor, Tensor)",
    reference.rows_loss_gradient,
    lambda logits, *rest: (_loss_fake(logits, *rest)[0], logits.new_empty(logits.shape)),
)
loss_backward_op = define(
    "rows",
    f"rows_loss_backward(Tensor logits, Tensor target, Tensor saved, Tensor grad, {_TABLES}, float scale, "
    "int ignore_index, bool want_offset) -> (Tensor, Tensor)",
    reference.rows_loss_backward,
    _loss_backward_fake,
)


class Capped(torch.autograd.Function):
    """softcap tanh(logits / softcap) in the dtype of the arithmetic; where its gradient is 0, so is that of NaN."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, softcap: float) -> Tensor:
        return softcap * torch.tanh(logits.to(accumulate_type(logits.dtype)) / softcap)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.softcap = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        # 1 - tanh^2, which would lose its digits where tanh is near 1
        slope = torch.cosh(logits.to(grad.dtype) / ctx.softcap).reciprocal().square().nan_to_num(1.0)
        return (grad * slope).to(logits.dtype), None


@takes(_LOSS_INPUTS + 1)
class RowLoss(torch.autograd.Function):
    """The loss, [N] or reduced, of logits [N, C] with one target per row; gradients for the logits and the offset.

    The last input says whether the forward pass computes the gradient for the logits as well.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        *problem, make = inputs
        return gradient_op(*problem[:2], None, None, *problem[2:]) if make else loss_op(*problem)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:5], output[1])
        ctx.scale, ctx.ignore_index, ctx.made = inputs[10], inputs[18], inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * (_LOSS_INPUTS + 1)
        logits, target, *tables, saved = ctx.saved_tensors
        if ctx.made:
            incoming = counted(grad, target, ctx.ignore_index)[:, None].to(saved.dtype)
            return first_order(torch.mul, saved, incoming), *(None,) * _LOSS_INPUTS
        d_logits, d_table = slopes(
            logits, target, saved, grad, tables, (ctx.scale, ctx.ignore_index), ctx.needs_input_grad[2]
        )
        return d_logits, None, d_table, *(None,) * (_LOSS_INPUTS - 2)


def slopes(
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    grad: Tensor,
    tables: list[Tensor | None],
    fixed: tuple[float, int],
    learned: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of a loss for its logits and, if it is learned, its offset, from what `rows_loss` saved.

    tables: offset, offset_row, mean_weight. fixed: scale and ignore_index.
    """
    want_offset = tables[0] is not None and learned
    found = first_order(loss_backward_op, logits, target, saved, grad.to(saved.dtype), *tables, *fixed, want_offset)
    return found[0], found[1] if want_offset else None


@takes(9)
class RowStatistics(torch.autograd.Function):
    """(rest, own [N, K], own_offset [N, K], mean, rival, top, shares) of logits with K targets per row; others [N].

    Gradients are for a constant top, which is correct: a loss depends on rest + top and mean + shares * top alone.
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
    # A conversion to the same dtype returns its input, and the compiler of torch 2.11 then gives the gradient to the
    # wrong one of two names for this tensor.
    return found if found.dtype == own.dtype else found.to(own.dtype)


def one_pass(logits: Tensor) -> bool:
    """Whether the kernels for these logits can compute loss and gradient in one pass.

    float16 has two passes, because its gradients may underflow before they are multiplied by an incoming loss scale.
    """
    return logits.is_cpu and logits.dtype != torch.float16 and forced() != "triton"


def loss(logits: Tensor, target: Tensor, terms: Terms, reduction: int = Reduce.NONE) -> Tensor:
    """The loss, [N] or reduced, in the dtype of the arithmetic, from logits [N, C] and class indices [N].

    Compiled for a CPU it uses the kernel that computes the gradient in the same pass, except for bfloat16, which would
    be rounded twice.
    """
    learned = terms.offset is not None and terms.offset.requires_grad
    make = torch.compiler.is_compiling() and logits.requires_grad and not learned and logits.dtype != torch.bfloat16
    return apply(RowLoss, logits, target, *terms, reduction, make and one_pass(logits))[0]


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

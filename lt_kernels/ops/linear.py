"""Row statistics from features and class weights: schemas, fakes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import Terms
from lt_kernels.ops import budget, slabs
from lt_kernels.ops.backends.library import define, serve
from lt_kernels.ops.calling import first_order, takes
from lt_kernels.ops.rows import own_offsets
from lt_kernels.reference import linear as reference

_VALUES = (
    "Tensor input, Tensor weight, Tensor? bias, Tensor target, Tensor? offset, Tensor? offset_row, "
    "Tensor? mean_weight, float scale, int normalize, int start, int classes, int ignore_index, int row_slab, "
    "int class_slab, float softcap"
)
_SHARED = len(reference.Problem._fields)


def _forward_fake(*inputs: Any) -> tuple[Tensor, ...]:
    p, keep = reference.Problem(*inputs[:-1]), inputs[-1]
    rows, classes, kind = p.input.shape[0], p.weight.shape[0], accumulate_type(p.input.dtype)
    mean = 0 if p.mean_weight is None else rows
    row_scale = rows if p.normalize == Normalize.BOTH else 0
    column_scale = classes if p.normalize >= Normalize.CLASSES else 0
    sizes = ((rows,), (rows, p.target.shape[1]), (rows,), (mean,), (rows,), (mean,))
    numbers = [p.input.new_empty(size, dtype=kind) for size in sizes]
    kept = p.input.new_empty((rows, classes) if keep else (0,), dtype=reference.logits_type(p))
    return *numbers, kept, *(p.input.new_empty(size, dtype=kind) for size in (row_scale, column_scale))


def _backward_fake(*inputs: Any) -> tuple[Tensor, ...]:
    p, (want_input, want_weight, want_bias, want_offset) = reference.Problem(*inputs[:_SHARED]), inputs[-1]
    kind = accumulate_type(p.input.dtype)
    bias = p.weight.new_empty(p.weight.shape[0] if want_bias else 0, dtype=kind)
    offset = p.offset.shape if want_offset and p.offset is not None else (0,)
    return (
        p.input.new_empty(p.input.shape if want_input else (0,)),
        p.weight.new_empty(p.weight.shape if want_weight else (0,)),
        bias if p.bias is None else bias.to(p.bias.dtype),
        p.input.new_empty(offset, dtype=kind),
    )


forward_op = define(
    "linear",
    f"linear_forward({_VALUES}, bool keep) -> ({', '.join(['Tensor'] * 9)})",
    reference.linear_forward,
    _forward_fake,
)
backward_op = define(
    "linear",
    f"linear_backward({_VALUES}, Tensor kept, Tensor row_scale, Tensor column_scale, Tensor rest, Tensor top, "
    "Tensor d_rest, Tensor d_own, Tensor? d_own_offset, Tensor? d_mean, bool[] wants) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.linear_backward,
    _backward_fake,
)

serve("linear_forward", slabs.linear_forward)
serve("linear_backward", slabs.linear_backward)


@takes(16)
class LinearStatistics(torch.autograd.Function):
    """(rest, own, own_offset, mean, rival, top, shares, ...) of features and class weights; gradients as of rows.

    They are there for both, the bias and the offset.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        p, keep = reference.Problem(*inputs[:-1]), inputs[-1]
        slabs = (max(1, p.input.shape[0]), p.weight.shape[0]) if keep else (p.row_slab, p.class_slab)
        rest, own, rival, mean, *saved = forward_op(
            *p[:-3], *slabs, p.softcap, keep
        )  # one product for logits that are kept
        return rest, own, own_offsets(p.offset, p.offset_row, p.target - p.start, own), mean, rival, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[4:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:7], output[0], output[5], *output[7:])
        ctx.settings, ctx.inputs, ctx.own_shape = inputs[7:15], len(inputs), output[1].shape

    @staticmethod
    def backward(ctx: Any, d_rest: Any, d_own: Any, d_own_offset: Any, d_mean: Any, *_: Any) -> tuple[Any, ...]:
        input, weight, bias, target, offset, row, mean_weight, rest, top, *saved = ctx.saved_tensors
        needs = ctx.needs_input_grad
        wants = [needs[0], needs[1], bias is not None and needs[2], offset is not None and needs[4]]
        d_rest = torch.zeros_like(rest) if d_rest is None else d_rest.contiguous()
        d_own = rest.new_zeros(ctx.own_shape) if d_own is None else d_own.contiguous()
        d_mean = None if mean_weight is None or d_mean is None else d_mean.contiguous()
        d_own_offset = None if d_own_offset is None else d_own_offset.contiguous()
        found = first_order(
            backward_op,
            input,
            weight,
            bias,
            target,
            offset,
            row,
            mean_weight,
            *ctx.settings,
            *saved,
            rest,
            top,
            d_rest,
            d_own,
            d_own_offset,
            d_mean,
            wants,
        )
        d_input, d_weight, d_bias, d_offset = (g if w else None for g, w in zip(found, wants, strict=True))
        return d_input, d_weight, d_bias, None, d_offset, *(None,) * (ctx.inputs - 5)


def linear_policy(input: Tensor, linear_weight: Tensor) -> budget.Policy:
    """How linear_cross_entropy and cosine_margin_cross_entropy walk the logits of these features and classes, and why.

    Within the memory budget of the moment (`lt_kernels.memory_budget`). On a CPU, logits that fit with their gradient
    are made whole instead, at once; under autocast pass the features as they are cast. With a
    softcap, logits of bfloat16 take 6 bytes instead of 2, and are walked accordingly.

    Args:
        input: features [N, d]; only their shape, dtype and device count.
        linear_weight: a row for each class [C, d].

    Returns:
        A `Policy`: keep, row_slab, class_slab, reason.
    """
    rows, classes, itemsize = input.shape[0], linear_weight.shape[0], reference.product_type(input).itemsize
    policy, held = budget.choose(input, classes, itemsize), budget.current_budget()
    size = f"{rows:,} x {classes:,} logits of {rows * classes * itemsize / 2**20:,.1f} MiB"
    group = budget.group_rows(input, classes)
    both = f"; a reduced loss with a gradient: both passes at once by groups of {group:,} rows" if group else ""
    return policy._replace(reason=f"{size} within {held / 2**20:,.1f} MiB: {policy.reason}{both}")


def problem(
    inputs: tuple[Any, ...], terms: Terms, *places: int, slabs: tuple[int, int], softcap: float = 0.0
) -> reference.Problem:
    """The problem of a loss of `inputs`, from the features to the target, whose settings are `terms`.

    places: normalize, start and classes. slabs: rows and classes of a block.
    """
    tables = (terms.offset, terms.offset_row, terms.mean_weight, terms.scale)
    return reference.Problem._make((*inputs, *tables, *places, terms.ignore_index, *slabs, softcap))


def statistics(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    terms: Terms,
    normalize: int,
    start: int = 0,
    classes: int | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, ...]:
    """(rest, own, own_offset, mean, rival, top, shares) of input [N, d] and weight [C, d], as those of rows."""
    kind = reference.product_type(input)
    capped = accumulate_type(input.dtype)  # the cap is computed there, from products that stay until it is
    size = kind.itemsize if not softcap or kind == capped else kind.itemsize + capped.itemsize
    policy = budget.choose(input, weight.shape[0], size)
    classes = weight.shape[0] if classes is None else classes
    slabs = policy.row_slab, policy.class_slab
    whole = problem((input, weight, bias, target), terms, normalize, start, classes, slabs=slabs, softcap=softcap)
    return LinearStatistics.apply(*whole, policy.keep)[:7]

"""Plain losses on a CPU past the dispatcher: autograd functions in steps of C (csrc/plain.cpp)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.targets import counted
from lt_kernels.core.terms import NONE, SUM, WEIGHTED_MEAN, Terms
from lt_kernels.ops.library import linear_backward, linear_forward, plain_backward, plain_forward
from lt_kernels.ops.rows import handed_out, loss_backward_op, loss_op
from lt_kernels.ops.second import first_order

_REDUCTIONS = {NONE: "none", WEIGHTED_MEAN: "mean", SUM: "sum"}


class PlainLoss(torch.autograd.Function):
    """`rows.DirectRowLoss` of plain logits, with second derivatives where there is no focal factor.

    logits [N, C], target [N], weight and offset [C] or None, focal gamma, ignore_index, the code of the reduction;
    tables without gradients, in the dtype of the arithmetic. A target that has no logit is a ValueError.
    """

    forward = staticmethod(plain_forward)
    backward = staticmethod(plain_backward)

    @staticmethod
    def otherwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The backward but for an incoming gradient of 1 at the end of a graph."""
        made = handed_out(ctx, grad)
        return PlainLoss.anew(ctx, grad) if made is None else made, *(None,) * 6

    @staticmethod
    def anew(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient for what `handed_out` does not do: by the operators, or by torch where it is differentiated."""
        logits, target, weight, offset, saved = ctx.saved_tensors
        if torch.is_grad_enabled() and ctx.settings[0] == 0:
            return _differentiable((logits,), logits, target, weight, offset, ctx.settings, grad)[0]
        return _by_operators(logits, target, weight, offset, ctx.settings, grad, saved)


class LinearLoss(torch.autograd.Function):
    """`PlainLoss` of F.linear(input, linear_weight, linear_bias), whose logits do not outlive the forward.

    input [N, d], linear_weight [C, d], linear_bias [C] or None, float32 or float64, then as `PlainLoss` from the target
    on, without a focal factor. One node of the graph: its backward is two products and a sum, which a small loss makes
    in its forward.
    """

    forward = staticmethod(linear_forward)
    backward = staticmethod(linear_backward)

    @staticmethod
    def otherwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The backward but for one finite incoming number that is not differentiated."""
        input, weight, bias, target, class_weight, offset = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            leaves = tuple(leaf for leaf, need in zip((input, weight, bias), needs, strict=True) if need)
            logits = F.linear(input, weight, bias)
            found = iter(_differentiable(leaves, logits, target, class_weight, offset, ctx.settings, grad))
            return *(next(found) if need else None for need in needs), *(None,) * 6
        if isinstance(ctx.gradient, tuple):  # of all three already, for an incoming number
            slope = _by_operators(F.linear(input, weight, bias), target, class_weight, offset, ctx.settings, grad)
        else:
            slope = ctx.gradient * counted(grad, checks.stored("target", target), ctx.settings[1])[:, None]
        d_input = slope.mm(weight) if needs[0] else None
        d_weight = slope.t().mm(input) if needs[1] else None
        return d_input, d_weight, slope.sum(0) if needs[2] else None, *(None,) * 6


def _by_operators(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    settings: tuple[float, int, int],
    grad: Tensor,
    saved: Tensor | None = None,
) -> Tensor:
    """The gradient of a plain loss for its logits, whatever comes in; `saved` is what the loss's operator saves."""
    gamma, ignore_index, reduction = settings
    terms = Terms(None if offset is None else offset[None], weight=weight, gamma=gamma, ignore_index=ignore_index)
    kept: Tensor = loss_op(logits.detach(), target, *terms, reduction)[1] if saved is None else saved
    fixed = (terms.offset, None, None, 1.0, ignore_index, False)
    return first_order(loss_backward_op, logits, target, kept, grad.to(kept.dtype), *fixed)[0]


def _differentiable(
    leaves: tuple[Tensor, ...],
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    settings: tuple[float, int, int],
    grad: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients of a plain loss in steps that torch can differentiate once more."""
    _, ignore_index, reduction = settings
    u = logits.to(accumulate_type(logits.dtype))
    u = u if offset is None else u + offset
    loss = F.cross_entropy(u, target, weight, ignore_index=ignore_index, reduction=_REDUCTIONS[reduction])
    return torch.autograd.grad(loss.to(grad.dtype), leaves, grad, create_graph=True)

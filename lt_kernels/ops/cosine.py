"""Losses of cosines on a CPU past the dispatcher: an autograd function in steps of C (csrc/cosine.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import as_they_are, inverse_norm
from lt_kernels.core.targets import counted
from lt_kernels.ops.library import cosine_backward, cosine_forward
from lt_kernels.ops.second import first_order
from lt_kernels.reference.linear import along


class CosineLoss(torch.autograd.Function):
    """The loss of the cosines of features [N, d] and class weights [C, d], which are not kept: their gradient is.

    input, linear_weight, float32 or float64, target [N], weight, offset and class margins [C] or None, scale, the kind
    of the margin and its numbers, focal gamma, ignore_index, the code of the reduction. One node of the graph: its
    backward is two products, each without the part along the rows that were normalised.
    """

    forward = staticmethod(cosine_forward)
    backward = staticmethod(cosine_backward)

    @staticmethod
    def otherwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The backward but for one finite incoming number that is not differentiated."""
        input, weight, target = ctx.saved_tensors
        grad = counted(grad, checks.stored("target", target), ctx.settings[1])
        found = iter(first_order(cosine_slopes, input, weight, ctx.gradient, grad, *ctx.needs_input_grad[:2]))
        return *(next(found) if need else None for need in ctx.needs_input_grad[:2]), *(None,) * 12


def cosine_slopes(
    input: Tensor, weight: Tensor, made: Tensor, grad: Tensor, want_input: bool, want_weight: bool
) -> tuple[Tensor, ...]:
    """Those gradients that are wanted, of features and class weights, from the one of the product of their rows.

    `grad` [N] is what comes back to the loss of each row.
    """
    found = []
    with as_they_are(input.device):
        slope = made * grad[:, None]
        for wanted, left, right, rows in ((want_input, slope, weight, input), (want_weight, slope.t(), input, weight)):
            if wanted:
                product = left.mm(right)
                found.append(product - along(product, rows, inverse_norm(rows)) * rows)
    return tuple(found)

"""Column log-sum-exp of given logits: schemas, fakes, autograd, and LADE's regulariser from it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.ops.library import define
from lt_kernels.ops.second import first_order
from lt_kernels.reference import columns as reference
from lt_kernels.reference.rows import accumulate_type


def _forward_fake(logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    kind = accumulate_type(logits.dtype)
    return logits.new_empty(logits.shape[1], dtype=kind), logits.new_empty(logits.shape[0], dtype=kind)


def _backward_fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


forward_op = define(
    "columns",
    "columns_forward(Tensor logits, Tensor target, Tensor? row_offset) -> (Tensor, Tensor)",
    reference.columns_forward,
    _forward_fake,
)
backward_op = define(
    "columns",
    "columns_backward(Tensor logits, Tensor target, Tensor? row_offset, Tensor lse, Tensor d_lse, Tensor d_own) "
    "-> Tensor",
    reference.columns_backward,
    _backward_fake,
)


class ColumnStatistics(torch.autograd.Function):
    """(logsumexp_i (z_ic + row_offset_i) [C], z_iy [N]); gradients for the logits [N, C]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, Tensor]:
        return forward_op(logits, target, row_offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs, output[0])

    @staticmethod
    def backward(ctx: Any, d_lse: Tensor, d_own: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        return first_order(backward_op, *saved, d_lse.contiguous(), d_own.contiguous()), None, None


def lade(logits: Tensor, target: Tensor, prior: Tensor, lam: float, importance: str, classes: str) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2) of logits [N, C], class indices [N] and the prior p [C] in float64.

    The epsilons 1e-8 and 1e-9 are the published code's.
    """
    rows, width = logits.shape
    kind, uniform = accumulate_type(logits.dtype), math.log(1 / width + 1e-9)
    log_ratio = uniform - torch.log(prior + 1e-9)
    by_class = importance == "class"
    inside = target.clamp(0, width - 1)  # the operator raises for the others
    lse, own = ColumnStatistics.apply(logits, target, None if by_class else log_ratio[inside].to(kind))
    count = torch.zeros_like(prior).index_add(0, inside, torch.ones_like(inside, dtype=prior.dtype))
    share = (prior / (count + 1e-8))[inside].to(kind)
    counted = (prior if classes == "all" else prior * (count > 0)).to(kind)
    shift = (log_ratio - math.log(rows) if by_class else torch.full_like(prior, -math.log(rows))).to(kind)
    mean = lse + shift
    return (counted * (mean + lam * mean * mean)).sum() - (share * own).sum()

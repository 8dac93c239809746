"""The linear room on a CPU: the reference's loops with the products of `ops.products`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.ops import library, products
from lt_kernels.reference import linear as reference
from lt_kernels.reference.linear import Problem


def _logits(problem: Problem, rows: slice, classes: slice) -> Tensor:
    """The logits of a block."""
    p, kind = problem, reference.product_type(problem.input)
    bias = None if p.bias is None else p.bias[classes].to(kind)
    return products.linear(p.input[rows].to(kind), p.weight[classes].to(kind), bias)


def linear_forward(*inputs: object) -> tuple[Tensor, ...]:
    """What the reference's returns."""
    return reference.by_slabs(Problem(*inputs[:-1]), bool(inputs[-1]), reference.inverse_norm, _logits)  # type: ignore[arg-type]


class Backward(reference.Backward):
    """The gradients of one problem; products from rows as they lie by the faster library."""

    def __init__(self, problem: Problem, saved: Any, slopes: Any, wants: Any) -> None:
        super().__init__(problem, saved, slopes, wants)
        library.large_pages(self.d_weight)  # the largest that is made here

    def logits(self, rows: slice, classes: slice) -> Tensor:
        """Those of a block, made again."""
        return _logits(self.problem, rows, classes)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total = left @ right the first time, += afterwards."""
        if total.dtype != torch.float32 or left.dtype != total.dtype or not left.is_contiguous():
            super().add_product(total, left, right, first)
        elif first:
            total.copy_(products.product(left, right))
        else:
            total.add_(products.product(left, right))


def linear_backward(*inputs: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the reference's returns."""
    shared, rest = inputs[: len(Problem._fields)], inputs[len(Problem._fields) :]
    return Backward(Problem(*shared), rest[:4], rest[4:8], rest[8]).run()  # type: ignore[arg-type]

"""The linear operators on a CPU: the reference's loops with the products of `ops.products`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lt_kernels.core.linear import Problem
from lt_kernels.core.numbers import inverse_norm, product_type
from lt_kernels.ops import directions, products
from lt_kernels.reference import linear as reference


@functools.cache
def _keep_the_heap() -> None:
    """Make glibc keep the memory of freed slabs for the next ones.

    It gives free memory at the heap's end back to the system beyond twice the largest block that it ever mapped by
    itself and unmapped, up to 32 MiB: without one that large, the system may zero each slab's pages again.
    """
    torch.empty(24 * 2**20, dtype=torch.int8)


def logits(problem: Problem, rows: slice, classes: slice) -> Tensor:
    """The logits of a block."""
    p, kind = problem, product_type(problem.input)
    bias = None if p.bias is None else p.bias[classes].to(kind)
    return products.linear(p.input[rows].to(kind), p.weight[classes].to(kind), bias)


def linear_forward(*inputs: object) -> tuple[Tensor, ...]:
    """What the reference's returns."""
    _keep_the_heap()
    return reference.by_slabs(Problem(*inputs[:-1]), bool(inputs[-1]), inverse_norm, logits)  # type: ignore[arg-type]


class Backward(reference.Backward):
    """The gradients of one problem; its products by the faster library."""

    turned: tuple[Tensor, Tensor] | None = None  # features of a slab of rows, and their transpose

    def logits(self, rows: slice, classes: slice) -> Tensor:
        """The logits of a block, computed again."""
        return logits(self.problem, rows, classes)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total = left @ right the first time, += afterwards."""
        if total.dtype != torch.float32 or left.dtype != total.dtype:
            super().add_product(total, left, right, first)
        elif left.is_contiguous():
            made = products.product(left, right)
            total.copy_(made) if first else total.add_(made)
        elif first and products.turns(left.T, right):
            products.turned_into(total, left.T, self.turn(right))
        else:
            super().add_product(total, left, right, first)

    def finish(self, total: Tensor, rows: Tensor, scale: Tensor | None, final: Tensor) -> None:
        """`final` = a gradient that is added up, without its part along `rows` where these were normalised."""
        if scale is not None:
            directions.project(total, rows, scale)
        super().finish(total, rows, None, final)

    def turn(self, features: Tensor) -> Tensor:
        """The features transposed, once for all slabs of classes."""
        if self.turned is None or self.turned[0].data_ptr() != features.data_ptr():
            self.turned = features, features.T.contiguous()
        return self.turned[1]


def linear_backward(*inputs: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the reference's returns."""
    shared, rest = inputs[: len(Problem._fields)], inputs[len(Problem._fields) :]
    return Backward(Problem(*shared), rest[:5], rest[5:9], rest[9]).run()  # type: ignore[arg-type]

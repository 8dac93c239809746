"""The CPU kernels of the linear operators: the loops of the reference with the products of `ops.products`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lt_kernels.core.linear import Problem
from lt_kernels.core.numbers import cap_, inverse_norm, product_type
from lt_kernels.ops import directions, products
from lt_kernels.reference import linear as reference


@functools.cache
def _keep_the_heap() -> None:
    """Make glibc keep the memory of freed slabs for the next ones.

    glibc returns free memory at the end of the heap to the system if it exceeds twice the largest block of at most 32
    MiB that was mapped separately and freed. So the largest such block is freed once; otherwise the system may zero
    the pages of each slab again.
    """
    torch.empty(24 * 2**20, dtype=torch.int8)


def logits(problem: Problem, rows: slice, classes: slice) -> Tensor:
    """The logits of a block."""
    p, kind = problem, product_type(problem.input)
    bias = None if p.bias is None else p.bias[classes].to(kind)
    return products.linear(p.input[rows].to(kind), p.weight[classes].to(kind), bias)


def linear_forward(*inputs: object) -> tuple[Tensor, ...]:
    """The results of the reference's `linear_forward`."""
    _keep_the_heap()
    return reference.by_slabs(Problem(*inputs[:-1]), bool(inputs[-1]), inverse_norm, logits)  # type: ignore[arg-type]


class Backward(reference.Backward):
    """The gradients of one problem, with the products of the faster library."""

    transposed: tuple[Tensor, Tensor] | None = None  # features of a slab of rows, and their transpose

    def logits(self, rows: slice, classes: slice) -> Tensor:
        """The logits of a block, computed again."""
        return cap_(logits(self.problem, rows, classes), self.problem.softcap)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """total = left @ right the first time, += afterwards."""
        if total.dtype != torch.float32 or left.dtype != total.dtype:
            super().add_product(total, left, right, first)
        elif left.is_contiguous():
            made = products.product(left, right)
            total.copy_(made) if first else total.add_(made)
        elif first and products.faster_transposed(left.T, right):
            products.transposed_into(total, left.T, self.transposed_features(right))
        else:
            super().add_product(total, left, right, first)

    def finish(self, total: Tensor, rows: Tensor, scale: Tensor | None, final: Tensor) -> None:
        """Write a summed gradient to `final`, orthogonal to `rows` if these were normalised."""
        if scale is not None:
            directions.project(total, rows, scale)
        super().finish(total, rows, None, final)

    def transposed_features(self, features: Tensor) -> Tensor:
        """The transpose of the features, which is made once for all slabs of classes."""
        if self.transposed is None or self.transposed[0].data_ptr() != features.data_ptr():
            self.transposed = features, features.T.contiguous()
        return self.transposed[1]


def linear_backward(*inputs: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of the reference's `linear_backward`."""
    shared, rest = inputs[: len(Problem._fields)], inputs[len(Problem._fields) :]
    return Backward(Problem(*shared), rest[:5], rest[5:9], rest[9]).run()  # type: ignore[arg-type]

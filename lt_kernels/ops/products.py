"""Large float32 products on a CPU, by the faster of the two libraries that torch contains.

torch multiplies float32 matrices with MKL, which runs AVX2 code on processors that are not Intel's; oneDNN uses AVX-512
on every processor that has it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import private
from lt_kernels.ops import calling
from lt_kernels.ops.backends import library

WORK = 2**24  # multiplications: with fewer, or with fewer rows than ROWS, the call of oneDNN costs more than it saves
ROWS = 8
IN_CACHE = 2**21  # bytes of a product that is transposed afterwards, while it is in the cache


def choice() -> tuple[bool, str]:
    """(whether oneDNN computes the large float32 products, why or why not)."""
    if library.instruction_set() != "avx512":
        return False, "without AVX-512, or without the C++ extension that looks for it, torch's own serve"
    if library.intel():
        return False, "torch's MKL is at its best on an Intel processor"
    if not torch.backends.mkl.is_available():
        return False, "torch does not multiply by MKL"
    if not onednn():
        return False, "oneDNN is not there or switched off"
    if not _probed():
        return False, "this torch does not offer oneDNN's"
    return True, "torch's MKL runs AVX2 code on this processor"


def onednn() -> bool:
    """Whether torch has oneDNN, and may use it."""
    return torch.backends.mkldnn.is_available() and private.onednn_enabled()


@functools.cache
def _probed() -> bool:
    """Whether the operator through which torch's compiler calls oneDNN exists and multiplies correctly."""
    rows, columns = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3)
    with torch.no_grad():
        try:
            return bool(torch.equal(_by_onednn(rows, columns, None), rows @ columns.T))
        except (AttributeError, RuntimeError):
            return False


def _by_onednn(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.contiguous()  # oneDNN ignores its stride
    return private.onednn_linear(left, right, bias)


def large(input: Tensor, linear_weight: Tensor) -> bool:
    """Whether oneDNN computes the product of features [N, d] and class weights [C, d].

    For class weights whose rows are not contiguous oneDNN takes a thousand times as long as torch's own product.
    """
    rows, depth = input.shape
    return (
        rows >= ROWS
        and rows * depth * linear_weight.shape[0] >= WORK
        and input.dtype == torch.float32
        and linear_weight.dtype == torch.float32
        and input.is_cpu
        and (linear_weight.is_contiguous() or linear_weight.T.is_contiguous())
        and choice()[0]
    )


def linear(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None = None) -> Tensor:
    """input @ linear_weight.T (+ linear_bias), without a graph."""
    if large(input, linear_weight):
        return _by_onednn(input, linear_weight, linear_bias)
    return F.linear(input, linear_weight, linear_bias)


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, without a graph; torch's own product if `left` is transposed, which oneDNN would copy first."""
    if left.is_contiguous() and large(left, right.T):
        return _by_onednn(left, right.T, None)
    if left.is_cpu and left.dtype == right.dtype:
        return torch.mm(left, right, out=library.large_pages(left.new_empty(left.shape[0], right.shape[1])))
    return torch.mm(left, right)


def faster_transposed(left: Tensor, right: Tensor) -> bool:
    """Whether left.T @ right, of [N, C] and [N, d], is faster computed as right.T @ left and transposed.

    oneDNN does not copy `left` for that. With few features the product is still in the cache when it is transposed.
    """
    rows, features = right.shape
    small = 4 * features * left.shape[1] <= IN_CACHE and 2 * features <= rows and 4 * features * rows <= 2 * IN_CACHE
    return small and left.is_contiguous() and large(right.T, left.T)


def transposed_into(out: Tensor, left: Tensor, transposed: Tensor) -> None:
    """out [C, d] = left.T @ right, from left [N, C] and the transpose [d, N] of right."""
    library.transpose(_by_onednn(transposed, left.T, None), out)


def logits(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None = None) -> Tensor:
    """`linear` with a gradient, for eager calls."""
    if large(input, linear_weight) and (linear_bias is None or linear_bias.dtype == torch.float32):
        return Linear.apply(input, linear_weight, linear_bias)
    return F.linear(input, linear_weight, linear_bias)


class Linear(torch.autograd.Function):
    """F.linear whose products, forward and backward, are those of this file."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[N, C] from [N, d], [C, d] and [C]."""
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By torch's products, which have derivatives, if a second derivative may be taken."""
        input, weight = ctx.saved_tensors
        first, second, third = ctx.needs_input_grad
        multiply = torch.mm if torch.is_grad_enabled() or calling.watched() else product
        d_input = multiply(grad, weight) if first else None
        return d_input, multiply(grad.t(), input) if second else None, grad.sum(0) if third else None

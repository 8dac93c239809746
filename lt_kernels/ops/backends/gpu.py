"""The direct way on a GPU (`calling.on_gpu`): what the autograd functions of `direct` call there.

The forward pass makes the gradient for an incoming one of 1, as on a CPU. Whether another one came is known on the
device alone: a kernel reads it, and returns at once where it is 1, so that the host never waits.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import private
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import Terms


def run(room: str, name: str, first: Tensor, *inputs: Any, **named: Any) -> Any:
    """The function `name` of lt_kernels/triton/<room>.py, on the device of its first tensor."""
    function = _function(room, name)
    if not first.is_cuda or first.device.index == torch.cuda.current_device():
        return function(first, *inputs, **named)
    with torch.cuda.device(first.device):
        return function(first, *inputs, **named)


@functools.cache
def _function(room: str, name: str) -> Callable[..., Any]:
    """A kernel's function; triton is slow to import, so it is imported at the first call."""
    return getattr(importlib.import_module(f"lt_kernels.triton.{room}"), name)


def rows_made(
    logits: Tensor, target: Tensor, terms: Terms, code: int, once: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(loss, what `rows_loss` saves, the gradient for an incoming one of 1) of logits [N, C] and class indices [N].

    The gradient is made `once`, with the loss, where that is the faster way; else there is what it can be made of.
    """
    if once and _function("rows", "serves_once")(*logits.shape, logits.dtype, code):
        loss, gradient = run("rows", "rows_loss_gradient", logits, target, None, None, *terms, code)
        return loss, None, gradient
    return *run("rows", "rows_loss", logits, target, *terms, code), None


def handed_out(ctx: Any, grad: Tensor, target: Tensor) -> Tensor | None:
    """The gradient that the forward made times the incoming one, multiplied on the device where that is not 1.

    None where torch or the operators make it: there is none yet, a graph of the backward pass is built, or gradients
    come batched. A graph that is kept needs its own again, so a copy is multiplied.
    """
    if ctx.gradient is None or torch.is_grad_enabled() or private.batched(grad):
        return None
    made, kept = ctx.gradient, private.graph_kept()
    ctx.gradient = made if kept else None
    made = made.clone() if kept else made
    run("rows", "times_grad", made, target, grad, ctx.terms.ignore_index)
    return made


def inverse_norms(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """1 / |row| of features and of class weights; 0 for a row shorter than 1e-12, which has no direction."""
    return run("operands", "inverse_norms", input, weight)


def features_made(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    terms: Terms,
    scales: list[Tensor | None],
    code: int,
) -> tuple[Tensor, Tensor]:
    """(loss, the gradient of the product for an incoming one of 1), from a product that is summed and kept in float32.

    The gradient has the dtype of the features, which is that of the products that follow.
    """
    logits = product(input, weight.t(), accumulate_type(input.dtype), padded=True)
    logits = logits if bias is None else logits.add_(bias)
    rows, classes = logits.shape
    into = logits if logits.dtype == input.dtype else _function("operands", "padded")(rows, classes, input)
    return gradient_into(into, logits, target, scales, terms, code)


def gradient_into(
    into: Tensor, logits: Tensor, target: Tensor, scales: Sequence[Tensor | None], terms: Terms, code: int
) -> tuple[Tensor, Tensor]:
    """(loss, the gradient for an incoming one of 1) of logits; the gradient is written to `into`, which they may be."""
    return run("rows", "rows_loss_gradient", logits, target, *scales, *terms, code, into=into)


def times(made: tuple[Tensor, ...], grad: Tensor, target: Tensor, ignore_index: int) -> None:
    """Multiply the gradients of features, class weights and bias by the incoming one, in place, unless it is 1.

    Ignored rows keep a gradient of exactly 0, and so do the class weights if all are ignored.
    """
    d_input, d_weight, d_bias = made
    if d_input.numel():
        run("rows", "times_grad", d_input, target, grad, ignore_index)
    every = (target == ignore_index).all().to(target.dtype)
    for value in (d_weight, d_bias[None]):
        if value.numel():
            run("rows", "times_grad", value, every.expand(value.shape[0]).contiguous(), grad, 1)


def project(total: Tensor, rows: Tensor, scale: Tensor | None, unit: Tensor | None, out: Tensor) -> None:
    """Write a summed gradient over `unit` to `out`; of normalised rows without its part along them."""
    run("operands", "project", total, rows, scale, unit, out)


def slope_product(left: Tensor, right: Tensor, own: Tensor, scale: Tensor | None) -> Tensor:
    """left @ right, the gradient of the rows `own`; of normalised rows without its part along them."""
    found = product(left, right, own.dtype)
    if scale is not None:
        project(found, own, scale, None, found)
    return found


def product(left: Tensor, right: Tensor, kind: torch.dtype, padded: bool = False) -> Tensor:
    """left @ right, summed in float32 at least, in the dtype `kind`."""
    rows, columns = left.shape[0], right.shape[1]
    out = (
        _function("operands", "padded")(rows, columns, left, kind)
        if padded
        else left.new_empty((rows, columns), dtype=kind)
    )
    if kind == left.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda or left.is_meta:
        return torch.mm(left, right, out_dtype=kind, out=out)
    return out.copy_(left.to(kind) @ right.to(kind))  # in the interpreter

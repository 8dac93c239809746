"""Logit-weight repulsion: schemas, fakes, autograd."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.ops import directions, tiles
from lt_kernels.ops.backends.library import define, say_once, serve
from lt_kernels.ops.calling import apply, first_order, takes
from lt_kernels.reference import gram as reference


def _forward_fake(weight: Tensor, threshold: float, raw: bool) -> tuple[Tensor, ...]:
    classes, kind = weight.shape[0], accumulate_type(weight.dtype)
    room, side = reference.PAIRS * classes, reference.tiles(classes)
    total, scale, value = (weight.new_empty(size, dtype=kind) for size in (classes, classes, room))
    first, second = (weight.new_empty(room, dtype=torch.int32) for _ in range(2))
    count, dense = weight.new_empty(1, dtype=torch.int64), weight.new_empty(side, side, dtype=torch.bool)
    return total, scale, first, second, value, count, dense


def _backward_fake(weight: Tensor, *_: Any) -> Tensor:
    return weight.new_empty(weight.shape)


forward_op = define(
    "gram",
    "gram_forward(Tensor weight, float threshold, bool raw) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.gram_forward,
    _forward_fake,
)
backward_op = define(
    "gram",
    "gram_backward(Tensor weight, float threshold, bool project, Tensor scale, Tensor total, Tensor first, "
    "Tensor second, Tensor value, Tensor count, Tensor dense, Tensor grad, bool raw) -> Tensor",
    reference.gram_backward,
    _backward_fake,
)


serve("gram_forward", tiles.forward)
serve("gram_backward", tiles.backward)


def value_of(total: Tensor, threshold: float, raw: bool) -> Tensor:
    """R from the first result of the forward pass: Z, or R itself (`raw`)."""
    if raw:
        return total.clone()
    return (total / math.e if threshold < 1 else total).log()  # exactly 0 for a single class


@takes(4)
class Repulsion(torch.autograd.Function):
    """(R [C], and what the backward pass needs) of class weights [C, d], with the gradient for the weights."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, threshold: float, project: bool, raw: bool) -> tuple[Tensor, ...]:
        total, *saved = forward_op(weight, threshold, raw)
        return value_of(total, threshold, raw), total, *saved

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, total, scale, *pairs = output
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], scale, total, *pairs)
        ctx.settings = inputs[1:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 4
        weight, *saved = ctx.saved_tensors
        threshold, project, raw = ctx.settings
        inputs = (weight, threshold, project, *saved, grad.contiguous(), raw)
        return first_order(backward_op, *inputs), None, None, None


def checked(
    weight: Tensor, threshold: float, project: Any, reduction: str, least: int = 1
) -> tuple[float, bool | Literal["raw"]]:
    """The threshold and the form, of class weights [C, d] with C at least `least`."""
    checks.floating("linear_weight", weight)
    if weight.ndim != 2 or weight.shape[0] < least:
        raise ValueError(f"linear_weight must be [C, d] with C at least {least}, got {list(weight.shape)}")
    checks.choice("reduction", reduction, ("none", "mean", "sum"))
    return checks.number("threshold", threshold), checks.flag_or("project", project, "raw")


def repulsion(weight: Tensor, threshold: float, project: bool | Literal["raw"]) -> Tensor:
    """R_i of each class [C], in the dtype of the arithmetic, from class weights [C, d]."""
    say_once()
    raw = project == "raw"
    weight = weight if raw else directions.in_range(weight)  # whose lengths count, or do not
    return apply(Repulsion, weight, threshold, project is True, raw)[0]

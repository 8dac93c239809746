"""A clear error for second derivatives, in place of a silently wrong value."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch

from lt_kernels.core import checks


class FirstOrder(torch.autograd.Function):
    """Run a backward operator; differentiating its result is an error that says so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(operator: Any, *inputs: Any) -> Any:
        return operator(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = inputs[0].__name__ if isinstance(inputs[0], FunctionType) else str(inputs[0])

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{ctx.name} has no derivative of its own: lt_kernels gives first derivatives only. "
            "For second derivatives use the dense formula in plain torch."
        )


def first_order(operator: Any, *inputs: Any) -> Any:
    """`operator(*inputs)`, guarded when a graph of the backward pass is being built."""
    for value in inputs:
        if isinstance(value, torch.Tensor):
            checks.stored("what the forward pass saved", value)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return operator(*inputs)
    return FirstOrder.apply(operator, *inputs)

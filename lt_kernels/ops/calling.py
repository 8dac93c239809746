"""Which of the two ways a call takes, and what their autograd functions share.

*Direct*: an eager call that no transformation, tracer or mode observes. The forward pass makes the gradient with the
loss. *Operators*: everything else, which is torch.compile, torch.func, dispatch modes, and on a CPU autocast.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks, private

_forced = [""]


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


HAS_TRITON = _importable("triton")


def forced() -> str:
    """The kernels that `use_kernels` asks for, "" without it; a call must then take the operators."""
    return _forced[0]


def force(which: str) -> None:
    """Take note of the kernels that `use_kernels` asks for."""
    _forced[0] = which


def watched() -> bool:
    """Whether torch.func, a compiler, a tracer or a mode observes the call: these need a Function's general form."""
    if torch.compiler.is_compiling():  # and the compiler cannot trace what follows
        return True
    return private.transformed() or private.dispatch_modes() or torch.jit.is_tracing()


def transient() -> bool:
    """Whether a tensor made now may not outlive the context it is made in: torch.func, a mode, inference."""
    return watched() or torch.is_inference_mode_enabled()


def direct(first: Tensor) -> bool:
    """Whether a call takes the direct way: `first` is a plain tensor, and only autograd observes the call."""
    if not plain(first) or watched():
        return False
    if on_gpu(first):
        return _forced[0] in ("", "triton")
    return first.is_cpu and not _forced[0] and not torch.is_autocast_enabled("cpu")


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is no subclass; a subclass, such as `DTensor`, may keep its values elsewhere."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def on_gpu(tensor: Tensor) -> bool:
    """Whether the GPU's kernels serve a tensor: there, or wherever it is if `use_kernels` asks for them."""
    return (tensor.is_cuda and HAS_TRITON) or _forced[0] == "triton"


def takes(inputs: int) -> Callable[[type[torch.autograd.Function]], type[torch.autograd.Function]]:
    """State how many inputs the forward of a Function takes, and make its eager form for `apply`.

    Dynamo reads the signature to tell whether the first input is a context; computed at each call it would take 9 us.
    """
    kind = inspect.Parameter.POSITIONAL_ONLY
    signature = inspect.Signature([inspect.Parameter(f"input{index}", kind) for index in range(inputs)])

    def mark(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
        function.forward.__signature__ = signature  # type: ignore[attr-defined]
        function.eager = _eager(function)  # type: ignore[attr-defined]
        return function

    return mark


def _eager(function: Any) -> type[torch.autograd.Function]:
    """The same Function in the older form, without `setup_context`: a call takes 12 us less."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), members)


def apply(function: Any, *inputs: Any) -> Any:
    """`function.apply(*inputs)`; in its eager form unless the general one is needed (`watched`)."""
    return function.apply(*inputs) if watched() else function.eager.apply(*inputs)


def handed_out(ctx: Any, grad: Tensor | None, read_only: bool = False) -> Tensor | None:
    """The gradient `ctx.gradient` that the forward made, times the incoming one; None where it must be computed again.

    It must be where the incoming gradient is infinite or NaN: 0 times that is NaN, but an ignored row has gradient 0.
    Where the graph is kept it is a copy, unless the caller only reads it.
    """
    made = ctx.gradient
    if made is None or grad is None or type(grad) is not Tensor or torch.is_grad_enabled():
        return None
    alone, kept = grad.ndim == 0, private.graph_kept()
    if private.batched(grad) or not (math.isfinite(grad.item()) if alone else bool(grad.isfinite().all())):
        return None
    one = alone and grad.item() == 1
    if made.dtype == torch.bfloat16 and not one:  # the product would round it a second time
        return None
    ctx.gradient = made if kept else None
    if one:
        return made.clone() if kept and not read_only else made
    by_row = grad if alone else grad[:, None]
    return made * by_row if kept else made.mul_(by_row)


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
    checks.all_stored("what the forward pass saved", inputs)
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return operator(*inputs)
    return FirstOrder.apply(operator, *inputs)

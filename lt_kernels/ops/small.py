"""Few logits on a CPU: torch's own cross-entropy, whose graph is built in C++, beats any operator from Python."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.ops import library
from lt_kernels.ops.budget import SLAB, current_budget

SMALL = 2**15  # logits; from about here on the fused kernels win (docs/kernels.md)
_TYPES = (torch.float32, torch.float64)


def few(input: Tensor, classes: int, product: bool) -> bool:
    """Whether features [N, d] make few logits, and a plain call is what it seems.

    A bare `product` may make more, as many as are one slab of the linear operator anyway: its graph saves half a
    millisecond of calls. Normalised copies of the weights, which a cosine needs here, are worth less.
    """
    if input.dtype == torch.float16:  # the operator multiplies it in float32
        return False
    logits = input.shape[0] * classes
    least = SLAB["cpu"] // (2 * input.element_size()) if product else SMALL
    return 0 < logits <= min(least, current_budget() // 8) and _usual(input)


def unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; a row of norm 0 stays 0 and gets no gradient."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norm.masked_fill(norm <= 1e-12, torch.inf)


def cosines(features: Tensor, linear_weight: Tensor) -> Tensor:
    """cos(x_i, w_c) [N, C], 0 for a row of norm 0; differentiable."""
    return F.linear(unit(features), unit(linear_weight))


def _usual(input: Tensor) -> bool:
    """Whether a plain call runs eagerly, here, outside of torch.func, autocast and `use_kernels`."""
    return (
        input.is_cpu
        and not library.forced()
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.is_autocast_enabled("cpu")
    )


def cross_entropy(
    logits: Any, target: Any, weight: Any, offset: Any, gamma: Any, smoothing: Any, ignore_index: Any, reduction: Any
) -> Tensor | None:
    """`F.cross_entropy(logits + offset, ...)` of few rows that all count; None for anything unusual, small or not.

    What is wrong or not finite (a target whose offset is -inf, perhaps) is left to the operators too, which say it by
    name; so are ignored rows, whose gradient torch makes NaN where their logits are infinite.
    """
    if type(target) is not Tensor or target.dtype is not torch.int64 or not isinstance(logits, Tensor):
        return None
    if type(smoothing) is not float or type(ignore_index) is not int or gamma != 0 or not 0 <= smoothing <= 1:
        return None
    dtype, shape = logits.dtype, logits.shape
    if dtype not in _TYPES or len(shape) != 2 or target.ndim != 1 or not 0 < shape[0] * shape[1] <= SMALL:
        return None
    if not (target.is_cpu and _usual(logits)) or not ignore_index < 0 <= target.min().item():
        return None
    try:
        table = None if weight is None else _table(weight, shape[1], dtype)
        u = logits if offset is None else logits + _table(offset, shape[1], dtype)
        loss = F.cross_entropy(
            u, target, table, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
        )
    except (IndexError, RuntimeError, ValueError, TypeError, AttributeError):
        return None
    if offset is None or math.isfinite((loss.sum() if loss.ndim else loss).item()):
        return loss
    return None


def linear_cross_entropy(input: Any, linear_weight: Any, linear_bias: Any, target: Any, *plain: Any) -> Tensor | None:
    """`cross_entropy` of the few logits of features [N, d]; None for anything unusual, as there."""
    if type(input) is not Tensor or input.ndim != 2 or not isinstance(linear_weight, Tensor):
        return None
    classes = linear_weight.shape[0] if linear_weight.ndim == 2 else 0
    if linear_weight.dtype is not input.dtype or not 0 < input.shape[0] * classes <= min(SMALL, current_budget() // 8):
        return None
    if not _usual(input) or not (linear_bias is None or getattr(linear_bias, "shape", None) == (classes,)):
        return None
    try:
        logits = F.linear(input, linear_weight, linear_bias)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return cross_entropy(logits, target, *plain)


def _table(table: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """A vector [C] in the logits' dtype."""
    if table.shape != (classes,) or not table.is_cpu or not table.is_floating_point():
        raise ValueError(table.shape)
    return table if table.dtype is dtype else table.to(dtype)

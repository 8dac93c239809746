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


def _is_vector(table: Any, classes: int) -> bool:
    return isinstance(table, Tensor) and table.shape == (classes,) and table.is_cpu and table.is_floating_point()


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

    What is wrong or not finite is left to the operators too, which say it by name.
    """
    if type(target) is not Tensor or target.dtype is not torch.int64 or not isinstance(logits, Tensor):
        return None
    shape, rows = logits.shape, target.shape
    if len(shape) != 2 or len(rows) != 1 or rows[0] != shape[0] or not 0 < logits.numel() <= SMALL:
        return None
    if logits.dtype not in _TYPES or gamma != 0 or type(smoothing) is not float or type(ignore_index) is not int:
        return None
    if not 0 <= smoothing <= 1:
        return None
    if not (_usual(logits) and target.is_cpu) or not ignore_index < 0 <= target.min().item():
        return None
    for table in (weight, offset):
        if table is not None and not _is_vector(table, shape[1]):
            return None
    try:
        weight = None if weight is None else weight.to(logits.dtype)
        u = logits if offset is None else logits + offset.to(logits.dtype)
        loss = F.cross_entropy(u, target, weight, reduction=reduction, label_smoothing=smoothing)
    except (IndexError, RuntimeError, ValueError, TypeError):
        return None
    if offset is None or math.isfinite((loss if loss.ndim == 0 else loss.sum()).item()):
        return loss
    return None  # a target whose offset is -inf, perhaps

"""Plain calls on a CPU by the shortest way: between two products of matrices each step of Python counts.

The extension takes what is plainest as it is (csrc/few.cpp); what needs a second look gets it here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.terms import NONE, SPHERE, SUM, WEIGHTED_MEAN
from lt_kernels.margins import Margin
from lt_kernels.ops import library, products
from lt_kernels.ops.budget import current_budget
from lt_kernels.ops.cosine import CosineLoss
from lt_kernels.ops.plain import LinearLoss, PlainLoss

SMALL = 2**15  # logits; from here on the operators win, where the short ways do not go (docs/kernels.md)
CODES = {"none": NONE, "mean": WEIGHTED_MEAN, "sum": SUM}
_VECTORS = (Tensor, torch.nn.Parameter)
_TYPES = (torch.float32, torch.float64, torch.bfloat16)
_compiling = torch.compiler.is_dynamo_compiling
_few, _few_linear = library.few_cross_entropy, library.few_linear_cross_entropy
# Their `apply`, without the look at torch.func, which had one already.
_kernels = super(torch.autograd.Function, PlainLoss).apply
_linear_kernels = super(torch.autograd.Function, LinearLoss).apply
_few_cosine, _cosine_kernels = library.few_cosine_cross_entropy, super(torch.autograd.Function, CosineLoss).apply
_NO_MARGIN = Margin()


def few(input: Tensor, classes: int, product: bool) -> bool:
    """Whether features [N, d] make few logits, and a plain call is what it seems.

    For a bare `product` few are as many as have room in the budget with their gradient: its graph is torch's own, and
    each gradient is one product. Normalised copies of the weights, which a cosine needs here, are worth less.
    """
    if input.dtype == torch.float16:  # the operator multiplies it in float32
        return False
    most = _room(input) if product else min(SMALL, _room(input))
    return 0 < input.shape[0] * classes <= most and _usual(input)


def _room(input: Tensor) -> int:
    """How many logits the budget holds, each with its gradient."""
    return current_budget() // (2 * input.element_size())


# Of rows with an entry beyond the first number, the product with the second: squares, their sums and products of two
# such rows are finite, and none becomes so short that it has no direction.
_RANGE = {torch.float64: (2.0**490, 2.0**-520)} | dict.fromkeys((torch.float32, torch.bfloat16), (2.0**44, 2.0**-76))


def in_range(rows: Tensor, always: bool = False) -> Tensor:
    """Rows [N, d] of which only the direction counts, those divided by a power of two whose norm may overflow.

    Where nobody looks at numbers (a GPU, a compiler), rows stay what they are, unless `always`. float16 needs none of
    it: its norms and products are float32.
    """
    looks = rows.is_cpu and type(rows) in (Tensor, torch.nn.Parameter) and not library.watched()
    if rows.dtype not in _RANGE or rows.ndim != 2 or rows.shape[1] == 0 or not (looks or always):
        return rows
    most, factor = _RANGE[rows.dtype]
    if looks and float(torch.linalg.vector_norm(rows.detach(), dtype=accumulate_type(rows.dtype))) <= most:
        return rows  # the norm of all rows is a quick look at the largest number
    top = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, keepdim=True)
    return rows * torch.where(top > most, torch.full_like(top, factor), 1.0)


def narrowed(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows [N, d] of which only the direction counts, as autocast asks; none overflows float16 on the way."""
    if dtype == torch.float16 and rows.shape[1]:
        top = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, keepdim=True)
        rows = rows * torch.exp2((8 - torch.frexp(top).exponent).clamp_max(0).to(rows.dtype))  # exact
    return rows.to(dtype)


def unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; a row of norm 0 stays 0 and gets no gradient."""
    rows = in_range(rows, always=True)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=accumulate_type(rows.dtype))
    return (rows / norm.masked_fill(norm <= 1e-12, torch.inf)).to(rows.dtype)


def cosines(features: Tensor, linear_weight: Tensor) -> Tensor:
    """cos(x_i, w_c) [N, C], 0 for a row of norm 0; differentiable."""
    checks.stored("features", features), checks.stored("weight", linear_weight)
    return F.linear(unit(features), unit(linear_weight))


def _usual(input: Tensor) -> bool:
    """Whether a plain call runs eagerly, here, outside of torch.func, modes, autocast and `use_kernels`."""
    return (
        input.is_cpu
        and not library.forced()
        and not torch.compiler.is_compiling()
        and not input.is_neg()  # where a compiler looks on, a reason to end the graph
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._is_tracing()
        and not checks.released(input)
    )


def cross_entropy(
    logits: Any, target: Any, weight: Any, offset: Any, gamma: Any, smoothing: Any, ignore_index: Any, reduction: Any
) -> Tensor | None:
    """The loss of plain logits [N, C] by the shortest way; None for anything unusual or wrong, which others name."""
    if _compiling():
        return None
    few = _few(logits, target, weight, offset, gamma, smoothing, ignore_index, reduction, SMALL, _kernels)
    if few is not None:
        return few
    if type(logits) is not Tensor or logits.dtype not in _TYPES or logits.ndim != 2:
        return None
    if not _plain(logits, logits.shape[1], target, gamma, smoothing, ignore_index, reduction):
        return None
    return _loss(logits, target, weight, offset, gamma, ignore_index, reduction)


def linear_cross_entropy(
    input: Any, linear_weight: Any, linear_bias: Any, target: Any, *settings: Any
) -> Tensor | None:
    """`cross_entropy` of all logits of features [N, d], where a budget has room for them; None as there.

    The settings are those of `cross_entropy`, from `weight` on.
    """
    if _compiling():
        return None
    few = _few_linear(input, linear_weight, linear_bias, target, *settings, SMALL, current_budget(), _linear_kernels)
    if few is not None:
        return few
    weight, offset, gamma, smoothing, ignore_index, reduction = settings
    if type(input) is not Tensor or input.dtype not in _TYPES or not isinstance(linear_weight, Tensor):
        return None
    if input.ndim != 2 or linear_weight.ndim != 2 or linear_weight.dtype is not input.dtype:
        return None
    if checks.released(linear_weight) or (isinstance(linear_bias, Tensor) and checks.released(linear_bias)):
        return None
    classes = linear_weight.shape[0]
    if not (linear_bias is None or getattr(linear_bias, "shape", None) == (classes,)):
        return None
    if getattr(offset, "requires_grad", False):
        return None
    plain = (target, gamma, smoothing, ignore_index, reduction)
    if input.shape[0] * classes > _room(input) or not _plain(input, classes, *plain):
        return None
    try:
        logits = products.with_graph(input, linear_weight, linear_bias)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return _loss(logits, target, weight, offset, gamma, ignore_index, reduction)


def cosine_cross_entropy(
    input: Any,
    linear_weight: Any,
    target: Any,
    margin: Any,
    class_margin: Tensor | None,
    scale: Any,
    weight: Any,
    offset: Any,
    gamma: Any,
    smoothing: Any,
    ignore_index: Any,
    reduction: Any,
    average: str = "weighted",
) -> Tensor | None:
    """The loss of cosines that fit, with any margin but SphereFace's, by one node; None as for `cross_entropy`.

    `class_margin` is the margin's own where that was moved; `average` says whether a mean counts weights or rows.
    """
    margin = _NO_MARGIN if margin is None else margin
    if _compiling() or not isinstance(margin, Margin) or margin.kind == SPHERE:
        return None
    return _few_cosine(
        input,
        linear_weight,
        target,
        weight,
        offset,
        margin.per_class if class_margin is None else class_margin,
        scale,
        margin.kind,
        margin.value,
        margin.strength,
        margin.fallback,
        gamma,
        ignore_index,
        reduction,
        smoothing,
        average,
        current_budget(),
        _cosine_kernels,
    )


def _plain(
    rows: Tensor, classes: int, target: Any, gamma: Any, smoothing: Any, ignore_index: Any, reduction: Any
) -> bool:
    """Whether a call has rows, one class index for each, and settings of the usual types and in their ranges."""
    count = rows.shape[0]
    return (
        type(target) is Tensor
        and target.dtype is torch.int64
        and target.shape == (count,)
        and not checks.released(target)
        and target.is_cpu
        and count * classes > 0
        and type(gamma) is float
        and 0 <= gamma < math.inf
        and type(smoothing) is float
        and smoothing == 0
        and type(ignore_index) is int
        and -(2**63) <= ignore_index < 2**63
        and type(reduction) is str
        and reduction in CODES
        and _usual(rows)
    )


def _loss(
    logits: Tensor, target: Tensor, weight: Any, offset: Any, gamma: float, ignore_index: int, reduction: str
) -> Tensor | None:
    """By the fused rows; None where something is wrong, or where the offset is learned."""
    classes, kind = logits.shape[1], accumulate_type(logits.dtype)
    try:
        weight = None if weight is None else _table(weight, classes, kind)
        offset = None if offset is None else _table(offset, classes, kind)
        if offset is not None and offset.requires_grad:
            return None
        return _kernels(_rows(logits), target.contiguous(), weight, offset, gamma, ignore_index, CODES[reduction])
    except (IndexError, RuntimeError, ValueError, TypeError, AttributeError):
        return None


def _table(table: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """A vector [C] in the dtype of the arithmetic; a subclass may have its numbers elsewhere, as DTensor has."""
    if (
        type(table) not in _VECTORS
        or table.shape != (classes,)
        or checks.released(table)
        or not table.is_cpu
        or not table.is_floating_point()
        or table.is_neg()
    ):
        raise ValueError(table.shape)
    return table.to(dtype).contiguous()


def _rows(logits: Tensor) -> Tensor:
    """Rows that are dense, as the extension reads them; they may lie apart."""
    return logits if logits.stride(1) == 1 else logits.contiguous()

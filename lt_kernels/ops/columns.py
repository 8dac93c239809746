"""Column-wise log-sum-exp of given logits: schemas, fakes and autograd; and LADE's regulariser on both ways."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type, autocast
from lt_kernels.ops.backends.library import built, define, say_once
from lt_kernels.ops.calling import apply, direct, first_order, handed_out, on_gpu, takes
from lt_kernels.reference import columns as reference


def _forward_fake(logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    kind = accumulate_type(logits.dtype)
    return logits.new_empty(logits.shape[1], dtype=kind), logits.new_empty(logits.shape[0], dtype=kind)


def _backward_fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _lade_fake(logits: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=accumulate_type(logits.dtype)), logits.new_empty(logits.shape if rest[-1] else 0)


forward_op = define(
    "columns",
    "columns_forward(Tensor logits, Tensor target, Tensor? row_offset) -> (Tensor, Tensor)",
    reference.columns_forward,
    _forward_fake,
)
backward_op = define(
    "columns",
    "columns_backward(Tensor logits, Tensor target, Tensor? row_offset, Tensor lse, Tensor d_lse, Tensor d_own) "
    "-> Tensor",
    reference.columns_backward,
    _backward_fake,
)


lade_op = define(
    "columns",
    "lade_loss(Tensor logits, Tensor target, Tensor class_counts, float lam, bool by_class, bool every_class, "
    "float factor, bool want) -> (Tensor, Tensor)",
    lambda *inputs: _lade_loss(*inputs),
    _lade_fake,
)


@takes(7)
class Lade(torch.autograd.Function):
    """sum_c counted_c (m_c + lam m_c^2) + sum_i share_i z_iy with m_c = logsumexp_i (z_ic + row_offset_i) + shift_c.

    One autograd function for the whole sum, since the forward pass has its derivatives by lse and by the target logits.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits: Tensor,
        target: Tensor,
        row_offset: Tensor | None,
        shift: Tensor,
        counted: Tensor,
        share: Tensor,
        lam: float,
    ) -> tuple[Tensor, ...]:
        lse, own = forward_op(logits, target, row_offset)
        mean = lse + shift
        scaled = lam * mean
        value = (counted * torch.addcmul(mean, scaled, mean)).sum() + (share * own).sum()
        return value, lse, torch.addcmul(counted, counted, scaled, value=2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:3], inputs[5], *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        logits, target, row_offset, share, lse, slope = ctx.saved_tensors
        slopes = (grad * slope, grad * share)
        return first_order(backward_op, logits, target, row_offset, lse, *slopes), *(None,) * 6


class LadeLoss(torch.autograd.Function):
    """`factor` times `lade` of float32 or float64 logits on the direct way: the forward pass computes the gradient too.

    logits [N, C], target [N], class counts [C], lam, whether weights are by class, whether the sum is over all classes,
    and the factor.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        value, gradient = lade_op(*inputs, ctx.needs_input_grad[0])
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(inputs[0])
            ctx.gradient = gradient
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        made = handed_out(ctx, grad)
        return first_order(_times, logits, ctx.gradient, grad) if made is None else made, *(None,) * 6


def _times(_: Tensor, made: Tensor, grad: Tensor) -> Tensor:
    """The gradient for the logits, which are an argument so that asking for a second derivative is an error."""
    return made * grad


def _lade_loss(
    logits: Tensor,
    target: Tensor,
    class_counts: Tensor,
    lam: float,
    by_class: bool,
    every_class: bool,
    factor: float,
    want: bool,
) -> tuple[Tensor, Tensor]:
    """The reference kernel of `lade_loss`, from the operators for columns."""
    prior = class_counts.double() / class_counts.double().sum()
    numbers = _numbers(logits, target, prior, by_class, every_class, None)
    value, lse, slope = Lade.forward(logits, target, *numbers, lam)
    if not want:
        return factor * value, logits.new_empty(0)
    row_offset, _, _, share = numbers
    return factor * value, backward_op(logits, target, row_offset, lse, factor * slope, factor * share)


def ignored_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Which rows are ignored [N]; None if none is and that can be told without synchronising with a device."""
    ignored = target == ignore_index
    return None if checks.readable(ignored) and not bool(ignored.any()) else ignored


def checked(logits: Tensor, target: Tensor, count: Tensor, least: int) -> Tensor:
    """The target of logits [N, C], N at least `least`, as int64."""
    checks.floating("logits", logits)
    if logits.ndim != 2 or logits.shape[0] < least or logits.shape[1] == 0:
        raise ValueError(f"logits must be [N, C] with N at least {least} and C at least 1, got {list(logits.shape)}")
    target = checks.indices("target", target, logits.shape[:1], logits)
    if count.numel() != logits.shape[1]:
        raise ValueError(f"class_counts must have {logits.shape[1]} entries, one a class, got {count.numel()}")
    return target


def lade_of_counts(
    logits: Tensor,
    target: Tensor,
    count: Tensor,
    lam: float,
    importance: str,
    classes: str,
    factor: float = 1.0,
    ignore_index: int | None = None,
) -> Tensor:
    """`factor` times `functional.lade_regularizer`, with settings and counts that were checked before.

    Rows whose target is `ignore_index` are left out of every sum.
    """
    target = checked(logits, target, count, 1)
    ignored = None if ignore_index is None else ignored_rows(target, ignore_index)
    served = logits.dtype in (torch.float32, torch.float64) and not on_gpu(logits)
    if ignored is None and built() and served and direct(logits):
        chosen = (float(lam), importance == "class", classes == "all", float(factor))
        try:
            return LadeLoss.apply(logits, target, count.to(torch.float64), *chosen)
        except RuntimeError as error:
            raise checks.named(error) from None
    prior = (count / count.sum()).to(logits.device)
    if ignored is not None:
        logits, target = logits.masked_fill(ignored[:, None], 0.0), target.masked_fill(ignored, 0)
    if checks.readable(target):
        reference.check_target(target, logits.shape[1])
    value = lade(logits, target, prior, float(lam), importance, classes, None if ignored is None else ~ignored)
    value = value if autocast(logits) else value.to(logits.dtype)
    return value if factor == 1 else factor * value


NOTHING = -(2.0**100)  # its exponential is exactly 0, and unlike an infinity it can be subtracted


def lade(
    logits: Tensor, target: Tensor, prior: Tensor, lam: float, importance: str, classes: str, left: Tensor | None = None
) -> Tensor:
    """sum_c p_c (-A_c + B_c + lam B_c^2) of logits [N, C], class indices [N] and the prior p [C] in float64.

    The epsilons 1e-8 and 1e-9 are those of the published code. `left` [N] says which rows count; without any, the sum
    is 0.
    """
    say_once()
    return apply(
        Lade, logits, target, *_numbers(logits, target, prior, importance == "class", classes == "all", left), lam
    )[0]


def _numbers(
    logits: Tensor, target: Tensor, prior: Tensor, by_class: bool, every_class: bool, left: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """(row_offset, shift, counted, share) of `Lade`."""
    rows, width = logits.shape
    kind = accumulate_type(logits.dtype)
    log_prior, uniform = torch.log(prior + 1e-9), math.log(1 / width + 1e-9)
    ones = prior.new_ones(rows) if left is None else left.to(prior.dtype)
    mean = math.log(rows) if left is None else ones.sum().clamp_min(1).log()
    inside = target.clamp(0, width - 1)  # the operator raises for the others
    count = torch.zeros_like(prior).index_add(0, inside, ones)
    share = (prior / (-1e-8 - count)).to(kind)[inside]
    counted = (prior if every_class else prior * (count > 0)).to(kind)
    shift = (uniform - mean - log_prior if by_class else torch.zeros_like(prior) - mean).to(kind)
    row_offset = None if by_class else (uniform - log_prior)[inside].to(kind)
    if left is not None:
        some = left.any()
        share, counted = share.where(left, 0.0), counted * some
        row_offset = torch.where(left | ~some, 0.0 if row_offset is None else row_offset, NOTHING).to(kind)
    return row_offset, shift, counted, share

"""Losses on the direct way (`calling.direct`): one autograd function for each source, whose forward makes the gradient.

It is computed while a row is in the cache, for an incoming gradient of 1; backward returns it as it is.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks, private
from lt_kernels.core.linear import Normalize
from lt_kernels.core.numbers import accumulate_type, as_they_are, autocast
from lt_kernels.core.targets import counted
from lt_kernels.core.terms import Phi, Reduce, Terms
from lt_kernels.ops import calling, directions, products, rows
from lt_kernels.ops.backends import gpu
from lt_kernels.ops.calling import first_order, handed_out
from lt_kernels.reference.linear import along

_REDUCTIONS: dict[int, str] = {Reduce.NONE: "none", Reduce.WEIGHTED_MEAN: "mean", Reduce.SUM: "sum"}


def rows_loss(logits: Tensor, target: Tensor, terms: Terms, code: int) -> Tensor:
    """The loss of logits [N, C] and class indices [N] in the dtype of the arithmetic, by the code of the reduction."""
    if not torch.is_grad_enabled():
        return rows.loss_op(logits, target, *terms, code)[0]
    offset = terms.offset if terms.offset is not None and terms.offset.requires_grad else None
    return RowsLoss.apply(logits, offset, target, terms, code)


def features_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, terms: Terms, normalize: int, code: int
) -> Tensor:
    """The loss of features [N, d] and class weights [C, d], where the memory budget holds the logits twice."""
    scales: list[Tensor | None] = [None, None]
    if normalize == Normalize.BOTH and calling.on_gpu(input):
        scales = [*gpu.inverse_norms(input.detach(), weight.detach())]
    elif normalize == Normalize.BOTH:
        (input, by_row), (weight, by_class) = _with_inverse_norms(input), _with_inverse_norms(weight)
        scales = [by_row, by_class]
    if calling.on_gpu(input) and _one_pass(input, terms):
        return FeaturesLoss.apply(input, weight, bias, terms.offset, target, terms, scales, code)
    if not torch.is_grad_enabled():
        logits = products.linear(input, weight, bias)
        for scale in (None if scales[0] is None else scales[0][:, None], scales[1]):
            logits = logits if scale is None else logits.mul_(scale)
        return rows.loss_op(logits, target, *terms, code)[0]
    if not _one_pass(input, terms):
        return rows_loss(products.logits(input, weight, bias), target, terms, code)
    return FeaturesLoss.apply(input, weight, bias, terms.offset, target, terms, scales, code)


def bytes_of(features: Tensor) -> int:
    """The bytes for each logit and its gradient; a GPU's are one array, but for half precision, summed in float32."""
    size = features.element_size()
    if calling.on_gpu(features):
        return size if size >= 4 else 4 + size
    return 2 * size


def _one_pass(values: Tensor, terms: Terms) -> bool:
    """Whether the gradient for the logits, made with the loss, holds all gradients.

    A learned offset [1, C] has its column sums; not so if a margin changes the target's logit, whose offset stays.
    """
    if terms.offset is None or not terms.offset.requires_grad:
        return True
    return terms.kind == Phi.PLAIN and terms.offset.shape[0] == 1 and values.dtype in (torch.float32, torch.float64)


def _of_offset(slope: Tensor, terms: Terms) -> Tensor:
    """The gradient of an offset [1, C] from that of the logits, which are multiplied by a scale before."""
    found = slope.sum(0, keepdim=True)
    return found if terms.scale == 1 else found / terms.scale


class RowsLoss(torch.autograd.Function):
    """The loss of logits [N, C]: (logits, offset or None, target [N], terms, the code of the reduction).

    A loss for which `is_plain` holds has second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, _: Tensor | None, target: Tensor, terms: Terms, code: int) -> Tensor:
        wanted, learned, *_ = ctx.needs_input_grad
        saved = ctx.gradient = None
        # A gradient in float16 could underflow before the incoming one scales it up.
        once = wanted and logits.dtype is not torch.float16 and _one_pass(logits, terms)
        ctx.on_gpu = calling.on_gpu(logits)
        if ctx.on_gpu:
            loss, saved, ctx.gradient = gpu.rows_made(logits, target, terms, code, once)
        elif once:
            loss, ctx.gradient = rows.gradient_op(logits, target, None, None, *terms, code)
        else:
            loss, saved = rows.loss_op(logits, target, *terms, code)
        if wanted or learned:
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(logits, target, terms.offset, terms.weight, terms.sample_weight, saved)
            ctx.terms, ctx.code = terms, code
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted, learned, *_ = ctx.needs_input_grad
        if grad is None:
            return None, None, None, None, None
        logits, target, *_, saved = ctx.saved_tensors
        made = gpu.handed_out(ctx, grad, target) if ctx.on_gpu else handed_out(ctx, grad)
        if made is not None:
            return made, _of_offset(made, ctx.terms) if learned else None, None, None, None
        if torch.is_grad_enabled() and not learned and is_plain(ctx.terms, ctx.code):
            return *differentiable((logits,), logits, target, ctx.terms, ctx.code, grad), None, None, None, None
        if saved is None:
            saved = rows.loss_op(logits.detach(), target, *ctx.terms, ctx.code)[1]
        fixed = (ctx.terms.scale, ctx.terms.ignore_index)
        d_logits, d_offset = rows.slopes(logits, target, saved, grad, ctx.terms[:3], fixed, learned)
        return d_logits if wanted else None, d_offset, None, None, None


def is_plain(terms: Terms, code: int) -> bool:
    """Whether a loss is cross-entropy of scaled logits with at most one offset, class weights and smoothing."""
    offset, row = terms.offset, terms.offset_row
    if terms.kind != Phi.PLAIN or terms.gamma or terms.class_smoothing is not None or code not in _REDUCTIONS:
        return False
    if terms.sample_weight is not None or terms.z_loss:
        return False
    return offset is None or (row is None and (not terms.smoothing or bool(offset.isfinite().all())))


def differentiable(
    leaves: tuple[Tensor, ...], logits: Tensor, target: Tensor, terms: Terms, code: int, grad: Tensor
) -> tuple[Tensor, ...]:
    """The gradients of a plain loss in steps that torch can differentiate once more."""
    u = terms.scale * logits.to(accumulate_type(logits.dtype))
    u = u if terms.offset is None else u + terms.offset
    chosen = {"ignore_index": terms.ignore_index, "label_smoothing": terms.smoothing, "reduction": _REDUCTIONS[code]}
    loss = F.cross_entropy(u, target, terms.weight, **chosen)  # type: ignore[arg-type]
    return torch.autograd.grad(loss.to(grad.dtype), leaves, grad, create_graph=True)


class FeaturesLoss(torch.autograd.Function):
    """The loss of features [N, d] and class weights [C, d], whose logits are freed when the forward pass ends.

    (input, weight, bias [C] or None, offset or None, target [N], terms, for cosines the inverse norms [N] and [C], the
    code of the reduction). Its backward is two products; for cosines their part along each normalised row is taken off,
    and there is no second derivative.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        _: Tensor | None,
        target: Tensor,
        terms: Terms,
        scales: list[Tensor | None],
        code: int,
    ) -> Tensor:
        ctx.on_gpu = calling.on_gpu(input)
        ctx.cast = None if weight.dtype == input.dtype else weight.to(input.dtype)  # as autocast asks
        if ctx.on_gpu:
            factor = weight if ctx.cast is None else ctx.cast
            loss, ctx.gradient = gpu.features_made(input, factor, bias, target, terms, scales, code)
        else:
            logits = products.linear(input, weight, bias)
            loss, ctx.gradient = rows.gradient_op(logits, target, *scales, *terms, code)
        ctx.save_for_backward(input, weight, bias, target, terms.offset, terms.weight, *scales)
        ctx.terms, ctx.code = terms, code
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, target, _, _, *scales = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        if torch.is_grad_enabled() and scales[0] is None and not needs[3] and is_plain(ctx.terms, ctx.code):
            leaves = tuple(leaf for leaf, need in zip((input, weight, bias), needs[:3], strict=True) if need)
            factor = checks.stored("linear_weight", weight).to(input.dtype)
            logits = F.linear(checks.stored("input", input), factor, None if bias is None else bias.to(input.dtype))
            found = iter(differentiable(leaves, logits, target, ctx.terms, ctx.code, grad))
        else:
            made = ctx.gradient
            slope = gpu.handed_out(ctx, grad, target) if ctx.on_gpu else handed_out(ctx, grad, read_only=True)
            if slope is None:
                incoming = counted(grad, checks.stored("target", target), ctx.terms.ignore_index)
                slope = made * incoming[:, None].to(made.dtype)
            with as_they_are(input.device) if autocast(input) else nullcontext():
                factor = weight if ctx.cast is None else ctx.cast
                found = iter(first_order(features_slopes, input, weight, factor, ctx.terms, *scales, slope, *needs))
        return *(next(found) if need else None for need in needs), None, None, None, None


def features_slopes(
    input: Tensor,
    weight: Tensor,
    factor: Tensor,
    terms: Terms,
    by_row: Tensor | None,
    by_class: Tensor | None,
    slope: Tensor,
    *needs: bool,
) -> tuple[Tensor, ...]:
    """The gradients that are wanted, from that of the product of features and `factor`, the class weights as cast."""
    found: list[Tensor] = []
    for need, left, right, own, scale in (
        (needs[0], slope, factor, input, by_row),
        (needs[1], slope.t(), input, weight, by_class),
    ):
        if need:
            found.append(_slope_product(left, right, own, scale))
    if needs[2]:
        found.append(slope.sum(0))
    if needs[3]:
        found.append(_of_offset(slope, terms))
    return tuple(found)


def _slope_product(left: Tensor, right: Tensor, own: Tensor, scale: Tensor | None) -> Tensor:
    """left @ right, the gradient of the rows `own`; of normalised rows without its part along them."""
    if private.batched(left):
        found = torch.mm(left, right).to(own.dtype)
        return found if scale is None else found - along(found, own, scale) * own
    if calling.on_gpu(own):
        return gpu.slope_product(left, right, own, scale)
    found = products.product(left, right)
    if scale is not None:
        directions.project(found, own, scale)
    return found


def _with_inverse_norms(of: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, d] whose norms are in range, and 1 / |row|; 0 for one shorter than 1e-12, which has no direction."""
    norm = torch.linalg.vector_norm(of.detach(), dim=1)
    if not float(norm.max()) <= directions.most(of.dtype):
        of = directions.in_range(of)
        norm = torch.linalg.vector_norm(of.detach(), dim=1)
    return of, torch.where(norm <= 1e-12, 0.0, norm.reciprocal())

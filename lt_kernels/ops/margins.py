"""From the statistics of each row to its loss: schema, fake, autograd, and the form for two targets per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import finite
from lt_kernels.core.targets import at_target, counted, pick
from lt_kernels.core.terms import LOSS_FIELDS, Terms
from lt_kernels.ops.backends.library import define
from lt_kernels.ops.calling import apply, first_order, takes
from lt_kernels.reference import margins as reference


def _fake(rest: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(rest), rest.new_empty(5, rest.shape[0])


margins_op = define(
    "margins",
    "margins(Tensor rest, Tensor top, Tensor own, Tensor rival, Tensor target, Tensor? own_offset, Tensor? norm, "
    "Tensor? mean, Tensor? total, Tensor? share, Tensor? weight, Tensor? sample_weight, Tensor? class_margin, "
    "Tensor? class_smoothing, float scale, int kind, float margin, float instance, bool guard, float gamma, "
    "float smoothing, float z_loss, int ignore_index) "
    "-> (Tensor, Tensor)",
    reference.margins,
    _fake,
)


@takes(23)
class Margins(torch.autograd.Function):
    """loss [N] from the statistics, with gradients for rest, own, own_offset, norm and mean; top is held constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return margins_op(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], inputs[4])
        ctx.inputs, ctx.ignore_index = len(inputs), inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * ctx.inputs
        slopes, target = ctx.saved_tensors
        checks.stored("target", target)
        found = first_order(torch.mul, counted(grad, target, ctx.ignore_index), slopes).unbind()
        places = (0, 2, 5, 6, 7)  # rest, own, own_offset, norm, mean among the inputs
        grads: list[Tensor | None] = [None] * ctx.inputs
        for place, value in zip(places, found, strict=True):
            grads[place] = value if ctx.needs_input_grad[place] else None
        return tuple(grads)


def loss(
    rest: Tensor,
    top: Tensor,
    own: Tensor,
    rival: Tensor,
    target: Tensor,
    own_offset: Tensor,
    mean: Tensor,
    terms: Terms,
    norm: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of each row [N] from its statistics, differentiable in all of them, and its slopes [5, N].

    The slopes are the derivatives by rest, own, own_offset, norm and mean.
    """
    t = terms
    total = share = None
    if t.mean_weight is not None and t.total is not None:
        share = at_target(t.mean_weight, t.offset_row, target)
        total = pick(t.total[:, None], t.offset_row).expand(target.shape[0], 1)[:, 0].contiguous()
    offset = own_offset if t.offset is not None else None
    return apply(
        Margins,
        *(rest, top, own, rival, target, offset, norm, None if share is None else mean, total, share),
        *t[LOSS_FIELDS],
    )


def mixed_losses(
    statistics: tuple[Tensor, ...], target: list[Tensor], terms: Terms, norm: Tensor | None = None
) -> list[Tensor]:
    """The losses [N] of the first and of the second target, from the statistics without both."""
    rest, own, own_offset, mean, rival, top, shares = statistics
    same = target[0] == target[1]
    parts = []
    for slot, other in ((0, 1), (1, 0)):
        other_u = terms.scale * own[:, other] + own_offset[:, other]
        away = same | (target[other] == terms.ignore_index)
        put = other_u.masked_fill(away, -torch.inf)
        whole = torch.maximum(top, put.detach())
        down = finite(top) - finite(whole)
        above = put - finite(whole)
        full = _logaddexp(rest + down, above)
        best = torch.maximum(rival, own[:, other].detach().masked_fill(away, -torch.inf))
        full_mean = mean
        if terms.mean_weight is not None:
            share = at_target(terms.mean_weight, terms.offset_row, target[other])
            full_mean = mean + down * shares
            full_mean = full_mean + torch.where(away | (share == 0), 0.0, share * above.masked_fill(away, 0.0))
        parts.append(
            loss(full, whole, own[:, slot], best, target[slot], own_offset[:, slot], full_mean, terms, norm)[0]
        )
    return parts


def _logaddexp(first: Tensor, second: Tensor) -> Tensor:
    """logaddexp; where both are -inf it is the first one, with that one's gradient instead of NaN."""
    neither = (first == -torch.inf) & (second == -torch.inf)
    return torch.where(
        neither, first, torch.logaddexp(first.masked_fill(neither, 0.0), second.masked_fill(neither, 0.0))
    )

"""Log-sum-exps over keys with class labels: schemas, fakes and autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lt_kernels.ops import budget, products
from lt_kernels.ops.backends.library import define, say_once, serve
from lt_kernels.ops.calling import apply, first_order, takes
from lt_kernels.reference import keys as reference

_VALUES = "Tensor query, Tensor key, Tensor query_class, Tensor key_class, Tensor offset, Tensor left_out, int row_slab"
_ROOM = "keys"


def _forward_fake(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape[0]), query.new_empty(query.shape[0])


def _backward_fake(query: Tensor, key: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    first, second = rest[-1]
    return query.new_empty(query.shape if first else (0,)), key.new_empty(key.shape if second else (0,))


forward_op = define(_ROOM, f"keys_forward({_VALUES}) -> (Tensor, Tensor)", reference.keys_forward, _forward_fake)
backward_op = define(
    _ROOM,
    f"keys_backward({_VALUES}, Tensor rest, Tensor own, Tensor d_rest, Tensor d_own, bool[] wants) -> (Tensor, Tensor)",
    reference.keys_backward,
    _backward_fake,
)


def _forward_here(*inputs: Any) -> tuple[Tensor, Tensor]:
    return reference.keys_forward(*inputs, linear=products.linear)


def _backward_here(*inputs: Any) -> tuple[Tensor, Tensor]:
    return reference.keys_backward(*inputs, linear=products.linear, product=products.product)


serve("keys_forward", _forward_here)
serve("keys_backward", _backward_here)


@takes(7)
class KeyStatistics(torch.autograd.Function):
    """(rest [N], own [N]) of queries and keys, with gradients for both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return forward_op(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:6], *output)
        ctx.row_slab = inputs[6]

    @staticmethod
    def backward(ctx: Any, d_rest: Tensor, d_own: Tensor) -> tuple[Tensor | None, ...]:
        *problem, rest, own = ctx.saved_tensors
        wants = list(ctx.needs_input_grad[:2])
        slopes = (d_rest.contiguous(), d_own.contiguous())
        found = first_order(backward_op, *problem, ctx.row_slab, rest, own, *slopes, wants)
        d_query, d_key = (grad if wanted else None for grad, wanted in zip(found, wants, strict=True))
        return d_query, d_key, *(None,) * 5


def statistics(
    query: Tensor, key: Tensor, query_class: Tensor, key_class: Tensor, offset: Tensor, left_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(rest [N], own [N]): log-sum-exps of query.key + offset over the keys of other classes, and of a row's own.

    Queries [N, d] and keys [K, d] are float32 or float64, and so are the logits, also under autocast, because a
    temperature multiplies their rounding errors. Classes are [N] and [K], where a key of class -1 is an empty place;
    offset [K]; left_out [N] is the key that a row leaves out, or -1.
    """
    say_once()
    if left_out is None:
        left_out = torch.full_like(query_class, -1)
    held = min(budget.SLAB.get(query.device.type, budget.DEFAULT_BUDGET), max(1, budget.current_budget() // 2))
    row_slab = max(1, held // (max(1, key.shape[0]) * query.element_size()))
    return apply(KeyStatistics, query, key, query_class, key_class, offset, left_out, row_slab)

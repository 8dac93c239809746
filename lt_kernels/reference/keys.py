"""Log-sum-exps over keys with class labels: those of a row's own class, and all others (docs/math.md, section 12).

With queries q [N, d], keys k [K, d] and an offset b [K] for each key,

    own_i = log sum_{k of class y_i} exp(q_i.k + b_k)      rest_i = log sum_{k of another class} exp(q_i.k + b_k)

A key of class -1 is an empty place, and each row may leave out one key, for example its own. The rows are processed in
slabs, so that no [N, K] array exceeds the memory budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core.numbers import as_they_are, finite
from lt_kernels.core.targets import check_places

_NOBODY = -(2**62)  # as ignore_index: no row has this target, so no row is ignored


class Keys(NamedTuple):
    """The arguments that both operators share, in their order."""

    query: Tensor  # [N, d]
    key: Tensor  # [K, d]
    query_class: Tensor  # [N]
    key_class: Tensor  # [K]; -1 is an empty place
    offset: Tensor  # [K]
    left_out: Tensor  # [N]: the key that a row leaves out, or -1
    row_slab: int

    def slabs(self) -> Iterator[slice]:
        """Blocks of rows; one empty block when there are no rows."""
        size = max(self.query.shape[0], 1)
        return (slice(first, min(first + self.row_slab, size)) for first in range(0, size, self.row_slab))

    def same(self, rows: slice) -> Tensor:
        """Which keys are of a row's class [n, K]."""
        return self.query_class[rows, None] == self.key_class

    def check(self) -> None:
        """Raise where `left_out` is no key; only on a CPU, because on a GPU it would synchronise."""
        check_places("left_out", self.left_out, self.key.shape[0], self.left_out >= 0)

    def seen(self) -> Tensor:
        """The offsets [K], -inf for an empty place."""
        return self.offset.masked_fill(self.key_class < 0, -torch.inf)


def keys_forward(*inputs: Any, linear: Callable[..., Tensor] = F.linear) -> tuple[Tensor, Tensor]:
    """(rest [N], own [N]); -inf where there is no such key. `linear` computes the logits."""
    p, parts = Keys(*inputs), []
    p.check()
    size, offset = p.key.shape[0], p.seen()
    with as_they_are(p.query.device):
        for rows in p.slabs():
            logits, same = linear(p.query[rows], p.key), p.same(rows)
            target = torch.where(p.left_out[rows] < 0, size, p.left_out[rows])[:, None]  # `size` is no key
            tables = (torch.where(same, -torch.inf, offset), torch.where(same, offset, -torch.inf))
            shared = (None, None, 0, size + 1, _NOBODY)
            kernel = torch.ops.lt_kernels.rows_forward.default
            found = [kernel(logits, target, 1.0, None, None, table, *shared) for table in tables]
            parts.append([rest + finite(top) for rest, _, _, _, top, _ in found])
    rest, own = (torch.cat(part) for part in zip(*parts, strict=True))
    return rest, own


def keys_backward(
    *inputs: Any, linear: Callable[..., Tensor] = F.linear, product: Callable[..., Tensor] = torch.mm
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and keys; the problem, then rest, own, their slopes, and which are wanted (else empty)."""
    p, (rest, own, d_rest, d_own, wants) = Keys(*inputs[:7]), inputs[7:]
    p.check()
    rest, own = (torch.where(value == -torch.inf, 0.0, value) for value in (rest, own))  # no such keys: shares of 0
    d_query = p.query.new_zeros(p.query.shape if wants[0] else (0,))
    d_key = p.key.new_zeros(p.key.shape if wants[1] else (0,))
    offset = p.seen()
    with as_they_are(p.query.device):
        for rows in p.slabs():
            same = p.same(rows)
            share = linear(p.query[rows], p.key, offset)
            share = share.sub_(torch.where(same, own[rows, None], rest[rows, None])).exp_()
            share = share.mul_(torch.where(same, d_own[rows, None], d_rest[rows, None]))
            place, sees = p.left_out[rows, None].clamp_min(0), p.left_out[rows, None] < 0
            share.scatter_(1, place, torch.where(sees, share.gather(1, place), 0.0))
            if wants[0]:
                d_query[rows] = product(share, p.key)
            if wants[1]:
                d_key.addmm_(share.T, p.query[rows])
    return d_query, d_key

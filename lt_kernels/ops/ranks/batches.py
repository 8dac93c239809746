"""A batch whose rows are dealt over the ranks of a group: the rows of all, in the order of the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.ops.ranks import exchange


class Parts(NamedTuple):
    """How many rows of a batch each rank has, and the number of the exchange that told it."""

    group: Any
    sizes: list[int]
    rank: int
    call: int

    @property
    def total(self) -> int:
        """The rows of all ranks."""
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        """This rank's rows among all."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def rows(self, mine: Tensor) -> Tensor:
        """The rows [total, n] of all ranks from this rank's [N, n]."""
        most = max(self.sizes)
        if most == 0:
            return mine
        padded = mine.new_zeros((most, mine.shape[1]))  # a collective wants the same shape of every rank
        padded[: len(mine)] = mine
        found = exchange.gather(padded, self.group)
        return torch.cat([part[:size] for part, size in zip(found, self.sizes, strict=True)])

    def summed(self, grad: Tensor) -> Tensor:
        """The sum over the ranks of gradients [total, ...] of all rows, for this rank's rows."""
        said = [exchange.check("the gradient", (grad.dtype, grad.shape))]
        exchange.meet(self.group, "backward", grad.device, said, call=self.call)
        most, size = max(self.sizes), self.sizes[self.rank]
        if most == 0:
            return grad
        padded = grad.new_zeros((len(self.sizes), most, *grad.shape[1:]))
        for place, part in zip(padded, grad.split(self.sizes), strict=True):
            place[: len(part)] = part
        total = torch.empty_like(padded[0])
        dist.reduce_scatter(total, list(padded), group=self.group)
        return total[:size]


class Gathered(torch.autograd.Function):
    """The rows of all ranks, which the gradient leaves for those of this rank, summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, found: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return found.view_as(found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.parts.summed(grad), None, None


def gathered(
    group: Any, named: Sequence[tuple[str, Tensor]], said: Sequence[tuple[str, Any]] = ()
) -> tuple[Parts, list[Tensor]]:
    """The rows [total, ...] of all ranks from tensors [N, ...] that have as many; a gradient for the first one.

    There are two collectives: one for the numbers of rows, for which a GPU is waited for, and one for all rows' bytes.

    Args:
        group: a process group that this rank is in.
        named: names and tensors. said: other names and values that must be the same on every rank.

    Raises:
        RankError: if a dtype, the shape of a row, or a value of `said` is another one on another rank.
    """
    first = named[0][1]
    learned = torch.is_grad_enabled() and first.requires_grad
    rows = [(f"the dtype and the shape of a row of {name}", (one.dtype, [*one.shape[1:]])) for name, one in named]
    checks = [exchange.check(*one) for one in (*said, *rows, (f"requires_grad of {named[0][0]}", learned))]
    heads, _ = exchange.meet(group, "gather_batch", first.device, checks, size=len(first), wait=True)
    sizes = heads[:, exchange.SIZE].tolist()
    dealt = Parts(group, sizes, dist.get_rank(group), exchange.talk_of(group).met)
    own = [_bytes(one) for _, one in named]
    parts = dealt.rows(torch.cat(own, 1)).split([one.shape[1] for one in own], 1)
    found = [
        part.contiguous().view(one.dtype).reshape(dealt.total, *one.shape[1:])
        for part, (_, one) in zip(parts, named, strict=True)
    ]
    if learned:
        found[0] = Gathered.apply(first, found[0], dealt)
    return dealt, found


def totals(group: Any, numbers: Tensor, said: Sequence[tuple[str, Any]] = ()) -> Tensor:
    """The sum over the ranks of numbers [n], added in the order of the ranks; `said` as for `gathered`."""
    return each(group, numbers, said).sum(0)


def each(group: Any, numbers: Tensor, said: Sequence[tuple[str, Any]] = ()) -> Tensor:
    """Every rank's numbers [world, n], of floating point; `said` as for `gathered`."""
    checks = [exchange.check(*one) for one in said]
    _, found = exchange.meet(group, "batch_sums", numbers.device, checks, payload=numbers)
    assert found is not None  # there was a payload
    return found


def _bytes(rows: Tensor) -> Tensor:
    """Rows [N, ...] as bytes [N, n]."""
    rows = rows.detach().contiguous()
    return (rows[:, None] if rows.ndim == 1 else rows.flatten(1)).view(torch.uint8)

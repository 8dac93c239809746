"""Classes sharded over the ranks of a process group: the statistics of disjoint shards merge to those of the whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lt_kernels.ops import linear
from lt_kernels.reference.terms import Terms


class Copy(torch.autograd.Function):
    """A tensor that every rank holds alike: its gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


class Merge(torch.autograd.Function):
    """(logaddexp, max, max, sum) of the ranks' statistics; every rank goes on with the same numbers."""

    @staticmethod
    def forward(
        ctx: Any, rest: Tensor, own: Tensor, own_offset: Tensor, mean: Tensor, rival: Tensor, group: Any
    ) -> tuple[Tensor, ...]:
        top = rest.clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        top = torch.where(top == -torch.inf, 0.0, top)
        total = (rest - top).exp()
        dist.all_reduce(total, group=group)
        whole = top + total.log()
        merged = [value.clone() for value in (own, rival, own_offset, mean)]
        for value, how in zip(merged, (dist.ReduceOp.MAX,) * 2 + (dist.ReduceOp.SUM,) * 2, strict=True):
            if value.numel():
                dist.all_reduce(value, how, group=group)
        ctx.save_for_backward(torch.where(rest == -torch.inf, 0.0, (rest - whole).exp()))
        ctx.mark_non_differentiable(merged[1])
        return whole, merged[0], merged[2], merged[3], merged[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_rest: Tensor, d_own: Tensor, d_own_offset: Tensor, d_mean: Tensor, _: Any) -> Any:
        (share,) = ctx.saved_tensors
        return d_rest * share, d_own, d_own_offset, d_mean, None, None


class Shard(NamedTuple):
    """This rank's classes [start, start + size) of all `classes`."""

    start: int
    size: int
    classes: int
    group: Any
    sizes: list[int]  # every rank's

    def statistics(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, terms: Terms, normalize: int
    ) -> tuple[Tensor, ...]:
        """The statistics over all ranks' classes; `input`, `target` and `terms` are the same on every rank."""
        input = Copy.apply(input, self.group)
        local = self.terms(terms)
        found = linear.statistics(input, weight, bias, target, local, normalize, self.start, self.classes)
        return Merge.apply(*found, self.group)

    def terms(self, terms: Terms) -> Terms:
        """The tables' columns for this rank's classes."""
        part = slice(self.start, self.start + self.size)
        offset, share = terms.offset, terms.mean_weight
        if offset is not None:
            offset = (Copy.apply(offset, self.group) if offset.requires_grad else offset)[:, part]
        return terms._replace(offset=offset, mean_weight=None if share is None else share[:, part])


_shards: dict[tuple[Any, int], Shard] = {}


def shard(size: int, group: Any, device: torch.device) -> Shard:
    """Where this rank's `size` classes stand among all: in the order of the ranks, asked of the group once.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group must be a torch.distributed process group that this rank is in, got {group!r}")
    if (group, size) not in _shards:
        sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(dist.get_world_size(group))]
        dist.all_gather(sizes, torch.tensor(size, device=device), group=group)
        counts, rank = [int(one) for one in sizes], dist.get_rank(group)
        _shards[group, size] = Shard(sum(counts[:rank]), size, sum(counts), group, counts)
    return _shards[group, size]


def gather_rows(weight_shard: Tensor, group: Any) -> Tensor:
    """All ranks' rows [C, ...] in the order of the ranks, on every rank and without a gradient: what a checkpoint keeps.

    Args:
        weight_shard: this rank's rows [c, d], or its entries [c] of a bias; ranks may have different numbers of rows.
        group: the process group over whose ranks they are sharded.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    own = weight_shard.detach().contiguous()
    found = shard(own.shape[0], group, own.device)
    most = max(found.sizes)
    padded = own.new_zeros((most, *own.shape[1:]))  # a collective wants the same shape of every rank
    padded[: own.shape[0]] = own
    parts = [torch.empty_like(padded) for _ in found.sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, found.sizes, strict=True)])


def shard_bounds(num_classes: int, rank: int, world_size: int) -> tuple[int, int]:
    """The classes [start, stop) of a rank when `num_classes` are dealt out evenly, in the order of the ranks."""
    return rank * num_classes // world_size, (rank + 1) * num_classes // world_size

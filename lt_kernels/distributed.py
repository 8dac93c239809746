"""Classes sharded over the ranks of a process group: the statistics of disjoint shards merge to those of the whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

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
    """(logaddexp, own, sum, sum, max) of the ranks' statistics in two collectives, the same on every rank."""

    @staticmethod
    def forward(
        ctx: Any, rest: Tensor, own: Tensor, own_offset: Tensor, mean: Tensor, rival: Tensor, mine: Tensor, group: Any
    ) -> tuple[Tensor, ...]:
        highest = torch.stack((rest, rival))
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
        top = torch.where(highest[0] == -torch.inf, 0.0, highest[0])
        # A sum over one rank's number and zeros, since a maximum may lose a NaN.
        parts = [(rest - top).exp(), torch.where(mine, own, 0.0), own_offset, mean]
        packed = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(packed, group=group)
        pieces = packed.split([part.numel() for part in parts])
        total, own, own_offset, mean = (new.reshape(old.shape) for new, old in zip(pieces, parts, strict=True))
        whole = top + total.log()
        ctx.save_for_backward(torch.where(rest == -torch.inf, 0.0, (rest - whole).exp()))
        ctx.mark_non_differentiable(highest)
        return whole, own, own_offset, mean, highest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_rest: Tensor, d_own: Tensor, d_own_offset: Tensor, d_mean: Tensor, _: Any) -> Any:
        (share,) = ctx.saved_tensors
        return d_rest * share, d_own, d_own_offset, d_mean, None, None, None


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
        mine = (target >= self.start) & (target < self.start + self.size) & (target != terms.ignore_index)
        whole, own, own_offset, mean, highest = Merge.apply(*found, mine, self.group)
        return whole, own.masked_fill(target == terms.ignore_index, -torch.inf), own_offset, mean, highest[1]

    def terms(self, terms: Terms) -> Terms:
        """The tables' columns for this rank's classes."""
        part = slice(self.start, self.start + self.size)
        offset, share = terms.offset, terms.mean_weight
        if offset is not None:
            offset = (Copy.apply(offset, self.group) if offset.requires_grad else offset)[:, part]
        return terms._replace(offset=offset, mean_weight=None if share is None else share[:, part])


def checked(group: Any) -> dist.ProcessGroup:
    """The group itself, if this process is in it.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group must be a torch.distributed process group that this rank is in, got {group!r}")
    return group


def shard(size: int, group: Any, device: torch.device) -> Shard:
    """Where this rank's `size` classes stand among all: in the order of the ranks.

    The ranks are asked: one whose own size is what it was cannot know that the others' are.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    sizes = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(dist.get_world_size(checked(group)))]
    dist.all_gather(sizes, torch.tensor(size, device=device), group=group)
    counts, rank = [int(one) for one in sizes], dist.get_rank(group)
    return Shard(sum(counts[:rank]), size, sum(counts), group, counts)


# Of each parameter that is a shard: the layout in each group. A parameter's first call is every rank's first call.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shard_of(weight: Tensor, group: Any) -> Shard:
    """`shard` for the rows of a weight; the ranks are asked once for a parameter, since asking waits for the device.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    checked(group)
    if not (weight.is_leaf and weight.requires_grad):  # what is made anew for each call
        return shard(weight.shape[0], group, weight.device)
    layouts = _known.setdefault(weight, {})
    if group not in layouts:
        layouts[group] = shard(weight.shape[0], group, weight.device)
    return layouts[group]


def gather_rows(weight_shard: Tensor, group: Any) -> Tensor:
    """All ranks' rows [C, ...] in the order of the ranks, on every rank, without a gradient: for a checkpoint.

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
    """The classes [start, stop) of a rank when `num_classes` are dealt out evenly, in the order of the ranks.

    Raises:
        ValueError: if there are fewer classes than ranks, or `rank` is none of them.
    """
    if num_classes < world_size:
        raise ValueError(f"num_classes must be at least 1 for each of the {world_size} ranks, got {num_classes}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to {world_size - 1}, got {rank}")
    return rank * num_classes // world_size, (rank + 1) * num_classes // world_size

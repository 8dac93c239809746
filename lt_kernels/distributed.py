"""Classes sharded over the ranks of a process group: the statistics of disjoint shards merge to those of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lt_kernels import checks
from lt_kernels.ops import exchange, linear, shares
from lt_kernels.ops.exchange import RankError
from lt_kernels.reference.margins import finite
from lt_kernels.reference.terms import Terms

__all__ = ["RankError", "clip_grad_norm_", "gather_rows", "shard_bounds"]


class Meeting:
    """One forward pass of all ranks: what must be the same on each, and the number that its backward pass asks for."""

    def __init__(self, group: Any, weight: Tensor) -> None:
        self.group, self.rows = group, exchange.first_rows(weight)
        self.said: list[exchange.Check] = []
        self.call = 0

    def gather(self, payload: Tensor) -> Tensor:
        """Every rank's numbers [world, n]."""
        talk = exchange.talk_of(self.group)
        _, found = exchange.meet(self.group, "forward", payload.device, self.said, rows=self.rows, payload=payload)
        self.call = talk.met
        assert found is not None  # there was a payload
        return found


class Copy(torch.autograd.Function):
    """Tensors that every rank holds alike: their gradients are the sums over the ranks."""

    @staticmethod
    def forward(ctx: Any, meeting: Meeting, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.meeting = meeting
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        group, wanted = ctx.meeting.group, ctx.needs_input_grad[1:]
        total = torch.cat([grad.reshape(-1) for grad, wants in zip(grads, wanted, strict=True) if wants])
        said = [exchange.check("the gradient", (total.dtype, total.numel()))]
        exchange.meet(group, "backward", total.device, said, call=ctx.meeting.call)
        dist.all_reduce(total, group=group)
        parts = iter(total.split([grad.numel() for grad, wants in zip(grads, wanted, strict=True) if wants]))
        found = [next(parts).view_as(grad).to(grad.dtype) if wants else None for grad, wants in zip(grads, wanted)]
        return None, *found


class Merge(torch.autograd.Function):
    """The statistics of all ranks' classes from those of each, gathered at once: the same bits on every rank."""

    @staticmethod
    def forward(
        ctx: Any,
        rest: Tensor,
        own: Tensor,
        own_offset: Tensor,
        mean: Tensor,
        rival: Tensor,
        top: Tensor,
        shares: Tensor,
        mine: Tensor,
        met: Meeting,
    ) -> tuple[Tensor, ...]:
        parts = [rest, torch.where(mine, own, 0.0), own_offset, mean, rival, top, shares]
        pieces = met.gather(torch.cat([part.reshape(-1) for part in parts])).split([part.numel() for part in parts], 1)
        rests, owns, own_offsets, means, rivals, tops, amounts = (
            new.reshape(new.shape[0], *old.shape) for new, old in zip(pieces, parts, strict=True)
        )
        highest, rival, shares = tops.amax(0), rivals.amax(0), amounts.sum(0)
        whole = (rests + (finite(tops) - finite(highest))).exp().sum(0).log()
        if mean.numel():
            means = means + amounts * (finite(tops) - finite(highest))
        share = (rest + (finite(top) - finite(highest)) - whole).exp()
        ctx.save_for_backward(torch.where(rest == -torch.inf, 0.0, share))
        ctx.mark_non_differentiable(rival, highest, shares)
        return whole, owns.sum(0), own_offsets.sum(0), means.sum(0), rival, highest, shares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_rest: Tensor, d_own: Tensor, d_own_offset: Tensor, d_mean: Tensor, *_: Any) -> Any:
        (share,) = ctx.saved_tensors
        return d_rest * share, d_own, d_own_offset, d_mean, *(None,) * 5


class Shard(NamedTuple):
    """This rank's classes [start, start + size) of all `classes`."""

    start: int
    size: int
    classes: int
    group: Any
    sizes: list[int]  # every rank's
    said: tuple[tuple[str, Any], ...] = ()  # of the loss: what must be the same on every rank, with its name

    def statistics(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, terms: Terms, normalize: int
    ) -> tuple[Tensor, ...]:
        """The statistics over all ranks' classes; `input`, `target` and `terms` are the same on every rank."""
        with exchange.told(self.group, weight):
            met = Meeting(self.group, weight)
            met.said += [
                exchange.check(*one) for one in self.said + shares.said(input, weight, bias, target, terms, normalize)
            ]
            if terms.offset is not None and terms.offset.requires_grad:
                copied, offset = Copy.apply(met, input, terms.offset)
                terms = terms._replace(offset=offset)
            else:
                (copied,) = Copy.apply(met, input)
            local = self.terms(terms)
            found = linear.statistics(copied, weight, bias, target, local, normalize, self.start, self.classes)
            mine = (target >= self.start) & (target < self.start + self.size) & (target != terms.ignore_index)
        rest, own, *more = Merge.apply(*found, mine, met)
        return rest, own.masked_fill(target == terms.ignore_index, -torch.inf), *more

    def terms(self, terms: Terms) -> Terms:
        """The tables' columns for this rank's classes."""
        part = slice(self.start, self.start + self.size)
        offset, share = terms.offset, terms.mean_weight
        return terms._replace(
            offset=None if offset is None else offset[:, part], mean_weight=None if share is None else share[:, part]
        )


def together(group: Any, like: Any, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """function(*args, **kwargs), whose errors are every rank's, outside of compiled graphs, where nothing is told.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    checked(group)
    if torch.compiler.is_compiling():
        return torch.compiler.disable(_together)(group, like, function, *args, **kwargs)
    return _together(group, like, function, *args, **kwargs)


def _together(group: Any, like: Any, function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    with exchange.told(group, like):
        return function(*args, **kwargs)


def checked(group: Any) -> dist.ProcessGroup:
    """The group itself, if this process is in it.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"group must be a torch.distributed process group that this rank is in, got {group!r}")
    return group


def share(num_classes: int, group: Any) -> shares.Share:
    """This rank's share of the classes, dealt out evenly.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to, or has more ranks than classes.
    """
    rank, world = dist.get_rank(checked(group)), dist.get_world_size(group)
    return shares.Share(group, rank, world, shard_bounds(num_classes, rank, world), num_classes)


def shard(rows: Tensor, group: Any, kind: str = "layout") -> Shard:
    """Where this rank's rows stand among all: in the order of the ranks.

    The ranks are asked: one whose own size is what it was cannot know that the others' are.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
        RankError: if rows have another width or dtype on another rank.
    """
    checked(group)
    size, said = rows.shape[0], [exchange.check("linear_weight", (str(rows.dtype), rows.shape[1:]))]
    heads, _ = exchange.meet(group, kind, rows.device, said, size=size, wait=True)
    counts, rank = heads[:, exchange.SIZE].tolist(), dist.get_rank(group)
    return Shard(sum(counts[:rank]), size, sum(counts), group, counts)


# Of each parameter that is a shard: the layout in each group. A parameter's first call is every rank's first call.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shard_of(weight: Tensor, group: Any, bias: Tensor | None = None) -> Shard:
    """`shard` for the rows of a weight; the ranks are asked once for a parameter, since asking waits for the device.

    A bias is remembered with it, as what is sharded too.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to, or `DistributedDataParallel` would
            average the rows over its ranks.
    """
    shares.refuse_wrapped(weight, checked(group))
    lasting = isinstance(weight, torch.nn.Parameter) or (weight.is_leaf and weight.requires_grad)
    if not lasting:  # what is made anew for each call
        return shard(weight, group)
    layouts, epoch = _known.setdefault(weight, {}), exchange.talk_of(group).epoch
    if group not in layouts or layouts[group][0] != epoch:
        layouts[group] = (epoch, shard(weight, group))
    if bias is not None and bias.is_leaf and bias.requires_grad:
        _known.setdefault(bias, {}).setdefault(group, layouts[group])
    return layouts[group][1]


def gather_rows(weight_shard: Tensor, group: Any) -> Tensor:
    """All ranks' rows [C, ...] in the order of the ranks, on every rank, without a gradient: for a checkpoint.

    Args:
        weight_shard: this rank's rows [c, d], or its entries [c] of a bias; ranks may have different numbers of rows.
        group: the process group over whose ranks they are sharded.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    own = weight_shard.detach().contiguous()
    found = shard(own, group, "gather_rows")
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


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    group: Any,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` where some parameters are class weights sharded over the ranks of `group`.

    The norm is that of the whole: torch's own takes each rank's rows for all there are, clips by another factor on each
    rank, and lets the other parameters drift apart. Class weights and biases are known from their loss with this group.

    Args:
        parameters: those that are sharded, and those that every rank holds alike, with the same gradients.
        max_norm: above 0. norm_type: above 0, or inf.
        error_if_nonfinite: raise if the norm is NaN or infinite, which waits for a device.

    Returns:
        The norm before clipping, the same on every rank; float64.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
        RankError: on a CPU, if the gradients that every rank should hold alike have another norm on another rank.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    device = parameters[0].device if parameters else torch.device("cpu")
    with torch.no_grad(), exchange.told(checked(group), parameters[0] if parameters else None):
        checks.number("max_norm", max_norm, above=0.0)
        apart: tuple[list[Tensor], list[Tensor]] = ([], [])
        for one in parameters:
            if one.grad is not None:
                apart[group in _known.get(one, ())].append(one.grad)
        each = torch.stack([torch.nn.utils.get_total_norm(some, norm_type).to(device, torch.float64) for some in apart])
        _, norms = exchange.meet(group, "clip_grad_norm_", device, payload=each)
        assert norms is not None  # there was a payload
        alike, rows = norms.unbind(1)
        if device.type == "cpu" and not torch.allclose(alike, alike[:1], rtol=1e-6, atol=0.0, equal_nan=True):
            raise RankError(
                "gradients of parameters that are not sharded must be the same on every rank, but their norms are "
                f"{alike.tolist()}: average them first, and call the loss of sharded ones with this group"
            )
        total = torch.linalg.vector_norm(torch.cat((alike[:1], rows)), norm_type)
        if error_if_nonfinite and not bool(total.isfinite()):
            raise RankError(f"the norm of the gradients must be finite, got {total.item()}")
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, total)
    return total

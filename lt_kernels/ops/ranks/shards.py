"""Class weights whose rows are sharded over ranks: the layout, and statistics that merge to those of all classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lt_kernels.core import private
from lt_kernels.core.numbers import accumulate_type, finite
from lt_kernels.core.targets import check_target
from lt_kernels.core.terms import Terms
from lt_kernels.ops import linear
from lt_kernels.ops.ranks import exchange
from lt_kernels.ops.ranks.sampling import Chosen


class Meeting:
    """One forward pass of all ranks: the checks that they agree, and its number, which the backward pass checks."""

    def __init__(self, group: Any, weight: Tensor | None = None) -> None:
        self.group, self.rows = group, None if weight is None else exchange.first_rows(weight)
        self.size = 0 if weight is None else weight.shape[0]
        self.said: list[exchange.Check] = []
        self.call = 0

    def gather(self, payload: Tensor) -> Tensor:
        """Every rank's numbers [world, n]."""
        talk = exchange.talk_of(self.group)
        frame: dict[str, Any] = {"size": self.size, "rows": self.rows, "payload": payload}
        _, found = exchange.meet(self.group, "forward", payload.device, self.said, **frame)
        self.call = talk.met
        assert found is not None  # there was a payload
        return found


class Copy(torch.autograd.Function):
    """The identity on tensors that are equal on every rank; the backward pass sums their gradients over the ranks."""

    @staticmethod
    def forward(ctx: Any, meeting: Meeting, *values: Tensor) -> tuple[Tensor, ...]:
        ctx.meeting = meeting
        return tuple(value.view_as(value) for value in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        group, wanted = ctx.meeting.group, ctx.needs_input_grad[1:]
        kind = torch.contiguous_format
        found = [grad.clone(memory_format=kind) if wants else None for grad, wants in zip(grads, wanted, strict=True)]
        said = [exchange.check("the gradient", [(one.dtype, one.shape) for one in found if one is not None])]
        exchange.meet(group, "backward", grads[0].device, said, call=ctx.meeting.call)
        for one in found:
            if one is not None:
                dist.all_reduce(one, group=group)
        return None, *found


class Merge(torch.autograd.Function):
    """The statistics of all classes from those of each rank, by one all-gather; with the same bits on every rank."""

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
    said: tuple[tuple[str, Any], ...] = ()  # names and values of the loss that must be the same on every rank

    def statistics(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        terms: Terms,
        normalize: int,
        chosen: Chosen | None = None,
        softcap: float = 0.0,
    ) -> tuple[Tensor, ...]:
        """The statistics over all ranks' classes, or those chosen; input, target and terms are equal on all ranks."""
        with exchange.told(self.group, weight):
            met = Meeting(self.group, weight)
            met.said += [
                exchange.check(*one)
                for one in self.said + said(input, weight, self.classes, bias, target, terms, normalize)
            ]
            if terms.offset is not None and terms.offset.requires_grad:
                copied, offset = Copy.apply(met, input, terms.offset)
                terms = terms._replace(offset=offset)
            else:
                (copied,) = Copy.apply(met, input)
            local = self.terms(terms)
            if self.size:
                statistics = linear.statistics if chosen is None else chosen.statistics
                problem = (copied, weight, bias, target, local, normalize, self.start, self.classes, softcap)
                found = statistics(*problem)
            else:
                check_target(target, self.classes, terms.ignore_index)
                found = _of_no_classes(copied, weight, bias, target, local)
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


def _of_no_classes(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, terms: Terms
) -> tuple[Tensor, ...]:
    """The statistics of a rank that has no classes, which still takes part in the backward pass."""
    kind = accumulate_type(input.dtype)
    nothing = input[:, :0].sum(1, dtype=kind) + (weight * 1).sum(dtype=kind)  # with dense gradients
    nothing = nothing if bias is None else nothing + (bias * 1).sum(dtype=kind)
    slots = nothing.new_zeros(target.shape)
    least, means = torch.full_like(nothing, -torch.inf), nothing.detach()[: 0 if terms.mean_weight is None else None]
    return nothing - torch.inf, slots, slots, means, least, least, torch.zeros_like(means)


def of_chunks(weight: Any, dim: int) -> Shard:
    """The position of this rank's rows of a DTensor, whose rows are sharded over a dimension of its mesh.

    Raises:
        ValueError: if this rank's rows are not those of its chunk.
    """
    from torch.distributed import tensor as dtensors

    mesh, classes = weight.device_mesh, weight.shape[0]
    world, rank = mesh.size(dim), mesh.get_local_rank(dim)
    chunks = [dtensors.Shard.local_shard_size_and_offset(classes, world, one) for one in range(world)]
    size, start = chunks[rank]
    if (held := weight.to_local().shape[0]) != size:
        raise ValueError(f"linear_weight must have rows {start} to {start + size} here, got {held} rows")
    return Shard(start, size, classes, mesh.get_group(dim), [one for one, _ in chunks])


def checked(group: Any, name: str = "group") -> dist.ProcessGroup:
    """The group itself, if this process is in it.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
    """
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(f"{name} must be a torch.distributed process group that this rank is in, got {group!r}")
    return group


def given(group: Any) -> dist.ProcessGroup:
    """The group itself, or for None that of all ranks.

    Raises:
        ValueError: if there is none, or this process is not in it.
    """
    if group is None and not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group must be a process group, or torch.distributed be initialised (init_process_group); got None"
        )
    return checked(dist.group.WORLD if group is None else group)


def shard(rows: Tensor, group: Any, kind: str = "layout") -> Shard:
    """The position of this rank's rows among all rows, which are in the order of the ranks.

    The ranks exchange their sizes, even if this rank's is unchanged, because another one's may have changed.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to.
        RankError: if rows have another width or dtype on another rank.
    """
    checked(group)
    size, said = rows.shape[0], [exchange.check("linear_weight", (str(rows.dtype), rows.shape[1:]))]
    heads, _ = exchange.meet(group, kind, rows.device, said, size=size, wait=True)
    counts, rank = heads[:, exchange.SIZE].tolist(), dist.get_rank(group)
    return Shard(sum(counts[:rank]), size, sum(counts), group, counts)


# For each parameter that is a shard, its layout in each group. The first call with a parameter is the first one on all
# ranks, so that they all exchange layouts then.
_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def shard_of(weight: Tensor, group: Any) -> Shard:
    """`shard` for the rows of a weight; for a parameter only once, because the exchange synchronises with the device.

    Raises:
        ValueError: if `group` is not a process group that this process belongs to, or `DistributedDataParallel` would
            average the rows over its ranks.
    """
    refuse_wrapped(weight, checked(group))
    lasting = isinstance(weight, torch.nn.Parameter) or (weight.is_leaf and weight.requires_grad)
    if not lasting:  # a new tensor at each call
        return shard(weight, group)
    layouts, epoch = _known.setdefault(weight, {}), exchange.talk_of(group).epoch
    if group not in layouts or layouts[group][0] != epoch:
        layouts[group] = (epoch, shard(weight, group))
    return layouts[group][1]


def refuse_wrapped(weight: Tensor, group: Any) -> None:
    """Raise for a DTensor, and if `DistributedDataParallel` would average rows of different classes.

    Raises:
        TypeError, ValueError: naming what to do.
    """
    if hasattr(weight, "placements"):
        raise TypeError("linear_weight must be this rank's rows as a plain tensor, got a DTensor: give its to_local()")
    averaging, ranks = private.averaged_over(weight), dist.get_process_group_ranks
    if averaging is not None and len(set(ranks(averaging)) & set(ranks(group))) > 1:
        raise ValueError(
            "linear_weight must not be in DistributedDataParallel over the ranks that its classes are sharded over, "
            "which would average rows of different classes: keep the head outside, or name its parameters with "
            "DistributedDataParallel._set_params_and_buffers_to_ignore_for_model, and draw the rows anew "
            "(reset_parameters)"
        )


# The public names of the fields of `Terms`, where they differ.
_NAMES = {
    "mean_weight": "label_smoothing",
    "smoothing": "label_smoothing",
    "class_smoothing": "label_smoothing",
    "class_margin": "margin",
}
_NAMES |= {"kind": "margin", "instance": "margin", "guard": "margin", "gamma": "focal_gamma"}


def said(
    input: Tensor, weight: Tensor, classes: int, bias: Tensor | None, target: Tensor, terms: Terms, normalize: int
) -> tuple[tuple[str, Any], ...]:
    """The names and values that must be the same on every rank."""
    learned = torch.is_grad_enabled() and (input.requires_grad, terms.offset is not None and terms.offset.requires_grad)
    named = (
        ("input", input),
        ("target", target),
        ("requires_grad of input and offset", learned),
        ("linear_weight", (str(weight.dtype), weight.shape[1], classes)),
        ("linear_bias", None if bias is None else str(bias.dtype)),
        ("the kind of logits", normalize),
    )
    if target.shape[1] == 0:  # class probabilities
        return *named, ("target", terms.mean_weight), ("offset", terms.offset)
    skipped = ("offset_row", "total")  # the target, and the sum of what there is
    fields = tuple((_NAMES.get(name, name), value) for name, value in terms._asdict().items() if name not in skipped)
    return named + fields

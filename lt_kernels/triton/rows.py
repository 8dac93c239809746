"""Row statistics of given logits, their loss, and their gradient on a GPU.

Long rows go to programs of one row, or a part of one, that walk along it in blocks which start on 16 bytes whatever the
number of classes; short rows to programs of several whole rows. Few rows are cut into parts, so that every
multiprocessor has work; their statistics are put together by whatever reads them next. Nothing is checked here: a
target that is no class is taken for another shard's, and has infinite loss.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.reference.rows import MEAN, NONE, WEIGHTED_MEAN, Inputs, Slopes, accumulate_type
from lt_kernels.reference.terms import ANGULAR, Terms
from lt_kernels.triton.launch import blocks, launch, power_of_two, processors
from lt_kernels.triton.margins import loss_settings
from lt_kernels.triton.rows_gradient import long_gradient_kernel, short_gradient_kernel, table_gradient_kernel
from lt_kernels.triton.rows_loss import divide_kernel, loss_kernel
from lt_kernels.triton.rows_statistics import long_statistics_kernel, merge_kernel, short_statistics_kernel
from lt_kernels.triton.rows_tiles import EACH, ONE, PICKED

SHORT = 1024  # a row of at most so many classes is read at once
FILL = 32  # programs for each multiprocessor, so that the last ones to end are a small part of the whole
ALONE = 1024  # rows that one program takes, to spare the launch of another for their sum
SOME = 512  # rows of a program where there are more


def _kind(table: Tensor | None, offset_row: Tensor | None) -> int:
    """How a table's lines belong to the rows."""
    if table is None or table.shape[0] == 1:
        return ONE.value
    return EACH.value if offset_row is None else PICKED.value


class Plan(NamedTuple):
    """The arguments that every kernel on logits takes, and how its programs share the work."""

    rows: int
    width: int
    group: int  # classes that are read at once
    arguments: dict[str, Any]
    like: Tensor

    @property
    def short(self) -> bool:
        """Whether a program takes whole rows."""
        return self.width <= SHORT

    @property
    def tables(self) -> int:
        """How many numbers come with each logit, which take registers too."""
        return sum(self.arguments[name] is not None for name in ("offset", "share", "column_scale"))

    @property
    def block(self) -> int:
        """Classes of a long row that a program of 128 threads has in registers: 64 bytes of logits a thread."""
        most = 8192 // self.like.element_size()
        return min(power_of_two(self.width), most if self.tables < 2 else min(most, 2048))

    def parts(self) -> tuple[int, int]:
        """(parts of each long row, classes of a part)."""
        there = blocks(self.width, self.block)
        wanted = blocks(FILL * processors(self.like), max(self.rows, 1))
        span = self.block * blocks(there, min(there, wanted))
        return blocks(self.width, span), span

    def along(self) -> dict[str, int]:
        """What kernels for long rows take more."""
        dense = self.rows < 2 or self.arguments["stride"] == self.arguments["width"]
        return {"group": self.group, "dense": dense, "T": max(1, self.block // (128 * self.group)), "W": 128}

    def across(self) -> tuple[int, dict[str, int]]:
        """(warps, rows and classes of a program for short rows)."""
        classes = power_of_two(self.width, least=16)
        few = power_of_two(blocks(self.rows, 4 * processors(self.like)))
        tall = min(few, max(1, (1024 if self.tables else 2048) // classes))
        return power_of_two(tall * classes // 256, most=4), {"R": tall, "W": classes}


def _plan(i: Inputs) -> Plan:
    logits = i.logits if i.logits.stride(1) == 1 or i.logits.shape[1] == 1 else i.logits.contiguous()
    rows, width = logits.shape
    stride = logits.stride(0) if rows > 1 else width
    most = 16 // logits.element_size()
    unit = math.gcd(most, width, stride)
    kinds = [_kind(table, i.offset_row) for table in (i.offset, i.mean_weight)]
    by_class = i.column_scale is not None or any(
        table is not None and (kind != EACH.value or stride != width)
        for table, kind in zip((i.offset, i.mean_weight), kinds, strict=True)
    )
    given = {"target": i.target, "row_scale": i.row_scale, "column_scale": i.column_scale, "offset": i.offset}
    given |= {"offset_row": i.offset_row, "share": i.mean_weight}
    arguments: dict[str, Any] = {
        name: None if tensor is None else tensor.contiguous() for name, tensor in given.items()
    }
    arguments |= {"logits": logits, "rows": rows, "width": width // unit, "stride": stride // unit, "unit": unit}
    arguments |= {"start": i.start, "ignore": i.ignore_index, "scale": i.scale, "scaled": i.scale != 1.0}
    arguments |= {"slots": i.target.shape[1], "offset_kind": kinds[0], "share_kind": kinds[1]}
    arguments |= {"offset_lines": 0 if i.offset is None else i.offset.shape[0]}
    arguments |= {"share_lines": 0 if i.mean_weight is None else i.mean_weight.shape[0]}
    # A table's line starts anywhere in its 16 bytes: with 8 classes a thread, whose numbers are read one by one from
    # all over 1 KiB, the first cache would be the limit. 4 are half as bad, and half as much of the logits at once.
    group = min(most, 4) if by_class and unit < min(most, 4) else most
    return Plan(rows, width, group, arguments, logits)


class Statistics(NamedTuple):
    """What the statistics' kernels write; of P parts of each row unless total is None, where top is rest."""

    top: Tensor  # [P, N]
    total: Tensor | None  # [P, N]
    rival: Tensor | None  # [P, N]
    mean: Tensor | None  # [P, N]
    own: Tensor  # [N, K]

    @property
    def parts(self) -> int:
        """P"""
        return 1 if self.total is None else self.total.shape[0]


def _statistics(plan: Plan, rest: Tensor, rival: Tensor | None, mean: Tensor | None, own: Tensor) -> Statistics:
    """The statistics, in the given tensors ([N], and own [N, K]) where the rows have one part."""
    parts, span = (1, 0) if plan.short else plan.parts()
    found = Statistics(rest, None, rival, mean, own)
    if parts > 1:
        top, total = (rest.new_empty(parts, plan.rows) for _ in range(2))
        rivals, means = (None if one is None else rest.new_empty(parts, plan.rows) for one in (rival, mean))
        found = Statistics(top, total, rivals, means, own)
    outputs = {"top_out": found.top, "rival_out": found.rival, "mean_out": found.mean, "own_out": own}
    if plan.short:
        warps, tile = plan.across()
        launch(short_statistics_kernel, (blocks(plan.rows, tile["R"]),), outputs | plan.arguments | tile, warps=warps)
    else:
        more = {"total_out": found.total, "span": span}
        launch(long_statistics_kernel, (plan.rows, parts), outputs | plan.arguments | plan.along() | more)
    return found


def rows_forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of [N, C] logits: rest [N], own [N, K], rival [N] and the weighted mean [N], without the K targets."""
    i = Inputs(*inputs)
    plan = _plan(i)
    kind, rows = accumulate_type(i.logits.dtype), i.logits.shape[0]
    rest, rival = (i.logits.new_empty(rows, dtype=kind) for _ in range(2))
    mean = i.logits.new_empty(0 if i.mean_weight is None else rows, dtype=kind)
    own = i.logits.new_empty(i.target.shape, dtype=kind)
    found = _statistics(plan, rest, rival, None if i.mean_weight is None else mean, own)
    if found.total is not None:
        whole = power_of_two(found.parts)
        block = max(1, 2048 // whole)
        outputs = {"rest_out": rest, "rival_out": rival, "mean_out": mean}
        parts = {"top": found.top, "total": found.total, "rival": found.rival, "mean": found.mean}
        sizes = {"rows": rows, "pieces": found.parts, "P": whole, "block": block}
        launch(merge_kernel, (blocks(rows, block),), outputs | parts | sizes)
    return rest, own, rival, mean


def rows_loss(logits: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """Statistics and loss for one target a row; the settings are the fields of `Terms` and the reduction.

    Returns the loss, [N] or reduced, and (rest, d_rest, d_own, d_offset, d_mean) [5, N] with the slopes of that.
    """
    t, reduction = Terms(*settings[:-1]), settings[-1]
    share = None if t.total is None else t.mean_weight
    tables = (t.offset, t.offset_row, share)
    plan = _plan(Inputs(logits, target[:, None], t.scale, None, None, *tables, 0, logits.shape[1], t.ignore_index))
    kind, rows = accumulate_type(logits.dtype), plan.rows
    saved, spare = (logits.new_empty((size, rows), dtype=kind) for size in (5, 3))
    rival = spare[0] if t.kind == ANGULAR and t.instance else None  # only the margin of hard rows asks for it
    found = _statistics(plan, saved[0], rival, None if share is None else spare[1], spare[2])
    alone = reduction != NONE and rows <= ALONE
    block = power_of_two(rows, most=ALONE if alone else SOME)
    programs = 1 if alone else blocks(rows, block)
    loss = logits.new_empty(rows if reduction == NONE else (), dtype=kind)
    sums = None if alone or reduction == NONE else logits.new_empty((2, programs), dtype=kind)
    outputs = {"loss_out": loss, "saved": saved, "sums_out": sums}
    statistics = {"top": found.top, "total": found.total, "rival": found.rival, "mean": found.mean, "own": found.own}
    names = ("target", "offset", "offset_row", "share", "offset_kind", "share_kind", "offset_lines", "share_lines")
    given = {name: plan.arguments[name] for name in names} | loss_settings(t)
    given |= {"share_total": None if share is None or t.total is None else t.total.contiguous(), "width": plan.width}
    sizes = {"rows": rows, "pieces": found.parts, "P": power_of_two(found.parts), "block": block}
    how = {"reduction": reduction, "alone": alone}
    launch(loss_kernel, (programs,), outputs | statistics | given | sizes | how, warps=8 if block > SOME else 4)
    if sums is not None:
        mean = reduction in (WEIGHTED_MEAN, MEAN)
        sizes = {"rows": rows, "programs": programs, "ignore": t.ignore_index, "mean": mean, "block": 1024}
        outputs = {"loss_out": loss, "saved": saved, "sums": sums, "target": plan.arguments["target"]}
        launch(divide_kernel, (min(programs, 512) if mean else 1,), outputs | sizes)
    return loss, saved


def _gradient(i: Inputs, s: Slopes) -> tuple[Tensor, Tensor]:
    """The gradient for the logits [N, C] and, if wanted, for the offset in its own shape."""
    i = i if s.d_mean is not None else i._replace(mean_weight=None)
    plan, want_offset = _plan(i), s.want_offset and i.offset is not None
    slopes = s._replace(d_mean=None if i.mean_weight is None else s.d_mean)._asdict()
    del slopes["want_offset"]
    given = plan.arguments | {name: None if slope is None else slope.contiguous() for name, slope in slopes.items()}
    given["one_grad"] = s.grad is not None and s.grad.dim() == 0
    kind = accumulate_type(i.logits.dtype)
    each = plan.arguments["offset_kind"] == EACH.value
    d_offset = i.logits.new_empty(i.offset.shape if want_offset and each else 0, dtype=kind)  # type: ignore[union-attr]
    d_logits = i.logits.new_empty(i.logits.shape)
    given |= {"d_logits": d_logits, "d_table": d_offset if want_offset and each else None}
    if plan.short:
        warps, tile = plan.across()
        launch(short_gradient_kernel, (blocks(plan.rows, tile["R"]),), given | tile, warps=warps)
    else:
        parts, span = plan.parts()
        launch(long_gradient_kernel, (plan.rows, parts), given | plan.along() | {"span": span})
    if want_offset and not each:
        d_offset = _table_gradient(plan, given, i.offset, i.offset_row)  # type: ignore[arg-type]
    return d_logits, d_offset


def _table_gradient(plan: Plan, given: dict[str, Any], offset: Tensor, offset_row: Tensor | None) -> Tensor:
    """The offset's gradient [R, C]: for each of its lines the sum over its rows, in their order."""
    given = {name: value for name, value in given.items() if name not in ("d_logits", "d_own")}
    tall, wide = 16, min(128, power_of_two(plan.width, least=16))
    across = blocks(plan.width, wide)
    if offset.shape[0] == 1:  # parts of the batch, so that there are enough programs, and then their sum
        most, wanted = blocks(plan.rows, 4 * tall), blocks(8 * processors(plan.like), across)
        chunk = tall * max(1, blocks(plan.rows, tall * max(1, min(most, wanted))))
        groups, order, bounds = max(1, blocks(plan.rows, chunk)), None, None
    else:
        groups, chunk = offset.shape[0], 0
        line, order = plan.arguments["offset_row"].clamp(0, groups - 1).sort(stable=True)
        bounds = torch.searchsorted(line, torch.arange(groups + 1, device=line.device, dtype=line.dtype))
    d_table = offset.new_empty((groups, plan.width))
    more = {"d_table": d_table, "order": order, "bounds": bounds, "chunk": chunk, "R": tall, "W": wide}
    launch(table_gradient_kernel, (groups, across), given | more)
    return d_table.sum(0, keepdim=True) if d_table.shape[0] != offset.shape[0] else d_table


def rows_backward(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Gradient of the statistics with respect to the logits [N, C] and, if wanted, to the offset's own shape [R, C]."""
    shared = len(Inputs._fields)
    return _gradient(Inputs(*inputs[:shared]), Slopes(*inputs[shared:]))


def rows_loss_backward(
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    grad: Tensor,
    offset: Tensor | None,
    offset_row: Tensor | None,
    mean_weight: Tensor | None,
    scale: float,
    ignore_index: int,
    want_offset: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient of `rows_loss` for the logits [N, C] and, if wanted, the offset's own shape [R, C]."""
    tables, classes = (offset, offset_row, mean_weight), logits.shape[1]
    rest, d_rest, d_own, d_offset, d_mean = saved.unbind()
    mean = None if mean_weight is None else d_mean
    return _gradient(
        Inputs(logits, target[:, None], scale, None, None, *tables, 0, classes, ignore_index),
        Slopes(rest, d_rest, d_own[:, None], d_offset[:, None], mean, grad, want_offset),
    )

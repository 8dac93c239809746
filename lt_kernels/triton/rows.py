"""Row statistics of given logits, their loss, and their gradient on a GPU.

A program takes several whole short rows, or one long row, or a part of one. It reads long rows in blocks that are
aligned to 16 bytes whatever the number of classes. Rows are divided into parts if there are few of them, so that every
multiprocessor has work; the kernel that reads the parts' statistics next merges them. Targets are not checked: one that
is no class counts as one of another shard, and its row has infinite loss.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.core.rows import Inputs, Slopes
from lt_kernels.core.terms import Phi, Reduce, Terms
from lt_kernels.triton.launch import blocks, launch, power_of_two, processors
from lt_kernels.triton.margins import loss_settings
from lt_kernels.triton.rows_gradient import long_gradient_kernel, short_gradient_kernel, table_gradient_kernel
from lt_kernels.triton.rows_loss import divide_kernel, loss_kernel
from lt_kernels.triton.rows_statistics import long_statistics_kernel, merge_kernel, short_statistics_kernel
from lt_kernels.triton.rows_tiles import EACH, ONE, PICKED

SHORT = 1024  # the most classes of a row that is read at once
FILL = 32  # programs per multiprocessor, so that the time in which only the last ones run is short
ALONE = 1024  # the most rows for which one program computes all losses, which saves the launch that sums them
SOME = 512  # rows of a program if there are more


def _kind(lines: int, picked: bool) -> int:
    """Which line of a table belongs to a row: the only one, one for each row, or the one that offset_row gives."""
    return ONE.value if lines < 2 else PICKED.value if picked else EACH.value


class Plan(NamedTuple):
    """How the work is divided among programs, and the constants that every kernel on logits takes."""

    rows: int
    width: int
    short: bool  # whether a program takes whole rows
    parts: int  # of each long row
    span: int  # classes of a part
    tile: dict[str, int]  # the block of a program
    warps: int
    fixed: dict[str, int]

    def grid(self) -> tuple[int, ...]:
        """The programs."""
        return (blocks(self.rows, self.tile["R"]),) if self.short else (self.rows, self.parts)


class Shape(NamedTuple):
    """All that a plan depends on; plans are cached by it."""

    rows: int
    width: int
    stride: int
    itemsize: int
    offset_lines: int  # 0 without an offset, as the next one
    share_lines: int
    picked: bool  # whether there is an offset_row
    scaled: bool  # whether there is a column_scale
    device: torch.device


@lru_cache(maxsize=1024)
def _plan(s: Shape) -> Plan:
    unit = math.gcd(16 // s.itemsize, s.width, s.stride)
    kinds = [_kind(lines, s.picked) for lines in (s.offset_lines, s.share_lines)]
    fixed = {"rows": s.rows, "width": s.width // unit, "stride": s.stride // unit, "unit": unit}
    fixed |= {"offset_kind": kinds[0], "share_kind": kinds[1]}
    fixed |= {"offset_lines": s.offset_lines, "share_lines": s.share_lines}
    fill = processors(torch.empty(0, device=s.device))
    tables = (s.offset_lines > 0) + (s.share_lines > 0) + 2 * s.scaled  # numbers that are read with each logit
    if s.width <= SHORT:
        classes = power_of_two(s.width, least=16)
        tall = min(power_of_two(blocks(s.rows, 4 * fill)), max(1, (1024 if tables else 2048) // classes))
        warps = power_of_two(tall * classes // 256, most=4)
        return Plan(s.rows, s.width, True, 1, s.width, {"R": tall, "W": classes}, warps, fixed)
    by_class = s.scaled or any(
        lines and (kind != EACH.value or s.stride != s.width)
        for lines, kind in zip((s.offset_lines, s.share_lines), kinds, strict=True)
    )
    group = _group(s.itemsize, unit, by_class)
    most = 8192 // s.itemsize  # 64 bytes of logits a thread
    block = min(power_of_two(s.width), most if tables < 2 else min(most, 2048))
    there, wanted = blocks(s.width, block), max(1, blocks(FILL * fill, max(s.rows, 1)))
    span = block * blocks(there, min(there, wanted))
    tile = {"group": group, "dense": s.stride == s.width, "T": max(1, block // (128 * group)), "W": 128}
    return Plan(s.rows, s.width, False, blocks(s.width, span), span, tile, 4, fixed)


def _group(itemsize: int, unit: int, by_class: bool) -> int:
    """Classes that a thread reads at once: 16 bytes of the logits.

    The line of a per-class table may start anywhere within 16 bytes, so its numbers are read one by one. With 8 classes
    per thread the reads of a warp would be spread over 1 KiB, and the L1 cache would limit the speed; 4 halve that.
    """
    most = 16 // itemsize
    return min(most, 4) if by_class and unit < min(most, 4) else most


def _given(i: Inputs) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the arguments that every kernel on logits takes."""
    if i.target.shape[1] > 2:
        raise ValueError(f"target must have at most two classes a row, got {i.target.shape[1]}")
    logits = i.logits if i.logits.stride(1) == 1 or i.logits.shape[1] == 1 else i.logits.contiguous()
    rows, width = logits.shape
    stride = logits.stride(0) if rows > 1 else width
    lines = [0 if table is None else table.shape[0] for table in (i.offset, i.mean_weight)]
    picked, scaled = i.offset_row is not None, i.column_scale is not None
    plan = _plan(Shape(rows, width, stride, logits.element_size(), *lines, picked, scaled, logits.device))
    return plan, {
        **plan.fixed,
        **plan.tile,
        "logits": logits,
        "target": i.target.contiguous(),
        "row_scale": _dense(i.row_scale),
        "column_scale": _dense(i.column_scale),
        "offset": _dense(i.offset),
        "offset_row": _dense(i.offset_row),
        "share": _dense(i.mean_weight),
        "start": i.start,
        "ignore": i.ignore_index,
        "scale": i.scale,
        "scaled": i.scale != 1.0,
        "slots": i.target.shape[1],
    }


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


class Statistics(NamedTuple):
    """What the statistics' kernels write for P parts of each row; if P is 1, `total` holds rest."""

    top: Tensor  # [P, N], as the next four
    total: Tensor
    rival: Tensor | None
    mean: Tensor | None
    shares: Tensor | None
    own: Tensor  # [N, K]


def _statistics(plan: Plan, given: dict[str, Any], whole: Statistics) -> Statistics:
    """The statistics; if the rows have one part, they are written to the given tensors ([N], and own [N, K])."""
    found = whole
    if plan.parts > 1:
        place = (plan.parts, plan.rows)
        parts = [None if one is None else one.new_empty(place) for one in whole[:-1]]
        parts[4] = None if whole.mean is None else whole.mean.new_empty(place)  # a part's mean is of u less its own top
        found = Statistics(*parts, whole.own)  # type: ignore[arg-type]
    outputs = {f"{name}_out": value for name, value in found._asdict().items()}
    if plan.short:
        launch(short_statistics_kernel, plan.grid(), {**outputs, **given}, warps=plan.warps)
    else:
        more = {"span": plan.span, "whole_row": plan.parts == 1}
        launch(long_statistics_kernel, plan.grid(), {**outputs, **given, **more}, warps=plan.warps)
    return found


def rows_forward(*inputs: Any) -> tuple[Tensor, ...]:
    """(rest [N], own [N, K], rival [N], mean [N], top [N], shares [N]) of [N, C] logits without the K targets."""
    i = Inputs(*inputs)
    plan, given = _given(i)
    kind, rows = accumulate_type(i.logits.dtype), plan.rows
    rest, rival, top = (i.logits.new_empty(rows, dtype=kind) for _ in range(3))
    mean, shares = (i.logits.new_empty(0 if i.mean_weight is None else rows, dtype=kind) for _ in range(2))
    own = i.logits.new_empty(i.target.shape, dtype=kind)
    means = (None, None) if i.mean_weight is None else (mean, shares)
    found = _statistics(plan, given, Statistics(top, rest, rival, *means, own))
    if plan.parts > 1:
        whole = power_of_two(plan.parts)
        block = max(1, 2048 // whole)
        outputs = {"rest_out": rest, "top_out": top, "rival_out": rival, "mean_out": mean, "shares_out": shares}
        parts = {name: value for name, value in found._asdict().items() if name != "own"}
        sizes = {"rows": rows, "pieces": plan.parts, "P": whole, "block": block}
        launch(merge_kernel, (blocks(rows, block),), {**outputs, **parts, **sizes})
    return rest, own, rival, mean, top, shares


def rows_loss(logits: Tensor, target: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    """Statistics and loss for one target per row; the settings are the fields of `Terms` and the reduction.

    Returns the loss, [N] or reduced, and (rest, top, d_rest, d_own, d_offset, d_mean) [6, N] with the slopes of that.
    """
    t, reduction = Terms(*settings[:-1]), settings[-1]
    share = None if t.total is None else t.mean_weight
    tables = (t.offset, t.offset_row, share)
    inputs = Inputs(logits, target[:, None], t.scale, None, None, *tables, 0, logits.shape[1], t.ignore_index)
    plan, given = _given(inputs)
    kind = accumulate_type(logits.dtype)
    saved, spare = (logits.new_empty((size, plan.rows), dtype=kind) for size in (6, 3))
    rival, mean, own = spare.unbind()
    ranked = t.kind == Phi.ANGULAR and t.instance != 0  # only DBM's margin needs it, to find hard rows
    whole = Statistics(saved[1], saved[0], rival if ranked else None, None if share is None else mean, None, own)
    found = _statistics(plan, given, whole)
    more = {"share_total": None if share is None else _dense(t.total), **loss_settings(t)}
    return _loss(plan, {**found._asdict(), **given, **more}, saved, reduction), saved


# The arguments that the kernel for the loss takes besides the statistics.
_LOSS = (
    *("target", "offset", "offset_row", "share", "share_total", "weight", "class_margin", "class_smoothing"),
    *("offset_kind", "share_kind", "offset_lines", "share_lines", "ignore", "order", "scale", "margin", "instance"),
    *("gamma", "smoothing", "kind", "guard", "focal"),
)


def _loss(plan: Plan, given: dict[str, Any], saved: Tensor, reduction: int) -> Tensor:
    """The loss [N] or [], and the slopes in `saved`, from the statistics of rows or of their parts."""
    rows = plan.rows
    alone = reduction != Reduce.NONE and rows <= ALONE
    block = power_of_two(rows, most=ALONE if alone else SOME)
    programs = 1 if alone else blocks(rows, block)
    loss = saved.new_empty(rows if reduction == Reduce.NONE else ())
    sums = None if alone or reduction == Reduce.NONE else saved.new_empty((2, programs))
    taken = {name: given[name] for name in (*_LOSS, *Statistics._fields)}
    outputs = {"loss_out": loss, "saved": saved, "sums_out": sums}
    sizes = {"rows": rows, "width": plan.width, "pieces": plan.parts, "P": power_of_two(plan.parts), "block": block}
    how = {"reduction": reduction, "alone": alone}
    launch(loss_kernel, (programs,), {**taken, **outputs, **sizes, **how}, warps=8 if block > SOME else 4)
    if sums is not None:
        mean = reduction in (Reduce.WEIGHTED_MEAN, Reduce.MEAN)
        sizes = {"rows": rows, "programs": programs, "ignore": given["ignore"], "mean": mean, "block": 1024}
        outputs = {"loss_out": loss, "saved": saved, "sums": sums, "target": given["target"]}
        launch(divide_kernel, (min(programs, 512) if mean else 1,), {**outputs, **sizes})
    return loss


def _gradient(i: Inputs, s: Slopes) -> tuple[Tensor, Tensor]:
    """The gradient for the logits [N, C] and, if wanted, for the offset in its own shape."""
    i = i if s.d_mean is not None else i._replace(mean_weight=None)
    plan, given = _given(i)
    mean = None if i.mean_weight is None else s.d_mean
    slopes = {"rest": s.rest, "top": s.top}
    slopes |= {"d_rest": s.d_rest, "d_own": s.d_own, "d_own_offset": s.d_own_offset, "d_mean": mean}
    given |= {name: _dense(slope) for name, slope in slopes.items()}
    given |= {"grad": _dense(s.grad), "one_grad": s.grad is not None and s.grad.dim() == 0}
    d_logits, d_offset = i.logits.new_empty(i.logits.shape), s.rest.new_empty(0)
    each = plan.fixed["offset_kind"] == EACH.value
    if s.want_offset and i.offset is not None:
        d_offset = s.rest.new_empty(i.offset.shape) if each else _table_gradient(plan, given, i.offset.shape[0])
    given |= {"d_logits": d_logits, "d_table": d_offset if s.want_offset and each else None}
    if plan.short:
        launch(short_gradient_kernel, plan.grid(), given, warps=plan.warps)
    else:
        launch(long_gradient_kernel, plan.grid(), {**given, "span": plan.span}, warps=plan.warps)
    return d_logits, d_offset


def _table_gradient(plan: Plan, given: dict[str, Any], lines: int) -> Tensor:
    """The offset's gradient [R, C]: for each of its lines the sum over its rows, in their order."""
    tall, wide, like = 16, min(128, power_of_two(plan.width, least=16)), given["rest"]
    across = blocks(plan.width, wide)
    groups, chunk, order, bounds = lines, 0, None, None
    if lines == 1:  # sums of parts of the batch, for enough programs; then the sum of these
        wanted = min(blocks(plan.rows, 4 * tall), blocks(8 * processors(like), across))
        chunk = tall * max(1, blocks(plan.rows, tall * max(1, wanted)))
        groups = max(1, blocks(plan.rows, chunk))
    else:
        line, order = given["offset_row"].clamp(0, lines - 1).sort(stable=True)
        bounds = torch.searchsorted(line, torch.arange(lines + 1, device=line.device, dtype=line.dtype))
    d_table = like.new_empty((groups, plan.width))
    taken = {name: value for name, value in given.items() if name not in ("d_own", *plan.tile)}
    more = {"d_table": d_table, "order": order, "bounds": bounds, "chunk": chunk, "R": tall, "W": wide}
    launch(table_gradient_kernel, (groups, across), {**taken, **more})
    return d_table.sum(0, keepdim=True) if groups != lines else d_table


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
    rest, top, d_rest, d_own, d_offset, d_mean = saved.unbind()
    mean = None if mean_weight is None else d_mean
    return _gradient(
        Inputs(logits, target[:, None], scale, None, None, *tables, 0, classes, ignore_index),
        Slopes(rest, top, d_rest, d_own[:, None], d_offset[:, None], mean, grad, want_offset),
    )

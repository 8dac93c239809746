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
from lt_kernels.triton.launch import Prepared, blocks, launch, power_of_two, processors
from lt_kernels.triton.margins import loss_settings
from lt_kernels.triton.rows_gradient import long_gradient_kernel, short_gradient_kernel, table_gradient_kernel
from lt_kernels.triton.rows_loss import divide_kernel, loss_kernel
from lt_kernels.triton.rows_once import long_once_kernel, short_once_kernel, sum_losses_kernel, times_grad_kernel
from lt_kernels.triton.rows_statistics import long_statistics_kernel, merge_kernel, short_statistics_kernel
from lt_kernels.triton.rows_tiles import EACH, Plan, Shape, one_launch, two_passes

ALONE = 1024  # the most rows for which one program computes all losses, which saves the launch that sums them
SOME = 512  # rows of a program if there are more
COUNTED = 16_384  # the most rows that every program of the one launch for loss and gradient counts
FEW, FEW_BYTES = 64, 131_072  # with fewer rows, each may have so many bytes for one program to walk along it


def _adjacent(logits: Tensor) -> Tensor:
    """The logits with adjacent columns."""
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _shape(
    logits: Tensor,
    out: Tensor | None,
    offset: Tensor | None,
    share: Tensor | None,
    picked: bool,
    scaled: bool,
    stretched: bool,
) -> Shape:
    """What a plan depends on; `out` is what a gradient goes into."""
    rows, width = logits.shape
    strides = (logits.stride(0) if rows > 1 else width, width if out is None or rows < 2 else out.stride(0))
    lines = [0 if table is None else table.shape[0] for table in (offset, share)]
    return Shape(rows, width, *strides, logits.element_size(), *lines, picked, scaled, stretched, logits.device)


def _given(i: Inputs, out: Tensor | None = None) -> tuple[Plan, dict[str, Any]]:
    """The plan, and the arguments that every kernel on logits takes; `out` is what a gradient goes into."""
    if i.target.shape[1] > 2:
        raise ValueError(f"target must have at most two classes a row, got {i.target.shape[1]}")
    logits = _adjacent(i.logits)
    scales = i.column_scale is not None, i.scale != 1.0
    shape = _shape(logits, out, i.offset, i.mean_weight, i.offset_row is not None, *scales)
    plan = two_passes(shape)
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
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


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
    return _scaled_loss(logits, target, (None, None), settings)


def _inputs(logits: Tensor, target: Tensor, scales: tuple[Tensor | None, ...], t: Terms) -> Inputs:
    tables = (t.offset, t.offset_row, None if t.total is None else t.mean_weight)
    return Inputs(logits, target[:, None], t.scale, *scales, *tables, 0, logits.shape[1], t.ignore_index)


def _ranked(t: Terms) -> bool:
    """Whether the rivals are needed: only DBM's margin does, to find hard rows."""
    return t.kind == Phi.ANGULAR and t.instance != 0


def _scaled_loss(
    logits: Tensor, target: Tensor, scales: tuple[Tensor | None, ...], settings: tuple[Any, ...]
) -> tuple[Tensor, Tensor]:
    """`rows_loss` of logits whose rows and columns are scaled."""
    t, reduction = Terms(*settings[:-1]), settings[-1]
    inputs = _inputs(logits, target, scales, t)
    plan, given = _given(inputs)
    kind, share = accumulate_type(logits.dtype), inputs.mean_weight
    saved, spare = (logits.new_empty((size, plan.rows), dtype=kind) for size in (6, 3))
    rival, mean, own = spare.unbind()
    whole = Statistics(saved[1], saved[0], rival if _ranked(t) else None, None if share is None else mean, None, own)
    found = _statistics(plan, given, whole)
    more = {"share_total": None if share is None else _dense(t.total), **loss_settings(t)}
    return _loss(plan, {**found._asdict(), **given, **more}, saved, reduction), saved


def serves_once(rows: int, width: int, dtype: torch.dtype, reduction: int) -> bool:
    """Whether one launch makes loss and gradient of logits [rows, width], so that they are read once from memory.

    Not for losses that are not reduced; nor for so many rows that each program would count them too long, nor for so
    few long ones that most of the multiprocessors would have none.
    """
    busy = rows >= FEW or width * dtype.itemsize <= FEW_BYTES
    return reduction != Reduce.NONE and 0 < rows <= COUNTED and busy


def rows_loss_gradient(
    logits: Tensor,
    target: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    *settings: Any,
    into: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss, [N] or reduced, and the gradient of the loss or its sum [N, C].

    row_scale [N] and column_scale [C] multiply the logits; the gradient is for the logits before that. It is written
    into `into` [N, C], which may be the logits, or a new tensor. settings: the fields of `Terms`, and the reduction.
    """
    if into is not None and (into.shape != logits.shape or into.stride(1) != 1):
        raise ValueError(
            f"into must have the logits' shape {tuple(logits.shape)} and adjacent columns, got "
            f"{tuple(into.shape)} with strides {into.stride()}"
        )
    gradient = logits.new_empty(logits.shape) if into is None else into
    scales = (row_scale, column_scale)
    if serves_once(*logits.shape, logits.dtype, settings[-1]):
        return _in_one_launch(logits, target, scales, settings, gradient), gradient
    t, (loss, saved) = Terms(*settings[:-1]), _scaled_loss(logits, target, scales, settings)
    rest, top, d_rest, d_own, d_offset, d_mean = saved.unbind()
    slopes = Slopes(rest, top, d_rest, d_own[:, None], d_offset[:, None], d_mean, None, False)
    return loss, _gradient(_inputs(logits, target, scales, t), slopes, gradient)[0]


def _in_one_launch(
    logits: Tensor, target: Tensor, scales: tuple[Tensor | None, ...], settings: tuple[Any, ...], gradient: Tensor
) -> Tensor:
    """The reduced loss; the gradient is written."""
    offset, offset_row, share, total, weight, sample_weight, margins, smoothing = settings[:8]
    share, by_row, by_class = None if total is None else share, *scales
    logits = _adjacent(logits)
    shape = _shape(logits, gradient, offset, share, offset_row is not None, by_class is not None, settings[8] != 1.0)
    once, reduce = _once(shape, settings[8:])
    kind = accumulate_type(logits.dtype)
    losses, loss = logits.new_empty(shape.rows + 1, dtype=kind), logits.new_empty((), dtype=kind)
    once(
        losses=losses,
        gradient=gradient,
        logits=logits,
        target=_dense(target),
        row_scale=_dense(by_row),
        column_scale=_dense(by_class),
        offset=_dense(offset),
        offset_row=_dense(offset_row),
        share=_dense(share),
        share_total=None if share is None else _dense(total),
        weight=_dense(weight),
        sample_weight=_dense(sample_weight),
        class_margin=_dense(margins),
        class_smoothing=_dense(smoothing),
        **({} if reduce else {"loss_out": loss}),
    )
    if reduce:
        reduce(loss_out=loss, losses=losses)
    return loss


@lru_cache(maxsize=1024)
def _once(shape: Shape, settings: tuple[Any, ...]) -> tuple[Prepared, Prepared | None]:
    """The launch that makes loss and gradient, and, where several programs take part, the one that sums the losses.

    settings: the numbers among the fields of `Terms`, and the reduction.
    """
    t, plan = Terms(*[None] * 8, *settings[:-1]), one_launch(shape)
    programs = min(plan.parts, blocks(plan.rows, plan.tile["R"]))
    fixed = {**plan.fixed, **plan.tile, **loss_settings(t), "reduction": settings[-1]}
    fixed |= {"out_stride": plan.out_stride, "scaled": t.scale != 1.0}
    if plan.short:
        kernel, alone = short_once_kernel, programs == 1
        fixed |= {"alone": alone, "loss_out": None}
    else:
        kernel, alone = long_once_kernel, False
        fixed |= {"ranked": _ranked(t), "alike": plan.out_stride == plan.fixed["stride"]}
    tables = ("weight", "sample_weight", "class_margin", "class_smoothing")
    known = {name: value for name, value in fixed.items() if name not in tables}
    once = Prepared(kernel, (programs,), known, warps=plan.warps)
    return once, None if alone else Prepared(sum_losses_kernel, (1,), {"rows": plan.rows, "block": 1024})


# The arguments that the kernel for the loss takes besides the statistics.
_LOSS = (
    *("target", "offset", "offset_row", "share", "share_total", "weight", "sample_weight", "class_margin"),
    *("class_smoothing", "offset_kind", "share_kind", "offset_lines", "share_lines", "ignore", "order", "scale"),
    *("margin", "instance", "gamma", "smoothing", "z_loss", "kind", "guard", "focal", "squared"),
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


def _gradient(i: Inputs, s: Slopes, into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The gradient for the logits [N, C] and, if wanted, for the offset in its own shape."""
    i = i if s.d_mean is not None else i._replace(mean_weight=None)
    d_logits = i.logits.new_empty(i.logits.shape) if into is None else into
    plan, given = _given(i, d_logits)
    mean = None if i.mean_weight is None else s.d_mean
    slopes = {"rest": s.rest, "top": s.top}
    slopes |= {"d_rest": s.d_rest, "d_own": s.d_own, "d_own_offset": s.d_own_offset, "d_mean": mean}
    given |= {name: _dense(slope) for name, slope in slopes.items()}
    given |= {"grad": _dense(s.grad), "one_grad": s.grad is not None and s.grad.dim() == 0}
    given["out_stride"] = plan.out_stride
    d_offset = s.rest.new_empty(0)
    each = plan.fixed["offset_kind"] == EACH.value
    if s.want_offset and i.offset is not None:
        d_offset = s.rest.new_empty(i.offset.shape) if each else _table_gradient(plan, given, i.offset.shape[0])
    given |= {"d_logits": d_logits, "d_table": d_offset if s.want_offset and each else None}
    if plan.short:
        launch(short_gradient_kernel, plan.grid(), given, warps=plan.warps)
    else:
        more = {"span": plan.span, "alike": plan.out_stride == plan.fixed["stride"]}
        launch(long_gradient_kernel, plan.grid(), {**given, **more}, warps=plan.warps)
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
    taken = {name: value for name, value in given.items() if name not in ("d_own", "out_stride", *plan.tile)}
    more = {"d_table": d_table, "order": order, "bounds": bounds, "chunk": chunk, "R": tall, "W": wide}
    launch(table_gradient_kernel, (groups, across), {**taken, **more}, warps=8 if lines == 1 else 4)
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


def times_grad(gradient: Tensor, target: Tensor, grad: Tensor, ignore_index: int) -> None:
    """Multiply a gradient [N, C] in place by grad, [] or [N], unless that is exactly 1.

    The gradient of ignored rows stays 0 whatever grad is.
    """
    if gradient.stride(1) != 1 and gradient.shape[1] > 1:
        raise ValueError(f"gradient must have adjacent columns, got the strides {gradient.stride()}")
    rows, width = gradient.shape
    stride = gradient.stride(0) if rows > 1 else width
    times = _times(rows, width, stride, gradient.element_size(), grad.dim() == 0, ignore_index)
    times(gradient=gradient, target=_dense(target), grad=_dense(grad))


@lru_cache(maxsize=1024)
def _times(rows: int, width: int, stride: int, itemsize: int, one_grad: bool, ignore: int) -> Prepared:
    """The launch that multiplies a gradient."""
    unit, group = math.gcd(16 // itemsize, width, stride), 16 // itemsize
    wide = power_of_two(blocks(width, group), least=32, most=128)
    fixed = {"width": width // unit, "stride": stride // unit, "unit": unit, "group": group, "T": 2, "W": wide}
    return Prepared(times_grad_kernel, (rows,), {**fixed, "ignore": ignore, "one_grad": one_grad}, warps=wide // 32)

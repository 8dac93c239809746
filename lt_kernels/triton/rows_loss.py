"""Kernels from the statistics of rows to their loss, its slopes, and the reduction of both."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.core import terms
from lt_kernels.triton.margins import at_class, row_loss
from lt_kernels.triton.numbers import number, part
from lt_kernels.triton.rows_statistics import merged
from lt_kernels.triton.rows_tiles import line_of

NONE: tl.constexpr = tl.constexpr(int(terms.Reduce.NONE))
SUM: tl.constexpr = tl.constexpr(int(terms.Reduce.SUM))
WEIGHTED_MEAN: tl.constexpr = tl.constexpr(int(terms.Reduce.WEIGHTED_MEAN))


@triton.jit
def at_target(table, kind: tl.constexpr, row, offset_row, lines, label, width, inside):
    """A table at each row's target, 0 where that is out of range; None without a table."""
    there = inside & (label >= 0) & (label < width)
    return part(table, line_of(kind, row, offset_row, lines, inside) * width + label, there)


@triton.jit
def row_slopes(
    rest, high, own, best, middle, row, label, inside, ignore, offset, offset_kind: tl.constexpr, offset_row,
    offset_lines, share, share_kind: tl.constexpr, share_lines, share_total, weight, sample_weight,
    class_margin, class_smoothing, width, order, scale, margin, instance, gamma, smoothing, z_loss, kind: tl.constexpr,
    guard: tl.constexpr, focal: tl.constexpr, squared: tl.constexpr,
):  # fmt: skip
    """(loss, d_rest, d_own, d_offset, d_mean) of rows from their statistics; 0 where they are ignored."""
    own_offset = at_target(offset, offset_kind, row, offset_row, offset_lines, label, width, inside)
    own_share = at_target(share, share_kind, row, offset_row, share_lines, label, width, inside)
    all_shares = part(share_total, line_of(share_kind, row, offset_row, share_lines, inside), inside)
    loss, d_rest, d_own, d_offset, _, d_mean = row_loss(
        rest, high, own, best, label, own_offset, None, middle, all_shares, own_share, weight,
        part(sample_weight, row, inside), class_margin, class_smoothing, width, order, scale, margin, instance, gamma,
        smoothing, z_loss, kind, guard, focal, squared
    )  # fmt: skip
    counts = label != ignore
    loss, d_rest, d_own = tl.where(counts, loss, 0.0), tl.where(counts, d_rest, 0.0), tl.where(counts, d_own, 0.0)
    return loss, d_rest, d_own, tl.where(counts, d_offset, 0.0), tl.where(counts, d_mean, 0.0)


@triton.jit
def amounts(label, weight, sample_weight, row, inside, width, reduction: tl.constexpr, like):
    """What each row adds to the number that a mean divides by."""
    amount = at_class(weight if reduction == WEIGHTED_MEAN else None, 1.0, label, width, like)
    return amount if sample_weight is None else amount * part(sample_weight, row, inside)


@triton.jit
def divisor_of(
    target, weight, sample_weight, rows, width, ignore, reduction: tl.constexpr, block: tl.constexpr, A: tl.constexpr
):  # fmt: skip
    """What the reduction divides by; every program sums the same numbers in the same order."""
    total = tl.zeros((block,), A)
    if reduction != SUM:
        for first in range(0, rows, block):
            row = first + tl.arange(0, block)
            label = tl.load(target + row, mask=row < rows, other=ignore)
            amount = amounts(label, weight, sample_weight, row, row < rows, width, reduction, total)
            total += tl.where(label != ignore, amount, 0.0)
    return tl.sum(total, 0) if reduction != SUM else number(1.0, A)


@triton.jit
def divided(found, divisor, counts):
    """(d_rest, d_own, d_offset, d_mean) of rows, divided where they count: 0 / 0 is no gradient."""
    d_rest, d_own = tl.where(counts, found[1] / divisor, 0.0), tl.where(counts, found[2] / divisor, 0.0)
    return d_rest, d_own, tl.where(counts, found[3] / divisor, 0.0), tl.where(counts, found[4] / divisor, 0.0)


@triton.jit
def store_slopes(saved, rest, top, slopes, row, rows, inside):
    """Store (rest, top, d_rest, d_own, d_offset, d_mean) of rows."""
    rows = rows.to(tl.int64)
    tl.store(saved + row, rest, mask=inside)
    tl.store(saved + rows + row, top, mask=inside)
    for k in tl.static_range(4):
        tl.store(saved + (k + 2) * rows + row, slopes[k], mask=inside)


@triton.jit(do_not_specialize=["rows", "ignore", "order", "pieces"])
def loss_kernel(
    loss_out,  # [N]; [] if it is reduced and there is one program
    saved,  # [6, N]: rest and top (stored already if there is one part), d_rest, d_own, d_offset, d_mean
    sums_out,  # [2, programs]: of the losses and of the weights
    top,  # [P, N] for P parts of each row, as the next four
    total,  # rest if there is one part
    rival,  # absent if no margin needs it
    mean,
    shares,  # only if there are several parts
    own,  # [N]
    target,  # [N]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    share_total,  # [1], [N] or [R]: the sums of its lines
    sample_weight,  # [N]
    weight,  # [C], as the next two
    class_margin,
    class_smoothing,
    rows,
    width,
    pieces,
    offset_lines,
    share_lines,
    ignore,
    order,
    scale: tl.float64,
    margin: tl.float64,
    instance: tl.float64,
    gamma: tl.float64,
    smoothing: tl.float64,
    z_loss: tl.float64,
    kind: tl.constexpr,
    guard: tl.constexpr,
    focal: tl.constexpr,
    squared: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    reduction: tl.constexpr,
    alone: tl.constexpr,  # one program has all rows
    P: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = row < rows
    label = tl.load(target + row, mask=inside, other=ignore)
    counts = label != ignore
    if P == 1:
        rest, high = tl.load(total + row, mask=inside, other=0.0), tl.load(top + row, mask=inside, other=0.0)
        best = part(rival, row, inside)
        middle = part(mean, row, inside)
    else:
        rest, high, best, middle, _ = merged(top, total, rival, mean, shares, row, inside, rows, pieces, P)
    middle = None if mean is None else middle
    best = rest if rival is None else best
    loss, d_rest, d_own, d_offset, d_mean = row_slopes(
        rest, high, part(own, row, inside), best, middle, row, label, inside, ignore, offset, offset_kind, offset_row,
        offset_lines, share, share_kind, share_lines, share_total, weight, sample_weight, class_margin,
        class_smoothing, width, order, scale, margin, instance, gamma, smoothing, z_loss, kind, guard, focal, squared,
    )  # fmt: skip

    if reduction == NONE:
        tl.store(loss_out + row, loss, mask=inside)
    else:
        sum = tl.sum(loss, 0)
        amount = amounts(label, weight, sample_weight, row, inside, width, reduction, loss)
        divisor = tl.sum(tl.where(counts, amount, 0.0), 0)
        if not alone:
            tl.store(sums_out + tl.program_id(0), sum)
            tl.store(sums_out + tl.num_programs(0) + tl.program_id(0), divisor)
        elif reduction == SUM:
            tl.store(loss_out, sum)
        else:
            tl.store(loss_out, sum / divisor)
            d_rest, d_own = tl.where(counts, d_rest / divisor, 0.0), tl.where(counts, d_own / divisor, 0.0)
            d_offset, d_mean = tl.where(counts, d_offset / divisor, 0.0), tl.where(counts, d_mean / divisor, 0.0)
    store_slopes(saved, rest, high, (d_rest, d_own, d_offset, d_mean), row, rows, inside)


@triton.jit(do_not_specialize=["rows", "programs", "ignore"])
def divide_kernel(
    loss_out,  # []
    saved,  # [6, N]: all but the first two lines are divided, in place
    sums,  # [2, programs]
    target,  # [N]
    rows,
    programs,
    ignore,
    mean: tl.constexpr,
    block: tl.constexpr,
):
    sum, divisor = tl.zeros((block,), sums.dtype.element_ty), tl.zeros((block,), sums.dtype.element_ty)
    for first in range(0, programs, block):  # every program sums the same numbers in the same order
        place = first + tl.arange(0, block)
        sum += tl.load(sums + place, mask=place < programs, other=0.0)
        divisor += tl.load(sums + programs + place, mask=place < programs, other=0.0)
    loss, count = tl.sum(sum, 0), tl.sum(divisor, 0)
    if tl.program_id(0) == 0:
        tl.store(loss_out, loss / count if mean else loss)
    if mean:
        for first in range(tl.program_id(0) * block, rows, tl.num_programs(0) * block):
            row = (first + tl.arange(0, block)).to(tl.int64)
            inside = row < rows
            counts = tl.load(target + row, mask=inside, other=ignore) != ignore
            for k in tl.static_range(2, 6):
                slope = tl.load(saved + k * rows.to(tl.int64) + row, mask=inside, other=0.0)
                tl.store(saved + k * rows.to(tl.int64) + row, tl.where(counts, slope / count, 0.0), mask=inside)

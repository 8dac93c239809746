"""Kernels that make the loss of rows and its gradient in one launch (docs/math.md, sections 1 to 3).

A program walks along a row for its statistics, and back for its gradient. So it begins the way back with what it has
read last: a block that is still in registers, then the L1 cache, then the L2 cache, which has room for all rows that
are under way. The gradient may overwrite the logits: the way back reads every logit before it writes there.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.numbers import as_stored, exp, finite, log_total, number, part
from lt_kernels.triton.rows_gradient import d_block, d_logits_of, d_values, in_logits, place_targets
from lt_kernels.triton.rows_loss import divided, divisor_of, row_slopes
from lt_kernels.triton.rows_statistics import add_logits, gathered, joined, no_statistics
from lt_kernels.triton.rows_tiles import (
    NOTHING,
    across,
    begins,
    block_of,
    edges,
    ends_of,
    lattice,
    line_of,
    own_logit,
    own_value,
    peers,
    summary,
    table_start,
    tall,
    targets,
    values,
)


@triton.jit
def finished(
    losses, rest, high, own, rival, mean, divisor, row, rows, target, inside, ignore, offset,
    offset_kind: tl.constexpr, offset_row, offset_lines, share, share_kind: tl.constexpr, share_lines, share_total,
    weight, sample_weight, class_margin, class_smoothing, width, order, scale, margin, instance, gamma, smoothing,
    z_loss, kind: tl.constexpr, guard: tl.constexpr, focal: tl.constexpr, squared: tl.constexpr,
):  # fmt: skip
    """(loss, d_rest, d_own, d_offset, d_mean) of rows from their statistics, the slopes divided; all are stored."""
    label = tl.load(target + row, mask=inside, other=ignore)
    found = row_slopes(
        rest, high, own, rival, mean, row, label, inside, ignore, offset, offset_kind, offset_row, offset_lines, share,
        share_kind, share_lines, share_total, weight, sample_weight, class_margin, class_smoothing, width, order, scale,
        margin, instance, gamma, smoothing, z_loss, kind, guard, focal, squared,
    )  # fmt: skip
    slopes = divided(found, divisor, label != ignore)
    tl.store(losses + row, found[0], mask=inside)
    return found[0], slopes[0], slopes[1], slopes[2], slopes[3]


@triton.jit
def edge_slopes(
    u, share, high, d_high, d_middle, row_scale, column_scale, s, scaled: tl.constexpr, exact: tl.constexpr, column,
    first, one, skipped,
):  # fmt: skip
    """The gradient at the ends of rows [R, 2 group] that are not in whole groups."""
    d_u = d_values(u, share, tall(high), tall(d_high), tall(d_middle), exact)
    d_x = d_logits_of(d_u, tall(row_scale), column_scale, s, scaled)
    return place_targets(d_x, column, tall(first), tall(first), tall(one), tall(one), tall(skipped))


@triton.jit
def first_block(
    logits, leader, rows, width, stride, from_row, coarse, group: tl.constexpr, read: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    """The first block of R rows from `leader` on, where there are any; a 0 if it is not to be read yet."""
    if read:
        _, origin, _, whole = begins(leader, width, stride, group)
        inside = across(leader + tl.arange(0, R) < rows) & (coarse < whole)
        found = tl.load(logits + origin + from_row, mask=inside, other=0.0, eviction_policy="evict_last")
    else:
        found = tl.zeros((), logits.dtype.element_ty)
    return found


@triton.jit
def numbers(table, place, inside, dtype: tl.constexpr):
    """A block of a table; without one a 0, because a loop cannot carry None to its next turn."""
    if table is None:
        block = tl.zeros((), dtype)
    else:
        block = tl.load(table + place, mask=inside, other=0.0)
    return block


@triton.jit
def gather_block(
    top, total, rival, mean, shares, x, offset, b, t, by_row, share, share_at, column_scale, first, ends, head,
    whole, coarse, fine, s, scaled: tl.constexpr, ranked: tl.constexpr, exact: tl.constexpr, group: tl.constexpr,
    size: tl.constexpr,
):  # fmt: skip
    """Add the block at `t`, whose logits and offset are read already, to the statistics of lanes."""
    inside, lanes, b = coarse < whole - t, coarse + fine, None if offset is None else b
    c = part(column_scale, head + t + lanes, inside)
    a = part(share, across(share_at) + t + lanes, inside)
    return add_logits(
        top, total, rival, mean, shares, x, by_row, c, b, a, first, first, ends, head + t, whole - t, coarse, fine, s,
        scaled, ranked, exact, group, size,
    )  # fmt: skip


@triton.jit
def slope_block(
    x, offset, b, t, by_row, share, share_at, column_scale, first, ends, head, whole, high, d_high, d_middle,
    one, skipped, coarse, fine, s, scaled: tl.constexpr, exact: tl.constexpr, group: tl.constexpr, size: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """The gradient, as it is stored, of the block at `t`, whose logits and offset are read already."""
    inside, lanes, b = coarse < whole - t, coarse + fine, None if offset is None else b
    c = part(column_scale, head + t + lanes, inside)
    a = part(share, across(share_at) + t + lanes, inside)
    d_x, _ = d_block(
        x, by_row, c, b, a, high, d_high, d_middle, first, first, one, one, one, one, skipped, ends, head + t, coarse,
        fine, s, scaled, exact, group, size,
    )  # fmt: skip
    return as_stored(d_x, dtype)


@triton.jit(do_not_specialize=["rows", "ignore", "order"])
def long_once_kernel(
    losses,  # [N + 1]: the rows', and what a mean divides their sum by
    gradient,  # [N, C], `out_stride` from row to row; may be the logits
    logits,  # [N, C], `stride` from row to row
    target,  # [N]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    share_total,  # [1], [N] or [R]: the sums of its lines
    sample_weight,  # [N]
    weight,  # [C], as the next two
    class_margin,
    class_smoothing,
    rows,
    width,  # C and the strides, in units: what all are multiples of
    stride,
    out_stride,
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
    scaled: tl.constexpr,
    kind: tl.constexpr,
    guard: tl.constexpr,
    focal: tl.constexpr,
    squared: tl.constexpr,
    ranked: tl.constexpr,  # a margin needs the rival
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    reduction: tl.constexpr,
    dense: tl.constexpr,
    early: tl.constexpr,  # the next row's first block is read while this row is finished
    alike: tl.constexpr,  # the gradient has the logits' stride
    unit: tl.constexpr,
    group: tl.constexpr,  # columns that a thread reads at once; a row has them from `origin` on
    block: tl.constexpr,  # targets that are read at once for the divisor
    R: tl.constexpr,  # rows; more than one only where all begin with a whole group
    T: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = losses.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    size: tl.constexpr = T * W * group
    width, stride, by, s = width * unit, stride.to(tl.int64) * unit, out_stride.to(tl.int64) * unit, number(scale, A)
    coarse, fine = lattice(T, W, group)
    each, programs = tl.arange(0, R), tl.num_programs(0) * R
    lanes, earliest = coarse + fine, tl.program_id(0) * R
    from_row = lanes if R == 1 else across(each * stride.to(tl.int32)) + lanes  # 32 bits: fewer registers
    to_row = lanes if R == 1 else across(each * by.to(tl.int32)) + lanes
    ahead = first_block(logits, earliest.to(tl.int64), rows, width, stride, from_row, coarse, group, early, R)
    divisor = divisor_of(target, weight, sample_weight, rows, width, ignore, reduction, block, A)
    tl.store(losses + rows, divisor, mask=tl.program_id(0) == 0)
    for begin in range(earliest, rows, programs):
        leader = tl.zeros((), tl.int64) + begin
        x = ahead if early else first_block(logits, leader, rows, width, stride, from_row, coarse, group, True, R)
        row, present, there = leader + each, leader + each < rows, across(leader + each < rows)
        at, origin, head, whole = begins(leader, width, stride, group)
        first, _, skipped = targets(target, row, present, 0, width, ignore, 1)
        ends = ends_of(first, first, skipped)
        own = own_logit(logits, row * stride, first, present)
        by_row = part(row_scale, row, present)
        offset_at = table_start(offset_kind, row, present, offset_row, offset_lines, width, head, origin, dense, R)
        share_at = table_start(share_kind, row, present, offset_row, share_lines, width, head, origin, dense, R)
        b = numbers(offset, across(offset_at) + lanes, coarse < whole, A)
        if group > unit:
            column, outside = edges(width, head, whole, group)
            edge_c = part(column_scale, column, outside)
            edge_b = part(offset, tall(offset_at - head) + column, outside)
            edge = tl.load(logits + at + column, mask=outside, other=0.0).to(A)
            edge, edge_u = values(edge, tall(by_row), edge_c, edge_b, s, scaled)
            edge_a = part(share, tall(share_at - head) + column, outside)
        top, total, rival, mean, shares = no_statistics(R, W, A)
        read, last = ~ends[3], tl.maximum(whole - 1, 0) // size * size  # ignored rows are not read further
        for t in range(0, tl.where(read, last, 0), size):
            # Two forms of one condition: where either serves both reads, the assembler spills registers on some GPU.
            more = there & (coarse + size < whole - t)
            after = tl.load(logits + (origin + t + size) + from_row, more, 0.0, eviction_policy="evict_last")
            after_b = numbers(offset, across(offset_at) + t + size + lanes, coarse < whole - t - size, A)
            top, total, rival, mean, shares = gather_block(
                top, total, rival, mean, shares, x, offset, b, t, by_row, share, share_at, column_scale, first,
                ends, head, whole, coarse, fine, s, scaled, ranked, exact, group, size,
            )  # fmt: skip
            x, b = after, after_b
        top, total, rival, mean, shares = gather_block(
            top, total, rival, mean, shares, x, offset, b, last, by_row, share, share_at, column_scale, first,
            ends, head, whole, coarse, fine, s, scaled, ranked, exact, group, size,
        )  # fmt: skip
        ahead = first_block(logits, leader + programs, rows, width, stride, from_row, coarse, group, early, R)
        found = gathered(top, total, rival, mean, shares)
        if group > unit:
            hidden = ~outside | (column == first[:, None])
            found = joined(found, summary(peers(edge, edge_u, offset), edge_u, edge_a, hidden, 1, exact))
        z = own_value(own, first, present, by_row, column_scale, A)
        high, rest = tl.where(skipped, NOTHING, found[0]), tl.where(skipped, NOTHING, log_total(found[1]))
        _, d_rest, d_own, _, d_mean = finished(
            losses, rest, high, z, found[2], None if share is None else found[3], divisor, row, rows, target,
            present, ignore, offset, offset_kind, offset_row, offset_lines, share, share_kind, share_lines, share_total,
            weight, sample_weight, class_margin, class_smoothing, width, order, scale, margin, instance, gamma,
            smoothing, z_loss, kind, guard, focal, squared,
        )  # fmt: skip
        high, d_high, d_middle = finite(high), d_rest * exp(-finite(rest)), None if share is None else d_mean
        one = in_logits(d_own, first, by_row, column_scale, present)
        out_at = origin if alike else leader * by + head
        tl.debug_barrier()  # what other threads read too may be overwritten from here on
        for back in range(0, last + size, size):
            t = last - back
            more = read & (coarse >= size - t)
            before = tl.load(logits + (origin + t - size) + from_row, there & more, 0.0, eviction_policy="evict_first")
            before_b = numbers(offset, across(offset_at) + t - size + lanes, more, A)
            d_x = slope_block(
                x, offset, b, t, by_row, share, share_at, column_scale, first, ends, head, whole, high, d_high,
                d_middle, one, skipped, coarse, fine, s, scaled, exact, group, size, gradient.dtype.element_ty,
            )  # fmt: skip
            tl.store(gradient + (out_at + t) + to_row, d_x, there & (coarse < whole - t), cache_modifier=".cs")
            x, b = before, before_b
        if group > unit:
            d_edge = edge_slopes(
                edge_u, edge_a, high, d_high, d_middle, by_row, edge_c, s, scaled, exact, column, first, one, skipped
            )
            tl.store(gradient + leader * by + column, as_stored(d_edge, gradient.dtype.element_ty), mask=outside)


@triton.jit(do_not_specialize=["rows", "ignore", "order"])
def short_once_kernel(
    loss_out,  # []: the reduced loss, if there is one program
    losses,  # [N + 1]: the rows', and what a mean divides their sum by
    gradient,  # [N, C], `out_stride` from row to row; may be the logits
    logits,  # [N, C], `stride` from row to row
    target,  # [N]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    share_total,  # [1], [N] or [R]: the sums of its lines
    sample_weight,  # [N]
    weight,  # [C], as the next two
    class_margin,
    class_smoothing,
    rows,
    width,  # C and the strides, in units: what all are multiples of
    stride,
    out_stride,
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
    scaled: tl.constexpr,
    kind: tl.constexpr,
    guard: tl.constexpr,
    focal: tl.constexpr,
    squared: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    reduction: tl.constexpr,
    alone: tl.constexpr,  # there is one program
    unit: tl.constexpr,
    block: tl.constexpr,  # targets that are read at once for the divisor
    R: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = losses.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    width, s, total = width * unit, number(scale, A), tl.zeros((R,), A)
    column = tl.arange(0, W)[None, :]
    divisor = divisor_of(target, weight, sample_weight, rows, width, ignore, reduction, block, A)
    tl.store(losses + rows, divisor, mask=tl.program_id(0) == 0)
    for begin in range(tl.program_id(0) * R, rows, tl.num_programs(0) * R):
        row = tl.arange(0, R).to(tl.int64) + begin
        present, from_row, inside = row < rows, row * stride * unit, (row < rows)[:, None] & (column < width)
        x = tl.load(logits + from_row[:, None] + column, mask=inside, other=0.0).to(A)
        first, _, skipped = targets(target, row, present, 0, width, ignore, 1)
        own = own_logit(logits, from_row, first, present)
        by_row = part(row_scale, row, present)
        b = block_of(
            offset, offset_kind, line_of(offset_kind, row, offset_row, offset_lines, present), column, inside, width
        )
        a = block_of(
            share, share_kind, line_of(share_kind, row, offset_row, share_lines, present), column, inside, width
        )
        c = part(column_scale, column, column < width)
        rows_scale = tall(by_row)
        v, u = values(x, rows_scale, c, b, s, scaled)
        hidden = ~inside | skipped[:, None] | (column == first[:, None])
        high, rest, rival, mean, _ = summary(peers(v, u, b), u, a, hidden, 1, exact)
        rest, z = log_total(rest), own_value(own, first, present, by_row, column_scale, A)
        loss, d_rest, d_own, _, d_mean = finished(
            losses, rest, high, z, rival, None if share is None else mean, divisor, row, rows, target, present,
            ignore, offset, offset_kind, offset_row, offset_lines, share, share_kind, share_lines, share_total, weight,
            sample_weight, class_margin, class_smoothing, width, order, scale, margin, instance, gamma,
            smoothing, z_loss, kind, guard, focal, squared,
        )  # fmt: skip
        total += loss
        high, d_high = finite(high)[:, None], (d_rest * exp(-finite(rest)))[:, None]
        d_u = d_values(u, a, high, d_high, None if share is None else d_mean[:, None], exact)
        one = in_logits(d_own, first, by_row, column_scale, present)[:, None]
        d_x = d_logits_of(d_u, rows_scale, c, s, scaled)
        d_x = place_targets(d_x, column, first[:, None], first[:, None], one, one, skipped[:, None])
        tl.debug_barrier()  # what other threads read too may be overwritten from here on
        place = (row * out_stride * unit)[:, None] + column
        tl.store(gradient + place, as_stored(d_x, gradient.dtype.element_ty), mask=inside)
    if alone:
        tl.store(loss_out, tl.sum(total, 0) / divisor)


@triton.jit(do_not_specialize=["rows"])
def sum_losses_kernel(
    loss_out,  # []
    losses,  # [N + 1]: the rows', and what a mean divides their sum by
    rows,
    block: tl.constexpr,
):
    total = tl.zeros((block,), losses.dtype.element_ty)
    for first in range(0, rows, block):
        row = first + tl.arange(0, block)
        total += tl.load(losses + row, mask=row < rows, other=0.0)
    tl.store(loss_out, tl.sum(total, 0) / tl.load(losses + rows))


@triton.jit(do_not_specialize=["rows", "ignore"])
def times_grad_kernel(
    gradient,  # [N, C], `stride` from row to row: multiplied in place
    target,  # [N]
    grad,  # [N] or []
    width,  # C and the stride, in units: what both are multiples of
    stride,
    ignore,
    one_grad: tl.constexpr,
    unit: tl.constexpr,
    group: tl.constexpr,  # columns that a thread reads at once; a row has them from `origin` on
    T: tl.constexpr,
    W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(grad if one_grad else grad + row)
    if (factor == 1) | (tl.load(target + row) == ignore):  # the gradient of an ignored row stays 0
        return
    at, origin, _, whole = begins(row, width * unit, stride.to(tl.int64) * unit, group)
    coarse, fine = lattice(T, W, group)
    for t in range(0, whole, T * W * group):
        place, inside = gradient + (origin + t) + (coarse + fine), coarse < whole - t
        slope = tl.load(place, mask=inside, other=0.0).to(factor.dtype) * factor
        tl.store(place, as_stored(slope, gradient.dtype.element_ty), mask=inside)
    if group > unit:
        column, outside = edges(width * unit, (origin - at).to(tl.int32), whole, group)
        slope = tl.load(gradient + at + column, mask=outside, other=0.0).to(factor.dtype) * factor
        tl.debug_barrier()  # several threads read them
        tl.store(gradient + at + column, as_stored(slope, gradient.dtype.element_ty), mask=outside)

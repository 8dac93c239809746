"""Kernels for the gradient of the statistics of rows, which read and write once per logit (docs/math.md, section 3)."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.numbers import as_stored, exp, finite, number, part
from lt_kernels.triton.rows_tiles import (
    across,
    begins,
    block_of,
    covers,
    edges,
    ends_of,
    is_column,
    lattice,
    line_of,
    table_start,
    tall,
    targets,
    values,
)


@triton.jit
def slopes_of(rest, top, d_rest, grad, one_grad: tl.constexpr, row, inside):
    """(top with 0 for -inf, the factor of exp(u - top) in the gradient, the factor of all slopes) of rows."""
    factor = tl.full((), 1.0, rest.dtype.element_ty)
    if grad is not None:
        factor = tl.load(grad) if one_grad else tl.load(grad + row, mask=inside, other=0.0)
    d_rest = tl.load(d_rest + row, mask=inside, other=0.0) * factor
    d_rest *= exp(-finite(tl.load(rest + row, mask=inside, other=0.0)))
    return finite(tl.load(top + row, mask=inside, other=0.0)), d_rest, factor


@triton.jit
def own_slopes(d_own, row, first, second, inside, factor, slots: tl.constexpr):
    """The gradient at a row's first and second target; the sum of both slopes if they are the same class."""
    if slots == 0 or d_own is None:
        one = tl.zeros_like(first).to(factor.dtype)
        two = one
    else:
        one = tl.load(d_own + row * slots, mask=inside, other=0.0) * factor
        two = one
        if slots == 2:
            other = tl.load(d_own + row * slots + 1, mask=inside, other=0.0) * factor
            one, two = tl.where(first == second, one + other, one), tl.where(first == second, one + other, other)
    return one, two


@triton.jit
def in_logits(slope, column, row_scale, column_scale, inside):
    """From the slope for the target's z to that for its logit."""
    slope = slope if row_scale is None else slope * row_scale
    factor = part(column_scale, tl.maximum(column, 0), inside)
    return slope if factor is None else slope * factor


@triton.jit
def d_values(u, share, top, steep, d_mean, exact: tl.constexpr):
    """The slope for u of columns that hold no target."""
    slope = exp(u - top, exact) * steep
    if d_mean is not None:
        slope += share * d_mean
    return slope


@triton.jit
def place_targets(slope, column, first, second, one, two, skipped):
    """The slopes of columns, with those of the targets in their place, and 0 in rows that are ignored."""
    slope = tl.where(column == second, two, tl.where(column == first, one, slope))
    return tl.where(skipped, 0.0, slope)


@triton.jit
def d_logits_of(d_u, row_scale, column_scale, scale, scaled: tl.constexpr):
    """From the slope for u to that for the logit."""
    d_u = d_u * scale if scaled else d_u
    d_u = d_u if row_scale is None else d_u * row_scale
    return d_u if column_scale is None else d_u * column_scale


@triton.jit
def d_block(
    x, by_row, c, b, a, high, d_high, d_middle, first, second, one, two, one_b, two_b, skipped, ends, here, coarse,
    fine, s, scaled: tl.constexpr, exact: tl.constexpr, group: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """The slopes (for the logits, for u) of a block of logits that begins at column `here`."""
    _, u = values(x.to(high.dtype), across(by_row), c, b, s, scaled)
    d_u = d_values(u, a, across(high), across(d_high), across(d_middle), exact)
    d_x = d_logits_of(d_u, across(by_row), c, s, scaled)
    if ends[2] | covers(ends[0], here, size) | covers(ends[1], here, size):
        is_first = is_column(across(first) - here, coarse, fine, group)
        is_second = is_column(across(second) - here, coarse, fine, group)
        d_x = tl.where(is_second, across(two), tl.where(is_first, across(one), d_x))
        d_u = tl.where(is_second, across(two_b), tl.where(is_first, across(one_b), d_u))
        d_x, d_u = tl.where(across(skipped), 0.0, d_x), tl.where(across(skipped), 0.0, d_u)
    return d_x, d_u


@triton.jit(do_not_specialize=["rows", "start", "ignore"])
def long_gradient_kernel(
    d_logits,  # [N, C]
    d_table,  # [N, C]: the gradient of an offset of that shape
    logits,  # [N, C], `stride` from row to row
    target,  # [N, K]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    rest,  # [N]
    top,  # [N]
    d_rest,  # [N]
    d_own,  # [N, K]
    d_own_offset,  # [N, K]
    d_mean,  # [N]
    grad,  # [N] or []
    rows,
    width,  # C and the stride, in units: what both are multiples of
    stride,
    out_stride,  # of d_logits
    start,
    ignore,
    offset_lines,
    share_lines,
    span,  # columns of a program
    scale: tl.float64,
    scaled: tl.constexpr,
    one_grad: tl.constexpr,
    slots: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    dense: tl.constexpr,
    alike: tl.constexpr,  # the gradient has the logits' stride
    unit: tl.constexpr,
    group: tl.constexpr,  # columns that a thread reads at once; a row has them from `origin` on
    R: tl.constexpr,  # rows; more than one only where all begin with a whole group
    T: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = rest.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    size: tl.constexpr = T * W * group
    leader, piece = tl.program_id(0).to(tl.int64) * R, tl.program_id(1)
    row, width, stride, s = leader + tl.arange(0, R), width * unit, stride.to(tl.int64) * unit, number(scale, A)
    present = row < rows
    begin, origin, head, whole = begins(leader, width, stride, group)
    stop, by = tl.multiple_of(tl.minimum(whole, (piece + 1) * span), group), out_stride.to(tl.int64) * unit
    first, second, skipped = targets(target, row, present, start, width, ignore, slots)
    offset_at = table_start(offset_kind, row, present, offset_row, offset_lines, width, head, origin, dense, R)
    share_at = table_start(share_kind, row, present, offset_row, share_lines, width, head, origin, dense, R)
    out_at = origin if alike else leader * by + head
    table_at = origin if dense else leader * width + head
    by_row = part(row_scale, row, present)
    high, d_high, factor = slopes_of(rest, top, d_rest, grad, one_grad, row, present)
    ends = ends_of(first, second, skipped)
    d_middle = part(d_mean, row, present)
    d_middle = None if d_middle is None else d_middle * factor
    one, two = own_slopes(d_own, row, first, second, present, factor, slots)
    one_b, two_b = own_slopes(d_own_offset, row, first, second, present, factor, slots)
    one = in_logits(one, first, by_row, column_scale, present)
    two = in_logits(two, second, by_row, column_scale, present)

    coarse, fine = lattice(T, W, group)
    lanes, there, low, each = coarse + fine, across(present), piece * span, tl.arange(0, R)
    from_row, to_row, to_line = across(each * stride) + lanes, across(each * by) + lanes, across(each * width) + lanes
    x = tl.load(logits + (origin + low) + from_row, mask=there & (low + coarse < stop), other=0.0)
    end = tl.where(ends[3], 0, stop)  # ignored rows are not read further
    for t in range(low, stop, size):
        inside = t + coarse < stop
        after = tl.load(logits + (origin + t + size) + from_row, mask=there & (t + size + coarse < end), other=0.0)
        c = part(column_scale, head + t + lanes, inside)
        b = part(offset, across(offset_at) + t + lanes, inside)
        a = part(share, across(share_at) + t + lanes, inside)
        d_x, d_u = d_block(
            x, by_row, c, b, a, high, d_high, d_middle, first, second, one, two, one_b, two_b, skipped, ends,
            head + t, coarse, fine, s, scaled, exact, group, size,
        )  # fmt: skip
        tl.store(d_logits + (out_at + t) + to_row, as_stored(d_x, d_logits.dtype.element_ty), mask=there & inside)
        if d_table is not None:
            tl.store(d_table + (table_at + t) + to_line, d_u, mask=there & inside)
        x = after

    if group > unit:
        column, outside = edges(width, head, whole, group)
        outside &= piece == 0
        row_scales = tall(by_row)
        x = tl.load(logits + begin + column, mask=outside, other=0.0).to(A)
        c = part(column_scale, column, outside)
        b = part(offset, (offset_at - head)[:, None] + column, outside)
        a = part(share, (share_at - head)[:, None] + column, outside)
        _, u = values(x, row_scales, c, b, s, scaled)
        d_u = d_values(u, a, high[:, None], d_high[:, None], tall(d_middle), exact)
        first, second, skipped = first[:, None], second[:, None], skipped[:, None]
        d_x = d_logits_of(d_u, row_scales, c, s, scaled)
        d_x = place_targets(d_x, column, first, second, one[:, None], two[:, None], skipped)
        tl.store(d_logits + leader * by + column, as_stored(d_x, d_logits.dtype.element_ty), mask=outside)
        if d_table is not None:
            d_u = place_targets(d_u, column, first, second, one_b[:, None], two_b[:, None], skipped)
            tl.store(d_table + leader * width + column, d_u, mask=outside)


@triton.jit(do_not_specialize=["rows", "start", "ignore"])
def short_gradient_kernel(
    d_logits,  # [N, C]
    d_table,  # [N, C]: the gradient of an offset of that shape
    logits,  # [N, C], `stride` from row to row
    target,  # [N, K]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    rest,  # [N]
    top,  # [N]
    d_rest,  # [N]
    d_own,  # [N, K]
    d_own_offset,  # [N, K]
    d_mean,  # [N]
    grad,  # [N] or []
    rows,
    width,  # C and the stride, in units: what both are multiples of
    stride,
    out_stride,  # of d_logits
    start,
    ignore,
    offset_lines,
    share_lines,
    scale: tl.float64,
    scaled: tl.constexpr,
    one_grad: tl.constexpr,
    slots: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    unit: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = rest.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    width, s, present = width * unit, number(scale, A), row < rows
    first, second, skipped = targets(target, row, present, start, width, ignore, slots)
    by_row = part(row_scale, row, present)
    high, d_high, factor = slopes_of(rest, top, d_rest, grad, one_grad, row, present)
    d_middle = part(d_mean, row, present)
    d_middle = None if d_middle is None else d_middle * factor
    one, two = own_slopes(d_own, row, first, second, present, factor, slots)
    one_b, two_b = own_slopes(d_own_offset, row, first, second, present, factor, slots)
    one = in_logits(one, first, by_row, column_scale, present)
    two = in_logits(two, second, by_row, column_scale, present)

    column = tl.arange(0, W)[None, :]
    inside = present[:, None] & (column < width)
    x = tl.load(logits + (row * stride * unit)[:, None] + column, mask=inside, other=0.0).to(A)
    offset_line = line_of(offset_kind, row, offset_row, offset_lines, present)
    share_line = line_of(share_kind, row, offset_row, share_lines, present)
    b = block_of(offset, offset_kind, offset_line, column, inside, width)
    a = block_of(share, share_kind, share_line, column, inside, width)
    by_row = tall(by_row)
    d_middle = tall(d_middle)
    c = part(column_scale, column, column < width)
    _, u = values(x, by_row, c, b, s, scaled)
    d_u = d_values(u, a, high[:, None], d_high[:, None], d_middle, exact)
    d_x = d_logits_of(d_u, by_row, c, s, scaled)
    first, second, skipped = first[:, None], second[:, None], skipped[:, None]
    d_x = place_targets(d_x, column, first, second, one[:, None], two[:, None], skipped)
    place = (row * out_stride * unit)[:, None] + column
    tl.store(d_logits + place, as_stored(d_x, d_logits.dtype.element_ty), mask=inside)
    if d_table is not None:
        d_u = place_targets(d_u, column, first, second, one_b[:, None], two_b[:, None], skipped)
        tl.store(d_table + (row * width)[:, None] + column, d_u, mask=inside)


@triton.jit(do_not_specialize=["rows", "start", "ignore"])
def table_gradient_kernel(
    d_table,  # [G, C]: the sums over groups of rows
    order,  # [N]: the rows, by groups
    bounds,  # [G + 1]: where each group begins; without, each has `chunk` rows
    logits,  # [N, C], `stride` from row to row
    target,  # [N, K]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset, or [N, C]
    rest,  # [N]
    top,  # [N]
    d_rest,  # [N]
    d_own_offset,  # [N, K]
    d_mean,  # [N]
    grad,  # [N] or []
    rows,
    width,  # C and the stride, in units: what both are multiples of
    stride,
    start,
    ignore,
    offset_lines,
    share_lines,
    chunk,
    scale: tl.float64,
    scaled: tl.constexpr,
    one_grad: tl.constexpr,
    slots: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    unit: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = rest.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    group, width, s = tl.program_id(0), width * unit, number(scale, A)
    column = (tl.program_id(1) * W + tl.arange(0, W))[None, :]
    if bounds is None:
        begin, end = group * chunk, tl.minimum(group * chunk + chunk, rows)
    else:
        begin, end = tl.load(bounds + group).to(tl.int32), tl.load(bounds + group + 1).to(tl.int32)
    c = part(column_scale, column, column < width)
    total = tl.zeros((R, W), A)
    for position in range(begin, end, R):
        row = (position + tl.arange(0, R)).to(tl.int64)
        present = row < end
        if order is not None:
            row = tl.load(order + row, mask=present, other=0)
        inside = present[:, None] & (column < width)
        first, second, skipped = targets(target, row, present, start, width, ignore, slots)
        high, d_high, factor = slopes_of(rest, top, d_rest, grad, one_grad, row, present)
        d_middle = part(d_mean, row, present)
        d_middle = None if d_middle is None else d_middle * factor
        one, two = own_slopes(d_own_offset, row, first, second, present, factor, slots)
        x = tl.load(logits + (row * stride * unit)[:, None] + column, mask=inside, other=0.0).to(A)
        offset_line = line_of(offset_kind, row, offset_row, offset_lines, present)
        share_line = line_of(share_kind, row, offset_row, share_lines, present)
        b = block_of(offset, offset_kind, offset_line, column, inside, width)
        a = block_of(share, share_kind, share_line, column, inside, width)
        by_row = part(row_scale, row, present)
        by_row = tall(by_row)
        d_middle = tall(d_middle)
        _, u = values(x, by_row, c, b, s, scaled)
        d_u = d_values(u, a, high[:, None], d_high[:, None], d_middle, exact)
        skipped = (skipped | ~present)[:, None]
        total += place_targets(d_u, column, first[:, None], second[:, None], one[:, None], two[:, None], skipped)
    sums = tl.sum(total, 0)[None, :]
    tl.store(d_table + group.to(tl.int64) * width + column, sums, mask=column < width)

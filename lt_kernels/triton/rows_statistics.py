"""Kernels for the statistics of rows, which read each logit once (docs/math.md, section 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.numbers import exp, finite, log_total, merge, number, part
from lt_kernels.triton.rows_tiles import (
    NOTHING,
    across,
    begins,
    block_of,
    covers,
    edges,
    ends_of,
    is_column,
    lattice,
    line_of,
    own_logit,
    peers,
    store_own,
    summary,
    table_start,
    tall,
    targets,
    values,
    weighted,
)


@triton.jit
def store_statistics(
    top_out, total_out, rival_out, mean_out, shares_out, place, inside, top, total, rival, mean, shares,
    whole: tl.constexpr,
):  # fmt: skip
    """Store a part's statistics; of a whole row the logarithm of the total. rival, mean and shares are optional."""
    tl.store(top_out + place, top, mask=inside)
    tl.store(total_out + place, log_total(total) if whole else total, mask=inside)
    if rival_out is not None:
        tl.store(rival_out + place, rival, mask=inside)
    if mean_out is not None:
        tl.store(mean_out + place, mean, mask=inside)
    if shares_out is not None:
        tl.store(shares_out + place, shares, mask=inside)


@triton.jit
def no_statistics(R: tl.constexpr, W: tl.constexpr, dtype: tl.constexpr):
    """(top, total, rival, mean, shares) [R, W] of lanes that have seen nothing."""
    nothing, zero = tl.full((R, W), NOTHING, dtype), tl.zeros((R, W), dtype)
    return nothing, zero, nothing, zero, zero


@triton.jit
def add_block(top, total, rival, mean, shares, z, u, share, ranked: tl.constexpr, exact: tl.constexpr):
    """Add a block [R, T, W, G] to the statistics [R, W] of lanes; a lane's R x T x G numbers belong to one thread."""
    peak = tl.maximum(top, tl.max(tl.max(u, 3), 1))
    shift = finite(peak)
    u = u - shift[:, None, :, None]
    total = total * exp(top - shift, exact) + tl.sum(tl.sum(exp(u, exact), 3), 1)
    if share is not None:
        mean += shares * (finite(top) - shift) + tl.sum(tl.sum(weighted(share, u), 3), 1)
        shares += tl.sum(tl.sum(share, 3), 1)
    if ranked:
        rival = tl.maximum(rival, tl.max(tl.max(z, 3), 1))
    return peak, total, rival, mean, shares


@triton.jit
def add_logits(
    top, total, rival, mean, shares, x, by_row, c, b, a, first, second, ends, here, left, coarse, fine, s,
    scaled: tl.constexpr, ranked: tl.constexpr, exact: tl.constexpr, group: tl.constexpr, size: tl.constexpr,
):  # fmt: skip
    """Add a block of logits, of which the columns from `here` to `here + left` exist, to the statistics of lanes."""
    z, u = values(x.to(top.dtype), across(by_row), c, b, s, scaled)
    z, a = peers(z, u, b), None if a is None else tl.broadcast_to(a, u.shape)
    if (size > left) | covers(ends[0], here, size) | covers(ends[1], here, size):
        hidden = is_column(across(first) - here, coarse, fine, group) | (coarse >= left)
        hidden = hidden | is_column(across(second) - here, coarse, fine, group)
        z, u = tl.where(hidden, NOTHING, z), tl.where(hidden, NOTHING, u)
        if a is not None:
            a = tl.where(hidden, 0.0, a)
    return add_block(top, total, rival, mean, shares, z, u, a, ranked, exact)


@triton.jit
def gathered(top, total, rival, mean, shares):
    """The statistics [R] of the union of all lanes."""
    best = tl.max(top, 1)
    down = finite(top) - finite(best)[:, None]
    total, mean = tl.sum(total * exp(top - finite(best)[:, None]), 1), tl.sum(mean + shares * down, 1)
    return best, total, tl.max(rival, 1), mean, tl.sum(shares, 1)


@triton.jit
def joined(first, second):
    """The statistics of the union of two sets of classes, each (top, total, rival, mean, shares)."""
    top, total = merge(first[0], first[1], second[0], second[1])
    left, right = finite(first[0]) - finite(top), finite(second[0]) - finite(top)
    mean = (first[3] + first[4] * left) + (second[3] + second[4] * right)
    return top, total, tl.maximum(first[2], second[2]), mean, first[4] + second[4]


@triton.jit(do_not_specialize=["rows", "start", "ignore"])
def long_statistics_kernel(
    top_out,  # [P, N] for P parts of each row, as the next four
    total_out,  # rest if a row has one part
    rival_out,
    mean_out,
    shares_out,
    own_out,  # [N, K]
    logits,  # [N, C], `stride` from row to row
    target,  # [N, K]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    rows,
    width,  # C and the stride, in units: what both are multiples of
    stride,
    start,
    ignore,
    offset_lines,
    share_lines,
    span,  # columns of a part
    scale: tl.float64,
    scaled: tl.constexpr,
    slots: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    dense: tl.constexpr,
    whole_row: tl.constexpr,  # the row has one part
    unit: tl.constexpr,
    group: tl.constexpr,  # columns that a thread reads at once; a row has them from `origin` on
    R: tl.constexpr,  # rows; more than one only where all begin with a whole group
    T: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = top_out.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    size: tl.constexpr = T * W * group
    leader, piece = tl.program_id(0).to(tl.int64) * R, tl.program_id(1)
    row, width, stride, s = leader + tl.arange(0, R), width * unit, stride.to(tl.int64) * unit, number(scale, A)
    present = row < rows
    begin, origin, head, whole = begins(leader, width, stride, group)
    first, second, skipped = targets(target, row, present, start, width, ignore, slots)
    stop = tl.multiple_of(tl.minimum(whole, (piece + 1) * span), group)
    offset_at = table_start(offset_kind, row, present, offset_row, offset_lines, width, head, origin, dense, R)
    share_at = table_start(share_kind, row, present, offset_row, share_lines, width, head, origin, dense, R)
    by_row = part(row_scale, row, present)
    here = present & (piece == 0)
    ends = ends_of(first, second, skipped)

    coarse, fine = lattice(T, W, group)
    lanes, there, low = across(tl.arange(0, R) * stride) + (coarse + fine), across(present), piece * span
    top, total, rival, mean, shares = no_statistics(R, W, A)
    # All loads start before the first wait, also those that the target may turn out to make unnecessary.
    x = tl.load(logits + (origin + low) + lanes, mask=there & (low + coarse < stop), other=0.0)
    column, outside = edges(width, head, whole, group)
    outside = outside & here[:, None]
    if group > unit:
        edge = tl.load(logits + begin + column, mask=outside, other=0.0)
        edge_b = part(offset, (offset_at - head)[:, None] + column, outside)
        edge_a = part(share, (share_at - head)[:, None] + column, outside)
        edge_c = part(column_scale, column, outside)
    if slots > 0:
        own = own_logit(logits, row * stride, first, here)
    if slots == 2:
        also = own_logit(logits, row * stride, second, here)
    stop = tl.multiple_of(tl.where(ends[3], 0, stop), group)
    for t in range(low, stop, size):
        inside = t + coarse < stop
        after = tl.load(logits + (origin + t + size) + lanes, mask=there & (t + size + coarse < stop), other=0.0)
        b = part(offset, across(offset_at) + t + (coarse + fine), inside)
        a = part(share, across(share_at) + t + (coarse + fine), inside)
        c = part(column_scale, head + t + (coarse + fine), inside)
        top, total, rival, mean, shares = add_logits(
            top, total, rival, mean, shares, x, by_row, c, b, a, first, second, ends, head + t, stop - t, coarse,
            fine, s, scaled, rival_out is not None, exact, group, size,
        )  # fmt: skip
        x = after
    found = gathered(top, total, rival, mean, shares)
    if group > unit:
        hidden = ~outside | skipped[:, None] | (column == first[:, None]) | (column == second[:, None])
        z, u = values(edge.to(A), tall(by_row), edge_c, edge_b, s, scaled)
        found = joined(found, summary(peers(z, u, edge_b), u, edge_a, hidden, 1, exact))
    store_statistics(
        top_out, total_out, rival_out, mean_out, shares_out, piece * rows + row, present,
        found[0], found[1], found[2], found[3], found[4], whole_row,
    )  # fmt: skip
    if slots > 0:
        store_own(own_out, row * slots, own, first, here, by_row, column_scale)
    if slots == 2:
        store_own(own_out, row * slots + 1, also, second, here, by_row, column_scale)


@triton.jit(do_not_specialize=["rows", "start", "ignore"])
def short_statistics_kernel(
    top_out,  # [N], as the next four
    total_out,  # rest
    rival_out,
    mean_out,
    shares_out,
    own_out,  # [N, K]
    logits,  # [N, C], `stride` from row to row
    target,  # [N, K]
    row_scale,  # [N]
    column_scale,  # [C]
    offset,  # [1, C], [N, C] or [R, C]
    offset_row,  # [N]
    share,  # as offset
    rows,
    width,  # C and the stride, in units: what both are multiples of
    stride,
    start,
    ignore,
    offset_lines,
    share_lines,
    scale: tl.float64,
    scaled: tl.constexpr,
    slots: tl.constexpr,
    offset_kind: tl.constexpr,
    share_kind: tl.constexpr,
    unit: tl.constexpr,
    R: tl.constexpr,
    W: tl.constexpr,
):
    A: tl.constexpr = top_out.dtype.element_ty
    exact: tl.constexpr = logits.dtype.element_ty == A
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    width, begin, present = width * unit, row * stride * unit, row < rows
    first, second, skipped = targets(target, row, present, start, width, ignore, slots)
    by_row = part(row_scale, row, present)
    by_row = tall(by_row)

    column = tl.arange(0, W)[None, :]
    inside = present[:, None] & (column < width)
    x = tl.load(logits + begin[:, None] + column, mask=inside, other=0.0).to(A)
    if slots > 0:
        own = own_logit(logits, begin, first, present)
    if slots == 2:
        also = own_logit(logits, begin, second, present)
    offset_line = line_of(offset_kind, row, offset_row, offset_lines, present)
    share_line = line_of(share_kind, row, offset_row, share_lines, present)
    b = block_of(offset, offset_kind, offset_line, column, inside, width)
    a = block_of(share, share_kind, share_line, column, inside, width)
    z, u = values(x, by_row, part(column_scale, column, column < width), b, number(scale, A), scaled)
    hidden = ~inside | skipped[:, None] | (column == first[:, None]) | (column == second[:, None])
    top, total, rival, mean, shares = summary(peers(z, u, b), u, a, hidden, 1, exact)
    store_statistics(
        top_out, total_out, rival_out, mean_out, shares_out, row, present, top, total, rival, mean, shares, True
    )
    by_row = part(row_scale, row, present)
    if slots > 0:
        store_own(own_out, row * slots, own, first, present, by_row, column_scale)
    if slots == 2:
        store_own(own_out, row * slots + 1, also, second, present, by_row, column_scale)


@triton.jit
def merged(top, total, rival, mean, shares, row, inside, rows, pieces, P: tl.constexpr):
    """(rest, top, rival, mean, shares) of rows from those of their parts; arbitrary numbers for absent statistics."""
    piece = tl.arange(0, P)[:, None]
    place, there = piece * rows + row[None, :], (piece < pieces) & inside[None, :]
    tops = tl.load(top + place, mask=there, other=NOTHING)
    totals = tl.load(total + place, mask=there, other=0.0)
    best = tl.max(tops, 0)
    down = finite(tops) - finite(best)[None, :]
    rest = log_total(tl.sum(totals * exp(tops - finite(best)[None, :]), 0))
    rivals = rest if rival is None else tl.max(tl.load(rival + place, mask=there, other=NOTHING), 0)
    each = tl.zeros_like(totals) if mean is None else part(shares, place, there)
    means = rest if mean is None else tl.sum(part(mean, place, there) + each * down, 0)
    return rest, best, rivals, means, tl.sum(each, 0)


@triton.jit(do_not_specialize=["rows"])
def merge_kernel(
    rest_out,  # [N], as the next four
    top_out,
    rival_out,
    mean_out,
    shares_out,
    top,  # [P, N], as the next four
    total,
    rival,
    mean,
    shares,
    rows,
    pieces,
    P: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = row < rows
    found = merged(top, total, rival, mean, shares, row, inside, rows, pieces, P)
    tl.store(rest_out + row, found[0], mask=inside)
    tl.store(top_out + row, found[1], mask=inside)
    tl.store(rival_out + row, found[2], mask=inside)
    if mean is not None:
        tl.store(mean_out + row, found[3], mask=inside)
        tl.store(shares_out + row, found[4], mask=inside)

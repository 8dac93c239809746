"""Kernels that compute x W^T in tiles and use them in registers: row statistics, and a slab's gradient.

The matrix units compute a tile of the product with float32 sums (docs/math.md, section 5). It is scaled, shifted and
summed while it is in registers; the only array of size [N, C] that is written is a slab's gradient. Exponentials are of
base 2, as the hardware has them.

Letters: N rows, C classes, D features, K targets per row, R rows of a table; a tile has BN rows and BC classes, and
takes BD features per step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.numbers import as_stored, exp, finite, log_total, times

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _read(pointer, inside, D: tl.constexpr, BD: tl.constexpr, INTERPRETED: tl.constexpr):
    """A tile's operand; without a mask where BD divides D."""
    x = tl.load(pointer) if D % BD == 0 else tl.load(pointer, mask=inside, other=0.0)
    return x.to(tl.float32) if INTERPRETED else x


@triton.jit
def _product(x, w, row, column, D: tl.constexpr, BD: tl.constexpr, INTERPRETED: tl.constexpr):
    """Rows `row` [BN] of x times rows `column` [BC] of w: [BN, BC] in float32."""
    inner = tl.arange(0, BD)
    left, right = row[:, None] * D + inner[None, :], column[None, :] * D + inner[:, None]
    total = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for first in range(0, D, BD):
        inside = inner < D - first
        a = _read(x + first + left, inside[None, :], D, BD, INTERPRETED)
        b = _read(w + first + right, inside[:, None], D, BD, INTERPRETED)
        total = tl.dot(a, b, total)
    return total


@triton.jit
def _place(program, group, high, wide):
    """(block of rows, part of the classes) of a program: `group` blocks of rows run together, to share weights."""
    first = program // (group * wide) * group
    width = tl.minimum(group, high - first)
    within = program % (group * wide)
    return first + within % width, within // width


@triton.jit
def _edge(block, size, WIDTH: tl.constexpr):
    """Where a block starts. The last one is moved back until it is whole, unless it is the only one."""
    return tl.maximum(tl.minimum(block * WIDTH, size - WIDTH), 0)


@triton.jit
def _within(size, WIDTH: tl.constexpr, NARROW: tl.constexpr):
    """The indices of a block from its start; if it is wider than the array, the last index is repeated."""
    index = tl.arange(0, WIDTH)
    return tl.minimum(index, size - 1) if NARROW else index


@triton.jit
def _ignored(target, row, K: tl.constexpr, ignore):
    """Rows [BN] whose every target is ignored."""
    found = row < 0 if K == 0 else row >= 0
    for slot in tl.static_range(K):
        found &= tl.load(target + row.to(tl.int64) * K + slot) == ignore
    return found


@triton.jit
def _local(target, row, slot: tl.constexpr, K: tl.constexpr, start, C, ignore):
    """The targets [BN] of the rows in one slot, relative to `start`; -1 if that is none of the C classes here."""
    y = tl.full([row.shape[0]], -1, tl.int64)
    if slot < K:
        y = tl.load(target + row.to(tl.int64) * K + slot)
        y = tl.where(y == ignore, -1, y - start)
    return tl.where((y >= 0) & (y < C), y, -1).to(tl.int32)


@triton.jit
def _line(offset_row, row, R):
    """The lines [BN] of an [N, C] or, with offset_row, [R, C] table that the rows [BN] use."""
    line = row
    if offset_row is not None:
        line = tl.minimum(tl.maximum(tl.load(offset_row + row), 0), R - 1)
    return line.to(tl.int64)


@triton.jit
def _entries(table, line, stride, column, BY_ROW: tl.constexpr, AGAIN: tl.constexpr = False):
    """A table's values at the columns [BC]: [BN, BC], or [1, BC] if it has one row for all.

    What is read `AGAIN` has a hint for the cache that differs, so that the compiler does not keep it in registers.
    """
    if BY_ROW:
        entries = tl.load(table + line[:, None] * stride + column[None, :])
    elif AGAIN:
        entries = tl.load(table + column, eviction_policy="evict_last")[None, :]
    else:
        entries = tl.load(table + column)[None, :]
    return entries


@triton.jit
def _scaled(z, bias, column_scale, column):
    """A tile of products [BN, BC] plus the bias of the classes, times their scale."""
    if bias is not None:
        z += tl.load(bias + column).to(tl.float32)[None, :]
    if column_scale is not None:
        z *= tl.load(column_scale + column)[None, :]
    return z


@triton.jit
def _row_scale(row_scale, row, scale):
    """The factors [BN] of a tile; 1e-30 for 0, because 0 times the -inf of a hidden entry would be NaN."""
    rho = tl.full([row.shape[0]], 1.0, tl.float32)
    if row_scale is not None:
        rho = tl.load(row_scale + row)
    return tl.where(rho == 0, 1e-30, rho) * scale


@triton.jit
def _slot(value, row, slot: tl.constexpr, K: tl.constexpr):
    """A column [BN] of an [N, K] array; zeros if there is none."""
    found = tl.zeros([row.shape[0]], tl.float32)
    if slot < K:
        found = tl.load(value + row.to(tl.int64) * K + slot)
    return found


@triton.jit
def _seen(z, own, mine):
    """The target logits [BN]: from this tile if it holds the target, else as before."""
    return tl.maximum(own, tl.max(tl.where(mine, z, float("-inf")), 1))


@triton.jit(do_not_specialize=["N", "C", "R", "start", "ignore", "group", "tiles", "before", "splits"])
def statistics_kernel(
    x,  # [N, D]
    w,  # [C, D]
    bias,  # [C] or None
    target,  # [N, K]
    offset,  # [1, C], [N, C] or [R, C], rows offset_stride apart, or None
    offset_row,  # [N] or None
    mean_weight,  # as offset
    row_scale,  # [N] or None
    column_scale,  # [C] or None
    parts,  # [3 + K + 2 with a mean, splits, N]: top, sum of exp(u - top), rival, own of each slot, mean, shares
    N,
    C,
    R,
    offset_stride,
    mean_stride,
    start,  # the index of the first class here
    ignore,
    scale,
    group,
    tiles,  # of classes that a program computes one after the other
    before,  # the number of splits of classes before these
    splits,  # the number of all splits
    D: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    FEW_ROWS: tl.constexpr,
    FEW_CLASSES: tl.constexpr,
    OFFSET_BY_ROW: tl.constexpr,
    MEAN_BY_ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    block, split = _place(tl.program_id(0), group, tl.cdiv(N, BN), tl.cdiv(tl.cdiv(C, BC), tiles))
    edge = _edge(block, N, BN)
    row, column = _within(N, BN, FEW_ROWS), _within(C, BC, FEW_CLASSES)
    y, second = _local(target, edge + row, 0, K, start, C, ignore), _local(target, edge + row, 1, K, start, C, ignore)
    line, slope = _line(offset_row, edge + row, R), _row_scale(row_scale, edge + row, scale)
    top = tl.full([BN], float("-inf"), tl.float32)
    rival, own, other, total = top, top, top, tl.zeros([BN], tl.float32)
    mean, shares = total, total
    x += edge.to(tl.int64) * D
    for tile in tl.range(split * tiles, tl.minimum((split + 1) * tiles, tl.cdiv(C, BC)), flatten=True):
        first = _edge(tile, C, BC)
        z = _product(x, w + first.to(tl.int64) * D, row, column, D, BD, INTERPRETED)
        z = _scaled(z, bias, column_scale, first + column)
        if bias is None and column_scale is None:
            # Triton waits for the matrix units before their sums are first used. If that were in the branch below, they
            # would leave its other way without a wait, and the assembler would then let each product wait.
            z += 0.0
        here = ((y >= first) & (y < first + BC)) | ((second >= first) & (second < first + BC))
        if (tl.max(here.to(tl.int32), 0) > 0) | (tile * BC + BC > C):  # else no entry of the tile is hidden
            place = tl.arange(0, BC)[None, :]
            mine, also = place == (y - first)[:, None], place == (second - first)[:, None]
            own, other = _seen(z, own, mine), _seen(z, other, also) if K > 1 else other
            z = tl.where(mine | also | (place < tile * BC - first) | (place >= C), float("-inf"), z)
        if mean_weight is not None:
            share = _entries(mean_weight, line, mean_stride, first + column, MEAN_BY_ROW)
            share = tl.where(z == float("-inf"), 0.0, share)
        if offset is None:
            rival = tl.maximum(rival, tl.max(z, 1))
            new = times(rival, slope)
            z = (z - finite(rival)[:, None]) * (slope * LOG2_E)[:, None]
        else:
            shift = _entries(offset, line, offset_stride, first + column, OFFSET_BY_ROW)
            z += tl.where(shift == float("-inf"), shift, 0.0)  # an absent class is no rival
            rival = tl.maximum(rival, tl.max(z, 1))
            shift = _entries(offset, line, offset_stride, first + column, OFFSET_BY_ROW, AGAIN=True)
            z = times(z, slope[:, None]) + shift
            new = tl.maximum(top, tl.max(z, 1))
            z = (z - finite(new)[:, None]) * LOG2_E
        total = total * tl.exp2((top - finite(new)) * LOG2_E) + tl.sum(tl.exp2(z), 1)
        if mean_weight is not None:
            mean += shares * (finite(top) - finite(new)) + tl.sum(share * tl.where(share != 0, z, 0.0), 1) / LOG2_E
            shares += tl.sum(share, 1)
        top = new
    inside = (row == tl.arange(0, BN)) & (row >= block * BN - edge)  # each row once
    parts += (before + split).to(tl.int64) * N + edge + row
    hop = splits.to(tl.int64) * N
    tl.store(parts, top, mask=inside)
    tl.store(parts + hop, total, mask=inside)
    tl.store(parts + 2 * hop, rival, mask=inside)
    if K > 0:
        tl.store(parts + 3 * hop, own, mask=inside)
    if K > 1:
        tl.store(parts + 4 * hop, other, mask=inside)
    if mean_weight is not None:
        tl.store(parts + (3 + K) * hop, mean, mask=inside)
        tl.store(parts + (4 + K) * hop, shares, mask=inside)


@triton.jit(do_not_specialize=["N", "splits", "ignore"])
def statistics_merge_kernel(
    parts,  # as statistics_kernel writes them
    target,  # [N, K]
    row_scale,  # [N] or None
    rest,  # [N]
    own,  # [N, K]
    rival,  # [N]
    mean,  # [N] or None
    top_out,  # [N]
    shares,  # [N] or None
    N,
    splits,
    ignore,
    K: tl.constexpr,
    BN: tl.constexpr,
    BS: tl.constexpr,
):
    row, part = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BS)
    inside = row < N
    hop = splits.to(tl.int64) * N
    rho = tl.full([BN], 1.0, tl.float32)
    if row_scale is not None:
        rho = tl.load(row_scale + row, mask=inside, other=0.0)
    skipped = _ignored(target, tl.minimum(row, N - 1), K, ignore)
    top, total = tl.full([BN], float("-inf"), tl.float32), tl.zeros([BN], tl.float32)
    best, added, amount = top, total, total
    for first in range(0, splits, BS):
        there = (first + part < splits)[:, None] & inside[None, :]
        at = parts + (first + part).to(tl.int64)[:, None] * N + row[None, :]
        level = tl.load(at, mask=there, other=float("-inf"))
        sums = tl.load(at + hop, mask=there, other=0.0)
        most = tl.maximum(top, tl.max(level, 0))
        down = finite(level) - finite(most)[None, :]
        total = total * exp(top - finite(most)) + tl.sum(sums * exp(level - finite(most)[None, :]), 0)
        best = tl.maximum(best, tl.max(tl.load(at + 2 * hop, mask=there, other=float("-inf")), 0))
        if mean is not None:
            each = tl.load(at + (4 + K) * hop, mask=there, other=0.0)
            added += amount * (finite(top) - finite(most))
            added += tl.sum(tl.load(at + (3 + K) * hop, mask=there, other=0.0) + each * down, 0)
            amount += tl.sum(each, 0)
        top = most
    tl.store(rest + row, tl.where(skipped, float("-inf"), log_total(total)), mask=inside)
    tl.store(top_out + row, tl.where(skipped, float("-inf"), top), mask=inside)
    tl.store(rival + row, tl.where(skipped | (best == float("-inf")), float("-inf"), finite(best) * rho), mask=inside)
    if mean is not None:
        tl.store(mean + row, tl.where(skipped, 0.0, added), mask=inside)
        tl.store(shares + row, tl.where(skipped, 0.0, amount), mask=inside)
    for slot in tl.static_range(K):
        seen = tl.full([BN], float("-inf"), tl.float32)
        for first in range(0, splits, BS):
            there = (first + part < splits)[:, None] & inside[None, :]
            at = parts + (first + part).to(tl.int64)[:, None] * N + row[None, :]
            seen = tl.maximum(seen, tl.max(tl.load(at + (3 + slot) * hop, mask=there, other=float("-inf")), 0))
        tl.store(
            own + row.to(tl.int64) * K + slot, tl.where(seen == float("-inf"), seen, finite(seen) * rho), mask=inside
        )


@triton.jit(do_not_specialize=["N", "C", "R", "start", "ignore", "group"])
def slab_gradient_kernel(
    x,  # [N, D]
    w,  # [C, D]
    bias,  # [C] or None
    target,  # [N, K]
    offset,  # [1, C], [N, C] or [R, C], rows offset_stride apart, or None
    offset_row,  # [N] or None
    mean_weight,  # as offset
    row_scale,  # [N] or None
    column_scale,  # [C] or None
    rest,  # [N]
    top,  # [N]
    d_rest,  # [N]
    d_own,  # [N, K]
    d_mean,  # [N] or None
    unit,  # [] or None: a factor for all of the gradient
    out,  # [N, C], whose row stride is a whole number of tiles
    N,
    C,
    R,
    offset_stride,
    mean_stride,
    out_stride,
    start,  # the index of the first class here
    ignore,
    scale,
    group,
    D: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    OFFSET_BY_ROW: tl.constexpr,
    MEAN_BY_ROW: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    block, tile = _place(tl.program_id(0), group, tl.cdiv(N, BN), tl.cdiv(C, BC))
    edge, first = block * BN, tile * BC
    row, column = tl.minimum(tl.arange(0, BN), N - 1 - edge), tl.minimum(tl.arange(0, BC), C - 1 - first)
    z = _product(x + edge.to(tl.int64) * D, w + first.to(tl.int64) * D, row, column, D, BD, INTERPRETED)
    row, column = edge + row, first + column
    z = times(_scaled(z, bias, column_scale, column), _row_scale(row_scale, row, scale)[:, None])
    line = _line(offset_row, row, R)
    if offset is not None:
        z += _entries(offset, line, offset_stride, column, OFFSET_BY_ROW)
    skipped = _ignored(target, row, K, ignore)
    factor = tl.full([BN], 1.0, tl.float32)
    if row_scale is not None:
        factor = tl.load(row_scale + row)
    if unit is not None:
        factor *= tl.load(unit)
    steep = tl.load(d_rest + row) * exp(-finite(tl.load(rest + row))) * factor * scale
    d = tl.exp2((z - finite(tl.load(top + row))[:, None]) * LOG2_E) * steep[:, None]
    if d_mean is not None:
        share = _entries(mean_weight, line, mean_stride, column, MEAN_BY_ROW)
        d += (tl.load(d_mean + row) * factor * scale)[:, None] * share
    y, second = _local(target, row, 0, K, start, C, ignore), _local(target, row, 1, K, start, C, ignore)
    here = ((y >= first) & (y < first + BC)) | ((second >= first) & (second < first + BC))
    if tl.max(here.to(tl.int32), 0) > 0:
        place = first + tl.arange(0, BC)[None, :]
        mine, also = place == y[:, None], place == second[:, None]
        d = tl.where(mine | also, 0.0, d)
        d += tl.where(mine, (_slot(d_own, row, 0, K) * factor)[:, None], 0.0)
        if K > 1:
            d += tl.where(also, (_slot(d_own, row, 1, K) * factor)[:, None], 0.0)
    if tl.max(skipped.to(tl.int32), 0) > 0:  # their gradient is 0 whatever they hold
        d = tl.where(skipped[:, None], 0.0, d)
    if column_scale is not None:
        d *= _entries(column_scale, line, 0, column, False, AGAIN=True)
    at = (edge + tl.arange(0, BN)).to(tl.int64)[:, None] * out_stride + (first + tl.arange(0, BC))[None, :]
    tl.store(out + at, as_stored(d, out.dtype.element_ty), mask=(edge + tl.arange(0, BN) < N)[:, None])

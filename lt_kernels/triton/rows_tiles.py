"""Device functions on blocks of logits: their targets, their per-class tables, and their statistics."""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.numbers import exp, finite, part, times

# Which line of a table [1, C], [N, C] or [R, C] belongs to a row of logits: the only one, its own, or a chosen one.
ONE: tl.constexpr = tl.constexpr(0)
EACH: tl.constexpr = tl.constexpr(1)
PICKED: tl.constexpr = tl.constexpr(2)
NOTHING: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit
def slot(target, place, inside, start, width, ignore):
    """The column of a target, -1 if it belongs to another shard; and whether it is to be ignored."""
    label = tl.load(target + place, mask=inside, other=ignore)
    local = label - start
    here = (label != ignore) & (local >= 0) & (local < width)
    return tl.where(here, local, -1).to(tl.int32), label == ignore


@triton.jit
def targets(target, row, inside, start, width, ignore, slots: tl.constexpr):
    """(first target, second target, whether all are ignored) of rows; with one target per row both are the same."""
    if slots == 0:
        first = tl.where(row < 0, 0, -1)
        second, skipped = first, first == 0
    else:
        first, skipped = slot(target, row * slots, inside, start, width, ignore)
        second = first
        if slots == 2:
            second, also = slot(target, row * slots + 1, inside, start, width, ignore)
            skipped = skipped & also
    return first, second, skipped


@triton.jit
def line_of(kind: tl.constexpr, row, offset_row, lines, inside):
    """The line of a table that a row reads."""
    if kind == ONE:
        line = row * 0
    elif kind == EACH:
        line = row
    else:
        picked = tl.load(offset_row + row, mask=inside, other=0).to(tl.int64)
        line = tl.minimum(tl.maximum(picked, 0), lines - 1)
    return line


@triton.jit
def block_of(table, kind: tl.constexpr, line, column, inside, width):
    """A table's numbers for a block of whole rows [R, W]; [1, W] if all rows share one line."""
    if kind == ONE:
        block = part(table, column, column < width)
    else:
        block = part(table, line[:, None] * width + column, inside)
    return block


@triton.jit
def values(x, row_scale, column_scale, offset, scale, scaled: tl.constexpr):
    """(z, u): logits times the scales of their row and column, and scale * z + offset."""
    z = x if row_scale is None else x * row_scale
    z = z if column_scale is None else z * column_scale
    u = times(z, scale) if scaled else z
    return z, u if offset is None else u + offset


@triton.jit
def peers(z, u, offset):
    """z, and -inf for absent classes, whose offset is -inf: they are no rivals."""
    return z if offset is None else tl.where(u == NOTHING, NOTHING, z)


@triton.jit
def weighted(share, u):
    """share * u, where 0 times an infinite u is 0."""
    return share * tl.where(share == 0, 0.0, u)


@triton.jit
def summary(z, u, share, hidden, axis: tl.constexpr, exact: tl.constexpr):
    """(top, total, rival, mean, shares) along an axis, without hidden entries; no share: the last two are arbitrary."""
    z, u = tl.where(hidden, NOTHING, z), tl.where(hidden, NOTHING, u)
    top = tl.max(u, axis)
    u = u - tl.expand_dims(finite(top), axis)
    total, mean, shares = tl.sum(exp(u, exact), axis), top, top
    if share is not None:
        share = tl.where(hidden, 0.0, share)
        mean, shares = tl.sum(weighted(share, u), axis), tl.sum(share, axis)
    return top, total, tl.max(z, axis), mean, shares


@triton.jit
def own_logit(logits, begin, column, inside):
    """The logit of a row's target; read early, because it is far from the others in memory and needed last."""
    return tl.load(logits + begin + column, mask=inside & (column >= 0), other=0.0)


@triton.jit
def store_own(own_out, place, logit, column, inside, row_scale, column_scale):
    """Store z of a row's target, -inf if that is not in this shard."""
    here = inside & (column >= 0)
    by_column = part(column_scale, column, here)
    z, _ = values(logit.to(own_out.dtype.element_ty), row_scale, by_column, None, 1.0, False)
    tl.store(own_out + place, tl.where(here, z, NOTHING), mask=inside)


@triton.jit
def edges(width, head, whole, group: tl.constexpr):
    """The columns [2 group] at both ends of a row that are not in whole groups, and which of them exist."""
    lane = tl.arange(0, 2 * group)
    column = tl.where(lane < group, lane, head + whole + lane - group)
    return column, tl.where(lane < group, lane < head, column < width)


@triton.jit
def lattice(T: tl.constexpr, W: tl.constexpr, group: tl.constexpr):
    """The columns of a block [T, W, group]: each group's first, and the place in it; a thread has [T, 1, group]."""
    first = (tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]) * group
    return first[:, :, None], tl.arange(0, group)[None, None, :]


@triton.jit
def is_column(column, coarse, fine, group: tl.constexpr):
    """Where a block holds this column; two comparisons of small constants, which need no registers."""
    return (coarse == column // group * group) & (fine == column % group)


@triton.jit
def covers(column, first, size):
    """Whether a block of columns holds this column."""
    return (column >= first) & (column < first + size)


@triton.jit
def table_start(kind: tl.constexpr, row, offset_row, lines, width, head, origin, dense: tl.constexpr):
    """The place in a table of a row's first whole group, which is at `origin` in the logits and `head` in the row."""
    if kind == EACH and dense:  # known to be aligned as the logits are
        place = origin
    else:
        place = line_of(kind, row, offset_row, lines, True) * width + head
    return place

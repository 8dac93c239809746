"""How rows are divided among programs and blocks; device functions on blocks: targets, per-class tables, statistics."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lt_kernels.triton.launch import blocks, power_of_two, processors
from lt_kernels.triton.numbers import exp, finite, part, times

# Which line of a table [1, C], [N, C] or [R, C] belongs to a row of logits: the only one, its own, or a chosen one.
ONE: tl.constexpr = tl.constexpr(0)
EACH: tl.constexpr = tl.constexpr(1)
PICKED: tl.constexpr = tl.constexpr(2)
NOTHING: tl.constexpr = tl.constexpr(float("-inf"))
SHORT = 1024  # the most classes of a row that is read at once
FILL = 32  # programs per multiprocessor, so that the time in which only the last ones run is short
ONE_PROGRAM = 16_384  # the most logits for which one program makes loss and gradient, which saves the launch that sums
CACHED = 131_072  # bytes of a per-class table that an L1 cache keeps beside the logits
SHARING = 2  # rows (1 or 2) that a program takes at once, which share each number of a longer offset


def _kind(lines: int, picked: bool) -> int:
    """Which line of a table belongs to a row: the only one, one for each row, or the one that offset_row gives."""
    return ONE.value if lines < 2 else PICKED.value if picked else EACH.value


class Plan(NamedTuple):
    """How the work is divided among programs, and the constants that every kernel on logits takes."""

    rows: int
    width: int
    out_stride: int  # in units
    short: bool  # whether a program takes whole rows
    parts: int  # of each long row; in one launch, the most programs
    span: int  # classes of a part
    tile: dict[str, int]  # the block of a program
    warps: int
    fixed: dict[str, int]

    def grid(self) -> tuple[int, ...]:
        """The programs."""
        whole = (blocks(self.rows, self.tile["R"]),)
        return whole if self.short else (*whole, self.parts)


class Shape(NamedTuple):
    """All that a plan depends on; plans are cached by it."""

    rows: int
    width: int
    stride: int
    out_stride: int  # of the gradient
    itemsize: int
    offset_lines: int  # 0 without an offset, as the next one
    share_lines: int
    picked: bool  # whether there is an offset_row
    scaled: bool  # whether there is a column_scale
    stretched: bool  # whether z and u differ by a scale
    device: torch.device


@lru_cache(maxsize=1024)
def two_passes(s: Shape) -> Plan:
    """How one launch makes statistics, or gradients, by one program for each row or part of a row."""
    unit, fixed, tables = _fixed(s)
    fill = processors(torch.empty(0, device=s.device))
    if s.width <= SHORT:
        classes = power_of_two(s.width, least=16)
        tall = min(power_of_two(blocks(s.rows, 4 * fill)), max(1, (1024 if tables else 2048) // classes))
        warps = power_of_two(tall * classes // 256, most=4)
        return Plan(s.rows, s.width, s.out_stride // unit, True, 1, s.width, {"R": tall, "W": classes}, warps, fixed)
    group = _group(s, unit)
    most = 8192 // s.itemsize  # 64 bytes of logits a thread
    block = min(power_of_two(s.width), most if tables < 2 else min(most, 2048))
    there, wanted = blocks(s.width, block), max(1, blocks(FILL * fill, max(s.rows, 1)))
    span = block * blocks(there, min(there, wanted))
    tile = {"group": group, "dense": s.stride == s.width, "R": 1, "T": max(1, block // (128 * group)), "W": 128}
    return Plan(s.rows, s.width, s.out_stride // unit, False, blocks(s.width, span), span, tile, 4, fixed)


def _fixed(s: Shape) -> tuple[int, dict[str, int], int]:
    """The unit of the sizes, the constants, and how many numbers are read with each logit."""
    unit = math.gcd(16 // s.itemsize, s.width, s.stride, s.out_stride)
    fixed = {"rows": s.rows, "width": s.width // unit, "stride": s.stride // unit, "unit": unit}
    fixed |= {"offset_kind": _kind(s.offset_lines, s.picked), "share_kind": _kind(s.share_lines, s.picked)}
    fixed |= {"offset_lines": s.offset_lines, "share_lines": s.share_lines}
    return unit, fixed, (s.offset_lines > 0) + (s.share_lines > 0) + 2 * s.scaled


def _group(s: Shape, unit: int) -> int:
    """Classes that a thread reads at once: 16 bytes of the logits.

    The line of a per-class table may start anywhere within 16 bytes, so its numbers are read one by one. With 8 classes
    per thread the reads of a warp would be spread over 1 KiB, and the L1 cache would limit the speed; 4 halve that.
    """
    by_class = s.scaled or any(
        lines and (_kind(lines, s.picked) != EACH.value or s.stride != s.width)
        for lines in (s.offset_lines, s.share_lines)
    )
    most = 16 // s.itemsize
    return min(most, 4) if by_class and unit < min(most, 4) else most


@lru_cache(maxsize=1024)
def one_launch(s: Shape) -> Plan:
    """How loss and gradient are made in one launch, by programs that take one row after the other."""
    unit, fixed, tables = _fixed(s)
    fill = processors(torch.empty(0, device=s.device))
    if s.width <= SHORT:
        classes = power_of_two(s.width, least=16)
        whole = power_of_two(s.rows) * classes  # one program may take all
        tall = min(power_of_two(blocks(s.rows, 4 * fill)), max(1, (1024 if tables else 2048) // classes))
        tall = max(1, min(power_of_two(s.rows), ONE_PROGRAM // 2 // classes)) if whole <= ONE_PROGRAM else tall
        warps = power_of_two(tall * classes // (512 if whole <= ONE_PROGRAM else 256), most=16)
        tile = {"R": tall, "W": classes, "block": _targets(s.rows, warps)}
        most = 1 if whole <= ONE_PROGRAM else 4 * fill
        return Plan(s.rows, s.width, s.out_stride // unit, True, most, s.width, tile, warps, fixed)
    long = s.width * s.itemsize
    # The rows that are under way at a time, of all programs together, have room in an L2 cache of 50 MB.
    warps = 4 if long <= 8192 else 8 if long <= 114_688 else 16
    together = 1 if warps > 8 else (16 if tables else 24) // warps  # programs of a multiprocessor
    group, lines = _group(s, unit), 1
    if s.offset_lines == 1 and 4 * s.width > CACHED and unit == group and s.rows > SHARING * fill:
        group, lines = min(group, 4), SHARING
    held = _held(s.itemsize, warps, tables + s.stretched) // s.itemsize
    tile = {"group": group, "dense": s.stride == s.width, "R": lines, "T": max(1, held // (group * lines))}
    # Read early if nothing else fills the pause between two rows, and two rows leave no registers for it.
    tile |= {"W": 32 * warps, "block": _targets(s.rows, warps), "early": warps > 8 and lines == 1}
    return Plan(s.rows, s.width, s.out_stride // unit, False, fill * together, s.width, tile, warps, fixed)


def _targets(rows: int, warps: int) -> int:
    """How many targets a program reads at once."""
    return power_of_two(rows, least=32, most=256 * warps)


def _held(itemsize: int, warps: int, tables: int) -> int:
    """Bytes of logits that a thread reads at once: as many as 128 registers have room for, of 512 threads all."""
    if tables == 0:
        return 64 if warps > 8 else 32
    return 16 if tables > 1 else 32 if warps > 8 else min(32, 8 * itemsize)


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
def own_value(logit, column, inside, row_scale, column_scale, dtype: tl.constexpr):
    """z of a row's target, -inf if that is not in this shard."""
    here = inside & (column >= 0)
    z, _ = values(logit.to(dtype), row_scale, part(column_scale, column, here), None, 1.0, False)
    return tl.where(here, z, NOTHING)


@triton.jit
def store_own(own_out, place, logit, column, inside, row_scale, column_scale):
    """Store z of a row's target."""
    z = own_value(logit, column, inside, row_scale, column_scale, own_out.dtype.element_ty)
    tl.store(own_out + place, z, mask=inside)


@triton.jit
def edges(width, head, whole, group: tl.constexpr):
    """The columns [1, 2 group] at both ends of a row that are not in whole groups, and which of them exist."""
    lane = tl.arange(0, 2 * group)[None, :]
    column = tl.where(lane < group, lane, head + whole + lane - group)
    return column, tl.where(lane < group, lane < head, column < width)


@triton.jit
def lattice(T: tl.constexpr, W: tl.constexpr, group: tl.constexpr):
    """The columns of a block [1, T, W, group]: each group's first, and the place in it; a thread has [1, T, 1, group].

    Of R rows a thread has [R, T, 1, group].
    """
    first = (tl.arange(0, T)[:, None] * W + tl.arange(0, W)[None, :]) * group
    return first[None, :, :, None], tl.arange(0, group)[None, None, None, :]


@triton.jit  # noqa: RET503 (in Triton 3.6 a function can return nothing, but not None)
def across(x):
    """Numbers of rows [R], to be combined with a block [R, T, W, group]; None stays None."""
    if x is not None:
        return x[:, None, None, None]


@triton.jit  # noqa: RET503
def tall(x):
    """Numbers of rows [R], to be combined with a block [R, W]; None stays None."""
    if x is not None:
        return x[:, None]


@triton.jit
def is_column(column, coarse, fine, group: tl.constexpr):
    """Where a block holds this column; two comparisons of small constants, which need no registers."""
    return (coarse == column // group * group) & (fine == column % group)


@triton.jit
def ends_of(first, second, skipped):
    """(the lowest target of rows [R], the highest, whether a row is ignored, whether all are).

    Two rows with one target each, or one row with two, have no others than these two.
    """
    lowest, highest = tl.min(tl.minimum(first, second), 0), tl.max(tl.maximum(first, second), 0)
    return lowest, highest, tl.max(skipped.to(tl.int32), 0) > 0, tl.min(skipped.to(tl.int32), 0) > 0


@triton.jit
def covers(column, first, size):
    """Whether a block of columns holds this column."""
    return (column >= first) & (column < first + size)


@triton.jit
def begins(first_row, width, stride, group: tl.constexpr):
    """Where a row begins, where its whole groups begin, in the logits and in the row, and the columns of these."""
    begin = first_row * stride
    origin = (begin + (group - 1)) // group * group
    head = (origin - begin).to(tl.int32)
    return begin, origin, head, (width - head) // group * group


@triton.jit
def table_start(
    kind: tl.constexpr, row, present, offset_row, lines, width, head, origin, dense: tl.constexpr, R: tl.constexpr
):
    """The places [R] in a table of rows' first whole groups, which are at `origin` in the logits and `head` in the row.

    They are [1] if all rows share one line.
    """
    if kind == ONE:
        place = head + tl.zeros((1,), tl.int32)
    elif kind == EACH and dense:  # known to be aligned as the logits are
        place = origin + tl.arange(0, R) * width
    else:
        place = line_of(kind, row, offset_row, lines, present) * width + head
    return place

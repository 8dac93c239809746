"""Column-wise log-sum-exp over the batch, and its gradient, on a GPU (docs/math.md, section 7).

The logits are read once in each pass, in aligned vectors of 16 bytes. A row of C logits may start anywhere within such
a vector, but every P-th row starts at the same place. So a program takes every P-th row, in a window of columns that is
shifted to the left until it is aligned. Only the ends of a row, in vectors that belong to two rows, are read singly.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type
from lt_kernels.triton.launch import blocks, launch, power_of_two, processors
from lt_kernels.triton.numbers import as_stored, finite, log_sum

LARGE = 2**25  # bytes of logits from which wide loads save more than a second launch costs, which merges the parts
LEAST = 256  # rows of a part: with fewer, writing and reading its sums would cost too much


@triton.jit
def _bounded(top):
    """top, and 0 where it is infinite, so that it can be subtracted from any logit of the column without a NaN."""
    return tl.where(tl.abs(top) == float("inf"), 0.0, top)


@triton.jit
def _exp(x):
    """e^x; in float32 by one instruction for 2^x, which flushes subnormal numbers to 0."""
    return tl.exp(x) if x.dtype == tl.float64 else tl.exp2(x * 1.4426950408889634)


@triton.jit
def _window(block, residue, C, S, W: tl.constexpr, V: tl.constexpr):
    """Places [W] in the aligned windows of the rows; which of them are in whole vectors of the row; where it starts."""
    shift = (residue.to(tl.int64) * S % V).to(tl.int32)
    place = block * W + tl.arange(0, W)
    return place, (place >= (shift + V - 1) // V * V) & (place < (shift + C) // V * V), shift


@triton.jit
def _ends(shift, C, V: tl.constexpr):
    """Places [2 V] at both ends of the rows, and which of them are classes that are not in a whole vector."""
    lane = tl.arange(0, 2 * V)
    low, high = (shift + V - 1) // V * V, (shift + C) // V * V
    place = tl.where(lane < V, lane, high - V + lane)
    return place, (place >= shift) & (place < shift + C) & ((lane < low) | ((lane >= V) & (place >= low)))


@triton.jit
def _lines(step, walk, T: tl.constexpr, V: tl.constexpr, P: tl.constexpr):
    """T of every P-th row: which [T], which of them exist [T], and where their windows start [T, 1], in vectors."""
    _, _, residue, N, S, hop = walk
    index = step + tl.arange(0, T)
    start = (residue.to(tl.int64) * S // V + index.to(tl.int64) * hop) * V
    line = residue + P * index
    return line, line < N, start[:, None]


@triton.jit
def _read(logits, row_offset, line, here, mask, other, A: tl.constexpr):
    """The logits [T, W] in the dtype of the arithmetic, with the offsets of their rows [T]."""
    x = tl.load(logits, mask=mask, other=other).to(A)
    if row_offset is not None:
        x += tl.load(row_offset + line, mask=here, other=0.0)[:, None]
    return x


@triton.jit
def _sums(logits, row_offset, walk, place, inside, T: tl.constexpr, U: tl.constexpr, V, P, A: tl.constexpr):
    """(maximum, sum of exp(x - maximum)) of the places [W] over the rows of the walk; a thread reads U rows at once."""
    top, total = tl.full([T // U, place.shape[0]], float("-inf"), A), tl.zeros([T // U, place.shape[0]], A)
    for step in range(walk[0], walk[1], T):
        line, here, start = _lines(step, walk, T, V, P)
        mask = here[:, None] & inside[None, :]
        x = _read(logits + (start + place[None, :]), row_offset, line, here, mask, float("-inf"), A)
        x = tl.reshape(x, [U, T // U, place.shape[0]])  # U is within one thread: no exchange in the loop
        before, top = top, tl.maximum(top, tl.max(x, 0))
        total = total * _exp(before - _bounded(top)) + tl.sum(_exp(x - _bounded(top)[None, :, :]), 0)
    best = tl.max(top, 0)
    return best, tl.sum(total * _exp(top - _bounded(best)[None, :]), 0)


@triton.jit
def columns_forward_kernel(
    logits,  # [N, C], rows S apart
    target,  # [N] or None
    row_offset,  # [N] or None
    lse,  # [splits, C]
    own,  # [N] or None
    N,
    C,
    S,
    hop,  # P S / V: vectors from a row to the next one of the same residue
    columns,  # how many blocks of W columns there are; with EDGES one more, for the ends of the rows
    rows,  # of a split, counted in every P-th row
    owns,  # rows of a program whose own it gathers
    W: tl.constexpr,
    T: tl.constexpr,  # rows at a time
    U: tl.constexpr,  # of which one thread has U
    V: tl.constexpr,  # logits of a vector
    P: tl.constexpr,  # every P-th row starts at the same place of a vector
    EDGES: tl.constexpr,  # whether rows start or end within a vector
):
    program = tl.program_id(0)
    block, split = program % columns, program // columns
    A: tl.constexpr = lse.dtype.element_ty
    if target is not None:
        for first in range(program * owns, tl.minimum(program * owns + owns, N), 128):
            row = first + tl.arange(0, 128)
            here = row < tl.minimum(program * owns + owns, N)
            y = tl.load(target + row, mask=here, other=-1)
            z = tl.load(logits + (row.to(tl.int64) * S + y), mask=(y >= 0) & (y < C), other=float("-inf"))
            tl.store(own + row, z.to(A), mask=here)
    residue, begin = split % P, split // P * rows
    end = tl.minimum(begin + rows, (N - residue + P - 1) // P)
    place, inside, shift = _window(block, residue, C, S, W, V)
    lse += split.to(tl.int64) * C - shift
    walk = (begin, end, residue, N, S, hop)
    if EDGES:  # noqa: SIM102 (one is a constant, the other a number)
        if block == columns - 1:
            there, mine = _ends(shift, C, V)
            best, total = _sums(logits, row_offset, walk, there, mine, T, 1, V, P, A)
            tl.store(lse + there, log_sum(best, total), mask=mine)
            return  # no whole vectors here
    best, total = _sums(logits, row_offset, walk, place, inside, T, U, V, P, A)
    tl.store(lse + place, log_sum(best, total), mask=inside)


@triton.jit
def _gradient(x, column, level, slope, target, d_own, here):
    """slope * exp(x - level) of the columns [W], plus d_own at the targets of the rows [T]: [T, W]."""
    y = tl.load(target, mask=here, other=-1)
    y = tl.where((y >= 0) & (y < 2147483647), y, -8).to(tl.int32)  # -8 is no column: a window starts at -7 or later
    own = tl.load(d_own, mask=here, other=0.0)
    d = slope[None, :] * _exp(x - level[None, :])
    return tl.where(column[None, :] == y[:, None], d + own[:, None], d)


@triton.jit
def _descend(tensors, walk, place, inside, shift, T: tl.constexpr, V: tl.constexpr, P: tl.constexpr):
    """The gradient of the places [W] for the rows of the walk, T rows at a time."""
    logits, target, row_offset, lse, d_lse, d_own, d_logits = tensors
    level = finite(tl.load(lse + (place - shift), mask=inside, other=0.0))
    slope = tl.load(d_lse + (place - shift), mask=inside, other=0.0)
    for step in range(walk[0], walk[1], T):
        line, here, start = _lines(step, walk, T, V, P)
        address, mask = start + place[None, :], here[:, None] & inside[None, :]
        x = _read(logits + address, row_offset, line, here, mask, 0.0, level.dtype)
        d = _gradient(x, place - shift, level, slope, target + line, d_own + line, here)
        tl.store(d_logits + address, as_stored(d, d_logits.dtype.element_ty), mask=mask)


@triton.jit
def columns_backward_kernel(
    logits,  # [N, C]
    target,  # [N]
    row_offset,  # [N] or None
    lse,  # [C]
    d_lse,  # [C]
    d_own,  # [N]
    d_logits,  # [N, C]
    N,
    C,
    hop,  # P C / V
    columns,  # as in the forward kernel, and so are all that follow
    rows,
    W: tl.constexpr,
    T: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    EDGES: tl.constexpr,
):
    program = tl.program_id(0)
    block, split = program % columns, program // columns
    residue, begin = split % P, split // P * rows
    end = tl.minimum(begin + rows, (N - residue + P - 1) // P)
    place, inside, shift = _window(block, residue, C, C, W, V)
    tensors = (logits, target, row_offset, lse, d_lse, d_own, d_logits)
    if EDGES:  # noqa: SIM102
        if block == columns - 1:
            there, mine = _ends(shift, C, V)
            _descend(tensors, (begin, end, residue, N, C, hop), there, mine, shift, T, V, P)
            end = begin  # no whole vectors here
    _descend(tensors, (begin, end, residue, N, C, hop), place, inside, shift, T, V, P)


class _Cut(NamedTuple):
    """How a matrix is divided among programs; the letters are those of the kernels."""

    W: int
    T: int
    U: int
    V: int
    P: int
    EDGES: bool
    warps: int
    columns: int
    splits: int  # a multiple of P
    rows: int

    def arguments(self) -> dict[str, Any]:
        """The arguments that both kernels take."""
        return {name: value for name, value in self._asdict().items() if name not in ("warps", "splits")}


def _cut(matrix: Tensor, vector: int, parts: int, programs: int) -> _Cut:
    """Blocks of 512 bytes of columns; with too few programs, smaller blocks (down to 128) and up to `parts` parts."""
    (rows, classes), size, stride = matrix.shape, matrix.element_size(), matrix.stride(0)
    period = vector // math.gcd(stride, vector)
    width = min(512 // size, power_of_two(classes, 16))
    while width > 128 // size and blocks(classes, width) * period * parts < programs:
        width //= 2
    edges = period > 1 or classes % vector > 0
    columns = blocks(classes + (vector - 1 if period > 1 else 0), width) + edges
    parts = max(1, min(parts, programs // max(1, columns * period)))
    lines = blocks(rows, period)
    each = max(1, blocks(lines, parts))
    deep = min(16, (16 if size == 8 else 32) // vector)  # registers: 32 logits a thread
    few = columns * period * parts <= processors(matrix)
    warps = power_of_two(blocks(each * width, 32 * vector * deep), 2, 16 if few else 4)
    beside = max(1, 32 * warps * vector // width)
    deep = min(deep, power_of_two(blocks(each, beside)))
    each = blocks(each, beside * deep) * beside * deep
    splits = period * max(1, blocks(lines, each))
    return _Cut(width, beside * deep, deep, vector, period, edges, warps, columns, splits, each)


def _spaced(logits: Tensor) -> Tensor:
    """The same logits with contiguous rows that do not overlap."""
    return logits if logits.stride(1) == 1 and logits.stride(0) >= logits.shape[1] else logits.contiguous()


def _vector(matrix: Tensor, wide: bool) -> int:
    """The logits of one read: 16 bytes if `wide`, else no more than keeps every row aligned."""
    full = 16 // matrix.element_size()
    return full if wide else math.gcd(matrix.stride(0), matrix.shape[1], full)


def _column_sums(matrix: Tensor, row_offset: Tensor | None, target: Tensor | None, own: Tensor | None) -> Tensor:
    """lse [C] of a matrix [N, C], and own if there are targets; a second call merges the parts of the rows."""
    rows, classes = matrix.shape
    parts = 1 if target is None else max(1, rows // LEAST)
    large = parts > 1 and matrix.nbytes >= LARGE
    cut = _cut(matrix, _vector(matrix, large), parts, processors(matrix) * (16 if large else 1))
    lse = matrix.new_empty(cut.splits, classes, dtype=accumulate_type(matrix.dtype))
    programs = cut.columns * cut.splits
    arguments = {"logits": matrix, "target": target, "row_offset": row_offset, "lse": lse, "own": own}
    sizes = {"N": rows, "C": classes, "S": matrix.stride(0), "hop": cut.P * matrix.stride(0) // cut.V}
    arguments |= {**sizes, "owns": blocks(rows, max(1, programs)), **cut.arguments()}
    launch(columns_forward_kernel, (programs,), arguments, warps=cut.warps)
    return lse[0] if cut.splits == 1 else _column_sums(lse, None, None, None)


def columns_forward(logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, Tensor]:
    """(logsumexp_i (z_ic + row_offset_i) [C], z_iy [N]) of logits [N, C] and class indices [N].

    A target that is no class gets -inf.
    """
    own = logits.new_empty(logits.shape[0], dtype=accumulate_type(logits.dtype))
    offset = None if row_offset is None else row_offset.contiguous()
    return _column_sums(_spaced(logits), offset, target.contiguous(), own), own


def columns_backward(
    logits: Tensor, target: Tensor, row_offset: Tensor | None, lse: Tensor, d_lse: Tensor, d_own: Tensor
) -> Tensor:
    """The gradient of `columns_forward` for the logits [N, C], in their dtype; none for a target that is no class."""
    logits = logits.contiguous()
    rows, classes = logits.shape
    cut = _cut(logits, _vector(logits, classes >= 32), max(1, rows // 64), 16 * processors(logits))
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    offset = None if row_offset is None else row_offset.contiguous()
    arguments = {"logits": logits, "target": target.contiguous(), "row_offset": offset, "lse": lse.contiguous()}
    arguments |= {"d_lse": d_lse.contiguous(), "d_own": d_own.contiguous(), "d_logits": d_logits}
    arguments |= {"N": rows, "C": classes, "hop": cut.P * classes // cut.V, **cut.arguments()}
    launch(columns_backward_kernel, (cut.columns * cut.splits,), arguments, warps=cut.warps)
    return d_logits

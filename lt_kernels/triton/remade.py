"""Tiles of cosines in float32 on a GPU, for logit-weight repulsion with too many active pairs to list.

These kernels work for any number of pairs, but they are slow: they compute float32 products without matrix units, and
the backward pass computes each pair twice, because one program computes a whole row of tiles to write its gradient.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

E = tl.constexpr(math.e)
UNIT = 2**30  # sums of expm1 are in units of 1 / UNIT: integers, whose sum does not depend on the order


def exact(weight: Tensor) -> Tensor:
    """The weight in a dtype whose products are computed in float32.

    On compute capability 10, Triton (3.6, 3.7) computes products of 16-bit factors in TF32 even with "ieee".
    """
    if weight.dtype == torch.float32 or weight.device.type != "cuda":
        return weight
    return weight.float() if torch.cuda.get_device_capability(weight.device)[0] == 10 else weight


@triton.jit
def upper_tile(index, side):
    """Row and column of tile `index` of the upper half of side x side; the third result is 0 for a repeated tile.

    Row r and row side - 1 - r together have side + 1 tiles; if side is odd, the middle row is counted twice.
    """
    fold, place = index // (side + 1), index % (side + 1)
    last = side - 1 - fold
    far = place > last
    row = tl.where(far, last, fold)
    return row, tl.where(far, place - 1, fold + place), (place <= last) | (last != fold)


@triton.jit
def entries(weight, row, feature, C, d, S):
    """Some features of some rows of the weight, in float32; 0 beyond its ends."""
    place = row.to(tl.int64)[:, None] * S + feature[None, :]
    inside = (row < C)[:, None] & (feature < d)[None, :]
    return tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def cosines(weight, scale, row, column, C, d, S, DEPTH: tl.constexpr):
    """The cosines of rows and columns, and their products, in float32."""
    product = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for k in range(0, d, DEPTH):
        feature = k + tl.arange(0, DEPTH)
        left, right = entries(weight, row, feature, C, d, S), entries(weight, column, feature, C, d, S)
        product = tl.dot(left, tl.trans(right), product, input_precision="ieee")
    scale_i = tl.load(scale + row, mask=row < C, other=0.0)
    scale_j = tl.load(scale + column, mask=column < C, other=0.0)
    return product * scale_i[:, None] * scale_j[None, :], product


@triton.jit
def raise_peaks(peak, index, value, mask):
    """Raise the numbers at these places, as the bits of float32, to values above 0: their bits have the same order."""
    tl.atomic_max(peak + index, value.to(tl.int32, bitcast=True), mask=mask & (value > 0), sem="relaxed")


@triton.jit
def beyond(value, bits, UNIT: tl.constexpr):
    """e^(r - peak) - e^-peak of products r, in units of 1 / UNIT, with the peak's bits; below 1 because r <= peak."""
    peak = bits.to(tl.float32, bitcast=True)
    return ((tl.exp(value - peak) - tl.exp(-peak)) * UNIT).to(tl.int64)


@triton.jit
def sum_kernel(
    weight,  # [C, d], rows S apart
    scale,  # [C]
    found,  # int64 [1]: nothing is done unless this exceeds the room
    sums,  # int64 [C]: expm1 of the cosines of the active pairs, in units of 1 / UNIT
    peak,  # int32 [C]: for the raw form the bits of the largest product of each class
    dense,  # uint8 [side, side]: the tiles of TILE classes that have candidates
    C,
    d,
    S,
    room,
    side,
    threshold: tl.float64,
    STAGE: tl.constexpr,  # 0: sums of cosines; 1: the peaks; 2: sums of the raw form, once the peaks are known
    UNIT: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE: tl.constexpr,
):
    high: tl.constexpr = TILE // SIZE
    if tl.load(found) > room:
        for index in range(tl.program_id(0), (side + 1) // 2 * (side + 1) * (high * high), tl.num_programs(0)):
            above, beside, new = upper_tile(index // (high * high), side)
            top = above * TILE + index % (high * high) // high * SIZE
            left = beside * TILE + index % high * SIZE
            marked = tl.load(dense + above.to(tl.int64) * side + beside, mask=new, other=0) != 0
            if marked & (top < C) & (left < C) & (top < left + SIZE - 1):
                row, column = top + tl.arange(0, SIZE), left + tl.arange(0, SIZE)
                cosine, product = cosines(weight, scale, row, column, C, d, S, DEPTH)
                active = (cosine > threshold) & (row[:, None] < column[None, :])
                if STAGE == 1:
                    shown = tl.where(active, product, 0.0)
                    raise_peaks(peak, row, tl.max(shown, 1), row < C)
                    raise_peaks(peak, column, tl.max(shown, 0), column < C)
                else:
                    if STAGE == 0:
                        part = tl.where(active, (tl.exp(cosine) - 1) * UNIT, 0.0).to(tl.int64)
                        across, down = tl.sum(part, 1), tl.sum(part, 0)
                    else:
                        product = tl.where(active, product, 0.0)  # 0 adds exactly 0
                        peak_i = tl.load(peak + row, mask=row < C, other=0)
                        peak_j = tl.load(peak + column, mask=column < C, other=0)
                        across = tl.sum(beyond(product, peak_i[:, None], UNIT), 1)
                        down = tl.sum(beyond(product, peak_j[None, :], UNIT), 0)
                    tl.atomic_add(sums + row, across, mask=across > 0, sem="relaxed")
                    tl.atomic_add(sums + column, down, mask=down > 0, sem="relaxed")


@triton.jit
def _slope(total, grad, row, C, RAW: tl.constexpr):
    if RAW:
        return tl.load(grad + row, mask=row < C, other=0.0)
    return tl.load(grad + row, mask=row < C, other=0.0) / tl.load(total + row, mask=row < C, other=1.0)


@triton.jit
def _add(weight, board, at, top, start, C, d, S, SIZE: tl.constexpr, DEPTH: tl.constexpr, WIDTH: tl.constexpr):
    """Add to the rows `at`, of classes from `top` on, the weights from `start` on times the columns of `board`."""
    line, step = tl.arange(0, SIZE), tl.arange(0, DEPTH)
    for f in range(0, d, WIDTH):
        feature = f + tl.arange(0, WIDTH)
        inside = (top + line < C)[:, None] & (feature < d)[None, :]
        total = tl.load(at[:, None] + feature[None, :], mask=inside, other=0.0)
        for k in range(0, SIZE, DEPTH):
            push = tl.load(board + line[:, None] * SIZE + k + step[None, :])
            w = entries(weight, start + k + step, feature, C, d, S)
            w = tl.where(tl.abs(w) < float("inf"), w, 0.0)  # rows that are not finite are in no active pair
            total = tl.dot(push, w, total, input_precision="ieee")
        tl.store(at[:, None] + feature[None, :], total, mask=inside)


@triton.jit
def _finish(weight, at, row, factor, along, d_weight, C, d, S, WIDTH: tl.constexpr):
    """Write the gradient of some rows: the sums plus `along` times the unit rows, divided by the norms."""
    for f in range(0, d, WIDTH):
        feature = f + tl.arange(0, WIDTH)
        inside = (row < C)[:, None] & (feature < d)[None, :]
        sums = tl.load(at[:, None] + feature[None, :], mask=inside, other=0.0)
        unit = entries(weight, row, feature, C, d, S) * factor[:, None]
        place = row.to(tl.int64)[:, None] * d + feature[None, :]
        tl.store(d_weight + place, factor[:, None] * (sums + along[:, None] * unit), mask=inside)


@triton.jit
def push_kernel(
    weight,  # [C, d], rows S apart
    scale,  # [C]
    total,  # [C]; RAW: log Z
    grad,  # [C]
    own,  # [C]: RAW: the coefficient of a class's own weight
    dense,  # uint8 [side, side]: the tiles to be computed; nothing is done unless the first entry is 1
    board,  # [programs, SIZE, SIZE]: scratch for a tile of coefficients
    gathered,  # sums over the neighbours of a row: d_weight itself, or [programs * SIZE, d]
    d_weight,  # [C, d]
    C,
    d,
    S,
    side,
    threshold: tl.float64,
    PROJECT: tl.constexpr,
    RAW: tl.constexpr,
    IN_PLACE: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    if tl.load(dense) != 0:
        line = tl.arange(0, SIZE)
        board += tl.program_id(0) * SIZE * SIZE
        for top in range(tl.program_id(0) * SIZE, C, tl.num_programs(0) * SIZE):
            row = top + line
            at = gathered + (row if IN_PLACE else tl.program_id(0) * SIZE + line).to(tl.int64) * d
            slope_i = _slope(total, grad, row, C, RAW)
            pull = tl.zeros([SIZE], tl.float32)
            for f in range(0, d, WIDTH):
                feature = f + tl.arange(0, WIDTH)
                inside = (row < C)[:, None] & (feature < d)[None, :]
                tl.store(at[:, None] + feature[None, :], tl.zeros([SIZE, WIDTH], tl.float32), mask=inside)
            for left in range(0, C, SIZE):
                above, beside = tl.minimum(top, left) // TILE, tl.maximum(top, left) // TILE
                if tl.load(dense + above.to(tl.int64) * side + beside) != 0:
                    column = left + line
                    cosine, product = cosines(weight, scale, row, column, C, d, S, DEPTH)
                    active = (cosine > threshold) & (row[:, None] != column[None, :])
                    slope_j = _slope(total, grad, column, C, RAW)[None, :]
                    if RAW:
                        level_i = tl.load(total + row, mask=row < C, other=0.0)
                        level_j = tl.load(total + column, mask=column < C, other=0.0)[None, :]
                        push = slope_i[:, None] * tl.exp(product - level_i[:, None])
                        push = tl.where(active, push + slope_j * tl.exp(product - level_j), 0.0)
                    else:
                        pair = slope_i[:, None] + slope_j
                        push = tl.where(active, tl.exp(cosine) * pair, 0.0)
                        pull += tl.sum(tl.where(active, push * cosine, 0.0), 1)
                        factor = tl.load(scale + column, mask=column < C, other=0.0)
                        factor = tl.where(factor > 0, factor, 0.0)
                        push = push * factor[None, :]
                    tl.store(board + line[:, None] * SIZE + line[None, :], push)
                    tl.debug_barrier()  # other threads read the board
                    _add(weight, board, at, top, left, C, d, S, SIZE, DEPTH, WIDTH)
                    tl.debug_barrier()
            along = -pull
            factor = tl.load(scale + row, mask=row < C, other=0.0)
            if RAW:
                along = tl.load(own + row, mask=row < C, other=0.0)
                factor = tl.where(factor == factor, 1.0, factor)
            elif not PROJECT:
                grad_i = tl.load(grad + row, mask=row < C, other=0.0)
                along = 2 * (E / tl.load(total + row, mask=row < C, other=1.0) - 1) * grad_i
            _finish(weight, at, row, factor, along, d_weight, C, d, S, WIDTH)
            tl.debug_barrier()

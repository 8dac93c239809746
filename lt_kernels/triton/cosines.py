"""Class weights and their cosines for the matrix units (docs/math.md, section 6).

A product of float32 rows is three products of float16 ones: each unit row is split into a rounded part and the rest,
and only the product of the two rests is left out. Rows of 16 bits are multiplied as they are, which is exact. Sums are
in float32; those of the small products are kept apart from those of the large ones, since a matrix unit cuts what it
adds off at the last digit of its sum.

Letters: C classes, d features, P and D as many of the parts, rounded up to whole tiles, S numbers between two rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.reference import gram as reference
from lt_kernels.triton.launch import INTERPRETED, blocks, generation, launch, processors

WIDEST = 128  # rows and columns of a tile; half as many where a warp has to hold the factors, too, in registers
DEPTH = 32  # features per step: 3 steps of four operands of 128 rows are 96 KiB
HEIGHT = 8  # rows that a program splits at a time
LENGTH = tl.constexpr(4096.0)  # of the split rows: the rests of entries above 2^-24 of it are normal numbers


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
def halves(x, dtype: tl.constexpr):
    """Numbers rounded to a dtype of 16 bits, and what that takes away."""
    high = x.to(dtype)
    return high, (x - high.to(tl.float32)).to(dtype)


@triton.jit
def split_kernel(
    weight,  # [C, d], rows S apart
    scale,  # [C]: 1 / |w|
    total,  # [C] or None; RAW: log Z
    grad,  # [C] or None
    parts,  # [PARTS, P, D]: the weights; with two parts the unit rows, times LENGTH, in halves; zeros beyond
    lines,  # [4, P], zeros from C on: factors that make unit rows of the parts, |w|, grad_i / Z_i, log Z_i (RAW)
    signal,  # [1]: nothing is done unless this exceeds the limit
    limit,
    C,
    d,
    D,
    P,
    S,
    RAW: tl.constexpr,
    PARTS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    if tl.load(signal) > limit:
        for top in range(tl.program_id(0) * HEIGHT, P, tl.num_programs(0) * HEIGHT):
            row = top + tl.arange(0, HEIGHT)
            factor = tl.load(scale + row, mask=row < C, other=0.0)
            known = (factor > 0) & (factor < float("inf"))  # other rows are in no active pair
            tl.store(lines + row, tl.where(known, 1 / LENGTH if PARTS > 1 else factor, 0.0))
            tl.store(lines + P + row, tl.where(known, 1 / tl.where(known, factor, 1.0), 0.0))
            if grad is not None:
                slope = tl.load(grad + row, mask=row < C, other=0.0)
                level = tl.load(total + row, mask=row < C, other=1.0)
                tl.store(lines + 2 * P + row, slope if RAW else slope / level)
                tl.store(lines + 3 * P + row, level)
            for k in range(0, D, WIDTH):
                feature = k + tl.arange(0, WIDTH)
                inside = (row < P)[:, None] & (feature < D)[None, :]
                place = parts + row.to(tl.int64)[:, None] * D + feature[None, :]
                w = tl.where(known[:, None], entries(weight, row, feature, C, d, S), 0.0)
                if PARTS > 1:
                    unit = tl.where(known[:, None], w * factor[:, None], 0.0)
                    high, low = halves(unit * LENGTH, parts.dtype.element_ty)
                    tl.store(place, high, mask=inside)
                    tl.store(place + D.to(tl.int64) * P, low, mask=inside)
                else:
                    tl.store(place, w.to(parts.dtype.element_ty), mask=inside)


@triton.jit
def read(pointer, INTERPRETED: tl.constexpr):
    """A part's numbers; the interpreter multiplies in float32."""
    x = tl.load(pointer)
    return x.to(tl.float32) if INTERPRETED else x


@triton.jit
def products(
    parts,
    top,
    left,
    D,
    P,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The products of a tile of rows and columns of the parts."""
    within = tl.arange(0, DEPTH)[None, :]
    a, b = tl.arange(0, ROWS)[:, None] * D + within, tl.arange(0, COLUMNS)[:, None] * D + within
    wide = D.to(tl.int64)
    rows, columns, low = parts + wide * top, parts + wide * left, wide * P
    large, small = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, D, DEPTH):
        x, y = read(rows + k + a, INTERPRETED), read(columns + k + b, INTERPRETED)
        large = tl.dot(x, tl.trans(y), large)
        if PARTS > 1:
            small = tl.dot(x, tl.trans(read(columns + low + k + b, INTERPRETED)), small)
            small = tl.dot(read(rows + low + k + a, INTERPRETED), tl.trans(y), small)
    return large + small


@triton.jit
def cosines(
    parts,
    lines,
    top,
    left,
    D,
    P,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    RAW: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The cosines of rows and columns; and RAW their products, otherwise the cosines again."""
    product = products(parts, top, left, D, P, ROWS, COLUMNS, PARTS, DEPTH, INTERPRETED)
    row, column = top + tl.arange(0, ROWS), left + tl.arange(0, COLUMNS)
    if PARTS > 1:
        cosine = product * (1 / (LENGTH * LENGTH))
    else:
        cosine = product * tl.load(lines + row)[:, None] * tl.load(lines + column)[None, :]
    value = cosine
    if RAW:
        value = cosine * tl.load(lines + P + row)[:, None] * tl.load(lines + P + column)[None, :]
    return cosine, value


def rounded_down(number: float) -> float:
    """The largest float32 that is at most the number: of float32 numbers the same ones are above it."""
    near = torch.tensor(number, dtype=torch.float32)
    return float(near if float(near) <= number else near.nextafter(torch.tensor(-math.inf)))


def tile(weight: Tensor) -> int:
    """Rows and columns of a tile."""
    return WIDEST if generation(weight) == 9 else WIDEST // 2


def split(weight: Tensor, signal: Tensor, limit: int, lines: dict[str, Any]) -> dict[str, Any]:
    """The parts of the rows, if the signal exceeds the limit; and the arguments of the kernels that multiply them."""
    classes, features = weight.shape
    count, dtype = (2, torch.float16) if weight.dtype == torch.float32 else (1, weight.dtype)
    depth, padded = blocks(features, WIDEST) * WIDEST, blocks(classes, WIDEST) * WIDEST
    given = {"parts": weight.new_empty(count, padded, depth, dtype=dtype), "C": classes, "D": depth, "PARTS": count}
    given |= {"lines": weight.new_empty(4, padded, dtype=torch.float32), "P": padded}
    sizes = {"weight": weight, "signal": signal, "limit": limit, "d": features, "S": weight.stride(0)}
    programs = min(8 * processors(weight), blocks(classes, HEIGHT))
    launch(split_kernel, (programs,), {**given, **sizes, **lines, "HEIGHT": HEIGHT, "WIDTH": 512}, warps=4)
    return {**given, "DEPTH": DEPTH, "TILE": reference.TILE, "INTERPRETED": INTERPRETED}

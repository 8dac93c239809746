"""Tiles of cosines by the matrix units, for logit-weight repulsion with too many pairs to decide one by one.

`sum_kernel` computes the upper half of the tiles. `push_kernel` computes a row of tiles in strips, writes the
coefficients of a strip to a board that stays in the cache, and multiplies it by the class weights: three products of
float16 for float32 weights, two for others, whose coefficients are split only. Letters as in `cosines`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from lt_kernels.reference import gram as reference
from lt_kernels.triton.cosines import (
    LENGTH,
    WIDEST,
    cosines,
    entries,
    halves,
    read,
    rounded_down,
    split,
    tile,
    upper_tile,
)
from lt_kernels.triton.launch import blocks, generation, launch, processors
from lt_kernels.triton.numbers import exp

E = tl.constexpr(math.e)
UNIT = 2**30  # sums of expm1 are in units of 1 / UNIT: integers, whose sum does not depend on the order
STRIP = 512  # columns of a strip: the boards of 132 programs take 34 MB of the cache
SCRATCH = 2**25  # float32 numbers of scratch memory for sums
MOST = tl.constexpr(32768.0)  # that coefficients are scaled to, within the range of float16


@triton.jit
def raise_peaks(peak, index, value, mask):
    """Raise the numbers at these places, as the bits of float32, to values above 0: their bits have the same order."""
    tl.atomic_max(peak + index, value.to(tl.int32, bitcast=True), mask=mask & (value > 0), sem="relaxed")


@triton.jit
def beyond(value, bits):
    """e^(r - peak) - e^-peak of products r, with the peak's bits; below 1 because r <= peak."""
    peak = bits.to(tl.float32, bitcast=True)
    return exp(value - peak) - exp(-peak)


@triton.jit
def add_whole(sums, index, value, mask, UNIT: tl.constexpr):
    """Add to sums in units of 1 / UNIT."""
    tl.atomic_add(sums + index, (value * UNIT).to(tl.int64), mask=mask & (value > 0), sem="relaxed")


@triton.jit
def append(i, j, listed, active, first, second, value, count, degree, room):
    """Count the active pairs of each class, and list them if there is room."""
    one = active.to(tl.int32)
    number = tl.sum(one, 0)
    if number > 0:
        tl.atomic_add(degree + i, one, mask=active, sem="relaxed")
        tl.atomic_add(degree + j, one, mask=active, sem="relaxed")
        place = tl.atomic_add(count, number.to(tl.int64), sem="relaxed") + (tl.cumsum(one, 0) - one)
        fits = active & (place < room)
        tl.store(first + place, i, mask=fits)
        tl.store(second + place, j, mask=fits)
        tl.store(value + place, listed, mask=fits)


@triton.jit
def _list(board, top, left, first, second, value, count, degree, room, SIZE: tl.constexpr, SOME: tl.constexpr):
    """List the active pairs of a tile on the board, where others are 0, some at a time."""
    tl.debug_barrier()  # other threads wrote the board
    for start in range(0, SIZE * SIZE, SOME):
        place = start + tl.arange(0, SOME)
        listed = tl.load(board + place)
        i, j = top + place // SIZE, left + place % SIZE
        append(i, j, listed, listed != 0, first, second, value, count, degree, room)
    tl.debug_barrier()  # before the board is written again


@triton.jit
def sum_kernel(
    parts,  # [PARTS, P, D]: as split_kernel writes them
    lines,  # [4, P]
    found,  # int64 [1]: nothing is done unless this exceeds the room
    first,  # int32 [room]: i of the active pairs i < j, in any order
    second,  # int32 [room]: j
    value,  # [room]: their cosines, or products
    count,  # int64 [1]: their number, even if there is no room for all
    sums,  # int64 [C]: expm1 of the cosines of the active pairs, in units of 1 / UNIT
    peak,  # int32 [C]: for the raw form the bits of the largest product of each class
    degree,  # int32 [C]: for each class the number of its active pairs
    dense,  # uint8 [side, side]: the tiles of TILE classes that have candidates
    board,  # [programs, SIZE, SIZE]: scratch for a tile
    C,
    D,
    P,
    room,
    side,
    threshold,
    STAGE: tl.constexpr,  # 0: sums of cosines, and the list; 1: peaks, and the list; 2: sums of products
    UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    high: tl.constexpr = TILE // SIZE
    line = tl.arange(0, SIZE)
    board += tl.program_id(0) * SIZE * SIZE
    if tl.load(found) > room:
        for index in range(tl.program_id(0), (side + 1) // 2 * (side + 1) * (high * high), tl.num_programs(0)):
            above, beside, new = upper_tile(index // (high * high), side)
            top = above * TILE + index % (high * high) // high * SIZE
            left = beside * TILE + index % high * SIZE
            marked = tl.load(dense + above.to(tl.int64) * side + beside, mask=new, other=0) != 0
            if marked & (top < C) & (left < C) & (top < left + SIZE - 1):
                row, column = top + line, left + line
                cosine, listed = cosines(
                    parts, lines, top, left, D, P, SIZE, SIZE, STAGE > 0, PARTS, DEPTH, INTERPRETED
                )
                active = (cosine > threshold) & (row[:, None] < column[None, :])
                listed = tl.where(active, listed, 0.0)  # which adds exactly 0
                if STAGE < 2:
                    some = tl.max(tl.reshape((listed > 0).to(tl.int32), [SIZE * SIZE]), 0)
                    if some > 0:
                        tl.store(board + line[:, None] * SIZE + line[None, :], listed)
                        _list(board, top, left, first, second, value, count, degree, room, SIZE, 1024)
                if STAGE == 0:
                    across = exp(listed, False) - 1
                    add_whole(sums, row, tl.sum(across, 1), row < C, UNIT)
                    add_whole(sums, column, tl.sum(across, 0), column < C, UNIT)
                if STAGE == 1:
                    raise_peaks(peak, row, tl.max(listed, 1), row < C)
                    raise_peaks(peak, column, tl.max(listed, 0), column < C)
                if STAGE == 2:
                    bits = tl.load(peak + row, mask=row < C, other=0)
                    add_whole(sums, row, tl.sum(beyond(listed, bits[:, None]), 1), row < C, UNIT)
                    bits = tl.load(peak + column, mask=column < C, other=0)
                    add_whole(sums, column, tl.sum(beyond(listed, bits[None, :]), 0), column < C, UNIT)


@triton.jit
def _coefficients(value, lines, row, column, P, RAW: tl.constexpr):
    """c_ij of a tile of cosines, or RAW of products."""
    slope_i, slope_j = tl.load(lines + 2 * P + row)[:, None], tl.load(lines + 2 * P + column)[None, :]
    if RAW:
        level_i, level_j = tl.load(lines + 3 * P + row)[:, None], tl.load(lines + 3 * P + column)[None, :]
        return slope_i * exp(value - level_i) + slope_j * exp(value - level_j)
    return exp(value, False) * (slope_i + slope_j)


@triton.jit
def _of_parts(push, lines, column, P, RAW: tl.constexpr, PARTS: tl.constexpr):
    """Coefficients of the rows of the parts, from those of the unit rows, or RAW of the weights."""
    if PARTS > 1:
        push *= 1 / LENGTH
    elif not RAW:
        push *= tl.load(lines + column)[None, :]
    if RAW and PARTS > 1:
        push *= tl.load(lines + P + column)[None, :]
    return push


@triton.jit
def _strip(
    parts,
    board,
    inverse,
    start,
    width,
    feature,
    D,
    P,
    SIZE: tl.constexpr,
    PARTS: tl.constexpr,
    STRIP: tl.constexpr,
    DEPTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Some features of the rows of the parts from `start` on, times the strip on the board times `inverse`."""
    total = tl.zeros([SIZE, feature.shape[0]], tl.float32)
    for k in range(0, width, DEPTH):
        step = k + tl.arange(0, DEPTH)
        place = parts + D.to(tl.int64) * start + (step[:, None] * D + feature[None, :])
        push = tl.load(board + tl.arange(0, SIZE)[:, None] * STRIP + step[None, :]) * inverse[:, None]
        large, small = halves(push, parts.dtype.element_ty)
        w = read(place, INTERPRETED)
        total = tl.dot(small.to(w.dtype), w, tl.dot(large.to(w.dtype), w, total))
        if PARTS > 1:
            w = read(place + D.to(tl.int64) * P, INTERPRETED)
            total = tl.dot(large.to(w.dtype), w, total)
    return total


@triton.jit
def _finish(
    weight,
    gathered,
    seen,
    row,
    factor,
    along,
    d_weight,
    C,
    d,
    S,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    SOME: tl.constexpr,
):
    """Write the gradient of some rows: the sums plus `along` times the unit rows, divided by the norms."""
    for f in range(0, d, SOME):
        feature = f + tl.arange(0, SOME)
        inside = (row < C)[:, None] & (feature < d)[None, :]
        place = f // WIDTH * WIDTH * SIZE + tl.arange(0, SIZE)[:, None] * WIDTH + (feature % WIDTH)[None, :]
        sums = tl.load(gathered + place, mask=inside & seen, other=0.0)
        unit = entries(weight, row, feature, C, d, S) * factor[:, None]
        place = row.to(tl.int64)[:, None] * d + feature[None, :]
        tl.store(d_weight + place, factor[:, None] * (sums + along[:, None] * unit), mask=inside)


@triton.jit
def push_kernel(
    parts,  # [PARTS, P, D]: as split_kernel writes them
    lines,  # [4, P]
    weight,  # [C, d], rows S apart
    scale,  # [C]
    grad,  # [C]
    own,  # [C]: RAW: the coefficient of a class's own weight
    dense,  # uint8 [side, side]: the tiles to be computed; nothing is done unless the first entry is 1
    board,  # [programs, SIZE, STRIP]: scratch for a strip of coefficients
    gathered,  # [programs, D / WIDTH, SIZE, WIDTH]: scratch for sums over the neighbours of some rows
    d_weight,  # [C, d]
    C,
    d,
    D,
    P,
    S,
    side,
    threshold,
    PROJECT: tl.constexpr,
    RAW: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,  # columns and features at a time
    STRIP: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    if tl.load(dense) != 0:
        line, within = tl.arange(0, SIZE), tl.arange(0, WIDTH)
        board += tl.program_id(0) * SIZE * STRIP
        for top in range(tl.program_id(0) * SIZE, C, tl.num_programs(0) * SIZE):
            row = top + line
            pull, seen = tl.zeros([SIZE], tl.float32), 0
            for start in range(0, C, STRIP):
                above, beside = tl.minimum(top, start) // TILE, tl.maximum(top, start) // TILE
                if tl.load(dense + above.to(tl.int64) * side + beside) != 0:
                    width = tl.minimum(STRIP, C - start)
                    largest = tl.zeros([SIZE], tl.float32)
                    for left in range(0, width, WIDTH):
                        column = start + left + within
                        cosine, value = cosines(
                            parts, lines, top, start + left, D, P, SIZE, WIDTH, RAW, PARTS, DEPTH, INTERPRETED
                        )
                        active = (cosine > threshold) & (row[:, None] != column[None, :])
                        push = tl.where(active, _coefficients(value, lines, row, column, P, RAW), 0.0)
                        if not RAW:
                            pull += tl.sum(push * cosine, 1)
                        push = _of_parts(push, lines, column, P, RAW, PARTS)
                        largest = tl.maximum(largest, tl.max(tl.where(push == push, tl.abs(push), float("inf")), 1))
                        tl.store(board + line[:, None] * STRIP + (left + within)[None, :], push)
                    unit = tl.maximum(largest, 1e-30) / MOST  # whose inverse is finite
                    inverse = 1 / unit
                    unit = tl.where(largest < float("inf"), unit, float("nan"))
                    tl.debug_barrier()  # other threads read the board
                    for f in range(0, d, WIDTH):
                        part = _strip(
                            parts,
                            board,
                            inverse,
                            start,
                            width,
                            f + within,
                            D,
                            P,
                            SIZE,
                            PARTS,
                            STRIP,
                            DEPTH,
                            INTERPRETED,
                        )
                        part *= unit[:, None]
                        at = gathered + f * SIZE + line[:, None] * WIDTH + within[None, :]
                        if seen > 0:
                            part += tl.load(at)
                        tl.store(at, part)
                    tl.debug_barrier()  # before others read the sums, and write to the board
                    seen = 1
            factor = tl.load(scale + row, mask=row < C, other=0.0)
            along = -pull
            if RAW:
                along = tl.load(own + row, mask=row < C, other=0.0)
                factor = tl.where(factor == factor, 1.0, factor)
            elif not PROJECT:
                along = 2 * (E / tl.load(lines + 3 * P + row) - 1) * tl.load(grad + row, mask=row < C, other=0.0)
            _finish(weight, gathered, seen > 0, row, factor, along, d_weight, C, d, S, SIZE, WIDTH, WIDTH // 4)
            tl.debug_barrier()  # before the sums are written again


def push(shared: dict[str, Any], threshold: float) -> None:
    """Write the gradient from tiles, if the list does not hold all pairs."""
    weight = shared["weight"]
    classes, features = weight.shape
    wide = tile(weight)
    size = wide if classes > wide * processors(weight) // 2 else 64
    depth = blocks(features, WIDEST) * WIDEST
    programs = max(1, min(processors(weight), blocks(classes, size), SCRATCH // (size * depth)))
    gathered = weight.new_empty(programs, size, depth, dtype=torch.float32)
    strip = min(STRIP, reference.TILE)
    board = weight.new_empty(programs, size, strip, dtype=torch.float32)
    lines = {name: shared[name] for name in ("scale", "total", "grad", "RAW")}
    given = {**shared, **split(weight, shared["dense"], 0, lines), "board": board, "gathered": gathered}
    del given["total"]
    given |= {"side": shared["dense"].shape[0], "threshold": rounded_down(threshold)}
    blackwell = generation(weight) == 10  # whose compiler spills registers with more steps on the way
    if blackwell and weight.dtype == torch.float32:
        given["DEPTH"] *= 2
    launch(
        push_kernel,
        (programs,),
        {**given, "SIZE": size, "WIDTH": wide, "STRIP": strip},
        warps=4 if size < wide else 8,
        stages=2 if blackwell else 3,
    )

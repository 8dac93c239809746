"""Logit-weight repulsion on a GPU: screened in int8, verified in float32 (docs/math.md, section 6).

Forward: `unit_kernel` rounds the unit rows to int8 and measures the rounding errors. `screen_kernel` computes the upper
half of the tiles with the int8 matrix units, and lists the candidates, the pairs that a proven bound does not exclude.
`verify_kernel` decides these by their float32 cosines. The backward pass gathers the listed pairs (`pairs`). If the
list has no room for all, the tiles with candidates are computed again in float32 instead (`remade`). Kernels for both
are launched, and decide on the device which of them do the work, so that the host need not synchronise.

The order in which programs append to the list varies, but no result depends on it, because sums are in fixed point.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.reference import gram as reference
from lt_kernels.triton.cosines import entries, rounded_down, split, tile, upper_tile
from lt_kernels.triton.launch import blocks, launch, power_of_two, processors
from lt_kernels.triton.pairs import fill_kernel, gather_kernel
from lt_kernels.triton.remade import UNIT, add_whole, append, beyond, push, raise_peaks, sum_kernel

MOST_CLASSES = 2**25  # for which an item of the list has enough bits
MOST_FEATURES = 2**17  # sums of more int8 products could exceed int32
ROWS, COLUMNS, DEPTH = 128, 128, 64  # of a screened tile, so that two programs share a multiprocessor
ITEMS, WIDTH = 8, 512  # items and features that a program verifies at a time: 32 products per thread of 4 warps
WORD = 16  # columns whose candidates are the bits of one number


@triton.jit
def unit_kernel(
    weight,  # [C, d], rows S apart
    unit,  # int8 [C, D]: weight_i / |weight_i| in steps of step_i, zeros from d on
    scale,  # [C]: 1 / |weight_i|
    step,  # [C]: 1/127 of the largest entry of the unit row
    error,  # [C]: the length of the rounding error
    sums,  # int64 [C]: set to 0
    degree,  # int32 [C]: set to 0
    found,  # int64 [1]: set to 0
    count,  # int64 [1]: set to 0
    C,
    d,
    D,
    S,
    HEIGHT: tl.constexpr,  # rows of a program
    WIDTH: tl.constexpr,  # features at a time
):
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    squares = tl.zeros([HEIGHT, WIDTH], tl.float32)
    most = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for k in range(0, d, WIDTH):
        w = entries(weight, row, k + tl.arange(0, WIDTH), C, d, S)
        squares += w * w
        most = tl.maximum(most, tl.abs(w))
    norm = tl.sqrt(tl.sum(squares, 1))
    factor = tl.where(norm <= 1e-12, 0.0, 1 / tl.maximum(norm, 1e-12))
    factor = tl.where(norm < float("inf"), factor, float("nan"))
    known = factor > 0
    width = tl.where(known, tl.max(most, 1) * factor / 127, 0.0)
    steps = 1 / tl.where(known, width, 1.0)
    squares = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for k in range(0, D, WIDTH):
        feature = k + tl.arange(0, WIDTH)
        w = entries(weight, row, feature, C, d, S)
        exact = tl.where(known[:, None], w * factor[:, None], 0.0)
        whole = tl.floor(exact * steps[:, None] + 0.5)
        lost = whole * width[:, None] - exact
        squares += lost * lost
        place = row.to(tl.int64)[:, None] * D + feature[None, :]
        tl.store(unit + place, whole.to(tl.int32).to(tl.int8), mask=(row < C)[:, None] & (feature < D)[None, :])
    tl.store(scale + row, factor, mask=row < C)
    tl.store(step + row, width, mask=row < C)
    tl.store(error + row, tl.sqrt(tl.sum(squares, 1)), mask=row < C)
    tl.store(sums + row, tl.zeros([HEIGHT], tl.int64), mask=row < C)
    tl.store(degree + row, tl.zeros([HEIGHT], tl.int32), mask=row < C)
    tl.store(found + row, tl.zeros([HEIGHT], tl.int64), mask=row < 1)
    tl.store(count + row, tl.zeros([HEIGHT], tl.int64), mask=row < 1)


@triton.jit
def _limits(step_i, error_i, step_j, error_j, limit):
    """For each row the least product * step_j of a candidate, and a lower bound on its integer product in this tile."""
    worst = tl.max(error_j, 0)
    low = limit - (error_i + worst + error_i * worst)
    least = tl.where(step_i > 0, low / tl.where(step_i > 0, step_i, 1.0), float("inf"))
    whole = least / tl.maximum(tl.max(step_j, 0), 1e-30) * 0.9999 - 1  # a margin for the rounding errors
    whole = tl.where(least > 0, tl.minimum(whole, 2147483520.0), -2147483648.0)  # the ends of int32
    return least, whole.to(tl.int32)


@triton.jit
def screen_kernel(
    unit,  # int8 [C, D]
    step,  # [C]
    error,  # [C]
    item,  # int64 [room]: the candidates, in any order: a row, 16 columns, and which of these are meant (`_unpack`)
    found,  # int64 [1]: how many items there are, even if there is no room for all
    dense,  # uint8 [side, side]: which tiles of TILE classes have candidates
    C,
    D,
    room,
    side,
    limit,  # the threshold less a bound on the rounding errors of float32, those of the limits included
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TILE: tl.constexpr,
    WORD: tl.constexpr,
):
    high: tl.constexpr = TILE // ROWS
    inner: tl.constexpr = high * (TILE // COLUMNS)
    above, beside, new = upper_tile(tl.program_id(0) // inner, side)
    top = above * TILE + tl.program_id(0) % inner % high * ROWS
    left = beside * TILE + tl.program_id(0) % inner // high * COLUMNS
    if new & (top < C) & (left < C) & (top < left + COLUMNS - 1):
        row = top + tl.arange(0, ROWS)
        column = left + tl.arange(0, COLUMNS)
        step_i = tl.load(step + row, mask=row < C, other=0.0)  # early, to hide the latency
        error_i = tl.load(error + row, mask=row < C, other=0.0)
        step_j = tl.load(step + column, mask=column < C, other=0.0)
        error_j = tl.load(error + column, mask=column < C, other=0.0)
        k = tl.arange(0, DEPTH)
        a = unit + tl.minimum(row, C - 1).to(tl.int64)[:, None] * D + k[None, :]
        b = unit + tl.minimum(column, C - 1).to(tl.int64)[:, None] * D + k[None, :]
        product = tl.zeros([ROWS, COLUMNS], tl.int32)
        for _ in range(0, D, DEPTH):
            product = tl.dot(tl.load(a), tl.trans(tl.load(b)), product, out_dtype=tl.int32)
            a += DEPTH
            b += DEPTH
        least, whole = _limits(step_i, error_i, step_j, error_j, limit)
        if tl.max((tl.max(product, 1) >= whole).to(tl.int32), 0) > 0:
            column = tl.where(column < C, column, -1)
            passed = (product.to(tl.float32) * step_j[None, :] >= least[:, None]) & (row[:, None] < column[None, :])
            bit = passed.to(tl.int32) << (tl.arange(0, COLUMNS) % WORD)[None, :]
            word = tl.sum(tl.reshape(bit, [ROWS, COLUMNS // WORD, WORD]), 2)
            word = tl.reshape(word, [ROWS * COLUMNS // WORD])
            some = (word != 0).to(tl.int32)
            number = tl.sum(some, 0)
            if number > 0:
                tl.store(dense + above.to(tl.int64) * side + beside, 1)
                index = tl.arange(0, ROWS * COLUMNS // WORD)
                i, j = top + index // (COLUMNS // WORD), left // WORD + index % (COLUMNS // WORD)
                place = tl.atomic_add(found, number.to(tl.int64), sem="relaxed") + (tl.cumsum(some, 0) - some)
                packed = (i.to(tl.int64) << 37) | (j.to(tl.int64) << 16) | word.to(tl.int64)
                tl.store(item + place, packed, mask=(word != 0) & (place < room))


@triton.jit
def _unpack(item):
    """The row i of an item, the first of its 16 columns, and the bits of those that may be active with i."""
    return (item >> 37).to(tl.int32), ((item >> 16) & 2097151).to(tl.int32) * 16, (item & 65535).to(tl.int32)


@triton.jit
def _lowest(bits):
    """The lowest bit that is set, and its index."""
    low = bits & -bits
    return low, (low.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def verify_kernel(
    weight,  # [C, d], rows S apart
    scale,  # [C]
    item,  # int64 [room]
    found,  # int64 [1]
    first,  # int32 [room]: i of the active pairs i < j, in any order
    second,  # int32 [room]: j
    value,  # [room]: their cosines
    count,  # int64 [1]: their number, even if there is no room for all
    sums,  # int64 [C]: for each class the sum of expm1 over the cosines of its active pairs, in units of 1 / UNIT
    peak,  # int32 [C]: for the raw form the bits of the largest product of each class
    degree,  # int32 [C]: for each class the number of its active pairs
    C,
    d,
    S,
    room,
    threshold,
    STAGE: tl.constexpr,  # 0: cosines; 1: peaks and the list, of products; 2: sums of these, once the peaks are known
    UNIT: tl.constexpr,
    ITEMS: tl.constexpr,  # at a time
    WIDTH: tl.constexpr,  # features at a time
):
    number = tl.load(found)
    if number <= room:
        for start in range(tl.program_id(0) * ITEMS, number.to(tl.int32), tl.num_programs(0) * ITEMS):
            place = start + tl.arange(0, ITEMS)
            i, columns, bits = _unpack(tl.load(item + place, mask=place < number, other=0))
            while tl.max(bits, 0) > 0:
                there = bits != 0
                low, index = _lowest(bits)
                j = tl.where(there, columns + index, 0)
                product = tl.zeros([ITEMS, WIDTH], tl.float32)
                for k in range(0, d, WIDTH):
                    feature = k + tl.arange(0, WIDTH)
                    product += entries(weight, i, feature, C, d, S) * entries(weight, j, feature, C, d, S)
                dot = tl.sum(product, 1)
                cosine = dot * tl.load(scale + i) * tl.load(scale + j)
                active = there & (cosine > threshold)
                if STAGE == 0:
                    add_whole(sums, i, tl.exp(cosine) - 1, active, UNIT)
                    add_whole(sums, j, tl.exp(cosine) - 1, active, UNIT)
                if STAGE == 1:
                    raise_peaks(peak, i, dot, active)
                    raise_peaks(peak, j, dot, active)
                if STAGE == 2:
                    dot = tl.where(active, dot, 0.0)
                    add_whole(sums, i, beyond(dot, tl.load(peak + i, mask=active, other=0)), active, UNIT)
                    add_whole(sums, j, beyond(dot, tl.load(peak + j, mask=active, other=0)), active, UNIT)
                else:
                    listed = dot if STAGE == 1 else cosine
                    append(i, j, listed, active, first, second, value, count, degree, room)
                bits ^= low


@triton.jit
def finish_kernel(
    sums,  # int64 [C]
    scale,  # [C]
    total,  # [C]: Z
    count,  # int64 [1]
    dense,  # uint8 [side, side]: set to 0 if the list holds all active pairs; otherwise the first entry is set to 1
    C,
    side,
    room,
    base: tl.float64,  # Z of a class without active pairs
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    part = tl.load(sums + row, mask=row < C, other=0).to(tl.float64) * (1.0 / UNIT)
    z = (part + base).to(tl.float32) + 0 * tl.load(scale + row, mask=row < C, other=0.0)
    tl.store(total + row, z, mask=row < C)
    over = tl.load(count) > room
    for start in range(tl.program_id(0) * WIDTH, side * side, tl.num_programs(0) * WIDTH):
        tile = start + tl.arange(0, WIDTH)
        marked = tl.load(dense + tile, mask=tile < side * side, other=0) != 0
        marked = over & (marked | (tile == 0))
        tl.store(dense + tile, marked.to(tl.uint8), mask=tile < side * side)


def _screened(weight: Tensor, threshold: float) -> bool:
    """Whether these kernels are used; not for float64, nor where no pair or half of the pairs can be active."""
    fits = 0 < weight.shape[0] <= MOST_CLASSES and 0 < weight.shape[1] <= MOST_FEATURES
    return weight.dtype != torch.float64 and 0 < threshold < 1 and fits


def _rows(weight: Tensor) -> Tensor:
    return weight if weight.stride(1) == 1 else weight.contiguous()


def _room(classes: int) -> int:
    """The places of the list; `first` has C more, which hold the number of each class's pairs."""
    return (reference.PAIRS - 1) * classes


def _units(weight: Tensor, zeros: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """1 / |w| [C], the unit rows in int8 [C, D], their steps and rounding errors [C]; sets the tensors `zeros` to 0."""
    classes, features = weight.shape
    depth = blocks(features, DEPTH) * DEPTH
    scale, step, error = (weight.new_empty(classes, dtype=torch.float32) for _ in range(3))
    unit = weight.new_empty(classes, depth, dtype=torch.int8)
    width = power_of_two(depth, most=2048)
    arguments = {"weight": weight, "unit": unit, "scale": scale, "step": step, "error": error, **zeros}
    arguments |= {"C": classes, "d": features, "D": depth, "S": weight.stride(0)}
    arguments |= {"HEIGHT": 2048 // width, "WIDTH": width}
    launch(unit_kernel, (blocks(classes, 2048 // width),), arguments, warps=4)
    return scale, unit, step, error


def _screen(unit: Tensor, step: Tensor, error: Tensor, item: Tensor, found: Tensor, threshold: float) -> Tensor:
    """List the pairs that may be active; returns which tiles have any."""
    classes, depth = unit.shape
    side = reference.tiles(classes)
    dense = torch.zeros(side, side, dtype=torch.bool, device=unit.device)
    arguments = {"unit": unit, "step": step, "error": error, "item": item, "found": found}
    arguments |= {"dense": dense.view(torch.uint8), "C": classes, "D": depth, "room": item.shape[0], "side": side}
    arguments |= {"limit": rounded_down(threshold - (depth + 16) * 2.0**-22)}
    arguments |= {"ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH, "TILE": reference.TILE, "WORD": WORD}
    tiles = blocks(side, 2) * (side + 1) * (reference.TILE // ROWS) * (reference.TILE // COLUMNS)
    launch(screen_kernel, (tiles,), arguments, warps=4, stages=4)
    return dense


def gram_forward(weight: Tensor, threshold: float, raw: bool = False) -> tuple[Tensor, ...]:
    """(Z [C], 1 / |w| [C], first, second, cosine and number of the active pairs, which tiles are not listed).

    With `raw`: R in the place of Z, products in the place of cosines.
    """
    if not _screened(weight, threshold):
        return reference.gram_forward(weight, threshold, raw)
    weight = _rows(weight)
    classes, room = weight.shape[0], _room(weight.shape[0])
    first, second = (weight.new_empty(room + classes, dtype=torch.int32) for _ in range(2))
    value, total = (weight.new_empty(size, dtype=torch.float32) for size in (room + classes, classes))
    item, sums, found, count = (weight.new_empty(size, dtype=torch.int64) for size in (room, classes, 1, 1))
    zeros = {"sums": sums, "degree": first[room:], "found": found, "count": count}
    scale, *units = _units(weight, zeros)
    dense = _screen(*units, item, found, threshold)
    square = reference.squares(weight) if raw else scale
    peak = square.clone().view(torch.int32) if raw else sums
    lists = {"item": item, "first": first, "second": second, "value": value, "count": count, "degree": first[room:]}
    shared = {"scale": scale, "found": found, "sums": sums, "peak": peak, "dense": dense.view(torch.uint8)}
    parts = split(weight, found, room, {"scale": scale, "total": None, "grad": None, "RAW": raw})
    for stage in (1, 2) if raw else (0,):
        _decide(weight, threshold, shared, lists, parts, stage)
    ends = {**{name: shared[name] for name in ("sums", "scale", "dense")}, "total": total, "count": count}
    ends |= {"side": dense.shape[0], "C": classes, "room": room, "base": reference.base(classes, threshold)}
    launch(finish_kernel, (blocks(classes, 512),), {**ends, "UNIT": UNIT, "WIDTH": 512}, warps=4)
    if raw:
        total = reference.finish_raw(sums.double() / UNIT, peak.view(torch.float32), square, scale, threshold)
    return total, scale, first, second, value, count, dense


def _decide(
    weight: Tensor, threshold: float, shared: dict[str, Any], lists: dict[str, Any], parts: dict[str, Any], stage: int
) -> None:
    """Decide the candidates, and add to the sums, or raise the peaks: from the list, or if it is full from tiles."""
    classes, features = weight.shape
    both = {name: shared[name] for name in shared if name != "dense"}
    both |= {**lists, "room": _room(classes), "threshold": rounded_down(threshold), "STAGE": stage, "UNIT": UNIT}
    sizes = {"weight": weight, "C": classes, "d": features, "S": weight.stride(0), "ITEMS": ITEMS, "WIDTH": WIDTH}
    launch(verify_kernel, (8 * processors(weight),), {**both, **sizes}, warps=4)
    del both["item"], both["scale"]
    programs, size = processors(weight), tile(weight)
    sizes = {"dense": shared["dense"], "side": shared["dense"].shape[0], "SIZE": size}
    sizes["board"] = weight.new_empty(programs, size, size, dtype=torch.float32)
    launch(sum_kernel, (programs,), {**both, **parts, **sizes}, warps=size // 16, stages=3)


def gram_backward(
    weight: Tensor,
    threshold: float,
    project: bool,
    scale: Tensor,
    total: Tensor,
    first: Tensor,
    second: Tensor,
    value: Tensor,
    count: Tensor,
    dense: Tensor,
    grad: Tensor,
    raw: bool = False,
) -> Tensor:
    """The gradient of sum_i grad_i R_i for the weight [C, d], from the listed pairs or from the tiles not listed."""
    saved = scale, total, first, second, value, count, dense
    if not _screened(weight, threshold):
        return reference.gram_backward(weight, threshold, project, *saved, grad, raw)
    weight, grad, dense = _rows(weight), grad.contiguous(), dense.view(torch.uint8)
    classes, features = weight.shape
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    own = total
    if raw:
        own, _, total = reference.slopes(weight, total, grad, threshold, project, raw)
    shared = {"weight": weight, "scale": scale, "total": total, "grad": grad, "dense": dense, "d_weight": d_weight}
    shared |= {"C": classes, "d": features, "S": weight.stride(0), "PROJECT": project, "RAW": raw, "own": own}
    _gather(shared, first, second, value, count)
    push(shared, threshold)
    return d_weight


def _gather(shared: dict[str, Any], first: Tensor, second: Tensor, value: Tensor, count: Tensor) -> None:
    """Write the gradient if the list holds all pairs."""
    weight = shared["weight"]
    classes, features = weight.shape
    room = _room(classes)
    degree = first[room:]
    begins = degree.cumsum(0)  # the ends; fill_kernel counts down from there
    neighbour, cosine = first.new_empty(2 * room), value.new_empty(2 * room)
    lists = {"neighbour": neighbour, "cosine": cosine, "begins": begins}
    pairs = {"first": first, "second": second, "value": value, "count": count, "dense": shared["dense"]}
    launch(fill_kernel, (4 * processors(weight),), {**pairs, **lists, "WIDTH": 256}, warps=4)
    width = power_of_two(features, least=64, most=512)
    sizes = {"degree": degree, "SOME": 64, "FEW": 4, "WIDTH": width}
    launch(gather_kernel, (classes, blocks(features, width)), {**shared, **lists, **sizes}, warps=4)

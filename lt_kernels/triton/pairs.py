"""The gradient of the logit-weight repulsion from a list of active pairs on a GPU (docs/math.md, section 6).

The pairs are sorted into lists of each class's neighbours, whose order depends on the timing of the programs, and the
neighbours' weights are gathered. The sums over them are in fixed point, where the order does not change the result:
the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lt_kernels.triton.cosines import entries
from lt_kernels.triton.remade import E


@triton.jit
def fill_kernel(
    first,  # int32 [room]
    second,  # int32 [room]
    value,  # [room]: cosine
    count,  # int64 [1]
    dense,  # uint8 [side, side]: if the first entry is set, the list is incomplete and nothing is done
    begins,  # int64 [C]: where each class's neighbours end in the next two; the kernel makes it where they begin
    neighbour,  # int32 [2 room]
    cosine,  # [2 room]
    WIDTH: tl.constexpr,
):
    if tl.load(dense) == 0:
        number = tl.load(count).to(tl.int32)
        for start in range(tl.program_id(0) * WIDTH, number, tl.num_programs(0) * WIDTH):
            place = start + tl.arange(0, WIDTH)
            there = place < number
            i = tl.load(first + place, mask=there, other=0)
            j = tl.load(second + place, mask=there, other=0)
            s = tl.load(value + place, mask=there, other=0.0)
            one = tl.full([WIDTH], -1, tl.int64)
            at = tl.atomic_add(begins + i, one, mask=there, sem="relaxed") - 1
            tl.store(neighbour + at, j, mask=there)
            tl.store(cosine + at, s, mask=there)
            at = tl.atomic_add(begins + j, one, mask=there, sem="relaxed") - 1
            tl.store(neighbour + at, i, mask=there)
            tl.store(cosine + at, s, mask=there)


@triton.jit
def _edges(place, there, slope_i, level_i, neighbour, cosine, scale, total, grad, RAW: tl.constexpr):
    """The neighbours j at these places of a list, their cosines s, and c_ij = e^s (slope_i + slope_j).

    RAW: their products r, and c_ij |w_j| with c_ij = grad_i e^(r - log Z_i) + grad_j e^(r - log Z_j): the coefficient
    of the unit row of j, whose entries are at most 1.
    """
    j = tl.load(neighbour + place, mask=there, other=0)
    s = tl.load(cosine + place, mask=there, other=0.0)
    if RAW:
        level_j = tl.load(total + j, mask=there, other=0.0)
        slope_j = tl.load(grad + j, mask=there, other=0.0)
        push = slope_i * tl.exp(s - level_i) + slope_j * tl.exp(s - level_j)
        return j, s, tl.where(there, push / tl.load(scale + j, mask=there, other=1.0), 0.0)
    slope_j = tl.load(grad + j, mask=there, other=0.0) / tl.load(total + j, mask=there, other=1.0)
    return j, s, tl.where(there, tl.exp(s) * (slope_i + slope_j), 0.0)


@triton.jit
def _size(push):
    """The largest |c_ij|; infinite if one is NaN."""
    return tl.max(tl.where(push == push, tl.abs(push), float("inf")), 0)


@triton.jit
def gather_kernel(
    weight,  # [C, d], rows S apart
    scale,  # [C]
    total,  # [C]; RAW: log Z
    grad,  # [C]
    own,  # [C]: RAW: the coefficient of a class's own weight
    neighbour,  # int32
    cosine,
    begins,  # int64 [C]
    degree,  # int32 [C]
    dense,  # uint8 [side, side]: if the first entry is set, the list is incomplete and nothing is done
    d_weight,  # [C, d]
    C,
    d,
    S,
    PROJECT: tl.constexpr,
    RAW: tl.constexpr,
    SOME: tl.constexpr,  # neighbours at a time, to find the largest coefficient
    FEW: tl.constexpr,  # neighbours at a time, to gather their weights
    WIDTH: tl.constexpr,  # features of a program
):
    if tl.load(dense) == 0:
        row = tl.program_id(0)
        feature = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        number = tl.load(degree + row)
        begin = tl.load(begins + row)
        total_i, grad_i = tl.load(total + row), tl.load(grad + row)
        slope_i = grad_i / total_i
        if RAW:
            slope_i = grad_i
        largest = 0.0
        for k in range(0, number, SOME):
            index = k + tl.arange(0, SOME)
            _, _, push = _edges(
                begin + index, index < number, slope_i, total_i, neighbour, cosine, scale, total, grad, RAW
            )
            largest = tl.maximum(largest, _size(push))
        inverse = 1 / tl.where(largest > 0, largest, 1.0)
        sums = tl.zeros([FEW, WIDTH], tl.int64)
        pull = tl.zeros([FEW], tl.int64)
        for k in range(0, number, FEW):
            index = k + tl.arange(0, FEW)
            j, s, push = _edges(
                begin + index, index < number, slope_i, total_i, neighbour, cosine, scale, total, grad, RAW
            )
            share = push * inverse * 1073741824.0  # 2^30, so that a term fits int32
            w = entries(weight, j, feature, C, d, S)
            factor = tl.load(scale + j, mask=index < number, other=0.0)
            sums += (w * factor[:, None] * share[:, None]).to(tl.int32).to(tl.int64)
            if not RAW:
                pull += (share * s).to(tl.int32).to(tl.int64)
        unit = tl.where(largest < float("inf"), largest * (1.0 / 1073741824.0), float("nan"))
        along = -tl.sum(pull, 0).to(tl.float32) * unit
        factor = tl.load(scale + row)
        if RAW:
            along = tl.load(own + row)
            factor = tl.where(factor == factor, 1.0, factor)
        elif not PROJECT:
            along = 2 * (E / total_i - 1) * grad_i
        needed = (feature < d) & ((number > 0) | (not PROJECT))
        line = tl.load(weight + row.to(tl.int64) * S + feature, mask=needed, other=0.0).to(tl.float32)
        result = factor * (tl.sum(sums, 0).to(tl.float32) * unit + along * factor * line)
        tl.store(d_weight + row.to(tl.int64) * d + feature, result, mask=feature < d)

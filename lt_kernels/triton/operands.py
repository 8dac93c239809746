"""Features and class weights as the matrix units take them; their norms, and the derivative of dividing by these.

Letters: N and M rows, D features; a program has BN rows and takes BD features per step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.core import numbers
from lt_kernels.reference import linear as reference
from lt_kernels.triton.launch import INTERPRETED, blocks, launch, power_of_two
from lt_kernels.triton.numbers import as_stored

LINE = 128  # bytes of a row that a tile takes per step: a line of the shared memory
ROUNDS = not INTERPRETED  # whether float32 is to be rounded: the interpreter multiplies all of its bits
ALIGNED = 64  # elements: such a line of 16-bit numbers


@triton.jit
def _tensor_float(x):
    """float32 numbers rounded to TensorFloat-32's: to the nearest, of two the larger. NaN stays NaN."""
    bits = (x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), float("nan"))


@triton.jit(do_not_specialize=["N"])
def operand_kernel(
    rows,  # [N, D], stride apart
    out,  # [N, WIDTH]: the rows, then zeros
    N,
    stride,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    SHORT: tl.constexpr,
):
    row, inner = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    line = row.to(tl.int64)[:, None]
    left, right = line * stride + inner[None, :], line * WIDTH + inner[None, :]
    for first in range(0, WIDTH, BD):
        x = tl.load(rows + first + left, mask=(row < N)[:, None] & (inner < D - first)[None, :], other=0.0)
        x = _tensor_float(x) if SHORT else as_stored(x.to(tl.float32), out.dtype.element_ty)
        tl.store(out + first + right, x, mask=(row < N)[:, None] & (inner < WIDTH - first)[None, :])


@triton.jit
def _inverse_norms(rows, out, row, N, stride, D: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr):
    """Write 1 / |row| of the rows `row` [BN]; 0 for a row without direction, NaN for one whose norm overflows."""
    inner, squares = tl.arange(0, BD), tl.zeros([BN, BD], tl.float32)
    at = rows + row.to(tl.int64)[:, None] * stride + inner[None, :]
    for first in range(0, D, BD):
        x = tl.load(at + first, mask=(row < N)[:, None] & (inner < D - first)[None, :], other=0.0).to(tl.float32)
        squares += x * x
    norm = tl.sqrt_rn(tl.sum(squares, 1))
    short = norm <= 1e-12
    inverse = tl.div_rn(tl.full([BN], 1.0, tl.float32), tl.where(short, 1.0, norm))
    inverse = tl.where(norm == float("inf"), float("nan"), tl.where(short, 0.0, inverse))
    tl.store(out + row, inverse, mask=row < N)


@triton.jit(do_not_specialize=["N", "M"])
def inverse_norm_kernel(
    rows,  # [N, D], stride apart
    out,  # [N]
    others,  # [M, D], others_stride apart, or None
    others_out,  # [M] or None
    N,
    M,
    stride,
    others_stride,
    D: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    program, high = tl.program_id(0), tl.cdiv(N, BN)
    if program < high:
        _inverse_norms(rows, out, program * BN + tl.arange(0, BN), N, stride, D, BN, BD)
    elif others is not None:
        row = (program - high) * BN + tl.arange(0, BN)
        _inverse_norms(others, others_out, row, M, others_stride, D, BN, BD)


@triton.jit(do_not_specialize=["N"])
def tangent_kernel(
    total,  # [N, D]: a gradient, times unit
    rows,  # [N, D], stride apart
    scale,  # [N] or None: 1 / |row|
    unit,  # [] or None
    out,  # [N, D]: the gradient without its part along the row; it may be `total`
    N,
    stride,
    D: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
):
    row, inner = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BD)
    at = row.to(tl.int64)[:, None] * D + inner[None, :]
    line = rows + row.to(tl.int64)[:, None] * stride + inner[None, :]
    along, factor = tl.zeros([BN, BD], tl.float32), tl.full([BN], 1.0, tl.float32)
    if scale is not None:
        for first in range(0, D, BD):
            inside = (row < N)[:, None] & (inner < D - first)[None, :]
            d = tl.load(total + at + first, mask=inside, other=0.0).to(tl.float32)
            along += d * tl.load(line + first, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + row, mask=row < N, other=0.0)
    part = tl.sum(along, 1) * factor * factor
    for first in range(0, D, BD):  # these rows are still in the cache
        inside = (row < N)[:, None] & (inner < D - first)[None, :]
        d = tl.load(total + at + first, mask=inside, other=0.0).to(tl.float32)
        if scale is not None:
            d -= part[:, None] * tl.load(line + first, mask=inside, other=0.0).to(tl.float32)
        if unit is not None:
            d /= tl.load(unit)
        tl.store(out + at + first, as_stored(d, out.dtype.element_ty), mask=inside)


def _sizes(features: int) -> dict[str, int]:
    """The sizes of a program that takes whole rows: 2,048 numbers at a time, or one row."""
    width = power_of_two(features, 16, 4096)
    return {"D": features, "BN": max(1, 2048 // width), "BD": width}


def _whole(rows: Tensor) -> Tensor:
    """The same rows, each in one piece."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def inverse_norm(rows: Tensor) -> Tensor:
    """1 / |row| [N] as in `core.numbers`, with one read of the rows [N, D]."""
    if rows.dtype == torch.float64:
        return numbers.inverse_norm(rows)
    return _inverse(rows, None)[0]


def inverse_norms(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """1 / |row| of features [N, D] and of class weights [C, D], in one launch; the rows may be any stride apart."""
    if torch.float64 in (input.dtype, weight.dtype):
        return inverse_norm(input), inverse_norm(weight)
    found = _inverse(input, weight)
    return found[0], found[1]


def _inverse(rows: Tensor, others: Tensor | None) -> list[Tensor]:
    """1 / |row| of one tensor, or of two with the same number of features."""
    given = [_whole(one) for one in (rows, others) if one is not None]
    found = [one.new_empty(one.shape[0], dtype=torch.float32) for one in given]
    sizes = _sizes(rows.shape[1])
    arguments = {
        "rows": given[0],
        "out": found[0],
        "others": given[1] if others is not None else None,
        "others_out": found[1] if others is not None else None,
        "N": given[0].shape[0],
        "M": given[-1].shape[0],
        "stride": given[0].stride(0),
        "others_stride": given[-1].stride(0),
        **sizes,
    }
    programs = sum(blocks(one.shape[0], sizes["BN"]) for one in given)
    launch(inverse_norm_kernel, (programs,), arguments)
    return found


def project(
    total: Tensor, rows: Tensor, scale: Tensor | None, unit: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """A gradient [N, D] divided by `unit`, without its part along the rows [N, D] of inverse norms `scale` [N].

    The arithmetic is float32's; without `out`, which may be `total`, the result is new and in the dtype of the rows.
    """
    out = torch.empty_like(rows, memory_format=torch.contiguous_format) if out is None else out
    if total.dtype == torch.float64:
        reference.project_rows(out if out is total else out.copy_(total), rows, scale)
        return out if unit is None else out.div_(unit)
    rows = _whole(rows)
    sizes = _sizes(rows.shape[1])
    tensors = {"total": total, "rows": rows, "scale": scale, "unit": unit, "out": out}
    arguments = {**tensors, "N": rows.shape[0], "stride": rows.stride(0), **sizes}
    launch(tangent_kernel, (blocks(rows.shape[0], sizes["BN"]),), arguments)
    return out


def ready(rows: Tensor, kind: torch.dtype) -> bool:
    """Whether the matrix units can take rows [N, D] as they are: that dtype, and each row at a multiple of 16 bytes."""
    short = ROUNDS and kind == torch.float32
    return rows.dtype == kind and not short and rows.shape[1] * kind.itemsize % 16 == 0 and rows.is_contiguous()


def operand(rows: Tensor, kind: torch.dtype) -> Tensor:
    """Rows [N, D] as the matrix units take them: `rows` themselves if these are `ready`, else a copy in that dtype.

    float32 is rounded to TensorFloat-32: the matrix units would cut off its last 13 bits, and so make every product too
    small. Where rows would not start at a multiple of 16 bytes they are [N, more than D], with zeros at the end.
    """
    if ready(rows, kind):
        return rows
    rows, step = _whole(rows), LINE // kind.itemsize
    size = rows.shape[1]
    width = size if size * kind.itemsize % 16 == 0 else blocks(size, step) * step
    out = rows.new_empty(rows.shape[0], width, dtype=kind)
    sizes = {**_sizes(width), "D": size, "WIDTH": width, "SHORT": ROUNDS and kind == torch.float32}
    tensors = {"rows": rows, "out": out, "N": rows.shape[0], "stride": rows.stride(0)}
    arguments = {**tensors, **sizes}
    launch(operand_kernel, (blocks(rows.shape[0], sizes["BN"]),), arguments)
    return out


def padded(rows: int, columns: int, like: Tensor, kind: torch.dtype | None = None) -> Tensor:
    """New memory [rows, columns] of that device, and dtype without another, whose rows begin at whole 64 elements."""
    return like.new_empty((rows, blocks(columns, ALIGNED) * ALIGNED), dtype=kind)[:, :columns]

"""Linear and cosine statistics on a GPU (docs/math.md, section 5).

Where the matrix units can multiply (half precision, and float32 as TensorFloat-32 if torch allows it), the statistics
and a slab's gradient are computed from tiles of the product that are never written. For kept logits, full float32,
float64 and the offset's gradient the library multiplies and the row kernels do the rest, as on other devices. Norms and
projections have kernels here in all cases.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lt_kernels.core import numbers
from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.reference import linear as reference
from lt_kernels.triton.launch import INTERPRETED, blocks, generation, launch, power_of_two, processors
from lt_kernels.triton.operands import inverse_norm, inverse_norms, operand, padded, project, ready
from lt_kernels.triton.products import slab_gradient_kernel, statistics_kernel, statistics_merge_kernel

NEAR = 8 * 2**20  # bytes of features whose programs run at the same time: they and class weights fit in the L2 cache
CAST = 128 * 2**20  # bytes of class weights that are copied at a time, if the matrix units cannot take them


@triton.jit(do_not_specialize=["N"])
def gradient_unit_kernel(
    d_rest,  # [N]
    d_own,  # [N, K]
    d_mean,  # [N] or None
    share,  # [] or None: the largest weight of a class in the mean
    row_scale,  # [N] or None
    column_scale,  # [] or None: the largest of a class
    unit,  # []
    N,
    scale,
    K: tl.constexpr,
    BN: tl.constexpr,
):
    most = tl.zeros([BN], tl.float32)
    for first in range(0, N, BN):
        row = first + tl.arange(0, BN)
        bound = tl.abs(tl.load(d_rest + row, mask=row < N, other=0.0)) * scale
        if d_mean is not None:
            bound += tl.abs(tl.load(d_mean + row, mask=row < N, other=0.0)) * tl.load(share) * scale
        for slot in tl.static_range(K):
            bound += tl.abs(tl.load(d_own + row.to(tl.int64) * K + slot, mask=row < N, other=0.0))
        if row_scale is not None:
            bound *= tl.load(row_scale + row, mask=row < N, other=0.0)
        most = tl.maximum(most, bound)
    largest = tl.max(most, 0)
    if column_scale is not None:
        largest *= tl.load(column_scale)
    exponent = largest.to(tl.int32, bitcast=True) >> 23  # with its bias of 127; the largest becomes less than 2^14
    power = (tl.minimum(2 * 127 + 13 - exponent, 254) << 23).to(tl.float32, bitcast=True)
    tl.store(unit, tl.where((largest > 0) & (largest < float("inf")), power, 1.0))


class Tile(NamedTuple):
    """The sizes of a program's tile, and the options it is compiled with."""

    rows: int
    classes: int
    features: int
    warps: int
    stages: int = 3

    def programs(self, like: Tensor) -> int:
        """How many run at once on the tensor's device: with 4 warps, two fit on a multiprocessor."""
        return processors(like) * (2 if self.warps == 4 else 1)


def tile_for(p: Problem, gradient: bool) -> Tile:
    """The largest tile with which a program spills no registers, on this generation of GPUs.

    On a Hopper GPU two programs of 128 by 128 share a multiprocessor: one computes exponentials while the other
    multiplies. Tiles of 256 by 128 read a quarter less from the L2 cache for each product. They have a multiprocessor
    to themselves, so only statistics have them: their programs walk along the classes, with the next tile on its way.
    """
    made = generation(p.input)
    rows, size = p.input.shape
    features = min(128 // p.input.element_size(), power_of_two(size, 16))  # 128 bytes: a line of the shared memory
    by_row = any(table is not None and table.shape[0] > 1 for table in (p.offset, p.mean_weight))
    features = min(features, 32) if by_row or size % features else features
    vectors = (p.bias is not None) + (p.offset is not None) + (p.normalize >= Normalize.CLASSES)
    many = p.mean_weight is not None or p.target.shape[1] > 1 or vectors > 2 or size % features > 0
    if by_row:
        return Tile(128, 32, min(features, 16) if made == 8 else features, 8)
    if many or (made == 10 and vectors > 0):
        return Tile(128, 64, min(features, 32) if made == 8 else features, 8)
    enough = blocks(rows, 256) * blocks(p.weight.shape[0], 128) >= 4 * processors(p.input)
    if made == 9 and not gradient and vectors == 0 and size >= 512 and features == 64 and enough:
        return Tile(256, 128, features, 8, stages=4)
    return Tile(128, 128, features, 4 if made == 9 else 8)


@functools.lru_cache
def parts_for(high: int, wide: int, programs: int) -> int:
    """How many tiles of classes a program computes, so that the waves of programs are full and the partial sums few.

    There are `high` blocks of rows and `wide` tiles of classes; `programs` run at once. A program costs half a tile
    in addition to its tiles.
    """
    each = {blocks(wide, max(1, waves * programs // high)) for waves in range(1, 9)}
    return min(
        sorted(each, reverse=True), key=lambda tiles: blocks(high * blocks(wide, tiles), programs) * (tiles + 0.5)
    )


def on_matrix_units(p: Problem) -> bool:
    """Whether tiles are used: if the library would use the matrix units too; not for scales below 0 or a cap."""
    kind = p.input.dtype
    short = kind == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return p.scale > 0 and not p.softcap and p.input.shape[0] > 0 and (short or kind in (torch.bfloat16, torch.float16))


def dense(p: Problem) -> Problem:
    """The same problem with contiguous rows, as the kernels need."""
    tensors = ((name, value) for name, value in zip(p._fields, p) if isinstance(value, Tensor))
    tables = ("offset", "mean_weight")  # their rows may be any stride apart
    apart = {
        name: value.contiguous()
        for name, value in tensors
        if (value.stride(1) != 1 if name in tables else not value.is_contiguous())
    }
    return p._replace(**apart) if apart else p


def _part(tensor: Any, piece: slice) -> Any:
    """The rows of a tensor, or of None, that a slice names; without a call of the library where these are all."""
    return tensor if tensor is None or piece.stop - piece.start == tensor.shape[0] else tensor[piece]


def _shared(p: Problem, tile: Tile, weight: Tensor, rows: slice, classes: slice) -> dict[str, Any]:
    """The arguments that both kernels of tiles take, for a block of rows and of classes (whose weights are given)."""
    offset, row, mean_weight = p.tables(rows, classes)
    tables = [table for table in (offset, mean_weight) if table is not None]
    x = _part(p.input, rows)
    return {
        "x": x,
        "w": weight,
        "bias": _part(p.bias, classes),
        "target": _part(p.target, rows),
        "offset": offset,
        "offset_row": row,
        "mean_weight": mean_weight,
        "N": x.shape[0],
        "C": weight.shape[0],
        "R": max((table.shape[0] for table in tables), default=1),
        "offset_stride": 0 if offset is None else offset.stride(0),
        "mean_stride": 0 if mean_weight is None else mean_weight.stride(0),
        "start": p.start + classes.start,
        "ignore": p.ignore_index,
        "group": min(max(1, NEAR // (tile.rows * x.shape[1] * x.element_size())), blocks(x.shape[0], tile.rows)),
        "D": x.shape[1],
        "K": p.target.shape[1],
        "BN": tile.rows,
        "BC": tile.classes,
        "BD": tile.features,
        "OFFSET_BY_ROW": offset is not None and offset.shape[0] > 1,
        "MEAN_BY_ROW": mean_weight is not None and mean_weight.shape[0] > 1,
        "INTERPRETED": INTERPRETED,
    }


def linear_forward(*inputs: Any) -> tuple[Tensor, ...]:
    """The results of the reference: statistics, kept logits, and inverse norms."""
    p, keep = dense(Problem(*inputs[:-1])), inputs[-1]
    if keep or not on_matrix_units(p):
        return reference.by_slabs(p, keep, inverse_norm)
    row_scale, column_scale = norms(p)
    found = _statistics(p, row_scale, column_scale)
    scales = (found[0].new_empty(0) if scale is None else scale for scale in (row_scale, column_scale))
    return *found, p.input.new_empty(0, dtype=numbers.product_type(p.input)), *scales


def norms(p: Problem) -> tuple[Tensor | None, Tensor | None]:
    """The inverse norms of the features and of the class weights, where these divide the products."""
    if p.normalize == Normalize.BOTH:
        return inverse_norms(p.input, p.weight)
    return None, inverse_norm(p.weight) if p.normalize == Normalize.CLASSES else None


def _statistics(p: Problem, row_scale: Tensor | None, column_scale: Tensor | None) -> tuple[Tensor, ...]:
    """(rest, own, rival, mean, top, shares) from tiles: first of each program's part of the classes, then merged."""
    whole = ready(p.weight, p.input.dtype)
    p = p if ready(p.input, p.input.dtype) else p._replace(input=operand(p.input, p.input.dtype))
    (rows, size), slots, tile = p.input.shape, p.target.shape[1], tile_for(p, gradient=False)
    high = blocks(rows, tile.rows)
    width = p.weight.shape[0] if whole else max(tile.classes, CAST // (size * p.input.element_size()))
    pieces = list(p._replace(class_slab=width).class_slabs())
    tiles = [blocks(piece.stop - piece.start, tile.classes) for piece in pieces]
    walks = [parts_for(high, wide, tile.programs(p.input)) for wide in tiles]
    splits = [blocks(wide, walk) for wide, walk in zip(tiles, walks)]
    with_mean = p.mean_weight is not None
    parts = p.input.new_empty((3 + slots + 2 * with_mean, sum(splits), rows), dtype=torch.float32)
    for index, piece in enumerate(pieces):
        weight = operand(_part(p.weight, piece), p.input.dtype)
        arguments = {
            **_shared(p, tile, weight, slice(0, rows), piece),
            "row_scale": row_scale,
            "column_scale": _part(column_scale, piece),
            "parts": parts,
            "before": sum(splits[:index]),
            "splits": sum(splits),
            "scale": p.scale,
            "tiles": walks[index],
            "FEW_ROWS": rows < tile.rows,
            "FEW_CLASSES": weight.shape[0] < tile.classes,
        }
        launch(statistics_kernel, (high * splits[index],), arguments, warps=tile.warps, stages=tile.stages)
    return _merged(p, parts, row_scale)


def _merged(p: Problem, parts: Tensor, row_scale: Tensor | None) -> tuple[Tensor, ...]:
    """(rest, own, rival, mean, top, shares) from the parts of the classes, which are merged in their order."""
    (rows, slots), splits = p.target.shape, parts.shape[1]
    rest, own, rival = parts.new_empty(rows), parts.new_empty(rows, slots), parts.new_empty(rows)
    top = parts.new_empty(rows)
    mean, shares = (parts.new_empty(0 if p.mean_weight is None else rows) for _ in range(2))
    arguments = {
        "parts": parts,
        "target": p.target,
        "row_scale": row_scale,
        "rest": rest,
        "own": own,
        "rival": rival,
        "mean": None if p.mean_weight is None else mean,
        "top_out": top,
        "shares": None if p.mean_weight is None else shares,
        "N": rows,
        "splits": splits,
        "ignore": p.ignore_index,
        "K": slots,
        "BN": 32,
        "BS": power_of_two(splits, 1, 64),
    }
    launch(statistics_merge_kernel, (blocks(rows, 32),), arguments)
    return rest, own, rival, mean, top, shares


class Backward(reference.Backward):
    """The gradients of one problem; slabs are computed by tiles if these are supported."""

    def __init__(self, problem: Problem, saved: tuple[Tensor, ...], slopes: Any, wants: Any) -> None:
        self.by_tiles = on_matrix_units(problem) and saved[0].numel() == 0 and not wants[3]
        super().__init__(problem, saved, slopes, wants)
        self.tiled = problem._replace(input=self.input)
        self.unit = self.unit_of_float16() if problem.input.dtype == torch.float16 else None

    def unit_of_float16(self) -> Tensor:
        """A power of two, on the device, by which the largest possible gradient of a logit becomes about 2^14.

        float16 ends at 65,504 and is 0 below 6e-8, as the gradient of a mean over many rows and classes often is.
        """
        p, (d_rest, d_own, _, d_mean) = self.problem, self.slopes
        smooth = d_mean is not None and p.mean_weight is not None
        arguments = {
            "d_rest": d_rest,
            "d_own": d_own,
            "d_mean": d_mean if smooth else None,
            "share": p.mean_weight.abs().amax() if smooth else None,  # type: ignore[union-attr]
            "row_scale": self.row_scale,
            "column_scale": None if self.column_scale is None else self.column_scale.amax(),
            "unit": d_rest.new_empty(()),
            "N": d_rest.shape[0],
            "scale": p.scale,
            "K": d_own.shape[1],
            "BN": 1024,
        }
        launch(gradient_unit_kernel, (1,), arguments)
        return arguments["unit"]

    def operand(self, rows: Tensor) -> Tensor:
        """In the dtype of the features: a GPU multiplies float16 without a cast."""
        kind = self.problem.input.dtype
        return operand(rows, kind) if self.by_tiles else rows.to(kind)

    def slab(self, rows: slice, classes: slice) -> Tensor:
        """The gradient of the block's raw product, times `unit`; in the dtype of the features."""
        if not self.by_tiles:
            d_logits = super().slab(rows, classes)
            return d_logits if self.unit is None else (d_logits * self.unit).to(torch.float16)
        p = self.tiled
        tile = tile_for(p, gradient=True)
        arguments = _shared(p, tile, self.weight, rows, classes)
        high, width = blocks(arguments["N"], tile.rows), blocks(arguments["C"], tile.classes)
        out = padded(arguments["N"], width * tile.classes, p.input)
        d_rest, d_own, _, d_mean = (_part(slope, rows) for slope in self.slopes)
        arguments |= {
            "row_scale": _part(self.row_scale, rows),
            "column_scale": _part(self.column_scale, classes),
            "rest": _part(self.rest, rows),
            "top": _part(self.top, rows),
            "d_rest": d_rest,
            "d_own": d_own,
            "d_mean": None if p.mean_weight is None else d_mean,
            "unit": self.unit,
            "out": out,
            "out_stride": out.stride(0),
            "scale": p.scale,
        }
        launch(slab_gradient_kernel, (high * width,), arguments, warps=tile.warps, stages=tile.stages)
        return out[:, : arguments["C"]]

    def column_sum(self, d_logits: Tensor) -> Tensor:
        """The gradient of the bias from a block."""
        found = super().column_sum(d_logits)
        return found if self.unit is None else found / self.unit

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
        """As in the reference; in the interpreter with a cast, as a CPU has no float16 products with float32 sums."""
        if right.shape[1] > total.shape[1]:  # an operand with zeros at the end
            right = right[:, : total.shape[1]]
        if left.is_cpu and total.dtype != left.dtype:
            left, right = left.to(total.dtype), right.to(total.dtype)
        super().add_product(total, left, right, first)

    def finish(self, total: Tensor, rows: Tensor, scale: Tensor | None, final: Tensor) -> None:
        """Project the gradient to be orthogonal to the rows that were normalised, in one pass over it."""
        if scale is None and self.unit is None:
            super().finish(total, rows, scale, final)
        else:
            project(total, rows, scale, self.unit, final)


def linear_backward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results of the reference: the gradients of the statistics."""
    shared, rest = inputs[: len(Problem._fields)], inputs[len(Problem._fields) :]
    return Backward(dense(Problem(*shared)), rest[:5], rest[5:9], rest[9]).run()

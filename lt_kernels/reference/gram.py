"""Logit-weight repulsion in additive form, by slabs of rows: the definition (docs/math.md, section 6).

With s_ij the cosines of the class weights, Z_i = C - 1 + e + sum of expm1(s_ij) over the active pairs (j != i and
s_ij > threshold), and R_i = log Z_i - 1. For thresholds of 1 and more no pair is active, not even the diagonal:
Z_i = C and R_i = log C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lt_kernels.core.numbers import add_rows, inverse_norm
from lt_kernels.core.targets import check_places

TILE = 1024  # classes of a tile of cosines, along both sides
PAIRS = 48  # active pairs per class that the list has room for; the tiles of others are computed again
FEWEST = 256  # pairs that a tile may have after the screening, whatever its size
_SLAB = 2**22  # cosines held at a time
_GATHERED = 2**24  # numbers of class weights gathered at a time


def base(classes: int, threshold: float) -> float:
    """Z of a class without active pairs: the diagonal is exactly 1, and active if the threshold is below 1."""
    return classes - 1 + math.e if threshold < 1 else float(classes)


def finish(total: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """Z from the sums of expm1 in float64; NaN for a class whose weight is not finite."""
    return (total + base(total.shape[0], threshold) + 0 * scale).to(scale.dtype)


def empty_pairs(scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An empty list of active pairs: first, second (int32) and cosine [PAIRS * C], and their number [1]."""
    room = PAIRS * scale.shape[0]
    first, second = (torch.zeros(room, dtype=torch.int32, device=scale.device) for _ in range(2))
    return first, second, scale.new_zeros(room), scale.new_zeros(1, dtype=torch.int64)


def tiles(classes: int) -> int:
    """How many tiles there are along one side of the cosines."""
    return -(-classes // TILE)


def slabs(unit: Tensor, threshold: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slabs of rows, with their cosines with all classes, and which of these are active."""
    classes = unit.shape[0]
    height = max(1, _SLAB // classes)
    column = torch.arange(classes, device=unit.device)
    for start in range(0, classes, height):
        rows = slice(start, min(start + height, classes))
        cosine = unit[rows] @ unit.T
        yield rows, cosine, (cosine > threshold) & (column != column[rows, None])


def gram_forward(weight: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """(Z [C], 1 / |w| [C], first, second, cosine and number of the active pairs, which tiles are not listed)."""
    scale = inverse_norm(weight)
    total = torch.zeros_like(scale, dtype=torch.float64)
    if threshold < 1:
        unit = weight.to(scale.dtype) * scale[:, None]
        with torch.autocast(weight.device.type, enabled=False):
            for rows, cosine, active in slabs(unit, threshold):
                total[rows] = torch.where(active, cosine.expm1(), 0.0).sum(1, dtype=torch.float64)
    side = tiles(weight.shape[0])
    dense = torch.full((side, side), threshold < 1, device=weight.device)
    return finish(total, scale, threshold), scale, *empty_pairs(scale), dense


def diagonal(total: Tensor, grad: Tensor, threshold: float, project: bool) -> Tensor:
    """The part of own_i [C] in `gram_pairs` that s_ii = |w_i|^2 / constant adds; 0 with `project`."""
    return torch.zeros_like(grad) if project or threshold >= 1 else 2 * (math.e / total - 1) * grad


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
) -> Tensor:
    """The gradient of sum_i grad_i R_i for the weight [C, d]; computes all cosines again."""
    own, slope = diagonal(total, grad, threshold, project), grad / total
    if threshold >= 1:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    unit = weight.to(scale.dtype) * scale[:, None]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    with torch.autocast(weight.device.type, enabled=False):
        for rows, cosine, active in slabs(unit, threshold):
            push = torch.where(active, cosine.exp() * (slope[rows, None] + slope), 0.0)
            pushed, line = push @ unit, unit[rows]
            # The projection also removes the rounding error along the row, which is largest for many similar rows.
            along = -(pushed * line).sum(1) if project else own[rows]
            d_weight[rows] = (scale[rows, None] * (pushed + along[:, None] * line)).to(weight.dtype)
    return d_weight


def gram_units(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows, rounded to steps of 1/127 of their largest entry.

    Returns 1 / |w| [C], the rows in steps as int8 [C, d], the steps [C], and the lengths of the rounding errors [C].
    """
    scale = inverse_norm(weight)
    exact = torch.where((scale > 0)[:, None], weight.to(scale.dtype) * scale[:, None], 0.0)
    step = exact.abs().amax(1) / 127
    unit = torch.where((step > 0)[:, None], exact / step[:, None], 0.0).round()
    return scale, unit.to(torch.int8), step, torch.linalg.vector_norm(unit * step[:, None] - exact, dim=1)


def screening_bound(error: Tensor, other: Tensor, features: int) -> Tensor:
    """A bound on the difference between the product of two rounded unit rows and their cosine in float32."""
    return error + other + error * other + (features + 16) * 2.0**-23


def _upper(tile: Tensor, row: int, column: int) -> Tensor:
    """Which entries of a tile are pairs i < j; cosines are symmetric, so that each pair is taken once."""
    rows, columns = (torch.arange(size, device=tile.device) for size in tile.shape)
    return columns + column > rows[:, None] + row


def upper_tiles(classes: int, side: int = TILE) -> list[tuple[slice, slice]]:
    """The rows and the columns of the tiles on the diagonal and above it, row by row."""
    parts = [slice(start, min(start + side, classes)) for start in range(0, classes, side)]
    return [(rows, columns) for place, rows in enumerate(parts) for columns in parts[place:]]


def gram_screen(
    unit: Tensor, step: Tensor, error: Tensor, threshold: float, side: int, density: int, begin: int, end: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs i < j of the tiles [begin, end) that may be active, by products of unit rows in int8 (`gram_units`).

    Returns the first and second classes, tile by tile, and how many pairs each tile has [end - begin]: -1, and none of
    its pairs, if they are more than 256 and more than one in `density`.
    """
    kept, counts = [], []
    for rows, columns in upper_tiles(unit.shape[0], side)[begin:end]:
        product = unit[rows].double() @ unit[columns].double().T  # exact up to 2^39 features
        limit = threshold - screening_bound(error[rows, None], error[columns], unit.shape[1])
        passed = product.float() * step[rows, None] * step[columns] >= limit
        pairs = (passed & _upper(product, rows.start, columns.start)).nonzero()
        fits = len(pairs) <= max(FEWEST, product.numel() // density)
        counts.append(len(pairs) if fits else -1)
        if fits:
            kept.append(pairs + pairs.new_tensor((rows.start, columns.start)))
    first, second = (torch.cat(kept) if kept else step.new_empty(0, 2)).int().T
    return first.contiguous(), second.contiguous(), torch.tensor(counts, dtype=torch.int64, device=unit.device)


def _cosines(product: Tensor, scale: Tensor, row: int, column: int) -> Tensor:
    return product * scale[row : row + product.shape[0], None] * scale[column : column + product.shape[1]]


def gram_tile(
    product: Tensor, scale: Tensor, threshold: float, row: int, column: int, capacity: int
) -> tuple[Tensor, ...]:
    """The active pairs i < j of a tile of w_i . w_j.

    Returns the sums of expm1 of their cosines for each row and each column, in float64; first, second and cosine
    [capacity], if they fit; and their number [1].
    """
    cosine = _cosines(product, scale, row, column)
    return _found(cosine, (cosine > threshold) & _upper(product, row, column), row, column, capacity)


def _found(cosine: Tensor, active: Tensor, row: int, column: int, capacity: int) -> tuple[Tensor, ...]:
    part = torch.where(active, cosine.expm1(), 0.0)
    sums = part.sum(1, dtype=torch.float64), part.sum(0, dtype=torch.float64)
    first, second = active.nonzero(as_tuple=True)
    lists = [torch.zeros(capacity, dtype=torch.int32, device=cosine.device) for _ in range(2)]
    lists.append(cosine.new_zeros(capacity))
    count = torch.full((1,), first.numel(), device=cosine.device)
    if first.numel() <= capacity:
        for place, value in zip(lists, (first + row, second + column, cosine[first, second]), strict=True):
            place[: first.numel()] = value
    return *sums, *lists, count


def gram_coefficients(
    product: Tensor, scale: Tensor, slope: Tensor, threshold: float, row: int, column: int
) -> tuple[Tensor, Tensor, Tensor]:
    """c_ij = e^s (slope_i + slope_j) of the active pairs i < j of a tile, times both scales; and the sums of c_ij s_ij.

    The sums are for each row and each column, in float64.
    """
    cosine = _cosines(product, scale, row, column)
    active = (cosine > threshold) & _upper(product, row, column)
    pair = slope[row : row + product.shape[0], None] + slope[column : column + product.shape[1]]
    push = torch.where(active, cosine.exp() * pair, 0.0)
    pull = torch.where(active, push * cosine, 0.0)
    return _cosines(push, scale, row, column), pull.sum(1, dtype=torch.float64), pull.sum(0, dtype=torch.float64)


def gram_pairs(
    weight: Tensor,
    scale: Tensor,
    slope: Tensor,
    own: Tensor,
    first: Tensor,
    second: Tensor,
    value: Tensor,
    count: Tensor,
    project: bool,
    wide: bool,
) -> Tensor:
    """Rows own_i w_i / |w_i|^2 + sum over the listed pairs of c_ij w_j / (|w_i| |w_j|).

    With `project` the sum is projected to be orthogonal to w_i. The result has the dtype of the weight or, with `wide`,
    that of the arithmetic.
    """
    room, classes = first.numel(), weight.shape[0]
    check_places("count", count, room + 1)
    listed = slice(0, int(count))
    for name, place in (("first", first), ("second", second)):
        check_places(name, place[listed], classes)
    first, second, value = first[listed].long(), second[listed].long(), value[listed]
    push = value.exp() * (slope[first] + slope[second])
    return pushed(weight, scale, own, first, second, push, value, project, wide)


def pushed(
    weight: Tensor,
    scale: Tensor,
    own: Tensor,
    first: Tensor,
    second: Tensor,
    push: Tensor,
    value: Tensor,
    project: bool,
    wide: bool,
) -> Tensor:
    """The result of `gram_pairs` from c_ij and cos_ij of valid pairs, some of them at a time."""
    own, some = own.clone(), max(1, _GATHERED // max(weight.shape[1], 1))
    d_unit = torch.zeros_like(weight, dtype=scale.dtype, memory_format=torch.contiguous_format)
    for here, there in ((first, second), (second, first)):
        if project:
            add_rows(own, here, -push * value)
        factor = push * scale[there]
        for start in range(0, first.numel(), some):
            part = slice(start, start + some)
            add_rows(d_unit, here[part], factor[part, None] * weight[there[part]].to(scale.dtype))
    d_weight = scale[:, None] * (d_unit + (own * scale)[:, None] * weight.to(scale.dtype))
    return d_weight if wide else d_weight.to(weight.dtype)


def gram_listed(weight: Tensor, scale: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The cosines of listed pairs, some at a time, so that no more memory is used than for a slab of cosines."""
    for name, place in (("first", first), ("second", second)):
        check_places(name, place, weight.shape[0])
    value, some = scale.new_empty(first.numel()), max(1, _SLAB // max(weight.shape[1], 1))
    for start in range(0, first.numel(), some):
        part = slice(start, start + some)
        left, right = (weight[index[part].long()].to(scale.dtype) for index in (first, second))
        value[part] = (left * right).sum(1) * scale[first[part].long()] * scale[second[part].long()]
    return value

"""Logit-weight repulsion in additive form, by slabs of rows: the definition (docs/math.md, section 6).

With s_ij the cosines of the class weights, Z_i = C - 1 + e + sum of expm1(s_ij) over the active pairs (j != i and
s_ij > threshold), and R_i = log Z_i - 1. For thresholds of 1 and more no pair is active, not even the diagonal:
Z_i = C and R_i = log C.

The raw form has r_ij = w_i . w_j in the place of s_ij, but the same active pairs. These products have no bound, so its
sums are of exp(r_ij - t_i), with t_i the largest term of the row, and its results are R_i instead of Z_i.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lt_kernels.core.numbers import accumulate_type, add_rows, inverse_norm
from lt_kernels.core.targets import check_places

TILE = 1024  # classes of a tile of cosines, along both sides
PAIRS = 48  # active pairs per class that the list has room for; the tiles of others are computed again
_SLAB = 2**22  # cosines held at a time
_GATHERED = 2**24  # numbers of class weights gathered at a time


def base(classes: int, threshold: float) -> float:
    """Z of a class without active pairs: the diagonal is exactly 1, and active if the threshold is below 1."""
    return classes - 1 + math.e if threshold < 1 else float(classes)


def finish(total: Tensor, scale: Tensor, threshold: float, classes: int | None = None) -> Tensor:
    """Z from the sums of expm1 in float64; NaN for a class whose weight is not finite. `classes`: if these are some."""
    return (total + base(total.shape[0] if classes is None else classes, threshold) + 0 * scale).to(scale.dtype)


def squares(weight: Tensor) -> Tensor:
    """r_ii = |w_i|^2 [C], in the dtype of the arithmetic."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=accumulate_type(weight.dtype)).square()


def finish_raw(
    total: Tensor, top: Tensor, square: Tensor, scale: Tensor, threshold: float, classes: int | None = None
) -> Tensor:
    """R of the raw form from the sums of e^(r_ij - t_i) - e^-t_i over the active pairs, in float64; t is `top`."""
    classes = scale.shape[0] if classes is None else classes
    if threshold >= 1:
        return torch.full_like(scale, math.log(classes)) + 0 * scale
    above = top.double() - square
    rest = total + (classes - 1) * (-top.double()).exp() + (-above).expm1()
    return (above + rest.log1p() + 0 * scale).to(scale.dtype)


def empty_pairs(scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An empty list of active pairs: first, second (int32) and cosine [PAIRS * C], and their number [1]."""
    room = PAIRS * scale.shape[0]
    first, second = (torch.zeros(room, dtype=torch.int32, device=scale.device) for _ in range(2))
    return first, second, scale.new_zeros(room), scale.new_zeros(1, dtype=torch.int64)


def tiles(classes: int) -> int:
    """How many tiles there are along one side of the cosines."""
    return -(-classes // TILE)


def slabs(unit: Tensor, threshold: float, scale: Tensor | None = None) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Slabs of rows, with their cosines with all classes, and which of these are active.

    With `scale`, 1 / |w_i|, the rows are no unit rows, and their products are given instead of the cosines.
    """
    classes = unit.shape[0]
    height = max(1, _SLAB // classes)
    column = torch.arange(classes, device=unit.device)
    for start in range(0, classes, height):
        rows = slice(start, min(start + height, classes))
        value = unit[rows] @ unit.T
        cosine = value if scale is None else value * scale[rows, None] * scale
        yield rows, value, (cosine > threshold) & (column != column[rows, None])


def gram_forward(weight: Tensor, threshold: float, raw: bool = False) -> tuple[Tensor, ...]:
    """(Z [C], 1 / |w| [C], first, second, cosine and number of the active pairs, which tiles are not listed).

    With `raw`: R in the place of Z, products in the place of cosines.
    """
    scale = inverse_norm(weight)
    total = torch.zeros_like(scale, dtype=torch.float64)
    square = top = squares(weight)
    if threshold < 1:
        wide = weight.to(scale.dtype)
        rows_of = slabs(wide, threshold, scale) if raw else slabs(wide * scale[:, None], threshold)
        with torch.autocast(weight.device.type, enabled=False):
            tops = []
            for rows, value, active in rows_of:
                if raw:
                    tops.append(torch.where(active, value, 0.0).amax(1).maximum(square[rows]))
                    value = (value - tops[-1][:, None]).exp() - (-tops[-1]).exp()[:, None]
                part = value if raw else value.expm1()
                total[rows] = torch.where(active, part, 0.0).sum(1, dtype=torch.float64)
            top = torch.cat(tops) if raw else top
    side = tiles(weight.shape[0])
    dense = torch.full((side, side), threshold < 1, device=weight.device)
    result = finish_raw(total, top, square, scale, threshold) if raw else finish(total, scale, threshold)
    return result, scale, *empty_pairs(scale), dense


def diagonal(total: Tensor, grad: Tensor, threshold: float, project: bool, raw: bool = False) -> Tensor:
    """The part of own_i [C] in `gram_pairs` that s_ii = |w_i|^2 / constant adds, or r_ii; 0 with `project`."""
    if project or threshold >= 1:
        return torch.zeros_like(grad)
    return 2 * (torch.expm1(-total) if raw else math.e / total - 1) * grad


def slopes(
    weight: Tensor, total: Tensor, grad: Tensor, threshold: float, project: bool, raw: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(own, slope, shift) of `gram_pairs`, from the results of the forward pass and the gradient of R."""
    own = diagonal(total, grad, threshold, project, raw)
    return (own, grad, squares(weight) + total) if raw else (own, grad / total, None)


def coefficients(value: Tensor, slope: Tensor, other: Tensor, shift: tuple[Tensor, Tensor] | None) -> Tensor:
    """c_ij = e^s (slope_i + slope_j) of cosines s; with the shifts of i and j slope_i e^(r - shift_i) and that of j."""
    if shift is None:
        return value.exp() * (slope + other)
    return slope * (value - shift[0]).exp() + other * (value - shift[1]).exp()


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
    """The gradient of sum_i grad_i R_i for the weight [C, d]; computes all cosines again."""
    own, slope, shift = slopes(weight, total, grad, threshold, project, raw)
    if threshold >= 1:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    if raw:
        scale, gate = torch.ones_like(scale), scale
    wide = weight.to(scale.dtype) * scale[:, None]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    with torch.autocast(weight.device.type, enabled=False):
        for rows, value, active in slabs(wide, threshold, gate if raw else None):
            shifts = None if shift is None else (shift[rows, None], shift)
            push = torch.where(active, coefficients(value, slope[rows, None], slope, shifts), 0.0)
            pushed, line = push @ wide, wide[rows]
            # The projection also removes the rounding error along the row, which is largest for many similar rows.
            along = -(pushed * line).sum(1) if project else own[rows]
            d_weight[rows] = (scale[rows, None] * (pushed + along[:, None] * line)).to(weight.dtype)
    return d_weight


def upper(tile: Tensor, row: int, column: int) -> Tensor:
    """Which entries of a tile are pairs i < j; cosines are symmetric, so that each pair is taken once."""
    rows, columns = (torch.arange(size, device=tile.device) for size in tile.shape)
    return columns + column > rows[:, None] + row


def _cosines(product: Tensor, scale: Tensor, row: int, column: int) -> Tensor:
    return product * scale[row : row + product.shape[0], None] * scale[column : column + product.shape[1]]


def gram_tile(
    product: Tensor,
    scale: Tensor,
    threshold: float,
    row: int,
    column: int,
    capacity: int,
    shift: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The active pairs i < j of a tile of w_i . w_j.

    Returns the sums of expm1 of their cosines for each row and each column, in float64; first, second and cosine
    [capacity], if they fit; and their number [1]. With `shift` [C] the sums are of e^(product - shift) - e^-shift, and
    products are listed.
    """
    cosine = _cosines(product, scale, row, column)
    active = (cosine > threshold) & upper(product, row, column)
    if shift is None:
        across = down = torch.where(active, cosine.expm1(), 0.0)
        return _found(cosine, across, down, active, row, column, capacity)
    left, top = shift[row : row + product.shape[0], None], shift[column : column + product.shape[1]]
    across, down = (torch.where(active, (product - one).exp() - (-one).exp(), 0.0) for one in (left, top))
    return _found(product, across, down, active, row, column, capacity)


def _found(
    value: Tensor, across: Tensor, down: Tensor, active: Tensor, row: int, column: int, capacity: int
) -> tuple[Tensor, ...]:
    sums = across.sum(1, dtype=torch.float64), down.sum(0, dtype=torch.float64)
    first, second = active.nonzero(as_tuple=True)
    lists = [torch.zeros(capacity, dtype=torch.int32, device=value.device) for _ in range(2)]
    lists.append(value.new_zeros(capacity))
    count = torch.full((1,), first.numel(), device=value.device)
    if first.numel() <= capacity:
        for place, found in zip(lists, (first + row, second + column, value[first, second]), strict=True):
            place[: first.numel()] = found
    return *sums, *lists, count


def gram_coefficients(
    product: Tensor,
    scale: Tensor,
    slope: Tensor,
    threshold: float,
    row: int,
    column: int,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """c_ij (`coefficients`) of the active pairs i < j of a tile, times both scales; and the sums of c_ij s_ij.

    The sums are for each row and each column, in float64. With `shift` there are no scales, and r_ij in place of s_ij.
    """
    cosine = _cosines(product, scale, row, column)
    active = (cosine > threshold) & upper(product, row, column)
    value = cosine if shift is None else product
    rows, columns = slice(row, row + product.shape[0]), slice(column, column + product.shape[1])
    shifts = None if shift is None else (shift[rows, None], shift[columns])
    push = torch.where(active, coefficients(value, slope[rows, None], slope[columns], shifts), 0.0)
    pull = torch.where(active, push * value, 0.0)
    factor = _cosines(push, scale, row, column) if shift is None else push
    return factor, pull.sum(1, dtype=torch.float64), pull.sum(0, dtype=torch.float64)


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
    shift: Tensor | None = None,
) -> Tensor:
    """Rows own_i w_i / |w_i|^2 + sum over the listed pairs of c_ij w_j / (|w_i| |w_j|).

    With `project` the sum is projected to be orthogonal to w_i. With `shift`, of the raw form, nothing is divided by
    norms. The result has the dtype of the weight or, with `wide`, that of the arithmetic.
    """
    room, classes = first.numel(), weight.shape[0]
    check_places("count", count, room + 1)
    listed = slice(0, int(count))
    for name, place in (("first", first), ("second", second)):
        check_places(name, place[listed], classes)
    first, second, value = first[listed].long(), second[listed].long(), value[listed]
    shifts = None if shift is None else (shift[first], shift[second])
    push = coefficients(value, slope[first], slope[second], shifts)
    scale = scale if shift is None else torch.ones_like(scale)
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

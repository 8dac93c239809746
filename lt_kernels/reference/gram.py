"""Logit-weight repulsion in additive form, by slabs of rows: the definition (docs/math.md, section 6).

With s_ij the cosines of the class weights, Z_i = C - 1 + e + sum of expm1(s_ij) over the active pairs (j != i and
s_ij > threshold), and R_i = log Z_i - 1. From threshold 1 on nothing is active, not even the diagonal: Z_i = C, R_i = log C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lt_kernels.reference.rows import accumulate_type

TILE = 1024  # classes of a tile of cosines, along both sides
PAIRS = 32  # active pairs a class for which the backward pass has room; the tiles of further ones are made again
_SLAB = 2**22  # cosines held at a time


def inverse_norm(rows: Tensor) -> Tensor:
    """1 / |row|; 0 for a row shorter than 1e-12, which has no direction; NaN for one that is not finite."""
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=accumulate_type(rows.dtype))
    scale = torch.where(norm <= 1e-12, 0.0, 1 / norm.clamp_min(1e-12))
    return torch.where(norm.isfinite(), scale, torch.nan)


def base(classes: int, threshold: float) -> float:
    """Z of a class without active pairs: the diagonal is exactly 1, and active if the threshold is below 1."""
    return classes - 1 + math.e if threshold < 1 else float(classes)


def finish(total: Tensor, scale: Tensor, threshold: float) -> Tensor:
    """Z from the sums of expm1 in float64; NaN for a class whose weight is not finite."""
    return (total + base(total.shape[0], threshold) + 0 * scale).to(scale.dtype)


def empty_pairs(scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the active pairs: first, second (int32) and cosine [PAIRS * C], and how many there are [1]."""
    places = torch.zeros(2, PAIRS * scale.shape[0], dtype=torch.int32, device=scale.device)
    return places[0].clone(), places[1].clone(), scale.new_zeros(places.shape[1]), scale.new_zeros(1, dtype=torch.int64)


def tiles(classes: int) -> int:
    """How many tiles the classes make along a side."""
    return -(-classes // TILE)


def _slabs(unit: Tensor, threshold: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their cosines with all classes, and which of them are active."""
    classes = unit.shape[0]
    height = max(1, _SLAB // classes)
    column = torch.arange(classes, device=unit.device)
    for start in range(0, classes, height):
        rows = slice(start, min(start + height, classes))
        cosine = unit[rows] @ unit.T
        yield rows, cosine, (cosine > threshold) & (column != column[rows, None])


def gram_forward(weight: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """(Z [C], 1 / |w| [C], first, second, cosine and number of the active pairs, which tiles have no list)."""
    scale = inverse_norm(weight)
    total = torch.zeros_like(scale, dtype=torch.float64)
    if threshold < 1:
        unit = weight.to(scale.dtype) * scale[:, None]
        with torch.autocast(weight.device.type, enabled=False):
            for rows, cosine, active in _slabs(unit, threshold):
                total[rows] = torch.where(active, cosine.expm1(), 0.0).sum(1, dtype=torch.float64)
    side = tiles(weight.shape[0])
    dense = torch.full((side, side), threshold < 1, device=weight.device)
    return finish(total, scale, threshold), scale, *empty_pairs(scale), dense


def diagonal(total: Tensor, grad: Tensor, threshold: float, project: bool) -> Tensor:
    """What s_ii, taken as |w_i|^2 over a constant, adds to the factor of w_i / |w_i|^2 [C]; nothing with `project`."""
    return torch.zeros_like(grad) if project or threshold >= 1 else 2 * (math.e / total - 1) * grad


def gram_backward(
    weight: Tensor, threshold: float, project: bool, scale: Tensor, total: Tensor, first: Tensor, second: Tensor,
    value: Tensor, count: Tensor, dense: Tensor, grad: Tensor,
) -> Tensor:
    """The gradient of sum_i grad_i R_i for the weight [C, d]; makes all cosines again."""
    own, slope = diagonal(total, grad, threshold, project), grad / total
    if threshold >= 1:
        return torch.zeros_like(weight, memory_format=torch.contiguous_format)
    unit = weight.to(scale.dtype) * scale[:, None]
    d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    with torch.autocast(weight.device.type, enabled=False):
        for rows, cosine, active in _slabs(unit, threshold):
            push = torch.where(active, cosine.exp() * (slope[rows, None] + slope), 0.0)
            along = own[rows] - (push * cosine).sum(1) if project else own[rows]
            d_weight[rows] = (scale[rows, None] * (push @ unit + along[:, None] * unit[rows])).to(weight.dtype)
    return d_weight

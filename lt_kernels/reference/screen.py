"""Logit-weight repulsion: which pairs may be active, by products of unit rows in int8 (docs/math.md, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_kernels.core.numbers import inverse_norm
from lt_kernels.reference.gram import TILE, upper

FEWEST = 256  # pairs that a tile may have after the screening, whatever its size


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
        pairs = (passed & upper(product, rows.start, columns.start)).nonzero()
        fits = len(pairs) <= max(FEWEST, product.numel() // density)
        counts.append(len(pairs) if fits else -1)
        if fits:
            kept.append(pairs + pairs.new_tensor((rows.start, columns.start)))
    first, second = (torch.cat(kept) if kept else step.new_empty(0, 2)).int().T
    return first.contiguous(), second.contiguous(), torch.tensor(counts, dtype=torch.int64, device=unit.device)

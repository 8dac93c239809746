"""Rows that will be normalised: scaled so that no norm overflows, and with a rule for rows of norm 0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.core.numbers import accumulate_type
from lt_kernels.ops.backends import library
from lt_kernels.ops.calling import watched
from lt_kernels.reference.linear import project_rows

# Of rows with an entry beyond the first number, the product with the second: squares, their sums and products of two
# such rows are finite, and none becomes so short that it has no direction.
_RANGE = {torch.float64: (2.0**490, 2.0**-520)} | dict.fromkeys((torch.float32, torch.bfloat16), (2.0**44, 2.0**-76))


def most(dtype: torch.dtype) -> float:
    """The largest norm of rows that need no scaling."""
    return _RANGE[dtype][0]


def in_range(rows: Tensor, always: bool = False) -> Tensor:
    """Rows [N, d] of which only the direction counts, those divided by a power of two whose norm may overflow.

    Where values are not read (on a GPU, under a compiler) the rows stay as they are, unless `always`. float16 does not
    need it: its norms and products are float32.
    """
    looks = rows.is_cpu and type(rows) in (Tensor, torch.nn.Parameter) and not watched()
    if rows.dtype not in _RANGE or rows.ndim != 2 or rows.shape[1] == 0 or not (looks or always):
        return rows
    most, factor = _RANGE[rows.dtype]
    if looks and float(torch.linalg.vector_norm(rows.detach(), dtype=accumulate_type(rows.dtype))) <= most:
        return rows  # the norm of all rows bounds their largest entry
    top = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, keepdim=True)
    return rows * torch.where(top > most, torch.full_like(top, factor), 1.0)


def narrowed(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows [N, d] of which only the direction counts, as autocast asks; none overflows float16 on the way."""
    if dtype == torch.float16 and rows.shape[1]:
        top = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, keepdim=True)
        rows = rows * torch.exp2((8 - torch.frexp(top).exponent).clamp_max(0).to(rows.dtype))  # exact
    return rows.to(dtype)


def unit(rows: Tensor) -> Tensor:
    """Rows of norm 1; a row of norm 0 stays 0 and gets no gradient."""
    rows = in_range(rows, always=True)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=accumulate_type(rows.dtype))
    return (rows / norm.masked_fill(norm <= 1e-12, torch.inf)).to(rows.dtype)


def project(gradient: Tensor, rows: Tensor, scale: Tensor) -> None:
    """Take from each row of `gradient` (ours, in place) its part along `rows`, which `scale` makes to unit ones."""
    dense = gradient.is_contiguous() and rows.is_contiguous() and scale.is_contiguous()
    alike = gradient.dtype == rows.dtype == scale.dtype and gradient.dtype in (torch.float32, torch.float64)
    if library.built() and dense and alike and gradient.is_cpu:
        library.project(gradient, rows, scale)
    else:
        project_rows(gradient, rows, scale)


def cosines(features: Tensor, linear_weight: Tensor) -> Tensor:
    """cos(x_i, w_c) [N, C], 0 for a row of norm 0; differentiable as often as one likes."""
    return F.linear(unit(checks.stored("features", features)), unit(checks.stored("weight", linear_weight)))

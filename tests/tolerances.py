"""The one table of tolerances, and the measure of an error that it applies to."""

from __future__ import annotations

import torch
from torch import Tensor

# Units in the last place of each dtype: 4,500 of float64 (sums over some thousand terms, taken in another order),
# 16 of float32, one of each half precision (the result itself has to be rounded).
TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}

# Below this size a whole tensor counts as zero: what remains there is the rounding of terms of size one that cancel.
NEGLIGIBLE = 1e-2


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest absolute difference in units of the largest exact entry; infinite when shapes or infinities differ."""
    if actual.shape != exact.shape:
        return float("inf")
    if exact.numel() == 0:
        return 0.0
    actual, exact = actual.detach().double(), exact.detach().double()
    same = (actual == exact) | (actual.isnan() & exact.isnan())
    difference = torch.where(same, 0.0, actual - exact).abs()
    if not difference.isfinite().all():
        return float("inf")
    finite = exact[exact.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return difference.max().item() / max(largest, NEGLIGIBLE)


def assert_close(actual: Tensor, exact: Tensor, dtype: torch.dtype | None = None, name: str = "value") -> None:
    """Fail unless `actual` agrees with `exact` to the table's tolerance for `dtype` (by default that of `actual`)."""
    tolerance = TOLERANCE[dtype or actual.dtype]
    measured = error(actual, exact)
    assert measured <= tolerance, f"{name}: error {measured:.3e} above {tolerance:.0e}\nours  {actual}\nexact {exact}"

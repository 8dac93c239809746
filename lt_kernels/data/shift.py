"""Test sets whose classes are distributed otherwise than in training: shifted forward (with the tail) and backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lt_kernels.core import checks
from lt_kernels.data.base import LongTailedData
from lt_kernels.data.profiles import choose

Direction = Literal["forward", "backward"]
DIRECTIONS = ("forward", "backward")
RATIOS = (50, 25, 10, 5, 2)


@dataclass(frozen=True, eq=False)
class ShiftedTest:
    """One shifted test set: `rows` int64 [M], ascending, of the balanced one, and `counts` int64 [C], how many of each
    class these are. imbalance 1 is the balanced set itself.
    """

    direction: Direction
    imbalance: float
    rows: Tensor
    counts: Tensor

    @property
    def name(self) -> str:
        """Such as `forward 50`; `uniform` for imbalance 1."""
        return "uniform" if self.imbalance == 1 else f"{self.direction} {self.imbalance:g}"


def by_frequency(class_counts: Any) -> Tensor:
    """Return the classes by descending training count, int64 [C]; of equally frequent ones the last comes first."""
    return torch.argsort(checks.counts(class_counts), stable=True).flip(0)


def shifted_counts(class_counts: Any, most: int, imbalance: float, direction: Direction = "forward") -> Tensor:
    """Return how many test samples each class keeps, int64 [C] (Hong et al., 2021, section 4.3).

    int(most * (1 / imbalance)^(rank / (C - 1))), with rank 0 for the class most frequent in training ("forward") or for
    the rarest ("backward"); ranks as in `by_frequency`. class_counts: [C], training samples of each class. Errors:
    TypeError or ValueError naming the argument.
    """
    checks.choice("direction", direction, DIRECTIONS)
    imbalance = checks.number("imbalance", imbalance, 1.0)
    most, order = checks.whole("most", most), by_frequency(class_counts)
    last = max(len(order) - 1, 1)
    # in the published order of operations: one rounding elsewhere moves some counts by one
    kept = [int(most * (1 / imbalance) ** (rank / last)) for rank in range(len(order))]
    ranked = torch.tensor(kept if direction == "forward" else kept[::-1])
    return torch.empty_like(ranked).index_copy(0, order, ranked)


def shifted_tests(data: LongTailedData, most: int | None = None) -> list[ShiftedTest]:
    """Return the eleven test sets of Hong et al. (2021): forward 50, 25, 10, 5, 2, uniform, backward 2, 5, 10, 25, 50.

    Each keeps the first samples of each class. most: samples of the largest class (None: as many as the class with the
    fewest test samples has). Errors: ValueError if `data` has other targets than one class a sample, or a class has
    fewer test samples than `most`.
    """
    target = data.test[1]
    if target.ndim != 1:
        raise ValueError(f"data must have one class a sample, got targets of shape {list(target.shape)}")
    available = int(torch.bincount(target, minlength=data.num_classes).min())
    if most is not None and not 1 <= most <= available:
        raise ValueError(f"most must be in 1..{available}, the test samples of the class with the fewest, got {most}")
    forward = [_shifted(data, most or available, ratio, "forward") for ratio in (*RATIOS, 1)]
    return forward + [_shifted(data, most or available, ratio, "backward") for ratio in reversed(RATIOS)]


def _shifted(data: LongTailedData, most: int, imbalance: float, direction: Direction) -> ShiftedTest:
    counts = shifted_counts(data.class_counts, most, imbalance, direction)
    return ShiftedTest(direction, imbalance, choose(data.test[1], counts.tolist()), counts)

"""The settings of a loss as one value, made by the public functions and read by every operator."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
PLAIN, ADDITIVE, ANGULAR, SPHERE = range(4)  # kinds of phi
NONE, WEIGHTED_MEAN, SUM, MEAN = range(4)  # reductions of the operators; MEAN divides by the number of rows that count
CODES = {"none": NONE, "mean": WEIGHTED_MEAN, "sum": SUM}


class Terms(NamedTuple):
    """What turns the statistics of a row into its loss; tables are float32 or float64, as the arithmetic is.

    The order is that of the operators' arguments.
    """

    offset: Tensor | None = None  # [1, C], [N, C], or [R, C] with offset_row
    offset_row: Tensor | None = None  # [N]: the table's row for each row, where that is not row 0 or the row itself
    mean_weight: Tensor | None = (
        None  # label smoothing: the share of each class, shaped as the offset; [1, C] without one
    )
    total: Tensor | None = None  # the sums of mean_weight's rows
    weight: Tensor | None = None  # [C]
    class_margin: Tensor | None = None  # [C]; else `margin` for every class
    class_smoothing: Tensor | None = None  # [C]; else `smoothing` for every class
    scale: float = 1.0
    kind: int = PLAIN
    margin: float = 0.0
    instance: float = 0.0
    guard: bool = False
    gamma: float = 0.0
    smoothing: float = 0.0
    ignore_index: int = -100


LOSS_FIELDS = slice(4, None)  # the fields that the loss of a row reads once its statistics are known


def loss_terms(*fields: object) -> Terms:
    """`Terms` from those fields alone."""
    return Terms(None, None, None, None, *fields)  # type: ignore[arg-type]

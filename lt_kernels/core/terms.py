"""The settings of a loss as one value, made by the public functions and read by every operator."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NamedTuple

from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


class Phi(IntEnum):
    """What a margin makes of the target's logit or cosine v: v, v - m, cos(arccos v + m), or SphereFace's steps.

    In ANGULAR_ALL m grows with the distance of every sample, in ANGULAR with that of the hard ones.
    """

    PLAIN, ADDITIVE, ANGULAR, SPHERE, ANGULAR_ALL = range(5)


class Reduce(IntEnum):
    """How the operators reduce the losses of the rows; MEAN divides by the number of rows that count."""

    NONE, WEIGHTED_MEAN, SUM, MEAN = range(4)


# As plain numbers: torch takes half a microsecond more for a member of an enumeration than for its number.
CODES = {"none": int(Reduce.NONE), "mean": int(Reduce.WEIGHTED_MEAN), "sum": int(Reduce.SUM)}


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
    sample_weight: Tensor | None = None  # [N]: a factor for all of a row's loss, z-loss included
    class_margin: Tensor | None = None  # [C]; else `margin` for every class. SphereFace: annealing, else `instance`
    class_smoothing: Tensor | None = None  # [C]; else `smoothing` for every class
    scale: float = 1.0
    kind: int = int(Phi.PLAIN)
    margin: float = 0.0
    instance: float = 0.0
    guard: bool = False
    gamma: float = 0.0
    smoothing: float = 0.0
    z_loss: float = 0.0  # times the squared log-sum-exp of the whole row
    ignore_index: int = -100


LOSS_FIELDS = slice(4, None)  # the fields that the loss of a row reads once its statistics are known


def loss_terms(*fields: object) -> Terms:
    """`Terms` from those fields alone."""
    return Terms(None, None, None, None, *fields)  # type: ignore[arg-type]

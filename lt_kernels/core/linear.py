"""The arguments of the linear operators: features, class weights, and the slabs that their logits are made in."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class Normalize(IntEnum):
    """Which norms divide the products of features and class weights: none, the class weights', or those of both."""

    NOTHING, CLASSES, BOTH = range(3)


class Problem(NamedTuple):
    """The inputs and settings that both passes share."""

    input: Tensor  # [N, d]
    weight: Tensor  # [C, d]
    bias: Tensor | None  # [C]
    target: Tensor  # [N, K]
    offset: Tensor | None  # [1, C], [N, C], or [R, C] with offset_row
    offset_row: Tensor | None  # [N]
    mean_weight: Tensor | None  # as offset
    scale: float
    normalize: int  # of `Normalize`
    start: int  # the index of the first class here among all `classes`
    classes: int
    ignore_index: int
    row_slab: int
    class_slab: int
    softcap: float = 0.0  # logits z become softcap tanh(z / softcap); 0 leaves them

    def class_slabs(self) -> Iterator[slice]:
        """Blocks of classes; the outer loop, so that each block of the weight gradient is written once."""
        return blocks(self.weight.shape[0], self.class_slab)

    def row_slabs(self) -> Iterator[slice]:
        """Blocks of rows; one empty block when there are no rows."""
        return blocks(max(self.input.shape[0], 1), self.row_slab)

    def tables(self, rows: slice, classes: slice) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The parts of offset, offset_row and mean_weight that belong to a block."""
        row = None if self.offset_row is None else self.offset_row[rows]
        return self.cut(self.offset, rows, classes), row, self.cut(self.mean_weight, rows, classes)

    def cut(self, table: Tensor | None, rows: slice, classes: slice) -> Tensor | None:
        """A table's columns for the classes, and its rows if it has one for each of ours."""
        if table is None:
            return None
        per_row = self.offset_row is None and table.shape[0] > 1
        first, last, _ = classes.indices(table.shape[1])
        if last - first == table.shape[1] and not per_row:
            return table
        return table[rows, classes] if per_row else table[:, classes]


def blocks(size: int, width: int) -> Iterator[slice]:
    """Slices of at most `width` that cover `size`."""
    return (slice(first, min(first + width, size)) for first in range(0, size, width))

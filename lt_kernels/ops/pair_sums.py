"""The row sums of logit-weight repulsion over active pairs, which come some at a time (docs/math.md, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from lt_kernels.core.numbers import add_rows
from lt_kernels.reference import gram as reference


class Sums:
    """The sums of expm1 of cosines. These are at most 1, so nothing is subtracted before the exponential.

    `factor` [C] is what the kernels that list pairs multiply a product by, for both of its classes.
    """

    def __init__(self, scale: Tensor) -> None:
        self.scale = self.factor = scale
        self.shift: Tensor | None = None
        self.total = torch.zeros_like(scale, dtype=torch.float64)

    def cosines(self, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """The cosines of listed pairs from their values."""
        return value

    def add(self, first: Tensor, second: Tensor, value: Tensor, there: Tensor | None = None) -> None:
        """Add active pairs; those that are not `there` count nothing."""
        part = value.double().expm1()
        part = part if there is None else torch.where(there, part, 0.0)
        for index in (first, second):
            add_rows(self.total, index, part)

    def look(self, product: Tensor, threshold: float, row: int, column: int) -> None:
        """See the products of a tile before its sums are computed with `shift`."""

    def result(self, threshold: float) -> Tensor:
        """What the forward pass returns first: Z [C]."""
        return reference.finish(self.total, self.scale, threshold)


class RawSums(Sums):
    """The sums of e^(r - shift) - e^-shift of products r, with `shift` the largest product of a row so far."""

    def __init__(self, scale: Tensor, weight: Tensor) -> None:
        super().__init__(scale)
        self.factor = torch.ones_like(scale)
        self.square = reference.squares(weight)
        self.shift: Tensor = self.square

    def cosines(self, value: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return value * self.scale[first] * self.scale[second]

    def _rise(self, top: Tensor) -> None:
        """Raise the shift to `top` where this is larger, and express the sums so far in terms of it."""
        top = self.shift.maximum(top)
        self.total *= (self.shift.double() - top.double()).exp()
        self.shift = top

    def add(self, first: Tensor, second: Tensor, value: Tensor, there: Tensor | None = None) -> None:
        shown = value if there is None else torch.where(there, value, 0.0)
        top = self.shift.clone()
        for index in (first, second):
            top.scatter_reduce_(0, index.long(), shown, "amax")
        self._rise(top)
        for index in (first, second):
            top = self.shift[index].double()
            part = (shown.double() - top).exp() - (-top).exp()  # exactly 0 for a value of 0
            add_rows(self.total, index, part)

    def look(self, product: Tensor, threshold: float, row: int, column: int) -> None:
        rows, columns = (slice(one, one + size) for one, size in zip((row, column), product.shape, strict=True))
        active = product * self.scale[rows, None] * self.scale[columns] > threshold
        shown = torch.where(active & reference.upper(product, row, column), product, 0.0)
        top = torch.zeros_like(self.square)
        top[rows] = shown.amax(1)
        top[columns] = top[columns].maximum(shown.amax(0))
        self._rise(top)

    def result(self, threshold: float) -> Tensor:
        """R [C]."""
        return reference.finish_raw(self.total, self.shift, self.square, self.scale, threshold)


def sums_of(scale: Tensor, weight: Tensor, raw: bool) -> Sums:
    """The sums of one form of repulsion, all of them 0."""
    return RawSums(scale, weight) if raw else Sums(scale)

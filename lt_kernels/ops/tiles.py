"""Logit-weight repulsion on a CPU by tiles of cosines, each with one library product and one call of a C++ kernel.

Tiles are screened by products of rounded unit rows in int8, which are exact and many times as fast as in float32. A
bound on the rounding error ensures that no active pair is missed. The few pairs that pass are decided by their float32
cosines, for many tiles at once, so the result is that of float32 products.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lt_kernels.core import private
from lt_kernels.core.numbers import accumulate_type, inverse_norm
from lt_kernels.ops import directions, products
from lt_kernels.ops.backends.library import define
from lt_kernels.ops.pair_sums import sums_of
from lt_kernels.reference import gram as reference
from lt_kernels.reference import screen
from lt_kernels.reference.gram import TILE

# Tiles screened by the first call and by each further one. The threads of a call wait for each other once, at its end;
# but only then it is known whether screening is faster, so the first call is short.
_FIRST, _WAVE = 4, 64
_DENSITY = 16  # with more than one active pair in so many, computing a tile again is faster than gathering its pairs
_NARROW = 16  # features: with fewer, a library sums the terms of a product one by one, with a rounding error each
_PAIRS = "Tensor, Tensor, Tensor, Tensor, Tensor, Tensor"


def _found_fake(product: Tensor, scale: Tensor, capacity: int) -> tuple[Tensor, ...]:
    sums = (product.new_empty(size, dtype=torch.float64) for size in product.shape)
    lists = (product.new_empty(capacity, dtype=kind) for kind in (torch.int32, torch.int32, scale.dtype))
    return *sums, *lists, product.new_empty(1, dtype=torch.int64)


def _screen_fake(unit: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    survivors = torch.library.get_ctx().new_dynamic_size()
    first, second = (unit.new_empty(survivors, dtype=torch.int32) for _ in range(2))
    return first, second, unit.new_empty(rest[-1] - rest[-2], dtype=torch.int64)


def _listed_fake(weight: Tensor, scale: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return scale.new_empty(first.shape)


def _units_fake(weight: Tensor) -> tuple[Tensor, ...]:
    scale, step, error = (weight.new_empty(weight.shape[0], dtype=accumulate_type(weight.dtype)) for _ in range(3))
    return scale, weight.new_empty(weight.shape, dtype=torch.int8), step, error


def _coefficients_fake(product: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    across, down = (product.new_empty(size, dtype=torch.float64) for size in product.shape)
    return product.new_empty(product.shape), across, down


def _pairs_fake(weight: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    return weight.new_empty(weight.shape, dtype=scale.dtype if rest[-2] else weight.dtype)


units_op = define(
    "gram", "gram_units(Tensor weight) -> (Tensor, Tensor, Tensor, Tensor)", screen.gram_units, _units_fake
)
screen_op = define(
    "gram",
    "gram_screen(Tensor unit, Tensor step, Tensor error, float threshold, int side, int density, int begin, int end) "
    "-> (Tensor, Tensor, Tensor)",
    screen.gram_screen,
    _screen_fake,
)
listed_op = define(
    "gram",
    "gram_listed(Tensor weight, Tensor scale, Tensor first, Tensor second) -> Tensor",
    reference.gram_listed,
    _listed_fake,
)
tile_op = define(
    "gram",
    "gram_tile(Tensor product, Tensor scale, float threshold, int row, int column, int capacity, Tensor? shift) "
    f"-> ({_PAIRS})",
    reference.gram_tile,
    lambda product, scale, *rest: _found_fake(product, scale, rest[3]),
)
coefficients_op = define(
    "gram",
    "gram_coefficients(Tensor product, Tensor scale, Tensor slope, float threshold, int row, int column, "
    "Tensor? shift) -> (Tensor, Tensor, Tensor)",
    reference.gram_coefficients,
    _coefficients_fake,
)
pairs_op = define(
    "gram",
    "gram_pairs(Tensor weight, Tensor scale, Tensor slope, Tensor own, Tensor first, Tensor second, Tensor value, "
    "Tensor count, bool project, bool wide, Tensor? shift) -> Tensor",
    reference.gram_pairs,
    _pairs_fake,
)


@functools.cache
def _byte_products() -> bool:
    """Whether this torch and this CPU have int8 matrix instructions, with exact sums in int32."""
    if not private.int8_instructions():
        return False
    largest = torch.full((64, TILE), -127, dtype=torch.int8)  # the sum of two such products exceeds 16 bits
    return bool((private.int8_product(largest, largest.T) == 127 * 127 * TILE).all())


def screening(weight: Tensor, threshold: float) -> tuple[bool, str]:
    """(whether tiles are screened in int8, why or why not)."""
    if weight.dtype == torch.float64:
        return False, "float64 weights: the products are in float64"
    if weight.shape[1] < 8:  # besides, torch's int8 product of one column reads uninitialised memory
        return False, "so few features have nothing to save"
    if threshold <= 0:
        return False, "a threshold of 0 or less leaves about half of the pairs active"
    if weight.shape[1] > 2**17:
        return False, "sums of more than 131072 products could leave the range of int32"
    if not products.onednn():
        return False, "oneDNN, which has the fast int8 products, is not there or switched off"
    if not _byte_products():
        return False, "this CPU has no int8 matrix instructions"
    return True, "int8 products are several times as fast as float32 ones"


def _product(weight: Tensor, rows: slice, columns: slice, kind: torch.dtype) -> Tensor:
    return products.linear(weight[rows].to(kind), weight[columns].to(kind))


class Forward:
    """Z (or R, `raw`) and the active pairs of class weights [C, d], collected tile by tile."""

    def __init__(self, weight: Tensor, threshold: float, raw: bool = False) -> None:
        self.weight, self.threshold = weight, threshold
        self.screened = screening(weight, threshold)[0] and threshold < 1
        self.hits = 0  # screened tiles with few survivors, minus those with too many: below -2 screening stops
        if self.screened:
            self.scale, self.unit, *self.rounding = units_op(weight)
        else:
            self.scale = inverse_norm(weight)
        classes = weight.shape[0]
        side = reference.tiles(classes)
        self.sums = sums_of(self.scale, weight, raw)
        self.pairs, self.found = reference.empty_pairs(self.scale), 0
        self.known = 0  # how many of the found pairs are verified
        self.dense = torch.zeros(side, side, dtype=torch.bool)

    def screen(self, begin: int, end: int) -> list[tuple[Tensor, Tensor] | None]:
        """For each of the tiles [begin, end) the first and second classes of its survivors; None if it has too many."""
        if not self.screened or self.hits < -2:
            return [None] * (end - begin)
        *lists, counts = screen_op(self.unit, *self.rounding, self.threshold, TILE, _DENSITY, begin, end)
        numbers = counts.tolist()
        self.hits += sum(1 if number >= 0 else -1 for number in numbers)
        firsts, seconds = (one.split([max(0, number) for number in numbers]) for one in lists)
        return [(i, j) if number >= 0 else None for i, j, number in zip(firsts, seconds, numbers, strict=True)]

    def keep(self, lists: Iterable[Tensor], start: int, count: int) -> None:
        """Write `count` pairs to the places from `start` on; they become the end of the list."""
        for kept, new in zip(self.pairs, lists, strict=False):
            kept[start : start + count] = new[:count]
        self.found = start + count

    def verify(self) -> None:
        """Decide the survivors by their float32 cosines, and add the active ones to the sums.

        This is done for many tiles at once, so that the kernel can visit pairs of the same classes together.
        """
        first, second = (kept[self.known : self.found] for kept in self.pairs[:2])
        value = listed_op(self.weight, self.sums.factor, first, second)
        active = self.sums.cosines(value, first, second) > self.threshold
        if not bool(active.all()):
            first, second, value = first[active], second[active], value[active]
        self.sums.add(first, second, value)
        self.keep((first, second, value), self.known, value.shape[0])
        self.known = self.found

    def room(self, wanted: int) -> int:
        """For how many of `wanted` pairs the list has room; survivors that are not yet decided take room too."""
        if self.pairs[0].shape[0] - self.found < wanted:
            self.verify()
        return min(wanted, self.pairs[0].shape[0] - self.found)

    def tile(self, rows: slice, columns: slice, survivors: tuple[Tensor, Tensor] | None) -> None:
        """Add the survivors of one tile to the list; without survivors, add its sums and its active pairs."""
        if survivors is not None:
            count = survivors[0].shape[0]
            if self.room(count) == count:
                self.keep(survivors, self.found, count)
                return
        self.verify()  # decided pairs come first in the list
        wanted = max(screen.FEWEST, (rows.stop - rows.start) * (columns.stop - columns.start) // _DENSITY)
        self.dense[rows.start // TILE, columns.start // TILE] = not self.whole(rows, columns, self.room(wanted))

    def whole(self, rows: slice, columns: slice, capacity: int) -> bool:
        """Add the sums and the active pairs of a tile from its float32 product; False if the list has no room."""
        product = _product(self.weight, rows, columns, self.scale.dtype)
        place = rows.start, columns.start
        self.sums.look(product, self.threshold, *place)
        found = tile_op(product, self.scale, self.threshold, *place, capacity, self.sums.shift)
        across, down, *lists, number = found
        self.sums.total[rows] += across
        self.sums.total[columns] += down
        fits = int(number) <= capacity
        if fits:
            self.keep(lists, self.found, int(number))
            self.known = self.found
        return fits

    def run(self) -> tuple[Tensor, ...]:
        """The results of `reference.gram_forward`."""
        classes = self.weight.shape[0]
        if self.threshold < 1:
            tiles = screen.upper_tiles(classes)
            begins = [0, *range(_FIRST, len(tiles), _WAVE)]
            with torch.autocast("cpu", enabled=False):
                for begin, end in zip(begins, [*begins[1:], len(tiles)], strict=True):
                    for place, survivors in zip(tiles[begin:end], self.screen(begin, end), strict=True):
                        self.tile(*place, survivors)
                self.verify()
        *lists, count = self.pairs
        return self.sums.result(self.threshold), self.scale, *lists, count.fill_(self.found), self.dense


def forward(weight: Tensor, threshold: float, raw: bool = False) -> tuple[Tensor, ...]:
    """The CPU kernel of `gram_forward`."""
    return Forward(weight, threshold, raw).run()


def backward(
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
    """The CPU kernel of `gram_backward`: gathers the listed pairs, and computes the tiles that are not listed again."""
    own, slope, shift = reference.slopes(weight, total, grad, threshold, project, raw)
    again = dense.triu().nonzero().tolist()
    d_weight = pairs_op(weight, scale, slope, own, first, second, value, count, project, bool(again), shift)
    with torch.autocast("cpu", enabled=False):
        for tile in again:
            _add_tile(d_weight, weight, threshold, scale, slope, shift, tile)
    if again and project:
        directions.project(d_weight, weight, scale)
    return d_weight.to(weight.dtype)


def _add_tile(
    d_weight: Tensor,
    weight: Tensor,
    threshold: float,
    scale: Tensor,
    slope: Tensor,
    shift: Tensor | None,
    tile: list[int],
) -> None:
    """Add the gradient from the pairs of one tile to its rows and its columns."""
    rows, columns = (slice(index * TILE, min((index + 1) * TILE, weight.shape[0])) for index in tile)
    product = _product(weight, rows, columns, scale.dtype)
    factor, *_ = coefficients_op(product, scale, slope, threshold, rows.start, columns.start, shift)
    if weight.shape[1] < _NARROW:
        factor, left, right = (one.double() for one in (factor, weight[rows], weight[columns]))
        d_weight[rows] += (factor @ right).to(scale.dtype)
        d_weight[columns] += (factor.T @ left).to(scale.dtype)
        return
    d_weight[rows].addmm_(factor, weight[columns].to(scale.dtype))
    d_weight[columns].addmm_(factor.T, weight[rows].to(scale.dtype))

"""The operators of a tile: each against its reference and torch's own check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import normal
from test_gram import similar
from tolerances import TOLERANCE, assert_close
from torch import Tensor

from lt_kernels.ops import gram, tiles
from lt_kernels.reference import gram as reference

pytestmark = pytest.mark.usefixtures("kernels")

Call = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def tile_calls(dtype: torch.dtype) -> list[Call]:
    """Each operator, its reference, and arguments: of a tile in the middle of the diagonal and of one beside it."""
    weight = similar(90, 40, 0.4, dtype)
    scale = reference.inverse_norm(weight)
    slope, own = normal(90, seed=4).to(scale.dtype), normal(90, seed=5).to(scale.dtype)
    calls: list[Call] = []
    for rows, columns in ((slice(20, 70), slice(20, 70)), (slice(0, 33), slice(40, 90))):
        place = rows.start, columns.start
        product = weight[rows].to(scale.dtype) @ weight[columns].to(scale.dtype).T
        for room in (4, 700):  # too little, and enough
            calls.append((tiles.tile_op, reference.gram_tile, (product, scale, 0.1, *place, room)))
            if dtype != torch.float64:
                _, unit, *rounding = reference.gram_units(weight)
                rounded = (unit[rows].double() @ unit[columns].double().T).int()
                arguments = (rounded, *rounding, 0.1, 40, *place, room)
                calls.append((tiles.screen_op, reference.gram_screen, arguments))
        arguments = (product, scale, slope, 0.1, *place)
        calls.append((tiles.coefficients_op, reference.gram_coefficients, arguments))
    product = weight.to(scale.dtype) @ weight.to(scale.dtype).T
    *_, first, second, value, count = reference.gram_tile(product, scale, 0.1, 0, 0, 4000)
    for project, wide in ((True, False), (False, True)):
        arguments = (weight, scale, slope, own, first, second, value, count, project, wide)
        calls.append((tiles.pairs_op, reference.gram_pairs, arguments))
    return calls if dtype == torch.float64 else [*calls, (tiles.units_op, reference.gram_units, (weight,))]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_tiles_are_their_reference(dtype: torch.dtype) -> None:
    for operator, definition, arguments in tile_calls(dtype):
        left, right = operator(*arguments), definition(*arguments)
        pairs = zip(left, right, strict=True) if isinstance(left, tuple) else [(left, right)]
        for place, (ours_, theirs) in enumerate(pairs):
            assert ours_.dtype == theirs.dtype
            used = lists_in_use(operator, place, left)
            if operator is tiles.units_op and place == 3:  # what rounding took: a difference of nearly equal numbers
                theirs = torch.where((ours_ - theirs).abs() < 1e-6, ours_, theirs)
            assert_close(ours_[used].double(), theirs[used].double(), tolerance_of(ours_))


def lists_in_use(operator: Callable[..., Any], place: int, result: Any) -> slice:
    """The part of a list of pairs that is in use: all of what is no such list, none of one that is too short."""
    lists = {tiles.tile_op: (2, 3, 4), tiles.screen_op: (0, 1)}.get(operator, ())
    count = int(result[-1]) if lists else 0
    return slice(0, count if 0 <= count <= result[place].numel() else 0) if place in lists else slice(None)


def tolerance_of(left: Tensor) -> torch.dtype:
    """Sums in float64 are of cosines in float32, and as good as these; of int8 one step of 127 may differ."""
    if left.dtype == torch.int8:
        return torch.bfloat16
    return left.dtype if left.dtype in (torch.bfloat16, torch.float16) else torch.float32


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_operators(dtype: torch.dtype) -> None:
    weight = similar(20, 10, 0.3, dtype)
    total, scale, *saved = gram.forward_op(weight, 0.3)
    torch.library.opcheck(gram.forward_op, (weight, 0.3))
    torch.library.opcheck(gram.backward_op, (weight, 0.3, False, scale, total, *saved, torch.ones_like(total)))
    seen = set()
    for operator, _, arguments in tile_calls(dtype):
        if operator not in seen:
            torch.library.opcheck(operator, arguments)
            seen.add(operator)

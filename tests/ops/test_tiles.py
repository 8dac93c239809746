"""The operators of a tile: each against its reference and torch's own check."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from class_weights import exact_bytes, similar
from helpers import generator, normal
from tolerances import TOLERANCE, assert_close
from torch import Tensor

from lt_kernels.ops import gram, tiles
from lt_kernels.reference import gram as reference
from lt_kernels.reference import screen

pytestmark = pytest.mark.usefixtures("kernels")

Call = tuple[Callable[..., Any], Callable[..., Any], tuple[Any, ...]]


def tile_calls(dtype: torch.dtype) -> list[Call]:
    """Each operator, its reference, and arguments: of a tile in the middle of the diagonal and of one beside it."""
    weight = similar(90, 40, 0.4, dtype)
    scale = reference.inverse_norm(weight)
    slope, own = normal(90, seed=4).to(scale.dtype), normal(90, seed=5).to(scale.dtype)
    shifts = (None, (reference.squares(weight) + 1).maximum(torch.tensor(300.0)))  # of cosines; above all products
    calls: list[Call] = []
    for rows, columns in ((slice(20, 70), slice(20, 70)), (slice(0, 33), slice(40, 90))):
        place = rows.start, columns.start
        product = weight[rows].to(scale.dtype) @ weight[columns].to(scale.dtype).T
        rooms = (4, 700)  # too little, and enough
        for shift in shifts:
            calls += [
                (tiles.tile_op, reference.gram_tile, (product, scale, 0.1, *place, room, shift)) for room in rooms
            ]
            arguments = (product, scale, slope, 0.1, *place, shift)
            calls.append((tiles.coefficients_op, reference.gram_coefficients, arguments))
    product = weight.to(scale.dtype) @ weight.to(scale.dtype).T
    *_, first, second, value, count = reference.gram_tile(product, scale, 0.1, 0, 0, 4000)
    for project, wide, shift in ((True, False, None), (False, True, None), (False, False, shifts[1])):
        values = value if shift is None else value / scale[first] / scale[second]
        arguments = (weight, scale, slope, own, first, second, values, count, project, wide, shift)
        calls.append((tiles.pairs_op, reference.gram_pairs, arguments))
    if dtype == torch.float64:
        return calls
    _, unit, *rounding = screen.gram_units(weight)
    screened = (unit, *rounding, 0.1, 40, 3, 1, 5)  # the second to the fifth of six tiles
    calls.append((tiles.screen_op, screen.gram_screen, screened))
    return [*calls, (tiles.units_op, screen.gram_units, (weight,))]


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
    lists = {tiles.tile_op: (2, 3, 4)}.get(operator, ())
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
    for raw in (False, True):
        total, scale, *saved = gram.forward_op(weight, 0.3, raw)
        torch.library.opcheck(gram.forward_op, (weight, 0.3, raw))
        torch.library.opcheck(gram.backward_op, (weight, 0.3, False, scale, total, *saved, torch.ones_like(total), raw))
    seen = set()
    for operator, _, arguments in tile_calls(dtype):
        if operator not in seen:
            torch.library.opcheck(operator, arguments)
            seen.add(operator)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_product_is_a_function_of_its_two_rows(dtype: torch.dtype, kernels: str) -> None:
    """The same bits alone or among several partners, in either order, by one thread or two, whatever the length."""
    if kernels == "reference":
        pytest.skip("the order of torch's own sums is not ours")
    whole = normal(12, 200, seed=1).to(dtype)
    scale = torch.ones(12, dtype=reference.inverse_norm(whole).dtype)
    pairs = [(row, (row + 1 + k) % 12) for row in range(9) for k in range(row + 1)]  # runs of 1 to 9
    first, second = (torch.tensor(side, dtype=torch.int32) for side in zip(*pairs, strict=True))
    turn = second.argsort(stable=True)
    for features in range(1, 201):
        weight = whole[:, :features]
        value = tiles.listed_op(weight, scale, first, second)
        alone = [tiles.listed_op(weight, scale, first[k : k + 1], second[k : k + 1]) for k in range(len(pairs))]
        assert torch.equal(value, torch.cat(alone))
        assert torch.equal(value[turn], tiles.listed_op(weight, scale, second[turn], first[turn]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [40, 400])  # rows with many partners in common, and with few
def test_screened_cosines_are_those_of_a_list(groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in the order of the tiles, and the same with one thread and two."""
    exact_bytes()
    weight = (normal(groups, 33, seed=1)[torch.arange(1100) % groups] + normal(1100, 33, seed=2)).to(dtype)
    monkeypatch.setattr(tiles, "screening", lambda *_: (True, "test"))
    threads, found = torch.get_num_threads(), []
    for number in (1, 2):
        torch.set_num_threads(number)
        total, scale, first, second, value, count, dense = tiles.forward(weight, 0.5)
        used = slice(0, int(count))
        found.append((total, first[used], second[used], value[used]))
    torch.set_num_threads(threads)
    assert int(count) > 300
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert not dense.any()
    assert torch.equal(value[used], tiles.listed_op(weight, scale, first[used], second[used]))
    tile = first[used].long() // 1024 * 2 + second[used].long() // 1024
    place = (tile * 1100 + first[used]) * 1100 + second[used]
    assert (place.diff() > 0).all()


@pytest.mark.parametrize(("classes", "side"), [(1, 1), (3, 2), (66, 64), (140, 63), (190, 65), (300, 130)])
@pytest.mark.parametrize("density", [1, 50])
def test_every_survivor_is_listed(classes: int, side: int, density: int) -> None:
    """Whatever the width of a tile and of the last one; and none of a tile with too many."""
    unit = torch.randint(-127, 128, (classes, 16), dtype=torch.int8, generator=generator(3))
    step, error = torch.ones(classes) / 1000, torch.zeros(classes)
    every = len(screen.upper_tiles(classes, side))
    for begin, end in ((0, every), (every // 2, every), (every, every)):
        found = (op(unit, step, error, 0.01, side, density, begin, end) for op in (tiles.screen_op, screen.gram_screen))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)
    counts = screen.gram_screen(unit, step, error, 0.01, side, density, 0, every)[-1]
    assert bool((counts < 0).any()) == (density == 50 and side >= 63)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("features", [1, 7, 16, 40, 63, 64, 65, 130, 200])
@pytest.mark.parametrize("pairs", [30, 400])  # gathered where they lie, and by strips
def test_gathered_rows(pairs: int, features: int, dtype: torch.dtype) -> None:
    """Pairs in any order, classes with many neighbours and with none."""
    weight, random = normal(80, features, seed=1).to(dtype), generator(2)
    first, second = torch.randint(0, 70, (2, pairs), dtype=torch.int32, generator=random)
    first[: pairs // 4] = 3
    scale = reference.inverse_norm(weight)
    value, slope = (torch.rand(size, generator=random).to(scale.dtype) for size in (pairs, 80))
    arguments = (weight, scale, slope, slope.flip(0) * (torch.arange(80) % 3 > 0), first, second, value)
    for wide in (False, True):
        for shift in (None, value.new_full((80,), 2.0)):
            rest = torch.tensor([pairs]), False, wide, shift
            assert_close(tiles.pairs_op(*arguments, *rest), reference.gram_pairs(*arguments, *rest), dtype)

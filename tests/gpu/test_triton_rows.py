"""The GPU's row statistics and their gradient against their definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from device import DEVICE, MARKS
from row_problems import DTYPES, START, arithmetic, inputs, judge, slopes, sums, wide
from tolerances import assert_close

from lt_kernels.core.rows import Inputs
from lt_kernels.reference import rows as reference
from lt_kernels.triton import rows, rows_tiles

pytestmark = MARKS


def check(i: Inputs, grad: bool = False) -> None:
    """Statistics and gradient against the definition in float64, which sees the same rounded numbers."""
    dtype = i.logits.dtype
    usual, exact = reference.rows_forward(*i), reference.rows_forward(*wide(i))
    judge(sums(rows.rows_forward(*i)), sums(usual), sums(exact), dtype)
    back = slopes(i, usual, grad)
    usual, exact = reference.rows_backward(*i, *back), reference.rows_backward(*wide(i), *wide(back))
    judge(rows.rows_backward(*i, *back), usual, exact, dtype)


TABLES = list(product((None, "one", "each", "picked"), (None, "one", "each")))
TABLES.remove(("picked", "each"))  # where lines are picked, they are so for both
# One class, fewer than a vector has, whole rows, an odd number, parts of rows with ends of every length.
SMALL, LARGE = [(3, 1), (1, 5), (5, 100), (2, 999)], [(3, 1025), (2, 4100), (1, 8142)]


@pytest.mark.parametrize("slots", [0, 1, 2])
@pytest.mark.parametrize("offset, share", TABLES)
def test_short_rows(offset: str | None, share: str | None, slots: int) -> None:
    for turn, sizes in enumerate(SMALL):
        kind = DTYPES[(turn + slots + TABLES.index((offset, share))) % 4]
        check(inputs(sizes, slots, kind, offset, share, scaled=bool((turn + slots) % 2)), grad=turn < 2)


@pytest.fixture(params=["walked", "cut"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How programs go along long rows: a whole one each, block by block, as if there were many; or a part each."""
    monkeypatch.setattr(rows_tiles, "FILL", 0 if request.param == "walked" else rows_tiles.FILL)
    rows_tiles.two_passes.cache_clear()
    yield request.param
    rows_tiles.two_passes.cache_clear()


# (offset, share, sizes, turn); each in one of the two ways
LONG = [(*tables, sizes, t + s) for t, tables in enumerate(TABLES) for s, sizes in enumerate(LARGE)]
WAYS = [("walked" if one[3] % 3 else "cut", one) for one in LONG]


@pytest.mark.parametrize("way, problem", WAYS, indirect=["way"], ids=str)
def test_long_rows(way: str, problem: tuple[str | None, str | None, tuple[int, int], int]) -> None:
    offset, share, sizes, turn = problem
    slots, kind = (1, 2, 0)[turn % 3], DTYPES[turn % 4]
    check(inputs(sizes, slots, kind, offset, share, scaled=bool(turn // 2 % 2)), grad=turn % 3 < 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_targets_at_the_ends_of_blocks(dtype: torch.dtype, way: str) -> None:
    """The first and the last column of a row, of its whole groups, and of a block."""
    n, c, size = 6, 4099, 4096 // dtype.itemsize * 2
    i = inputs((n, c), 2, dtype, None, None, scaled=False)
    for row in range(n):
        group = 16 // dtype.itemsize
        head = -row * c % group
        last = head + (c - head) // group * group
        places = [
            (head, head + size),
            (head + size - 1, 0),
            (head - 1, last),
            (last - 1, c - 1),
            (head, 0),
            (last, c - 1),
        ]
        i.target[row] = torch.tensor([START + min(max(place, 0), c - 1) for place in places[row]], device=DEVICE)
    check(i)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [40, 1029, 1064])
def test_rows_of_a_wider_matrix(classes: int, dtype: torch.dtype) -> None:
    """A slab of the logits: nothing outside of it is read, wherever it starts."""
    for first, rest in ((8, 16), (3, 0)):
        i = inputs((2, classes), 1, dtype, None, None, scaled=False)
        whole = torch.full((4, first + classes + rest), torch.nan, dtype=dtype, device=DEVICE)
        whole[1:3, first : first + classes] = i.logits
        slab = i._replace(logits=whole[1:3, first : first + classes])
        found = rows.rows_forward(*slab)
        for mine, expected in zip(found, rows.rows_forward(*i), strict=True):
            assert_close(mine, expected, arithmetic(dtype))
        back = slopes(i, found, False)
        assert_close(rows.rows_backward(*slab, *back)[0], rows.rows_backward(*i, *back)[0])
    across = i._replace(logits=i.logits.T.contiguous().T)
    assert_close(rows.rows_forward(*across)[0], found[0])


@pytest.mark.parametrize("classes", [7, 1500])
def test_rows_that_do_not_count(classes: int) -> None:
    """Their logits may be anything; their gradient is zero, to the bit."""
    i = inputs((4, classes), 1, torch.float32, "one", "one", scaled=False)
    i.target[:] = torch.tensor([[-100], [START + 2], [-100], [START]], device=DEVICE)
    i.logits[0], i.logits[2] = torch.inf, torch.nan
    rest, own, rival, mean, top, _ = found = rows.rows_forward(*i)
    for value in (rest, own[:, 0], rival, top):
        assert (value[::2] == -torch.inf).all()
        assert value[1::2].isfinite().all()
    assert (mean[::2] == 0).all()
    d_logits, d_offset = rows.rows_backward(*i, *slopes(i, found, True))
    assert (d_logits[::2] == 0).all()
    assert d_logits.isfinite().all()
    assert d_offset.isfinite().all()


@pytest.mark.parametrize("classes", [4, 1100])
def test_classes_that_are_not_there(classes: int) -> None:
    """They have no gradient and are no rivals; a row without others has rest -inf; a NaN is not hidden."""
    i = inputs((3, classes), 1, torch.float32, "each", None, scaled=False)
    i.target[:] = START + 1
    i.offset[:] = 0.0
    i.offset[0, [0, 3]] = -torch.inf
    i.offset[1, torch.arange(classes, device=DEVICE) != 1] = -torch.inf
    i.logits[0, 3], i.logits[2, 2] = 1000.0, torch.nan
    rest, own, rival, *_ = found = rows.rows_forward(*i)
    assert rest[0].isfinite()
    assert rival[0] < 100
    assert rest[1] == rival[1] == -torch.inf
    assert own[1] == i.logits[1, 1]
    assert rest[2].isnan()
    d_logits, _ = rows.rows_backward(*i, *slopes(i, found, False))
    assert (d_logits[0, [0, 3]] == 0).all()
    assert (d_logits[1, torch.arange(classes, device=DEVICE) != 1] == 0).all()


@pytest.mark.parametrize("classes", [6, 1030])
@pytest.mark.parametrize("spread", [1e30, 1e-30])
def test_numbers_of_any_size(spread: float, classes: int) -> None:
    i = inputs((3, classes), 1, torch.float32, "one", None, scaled=False)
    i.logits.mul_(spread)
    found, usual, exact = rows.rows_forward(*i), reference.rows_forward(*i), reference.rows_forward(*wide(i))
    judge(sums(found), sums(usual), sums(exact), torch.float32)

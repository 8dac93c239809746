"""The GPU's linear and cosine statistics against their definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from device import DEVICE, MARKS
from helpers import normal
from linear_problems import HALVES, check, judge, moved, problem, saved, slopes, sums
from row_problems import wide
from tolerances import assert_close

from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.reference import linear as reference
from lt_kernels.triton import linear

pytestmark = [pytest.mark.usefixtures("tensor_float"), *MARKS]


# One number, fewer than a tile in every direction, whole tiles, odd sizes over several tiles.
SIZES = [(1, 1, 1), (3, 5, 7), (128, 64, 16), (130, 300, 40)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("normalize", [Normalize.NOTHING, Normalize.CLASSES, Normalize.BOTH])
def test_shapes(sizes: tuple[int, int, int], normalize: int) -> None:
    check(linear, problem(sizes, normalize=normalize, bias=normalize == Normalize.NOTHING))


@pytest.mark.parametrize("slots", [0, 1, 2])
@pytest.mark.parametrize(
    "offset, share", [(None, "one"), ("one", None), ("one", "one"), ("each", "each"), ("picked", "one")]
)
def test_tables(offset: str | None, share: str | None, slots: int) -> None:
    check(linear, problem((21, 70, 20), slots=slots, offset=offset, share=share, bias=slots == 2))


def test_tables_by_row_over_several_tiles() -> None:
    check(linear, problem((131, 75, 9), offset="picked", share="picked", normalize=Normalize.NOTHING))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("normalize", [Normalize.NOTHING, Normalize.CLASSES, Normalize.BOTH])
def test_half_precision(dtype: torch.dtype, normalize: int) -> None:
    """Statistics have the error of float32: they never were 16 bits."""
    check(
        linear,
        problem((40, 300, 72), dtype=dtype, normalize=normalize, bias=normalize == Normalize.NOTHING, offset="one"),
    )


@pytest.mark.parametrize(
    "slabs, dtype",
    [((50, 150), torch.float32), ((130, 41), torch.bfloat16), ((77, 150), torch.float16), ((60, 70), torch.float16)],
)
def test_slabs(slabs: tuple[int, int], dtype: torch.dtype) -> None:
    check(linear, problem((130, 150, 24), dtype=dtype, slabs=slabs, offset="one"))


@pytest.mark.parametrize("slabs", [(21, 70), (9, 25)])
def test_slabs_of_tables_by_row(slabs: tuple[int, int]) -> None:
    check(linear, problem((21, 70, 20), offset="each", share="each", slabs=slabs))
    check(
        linear,
        problem((21, 70, 20), offset="picked", share="picked", slabs=slabs, bias=True, normalize=Normalize.NOTHING),
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("slabs", [(40, 300), (17, 90)])
def test_master_weights(dtype: torch.dtype, slabs: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in float32, as under autocast, are cast a part at a time; their norms and gradient are float32."""
    monkeypatch.setattr(linear, "CAST", 64 * 24 * 2)
    p = problem((40, 300, 24), slabs=slabs, offset="one", bias=True)
    p = p._replace(input=p.input.to(dtype), weight=p.weight.to(dtype).float())
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(p), False)
    usual = reference.linear_forward(*p, False)
    judge(sums(found), sums(usual), sums(exact))
    back, wants = slopes(p), [True, True, True, False]
    ours = linear.linear_backward(*p, *saved(found), *back, wants)
    truth = reference.linear_backward(*wide(p), *saved(exact), *wide(back), wants)
    assert ours[1].dtype == torch.float32
    for mine, one in zip(ours, truth, strict=True):
        assert_close(mine, one, dtype)


@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_any_partition_of_the_classes_merges_to_the_whole(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    p = problem((70, 300, 20), slots=2, offset="one", share="one")
    whole = reference.linear_forward(*wide(p), False)
    monkeypatch.setattr(linear, "parts_for", lambda *_: tiles)
    found = linear.linear_forward(*p, False)
    judge(sums(found), sums(reference.linear_forward(*p, False)), sums(whole))


def test_tiles_of_256_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large problems have them on a Hopper GPU, here over two blocks of rows and three of classes."""
    monkeypatch.setattr(linear, "tile_for", lambda *_, **__: linear.Tile(256, 128, 64, 8, 4))
    p = problem((300, 300, 72), dtype=torch.bfloat16, normalize=Normalize.NOTHING)
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(p), False)
    judge(sums(found), sums(reference.linear_forward(*p, False)), sums(exact))


def test_more_parts_than_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """70 parts of 64 classes, put together 64 at a time."""
    monkeypatch.setattr(linear, "parts_for", lambda *_: 1)
    p = problem((3, 70 * 64 - 5, 1), slots=2, share="one")
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(p), False)
    judge(sums(found), sums(reference.linear_forward(*p, False)), sums(exact))


@pytest.mark.parametrize("normalize", [Normalize.NOTHING, Normalize.BOTH])
def test_shards(normalize: int) -> None:
    """Two halves of the classes, with targets in either."""
    p = problem((40, 150, 12), normalize=normalize, offset="one")
    whole = reference.linear_forward(*wide(p), False)
    halves = []
    for part in (slice(0, 70), slice(70, 150)):
        offset = p.offset[:, part]
        half = p._replace(weight=p.weight[part], offset=offset, start=part.start, class_slab=part.stop - part.start)
        check(linear, half)
        halves.append(linear.linear_forward(*half, False))
    rest, own, rival, _, top, _ = zip(*(half[:6] for half in halves), strict=True)
    both = torch.maximum(*top)
    rest = torch.logaddexp(*(one + (its - both).nan_to_num(0.0) for one, its in zip(rest, top, strict=True)))
    judge((rest, both), (rest, both), (whole[0], whole[4]))
    merged = torch.maximum(*own), torch.maximum(*rival)
    judge(merged, merged, whole[1:3])


def test_targets_that_are_nobodys() -> None:
    """What is out of range is somebody else's, and memory is safe from it."""
    p = problem((5, 20, 4))
    target = moved([torch.tensor([[20], [-1], [2**40], [-(2**40)], [-100]])])[0]
    found = linear.linear_forward(*p._replace(target=target), False)
    assert (found[1] == -torch.inf).all()
    every = reference.linear_forward(*wide(p._replace(target=target[:, :0])), False)
    judge([found[0][:4]], [found[0][:4]], [every[0][:4]])
    assert found[0][4] == -torch.inf
    assert found[2][4] == -torch.inf
    back = slopes(p)
    d_input, d_weight, *_ = linear.linear_backward(
        *p._replace(target=target), *saved(found), *back, [True, True, False, False]
    )
    assert (d_input[4] == 0).all()
    assert d_weight.isfinite().all()


def test_ignored_rows_and_slots() -> None:
    """A row all of whose targets are ignored counts for nothing, however large its logits are; one slot may."""
    p = problem((4, 30, 6), slots=2, normalize=Normalize.NOTHING, share="one")
    target = moved([torch.tensor([[-100, -100], [3, -100], [-100, 7], [5, 5]])])[0]
    p = p._replace(target=target, input=p.input * torch.tensor([[1e4], [1.0], [1.0], [1.0]], device=DEVICE))
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(p), False)
    judge(sums(found), sums(reference.linear_forward(*p, False)), sums(exact))
    assert (found[0][0], found[2][0], found[3][0]) == (-torch.inf, -torch.inf, 0)
    check(linear, p)


def test_rows_without_a_direction() -> None:
    """Their cosines are 0 and so is their gradient; one too long for float32 makes NaN, not a wrong number."""
    p = problem((20, 70, 9), offset="one")
    p.input[3], p.input[4], p.weight[5], p.weight[69] = 0.0, 1e-13, 0.0, 0.0
    p.target[3], p.target[4], p.target[6] = 8, 5, 69
    check(linear, p)
    p.weight[5] = 3e38
    found = linear.linear_forward(*p, False)
    assert found[8][5].isnan()
    assert found[0][(p.target[:, 0] != -100) & (p.target[:, 0] != 5)].isnan().all()


def test_inverse_norm() -> None:
    """Also of rows longer than a program takes at a time."""
    for rows, size in ((3, 5000), (70, 33), (0, 8)):
        x = moved([normal(rows, size, seed=51, dtype=torch.bfloat16)])[0]
        assert_close(linear.inverse_norm(x), reference.inverse_norm(x.double()), torch.float32)
    for x in (torch.full((1, 4), 1e-13), torch.full((1, 4), 3e19), torch.tensor([[torch.inf]]), torch.zeros(2, 0)):
        assert_close(linear.inverse_norm(x.to(DEVICE)), reference.inverse_norm(x).to(DEVICE))


def test_all_other_classes_absent() -> None:
    """rest = -inf and slopes of 0 there; nothing is NaN."""
    p = problem((6, 5, 4), normalize=Normalize.NOTHING)
    offset = torch.full((6, 5), -torch.inf).scatter(1, p.target.clamp_min(0).cpu(), 0.5)
    p = p._replace(offset=offset.to(DEVICE))
    found = linear.linear_forward(*p, False)
    assert (found[0] == -torch.inf).all()
    assert (found[2] == -torch.inf).all()
    check(linear, p)


def test_huge_offsets_and_logits() -> None:
    """Sums of exponentials neither overflow nor vanish; beyond the reach of float32 they are 0."""
    p = problem((9, 140, 5), normalize=Normalize.NOTHING, scale=60.0, offset="one")
    p = p._replace(offset=p.offset * 1e4, input=p.input.mul(300).round(), weight=p.weight.mul(30).round())
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(p), False)
    judge(sums(found), sums(reference.linear_forward(*p, False)), sums(exact))


@pytest.mark.parametrize("normalize", [Normalize.NOTHING, Normalize.BOTH])
def test_no_rows(normalize: int) -> None:
    check(linear, problem((0, 5, 4), normalize=normalize, bias=normalize == Normalize.NOTHING))


@pytest.mark.parametrize("rows, classes", [(3, 5), (40, 90)])
def test_what_goes_by_the_library(rows: int, classes: int) -> None:
    """Kept logits, the offset's gradient, float64, a negative scale, and full float32."""
    check(linear, problem((rows, classes, 7), offset="one", dtype=torch.float16), keep=True)
    check(linear, problem((rows, classes, 7), offset="each", slabs=(2, 4)), offset=True)
    check(linear, problem((rows, classes, 7), offset="one", scale=-2.0))
    exact = problem((rows, classes, 7), share="one", slabs=(2, 4))
    check(linear, Problem(*wide(exact)))
    torch.set_float32_matmul_precision("highest")
    check(linear, exact)


def test_full_float32_does_not_multiply_in_tiles() -> None:
    p = problem((3, 5, 4))
    assert linear.on_matrix_units(p)
    torch.set_float32_matmul_precision("highest")
    assert not linear.on_matrix_units(p)
    assert linear.on_matrix_units(p._replace(input=p.input.bfloat16()))


@pytest.mark.parametrize("keep", [False, True])
def test_float16_beyond_its_range(keep: bool) -> None:
    """Products far above 65,504, and slopes far below the least float16: both are float32's business."""
    p = problem((20, 70, 24), dtype=torch.float16)
    p = p._replace(input=p.input * 4000, weight=p.weight * 100)
    found, exact = linear.linear_forward(*p, keep), reference.linear_forward(*wide(p), False)
    assert (p.input.double() @ p.weight.double().T).abs().max() > 65504
    judge(sums(found), sums(reference.linear_forward(*p, keep)), sums(exact))
    back = [None if slope is None else slope * 1e-9 for slope in slopes(p)]
    wants = [True, True, False, False]
    ours = linear.linear_backward(*p, *saved(found), *back, wants)
    truth = reference.linear_backward(*wide(p), *saved(exact), *wide(back), wants)
    assert all(gradient.abs().max() < 1e-4 for gradient in truth[:2])  # those of the weights are all subnormal
    assert_close(ours[0], truth[0].half(), torch.float16)
    assert (ours[1].double() - truth[1]).abs().max() <= 2.0**-25 * 1.01


def test_unit_of_float16() -> None:
    """The largest that a gradient can be comes out just under 2^14; nothing at all, or no number, changes nothing."""
    p = problem((20, 70, 24), dtype=torch.float16, share="one")
    found, back, wants = linear.linear_forward(*p, False), slopes(p), (True, True, False, False)
    backward = linear.Backward(p, saved(found), tuple(back), wants)
    largest = backward.slab(slice(0, 20), slice(0, 70)).abs().max()
    assert 2**9 < largest <= 2**14
    assert backward.unit.log2().frac() == 0
    for value in (0.0, torch.inf, torch.nan):
        still = tuple(None if slope is None else torch.full_like(slope, value) for slope in back)
        assert linear.Backward(p, saved(found), still, wants).unit == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits(dtype: torch.dtype) -> None:
    p = problem((150, 300, 24), dtype=dtype, slabs=(150, 128), share="one")
    runs = []
    for _ in range(2):
        found = linear.linear_forward(*p, False)
        back = linear.linear_backward(*p, *saved(found), *slopes(p), [True, True, False, False])
        runs.append((*found, *back))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_strides() -> None:
    """Rows that do not lie in one piece, and tables whose columns do not."""
    p = problem((21, 70, 20), offset="each", share="one")
    turned = p._replace(
        input=p.input.T.contiguous().T,
        weight=torch.cat((p.weight, p.weight), 1)[:, :20],
        offset=p.offset.T.contiguous().T,
        mean_weight=p.mean_weight.expand(2, 70)[:1],
        target=p.target.expand(21, 2)[:, :1],
    )
    for one, other in zip(linear.linear_forward(*turned, False), linear.linear_forward(*p, False), strict=True):
        assert torch.equal(one, other)

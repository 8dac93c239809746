"""Operands, norms, projections and aligned memory on a GPU against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from device import DEVICE, MARKS
from helpers import normal
from linear_problems import HALVES, check, judge, problem, saved, slopes, sums
from row_problems import wide
from tolerances import assert_close

from lt_kernels.core import numbers
from lt_kernels.core.linear import Normalize, Problem
from lt_kernels.reference import linear as reference
from lt_kernels.reference.linear import project_rows
from lt_kernels.triton import linear, operands
from lt_kernels.triton.launch import recorded

pytestmark = [pytest.mark.usefixtures("tensor_float"), *MARKS]


# One number; several rows a program; one row a program; several steps a row.
SIZES = [(1, 1, 1), (7, 300, 17), (3, 5, 1500), (2, 3, 4099)]
DTYPES = [torch.float32, torch.float64, *HALVES]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_norms(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, classes, size = sizes
    x, w = normal(rows, size, seed=1, dtype=dtype).to(DEVICE), normal(classes, size, seed=2, dtype=dtype).to(DEVICE)
    for mine, given in zip(linear.inverse_norms(x, w), (x, w), strict=True):
        exact = numbers.inverse_norm(given.double())
        assert mine.dtype == numbers.accumulate_type(dtype)
        assert_close(mine, exact, mine.dtype)


def test_inverse_norms_of_two_dtypes_and_of_rows_apart() -> None:
    """Master weights are float32 beside half-precision features; class weights may be columns of a wider array."""
    x = normal(5, 40, seed=1, dtype=torch.bfloat16).to(DEVICE)
    wide = normal(70, 100, seed=2, dtype=torch.float32).to(DEVICE)
    rows, classes = linear.inverse_norms(x, wide[:, 13:53])
    assert_close(rows, numbers.inverse_norm(x.double()), torch.float32)
    assert_close(classes, numbers.inverse_norm(wide[:, 13:53].double()), torch.float32)
    turned = linear.inverse_norms(x, wide[:40, :40].T)[1]
    assert_close(turned, numbers.inverse_norm(wide[:40, :40].T.double()), torch.float32)


def test_inverse_norms_of_what_has_none() -> None:
    rows = torch.tensor([[0.0, 0.0], [1e-13, 0.0], [torch.inf, 0.0], [3.0, 4.0]], device=DEVICE)
    for found in linear.inverse_norms(rows, rows):
        assert torch.equal(found.nan_to_num(-1.0), torch.tensor([0.0, 0.0, -1.0, 0.2], device=DEVICE))


def test_inverse_norms_are_one_launch() -> None:
    x, w = (torch.empty(n, 2048, dtype=torch.bfloat16, device="meta") for n in (256, 8142))
    with recorded() as calls:
        linear.inverse_norms(x, w)
    (call,) = calls
    assert call.grid == (256 + 8142,)


@pytest.mark.parametrize("sizes", SIZES[1:])  # what is left of one number is nothing but its rounding
@pytest.mark.parametrize("sums, dtype", [(torch.float32, torch.bfloat16), *((one, one) for one in DTYPES)])
def test_project(sizes: tuple[int, int, int], sums: torch.dtype, dtype: torch.dtype) -> None:
    """Into new memory and into the gradient's own, of rows in one piece and of rows apart."""
    _, rows, size = sizes
    apart = normal(rows, size + 3, seed=3, dtype=dtype).to(DEVICE)[:, :size]
    total = normal(rows, size, seed=4, dtype=sums).to(DEVICE)
    scale, exact = numbers.inverse_norm(apart), total.double()
    project_rows(exact, apart.double(), numbers.inverse_norm(apart.double()))
    for given in (apart, apart.contiguous()):
        found = linear.project(total.clone(), given, scale)
        assert found.dtype == dtype
        assert_close(found, exact, dtype)
    mine = total.clone()
    assert linear.project(mine, apart, scale, out=mine) is mine
    assert_close(mine, exact, sums)


def test_project_divides_by_the_unit() -> None:
    total, unit = normal(5, 40, seed=5, dtype=torch.float32).to(DEVICE), torch.tensor(1024.0, device=DEVICE)
    rows = normal(5, 40, seed=6, dtype=torch.float16).to(DEVICE)
    assert torch.equal(linear.project(total, rows, None, unit), (total / 1024).half())


@pytest.mark.parametrize("columns, apart", [(1, 64), (64, 64), (8142, 8192)])
def test_padded(columns: int, apart: int) -> None:
    found = linear.padded(3, columns, torch.empty(0, dtype=torch.bfloat16, device=DEVICE))
    assert (found.shape, found.stride(), found.dtype) == ((3, columns), (apart, 1), torch.bfloat16)
    torch.mm(found.new_ones(3, 2), found.new_ones(2, columns), out=found)
    assert (found == 2).all()


def tensor_float(x: torch.Tensor) -> torch.Tensor:
    """The nearest numbers with 10 bits after the first, of two the larger, by arithmetic in float64."""
    exact = x.double()
    unit = torch.exp2(torch.frexp(exact)[1].clamp(min=-125) - 11.0)
    near = torch.floor(exact.abs() / unit + 0.5) * unit * exact.sign()
    return torch.where(exact.isfinite(), near, exact).float()


def test_rounding_to_tensor_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: every exponent, ties, numbers that become infinite, and what is no number, however it is written."""
    monkeypatch.setattr(operands, "ROUNDS", True)
    bits = torch.randint(-(2**31), 2**31, (60, 400), generator=torch.Generator().manual_seed(1)).int()
    bits[:20] = bits[:20] & ~0x1FFF | 0x1000  # in the middle of two
    bits[20, :4] = torch.tensor([0x7F7FFFFF, 0x7FFFFFFF, 0x7F800000, -1]).int()
    x = bits.view(torch.float32).to(DEVICE)
    found, exact = linear.operand(x, torch.float32), tensor_float(x)
    assert exact.isnan().any()
    assert exact.isinf().any()
    assert torch.equal(found.isnan(), exact.isnan())
    assert torch.equal(found.nan_to_num(0.0, torch.inf, -torch.inf), exact.nan_to_num(0.0, torch.inf, -torch.inf))
    assert (found.view(torch.int32)[~exact.isnan()] & 0x1FFF == 0).all()


@pytest.mark.parametrize("slabs", [(21, 70), (9, 25)])
def test_products_of_rounded_operands(slabs: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "ROUNDS", True)
    monkeypatch.setattr(linear, "CAST", 64 * 20 * 4)
    p = problem((21, 70, 20), normalize=Normalize.NOTHING, offset="one", slabs=slabs)
    short = p._replace(input=tensor_float(p.input), weight=tensor_float(p.weight))
    assert not torch.equal(short.weight, p.weight)
    found, exact = linear.linear_forward(*p, False), reference.linear_forward(*wide(short), False)
    judge(sums(found), sums(reference.linear_forward(*short, False)), sums(exact))
    back, wants = slopes(p), [True, True, False, False]
    ours = linear.linear_backward(*p, *saved(found), *back, wants)
    others = reference.linear_backward(*short, *saved(reference.linear_forward(*short, False)), *back, wants)
    judge(ours, others, reference.linear_backward(*wide(short), *saved(exact), *wide(back), wants))


@pytest.mark.parametrize("given, kind", [(one, one) for one in HALVES] + [(torch.float32, one) for one in HALVES])
@pytest.mark.parametrize("size, width", [(1, 64), (9, 64), (72, 72), (100, 128), (4099, 4160)])
def test_operands_start_at_16_bytes(given: torch.dtype, kind: torch.dtype, size: int, width: int) -> None:
    """Zeros fill the rows where they would not, and nothing is copied that the matrix units can take."""
    rows = normal(5, size, seed=7, dtype=given).to(DEVICE)
    found = linear.operand(rows, kind)
    assert found.shape == (5, width)
    assert torch.equal(found[:, :size], rows.to(kind))
    assert (found[:, size:] == 0).all()
    assert (found is rows) == (given == kind and width == size)
    assert linear.ready(found, kind)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [9, 100])
def test_depths_that_are_not_aligned(dtype: torch.dtype, size: int) -> None:
    check(linear, problem((21, 70, size), dtype=dtype, offset="one"))


def test_every_operand_of_a_product_is_aligned() -> None:
    """8,142 classes of bfloat16 end in the middle of 16 bytes; no row of a product's operand or result does."""
    rows, classes, size = 256, 8142, 2048
    x, w = (torch.empty(n, size, dtype=torch.bfloat16, device="meta") for n in (rows, classes))
    target = torch.empty(rows, 1, dtype=torch.int64, device="meta")
    p = Problem(x, w, None, target, None, None, None, 30.0, Normalize.BOTH, 0, classes, -100, rows, classes)
    numbers = torch.empty(rows, device="meta")
    kept, scale = x.new_empty(0), torch.empty(classes, device="meta")
    backward = linear.Backward(
        p,
        (kept, numbers, scale, numbers, numbers),
        (numbers, numbers[:, None], None, None),
        (True, True, False, False),
    )
    with recorded():
        slab = backward.slab(slice(0, rows), slice(0, classes))
    assert slab.shape == (rows, classes)
    assert slab.stride() == (8192, 1)

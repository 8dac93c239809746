"""Norms, projections and aligned memory on a GPU against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
from device import DEVICE, MARKS
from helpers import normal
from linear_problems import HALVES
from tolerances import assert_close

from lt_kernels.core import numbers
from lt_kernels.reference.linear import project_rows
from lt_kernels.triton import linear
from lt_kernels.triton.launch import recorded

pytestmark = MARKS


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

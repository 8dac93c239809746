"""The GPU's loss and gradient of rows in one launch against their definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from device import DEVICE, MARKS
from helpers import classes_of, normal
from row_problems import DTYPES, LOSSES, arithmetic, judge, problem, wide
from torch import Tensor

from lt_kernels.core.terms import Phi, Reduce, Terms
from lt_kernels.reference import rows as reference
from lt_kernels.triton import rows, rows_tiles
from lt_kernels.triton.launch import recorded

pytestmark = MARKS
MEANS = [Reduce.WEIGHTED_MEAN, Reduce.SUM, Reduce.MEAN]
PLAIN: dict[str, Any] = {"kind": Phi.PLAIN, "offset": None, "smooth": None}
FULL: dict[str, Any] = {"kind": Phi.ANGULAR, "offset": "one", "smooth": "one", "margin": 0.4, "scale": 3.0}
FULL |= {"instance": 0.5, "gamma": 1.5}


def scales(n: int, c: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scales of rows and columns, some of them negative or 0."""
    kind = arithmetic(dtype)
    row, column = normal(n, seed=31, dtype=kind), normal(c, seed=32, dtype=kind)
    column[::7] = 0.0
    return row.to(DEVICE), column.to(DEVICE)


def check(
    logits: Tensor, target: Tensor, t: Terms, reduction: int, by: tuple[Tensor | None, ...] = (None, None)
) -> None:
    """Loss and gradient."""
    found = [rows.rows_loss_gradient(logits, target, *by, *t, reduction)]
    for values, scale, terms in ((logits, by, t), (logits.double(), wide(by), Terms(*wide(tuple(t))))):
        found.append(reference.rows_loss_gradient(values, target, *scale, *terms, reduction))
    judge(found[0], found[1], found[2], logits.dtype)
    assert (found[0][1][target == -100] == 0).all()


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_every_loss(settings: dict[str, Any]) -> None:
    """In turn with every reduction and dtype, for short rows of one program and of several, and for long ones."""
    at = LOSSES.index(settings)
    for turn, sizes in enumerate(((6, 70), (4, 1040))):
        check(*problem(*sizes, DTYPES[(turn + at) % 4], **settings), MEANS[(turn + at) % 3])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1025, 1100, 4099])
def test_long_rows(classes: int, dtype: torch.dtype) -> None:
    """Several blocks; rows that begin anywhere within 16 bytes."""
    check(*problem(5, classes, dtype, **PLAIN), Reduce.MEAN)


@pytest.mark.parametrize("n, c", [(6, 90), (3, 1100)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_of_rows_and_columns(dtype: torch.dtype, n: int, c: int) -> None:
    check(*problem(n, c, dtype, **FULL), Reduce.WEIGHTED_MEAN, scales(n, c, dtype))


def forget() -> None:
    """Make plans and launches anew."""
    rows_tiles.one_launch.cache_clear()
    rows._once.cache_clear()


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs take several rows one after the other, as if there were thousands; short ones are not one program's."""
    monkeypatch.setattr(rows_tiles, "processors", lambda _: 1)
    monkeypatch.setattr(rows_tiles, "ONE_PROGRAM", 0)
    forget()
    yield
    forget()


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("n, c", [(23, 200), (7, 1100)])
def test_rows_one_after_the_other(n: int, c: int) -> None:
    for reduction in MEANS:
        check(*problem(n, c, torch.bfloat16, **PLAIN | {"offset": "one"}), reduction)


@pytest.mark.usefixtures("few_programs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_share_an_offset(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time; of the last two one is not there, and in one pair both are ignored."""
    monkeypatch.setattr(rows_tiles, "CACHED", 1024)
    forget()
    logits, target, t = problem(7, 2400, dtype, **PLAIN | {"offset": "one", "smooth": "one"})
    target[2:4] = -100
    logits[2:4] = torch.nan
    check(logits, target, t, Reduce.WEIGHTED_MEAN)
    with recorded() as launches:
        rows.rows_loss_gradient(logits, target, None, None, *t, Reduce.MEAN)
    assert launches[0].arguments["R"] == rows_tiles.SHARING == 2


@pytest.mark.parametrize("classes", [9, 1030])
@pytest.mark.parametrize("reduction", MEANS)
def test_rows_that_do_not_count(reduction: int, classes: int) -> None:
    """Whatever their logits hold, their gradient is 0 to the bit; a mean of no row is NaN."""
    logits, target, t = problem(4, classes, torch.float32, **PLAIN | {"smooth": "one", "gamma": 0.5})
    target[:] = classes_of(4, classes, seed=21).to(DEVICE)
    target[::2] = -100
    logits[0], logits[2] = torch.inf, torch.nan
    loss, gradient = rows.rows_loss_gradient(logits, target, None, None, *t, reduction)
    clean = rows.rows_loss_gradient(logits.nan_to_num(0.0, 0.0), target, None, None, *t, reduction)
    assert torch.equal(loss, clean[0])
    assert torch.equal(gradient, clean[1])
    assert (gradient[::2] == 0).all()
    loss, gradient = rows.rows_loss_gradient(logits, torch.full_like(target, -100), None, None, *t, reduction)
    assert loss == 0 if reduction == Reduce.SUM else loss.isnan()
    assert (gradient == 0).all()


@pytest.mark.parametrize("classes", [40, 1029])
def test_the_gradient_in_place_of_the_logits(classes: int) -> None:
    """Rows of a wider matrix: the gradient overwrites them, and nothing beside them is read or written."""
    logits, target, t = problem(4, classes, torch.bfloat16, **PLAIN | {"offset": "one"})
    expected = rows.rows_loss_gradient(logits, target, None, None, *t, Reduce.MEAN)
    for first, rest in ((8, 16), (3, 0)):
        whole = torch.full((6, first + classes + rest), torch.nan, dtype=logits.dtype, device=DEVICE)
        slab = whole[1:5, first : first + classes]
        slab.copy_(logits)
        found = rows.rows_loss_gradient(slab, target, None, None, *t, Reduce.MEAN, into=slab)
        assert found[1] is slab
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other)
        assert whole.isnan().sum() == whole.numel() - slab.numel()


def test_into_is_checked() -> None:
    logits, target, t = problem(3, 5, torch.float32, **PLAIN)
    for into in (logits[:, :4], logits.T.contiguous().T):
        with pytest.raises(ValueError, match="into must have"):
            rows.rows_loss_gradient(logits, target, None, None, *t, Reduce.MEAN, into=into)


def test_losses_that_are_not_reduced_take_two_passes() -> None:
    for classes in (30, 1100):
        check(*problem(3, classes, torch.float32, **FULL), Reduce.NONE, scales(3, classes, torch.float32))
    found = {
        (256, 8142, Reduce.MEAN): True,
        (256, 8142, Reduce.NONE): False,
        (0, 10, Reduce.SUM): False,
        (64, 128_256, Reduce.SUM): True,
        (8, 128_256, Reduce.SUM): False,
        (20_000, 100, Reduce.SUM): False,
    }
    assert {key: rows.serves_once(*key[:2], torch.bfloat16, key[2]) for key in found} == found


@pytest.mark.parametrize("n, c", [(5, 60), (3, 1101)])
def test_times_grad(n: int, c: int) -> None:
    """One number or one for each row; ignored rows stay 0 for any; a factor of 1 leaves a row as it is."""
    logits, target, t = problem(n, c, torch.float32, **PLAIN | {"offset": "one", "smooth": "one"})
    gradient = rows.rows_loss_gradient(logits, target, None, None, *t, Reduce.MEAN)[1]
    for grad in (torch.tensor(1.0), torch.tensor(-0.5), torch.tensor(torch.inf), torch.arange(n) + 1.0):
        wider = torch.full((n, c + 8), 3.0, device=DEVICE)
        slab = wider[:, :c]
        slab.copy_(gradient)
        rows.times_grad(slab, target, grad.to(DEVICE), -100)
        factor = grad if grad.dim() == 0 else grad[:, None]
        expected = torch.where((target == -100)[:, None], 0.0, gradient * factor.to(DEVICE))
        assert torch.equal(slab.nan_to_num(), expected.nan_to_num())
        assert (wider[:, c:] == 3.0).all()
    ignored = torch.full_like(target, -100)
    zeros = torch.zeros_like(gradient)
    rows.times_grad(zeros, ignored, torch.tensor(torch.nan, device=DEVICE), -100)
    assert (zeros == 0).all()


@pytest.mark.usefixtures("few_programs")
def test_the_same_bits_every_time() -> None:
    given = problem(40, 60, torch.float32, **FULL)
    first, second = (rows.rows_loss_gradient(*given[:2], None, None, *given[2], Reduce.WEIGHTED_MEAN) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


SIZES = [(256, 8142, 2), (128, 100, 1), (4096, 128_256, 2), (256, 1000, 2), (16, 128_256, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_launches(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    """One that makes all, and one that sums the losses if there are several programs."""
    n, c, launches = size
    logits, offset = torch.empty(n, c, dtype=dtype, device="meta"), torch.empty(1, c, device="meta")
    target = torch.empty(n, dtype=torch.int64, device="meta")
    with recorded() as found:
        loss, gradient = rows.rows_loss_gradient(logits, target, None, None, *Terms(offset), Reduce.MEAN)
    assert len(found) == launches
    assert (loss.shape, gradient.shape) == ((), (n, c))

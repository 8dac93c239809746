"""The GPU's losses of rows and their reductions against their definition, on a GPU or by Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from device import DEVICE, MARKS
from helpers import normal
from row_problems import DTYPES, LOSSES, judge, problem, wide
from torch import Tensor

from lt_kernels.core.terms import Phi, Reduce, Terms
from lt_kernels.reference import rows as reference
from lt_kernels.triton import rows
from lt_kernels.triton.launch import recorded

pytestmark = MARKS


def loss_and_gradient(wing: Any, logits: Tensor, target: Tensor, t: Terms, reduction: int) -> tuple[Tensor, ...]:
    """loss, saved, and the gradients for logits and offset."""
    loss, saved = wing.rows_loss(logits, target, *t, reduction)
    grad = normal(max(loss.numel(), 1), seed=16, dtype=loss.dtype).to(DEVICE)[: loss.numel()].reshape(loss.shape)
    tables = (t.offset, t.offset_row, t.mean_weight)
    return loss, saved, *wing.rows_loss_backward(logits, target, saved, grad, *tables, t.scale, -100, True)


def check_loss(logits: Tensor, target: Tensor, t: Terms, reduction: int) -> None:
    """Loss, slopes and gradients against the definition; each line of the slopes by itself."""
    found = [
        loss_and_gradient(*arguments, target, each, reduction)
        for arguments, each in (
            ((rows, logits), t),
            ((reference, logits), t),
            ((reference, logits.double()), Terms(*wide(tuple(t)))),
        )
    ]
    judge(*((loss, *saved, *gradients) for loss, saved, *gradients in found), logits.dtype)


@pytest.mark.parametrize("reduction", range(4))
@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_loss(settings: dict[str, Any], reduction: int) -> None:
    for turn, sizes in enumerate(((1, 3), (6, 70), (4, 1040))):
        check_loss(*problem(*sizes, DTYPES[(turn + reduction) % 4], **settings), reduction)


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are treated as ten thousands are: several programs add up, and the last launch divides."""
    monkeypatch.setattr(rows, "ALONE", 8)
    monkeypatch.setattr(rows, "SOME", 16)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("reduction", range(4))
def test_many_rows(reduction: int) -> None:
    check_loss(*problem(50, 3, torch.float32, kind=Phi.PLAIN, offset="one", smooth="one"), reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_of_rows(dtype: torch.dtype) -> None:
    """Few long rows are cut; their parts come together in the loss."""
    settings = {"kind": Phi.ANGULAR, "offset": "one", "smooth": "one", "margin": 0.4, "scale": 3.0, "instance": 0.5}
    check_loss(*problem(2, 5001, dtype, **settings), Reduce.WEIGHTED_MEAN)
    check_loss(*problem(1, 9000, dtype, kind=Phi.PLAIN, offset=None, smooth=None), Reduce.NONE)


@pytest.mark.parametrize("classes", [4, 1100])
@pytest.mark.parametrize("reduction", range(4))
def test_no_rows(reduction: int, classes: int) -> None:
    """As the definition: no loss, a sum of 0, a mean of NaN."""
    logits, target, t = problem(0, classes, torch.float32, kind=Phi.PLAIN, offset="one", smooth="one")
    for mine, expected in zip(
        loss_and_gradient(rows, logits, target, t, reduction),
        loss_and_gradient(reference, logits, target, t, reduction),
        strict=True,
    ):
        assert mine.shape == expected.shape
        torch.testing.assert_close(mine, expected, equal_nan=True)


@pytest.mark.parametrize("reduction", [Reduce.WEIGHTED_MEAN, Reduce.SUM, Reduce.MEAN])
def test_rows_that_do_not_count(reduction: int) -> None:
    """All ignored: the mean is NaN, its gradient zero, whatever the logits hold."""
    logits, target, t = problem(3, 5, torch.float32, kind=Phi.PLAIN, offset=None, smooth="one", gamma=0.5)
    logits[1] = torch.nan
    loss, saved, d_logits, _ = loss_and_gradient(rows, logits, torch.full_like(target, -100), t, reduction)
    assert loss == 0 if reduction == Reduce.SUM else loss.isnan()
    assert (saved[2:] == 0).all()
    assert (d_logits == 0).all()


@pytest.mark.usefixtures("many")
def test_the_same_bits_every_time() -> None:
    settings = {"kind": Phi.PLAIN, "offset": "picked", "smooth": "one", "gamma": 2.0}
    given = problem(70, 40, torch.float32, **settings)
    first, second = (loss_and_gradient(rows, *given, Reduce.WEIGHTED_MEAN) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("n, c, launches", [(256, 8142, 2), (128, 100, 2), (4096, 128_256, 3), (10**6, 19, 3)])
def test_launches(n: int, c: int, launches: int) -> None:
    """Two for few rows, three for any number; one for the gradient, and one more for an offset's."""
    kind = {"dtype": torch.float32, "device": "meta"}
    logits, offset = torch.empty(n, c, dtype=torch.bfloat16, device="meta"), torch.empty(1, c, **kind)
    target = torch.empty(n, dtype=torch.int64, device="meta")
    with recorded() as forward:
        loss, saved = rows.rows_loss(logits, target, *Terms(offset), Reduce.WEIGHTED_MEAN)
    assert len(forward) == launches
    for wanted in (False, True):
        with recorded() as backward:
            found = rows.rows_loss_backward(logits, target, saved, loss, offset, None, None, 1.0, -100, wanted)
        assert len(backward) == 1 + wanted
        assert found[1].shape == (offset.shape if wanted else (0,))


def test_an_absent_target_has_infinite_loss() -> None:
    """On a GPU nothing is checked: a class index that is none, or one whose offset is -inf."""
    logits, target = torch.zeros(3, 4, device=DEVICE), torch.tensor([1, 7, 2], device=DEVICE)
    offset = torch.tensor([[0.0, 0.0, -torch.inf, 0.0]], device=DEVICE)
    loss, saved = rows.rows_loss(logits, target, *Terms(offset, gamma=2.0), Reduce.NONE)
    assert loss[0].isfinite()
    assert (loss[1:] == torch.inf).all()
    assert saved[2:].isfinite().all()

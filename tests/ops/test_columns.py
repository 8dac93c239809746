"""Log-sum-exp down the batch, the targets' logits and LADE's regulariser, against dense float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_same, classes_of, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor

from lt_kernels.functional import lade_regularizer
from lt_kernels.ops import columns

AS_SHIPPED = True
pytestmark = pytest.mark.usefixtures("kernels")

# One lane and less, whole vectors, a rest behind whole blocks, more rows than one chunk, several blocks of columns.
SHAPES = [(1, 1), (1, 17), (3, 16), (64, 64), (65, 257), (300, 1000), (20, 4100)]


class Statistics(torch.autograd.Function):
    """The two operators as one differentiable function."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor, row_offset: Tensor | None) -> tuple[Tensor, ...]:
        found = columns.forward_op(logits, target, row_offset)
        ctx.save_for_backward(logits, target, row_offset, found[0])
        return found

    @staticmethod
    def backward(ctx, d_lse: Tensor, d_own: Tensor) -> tuple[Tensor | None, ...]:
        return columns.backward_op(*ctx.saved_tensors, d_lse.contiguous(), d_own.contiguous()), None, None


def statistics(target: Tensor) -> Callable[..., Tensor]:
    """lse [C] and own [N] side by side, as a function of the logits and the row offset."""

    def function(logits: Tensor, row_offset: Tensor | None = None) -> Tensor:
        return torch.cat(Statistics.apply(logits, target, row_offset))

    return function


def dense(target: Tensor) -> Callable[..., Tensor]:
    def function(logits: Tensor, row_offset: Tensor | None = None) -> Tensor:
        shifted = logits if row_offset is None else logits + row_offset[:, None]
        return torch.cat((shifted.logsumexp(0), logits[torch.arange(len(target)), target]))

    return function


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("rows", "classes"), SHAPES)
def test_statistics(rows: int, classes: int, dtype: torch.dtype) -> None:
    target = classes_of(rows, classes, seed=1)
    logits = normal(rows, classes, seed=2, spread=3, dtype=dtype)
    assert_same(statistics(target), dense(target), {"logits": logits}, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_row_offset(dtype: torch.dtype) -> None:
    target = classes_of(70, 33, seed=1)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    offset = normal(70, seed=3, spread=2).to(kind)
    assert_same(
        lambda logits: statistics(target)(logits, offset),
        lambda logits: dense(target)(logits, offset.double()),
        {"logits": normal(70, 33, seed=2, dtype=dtype)},
        dtype,
    )


@pytest.mark.parametrize("shift", [-3e4, -500.0, 500.0, 3e4])
def test_far_from_zero(shift: float) -> None:
    """Logits of any size: nothing overflows, and maxima that come late rescale what was summed before."""
    target = classes_of(200, 40, seed=1)
    logits = normal(200, 40, seed=2, spread=20, dtype=torch.float32) + shift * torch.linspace(0, 1, 200)[:, None]
    found, eager = (gradients(function(target), {"logits": logits}) for function in (statistics, dense))
    truth = gradients(dense(target), {"logits": logits.double()})
    for key, value in truth.items():  # a large lse has few digits left for the gradient, torch's own as well
        assert error(found[key], value) <= error(eager[key], value) + TOLERANCE[torch.float32], key


@pytest.mark.parametrize("layout", ["columns of a wider matrix", "transposed", "every second row"])
def test_layouts(layout: str) -> None:
    wide = normal(80, 120, seed=2, dtype=torch.float32)
    logits = {"transposed": wide.T, "every second row": wide[::2]}.get(layout, wide[:, 7:90])
    target = classes_of(*logits.shape, seed=1)
    left, right = (op(logits, target, None) for op in (columns.forward_op, columns.reference.columns_forward))
    assert_close(left[0], right[0])
    assert torch.equal(left[1], right[1])
    rest = left[0], normal(logits.shape[1], seed=3).float(), normal(logits.shape[0], seed=4).float()
    gradient = columns.backward_op(logits, target, None, *rest)
    assert gradient.is_contiguous()
    assert_close(gradient, columns.reference.columns_backward(logits, target, None, *rest))


def test_infinities() -> None:
    """A class that is nowhere has -inf and no gradient; +inf and NaN come through; the other columns are as always."""
    logits = normal(100, 20, seed=2, dtype=torch.float32)
    logits[:, 3] = -torch.inf
    logits[50, 4], logits[99, 5], logits[0, 6] = torch.inf, torch.nan, -torch.inf
    target = torch.full((100,), 9)
    lse, own = columns.forward_op(logits, target, None)
    assert lse[3:5].tolist() == [-torch.inf, torch.inf]
    assert lse[5].isnan()
    calm = [c for c in range(20) if c not in (3, 4, 5)]
    assert_close(lse[calm], logits.double().logsumexp(0)[calm])
    gradient = columns.backward_op(logits, target, None, lse, torch.ones(20), torch.zeros_like(own))
    assert (gradient[:, 3] == 0).all()
    assert_close(gradient[:, calm], logits.double().softmax(0)[:, calm], torch.float32)


@pytest.mark.parametrize("wrong", [-100, -1, 5, 10**12])
def test_target_out_of_range(wrong: int) -> None:
    target = torch.tensor([0, wrong, 1])
    with pytest.raises((IndexError, RuntimeError), match=f"target holds {wrong}; allowed are 0 to 4"):
        columns.forward_op(torch.zeros(3, 5), target, None)
    with pytest.raises((IndexError, RuntimeError), match="target holds"):
        lade_regularizer(torch.zeros(3, 5), target, [1, 1, 1, 1, 1])


def test_gradcheck() -> None:
    logits, target = normal(9, 21, seed=2).requires_grad_(), classes_of(9, 21, seed=1)
    torch.autograd.gradcheck(lambda z: Statistics.apply(z, target, None), logits)
    torch.autograd.gradcheck(lambda z: lade_regularizer(z, target, range(1, 22), lam=0.4), logits)


def test_threads_change_no_bits(kernels: str) -> None:
    if kernels == "reference":
        pytest.skip("torch's own sums may depend on the threads")
    logits, target = normal(500, 700, seed=2, dtype=torch.float32), classes_of(500, 700, seed=1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(columns.forward_op(logits, target, None)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_operators(dtype: torch.dtype) -> None:
    logits, target = normal(6, 9, seed=2, dtype=dtype), classes_of(6, 9, seed=1)
    lse, own = columns.forward_op(logits, target, None)
    torch.library.opcheck(columns.forward_op, (logits, target, torch.ones_like(own)))
    torch.library.opcheck(columns.backward_op, (logits, target, None, lse, lse, own))

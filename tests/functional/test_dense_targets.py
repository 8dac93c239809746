"""Pairs of targets from class probabilities: the loss is that of the probabilities, and what is no pair is refused."""

from __future__ import annotations

import pytest
import torch
from helpers import normal
from tolerances import assert_close
from torch.nn import functional as F

from lt_kernels.functional import MixedTarget
from lt_kernels.losses import ArcFaceLoss, BalancedSoftmaxLoss, CrossEntropyLoss

COUNTS = torch.tensor([100, 50, 20, 5, 1])
FIRST, SECOND = torch.tensor([0, 1, 4, 2, 3, 3]), torch.tensor([1, 0, 4, 3, 0, 2])
LAM = torch.tensor([0.7, 0.2, 0.6, 1.0, 0.0, 0.5], dtype=torch.float64)


def dense(dtype: torch.dtype = torch.float64, smoothing: float = 0.0) -> torch.Tensor:
    hot = [F.one_hot(one, len(COUNTS)).double() * (1 - smoothing) + smoothing / len(COUNTS) for one in (FIRST, SECOND)]
    return (LAM[:, None] * hot[0] + (1 - LAM[:, None]) * hot[1]).to(dtype)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_of_a_pair_is_that_of_the_probabilities(smoothing: float, dtype: torch.dtype):
    logits, probabilities = normal(6, 5, seed=1).requires_grad_(), dense(dtype, smoothing)
    target = MixedTarget.from_dense(probabilities, label_smoothing=smoothing)
    for loss, offset in ((CrossEntropyLoss, 0.0), (BalancedSoftmaxLoss, COUNTS.double().log())):
        counts = () if loss is CrossEntropyLoss else (COUNTS,)
        value = loss(*counts, label_smoothing=smoothing)(logits, target)
        published = -(probabilities.double() * (logits + offset).log_softmax(1)).sum(1).mean()
        found, expected = (torch.autograd.grad(one, logits)[0] for one in (value, published))
        kind = {} if dtype == torch.float64 else {"rtol": 1e-6, "atol": 1e-6}
        torch.testing.assert_close(value, published, **kind)
        torch.testing.assert_close(found, expected, **kind)


def test_margins_take_the_pair():
    cosines = normal(6, 5, seed=2).tanh()
    target = MixedTarget.from_dense(dense())
    each = [ArcFaceLoss(reduction="none")(cosines, one) for one in (FIRST, SECOND)]
    assert_close(ArcFaceLoss()(cosines, target), (LAM * each[0] + (1 - LAM) * each[1]).mean())


def test_the_larger_share_comes_first_and_a_single_class_twice():
    target = MixedTarget.from_dense(dense())
    assert target.first.tolist()[:5] == [0, 0, 4, 2, 0]
    assert target.second.tolist()[:5] == [1, 1, 4, 2, 0]
    assert target.lam.tolist() == pytest.approx([0.7, 0.8, 1.0, 1.0, 1.0, 0.5])
    assert MixedTarget.from_dense(torch.ones(3, 1)).lam.tolist() == [1.0, 1.0, 1.0]
    assert MixedTarget.from_dense(torch.zeros(0, 4)).first.shape == (0,)


@pytest.mark.parametrize(("row", "message"), [
    ([0.5, 0.3, 0.2, 0.0, 0.0], r"at most two classes .* row 1 with 3 classes above 0"),
    ([0.5, 0.3, 0.0, 0.0, 0.0], r"a sum of 1, .* row 1 with 2 classes .*a sum of 0\.8"),
    ([1.2, -0.2, 0.0, 0.0, 0.0], r"row 1 .* a least of -0\.2"),
    ([0.92, 0.02, 0.02, 0.02, 0.02], r"timm's Mixup\(label_smoothing=0\.1\), need that label_smoothing"),
    ([float("nan"), 1.0, 0.0, 0.0, 0.0], r"row 1"),
])  # fmt: skip
def test_a_row_that_is_no_pair_is_named(row: list[float], message: str):
    probabilities = torch.tensor([[0.0, 0.4, 0.6, 0.0, 0.0], row])
    with pytest.raises(ValueError, match=message):
        MixedTarget.from_dense(probabilities)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"probabilities must be \[N, C\], got \[5\]"):
        MixedTarget.from_dense(torch.ones(5))
    with pytest.raises(TypeError, match=r"probabilities must be float32.*int64"):
        MixedTarget.from_dense(torch.ones(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"label_smoothing must be below 1.*got 1\.0"):
        MixedTarget.from_dense(torch.eye(3), label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"beside label_smoothing=0\.2 spread over all, got row 0"):
        MixedTarget.from_dense(dense(smoothing=0.1), label_smoothing=0.2)


def test_where_values_cannot_be_read_a_wrong_row_has_no_loss():
    """As on a GPU, which is not waited for: under torch.compile, too, values are not looked at."""
    compiled = torch.compile(lambda p: MixedTarget.from_dense(p).lam, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.25, 0.75]])).tolist() == pytest.approx(
        [float("nan"), 0.75], nan_ok=True
    )

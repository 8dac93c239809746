"""Traps of counts, offsets, focal factors, dense targets and small dtypes: the naive form is there too, and fails."""

from __future__ import annotations

import math

import published
import pytest
import torch
from helpers import assert_same, classes_of, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from lt_kernels import functional, losses
from lt_kernels.functional import MixedTarget

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators
HALVES = [torch.float16, torch.bfloat16]


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_dense_target_times_minus_infinity() -> None:
    """A class of count zero under a dense target matrix: 0 * -inf is NaN."""
    counts, logits = torch.tensor([30.0, 0.0, 5.0, 9.0]).double(), normal(6, 4, seed=221)
    dense = normal(6, 4, seed=222).softmax(1) * (counts > 0)
    naive = gradients(lambda z: -(dense * (z + counts.log()).log_softmax(1)).sum(1).mean(), {"z": logits})
    assert naive["value"].isnan()
    kept = counts > 0
    assert_same(
        lambda z: losses.BalancedSoftmaxLoss(counts).double()(z, dense),
        lambda z: cross_entropy(z[:, kept] + counts[kept].log(), dense[:, kept]),
        {"z": logits},
    )


@pytest.mark.parametrize("soft", [False, True])
def test_smoothing_over_a_class_that_is_not_there(soft: bool) -> None:
    """Label smoothing puts mass on every class; on one with offset -inf that is an infinite loss."""
    offset = torch.tensor([1.0, -torch.inf, 0.5, -2.0], dtype=torch.float64)
    logits, target = normal(6, 4, seed=223), torch.tensor([0, 2, 3, 0, 2, 3])
    y = one_hot(target, 4).double() if soft else target
    assert not cross_entropy(logits + offset, y, label_smoothing=0.1).isfinite()
    kept = [0, 2, 3]
    shorter = one_hot(target, 4).double()[:, kept] if soft else one_hot(target, 4)[:, kept].argmax(1)
    assert_same(
        lambda z: functional.offset_cross_entropy(z, y, offset=offset, label_smoothing=0.1),
        lambda z: cross_entropy(z[:, kept] + offset[kept], shorter, label_smoothing=0.1),
        {"z": logits},
    )


@pytest.mark.parametrize(
    "make",
    [
        losses.BalancedSoftmaxLoss,
        losses.LogitAdjustmentLoss,
        losses.ARBLoss,
        losses.LADELoss,
        losses.LDAMLoss,
        losses.DBMLoss,
        losses.ClassBalancedLoss,
    ],
)
def test_target_of_a_class_without_counts(make: type[torch.nn.Module]) -> None:
    """The official forms give inf or NaN; ours says which argument is wrong."""
    counts, logits = torch.tensor([30.0, 0.0, 5.0]), normal(2, 3, seed=224).tanh()
    target = torch.tensor([0, 1])
    assert not published.arb(logits, target, counts.double()).isfinite()
    with pytest.raises((ValueError, RuntimeError), match=r"class_counts|offset|target|margin|weight"):
        make(counts).double()(logits, target)


@pytest.mark.parametrize("dtype", HALVES)
def test_counts_up_to_a_million_in_half_precision(dtype: torch.dtype) -> None:
    """n e^z overflows float16, and z + log n rounded to bfloat16 is wrong by hundredths."""
    counts = torch.tensor([1_000_000.0, 40_000.0, 300.0, 3.0])
    logits, target = normal(32, 4, seed=225, spread=3.0, dtype=dtype), classes_of(32, 4, 226)
    truth = gradients(lambda z: published.balanced_softmax(z, target, counts.double()), {"z": logits.double()})
    naive = gradients(lambda z: cross_entropy((z + counts.log().to(dtype)), target, reduction="mean"), {"z": logits})
    if dtype == torch.float16:
        mass = counts.to(dtype) * logits.exp()
        assert not (-(mass.gather(1, target[:, None])[:, 0] / mass.sum(1)).log()).isfinite().all()
    found = gradients(lambda z: losses.BalancedSoftmaxLoss(counts)(z, target), {"z": logits})
    for key, exact in truth.items():
        assert_close(found[key], exact, dtype, key)
    assert error(naive["z"], truth["z"]) > 2 * error(found["z"], truth["z"])


@pytest.mark.parametrize("dtype", HALVES)
def test_mean_of_many_rows_in_half_precision(dtype: torch.dtype) -> None:
    """A running sum of 9,000 losses of 10 stops growing in either half precision (and 90,000 is beyond float16)."""
    logits = torch.zeros(9_000, 4, dtype=dtype)
    logits[:, 1] = 10.0
    target = torch.zeros(9_000, dtype=torch.long)
    rows = cross_entropy(logits.float(), target, reduction="none")
    naive = torch.zeros((), dtype=dtype)
    for row in rows.to(dtype):
        naive = naive + row
    assert naive < 0.5 * rows.sum()
    assert_close(functional.offset_cross_entropy(logits, target), rows.double().mean(), dtype)


@pytest.mark.parametrize("size", [1e4, 1e20])
def test_huge_offsets(size: float) -> None:
    """e^b overflows; subtracted before the exponential nothing does."""
    offset = torch.tensor([size, -size, 0.0, size])
    logits, target = normal(4, 4, seed=227, dtype=torch.float32), torch.tensor([0, 1, 2, 3])
    mass = (logits + offset).exp()
    assert not (-(mass / mass.sum(1, keepdim=True)).log()).isfinite().all()
    call = functional.offset_cross_entropy
    found = gradients(
        lambda z, offset: call(z, target, offset=offset, reduction="none"), {"z": logits, "offset": offset}
    )
    assert finite(found)
    exact = cross_entropy(logits.double() + offset.double(), target, reduction="none")
    assert found["value"][[1, 2]].tolist() == pytest.approx(exact[[1, 2]].tolist(), rel=TOLERANCE[torch.float32])
    if size < 1e6:  # beyond that nothing of the logits is left beside the offset
        eager, rows = cross_entropy(logits + offset, target, reduction="none"), [0, 3]
        assert error(found["value"][rows], exact[rows]) <= error(eager[rows], exact[rows]) + TOLERANCE[torch.float32]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_factor_of_a_row_that_is_right(gamma: float) -> None:
    """1 - e^-c is zero below c = 6e-8 in float32, and so is logsumexp - z_y; expm1 and softplus keep all digits."""
    logits, target = torch.tensor([[21.0, 0.0], [-3.0, 25.0]]), torch.tensor([0, 1])
    cost = cross_entropy(logits, target, reduction="none")
    naive = (1 - (-cost).exp()) ** gamma * cost
    assert (naive == 0).all()
    found = functional.offset_cross_entropy(logits, target, focal_gamma=gamma, reduction="none")
    tail = torch.tensor([-21.0, -28.0], dtype=torch.float64).exp()
    exact = (tail / (1 + tail)) ** gamma * torch.log1p(tail)
    assert ((found - exact) / exact).abs().max() < 1e-5


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.99])
def test_focal_below_one_at_zero_cost(gamma: float) -> None:
    """gamma (1 - q)^(gamma - 1) is infinite at q = 1, times c = 0: the official gradient is NaN, the limit 0."""
    logits, target = torch.tensor([[300.0, 0.0, -4.0], [1.0, 2.0, 3.0]]), torch.tensor([0, 1])

    def naive(z: Tensor) -> Tensor:
        cost = cross_entropy(z, target, reduction="none")
        return ((1 - (-cost).exp()) ** gamma * cost).sum()

    assert gradients(naive, {"z": logits})["z"][0].isnan().any()
    call = functional.offset_cross_entropy
    found = gradients(lambda z: call(z, target, focal_gamma=gamma, reduction="sum"), {"z": logits})
    assert finite(found)
    assert found["z"][0].abs().max() < 1e-20
    one = gradients(lambda z: call(z, torch.tensor([0]), focal_gamma=gamma, reduction="sum"), {"z": torch.zeros(1, 1)})
    assert one["value"] == 0
    assert one["z"] == 0


def test_large_scale_on_a_row_that_is_right() -> None:
    """lse - z_y is zero in float32 where the loss is e^-40, and p_y - 1 is zero too."""
    logits, target = torch.tensor([[40.0, 0.0]]), torch.tensor([0])
    naive = gradients(lambda z: cross_entropy(z, target), {"z": logits})
    assert naive["value"] == 0
    assert naive["z"][0, 0] == 0
    found = gradients(lambda z: functional.offset_cross_entropy(z, target), {"z": logits})
    assert found["value"].item() == pytest.approx(math.exp(-40), rel=1e-5)
    assert found["z"][0].tolist() == pytest.approx([-math.exp(-40), math.exp(-40)], rel=1e-5, abs=0)


def test_absent_classes_of_a_batch() -> None:
    """log of a batch count of zero under a dense target is NaN; clamping to 30 instead stops the gradient."""
    logits, target = normal(5, 6, seed=228), torch.tensor([0, 2, 2, 5, 0])
    counts = target.bincount(minlength=6).double()
    assert (one_hot(target, 6) * (logits + counts.log()).log_softmax(1)).sum().isnan()
    found = gradients(lambda z: losses.ARBLoss(counts="batch")(z, target), {"z": logits})
    assert finite(found)
    assert (found["z"][:, counts == 0] == 0).all()
    large = logits + 40.0
    clamped = gradients(lambda z: published.arb(z.clamp(-30, 30), target, counts + 1), {"z": large})
    assert (clamped["z"] == 0).all()
    assert_close(gradients(lambda z: losses.ARBLoss(counts="batch")(z, target), {"z": large})["z"], found["z"])


def test_weighted_mean_of_mixed_labels() -> None:
    """With weights and the mean of weights a dense target divides by the wrong number."""
    first, second, lam = torch.tensor([0, 0, 1, 2]), torch.tensor([2, 2, 2, 1]), 0.3
    weight, logits = torch.tensor([0.1, 1.0, 4.0], dtype=torch.float64), normal(4, 3, seed=229)
    dense = lam * one_hot(first, 3) + (1 - lam) * one_hot(second, 3)
    pair = [cross_entropy(logits, y, weight) for y in (first, second)]
    truth = lam * pair[0] + (1 - lam) * pair[1]
    assert abs(cross_entropy(logits, dense, weight) - truth) > 0.1
    assert_close(functional.offset_cross_entropy(logits, MixedTarget(first, second, lam), weight), truth)


def test_focal_of_mixed_labels() -> None:
    """The focal factor is not linear in the target."""
    first, second, lam, gamma = classes_of(8, 3, 230), classes_of(8, 3, 231), 0.3, 2.0
    logits = normal(8, 3, seed=232)
    cost = cross_entropy(logits, lam * one_hot(first, 3) + (1 - lam) * one_hot(second, 3), reduction="none")
    naive = ((1 - (-cost).exp()) ** gamma * cost).mean()
    truth = lam * published.focal(logits, first, gamma) + (1 - lam) * published.focal(logits, second, gamma)
    assert abs(naive - truth) > 0.02
    call = functional.offset_cross_entropy
    assert_close(call(logits, MixedTarget(first, second, lam), focal_gamma=gamma), truth)


@pytest.mark.parametrize("size", [80.0, 100.0, 700.0, 1000.0, 3e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softplus_of_a_row_that_is_hopeless(dtype: torch.dtype, size: float) -> None:
    """log(1 + e^v) overflows from v = 88 on in float32 and 709 in float64; the loss is v."""
    naive = torch.tensor(size, dtype=dtype).exp().log1p()
    assert not naive.isfinite() or size < (88 if dtype == torch.float32 else 709)
    leaves = {"z": torch.tensor([[0.0, size], [size, 0.0]], dtype=dtype)}
    call, target = functional.offset_cross_entropy, torch.tensor([0, 0])
    for gamma in (0.0, 2.0):
        found = gradients(
            lambda z, gamma=gamma: call(z, target, focal_gamma=gamma, reduction="none"),
            leaves,
            torch.ones(2, dtype=dtype),
        )
        assert found["value"].tolist() == pytest.approx([size, 0.0], rel=1e-6, abs=1e-30)
        assert found["z"][0].tolist() == pytest.approx([-1.0, 1.0])
        assert finite(found)

"""Priors, schedules and metrics against closed forms and literal numbers."""

from __future__ import annotations

import math

import numpy as np
import published
import pytest
import torch
from helpers import classes_of, counts_of
from tolerances import assert_close

from lt_kernels import metrics, priors, schedules

COUNTS = counts_of(13, 151)


def close(actual: torch.Tensor, expected: object) -> None:
    """Compare at the precision that `actual` has."""
    assert_close(torch.as_tensor(actual), torch.as_tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_log_prior(tau: float) -> None:
    total = COUNTS.sum().item()
    close(priors.log_prior(COUNTS, tau), [tau * math.log(n / total) for n in COUNTS.tolist()])
    close(priors.log_prior(COUNTS.long().tolist(), tau), [tau * math.log(n / total) for n in COUNTS.tolist()])


def test_counts_may_be_any_sequence() -> None:
    """Integers, floats, a list, a tuple, a numpy array, a tensor of any dtype: the same numbers."""
    counts = [100, 10, 1]
    expected = priors.log_prior(torch.tensor(counts))
    for same in (tuple(counts), np.array(counts), torch.tensor(counts, dtype=torch.float32), [100.0, 10.0, 1.0]):
        assert torch.equal(priors.log_prior(same), expected)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 0.99999999])
def test_class_balanced_weight(beta: float, normalize: bool) -> None:
    close(
        priors.class_balanced_weight(COUNTS, beta, normalize),
        published.class_balanced_weight(COUNTS, beta, normalize),
    )


def test_margins() -> None:
    close(priors.ldam_margin(COUNTS, 0.3), published.ldam_margin(COUNTS, 0.3))
    close(priors.dbm_margin(COUNTS, 0.3, 0.5), published.dbm_margin(COUNTS, 0.3, 0.5))
    close(priors.ldam_margin([16, 1]), [0.25, 0.5])
    close(priors.dbm_margin([16, 1, 2]), [0.1 / 16, 0.1, 0.05])


@pytest.mark.parametrize("shape", ["concave", "linear", "convex", "exp"])
def test_label_aware_smoothing(shape: str) -> None:
    expected = published.label_aware_smoothing(COUNTS, 0.4, 0.1, shape, 2.5)
    close(priors.label_aware_smoothing(COUNTS, 0.4, 0.1, shape=shape, power=2.5), expected)


def test_class_counts_of() -> None:
    target = classes_of(200, 11, 152)
    found = priors.class_counts_of(target, 13)
    assert found.tolist() == [(target == c).sum().item() for c in range(13)]


def test_deferred_reweighting() -> None:
    """No weight before the start epoch, class-balanced weight from it on; the epoch counts from 0."""
    schedule = schedules.DeferredReweighting(COUNTS, start_epoch=160, beta=0.999)
    assert schedule(0) is None
    assert schedule(159) is None
    for epoch in (160, 199, 320, 1000):
        close(schedule(epoch), published.class_balanced_weight(COUNTS, 0.999))
    bare = schedules.DeferredReweighting(COUNTS, 0, 0.999, normalize=False)
    close(bare(0), (1 - 0.999) / (1 - 0.999 ** COUNTS.double()))


def test_polynomial_decay() -> None:
    schedule = schedules.PolynomialDecay(200)
    assert [schedule(t) for t in (0, 50, 100, 200, 500)] == pytest.approx([1.0, 0.5625, 0.25, 0.0, 0.0])
    assert schedules.PolynomialDecay(10, power=1.0)(3) == pytest.approx(0.7)


def test_linear_warmup() -> None:
    schedule = schedules.LinearWarmup(5)
    assert [schedule(t) for t in (0, 1, 4, 5, 100)] == pytest.approx([0.2, 0.4, 1.0, 1.0, 1.0])


def test_sphereface_annealing() -> None:
    schedule = schedules.SphereFaceAnnealing()
    assert [schedule(t) for t in (0, 25, 1650, 1659, 10**9)] == pytest.approx([1000.0, 250.0, 1000 / 199, 5.0, 5.0])
    assert schedules.SphereFaceAnnealing(8.0, 0.0, 1.0, power=3.0)(1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "value", [schedules.PolynomialDecay(10), schedules.LinearWarmup(5), schedules.SphereFaceAnnealing()], ids=str
)
def test_schedules_are_frozen(value: object) -> None:
    with pytest.raises((AttributeError, TypeError)):
        value.power = 3  # type: ignore[attr-defined]


def test_per_class_accuracy() -> None:
    target = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    prediction = torch.tensor([0, 0, 0, 1, 1, 0, 2])
    close(metrics.per_class_accuracy(prediction, target, 4), [0.75, 0.5, math.nan, 0.0])


def test_group_accuracy() -> None:
    """many: n > 100, medium: 20 to 100 inclusive, few: n < 20; the mean of class accuracies; an empty group is NaN."""
    accuracy = torch.tensor([0.9, 0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    groups = metrics.group_accuracy(accuracy, torch.tensor([500, 101, 100, 20, 19, 1]))
    expected = {"many": 0.85, "medium": 0.5, "few": 0.1, "all": 2.9 / 6}
    assert {key: float(groups[key]) for key in expected} == pytest.approx(expected)
    assert math.isnan(float(metrics.group_accuracy(accuracy, torch.full((6,), 50))["few"]))
    moved = metrics.group_accuracy(accuracy, torch.tensor([500, 101, 100, 20, 19, 1]), many=99, few=2)
    assert float(moved["many"]) == pytest.approx(2.3 / 3)


def test_geometric_mean() -> None:
    """Only exact zeros are replaced by eps."""
    value = metrics.geometric_mean(torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64))
    assert float(value) == pytest.approx((0.25 * 1e-3) ** (1 / 3))
    value = metrics.geometric_mean(torch.tensor([1.0, 1e-5], dtype=torch.float64), eps=0.1)
    assert float(value) == pytest.approx(1e-5**0.5)

"""Traps of priors, weights and the column log-sum-exp of LADE: the naive form is there too, and fails."""

from __future__ import annotations

import math
from collections.abc import Callable

import published
import pytest
import torch
from helpers import classes_of, gradients, normal
from tolerances import TOLERANCE, assert_close
from torch import Tensor

from lt_kernels import functional, losses, priors

pytestmark = pytest.mark.usefixtures("kernels")


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.parametrize("beta", [0.9999, 0.999999])
def test_one_minus_beta_to_the_n(beta: float) -> None:
    """1 - beta^n in float32 has lost four digits at beta = 0.9999 and all but two at 0.999999."""
    counts = [1, 2, 7, 40, 1_000, 100_000]
    single = torch.tensor(counts, dtype=torch.float32)
    naive = (1 - torch.tensor(beta)) / (1 - torch.tensor(beta) ** single)
    exact = torch.tensor([(1 - beta) / -math.expm1(n * math.log(beta)) for n in counts], dtype=torch.float64)
    assert ((naive - exact) / exact).abs().max() > 1e-4
    found = priors.class_balanced_weight(counts, beta, normalize=False)
    assert ((found - exact) / exact).abs().max() < TOLERANCE[torch.float32]


@pytest.mark.parametrize("prior", [priors.class_balanced_weight, priors.ldam_margin, priors.dbm_margin])
def test_class_without_counts_spoils_every_other_class(prior: Callable[..., Tensor]) -> None:
    """0/0 or n^(-1/4) = inf, normalised, turns the whole vector into zeros and NaN; here it is refused."""
    counts = torch.tensor([100.0, 10.0, 0.0, 3.0])
    root, reweighted = counts.pow(-0.25), (1 - 0.9) / (1 - 0.9**counts)
    assert (root / root.max())[[0, 1, 3]].max() == 0
    assert (reweighted / reweighted.sum())[[0, 1, 3]].max() == 0
    assert (counts / counts.min())[[0, 1, 3]].isinf().all()
    with pytest.raises(ValueError, match="class_counts"):
        prior(counts)


def test_epsilon_inside_the_prior() -> None:
    """log(p^tau + 1e-12) is wrong by 0.047 for the rarest of 8,142 species at tau = 2."""
    counts = torch.tensor([437_511.0, 2.0])
    share = (counts / counts.sum()).double()
    exact = 2 * share.log()
    assert abs((share**2 + 1e-12).log()[1] - exact[1]) > 0.04
    assert_close(priors.log_prior(counts, 2.0), exact, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_column_exponentials_overflow(dtype: torch.dtype) -> None:
    """log of the mean of e^f down a column: infinite for f of 100, and in float16 from 12 on."""
    logits, target = normal(12, 5, seed=233, spread=4.0, dtype=dtype), classes_of(12, 5, 234)
    logits[3, 2], counts = (12.0 if dtype == torch.float16 else 100.0), torch.tensor([900.0, 30.0, 5.0, 60.0, 11.0])
    assert not logits.exp().mean(0).log().isfinite().all()
    leaves, call = {"logits": logits}, functional.lade_regularizer
    found = gradients(lambda logits: call(logits, target, counts), leaves)
    truth = gradients(
        lambda logits: published.lade_regularizer(logits, target, counts.double()), {"logits": logits.double()}
    )
    for key, exact in truth.items():
        assert_close(found[key], exact, dtype, key)


def test_prior_of_zero_in_lade() -> None:
    """A class without training samples: log 0 without the floor; with it the class weighs p_c = 0."""
    counts, target = torch.tensor([9.0, 0.0, 4.0]).double(), torch.tensor([0, 2, 2])
    logits = normal(3, 3, seed=235)
    prior = counts / counts.sum()
    bound = logits.logsumexp(0) - math.log(3) - prior.log() + math.log(1 / 3)
    assert (prior * bound).sum().isnan()
    found = gradients(lambda z: functional.lade_regularizer(z, target, counts), {"z": logits})
    assert finite(found)
    assert (found["z"][:, 1] == 0).all()


def test_absent_class_is_pushed_down_in_lade_and_up_below_its_bound() -> None:
    """dLADER/df = p (1 + 2 lambda B) softmax_i: positive until B < -1 / (2 lambda)."""
    counts, target = torch.tensor([10.0, 10.0]), torch.tensor([0, 0])
    for level, sign in ((0.0, 1), (-20.0, -1)):
        logits = torch.tensor([[0.0, level], [0.0, level]], dtype=torch.float64)
        found = gradients(lambda z: functional.lade_regularizer(z, target, counts, lam=0.1), {"z": logits})["z"]
        assert (found[:, 1].sign() == sign).all()
        there = gradients(lambda z: functional.lade_regularizer(z, target, counts, classes="present"), {"z": logits})
        assert (there["z"][:, 1] == 0).all()


def test_smoothing_with_equal_counts() -> None:
    """(n - n_min) / (n_max - n_min) is 0/0 when all classes have as many samples."""
    counts = torch.full((4,), 25.0)
    assert ((counts - counts.min()) / (counts.max() - counts.min())).isnan().all()
    for shape in ("concave", "linear", "convex", "exp"):
        smoothing = priors.label_aware_smoothing(counts, 0.3, 0.1, shape=shape)
        assert smoothing.tolist() == pytest.approx([smoothing[0].item()] * 4)
        assert min(abs(smoothing[0] - 0.3), abs(smoothing[0] - 0.1)) < 1e-6
    assert losses.LabelAwareSmoothingLoss(counts)(normal(3, 4, seed=236), torch.tensor([0, 1, 2])).isfinite()


def test_normalisation_of_the_weights_matters_only_over_n() -> None:
    """The weighted mean cancels any factor of the weights; the mean over N does not."""
    counts, logits = torch.tensor([900.0, 40.0, 3.0]), normal(7, 3, seed=237)
    target = classes_of(7, 3, 238)
    values = {}
    for average in ("weighted", "batch"):
        for normalize in (True, False):
            loss = losses.ClassBalancedLoss(counts, beta=0.999, average=average, normalize=normalize).double()
            values[average, normalize] = loss(logits, target)
    assert_close(values["weighted", True], values["weighted", False], torch.float32)
    assert values["batch", True] > 5 * values["batch", False]

"""Precision against float64: our error may exceed that of eager torch by no more than the table's tolerance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published
import pytest
import torch
from helpers import classes_of, counts_of, gradients, normal
from tolerances import TOLERANCE, error
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from lt_kernels import functional, losses
from lt_kernels.functional import LDAM, ArcFace, CosFace

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
Function = Callable[..., Tensor]


def judge(ours: Function, eager: Function, exact: Function, leaves: dict[str, Tensor]) -> None:
    """Compare both errors, value and each gradient; `exact` sees the rounded leaves in float64."""
    (dtype,) = {leaf.dtype for leaf in leaves.values() if leaf.is_floating_point()}
    found, usual = gradients(ours, leaves), gradients(eager, leaves)
    for key, truth in gradients(exact, {key: leaf.double() for key, leaf in leaves.items()}).items():
        mine, others = error(found[key], truth), error(usual[key], truth)
        assert mine <= others + TOLERANCE[dtype], f"{key}: error {mine:.2e}, eager {others:.2e}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("rows, classes", [(5, 3), (16, 33), (8, 1000), (4, 4097)])
def test_cross_entropy(rows: int, classes: int, spread: float, dtype: torch.dtype) -> None:
    target, weight = classes_of(rows, classes, 301), normal(classes, seed=302, dtype=dtype).abs()
    leaves = {"logits": normal(rows, classes, seed=303, spread=spread, dtype=dtype)}
    judge(
        lambda logits: functional.offset_cross_entropy(logits, target, weight, label_smoothing=0.1),
        lambda logits: cross_entropy(logits, target, weight, label_smoothing=0.1),
        lambda logits: cross_entropy(logits, target, weight.double(), label_smoothing=0.1),
        leaves,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, classes", [(16, 33), (8, 1025)])
def test_balanced_softmax(rows: int, classes: int, dtype: torch.dtype) -> None:
    counts, target = counts_of(classes, 304, largest=1_000_000), classes_of(rows, classes, 305)
    loss, leaves = losses.BalancedSoftmaxLoss(counts), {"logits": normal(rows, classes, seed=306, dtype=dtype)}
    offset = (counts / counts.sum()).log()
    judge(
        lambda logits: loss(logits, target),
        lambda logits: cross_entropy(logits + offset.to(dtype), target),
        lambda logits: cross_entropy(logits + offset, target),
        leaves,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal(gamma: float, dtype: torch.dtype) -> None:
    target, leaves = classes_of(32, 17, 307), {"logits": normal(32, 17, seed=308, spread=4.0, dtype=dtype)}

    def eager(logits: Tensor) -> Tensor:
        cost = cross_entropy(logits, target, reduction="none")
        return ((1 - (-cost).exp()) ** gamma * cost).mean()

    judge(
        lambda logits: functional.offset_cross_entropy(logits, target, focal_gamma=gamma),
        eager,
        lambda logits: published.focal(logits, target, gamma),
        leaves,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probability_targets(smoothing: float, dtype: torch.dtype) -> None:
    soft = normal(16, 65, seed=309, spread=2.0).softmax(1).to(dtype)
    judge(
        lambda logits: functional.offset_cross_entropy(logits, soft, label_smoothing=smoothing),
        lambda logits: cross_entropy(logits, soft, label_smoothing=smoothing),
        lambda logits: cross_entropy(logits, soft.double(), label_smoothing=smoothing),
        {"logits": normal(16, 65, seed=310, spread=4.0, dtype=dtype)},
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows, classes, features", [(32, 10, 8), (12, 257, 64), (6, 1025, 16)])
def test_linear(rows: int, classes: int, features: int, dtype: torch.dtype) -> None:
    target, call = classes_of(rows, classes, 311), functional.linear_cross_entropy
    leaves = {
        "input": normal(rows, features, seed=312, dtype=dtype),
        "linear_weight": normal(classes, features, seed=313, dtype=dtype),
        "linear_bias": normal(classes, seed=314, dtype=dtype),
    }

    def eager(input: Tensor, linear_weight: Tensor, linear_bias: Tensor) -> Tensor:
        return cross_entropy(torch.nn.functional.linear(input, linear_weight, linear_bias), target)

    judge(lambda **leaves: call(target=target, **leaves), eager, eager, leaves)


COUNTS = counts_of(40, 315)
PHI: dict[str, tuple[Any, Callable[[Tensor, Tensor], Tensor]]] = {
    "cosface": (CosFace(0.35), lambda own, y: own - 0.35),
    "ldam": (LDAM(COUNTS), lambda own, y: own - published.ldam_margin(COUNTS).to(own.dtype)[y]),
    "arcface": (ArcFace(0.5), lambda own, y: (own.acos() + 0.5).cos()),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PHI)
def test_cosine_margin(name: str, dtype: torch.dtype) -> None:
    margin, phi = PHI[name]
    target, call = classes_of(24, 40, 316), functional.cosine_margin_cross_entropy
    leaves = {
        "input": normal(24, 32, seed=317, dtype=dtype),
        "linear_weight": normal(40, 32, seed=318, dtype=dtype),
    }

    def eager(input: Tensor, linear_weight: Tensor) -> Tensor:
        cosine = normalize(input) @ normalize(linear_weight).T
        own = cosine.gather(1, target[:, None])[:, 0]
        return cross_entropy(30.0 * torch.where(one_hot(target, 40).bool(), phi(own, target)[:, None], cosine), target)

    judge(lambda **leaves: call(target=target, margin=margin, scale=30.0, **leaves), eager, eager, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", ["ce", "bs"])
def test_dbm_from_cosines(base: str, dtype: torch.dtype) -> None:
    target, margin = classes_of(24, 40, 319), published.dbm_margin(COUNTS, 0.2)
    prior = (COUNTS / COUNTS.sum()).log() if base == "bs" else torch.zeros(40, dtype=torch.float64)
    loss = losses.DBMLoss(COUNTS, max_margin=0.2, base=base)

    def eager(cosine: Tensor) -> Tensor:
        phi = published.dbm(cosine, target, margin.to(cosine.dtype))
        return cross_entropy(30.0 * published.replace(cosine, target, phi) + prior.to(cosine.dtype), target)

    leaves = {"cosine": 0.9 * normal(24, 40, seed=320, dtype=dtype).tanh()}
    judge(lambda cosine: loss(cosine, target), eager, eager, leaves)


@pytest.mark.parametrize("threshold", [-1.0, 0.3])
def test_repulsion(threshold: float) -> None:
    leaves = {"weight": normal(90, 12, seed=321, dtype=torch.float32)}
    alike = normalize(leaves["weight"].double()) @ normalize(leaves["weight"].double()).T
    assert (alike - threshold).abs().min() > 1e-6  # no pair changes sides by rounding

    def eager(weight: Tensor) -> Tensor:
        return published.logit_weight_repulsion(weight, threshold)

    judge(lambda weight: functional.logit_weight_repulsion(weight, threshold=threshold), eager, eager, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lade(dtype: torch.dtype) -> None:
    counts, target = counts_of(33, 322), classes_of(48, 33, 323)
    leaves = {"logits": normal(48, 33, seed=324, spread=2.0, dtype=dtype)}

    def eager(logits: Tensor) -> Tensor:
        return published.lade_regularizer(logits, target, counts.to(logits.dtype))

    judge(lambda logits: functional.lade_regularizer(logits, target, counts), eager, eager, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_have_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    """As torch has it: float16 in, float16 out, also of every gradient (`gradients` asks for that)."""
    logits, target = normal(6, 5, seed=325, dtype=dtype), classes_of(6, 5, 326)
    features, weight = normal(6, 4, seed=327, dtype=dtype), normal(5, 4, seed=328, dtype=dtype)
    for value in (
        functional.offset_cross_entropy(logits, target, offset=normal(5, seed=329, dtype=torch.float32)),
        functional.linear_cross_entropy(features, weight, target),
        functional.cosine_margin_cross_entropy(features, weight, target, margin=LDAM(torch.ones(5))),
        functional.logit_weight_repulsion(weight),
        functional.lade_regularizer(logits, target, torch.ones(5)),
    ):
        assert value.dtype == dtype
        assert value.isfinite()

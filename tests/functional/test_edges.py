"""Empty batches, a single class, batches without a row that counts, autocast, and large indices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import classes_of, gradients, normal
from tolerances import TOLERANCE, assert_close, error
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from lt_kernels import functional, heads, losses
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

pytestmark = pytest.mark.usefixtures("kernels")
AS_SHIPPED = True  # small inputs may take another way than the operators

D = 3
MARGINS = [None, CosFace(0.3), ArcFace(0.5), SphereFace(4)]
OPTIONS: list[dict[str, Any]] = [{}, {"label_smoothing": 0.2}, {"focal_gamma": 0.5}]


def equal_to_torch(logits: Tensor, target: Tensor, **options: Any) -> None:
    """The same value, NaN included, and the same gradient, NaN included."""
    ours = gradients(lambda z: functional.offset_cross_entropy(z, target, **options), {"z": logits})
    theirs = gradients(lambda z: cross_entropy(z, target, **options), {"z": logits})
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape
        assert torch.allclose(ours[key], expected, rtol=1e-12, atol=1e-14, equal_nan=True), key


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3), (2, 4, 0)], ids=str)
def test_empty_batch(shape: tuple[int, ...], reduction: str) -> None:
    """As torch: the sum is 0, the mean NaN, and nothing crashes."""
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    equal_to_torch(torch.zeros(shape, dtype=torch.float64), target, reduction=reduction)
    soft = torch.zeros(shape, dtype=torch.float64)
    equal_to_torch(soft, soft, reduction=reduction, label_smoothing=0.1)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_all_rows_ignored(smoothing: float, reduction: str) -> None:
    target = torch.full((5,), -100)
    equal_to_torch(normal(5, 4, seed=501), target, reduction=reduction, label_smoothing=smoothing)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_single_class(options: dict[str, Any], reduction: str) -> None:
    """With one class every row is right: the loss and its gradient are exactly zero."""
    leaves = {"input": normal(5, D, seed=502), "linear_weight": normal(1, D, seed=503)}
    target = torch.zeros(5, dtype=torch.long)
    call = functional.offset_cross_entropy
    found = gradients(lambda z: call(z, target, reduction=reduction, **options), {"z": normal(5, 1, seed=504)})
    assert all((tensor == 0).all() for tensor in found.values())
    for margin in (*MARGINS, LDAM([7]), DBM([7], 0.3)):
        found = gradients(
            lambda margin=margin, **leaves: functional.cosine_margin_cross_entropy(
                target=target, margin=margin, reduction=reduction, **options, **leaves
            ),
            leaves,
        )
        assert all((tensor == 0).all() for tensor in found.values()), margin


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize("margin", MARGINS, ids=lambda margin: type(margin).__name__)
def test_empty_batch_of_features(margin: object, reduction: str) -> None:
    target = torch.zeros(0, dtype=torch.long)
    leaves = {"input": torch.zeros(0, D), "linear_weight": normal(4, D, seed=505, dtype=torch.float32)}
    call: Any = functional.cosine_margin_cross_entropy
    found = gradients(lambda **leaves: call(target=target, margin=margin, reduction=reduction, **leaves), leaves)
    assert all((tensor == 0).all() for tensor in found.values())
    found = gradients(
        lambda **leaves: functional.linear_cross_entropy(target=target, reduction=reduction, **leaves), leaves
    )
    assert all((tensor == 0).all() for tensor in found.values())


def test_ignored_rows_do_not_reach_the_features() -> None:
    """A row that is ignored has zero gradient, whatever is in it, and does not count in the mean."""
    features, weight, target = normal(6, D, seed=506), normal(4, D, seed=507), torch.tensor([0, -100, 2, 3, -100, 1])
    kept = target >= 0
    for name, call in (
        ("linear", functional.linear_cross_entropy),
        ("cosine", lambda *args: functional.cosine_margin_cross_entropy(*args, margin=ArcFace(0.5))),
    ):
        whole = gradients(lambda x, w, call=call: call(x, w, target), {"x": features, "w": weight})
        part = gradients(lambda x, w, call=call: call(x, w, target[kept]), {"x": features[kept], "w": weight})
        assert_close(whole["value"], part["value"], name=name)
        assert_close(whole["x"][kept], part["x"], name=name)
        assert_close(whole["w"], part["w"], name=name)
        assert (whole["x"][~kept] == 0).all()


def test_infinite_logits_of_an_ignored_row() -> None:
    """Padding may hold anything."""
    logits = normal(3, 4, seed=508)
    logits[1] = torch.inf
    target = torch.tensor([0, -100, 2])
    found = gradients(lambda z: functional.offset_cross_entropy(z, target, reduction="sum"), {"z": logits})
    assert found["value"].isfinite()
    assert (found["z"][1] == 0).all()
    assert found["z"][[0, 2]].isfinite().all()


def test_not_a_number_is_not_hidden() -> None:
    """A NaN among the logits of a row that counts makes the loss NaN, as in torch."""
    logits = normal(3, 4, seed=509)
    logits[1, 2] = torch.nan
    found = functional.offset_cross_entropy(logits, torch.tensor([0, 1, 2]), reduction="none")
    assert found[1].isnan()
    assert found[[0, 2]].isfinite().all()
    weight = normal(4, D, seed=510)
    weight[1, 0] = torch.nan
    assert functional.logit_weight_repulsion(weight).isnan()
    loss = functional.cosine_margin_cross_entropy(normal(3, D, seed=511), weight, torch.tensor([0, 1, 2]))
    assert loss.isnan()


@pytest.mark.parametrize("logits", [[0.0, -torch.inf, 1.0], [-torch.inf, 2.0, 1.0]], ids=str)
def test_logits_of_minus_infinity(logits: list[float]) -> None:
    """A masked logit is a class that is not there; a masked target has infinite loss, as in torch."""
    row = torch.tensor([logits], dtype=torch.float64)
    target = torch.tensor([0])
    found = gradients(lambda z: functional.offset_cross_entropy(z, target), {"z": row})
    expected = cross_entropy(row, target)
    assert found["value"] == expected or abs(found["value"] - expected) < 1e-12
    if row[0, 0].isfinite():
        assert found["z"].isfinite().all()
        assert found["z"][0, 1] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["offset", "linear", "cosine"])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """As good as eager under autocast; gradients keep the dtype of the parameters."""
    features = normal(40, 16, seed=512, dtype=torch.float32)
    weight, target = normal(30, 16, seed=513, dtype=torch.float32), classes_of(40, 30, 514)

    def ours(x: Tensor, w: Tensor) -> Tensor:
        if name == "offset":
            return functional.offset_cross_entropy(linear(x, w), target)
        if name == "linear":
            return functional.linear_cross_entropy(x, w, target)
        return functional.cosine_margin_cross_entropy(x, w, target, margin=CosFace(0.2), scale=8.0)

    def eager(x: Tensor, w: Tensor) -> Tensor:
        if name != "cosine":
            return cross_entropy(linear(x, w), target)
        cosine = linear(torch.nn.functional.normalize(x), torch.nn.functional.normalize(w))
        return cross_entropy(8.0 * (cosine - 0.2 * torch.nn.functional.one_hot(target, 30)), target)

    leaves = {"x": features, "w": weight}
    truth = gradients(eager, {key: leaf.double() for key, leaf in leaves.items()})
    with torch.autocast("cpu", dtype=dtype):
        found, usual = gradients(ours, leaves), gradients(eager, leaves)
    for key, exact in truth.items():
        assert error(found[key], exact) <= error(usual[key], exact) + TOLERANCE[dtype], key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_of_a_head_and_a_loss(dtype: torch.dtype) -> None:
    counts, features, target = torch.tensor([900.0, 40.0, 3.0]), normal(8, D, seed=515).float(), classes_of(8, 3, 516)
    for head in (
        heads.LinearHead(D, 3, losses.BalancedSoftmaxLoss(counts)),
        heads.CosineHead(D, 3, losses.DBMLoss(counts, base="bs")),
    ):
        plain = head(features, target)
        with torch.autocast("cpu", dtype=dtype):
            value = head(features, target)
        value.backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in head.parameters())
        # 30 is the scale of the cosines: their rounding reaches the loss multiplied by it
        assert abs(value - plain) < 30 * TOLERANCE[dtype]


def test_mixed_target_with_ignored_rows() -> None:
    """Each label of the pair is ignored for itself."""
    first, second = torch.tensor([0, -100, 2, -100]), torch.tensor([1, 1, -100, -100])
    logits, call = normal(4, 3, seed=517), functional.offset_cross_entropy
    found = gradients(lambda z: call(z, MixedTarget(first, second, 0.3)), {"z": logits})
    expected = gradients(lambda z: 0.3 * call(z, first) + 0.7 * call(z, second), {"z": logits})
    for key, value in expected.items():
        assert_close(found[key], value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_without_memory(dtype: torch.dtype) -> None:
    """On the meta device: shapes and dtypes, as for a model that is not loaded yet."""
    z, x, w = (torch.empty(size, dtype=dtype, device="meta", requires_grad=True) for size in ((6, 5), (6, D), (5, D)))
    target = torch.empty(6, dtype=torch.int64, device="meta")
    for loss, leaves in (
        (functional.offset_cross_entropy(z, target, label_smoothing=0.1), [z]),
        (functional.linear_cross_entropy(x, w, target), [x, w]),
        (functional.cosine_margin_cross_entropy(x, w, target, margin=ArcFace(0.4)), [x, w]),
        (functional.logit_weight_repulsion(w), [w]),
        (functional.lade_regularizer(z, target, torch.ones(5)), [z]),
    ):
        assert (loss.shape, loss.dtype, loss.device.type) == ((), dtype, "meta")
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves), strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device.type) == (leaf.shape, dtype, "meta")

"""Heads, regularisers, the estimated offset and the centre loss against their papers' formulas."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
from helpers import assert_same, classes_of, counts_of, normal
from tolerances import assert_close
from torch import Tensor

from lt_kernels import functional, heads, losses, regularizers

AS_SHIPPED = True
pytestmark = pytest.mark.usefixtures("kernels")

ROWS, CLASSES, FEATURES = 17, 9, 5
COUNTS = counts_of(CLASSES, 111)


def parameters(head: torch.nn.Module, **values: Tensor) -> None:
    """Set the head's parameters."""
    with torch.no_grad():
        for name, value in values.items():
            getattr(head, name).copy_(value)


def gradients_of(head: torch.nn.Module, features: Tensor, target: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, the gradient of the features, and of each parameter by name."""
    leaf = features.clone().requires_grad_()
    value = head(leaf, target)
    value.backward()
    return value, leaf.grad, {name: value.grad for name, value in head.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("bias", [True, False])
def test_linear_head(bias: bool) -> None:
    head = heads.LinearHead(FEATURES, CLASSES, losses.BalancedSoftmaxLoss(COUNTS), bias=bias).double()
    weight, shift = normal(CLASSES, FEATURES, seed=112), normal(CLASSES, seed=113)
    parameters(head, weight=weight, **({"bias": shift} if bias else {}))
    features, target = normal(ROWS, FEATURES, seed=114), classes_of(ROWS, CLASSES, 115)
    value, slope, found = gradients_of(head, features, target)
    leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_(), (shift * bias).requires_grad_()]
    expected = published.balanced_softmax(leaves[0] @ leaves[1].T + leaves[2], target, COUNTS)
    expected.backward()
    assert_close(value, expected)
    assert_close(slope, leaves[0].grad)
    assert_close(found["weight"], leaves[1].grad)
    if bias:
        assert_close(found["bias"], leaves[2].grad)
    assert_close(head(features), features @ weight.T + shift * bias)


@pytest.mark.parametrize("name", ["dbm", "bs"])
def test_cosine_head(name: str) -> None:
    """A margin loss brings its own scale; a loss of logits takes the head's."""
    loss = losses.DBMLoss(COUNTS, 0.3, scale=12.0) if name == "dbm" else losses.BalancedSoftmaxLoss(COUNTS)
    head = heads.CosineHead(FEATURES, CLASSES, loss, scale=7.0).double()
    weight = normal(CLASSES, FEATURES, seed=116)
    parameters(head, weight=weight)
    features, target = normal(ROWS, FEATURES, seed=117), classes_of(ROWS, CLASSES, 118)
    value, slope, found = gradients_of(head, features, target)
    leaves = [features.clone().requires_grad_(), weight.clone().requires_grad_()]
    cosine = published.cosines(*leaves)
    if name == "dbm":
        phi = published.dbm(cosine, target, published.dbm_margin(COUNTS, 0.3))
        expected = published.cross_entropy(12.0 * published.replace(cosine, target, phi), target)
    else:
        expected = published.balanced_softmax(7.0 * cosine, target, COUNTS)
    expected.backward()
    assert_close(value, expected)
    assert_close(slope, leaves[0].grad)
    assert_close(found["weight"], leaves[1].grad)
    assert_close(head(features), published.cosines(features, weight))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("project", [True, False, "raw"])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.2, 0.4, 0.6, 1.0])
def test_logit_weight_repulsion(threshold: float, project: Any, reduction: str) -> None:
    leaves = {"linear_weight": normal(11, 3, seed=119) * torch.arange(1.0, 12.0, dtype=torch.float64)[:, None]}
    options = {"threshold": threshold, "project": project, "reduction": reduction}
    assert_same(
        lambda linear_weight: functional.logit_weight_repulsion(linear_weight, **options),
        lambda linear_weight: published.logit_weight_repulsion(linear_weight, **options),
        leaves,
    )


@pytest.mark.parametrize("classes", [1, 2, 17, 33, 255, 520, 1025])
@pytest.mark.parametrize("threshold", [-0.3, 0.4])
def test_logit_weight_repulsion_of_every_size(threshold: float, classes: int) -> None:
    """Below and above one tile; a negative threshold takes the subtractive pairs too."""
    leaves = {"linear_weight": normal(classes, 6, seed=120)}
    assert_same(
        lambda linear_weight: functional.logit_weight_repulsion(linear_weight, threshold=threshold, reduction="none"),
        lambda linear_weight: published.logit_weight_repulsion(linear_weight, threshold, reduction="none"),
        leaves,
    )


def test_repulsion_module() -> None:
    weight = normal(11, 3, seed=121)
    module = regularizers.LogitWeightRepulsion(threshold=0.2, project=False, reduction="mean")
    expected = published.logit_weight_repulsion(weight, 0.2, False, "mean")
    assert_close(module(weight), expected)
    raw = regularizers.LogitWeightRepulsion(threshold=0.2, project="raw")
    assert_close(raw(weight), published.logit_weight_repulsion(weight, 0.2, "raw"))
    assert "project='raw'" in repr(raw)
    assert_close(regularizers.LogitWeightRepulsion()(weight), published.logit_weight_repulsion(weight))


@pytest.mark.parametrize("classes", ["all", "present"])
@pytest.mark.parametrize("importance", ["class", "sample"])
@pytest.mark.parametrize("lam", [0.0, 0.1, 0.7])
def test_lade_regularizer(lam: float, importance: str, classes: str) -> None:
    target = classes_of(ROWS, CLASSES - 2, 122)
    leaves = {"logits": normal(ROWS, CLASSES, seed=123, spread=2.0)}
    options = {"lam": lam, "importance": importance, "classes": classes}
    module = regularizers.LADERegularizer(COUNTS, **options).double()
    exact = lambda logits: published.lade_regularizer(logits, target, COUNTS, **options)  # noqa: E731
    assert_same(lambda logits: functional.lade_regularizer(logits, target, COUNTS, **options), exact, leaves)
    assert_same(lambda logits: module(logits, target), exact, leaves)


@pytest.mark.parametrize("rows, classes", [(1, 3), (2, 1), (33, 17), (130, 33), (3, 1025), (1030, 5)])
def test_lade_regularizer_of_every_shape(rows: int, classes: int) -> None:
    counts, target = counts_of(classes, 124), classes_of(rows, classes, 125)
    assert_same(
        lambda logits: functional.lade_regularizer(logits, target, counts, lam=0.3),
        lambda logits: published.lade_regularizer(logits, target, counts, 0.3),
        {"logits": normal(rows, classes, seed=126, spread=2.0)},
    )


def test_uniform_offset() -> None:
    assert_same(regularizers.UniformOffset(), published.uniform_offset, {"offset": normal(CLASSES, seed=127)})


def centers_of(module: torch.nn.Module) -> Tensor:
    """The module's one tensor of shape [C, d], to read and to write."""
    held = [*module.parameters(), *module.buffers()]
    (centers,) = [tensor for tensor in held if tensor.shape == (CLASSES, FEATURES)]
    return centers.data


@pytest.mark.parametrize("centers", ["wen", "autograd"])
def test_center_loss(centers: str) -> None:
    module = regularizers.CenterLoss(CLASSES, FEATURES, centers=centers, rate=0.3).double().train()
    start, features = normal(CLASSES, FEATURES, seed=128), normal(ROWS, FEATURES, seed=129).requires_grad_()
    target = classes_of(ROWS, CLASSES - 2, 130)
    centers_of(module).copy_(start)
    value = module(features, target)
    value.backward()
    leaf, held = features.detach().clone().requires_grad_(), start.clone().requires_grad_()
    expected = published.center_loss(leaf, target, held)
    expected.backward()
    assert_close(value, expected)
    assert_close(features.grad, leaf.grad)
    if centers == "wen":
        assert_close(centers_of(module), published.center_step(leaf.detach(), target, start, 0.3))
    else:
        assert_close(next(module.parameters()).grad, held.grad)
        assert_close(centers_of(module), start)


@pytest.mark.parametrize("use", ["subtract", "regularize"])
@pytest.mark.parametrize("centers", ["wen", "autograd"])
def test_estimated_offset(centers: str, use: str) -> None:
    """Gradients of features and class weights are the same either way; the centres move by the rule or by all terms."""
    options = {"center_weight": 0.7, "uniform_weight": 1.3, "use": use}
    loss = losses.EstimatedOffsetLoss(CLASSES, FEATURES, centers=centers, center_rate=0.25, **options).double().train()
    start, target = normal(CLASSES, FEATURES, seed=131), classes_of(ROWS, CLASSES - 2, 132)
    leaves = {"features": normal(ROWS, FEATURES, seed=133), "linear_weight": normal(CLASSES, FEATURES, seed=134)}

    def ours(features: Tensor, linear_weight: Tensor) -> Tensor:
        centers_of(loss).copy_(start)
        return loss(features @ linear_weight.T, target, features=features, linear_weight=linear_weight)

    def exact(features: Tensor, linear_weight: Tensor) -> Tensor:
        return published.estimated_offset(features, linear_weight, target, start, **options)

    assert_same(ours, exact, leaves)
    if centers == "wen":
        assert_close(centers_of(loss), published.center_step(leaves["features"], target, start, 0.25))
        return
    ours(**leaves).backward()
    held = start.clone().requires_grad_()
    published.estimated_offset(leaves["features"], leaves["linear_weight"], target, held, **options).backward()
    assert_close(next(loss.parameters()).grad, held.grad)


def test_centers_rest_in_evaluation() -> None:
    loss = losses.EstimatedOffsetLoss(CLASSES, FEATURES).double().eval()
    start, features = normal(CLASSES, FEATURES, seed=135), normal(ROWS, FEATURES, seed=136)
    centers_of(loss).copy_(start)
    weight = normal(CLASSES, FEATURES, seed=137)
    loss(features @ weight.T, classes_of(ROWS, CLASSES, 138), features=features, linear_weight=weight)
    assert (centers_of(loss) == start).all()


@pytest.mark.parametrize("use", ["subtract", "regularize", "predict"])
def test_linear_head_passes_features_to_the_estimated_offset(use: Any) -> None:
    """The offset is in the prediction, unless it only regularises; and in the loss, if it is subtracted there."""
    loss = losses.EstimatedOffsetLoss(CLASSES, FEATURES, use=use)
    head = heads.LinearHead(FEATURES, CLASSES, loss, bias=False).double().train()
    start, weight = normal(CLASSES, FEATURES, seed=139), normal(CLASSES, FEATURES, seed=140)
    centers_of(loss).copy_(start)
    parameters(head, weight=weight)
    features, target = normal(ROWS, FEATURES, seed=141), classes_of(ROWS, CLASSES, 142)
    offset = 0 if use == "regularize" else (start * weight).sum(1) / 2
    assert_close(head(features), features @ weight.T - offset)
    assert_close(head(features, target), published.estimated_offset(features, weight, target, start, use=use))

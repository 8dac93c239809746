"""The loss and the head of balanced contrastive learning: classifier, projections, prototypes, and their slopes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import counts_of, normal
from published_views import balanced_contrastive as dense
from published_views import unit
from tolerances import assert_close
from torch import Tensor

from lt_kernels import heads, losses

pytestmark = pytest.mark.usefixtures("kernels")

N, C, D = 9, 5, 4
COUNTS = counts_of(C, 801)
TARGET = torch.tensor([0, 0, 0, 1, 1, 2, 0, 1, 3])


def leaves(views: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> dict[str, Tensor]:
    """Views and prototypes of norms that are not 1."""
    return {
        "views": normal(views * N, D, seed=802, spread=spread, dtype=dtype),
        "prototypes": normal(C, D, seed=803, spread=3.0, dtype=dtype),
    }


def bases(name: str) -> tuple[losses.Loss, Any]:
    """The classification part and its formula for cosines [N, C] times 30."""
    prior = (COUNTS / COUNTS.sum()).log()
    if name == "logit adjustment":
        base = losses.LogitAdjustmentLoss(COUNTS)
        return base, lambda cosine: torch.nn.functional.cross_entropy(30 * cosine + prior, TARGET)

    def dbm(cosine: Tensor) -> Tensor:
        rows = []
        for i, own in enumerate(TARGET.tolist()):
            margin = 0.2 * COUNTS.min() / COUNTS[own]
            hard = float(cosine[i].argmax() != own)
            turned = torch.cos(cosine[i, own].acos() + margin * (1 + hard * (1 - cosine[i, own]) / 2))
            logit = torch.stack([turned if c == own else cosine[i, c] for c in range(C)])
            rows.append((30 * logit + prior).logsumexp(0) - 30 * turned - prior[own])
        return torch.stack(rows).mean()

    return losses.DBMLoss(COUNTS, 0.2, scale=30.0, base="bs"), dbm


def norm(rows: Tensor, part: torch.nn.BatchNorm1d, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm in training."""
    centred = rows - rows.mean(0)
    spread = (centred.square().mean(0) + part.eps).sqrt()
    return centred / spread * state[f"{name}.1.weight"] + state[f"{name}.1.bias"]


def dense_head(head: heads.BalancedContrastiveHead, formula: Any, features: Tensor, **state: Tensor) -> Tensor:
    """2 L_base of the first view + 0.6 BalSCL of all, prototypes from the raw class weights."""

    def project(name: str, rows: Tensor) -> Tensor:
        inner = rows @ state[f"{name}.0.weight"].T + state[f"{name}.0.bias"]
        inner = norm(inner, getattr(head, name)[1], state, name).clamp_min(0)
        return inner @ state[f"{name}.3.weight"].T + state[f"{name}.3.bias"]

    first = features[:N]
    value = unit(first) @ unit(state["weight"]).T
    if head.bias is not None:
        value = (first @ state["weight"].T + state["bias"]) / 30
    contrastive = dense(project("projection", features), project("prototypes", state["weight"]), TARGET, 0.1).mean()
    return 2 * formula(value) + 0.6 * contrastive


@pytest.mark.parametrize(
    "name, classifier", [("logit adjustment", "cosine"), ("logit adjustment", "linear"), ("dbm", "cosine")]
)
@pytest.mark.parametrize("views", [1, 2])
def test_head(views: int, name: str, classifier: Any) -> None:
    """Value, and the gradients of features, class weights and both projections."""
    base, formula = bases(name)
    head = heads.BalancedContrastiveHead(
        D, C, losses.BalancedContrastiveLoss(base), cosine=classifier, hidden=6, out_features=3
    ).double()
    features = normal(views * N, D, seed=806).requires_grad_()
    value = head(features, TARGET)
    value.backward()
    state = {key: part.detach().clone().requires_grad_() for key, part in head.named_parameters()}
    leaf = features.detach().clone().requires_grad_()
    expected = dense_head(head, formula, leaf, **state)
    expected.backward()
    assert_close(value, expected)
    assert_close(features.grad, leaf.grad, name="features")
    for key, part in head.named_parameters():
        assert part.grad is not None, key
        assert_close(part.grad, state[key].grad, name=key)
    shown = head(features[:N].detach())
    plain = (
        features[:N] @ head.weight.T + head.bias if classifier == "linear" else unit(features[:N]) @ unit(head.weight).T
    )
    assert_close(shown, plain.detach())


def test_the_classified_view_may_be_left_out() -> None:
    base, formula = bases("logit adjustment")
    loss = losses.BalancedContrastiveLoss(base)
    head = heads.BalancedContrastiveHead(D, C, loss, hidden=6, out_features=3, contrasted="later").double()
    features = normal(3 * N, D, seed=811).requires_grad_()
    value = head(features, TARGET)
    value.backward()
    leaf = features.detach().clone().requires_grad_()
    cosine = unit(leaf[:N]) @ unit(head.weight.detach()).T
    views, prototypes = head.projection(leaf[N:]), head.prototypes(head.weight.detach())
    expected = 2.0 * formula(cosine) + 0.6 * dense(views, prototypes, TARGET, 0.1).mean()
    expected.backward()
    assert_close(value, expected)
    assert_close(features.grad, leaf.grad)
    with pytest.raises(ValueError, match="features must have two views or more of 9 samples, got 9 rows"):
        head(features[:N], TARGET)
    with pytest.raises(ValueError, match="contrasted"):
        heads.BalancedContrastiveHead(D, C, loss, contrasted="first")


def test_loss_module() -> None:
    """Factors and temperature, called with the classifier's output."""
    base, _ = bases("logit adjustment")
    loss = losses.BalancedContrastiveLoss(base, classification_weight=0.7, contrastive_weight=1.9, temperature=0.3)
    logits = normal(N, C, seed=807)
    given = leaves(2)
    expected = 0.7 * torch.nn.functional.cross_entropy(logits + COUNTS.log(), TARGET)
    expected = expected + 1.9 * dense(**given, target=TARGET, temperature=0.3).mean()
    assert_close(loss(logits, TARGET, **given), expected)
    assert loss.input_kind == "logits"
    loss.set_weight(torch.arange(1.0, C + 1))
    weight = torch.arange(1.0, C + 1, dtype=torch.float64)
    other = torch.nn.functional.cross_entropy(logits + COUNTS.log(), TARGET, weight)
    assert_close(
        loss(logits, TARGET, **given),
        0.7 * other + 1.9 * dense(**given, target=TARGET, temperature=0.3).mean(),
    )


def test_state_and_dtype() -> None:
    base, _ = bases("dbm")
    head = heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(base))
    features = normal(2 * N, D, seed=808, dtype=torch.float32)
    head(features, TARGET)
    other = heads.BalancedContrastiveHead(D, C, losses.BalancedContrastiveLoss(losses.DBMLoss(COUNTS, 0.1, base="bs")))
    other.load_state_dict(head.state_dict())
    head.eval()
    other.eval()
    assert torch.equal(head(features, TARGET), other(features, TARGET))
    assert head.double().loss.base.offset.dtype == head.half().loss.base.offset.dtype == torch.float64
    before = head.weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.weight, before)
    assert head.prototypes[1].running_mean.abs().sum() == 0


def test_published_defaults() -> None:
    loss = losses.BalancedContrastiveLoss(losses.LogitAdjustmentLoss(COUNTS))
    assert (loss.classification_weight, loss.contrastive_weight, loss.temperature) == (2.0, 0.6, 0.1)
    head = heads.BalancedContrastiveHead(D, C, loss)
    assert (head.scale, head.projection[3].out_features, head.prototypes[0].out_features) == (30.0, 128, D)


ROWS, BASE, BCL = torch.randn(2 * N, D), losses.LogitAdjustmentLoss(COUNTS), losses.BalancedContrastiveLoss
ERRORS = [
    ("loss", lambda: heads.BalancedContrastiveHead(D, C, BASE)),  # type: ignore[arg-type]
    ("cosine", lambda: heads.BalancedContrastiveHead(D, C, BCL(losses.DBMLoss(COUNTS)), cosine="linear")),
    ("scale", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE), scale=0.0)),
    ("hidden", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE), hidden=0)),
    ("features", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE))(ROWS[:, 1:], TARGET)),
    ("target", lambda: heads.BalancedContrastiveHead(D, C, BCL(BASE))(ROWS[1:], TARGET)),
]


@pytest.mark.parametrize("names, call", ERRORS)
def test_errors(names: str, call: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError), match=rf"\b{names}\b"):
        call()

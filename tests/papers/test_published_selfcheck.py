"""The papers' formulas against each other, closed-form gradients and literal numbers: the judges are judged first."""

from __future__ import annotations

import math

import published
import pytest
import torch
from helpers import classes_of, counts_of, gradients, normal
from tolerances import assert_close
from torch import Tensor

ROWS, CLASSES, FEATURES = 12, 7, 5


def logits_and_target(seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(ROWS, CLASSES, seed=seed, spread=2.0), classes_of(ROWS, CLASSES, seed + 1)


def test_arb_is_balanced_softmax() -> None:
    logits, target = logits_and_target()
    counts = counts_of(CLASSES, 3)
    left = gradients(lambda z: published.arb(z, target, counts), {"z": logits})
    right = gradients(lambda z: published.balanced_softmax(z, target, counts), {"z": logits})
    assert_close(left["value"], right["value"])
    assert_close(left["z"], right["z"])


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_is_an_offset(tau: float) -> None:
    logits, target = logits_and_target()
    counts = counts_of(CLASSES, 4)
    offset = tau * counts.log()
    expected = torch.nn.functional.cross_entropy(logits + offset, target)
    assert_close(published.logit_adjustment(logits, target, counts, tau), expected)
    assert_close(published.cross_entropy(logits, target, offset=offset), expected)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy_is_torch(reduction: str, smoothing: float) -> None:
    logits, target = logits_and_target()
    target[3] = -100
    weight = normal(CLASSES, seed=5).abs()
    options = {"weight": weight, "reduction": reduction}
    expected = torch.nn.functional.cross_entropy(logits, target, label_smoothing=smoothing, **options)
    assert_close(published.cross_entropy(logits, target, smoothing=smoothing, **options), expected)
    soft = normal(ROWS, CLASSES, seed=6).softmax(1)
    expected = torch.nn.functional.cross_entropy(logits, soft, label_smoothing=smoothing, **options)
    assert_close(published.soft_cross_entropy(logits, soft, smoothing=smoothing, **options), expected)


def test_absent_class_equals_the_smaller_problem() -> None:
    logits, target = logits_and_target()
    target = target % (CLASSES - 1)
    offset = torch.zeros(CLASSES, dtype=torch.float64)
    offset[-1] = -torch.inf
    found = gradients(lambda z: published.cross_entropy(z, target, offset=offset, smoothing=0.2), {"z": logits})
    smaller = gradients(lambda z: published.cross_entropy(z, target, smoothing=0.2), {"z": logits[:, :-1]})
    assert_close(found["value"], smaller["value"])
    assert_close(found["z"][:, :-1], smaller["z"])
    assert (found["z"][:, -1] == 0).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_focal_slope(gamma: float) -> None:
    """df/dz = f'(c) (softmax - onehot) with f'(c) = (1 - q)^g + g (1 - q)^(g - 1) q c, q = e^-c."""
    logits, target = logits_and_target()
    found = gradients(lambda z: published.focal(z, target, gamma), {"z": logits})["z"]
    share = logits.softmax(1)
    q = published.own_of(share, target)
    slope = (1 - q) ** gamma + gamma * (1 - q) ** (gamma - 1) * q * -q.log()
    expected = slope[:, None] * (share - torch.nn.functional.one_hot(target, CLASSES)) / ROWS
    assert_close(found, expected)


@pytest.mark.parametrize("instance", [0.0, 1.0, 1.7])
def test_dbm_slope(instance: float) -> None:
    """d phi / d cos = sin(theta + m) / sin(theta) + sin(theta + m) lambda h m_C / 2."""
    cosine, target = 0.9 * normal(40, CLASSES, seed=7).tanh(), classes_of(40, CLASSES, 8)
    margin = published.dbm_margin(counts_of(CLASSES, 9), 0.3)
    found = gradients(
        lambda c: published.dbm(c, target, margin, instance), {"c": cosine}, torch.ones(40, dtype=torch.float64)
    )["c"]
    own, hard = published.own_of(cosine, target), (cosine.argmax(1) != target).double()
    assert 0 < hard.sum() < 40
    theta = own.acos()
    angle = theta + margin[target] * (1 + instance * hard * (1 - own) / 2)
    expected = angle.sin() / theta.sin() + angle.sin() * instance * hard * margin[target] / 2
    assert_close(found.sum(1), expected)
    assert_close(published.own_of(found, target), expected)


def test_sphereface_is_continuous_and_decreasing() -> None:
    theta = torch.linspace(0.001, math.pi - 0.001, 4001, dtype=torch.float64)
    for margin in (1, 2, 3, 4):
        value = published.sphereface(theta.cos(), margin)
        assert (value.diff() < 0).all()
        assert value.diff().abs().max() < 2 * margin * math.pi / 4000
    assert_close(published.sphereface(theta.cos(), 1), theta.cos())


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.7])
def test_lade_gradient(lam: float) -> None:
    """p_c ( -1[y = c] / (N_c + 1e-8) + (1 + 2 lambda B_c) softmax_i(f_c) ); an absent class keeps its second term."""
    logits, target = logits_and_target()
    target[target == 2] = 0
    counts = counts_of(CLASSES, 10)
    found = gradients(lambda z: published.lade_regularizer(z, target, counts, lam), {"z": logits})["z"]
    prior = counts / counts.sum()
    bound = logits.logsumexp(0) - math.log(ROWS) - (prior + 1e-9).log() + math.log(1 / CLASSES + 1e-9)
    onehot = torch.nn.functional.one_hot(target, CLASSES).double()
    expected = prior * (-onehot / (onehot.sum(0) + 1e-8) + (1 + 2 * lam * bound) * logits.softmax(0))
    assert_close(found, expected)


def repulsion_direction(weight: Tensor, threshold: float) -> Tensor:
    """dR/dw_i = sum_{j != i} 1_ij (P_ij + P_ji) (wbar_j - s_ij wbar_i) / |w_i|."""
    unit = weight / weight.norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    alike.fill_diagonal_(1.0)
    similar = alike > threshold
    similar.fill_diagonal_(threshold < 1)
    share = torch.where(similar, alike, 0.0).softmax(1)
    pull = (similar * (share + share.T)).fill_diagonal_(0.0)
    return (pull @ unit - (pull * alike).sum(1, keepdim=True) * unit) / weight.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.2, 0.4, 0.6, 1.0])
def test_repulsion_gradient(threshold: float) -> None:
    weight = normal(11, 3, seed=11) * torch.arange(1.0, 12.0, dtype=torch.float64)[:, None]
    found = gradients(lambda w: published.logit_weight_repulsion(w, threshold), {"w": weight})
    assert_close(found["w"], repulsion_direction(weight, threshold))
    assert_close((found["w"] * weight).sum(1), torch.zeros(11, dtype=torch.float64))
    if threshold == 1:
        assert_close(found["value"], torch.tensor(11 * math.log(11), dtype=torch.float64))


def test_repulsion_without_projection() -> None:
    """Norms held constant: -dR/dw_i = (2 (1 - P_ii) wbar_i - sum_{j != i} C_ij wbar_j) / |w_i|."""
    weight, threshold = normal(11, 3, seed=12), 0.2
    found = gradients(lambda w: published.logit_weight_repulsion(w, threshold, project=False), {"w": weight})["w"]
    unit = weight / weight.norm(dim=1, keepdim=True)
    alike = unit @ unit.T
    similar = alike > threshold
    share = torch.where(similar, alike, 0.0).softmax(1)
    pull = (similar * (share + share.T)).fill_diagonal_(0.0)
    expected = -(2 * (1 - share.diagonal())[:, None] * unit - pull @ unit) / weight.norm(dim=1, keepdim=True)
    assert_close(found, expected)


@pytest.mark.parametrize("threshold", [-1.0, 0.2])
def test_repulsion_of_raw_products(threshold: float) -> None:
    """-dR/dw_i = 2 (1 - P_ii) w_i - sum_{j != i} C_ij w_j, with P of the products and 1_ij of the cosines."""
    weight = 2 * normal(11, 3, seed=14)
    found = gradients(lambda w: published.logit_weight_repulsion(w, threshold, "raw"), {"w": weight})
    similar = torch.nn.functional.cosine_similarity(weight[:, None], weight[None], dim=2) > threshold
    products = torch.where(similar.fill_diagonal_(True), weight @ weight.T, 0.0)
    share = products.softmax(1)
    pull = (similar * (share + share.T)).fill_diagonal_(0.0)
    assert_close(found["w"], pull @ weight - 2 * (1 - share.diagonal())[:, None] * weight)
    assert_close(found["value"], (products.logsumexp(1) - weight.square().sum(1)).sum())


def test_uniform_offset_slope_and_minimum() -> None:
    """dL/do_k = -q_k (log q_k + H), least -log K at equal offsets."""
    offset = normal(CLASSES, seed=13)
    found = gradients(lambda o: published.uniform_offset(o), {"o": offset})["o"]
    share = (-offset).softmax(0)
    entropy = -(share * share.log()).sum()
    assert_close(found, -share * (share.log() + entropy))
    flat = torch.full((CLASSES,), 3.0, dtype=torch.float64)
    assert_close(published.uniform_offset(flat), torch.tensor(-math.log(CLASSES), dtype=torch.float64))


def test_center_step_descends_the_center_loss() -> None:
    features, target, centers = (
        normal(ROWS, FEATURES, seed=14),
        classes_of(ROWS, CLASSES, 15),
        normal(CLASSES, FEATURES, seed=16),
    )
    moved = published.center_step(features, target, centers, 0.5)
    assert published.center_loss(features, target, moved) < published.center_loss(features, target, centers)
    absent = target.bincount(minlength=CLASSES) == 0
    assert (moved[absent] == centers[absent]).all()


def test_literal_numbers() -> None:
    counts = torch.tensor([500.0, 100.0, 5.0], dtype=torch.float64)
    root = [(5 / n) ** 0.25 * 0.5 for n in (500, 100, 5)]
    assert_close(published.ldam_margin(counts), torch.tensor(root, dtype=torch.float64))
    assert_close(published.dbm_margin(counts), torch.tensor([0.001, 0.005, 0.1], dtype=torch.float64))
    smoothing = published.label_aware_smoothing(counts, 0.3, 0.1, "linear")
    assert_close(smoothing, torch.tensor([0.3, 0.1 + 0.2 * 95 / 495, 0.1], dtype=torch.float64))
    weight = published.class_balanced_weight(counts, 0.0)
    assert_close(weight, torch.ones(3, dtype=torch.float64))
    for shape in ("concave", "linear", "convex", "exp"):
        ends = published.label_aware_smoothing(counts, 0.3, 0.1, shape, 2.0)[[0, 2]]
        assert_close(ends, torch.tensor([0.3, 0.1], dtype=torch.float64))

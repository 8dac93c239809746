"""Traps of the cosine margins and of the pairwise repulsion: the naive form is there too, and fails."""

from __future__ import annotations

import math

import published
import pytest
import torch
from helpers import classes_of, gradients, normal
from tolerances import TOLERANCE, assert_close
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from lt_kernels import functional, losses, regularizers
from lt_kernels.functional import DBM, LDAM, ArcFace, CosFace, MixedTarget, SphereFace

pytestmark = pytest.mark.usefixtures("kernels")
COUNTS = torch.tensor([500.0, 60.0, 7.0, 130.0])
MARGINS = [ArcFace(0.5), DBM(COUNTS, 0.3), DBM(COUNTS, 0.3, guard=True), SphereFace(4), CosFace(0.35), LDAM(COUNTS)]


def kind_of(margin: object) -> str:
    return type(margin).__name__


def naive_arcface(
    input: Tensor, linear_weight: Tensor, target: Tensor, margin: float = 0.5, scale: float = 30.0
) -> Tensor:
    """acos of every entry of the cosine matrix, as public code has it."""
    cosine = normalize(input) @ normalize(linear_weight).T
    theta = cosine.acos() + margin * one_hot(target, cosine.shape[1])
    return cross_entropy(scale * theta.cos(), target)


def finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("margin", MARGINS, ids=kind_of)
def test_acos_at_plus_and_minus_one(margin: object, target: int, dtype: torch.dtype) -> None:
    """A cosine of exactly 1 and -1, to the target and to other classes: acos has an infinite slope there."""
    weight = torch.tensor([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [0.5, 0.5]], dtype=dtype)
    leaves = {"input": torch.tensor([[3.0, 0.0]], dtype=dtype), "linear_weight": weight}
    row = torch.tensor([target])
    assert not finite(gradients(lambda **leaves: naive_arcface(target=row, **leaves), leaves))
    call = functional.cosine_margin_cross_entropy
    assert finite(gradients(lambda **leaves: call(target=row, margin=margin, **leaves), leaves))
    if target == 2:  # the naive form is wrong although only other classes' cosines are at the ends
        shifted = gradients(lambda **leaves: call(target=row, margin=ArcFace(0.5), **leaves), leaves)

        def exact(input: Tensor, linear_weight: Tensor) -> Tensor:
            cosine = published.cosines(input, linear_weight)
            phi = published.arcface(published.own_of(cosine, row), 0.5)
            return published.cross_entropy(30.0 * published.replace(cosine, row, phi), row)

        truth = gradients(exact, {key: leaf.double() for key, leaf in leaves.items()})
        for key, value in truth.items():
            assert_close(shifted[key], value, dtype, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", [ArcFace(0.5), DBM(torch.ones(400), 0.3), SphereFace(2)], ids=kind_of)
def test_self_dot_above_one(margin: object, dtype: torch.dtype) -> None:
    """A row normalised against itself: in float32 a fifth of such dot products exceed 1, and acos of them is NaN."""
    rows = normal(400, 64, seed=201, dtype=dtype)
    target, scale = torch.arange(400), 1.0 if isinstance(margin, SphereFace) else 30.0
    unit = normalize(rows.float())
    assert ((unit * unit).sum(1) > 1).float().mean() > 0.1
    assert not naive_arcface(rows.float(), rows.float(), target).isfinite()
    call = functional.cosine_margin_cross_entropy
    leaves = {"input": rows, "linear_weight": rows}
    found = gradients(lambda **leaves: call(target=target, margin=margin, scale=scale, **leaves), leaves)
    assert finite(found)
    # theta = 0; a rounding of the cosine by r moves theta by sqrt(2 r), which is all the digits that there are
    phi = 1.0 if isinstance(margin, SphereFace) else math.cos(0.5 if isinstance(margin, ArcFace) else 0.3)
    wide = rows.double()
    size = wide.norm(dim=1, keepdim=True) if isinstance(margin, SphereFace) else 1.0
    cosine = published.replace(published.cosines(wide, wide), target, torch.full((400,), phi, dtype=torch.float64))
    exact = published.cross_entropy(scale * size * cosine, target)
    assert abs(found["value"] - exact) < scale * math.sqrt(2 * 16 * TOLERANCE[dtype])


@pytest.mark.parametrize("zero", ["input", "linear_weight"])
@pytest.mark.parametrize("margin", MARGINS, ids=kind_of)
def test_zero_vectors(margin: object, zero: str) -> None:
    """A feature or class weight of length zero: x / |x| is NaN, and so is everything that sees it."""
    leaves = {"input": normal(5, 3, seed=202), "linear_weight": normal(4, 3, seed=203)}
    leaves[zero][1] = 0.0
    target = torch.tensor([0, 1, 2, 3, 1])
    naive = gradients(
        lambda **leaves: cross_entropy(published.cosines(**leaves), target),
        dict(zip(("features", "linear_weight"), leaves.values(), strict=True)),
    )
    assert not finite(naive)
    call = functional.cosine_margin_cross_entropy
    found = gradients(lambda **leaves: call(target=target, margin=margin, **leaves), leaves)
    assert finite(found)


def test_hinge_beyond_pi() -> None:
    """DBM as printed pushes a sample of the rarest class away once theta + m passes pi; the guard does not."""
    slopes = {}
    for guard in (False, True):
        loss = losses.DBMLoss(torch.tensor([5.0, 500.0]), max_margin=0.3, scale=32.0, guard=guard).double()
        for own in (-0.8, -0.9, -0.95):
            cosine = torch.tensor([[own, 0.5]], dtype=torch.float64, requires_grad=True)
            loss(cosine, torch.tensor([0])).backward()
            slopes[guard, own] = cosine.grad[0, 0].item()
    assert slopes[False, -0.8] == pytest.approx(-4.3, abs=0.1)
    assert slopes[False, -0.9] == pytest.approx(10.4, abs=0.1)
    assert slopes[False, -0.95] > 25
    assert all(slopes[True, own] < 0 for own in (-0.8, -0.9, -0.95))


@pytest.mark.parametrize("margin", [ArcFace(0.5), DBM(torch.ones(2), 0.3, guard=True), SphereFace(4)], ids=kind_of)
def test_loss_grows_with_the_angle(margin: object) -> None:
    """cos(theta + m) and cos(4 theta) turn round before pi: a worse angle then costs less."""
    angle = torch.linspace(0.0, math.pi, 200, dtype=torch.float64)
    naive = (4 * angle).cos() if isinstance(margin, SphereFace) else (angle + 0.5).cos()
    assert (naive.diff() > 0).any()
    features = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], 1)
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    call, target = functional.cosine_margin_cross_entropy, torch.zeros(200, dtype=torch.long)
    loss = call(features, weight, target, margin=margin, scale=2.0, reduction="none")
    assert (loss.diff() >= -1e-9).all()


def test_mixup_with_margins_is_not_a_dense_target() -> None:
    """A margin is taken from each term's own target; with a dense target both logits are lowered in both terms."""
    first, second, lam = classes_of(64, 4, 204), classes_of(64, 4, 205), 0.4
    cosine, scale = normal(64, 4, seed=206).tanh(), 10.0
    dense = lam * one_hot(first, 4) + (1 - lam) * one_hot(second, 4)
    margin = published.ldam_margin(COUNTS.double(), 0.5)
    naive = cross_entropy(scale * (cosine - margin * (dense > 0)), dense)
    loss = losses.LDAMLoss(COUNTS, max_margin=0.5, scale=scale).double()
    truth = 0.0
    for share, target in ((lam, first), (1 - lam, second)):
        truth += share * cross_entropy(scale * (cosine - margin * one_hot(target, 4)), target)
    assert abs(naive - truth) > 0.1
    assert_close(loss(cosine, MixedTarget(first, second, lam)), truth)


@pytest.mark.parametrize("threshold", [1.0, 0.4])
def test_repulsion_diagonal_above_one(threshold: float) -> None:
    """In float32 a third of the self-dots exceed 1: theta = 1, which turns the term off, would misfire."""
    weight = normal(300, 64, seed=207, dtype=torch.float32)
    unit = normalize(weight)
    alike = unit @ unit.T
    assert (alike.diagonal() > 1).float().mean() > 0.05
    similar = alike > 1.0
    naive = (torch.where(similar, alike, 0.0).logsumexp(1) - torch.where(similar, alike, 0.0).diagonal()).sum()
    assert abs(naive - 300 * math.log(300)) > 1
    found = gradients(lambda w: functional.logit_weight_repulsion(w, threshold=threshold), {"w": weight})
    truth = published.logit_weight_repulsion(weight.double(), threshold)
    assert_close(found["value"], truth, torch.float32)
    if threshold == 1:
        assert (found["w"] == 0).all()


def test_repulsion_of_zero_rows() -> None:
    weight = normal(6, 3, seed=208)
    weight[2] = 0.0
    assert not finite(gradients(lambda w: published.logit_weight_repulsion(w), {"w": weight}))
    call = functional.logit_weight_repulsion
    for project in (True, False):
        assert finite(gradients(lambda w, project=project: call(w, project=project), {"w": weight}))


def test_center_loss_cancels() -> None:
    """|x|^2 + |c|^2 - 2 x.c in float32: with features around 20 nothing of a small distance is left."""
    centers = 20 + normal(4, 64, seed=209, dtype=torch.float32)
    target = classes_of(50, 4, 210)
    features = centers[target] + 2e-3 * normal(50, 64, seed=211, dtype=torch.float32)
    expanded = features.pow(2).sum(1) + centers[target].pow(2).sum(1) - 2 * (features * centers[target]).sum(1)
    exact = published.center_loss(features.double(), target, centers.double())
    assert abs(expanded.mean() - exact) > 0.5 * exact
    module = regularizers.CenterLoss(4, 64)
    next(tensor for tensor in module.state_dict().values() if tensor.shape == (4, 64)).copy_(centers)
    assert module(features, target).item() == pytest.approx(exact.item(), rel=1e-5)


def test_anchor_of_the_class_margin_is_the_rarest_class() -> None:
    """Counts that are not sorted: (n_last / n_c)^tau gives margins far above the largest one allowed."""
    counts = torch.tensor([50.0, 250.0, 516.0, 5.0, 352.0])
    naive = 0.1 * (counts[-1] / counts)
    assert naive.max() > 7
    cosine, target = torch.zeros(1, 5, dtype=torch.float64), torch.tensor([3])
    cosine[0, 3] = 0.5  # not hard
    value = losses.DBMLoss(counts, max_margin=0.1, scale=10.0).double()(cosine, target)
    truth = math.log(1 + 4 * math.exp(-10 * math.cos(math.acos(0.5) + 0.1)))
    assert value.item() == pytest.approx(truth, rel=1e-9)

"""Sub-centres of a cosine head, and scaled cosines as logits, against dense formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import classes_of, normal
from tolerances import assert_close
from torch.nn import functional as F

from lt_kernels.functional import MixedTarget
from lt_kernels.heads import CosineHead, LinearHead
from lt_kernels.losses import (
    ArcFaceLoss,
    BalancedSoftmaxLoss,
    CrossEntropyLoss,
    DBMLoss,
    LADELoss,
    Loss,
    SphereFaceLoss,
)
from lt_kernels.ops import memory_budget

CLASSES, SIZE, ROWS, CENTERS = 6, 8, 15, 3
COUNTS = torch.tensor([90, 50, 20, 8, 3, 1])
TARGET = classes_of(ROWS, CLASSES, seed=2)


def head_of(loss: Loss, centers: int = CENTERS, **options: float) -> CosineHead:
    return CosineHead(SIZE, CLASSES, loss, centers=centers, **options).double()


def dense(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The largest cosine of each class, [N, C], with all of them in memory."""
    all_of = F.normalize(features) @ F.normalize(weight).T
    return all_of.view(len(features), CLASSES, CENTERS).amax(2)


LOSSES = [ArcFaceLoss(0.4, 9.0), DBMLoss(COUNTS, base="bs"), BalancedSoftmaxLoss(COUNTS), LADELoss(COUNTS)]


@pytest.mark.parametrize("budget", [2**28, 1000], ids=["at once", "by blocks of classes"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_the_nearest_centre_counts(loss: Loss, budget: int):
    head = head_of(loss, scale=7.0)
    assert head.weight.shape == (CLASSES * CENTERS, SIZE)
    features = normal(ROWS, SIZE, seed=1).requires_grad_()
    cosines = dense(features, head.weight)
    expected = loss(cosines if loss.input_kind == "cosine" else 7.0 * cosines, TARGET)
    with memory_budget(budget):
        value = head(features, TARGET)
        assert_close(head(features), cosines)
        found = torch.autograd.grad(value, [features, head.weight])
    assert_close(value, expected)
    for one, other in zip(found, torch.autograd.grad(expected, [features, head.weight]), strict=True):
        assert_close(one, other)


def test_equal_centres_are_one_centre():
    one, several = head_of(ArcFaceLoss(), 1), head_of(ArcFaceLoss())
    with torch.no_grad():
        several.weight.copy_(one.weight.repeat_interleave(CENTERS, 0))
    features = normal(ROWS, SIZE, seed=3)
    assert_close(several(features, TARGET), one(features, TARGET))


def test_the_features_norms_belong_to_spherefaces_logits():
    one, several = head_of(SphereFaceLoss(3), 1), head_of(SphereFaceLoss(3))
    with torch.no_grad():
        several.weight.copy_(one.weight.repeat_interleave(CENTERS, 0))
    features = normal(ROWS, SIZE, seed=4, spread=2.0)
    assert_close(several(features, TARGET), one(features, TARGET))
    assert_close(several.scaled(features), one.scaled(features))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_spherefaces_norms_in_any_dtype(kind: torch.dtype):
    """Those of a head's features, and those that are given beside cosines; a norm may be beyond float16's largest."""
    head = head_of(SphereFaceLoss(3, 0.01, annealing=5.0))
    features = (normal(ROWS, SIZE, seed=4) * 3e4).to(kind).double()
    narrow = copy.deepcopy(head).to(kind)
    head.load_state_dict(narrow.state_dict())
    assert_close(narrow(features.to(kind), TARGET).double(), head(features, TARGET), kind)
    assert_close(narrow.scaled(features.to(kind)).double(), head.scaled(features), kind)
    cosines, norms = dense(features, head.weight).detach().to(kind), features.norm(dim=1)
    expected = head.loss(cosines.double(), TARGET, norms)
    for given in (norms, norms.float()):
        found = narrow.loss(cosines, TARGET, given)
        assert found.dtype is kind
        assert_close(found.double(), expected, kind)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.float()(features.float(), TARGET)
    assert found.dtype is torch.float32
    assert_close(found, expected, torch.bfloat16)


def test_prediction_names_features_as_the_loss_does():
    with pytest.raises(ValueError, match=r"features must be \[..., 8\], got \[2, 5\]"):
        head_of(ArcFaceLoss())(torch.zeros(2, 5))
    with pytest.raises(TypeError, match="features must"):
        head_of(ArcFaceLoss())(torch.zeros(2, SIZE, dtype=torch.int64))


def test_a_head_from_before_there_were_centres():
    head, features = head_of(ArcFaceLoss(), 1), normal(ROWS, SIZE, seed=3)
    expected = head(features)
    del head.__dict__["centers"]
    assert torch.equal(head(features), expected)


def test_shapes_pairs_of_targets_and_the_state():
    head = head_of(ArcFaceLoss(reduction="none"))
    features = normal(5, 3, SIZE, seed=5)
    assert head(features).shape == (5, 3, CLASSES)
    each = [head(features, one.view(5, 3)) for one in (TARGET, TARGET.roll(1))]
    assert each[0].shape == (5, 3)
    mixed = head(features, MixedTarget(TARGET.view(5, 3), TARGET.roll(1).view(5, 3), 0.3))
    assert_close(mixed, 0.3 * each[0] + 0.7 * each[1])
    other = head_of(ArcFaceLoss(reduction="none"))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(features), head(features))
    assert "centers=3" in repr(head)
    assert "centers" not in repr(head_of(ArcFaceLoss(), 1))


@pytest.mark.parametrize(("options", "message"), [
    ({"centers": 0}, "centers must be at least 1, got 0"),
    ({"centers": 2, "sample": 0.5}, "centers must be 1 with mesh or sample, got 2"),
])  # fmt: skip
def test_what_sub_centres_do_not_have_is_named(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        CosineHead(SIZE, CLASSES, ArcFaceLoss(), **options)


@pytest.mark.parametrize("head", [
    CosineHead(SIZE, CLASSES, ArcFaceLoss(0.0, 11.0)),
    CosineHead(SIZE, CLASSES, CrossEntropyLoss(), scale=5.0),
    CosineHead(SIZE, CLASSES, ArcFaceLoss(0.0, 11.0), centers=2),
    CosineHead(SIZE, CLASSES, SphereFaceLoss(1, 0.7)),
    LinearHead(SIZE, CLASSES, CrossEntropyLoss()),
    LinearHead(SIZE, CLASSES, Loss(scale=3.0)),
], ids=["margin", "logits", "sub-centres", "sphere", "linear", "linear scaled"])  # fmt: skip
def test_softmax_of_what_is_scaled_gives_the_probabilities_of_the_loss(head: torch.nn.Module):
    """With a margin of nothing the loss is minus the log of the target's probability."""
    head, features = head.double(), normal(ROWS, SIZE, seed=6)
    loss = head(features, TARGET)
    assert_close(loss, F.cross_entropy(head.scaled(features), TARGET))
